"""Pictures with a transparent ground, cut to what is seen of them, with a name each: what scenes are composed of."""

import difflib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bedplate.data.formats import TarHeader, telling_damage
from bedplate.data.images import FORMATS, SUFFIXES, BadImage
from bedplate.data.sources import below
from bedplate.errors import InputError

VISIBLE = 128
"""Least alpha, of 255, of a pixel that counts as part of the object."""
MAX_SIDE = 512
"""Pixels to which larger stickers are shrunk when they are read."""


@dataclass(frozen=True)
class Sticker:
    """A picture of mode RGBA that its visible pixels fill from edge to edge, and the name of its class."""

    image: Image.Image
    name: str


def visible_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    """x1 y1 x2 y2 around the visible pixels of an RGBA picture; None where there are none."""
    return image.getchannel("A").point([0] * VISIBLE + [255] * (256 - VISIBLE)).getbbox()


def sticker(image: Image.Image, name: str) -> Sticker:
    """Cut a picture to its visible part.

    Raises:
        InputError: Nothing of it is visible.
    """
    image = image.convert("RGBA")
    seen = visible_box(image)
    if seen is None:
        raise InputError(f"The sticker '{name}' is transparent all over; leave it out")
    image = image.crop(seen)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return Sticker(image, name)


def read_stickers(path: str | Path, label: str = "name", names: Sequence[str] | None = None) -> list[Sticker]:
    """Read stickers from a folder, or from a tar archive in the form of WebDataset (key.png beside key.json).

    In a folder, those in a folder of their own are named by that, others by their file. In an archive they are named by
    what `label` is in their JSON, by their key where they have none. Pictures without a transparent ground are taken
    as they are.

    Args:
        names: The classes to take; all if None.

    Raises:
        InputError: No such path, no picture in it, none of one of these names, a picture that cannot be read or is
            transparent all over, or JSON without that label.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such folder or archive; check the path")
    found: dict[str, list[Sticker]] = {}
    for where, name, content in _in_folder(path) if path.is_dir() else _in_archive(path, label):
        each = found.setdefault(name, [])
        if names is None or name in names:
            each.append(_read(where, name, content))
    if not found:
        raise InputError(f"{path}: there is no picture in it; those end in {', '.join(SUFFIXES)}")
    for name in names or ():
        if name not in found:
            near = difflib.get_close_matches(name, found, 1)
            raise InputError(f"{path}: no sticker is named '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
    return [each for several in found.values() for each in several]


def _read(where: str, name: str, content: bytes) -> Sticker:
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"{where}: this picture cannot be read ({error}); mend it or leave it out") from None
    try:
        return sticker(image, name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _in_folder(root: Path) -> Iterator[tuple[str, str, bytes]]:
    """(place, name, content) of each picture, in the order of their paths."""
    for file in sorted(below(root)):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            yield str(file), file.stem if file.parent == root else file.parent.name, file.read_bytes()


def _in_archive(path: Path, label: str) -> Iterator[tuple[str, str, bytes]]:
    """(place, name, content) of each picture, in the order of the archive."""
    pictures: dict[str, tuple[str, bytes]] = {}
    names: dict[str, str] = {}
    with telling_damage(str(path)), tarfile.open(path, tarinfo=TarHeader) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            key, suffix = os.path.splitext(member.name)
            where = f"{path}::{member.name}"
            if file and suffix.lower() in SUFFIXES:
                pictures[key] = where, file.read()
            elif file and suffix.lower() == ".json":
                names[key] = _name(where, file.read(), label)
    for key, (where, content) in pictures.items():
        yield where, names.get(key, key), content


def _name(where: str, content: bytes, label: str) -> str:
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise InputError(f"{where}: this is no JSON ({error}); mend the file") from None
    if not isinstance(fields, dict) or not isinstance(fields.get(label), str):
        keys = ", ".join(fields) if isinstance(fields, dict) else "none"
        raise InputError(f"{where}: there is no text under the key '{label}'; name one of the keys it has ({keys})")
    return str(fields[label])
