"""Pictures with or without labels from folders, tables, archives and IDX files; nothing is decoded here."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bedplate.data import labels as labelling
from bedplate.data.formats import ROWS, telling_damage
from bedplate.data.image_refs import ImageRef, forget_files, idx_array
from bedplate.data.image_tables import Found, folder_labels, read_table, read_tar
from bedplate.data.images import SUFFIXES
from bedplate.data.labels import check_classes, sorted_classes, unknown_label
from bedplate.data.remote import is_remote, location
from bedplate.data.sources import Paths, file_hashes, kind_of, resolve, shown, walk
from bedplate.errors import InputError

__all__ = [
    "ImageRef",
    "LabelledImages",
    "fingerprint",
    "read_images",
    "sample_images",
    "split_images",
]

OTHER_SPLITS = "files of other splits"
IDX_IMAGES = re.compile(r"(.*)images([-.])idx3-ubyte(\.gz)?")
METADATA = re.compile(r"metadata\.(csv|jsonl|parquet)")
"""Tables of pictures beside them, by the Hub's convention."""
TABLES = (*ROWS, "tar")
TRAIN = ("train", "training")
SCORED = ("val", "valid", "validation", "dev", "eval", "test", "testing", "t10k")
SPLIT = re.compile(rf"({'|'.join((*TRAIN, *SCORED))})([-_.].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class LabelledImages:
    """Pictures and their labels.

    Attributes:
        images: Handles of the pictures.
        labels: As many, never empty; None where the pictures have no labels.
        classes: The labels that there are, in the order of the Hub's schema or of `read_images`'s `classes` where these
            are given, else sorted. Parts of the data keep the classes of the whole.
        dropped: How many files or rows reading left out, by reason. Parts keep the counts of the whole.
    """

    images: list[ImageRef]
    labels: list[str] | None
    classes: list[str]
    dropped: dict[str, int]

    @property
    def sources(self) -> list[str]:
        """Where each picture is, as errors call it."""
        return [image.where for image in self.images]

    @property
    def targets(self) -> NDArray[np.int64] | None:
        """Index into `classes` of each picture (N,), where there are labels."""
        if self.labels is None:
            return None
        number = {name: i for i, name in enumerate(self.classes)}
        return np.array([number[label] for label in self.labels], np.int64)

    def fingerprint(self, cache_dir: str | Path) -> str:
        """See the function of this name."""
        return fingerprint(self, cache_dir)

    def doubts(self) -> list[str]:
        """What a person should know of the labels before they are learnt, as sentences."""
        return labelling.doubts(self.labels) if self.labels else []

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: ArrayLike) -> Self:
        """The pictures of these (n,) indices, in their order."""
        numbers = np.asarray(indices, np.int64).tolist()
        labels = None if self.labels is None else [self.labels[i] for i in numbers]
        return replace(self, images=[self.images[i] for i in numbers], labels=labels)


def read_images(
    path: Paths,
    image: str | None = None,
    label: str | None = None,
    classes: Sequence[str] | None = None,
    *,
    to_learn: bool = True,
) -> LabelledImages:
    """Find the pictures that `path` names, in a fixed order, with their labels.

    - A folder of folders: the label is the name of the first folder. A folder of pictures alone has no labels. A
      `metadata.csv` (or .jsonl, .parquet) beside pictures says more, as on the Hub.
    - A table (csv, tsv, jsonl, parquet, `hf:` id): a column of paths, relative to the table, or of the Hub's
      {bytes, path}; labels are strings, whole numbers or booleans; numbers that the Hub's schema names get their names.
    - A tar archive: pictures `KEY.jpg` with labels in `KEY.cls`, `KEY.json` or `KEY.txt` (WebDataset), else by folder.
    - IDX files (MNIST): `*-images-idx3-ubyte` beside `*-labels-idx1-ubyte`, each also with .gz.

    Where a folder has parts called train and val, test or the like, only train is read; the rest is counted in
    `dropped`, as are hidden files, files of other kinds, empty folders, and pictures without a label where others
    have one.

    Args:
        path: File, folder, glob, URL of a table or archive, `hf:` id, or a list of these.
        image: Column of the pictures; guessed by values, then by name.
        label: Column, key of `KEY.json`, or suffix of the labels; guessed by name; "" reads no labels.
        classes: The known labels, where the data must have no others.
        to_learn: Whether the labels are to be learnt: these must repeat, and be 1,000 at most.

    Raises:
        InputError: Nothing found, a column that is not there or cannot be guessed, a label that is no class or not
            among `classes`, or a damaged table or archive.
    """
    forget_files()
    dropped = Counter[str]()
    items = [path] if isinstance(path, str | Path) else list(path)
    if not items:
        raise InputError("the list of data paths is empty: give at least one file, folder, glob or hf: id")
    parts = [part for item in items for part in _read(location(item), image, label, classes, dropped)]
    refs = [ref for part in parts for ref in part.images]
    labels = [name or "" for part in parts for name in part.labels]
    if not refs:
        raise InputError(f"{shown(path)}: no pictures{counted(dropped)}; known suffixes are {', '.join(SUFFIXES)}")
    if label == "" or not any(labels):
        if label:
            raise InputError(f"{shown(path)}: no labels in '{label}'; {labelling.how_to_name('label')}")
        return LabelledImages(refs, None, list(classes or ()), dict(dropped))
    known = None if classes is None else frozenset(classes)
    kept = [i for i, name in enumerate(labels) if name]
    if len(kept) < len(refs):
        dropped["missing labels"] += len(refs) - len(kept)
    refs, labels = [refs[i] for i in kept], [labels[i] for i in kept]
    if known is not None:
        for ref, name in zip(refs, labels, strict=True):
            if name not in known:
                raise unknown_label(name, classes or (), ref.where)
    elif to_learn:
        check_classes(labels, next(part.column for part in parts if any(part.labels)), shown(path))
    return LabelledImages(refs, labels, _class_order(parts, labels, classes), dict(dropped))


def split_images(data: LabelledImages, fraction: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Split into (rest, held out), as `labels.split_indices` does; at random where there are no labels."""
    rest, held = labelling.split_indices(data.labels or [""] * len(data), fraction, seed)
    return data.select(rest), data.select(held)


def sample_images(data: LabelledImages, count: int, seed: int) -> LabelledImages:
    """Sample `count` pictures, as `labels.sample_indices` does; at random where there are no labels."""
    return data.select(labelling.sample_indices(data.labels or [""] * len(data), count, seed))


def fingerprint(data: LabelledImages, cache_dir: str | Path) -> str:
    """Hash what the pictures are: the contents of their files, their places in these, their labels, in order.

    Digests of files are remembered in `cache_dir` (see `sources.content_hash`); where the files lie does not count.

    Returns:
        Hexadecimal BLAKE2b digest, 32 characters.
    """
    return hash_pictures(data.images, data.labels or [""] * len(data), repr(data.classes), cache_dir)


def hash_pictures(images: Sequence[ImageRef], words: Sequence[object], more: str, cache_dir: str | Path) -> str:
    """`fingerprint` of pictures with anything that is said of each, and of all."""
    there = [name for name in dict.fromkeys(ref.file for ref in images) if os.path.isfile(name)]
    hashes = file_hashes(there, cache_dir)
    total = hashlib.blake2b(more.encode(), digest_size=16)
    for ref, said in zip(images, words, strict=True):
        part = (hashes.get(ref.file, "missing"), ref.kind, ref.place, ref.size, ref.column, said)
        total.update(repr(part).encode())
    return total.hexdigest()


def _class_order(parts: Sequence[Found], labels: Sequence[str], classes: Sequence[str] | None) -> list[str]:
    if classes is not None:
        return list(classes)
    names = {tuple(part.names) for part in parts}
    only = list(names.pop()) if len(names) == 1 else []
    return only if only and set(labels) <= set(only) else sorted_classes(labels)


def counted(dropped: Counter[str]) -> str:
    return f" ({', '.join(f'{reason}: {count}' for reason, count in dropped.items())})" if dropped else ""


def _read(
    name: str, image: str | None, label: str | None, classes: Sequence[str] | None, dropped: Counter[str]
) -> list[Found]:
    """The pictures of one path of the user's."""
    table = partial(read_table, image=image, label=label, dropped=dropped)
    if name.startswith("hf:"):
        return [table(name)]
    if is_remote(name):
        return [
            read_tar(url, label, dropped) if _kind(url) == "tar" else table(url)
            for url in resolve(name)
            if _kind(url) != "txt"
        ]
    path = Path(name).expanduser()
    if has_magic(name) and not os.path.exists(path):
        matches = sorted(glob(str(path), recursive=True))
        if not matches:
            raise InputError(f"{name}: no file matches this pattern; quote it in the shell and check the folder")
        if all(is_picture(match) for match in matches):
            root = os.path.commonpath([os.path.dirname(match) or "." for match in matches])
            return [_by_folder(root, [os.path.relpath(match, root) for match in matches], label, classes, dropped)]
        return [part for match in matches for part in _read(match, image, label, classes, dropped)]
    if os.path.isdir(path):
        return _read_folder(path, image, label, classes, dropped)
    if not os.path.isfile(path):
        raise InputError(f"{name}: no such file or folder (from {Path.cwd()}); check the spelling of the path")
    if is_picture(name):
        return [Found([ImageRef(str(path), str(path))], [None], "folder names", [])]
    if IDX_IMAGES.fullmatch(path.name):
        return [_read_idx(path, label)]
    if _kind(name) == "tar":
        return [read_tar(str(path), label, dropped)]
    if _kind(name) in ROWS:
        return [table(str(path))]
    kinds = ", ".join(f".{kind}" for kind in TABLES)
    raise InputError(f"{name}: no picture and no table or archive of them; known are {', '.join(SUFFIXES)}, {kinds}")


def _read_folder(
    root: Path, image: str | None, label: str | None, classes: Sequence[str] | None, dropped: Counter[str]
) -> list[Found]:
    files = files_below(root, dropped)
    pictures = [file for file in files if is_picture(file)]
    if pictures:
        tables = [file for file in files if METADATA.fullmatch(os.path.basename(file))]
    else:
        tables = [file for file in files if IDX_IMAGES.fullmatch(os.path.basename(file)) or _kind(file) in TABLES]
    of_arrays = [file.replace("images", "labels").replace("idx3", "idx1") for file in tables]
    others = len(set(files) - {*pictures, *tables, *of_arrays})
    if others:
        dropped["files of other kinds"] += others
    if pictures and not tables:
        return [_by_folder(str(root), only_train(pictures, dropped), label, classes, dropped)]
    kept = only_train(tables, dropped)
    parts = [part for file in kept for part in _read(str(root / file), image, label, classes, dropped)]
    count_unnamed(root, pictures, [ref for part in parts for ref in part.images], dropped)
    return parts


def count_unnamed(root: Path, pictures: list[str], named: Sequence[ImageRef], dropped: Counter[str]) -> None:
    """Count the pictures of a folder that its tables do not name."""
    there = {os.path.normpath(root / file) for file in only_train(pictures, Counter())}
    if unnamed := len(there.difference(os.path.normpath(ref.file) for ref in named)):
        dropped["pictures that no metadata file names"] += unnamed


def files_below(root: Path, dropped: Counter[str]) -> list[str]:
    """The files below a folder, sorted, as relative paths; hidden ones and folders that hold nothing are counted."""
    found = []
    for folder, inside, names in walk(root):
        inner = os.path.relpath(folder, root)
        if not (inside or names or inner == os.curdir or _is_hidden(inner)):
            dropped["empty folders"] += 1
        for name in names:
            file = os.path.normpath(os.path.join(inner, name))
            if _is_hidden(file):
                dropped["hidden files"] += 1
            else:
                found.append(file)
    return sorted(found, key=lambda file: Path(file).parts)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in Path(path).parts)


def only_train(files: list[str], dropped: Counter[str], *, folders_only: bool = False) -> list[str]:
    """Without the parts for validation and tests, where a part for training is beside them.

    Parts are folders of these names, or files that begin so (not with `folders_only`), below the folder that holds all.
    """
    base = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    split_of = {}
    for file in files:
        first, *inner = Path(os.path.relpath(file, base or ".")).parts
        match = SPLIT.fullmatch(first) if inner or not folders_only else None
        split_of[file] = match[1].lower() if match and not (inner and match[2]) else None
    if not set(split_of.values()).intersection(TRAIN):
        return files
    kept = [file for file, split in split_of.items() if split is None or split in TRAIN]
    if len(kept) < len(files):
        dropped[OTHER_SPLITS] += len(files) - len(kept)
    return kept


def _by_folder(
    root: str, files: Sequence[str], label: str | None, classes: Sequence[str] | None, dropped: Counter[str]
) -> Found:
    """Pictures whose label is the first folder of their relative path, below folders that hold all of them."""
    refs = [ImageRef(path, path) for path in (os.path.join(root, file) for file in files)]
    labels = folder_labels([Path(file).parts for file in files], classes)
    if label == "" or not any(labels):
        return Found(refs, [None] * len(refs), "folder names", [])
    stray = sum(name is None for name in labels)
    if stray:
        dropped["pictures outside of the class folders"] += stray
    kept = [i for i, name in enumerate(labels) if name]
    return Found([refs[i] for i in kept], [labels[i] for i in kept], "folder names", [])


def _read_idx(path: Path, label: str | None) -> Found:
    match = cast(re.Match[str], IDX_IMAGES.fullmatch(path.name))
    images = idx_array(str(path))
    if images.ndim != 3:
        raise InputError(f"{path}: {images.ndim} dimensions, where pictures have 3; fetch it again")
    refs = [ImageRef(f"{path}:{row + 1}", str(path), "idx", row) for row in range(len(images))]
    stem = path.parent / f"{match[1]}labels{match[2]}idx1-ubyte"
    there = [file for file in (stem, Path(f"{stem}.gz")) if file.is_file()]
    if label == "" or not there:
        return Found(refs, [None] * len(refs), "labels", [])
    with telling_damage(str(there[0])):
        labels = idx_array(str(there[0]))
    if labels.shape != (len(images),):
        raise InputError(f"{there[0]}: {labels.size} labels for {len(images)} pictures; fetch both files again")
    return Found(refs, [str(value) for value in labels.tolist()], there[0].name, [])


def is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _kind(name: str) -> str | None:
    known = kind_of(name)
    return known[0] if known else None
