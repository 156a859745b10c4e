"""`prepare`: tokenise text into shards before training, as `pretrain` would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bedplate.api.folders import cache_folder
from bedplate.data import text
from bedplate.data.tokenizer import load_tokenizer


def prepare(
    data: str | Path | Sequence[str | Path],
    tokenizer: str | Path,
    *,
    column: str = "text",
    val_data: str | None = None,
    val_fraction: float = 0.01,
    workers: int = 1,
    engine: str = "local",
    cache: str | Path | None = None,
    on_progress: text.Progress | None = None,
) -> dict[str, Any]:
    """Tokenise, split and pack text into memory-mapped shards; the same call again finds them, or goes on.

    Args:
        data: files, folders, globs, archives, URLs of these (s3://bucket/*.parquet), or hf: ids.
        tokenizer: a tokenizer.json, or a directory that holds one.
        val_data: held-out text; without it documents are held out by their hash.
        workers: processes that tokenise.
        engine: "local", or "ray": the workers are tasks of a Ray cluster. The shards are the same.
        cache: the folder or URL for shards (default: $BEDPLATE_CACHE, else ~/.cache/bedplate).
        on_progress: called with the documents, tokens and bytes of text so far.

    Returns:
        what the shards' meta.json says: fingerprint, dtype, documents, tokens and bytes of each split.
    """
    paths = [str(data)] if isinstance(data, str | Path) else [str(path) for path in data]
    prepared = text.prepare(
        paths,
        load_tokenizer(tokenizer),
        column=column,
        val_path=val_data,
        val_fraction=val_fraction,
        cache_dir=cache_folder(None if cache is None else Path(cache), local=False) / "text",
        workers=workers,
        engine=engine,
        on_progress=on_progress,
    )
    return prepared.meta
