"""Pictures with texts, from archives, tables, folders and COCO captions; nothing is decoded here."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bedplate.data import sources
from bedplate.data.box_formats import Finder, check_id
from bedplate.data.formats import ROWS, missing_column
from bedplate.data.image_files import (
    METADATA,
    count_unnamed,
    counted,
    files_below,
    hash_pictures,
    is_picture,
    only_train,
)
from bedplate.data.image_refs import ImageRef, Spool, forget_files
from bedplate.data.image_tables import (
    beside_value,
    first_rows,
    picture_column,
    picture_key,
    readable_at_random,
    row_picture,
    tar_pictures,
)
from bedplate.data.labels import as_label, first_named, listed
from bedplate.data.order import keys
from bedplate.data.remote import is_remote, location
from bedplate.data.remote import shown as shown_url
from bedplate.data.sources import Paths, checked_text, kind_of, resolve, shown
from bedplate.errors import InputError

TEXT_NAMES = (
    *("caption", "captions", "text", "texts", "txt", "sentences", "sentence", "description", "alt_text", "alt"),
    *("title", "name", "prompt", "label"),
)
"""Names under which published data sets keep what a picture shows, the clearest first."""
KINDS = (*ROWS, "tar")
JOINED = 3
"""The most keywords that are shown together."""

Columns = str | Sequence[str] | None


@dataclass(frozen=True)
class Pairs:
    """Pictures and the texts of each.

    Attributes:
        images: Handles of the pictures.
        texts: Of each picture, at least one; the first is its name or caption.
        groups: Pictures of one group mean the same.
        dropped: How many files or rows reading left out, by reason. Parts keep the counts of the whole.
        whole: How many of each picture's texts, from the first on, stand for it by themselves; the others are keywords.
            Empty: all of them.
        textless: Where the pictures are that were left out because they have no text.
    """

    images: list[ImageRef]
    texts: list[tuple[str, ...]]
    groups: list[str]
    dropped: dict[str, int]
    whole: list[int] = field(default_factory=list)
    textless: list[str] = field(default_factory=list)

    @property
    def sources(self) -> list[str]:
        """Where each picture is, as errors call it."""
        return [image.where for image in self.images]

    @property
    def targets(self) -> NDArray[np.int64]:
        """The number of each picture's group (N,), in the order in which they come."""
        number: dict[str, int] = {}
        return np.array([number.setdefault(group, len(number)) for group in self.groups], np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: ArrayLike) -> Self:
        """The pictures of these (n,) indices, in their order."""
        numbers = np.asarray(indices, np.int64).tolist()
        return replace(
            self,
            images=[self.images[i] for i in numbers],
            texts=[self.texts[i] for i in numbers],
            groups=[self.groups[i] for i in numbers],
            whole=[self.whole[i] for i in numbers] if self.whole else [],
        )

    def fingerprint(self, cache_dir: str | Path) -> str:
        """Hash of the pictures, texts and groups in their order; see `image_files.fingerprint`."""
        words = list(zip(self.texts, self.groups, self.whole or [0] * len(self), strict=True))
        return hash_pictures(self.images, words, "", cache_dir)


@dataclass(frozen=True)
class _Row:
    """A picture as it was read; its texts may be none."""

    image: ImageRef
    texts: tuple[str, ...]
    whole: int
    group: str


@dataclass(frozen=True)
class _Wanted:
    """What a person asks for, by column or key; None where it is to be guessed."""

    image: str | None
    texts: tuple[str, ...] | None
    group: str | None
    key: str = "data.text"  # of a recipe, that says what `texts` does
    there: set[str] = field(default_factory=set)  # which of them rows have had

    def need_all(self, path: Paths) -> None:
        """Refuse a key that no row had: a misspelt group would mix what is held out with what is learnt.

        Raises:
            InputError: there is one.
        """
        for name in (*(self.texts or ()), *((self.group,) if self.group else ())):
            if name not in self.there:
                raise InputError(
                    f"{shown(path)}: no picture has {name!r} beside it; give a column or key that is there"
                )


def read_pairs(
    path: Paths,
    image: str | None = None,
    text: Columns = None,
    group: str | None = None,
    *,
    strict: bool = True,
    key: str = "data.text",
) -> Pairs:
    """Find the pictures that `path` names, in a fixed order, with their texts.

    - A tar archive: pictures `KEY.png` with `KEY.json` or `KEY.txt` (WebDataset).
    - A table (csv, tsv, jsonl, parquet, `hf:` id): a column of paths, relative to the table, or of the Hub's
      {bytes, path}. Rows of one picture are joined: each has one of its texts.
    - A folder of pictures, with a `.txt` of the same name beside each, or a `metadata.csv` (or .jsonl, .parquet).
    - COCO's captions: JSON with the lists images and annotations, which have an image_id and a caption.

    A text is a string, or each of a list of strings; in a .txt each line. Where a folder has parts called train and
    val, test or the like, only train is read.

    Args:
        path: File, folder, glob, URL of a table or archive, `hf:` id, or a list of these.
        image: Column of the pictures; guessed by values, then by name.
        text: Columns or keys of the texts: a list of them, or one string with commas between. The first holds names or
            captions, the others keywords. Guessed by name.
        group: Column or key by whose equal values pictures mean the same. By default that is the first text, whatever
            its case.
        strict: Whether all of these must be there; else keywords and groups may be missing, as in other pictures to
            score by.
        key: Of a recipe, that says what `text` does, for errors.

    Raises:
        InputError: Nothing found, no texts, a column that is not there or cannot be guessed, or damaged files.
    """
    forget_files()
    dropped = Counter[str]()
    names = None if text is None else tuple(text.split(",")) if isinstance(text, str) else tuple(text)
    if names is not None:
        names = tuple(name.strip() for name in names)
        if not names or not all(names):
            raise InputError(f"text={text!r} names no column; write it as name,keywords")
    items = [path] if isinstance(path, str | Path) else list(path)
    if not items:
        raise InputError("the list of data paths is empty: give at least one file, folder, glob or hf: id")
    wanted = _Wanted(image, names, group, key)
    rows = _joined(row for item in items for row in _read(location(item), wanted, dropped))
    if not rows:
        raise InputError(f"{shown(path)}: no pictures{counted(dropped)}; give pictures with texts")
    kept = [row for row in rows if row.texts]
    textless = [row.image.where for row in rows if not row.texts]
    if not kept:
        asked = f" in {listed(names)}" if names else ""
        raise InputError(
            f"{shown(path)}: none of {len(rows)} pictures has a text{asked}; name the column or key by {key}, or "
            f"put a .txt of the same name beside each"
        )
    if strict:
        wanted.need_all(path)
    if textless:
        dropped["pictures without a text"] += len(textless)
    return Pairs(
        [row.image for row in kept],
        [row.texts for row in kept],
        [row.group or row.texts[0].lower() for row in kept],
        dict(dropped),
        [row.whole for row in kept] if any(row.whole < len(row.texts) for row in kept) else [],
        textless,
    )


def split_pairs(pairs: Pairs, fraction: float, seed: int, concepts: Sequence[str] | None = None) -> tuple[Pairs, Pairs]:
    """Split into (rest, held out) so that a concept is in one of them alone.

    Concepts are taken in an order drawn by the seed until `round(fraction * N)` pictures are held out, or a few more.

    Args:
        concepts: Of each picture; by default its group.

    Raises:
        InputError: A fraction outside of (0, 1), or one that leaves either part empty.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction {fraction} is not in (0, 1): give the share of pictures to hold out")
    names = pairs.groups if concepts is None else concepts
    number = np.unique(np.array(names, object), return_inverse=True)[1]
    counts = np.bincount(number)
    drawn = np.argsort(keys(seed, 0, np.arange(len(counts))), kind="stable")
    before = np.cumsum(counts[drawn]) - counts[drawn]
    held = np.isin(number, drawn[before < round(fraction * len(names))])
    if held.all() or not held.any():
        raise InputError(
            f"a fraction of {fraction} of {len(names)} pictures of {len(counts)} concepts leaves a part empty: give "
            f"another fraction, or more pictures"
        )
    return pairs.select(np.flatnonzero(~held)), pairs.select(np.flatnonzero(held))


def drawn_text(
    texts: Sequence[str], templates: Sequence[str], seed: int, step: int, row: int, whole: int | None = None
) -> str:
    """The text that training shows of a picture: a pure function of (seed, step, row).

    Texts that stand for the picture by themselves are all as likely. Where there are keywords, they are shown half of
    the time in their place: one, two or three of them, with commas between.

    Args:
        texts: Of the picture, at least one.
        templates: One of them is drawn, each with {} where the text belongs.
        row: Of the global batch.
        whole: How many of `texts`, from the first on, stand by themselves; None for all.
    """
    whole = len(texts) if whole is None else whole
    digest = hashlib.blake2b(f"{seed} {step} {row}".encode()).digest()
    number = int.from_bytes(digest, "little")  # 512 random bits; each choice takes the remainder and leaves the rest

    def choose(count: int) -> int:
        nonlocal number
        number, chosen = divmod(number, count)
        return chosen

    template = templates[choose(len(templates))]
    keywords = list(texts[whole:])
    if whole and (not keywords or choose(2)):
        return template.replace("{}", texts[choose(whole)])
    count = 1 + choose(min(JOINED, len(keywords)))
    return template.replace("{}", ", ".join(keywords.pop(choose(len(keywords))) for _ in range(count)))


def _read(name: str, wanted: _Wanted, dropped: Counter[str]) -> Iterator[_Row]:
    """The pictures of one path of the user's."""
    if name.startswith("hf:"):
        yield from _read_table(name, wanted, dropped)
        return
    if is_remote(name):
        for url in resolve(name):
            if _kind(url) != "txt":
                yield from (_read_tar if _kind(url) == "tar" else _read_table)(url, wanted, dropped)
        return
    path = Path(name).expanduser()
    if has_magic(name) and not path.exists():
        matches = sorted(glob(str(path), recursive=True))
        if not matches:
            raise InputError(f"{name}: no file matches this pattern; quote it in the shell and check the folder")
        for match in matches:
            if not match.lower().endswith(".txt"):
                yield from _read(match, wanted, dropped)
        return
    if path.is_dir():
        yield from _read_folder(path, wanted, dropped)
    elif not path.is_file():
        raise InputError(f"{name}: no such file or folder (from {Path.cwd()}); check the spelling of the path")
    elif is_picture(name):
        wanted.there.update(wanted.texts or ())  # its text has no name
        yield _beside(path)
    elif path.suffix.lower() == ".json":
        wanted.there.update(wanted.texts or ())
        yield from _read_coco(path)
    elif _kind(name) == "tar":
        yield from _read_tar(str(path), wanted, dropped)
    elif _kind(name) in ROWS:
        yield from _read_table(str(path), wanted, dropped)
    else:
        kinds = ", ".join(f".{kind}" for kind in (*KINDS, "json"))
        raise InputError(f"{name}: no pictures with texts can be read from it; give {kinds}, or a folder of pictures")


def _joined(rows: Iterable[_Row]) -> list[_Row]:
    """One row a picture: the texts that stand for it by themselves, then the keywords, and the first row's group."""
    found: dict[tuple[object, ...], list[_Row]] = {}
    for row in rows:
        image = row.image
        found.setdefault((image.file, image.kind, image.place, image.column), []).append(row)
    return [each[0] if len(each) == 1 else _one_of(each) for each in found.values()]


def _one_of(rows: Sequence[_Row]) -> _Row:
    whole = dict.fromkeys(text for row in rows for text in row.texts[: row.whole])
    keywords = dict.fromkeys(text for row in rows for text in row.texts[row.whole :] if text not in whole)
    return replace(rows[0], texts=(*whole, *keywords), whole=len(whole))


def _read_folder(root: Path, wanted: _Wanted, dropped: Counter[str]) -> Iterator[_Row]:
    files = files_below(root, dropped)
    pictures = [file for file in files if is_picture(file)]
    tables = [file for file in files if METADATA.fullmatch(os.path.basename(file))]
    if not pictures:
        tables = [file for file in files if _kind(file) in KINDS]
    named = []
    for file in only_train(tables if tables else pictures, dropped):
        for row in _read(str(root / file), wanted, dropped):
            named.append(row.image)
            yield row
    if tables:
        count_unnamed(root, pictures, named, dropped)


def _beside(picture: Path) -> _Row:
    """A picture with the lines of the .txt that lies beside it."""
    file = picture.with_suffix(".txt")
    ref = ImageRef(str(picture), str(picture))
    if not file.is_file():
        return _Row(ref, (), 0, "")
    try:
        texts = _texts_of(file.read_text("utf-8-sig").splitlines(), str(file), "text")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}; re-encode it as UTF-8") from error
    return _Row(ref, texts, len(texts), "")


def _read_tar(name: str, wanted: _Wanted, dropped: Counter[str]) -> Iterator[_Row]:
    source = shown_url(name)
    for member in tar_pictures(name, dropped):
        values: Any = {}
        where = member.image.where
        if "json" in member.beside and (wanted.texts != ("txt",) or wanted.group):
            where, values = beside_value(member, "json", source)
            values = values if isinstance(values, dict) else {"caption": values}
        if "txt" in member.beside:
            values = {"txt": beside_value(member, "txt", source)[1].splitlines(), **values}
        yield _row(member.image, values, wanted, where)


def _read_table(name: str, wanted: _Wanted, dropped: Counter[str]) -> Iterator[_Row]:
    first = first_rows(name)
    present = list(dict.fromkeys(key for row in first for key in row))
    for column in (*(wanted.texts or ()), *filter(None, [wanted.group])):
        if column not in present:
            raise missing_column(name, column, present)
    texts = wanted.texts or _guessed(present)
    if texts is None:
        raise InputError(
            f"{name}: it is not clear which column holds the texts: present are {listed(present)}; "
            f"name it: {wanted.key}=... in a recipe, --column on the command line"
        )
    image = picture_column(name, first, wanted.image, [*texts, *filter(None, [wanted.group])])
    wanted = replace(wanted, texts=texts)
    in_place = readable_at_random(name, image)
    columns = list(dict.fromkeys([image, *texts, *filter(None, [wanted.group])])) if in_place else None
    found: list[tuple[ImageRef | int, dict[str, Any], str]] = []
    places: dict[Hashable, ImageRef | int] = {}  # a number is one of the spool
    with Spool(name) as spool:
        for number, (source, row) in enumerate(sources.rows(name, columns)):
            if image not in row:
                raise missing_column(source, image, row)
            key = picture_key(row[image])
            place = places.get(key)
            if place is None and key is not None and in_place:
                place = ImageRef(f"{name}:{number + 1}", name, "parquet", number, column=image)
            elif place is None:
                place = row_picture(row[image], source, image, name, spool)
            if place is None:
                dropped["rows without a picture"] += 1
                continue
            places[key] = place
            found.append((place, {key: value for key, value in row.items() if key != image}, source))
        kept = spool.close() if any(isinstance(place, int) for place, *_ in found) else []
    for place, row, source in found:
        yield _row(kept[place] if isinstance(place, int) else place, row, wanted, source)


def _row(image: ImageRef, values: dict[str, Any], wanted: _Wanted, where: str) -> _Row:
    """A picture with what its row, or the JSON beside it, says."""
    columns = wanted.texts or _guessed(list(values)) or ()
    wanted.there.update(values)
    parts = [_texts_of(values.get(column), where, column) for column in columns]
    texts = tuple(dict.fromkeys(text for part in parts for text in part))
    whole = len(parts[0]) if parts and parts[0] else len(texts)
    group = as_label(values.get(wanted.group), where, wanted.group) if wanted.group else ""
    return _Row(image, texts, whole, group)


def _guessed(names: Sequence[str]) -> tuple[str, ...] | None:
    """The column of the texts by its name."""
    found = first_named(TEXT_NAMES, names)
    return None if found is None else (found,)


def _texts_of(value: object, where: str, column: str) -> tuple[str, ...]:
    """The texts that a value stands for: one, each of a list, or none; white space at their ends goes."""
    if value is None or value != value:  # NaN: a missing text, as pandas writes it
        return ()
    values = value if isinstance(value, list | tuple) else [value]
    texts = (checked_text(where, column, each).strip() for each in values)
    return tuple(dict.fromkeys(text for text in texts if text))


def _read_coco(file: Path) -> Iterator[_Row]:
    """COCO's captions: https://cocodataset.org/#format-data."""
    try:
        data = json.loads(file.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: this is no JSON ({error}); mend the file") from None
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "annotations")):
        raise InputError(f"{file}: COCO's captions are an object with lists images and annotations; this is none")
    names: dict[Any, str] = {}
    for number, each in enumerate(data["images"]):
        if not isinstance(each, dict) or each.get("id") is None or not isinstance(each.get("file_name"), str):
            raise InputError(f"{file}: image entry number {number} needs id and file_name; mend it")
        check_id(f"{file}: image entry number {number}: id", each["id"])
        if each["id"] in names:
            raise InputError(f"{file}: the id {each['id']!r} is that of two images; mend it")
        names[each["id"]] = each["file_name"]
    texts: dict[Any, list[str]] = {key: [] for key in names}
    for number, each in enumerate(data["annotations"]):
        where = f"{file}: annotation number {number}"
        if not isinstance(each, dict) or each.get("image_id") is None or not isinstance(each.get("caption"), str):
            raise InputError(f"{where} needs image_id and caption; give a file of captions, not of boxes")
        check_id(f"{where}: image_id", each["image_id"])
        if each["image_id"] not in texts:
            raise InputError(f"{where} is of image {each['image_id']!r}, which 'images' does not list; leave it out")
        texts[each["image_id"]].append(each["caption"])
    finder = Finder(file)
    for key, name in names.items():
        where = f"{file}: image {key!r} ('{name}')"
        found = _texts_of(texts[key], where, "caption")
        yield _Row(ImageRef(where, str(finder(where, name))), found, len(found), "")


def _kind(name: str) -> str | None:
    known = kind_of(name)
    return known[0] if known else None
