"""`search`: the pictures of a folder that a text, or another picture, is most like."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bedplate.api.folders import cache_folder
from bedplate.data.image_files import ImageRef, read_images
from bedplate.data.images import SUFFIXES, Source
from bedplate.data.sources import below
from bedplate.errors import InputError
from bedplate.hub.clip_model import ClipModel
from bedplate.hub.load import load
from bedplate.hub.picture_index import PictureIndex, fingerprint
from bedplate.train.hardware import choose_device

MODEL = "zoo:clip-mini"
TOLD = 5  # broken pictures that are named


def search(
    folder: str | Path,
    query: Source,
    *,
    model: ClipModel | str | Path = MODEL,
    n: int = 10,
    index: str | Path | None = None,
    column: str | None = None,
    device: str = "auto",
    progress: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:
    """The pictures that are most like a query, nearest first.

    Their vectors are kept in an index file: the next search embeds what is new or changed alone. An index of another
    model is made anew.

    Args:
        folder: pictures, also in folders below it (hidden ones are left out), or a table or archive of them, see
            `data.image_files.read_images`.
        query: a text, or a picture: its path, bytes, a PIL image or an array.
        model: a CLIP, or what `load` takes.
        n: how many pictures.
        index: the index file; by default one in the cache, by folder and model.
        column: of the pictures in a table.
        device: auto (the first GPU, else the CPU), cpu, cuda or mps, for a model that is loaded here.
        progress: called with lines about what was read and what is broken.

    Returns:
        [{"path", "score"}]; the score is the cosine.

    Raises:
        InputError: an empty or too long query, no pictures, none that can be decoded, a model of another kind, or a
            file that is no index.
    """
    if n < 1:
        raise InputError(f"n={n}: give 1 or more")
    asked = _query(query)
    folder = os.path.expanduser(folder)
    pictures = _pictures(folder, column)
    loaded = load(model, choose_device(device)) if isinstance(model, str | Path) else model
    if not isinstance(loaded, ClipModel):
        raise InputError(f"{model}: searching needs a model of texts and pictures in one space (CLIP), such as {MODEL}")
    if isinstance(asked, str) and (tokens := loaded.token_count(asked)) > (
        limit := loaded.config.text.max_position_embeddings
    ):
        raise InputError(f"query: {tokens:,} tokens with its end, and this model reads {limit}; shorten the query")
    vector = loaded.embed([asked])[0]
    whose = fingerprint(loaded)
    file = Path(index).expanduser() if index is not None else _in_cache(folder, whose)
    known = PictureIndex.load(file, whose)
    try:
        new = known.update(loaded, pictures, progress)
    finally:
        known.save(file)
    progress(f"{len(pictures):,} pictures, {new:,} of them new, {len(known.broken):,} broken; index: {file}")
    for where, (_, why) in list(known.broken.items())[:TOLD]:
        progress(f"left out: {why if where in why else f'{where}: {why}'}")
    if not known.stamps:
        raise InputError(f"{folder}: none of its {len(pictures):,} pictures can be decoded")
    found = known.nearest(vector, n)
    root = Path(folder)
    return [{"path": str(root / name) if root.is_dir() else name, "score": score} for name, score in found]


def _query(query: Source) -> Source:
    """A text as a string, a picture as anything else."""
    if not isinstance(query, str):
        return query
    if not query.strip():
        raise InputError("query: the text is empty; say what to look for, or give a picture")
    if query.lower().endswith(SUFFIXES):
        if not os.path.isfile(query):
            raise InputError(f"query: {query}: no such picture; check the path, or say what to look for in words")
        return Path(query)
    return query


def _pictures(folder: str | Path, column: str | None) -> dict[str, ImageRef]:
    """The pictures by name: of a folder their paths in it."""
    root = Path(folder)
    if not os.path.isdir(root) or column is not None:
        return {ref.where: ref for ref in read_images(folder, column, label="").images}
    names = sorted(
        path.relative_to(root) for path in below(root) if path.name.lower().endswith(SUFFIXES) and path.is_file()
    )
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not names:
        return {ref.where: ref for ref in read_images(folder, label="").images}  # tables or archives, or its error
    return {str(name): ImageRef(str(root / name), str(root / name)) for name in names}


def _in_cache(folder: str | Path, model: str) -> Path:
    place = str(folder) if "://" in str(folder) else str(Path(folder).resolve())
    digest = hashlib.blake2b(f"{place}\n{model}".encode(), digest_size=16).hexdigest()
    return cache_folder() / "search" / f"{digest}.safetensors"
