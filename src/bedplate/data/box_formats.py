"""How COCO JSON, Pascal VOC XML and YOLO text files say which boxes are in which picture."""

from __future__ import annotations

import json
import math
import os
import struct
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from bedplate.data.formats import decoded, telling_damage
from bedplate.data.image_files import only_train
from bedplate.data.images import FORMATS, SUFFIXES
from bedplate.data.sources import below
from bedplate.errors import InputError

ORIENTATION = 0x0112  # the EXIF tag
TIFF_WIDTH, TIFF_HEIGHT = 256, 257  # tags, too
UNKNOWN_SIZE = (1, 1)
"""Of a picture that cannot be read; it has no boxes, and is broken, so it is never drawn."""
POLYGON_MARGIN = 0.05  # share of a side by which a polygon's corner may lie outside, and be cut
TURNED = (5, 6, 7, 8)  # orientations by which height and width change places
NAMES_FILES = ("data.yaml", "data.yml", "classes.txt", "obj.names")
WANTED = (
    "give a COCO .json file or a folder with one, a folder with VOC .xml files (Annotations/), or one with YOLO files "
    "(images/ and labels/)"
)


@dataclass(frozen=True)
class Box:
    """One object: the name of its class, x1 y1 x2 y2 in pixels as the file has them, and the place in the file."""

    name: str
    corners: tuple[float, float, float, float]
    crowd: bool
    where: str


@dataclass(frozen=True)
class Entry:
    """One picture, its (height, width) when upright, and its boxes."""

    path: Path
    size: tuple[int, int]
    boxes: list[Box]


@dataclass(frozen=True)
class BoxSet:
    """The pictures of one path, the classes that its files list with their ids, and what was left out, by reason."""

    entries: list[Entry]
    ids: dict[str, int]
    dropped: Counter[str] = field(default_factory=Counter)


def read(path: Path, names: Sequence[str] | None = None) -> BoxSet:
    """Read one path; `names` number the classes of YOLO files that come without names.

    Raises:
        InputError: see `boxes.read_boxes`.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; {WANTED}")
    if path.is_file():
        if path.suffix.lower() != ".json":
            raise InputError(f"{path} is no COCO .json file; {WANTED}")
        return _read_coco(path)
    if (file := _coco_file(path)) is not None:
        return _read_coco(file)
    if files := _visible(path / "Annotations", ".xml") or _visible(path, ".xml"):
        return _read_voc(path, files)
    images = _pictures(path / "images" if (path / "images").is_dir() else path)
    if any(_label_file(image).is_file() for image in images):
        return _read_yolo(path, images, names)
    raise InputError(f"{path} holds no boxes that can be read; {WANTED}, a part of a data set at a time")


def _coco_file(folder: Path) -> Path | None:
    for place in (folder, folder / "annotations"):
        files = _visible(place, ".json")
        named = [file for file in files if file.name == "_annotations.coco.json"] or files
        if len(named) > 1:
            shown = ", ".join(file.name for file in named[:5])
            raise InputError(f"{place} holds {len(named)} .json files ({shown}): give the path of the one to read")
        if named:
            return named[0]
    return None


def _read_coco(file: Path) -> BoxSet:
    """The COCO format: https://cocodataset.org/#format-data. A bbox is x, y, width, height."""
    text = _text(file)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: this is no JSON ({error}); mend the file") from None
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "categories")):
        raise InputError(f"{file}: COCO JSON is an object with lists images, annotations and categories; this is none")
    annotations = data.get("annotations", [])
    if not isinstance(annotations, list):
        raise InputError(f"{file}: 'annotations' must be a list")
    categories = {each["id"]: each["name"] for each in _unique(file, data["categories"], "category", ("id", "name"))}
    _once(f"{file}: categories", categories.values(), "are two categories of one name")
    rows = _unique(file, data["images"], "image", ("id", "file_name"))
    boxes: dict[Any, list[Box]] = {row["id"]: [] for row in rows}
    for number, each in enumerate(annotations):
        where = f"{file}: annotation {each.get('id', number) if isinstance(each, dict) else number}"
        image, box = _coco_box(where, each, categories)
        if image not in boxes:
            raise InputError(f"{where} is of image {image!r}, which 'images' does not list; add that or leave it out")
        boxes[image].append(box)
    used = {box.name for several in boxes.values() for box in several}
    parents = {
        each.get("supercategory") for each in data["categories"] if each.get("supercategory") != each["name"]
    }  # Roboflow lists the name of the project as a category that has no box
    ids = {name: int(id) for id, name in categories.items() if name in used or name not in parents}
    finder = Finder(file)
    places = [f"{file}: image {row['id']!r} ('{row['file_name']}')" for row in rows]
    paths = [finder(where, row["file_name"]) for where, row in zip(places, rows, strict=True)]
    _once(f"{file}: images", map(str, paths), "are two entries of one picture")
    entries = [
        _entry(path, _checked_size(where, path, *(_side(where, row, side) for side in ("height", "width"))), found)
        for where, path, row, found in zip(places, paths, rows, boxes.values(), strict=True)
    ]
    return BoxSet(entries, ids)


def _coco_box(where: str, row: Any, categories: Mapping[Any, str]) -> tuple[Any, Box]:
    """(id of the image, box) of one annotation."""
    if not isinstance(row, dict) or any(row.get(key) is None for key in ("image_id", "category_id", "bbox")):
        raise InputError(f"{where}: needs image_id, category_id and bbox; mend it or leave it out")
    for key in ("image_id", "category_id"):
        check_id(f"{where}: {key}", row[key])
    if row["category_id"] not in categories:
        raise InputError(f"{where}: category_id {row['category_id']!r} is not among the categories {categories}")
    bbox = row["bbox"]
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(each, int | float) for each in bbox):
        raise InputError(f"{where}: bbox {str(bbox)[:80]} is not a list of the 4 numbers x, y, width, height")
    crowd = row.get("iscrowd")
    if crowd not in (None, 0, 1):  # also false and true
        raise InputError(f"{where}: iscrowd {str(crowd)[:80]!r} is neither 0 nor 1; mend it")
    try:
        x, y, width, height = map(float, bbox)
    except OverflowError:
        raise InputError(f"{where}: bbox {str(bbox)[:80]} holds a number that is too large; mend it") from None
    box = Box(categories[row["category_id"]], (x, y, x + width, y + height), bool(crowd), where)
    return row["image_id"], box


def _side(where: str, row: Mapping[str, Any], side: str) -> float | None:
    """The height or width that the entry of a picture says, if any."""
    value = row.get(side)
    if not isinstance(value, int | float | None):
        raise InputError(f"{where}: {side} {str(value)[:80]!r} is no number; mend it")
    return value


def check_id(what: str, value: object) -> None:
    """Raise InputError if an id of COCO's is neither a number nor a text."""
    if not isinstance(value, int | float | str):
        raise InputError(f"{what} {str(value)[:80]} is neither a number nor a text; mend it")


def _unique(file: Path, rows: list[Any], kind: str, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The rows, each of which must have what is needed and an id of its own."""
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or any(row.get(key) is None for key in needed):
            raise InputError(f"{file}: {kind} entry number {number} needs {' and '.join(needed)}; mend it")
        check_id(f"{file}: {kind} entry number {number}: id", row["id"])
        if kind != "category":
            continue
        if not isinstance(row["id"], int):
            raise InputError(f"{file}: the id {row['id']!r} of category '{row['name']}' is no whole number; mend it")
        for key in ("name", "supercategory"):
            if not isinstance(row.get(key, ""), str | None):
                raise InputError(f"{file}: the {key} {row[key]!r} of category {row['id']} is no text; put it in quotes")
    _once(f"{file}: {kind} ids", (row["id"] for row in rows), f"is the id of more than one {kind}")
    return rows


class Finder:
    """Finds the pictures of a COCO file, in that one of the usual folders which has them."""

    def __init__(self, file: Path) -> None:
        folder, part = file.parent, file.stem.removeprefix("instances_").removeprefix("captions_")
        above = [folder.parent] if folder.name == "annotations" else []
        bases = [base / sub for base in (folder, *above) for sub in ("", "images", part, f"images/{part}")]
        self._folders = list(dict.fromkeys(base for base in bases if base.is_dir()))

    def __call__(self, where: str, name: object) -> Path:
        places = (folder / str(name) for folder in self._folders)
        found = next((path for path in places if os.path.isfile(path)), None)  # False for names too long to be one
        if found is None:
            raise InputError(f"{where} is not in {' or '.join(map(str, self._folders))}; put the picture there")
        return found


def _read_voc(folder: Path, files: Sequence[Path]) -> BoxSet:
    """Pascal VOC (Everingham et al. 2010): corners are 1-based and inclusive."""
    folders = (folder / "JPEGImages", folder / "images", files[0].parent, folder)
    pictures = {path.name: path for place in reversed(folders) for path in _pictures(place, deep=False)}
    by_stem = {Path(name).stem: path for name, path in pictures.items()}
    entries = []
    for file in files:
        try:
            root = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: an encoding that is none
            raise InputError(f"{file}: this is no XML ({error}); mend the file") from None
        if root.tag != "annotation":
            raise InputError(f"{file}: its outermost element is <{root.tag}> and not <annotation>: no VOC file")
        name = Path(root.findtext("filename", "").replace("\\", "/")).name
        path = pictures.get(name) or by_stem.get(file.stem)
        if path is None:
            raise InputError(f"{file}: its picture '{name}' is not in {folders[0]}, {folders[1]} or beside it")
        declared = [_number(file, root, f"size/{side}", None) for side in ("height", "width")]
        size = _checked_size(f"{file}: '{name}'", path, *(each or None for each in declared))  # some tools write 0
        entries.append(_entry(path, size, list(_voc_boxes(file, root))))
    _once(f"{folder}: pictures", (str(entry.path) for entry in entries), "has more than one .xml file")
    names = sorted({box.name for entry in entries for box in entry.boxes})
    return BoxSet(entries, {name: number for number, name in enumerate(names)})


def _voc_boxes(file: Path, root: ElementTree.Element) -> Iterator[Box]:
    for number, each in enumerate(root.findall("object"), 1):
        where = f"{file}: object {number}"
        if not (name := each.findtext("name", "").strip()):
            raise InputError(f"{where} has no name; mend it")
        x1, y1, x2, y2 = (_number(where, each, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        yield Box(name, (x1 - 1, y1 - 1, x2, y2), each.findtext("difficult", "0").strip() == "1", where)


def _number(where: object, element: ElementTree.Element, path: str, *default: float | None) -> Any:
    text = element.findtext(path)
    if text is None and default:
        return default[0]
    try:
        return float(text or "")
    except ValueError:
        raise InputError(f"{where}: <{path.replace('/', '><')}> holds {text!r} and not a number; mend it") from None


def _read_yolo(folder: Path, images: Sequence[Path], names: Sequence[str] | None) -> BoxSet:
    """YOLO: a line is class, then centre x, centre y, width, height, or x and y of a polygon's corners, as shares.

    Keypoints may stand behind a box where the names' file says how many (`kpt_shape`); they are not read.
    """
    labels = [_label_file(image) for image in images]
    _once(f"{folder}: label files", map(str, labels), "belongs to more than one picture")
    found, keypoints = _yolo_names(folder, {label.parent for label in labels})
    if found is None and names is None:
        raise InputError(f"{folder}: no names of the classes in {' or '.join(NAMES_FILES)}, there or above; add one")
    numbered = found or dict(enumerate(names or ()))
    for place in {label.parent for label in labels if "images" in _parts(images[0])}:
        for orphan in sorted(set(_visible(place, ".txt")) - set(labels)):
            if orphan.name not in NAMES_FILES:
                raise InputError(f"{orphan}: there is no picture for this label file; put it there or remove the file")
    entries, dropped = [], Counter[str]()
    files = [str(each.relative_to(folder)) for each in images]
    for image in (folder / name for name in only_train(files, dropped, folders_only=True)):
        size, label = _checked_size(str(image), image), _label_file(image)
        lines = _text(label).splitlines() if label.is_file() else []
        rows = [(f"{label}:{number}", line.split()) for number, line in enumerate(lines, 1)]
        boxes = [_yolo_box(where, row, size or UNKNOWN_SIZE, numbered, keypoints) for where, row in rows if row]
        entries.append(_entry(image, size, boxes))
    _once(f"{folder}: classes", numbered.values(), "are two classes of one name")
    return BoxSet(entries, {name: number for number, name in numbered.items()}, dropped)


def _yolo_box(where: str, row: Sequence[str], size: tuple[int, int], names: Mapping[int, str], keypoints: int) -> Box:
    try:
        number, *values = map(float, row)
    except ValueError:
        number, values = math.nan, []
    if not all(map(math.isfinite, (number, *values))):
        raise InputError(f"{where}: '{' '.join(row)[:80]}' holds what is no finite number; mend the line")
    if number not in names:
        raise InputError(f"{where}: class {row[0]} has no name among {dict(names)}; mend the line or the names")
    if keypoints:
        if len(values) != 4 + keypoints:
            raise InputError(f"{where}: {len(row)} numbers, where kpt_shape asks for {5 + keypoints}; mend one of them")
        values = values[:4]
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise InputError(f"{where}: {len(row)} numbers are neither a class and a box (5) nor a polygon; mend the line")
    if len(values) == 4:
        x, y, width, height = values
        shares = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        xs, ys = values[0::2], values[1::2]
        shares = (min(xs), min(ys), max(xs), max(ys))
        if max(values) <= 2 and not -POLYGON_MARGIN <= min(values) <= max(values) <= 1 + POLYGON_MARGIN:
            raise InputError(
                f"{where}: a polygon has a corner outside of the picture; mend the line, or, if these are keypoints, "
                "give kpt_shape beside the names in data.yaml"
            )
    if max(map(abs, shares)) > 2:
        raise InputError(f"{where}: coordinates are shares of the picture, from 0 to 1, and not pixels; mend the line")
    corners = (shares[0] * size[1], shares[1] * size[0], shares[2] * size[1], shares[3] * size[0])
    return Box(names[int(number)], corners, False, where)


def _yolo_names(folder: Path, labels: Iterable[Path]) -> tuple[dict[int, str] | None, int]:
    """{class number: name} of the nearest file of names, and how many numbers of keypoints stand behind a box."""
    absolute = folder.resolve()
    for place in (absolute, *sorted(labels), *absolute.parents[:2]):
        for file in (place / name for name in NAMES_FILES if (place / name).is_file()):
            if file.suffix not in (".yaml", ".yml"):
                lines = enumerate(line.strip() for line in _text(file).splitlines())
                return {number: line for number, line in lines if line}, 0
            text = _text(file)
            try:
                data = yaml.safe_load(text)
            except (yaml.YAMLError, ValueError) as error:
                raise InputError(f"{file}: this is no YAML ({' '.join(str(error).split())}); mend it") from None
            names = data.get("names") if isinstance(data, dict) else None
            pairs = dict(enumerate(names)) if isinstance(names, list) else names
            if not isinstance(pairs, dict) or not all(isinstance(number, int) for number in pairs):
                raise InputError(f"{file}: 'names' must be a list of names, or number: name; mend it")
            for number, name in pairs.items():
                if name is None or isinstance(name, bool):
                    raise InputError(f"{file}: the name {name} of class {number} is no text; put it in quotes")
            shape = data.get("kpt_shape") or [0]
            if not isinstance(shape, list) or not all(type(each) is int and each >= 0 for each in shape):
                raise InputError(f"{file}: 'kpt_shape' must be two numbers, as [17, 3]; mend it")
            return {number: str(name) for number, name in pairs.items()}, math.prod(shape)
    return None, 0


def _label_file(image: Path) -> Path:
    """Where YOLO's tools look for the labels: `labels` in place of the last `images` in the path, else beside."""
    parts = _parts(image)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts, f"{image.stem}.txt")


def _text(file: Path) -> str:
    with telling_damage(str(file)), open(file, "rb") as stream:
        return "".join(decoded(stream, str(file)))


def _parts(image: Path) -> list[str]:
    return list(image.parent.parts)


def _entry(path: Path, size: tuple[int, int] | None, boxes: list[Box]) -> Entry:
    """One picture; without its boxes where it cannot be read: they cannot be cut at its edges."""
    return Entry(path, UNKNOWN_SIZE, []) if size is None else Entry(path, size, boxes)


def _checked_size(
    where: str, path: Path, height: float | None = None, width: float | None = None
) -> tuple[int, int] | None:
    """The (height, width) of the upright picture, which must be those of the annotations, where these have some.

    None where it cannot be read: whoever decodes the pictures tells which are broken, and whether they are too many.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            stored, orientation = _stored_size(image), _orientation(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    size = stored[::-1] if orientation in TURNED else stored
    if height is None or width is None or (height, width) == size:
        return size
    how = f"is {size[1]} x {size[0]}: mend the annotations"
    if [height, width] == list(stored):
        how = (
            f"is shown turned, {size[1]} x {size[0]}, as its EXIF orientation asks: boxes must be of the turned picture"
        )
    raise InputError(f"{where} is said to be {width:g} x {height:g} pixels (width x height), but the picture {how}")


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) before it is turned; Pillow gives a TIFF's as if it were."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2[TIFF_HEIGHT]), int(image.tag_v2[TIFF_WIDTH])
    return image.height, image.width


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return 1  # mangled EXIF tells no turn, as `images.decode` has it


def _once(what: str, values: Iterable[Any], problem: str) -> None:
    value, count = next(iter(Counter(values).most_common(1)), (None, 0))
    if count > 1:
        raise InputError(f"{what}: {value!r} {problem}; mend that")


def _visible(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder with that suffix, sorted, without hidden ones (as macOS adds to archives)."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == suffix and not p.name.startswith("."))


def _pictures(folder: Path, deep: bool = True) -> list[Path]:
    if not folder.is_dir():
        return []
    files = below(folder) if deep else folder.iterdir()
    return sorted(p for p in files if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())
