"""Pictures in tables (csv, jsonl, parquet, the Hub) and in WebDataset archives, with their labels."""

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from bedplate.data import remote, sources
from bedplate.data.formats import TarHeader, decompress, missing_column, telling_damage
from bedplate.data.hub import hub_label_names
from bedplate.data.image_refs import ImageRef, Spool, beside
from bedplate.data.images import SUFFIXES
from bedplate.data.labels import LABEL_NAMES, as_label, first_named, how_to_name, listed
from bedplate.data.remote import is_remote
from bedplate.errors import InputError

LOOKED_AT = 100
"""First rows by which columns are guessed."""
# Names under which published data sets keep pictures and paths of them, the clearest first.
IMAGE_NAMES = (
    *("image", "img", "picture", "photo", "file_name", "filename", "image_path", "img_path", "path", "filepath"),
    *("file_path", "file", "image_file", "image_name", "jpg", "png"),
)
IMAGE_LABEL_NAMES = (*LABEL_NAMES, "fine_label", "label_name", "digit", "species")
MISSING = (None, "", {"bytes": None, "path": None})
"""What stands where a row has no picture, the last as the Hub writes it."""
LABEL_SUFFIXES = ("cls", "json", "txt")
"""Of WebDataset's labels, the surest first."""


@dataclass(frozen=True)
class Found:
    """The pictures of one file or folder.

    Attributes:
        images: Handles.
        labels: As many; "" or None where a picture has none.
        column: What the labels are called, for errors.
        names: All classes in the order of the schema, where it has one.
    """

    images: list[ImageRef]
    labels: Sequence[str | None]
    column: str
    names: list[str]


def read_table(name: str, image: str | None, label: str | None, dropped: Counter[str]) -> Found:
    """The pictures of a table: a file with rows, its URL, or an `hf:` id."""
    image, label = _columns(name, image, label)
    names = _schema_names(name, label) if label else []
    if readable_at_random(name, image):
        return _read_parquet(name, image, label, names)
    refs: list[ImageRef | int] = []  # a number is one of the spool
    labels: list[str | None] = []
    missing = 0
    with Spool(name) as spool:
        for source, row in sources.rows(name):
            if image not in row:
                raise missing_column(source, image, row)
            ref = row_picture(row[image], source, image, name, spool)
            if ref is None:
                missing += 1
                continue
            refs.append(ref)
            labels.append(_label(row.get(label), source, label, names) if label else None)
        kept = spool.close() if any(isinstance(ref, int) for ref in refs) else []
    if missing:
        dropped["rows without a picture"] += missing
    return Found([kept[ref] if isinstance(ref, int) else ref for ref in refs], labels, label or "", names)


def picture_key(value: object) -> Hashable:
    """What is equal where the pictures of two rows are the same; None where there is none."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return hashlib.blake2b(value, digest_size=16).digest() if value else None
    return os.path.normpath(value.strip()) if isinstance(value, str) and value.strip() else None


def row_picture(value: object, source: str, column: str, name: str, spool: Spool) -> ImageRef | int | None:
    """Where the picture of a row is: a file, or a number in the spool."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return spool.add(value, source)
    if not value:
        return None
    if not isinstance(value, str):
        raise InputError(
            f"{source}: '{column}' holds {type(value).__name__}, no path or picture; {how_to_name('image')}"
        )
    if not _on_this_machine(name):
        raise InputError(f"{source}: '{column}' is a path beside a table elsewhere; fetch the folder, or give parquet")
    path = beside(name, value.strip())
    return ImageRef(f"{source} ({path})", path)


def _read_parquet(name: str, image: str, label: str | None, names: list[str]) -> Found:
    """Handles of the rows, without reading the pictures."""
    import pyarrow.parquet as pq

    with telling_damage(name):
        count = pq.read_metadata(name).num_rows
    refs = [ImageRef(f"{name}:{row + 1}", name, "parquet", row, column=image) for row in range(count)]
    if not label:
        return Found(refs, [None] * count, "", names)
    labels = [_label(row[label], source, label, names) for source, row in sources.rows(name, [label])]
    return Found(refs, labels, label, names)


def _columns(name: str, image: str | None, label: str | None) -> tuple[str, str | None]:
    """(column of the pictures, column of the labels or None), by the first rows."""
    rows = first_rows(name)
    present = list(dict.fromkeys(key for row in rows for key in row))
    is_plain = (sources.kind_of(name) or ("",))[0] in ("csv", "tsv")
    if image is None and is_plain and any(map(_may_be_picture, present)):
        raise InputError(
            f"{name}: its first line looks like a row, not like the names of columns; put image,label above it, or "
            "name the columns"
        )
    if label and label not in present:
        raise missing_column(name, label, present)
    image = picture_column(name, rows, image, [label] if label else [])
    if label is None:
        label = first_named(IMAGE_LABEL_NAMES, present, image)
    return image, label or None


def first_rows(name: str) -> list[dict[str, Any]]:
    """The rows by which the columns of a table are guessed.

    Raises:
        InputError: There are none.
    """
    rows = [row for _, row in islice(sources.rows(name), LOOKED_AT)]
    if not rows:
        raise InputError(f"{name}: no rows; give a table of pictures")
    return rows


def picture_column(name: str, rows: Sequence[dict[str, Any]], image: str | None, taken: Sequence[str]) -> str:
    """The column of the pictures of a table, by its first rows: `image`, else guessed among those not `taken`.

    Raises:
        InputError: `image` is not there, or it is not clear which column it is.
    """
    present = list(dict.fromkeys(key for row in rows for key in row))
    if image is not None:
        if image not in present:
            raise missing_column(name, image, present)
        return image
    candidates = [key for key in present if key not in taken and _holds_pictures([row.get(key) for row in rows])]
    found = candidates[0] if len(candidates) == 1 else first_named(IMAGE_NAMES, candidates)
    if found is None:
        several = f", of which {listed(candidates)} could be it" if candidates else ""
        raise InputError(
            f"{name}: it is not clear which column holds the pictures: present are {listed(present)}{several}; "
            f"{how_to_name('image')}"
        )
    return found


def _holds_pictures(values: Sequence[Any]) -> bool:
    known = [value for value in values if value not in MISSING]
    return bool(known) and all(_may_be_picture(value) for value in known)


def _may_be_picture(value: object) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes) or _may_be_picture(value.get("path"))
    return isinstance(value, bytes) or (isinstance(value, str) and value.strip().lower().endswith(SUFFIXES))


def _label(value: object, source: str, column: str, names: Sequence[str]) -> str:
    """The label of a row, by its name in the schema; "" where it has none (the Hub writes -1 for that)."""
    if names and isinstance(value, int) and not isinstance(value, bool):
        if value == -1:
            return ""
        if not 0 <= value < len(names):
            raise InputError(
                f"{source}: '{column}' is {value}, but the schema names {len(names)} classes; mend the row"
            )
        return names[value]
    return as_label(value, source, column)


def _on_this_machine(name: str) -> bool:
    return not (name.startswith("hf:") or is_remote(name))


def readable_at_random(name: str, column: str) -> bool:
    """Whether pictures can be read in any order where they are: in a parquet file that holds them, not their paths."""
    if not _is_parquet_here(name):
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    with telling_damage(name):
        kind = pq.read_schema(name).field(column).type
    return not (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_parquet_here(name: str) -> bool:
    return _on_this_machine(name) and sources.kind_of(name) == ("parquet", "")


def _schema_names(name: str, label: str) -> list[str]:
    """The names that a parquet file's or an `hf:` id's schema gives to the numbers of the column of labels."""
    if name.startswith("hf:"):
        return hub_label_names(name, label)
    if not _is_parquet_here(name):
        return []
    import pyarrow.parquet as pq

    with telling_damage(name):
        metadata = pq.read_schema(name).metadata or {}
    try:
        feature = json.loads(metadata.get(b"huggingface", b"{}"))
    except ValueError as error:
        raise InputError(f"{name}: its schema's 'huggingface' entry is not JSON ({error}); write it again") from error
    for key in ("info", "features", label, "names"):
        feature = feature.get(key) if isinstance(feature, dict) else None
    return [str(each) for each in feature] if isinstance(feature, list) else []


def read_tar(name: str, label: str | None, dropped: Counter[str]) -> Found:
    """The pictures of a tar archive, with the labels that lie beside them under the same key, else by folders."""
    members = tar_pictures(name, dropped)
    source = remote.shown(name)
    labels: Sequence[str | None] = [_tar_label(each, label, source) for each in members]
    if label is None and not any(labels):
        labels = folder_labels([Path(each.name).parts for each in members])
    return Found([each.image for each in members], labels, label or "the files beside the pictures", [])


@dataclass(frozen=True)
class Member:
    """A picture in a tar archive: its handle and name, its key (WebDataset), and what lies beside it, by suffix."""

    image: ImageRef
    name: str
    key: str
    beside: dict[str, bytes]


def tar_pictures(name: str, dropped: Counter[str]) -> list[Member]:
    """The pictures of a tar archive in its order, with the files of `LABEL_SUFFIXES` that have the same key."""
    refs: dict[str, ImageRef | int] = {}  # by the name of the member
    keys: dict[str, str] = {}
    texts: dict[str, dict[str, bytes]] = {}  # by key, by suffix
    source = remote.shown(name)
    dotted: dict[str, str] = {}  # names with two dots or more: the key that WebDataset sees there
    others = Counter[str]()
    with Spool(name) as spool, telling_damage(source):
        for member, archive, in_place in _members(name):
            folder, _, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            suffix = suffix.lower()
            if "." in suffix:
                dotted[member.name] = f"{folder}/{stem}"
                stem, _, suffix = base.rpartition(".")
                suffix = suffix.lower()
            if any(part.startswith(".") or part == "__MACOSX" for part in Path(member.name).parts if part != "."):
                others["hidden files"] += 1
            elif f".{suffix}" in SUFFIXES:
                where = f"{source}::{member.name}"
                others["pictures replaced by a later one of their name"] += member.name in refs  # as unpacking would
                if in_place:
                    refs[member.name] = ImageRef(where, name, "span", member.offset_data, member.size)
                else:
                    refs[member.name] = spool.add(_content(archive, member), where)
                keys[member.name] = f"{folder}/{stem}"
            elif suffix in LABEL_SUFFIXES:
                texts.setdefault(f"{folder}/{stem}", {})[suffix] = _content(archive, member)
            else:
                others["files of other kinds"] += 1
        kept = spool.close() if any(isinstance(ref, int) for ref in refs.values()) else []
    taken = texts.keys() | {key for each, key in keys.items() if each not in dotted}
    for extra in [each for each in refs if dotted.get(each) in taken]:  # as KEY.mask.png beside KEY.jpg
        others["files of other kinds"] += 1
        del refs[extra]
    dropped.update(+others)
    return [
        Member(kept[ref] if isinstance(ref, int) else ref, member, keys[member], texts.get(keys[member], {}))
        for member, ref in refs.items()
    ]


def _members(name: str) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile, bool]]:
    """The files in an archive, each with whether its bytes can be read where they are."""
    compression = cast(tuple[str, str], sources.kind_of(name))[1]
    in_place = not compression and not is_remote(name)
    with (
        remote.open_stream(name) if is_remote(name) else open(name, "rb") as stream,
        _archive(decompress(stream, compression), in_place) as archive,
    ):
        while (member := archive.next()) is not None:
            if member.isfile():
                yield member, archive, in_place
            archive.members.clear()  # type: ignore[attr-defined]  # else tarfile remembers every member of millions


def _archive(stream: BinaryIO, in_place: bool) -> tarfile.TarFile:
    if in_place:
        return tarfile.open(fileobj=stream, mode="r:", tarinfo=TarHeader)
    return tarfile.open(fileobj=stream, mode="r|", tarinfo=TarHeader)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return cast(BinaryIO, archive.extractfile(member)).read()


def _tar_label(member: Member, label: str | None, source: str) -> str:
    if label == "":
        return ""
    for suffix in [label] if label in ("cls", "txt") else LABEL_SUFFIXES:
        if suffix not in member.beside or (label not in (None, suffix) and suffix != "json"):
            continue
        where, value = beside_value(member, suffix, source)
        if isinstance(value, dict):
            name = label or first_named(IMAGE_LABEL_NAMES, list(value)) or ""
            value = value.get(name)
        found = as_label(value, where, label or suffix)
        if found:
            return found
    return ""


def beside_value(member: Member, suffix: str, source: str) -> tuple[str, Any]:
    """(its place, as errors call it, what the file says) of a file beside a picture: a text, or what JSON holds.

    Raises:
        InputError: It is no UTF-8, or no JSON.
    """
    where = f"{source}::{member.key.lstrip('/')}.{suffix}"
    try:
        text = member.beside[suffix].decode()
        return where, json.loads(text) if suffix == "json" else text
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no label can be read ({error}); mend the file or leave it out") from error


def folder_labels(parts: Sequence[tuple[str, ...]], classes: Sequence[str] | None = None) -> list[str | None]:
    """The label that the folders of each path give it: its first folder, after those that all paths share."""
    depth = 0
    while True:
        folders = {part[depth] for part in parts if len(part) > depth + 1}
        alone = any(len(part) == depth + 1 for part in parts)
        if len(folders) > 1 or (classes is not None and folders and folders <= set(classes)):
            return [part[depth] if len(part) > depth + 1 else None for part in parts]
        if alone or not folders:
            return [None] * len(parts)
        depth += 1
