"""Composed scenes: stickers pasted over made textures, with exact boxes. A seed is a data set, of any length."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bedplate.data.stickers import VISIBLE, Sticker, visible_box
from bedplate.data.textures import texture
from bedplate.errors import InputError

MIN_SIDE = 4
"""Pixels of the longer side of the smallest object."""
TRIES = 20
"""Places at which a sticker is tried before it is left out of a picture that is full."""
JPEG_QUALITY = 92


class Scene(TypedDict):
    """A picture of M objects, M from 0 on."""

    index: int
    """Its number in the data set of its seed."""
    image: Image.Image
    """RGB."""
    boxes: NDArray[np.float32]
    """(M, 4) x1 y1 x2 y2 in pixels, around exactly what is seen of each object; the topmost object is the last."""
    areas: NDArray[np.int64]
    """(M,) how many pixels of each are seen."""
    classes: NDArray[np.int64]
    """(M,) places in `names`."""
    names: list[str]
    """Names of all classes, sorted; the same in every scene."""


class _Object(NamedTuple):
    name: str
    image: Image.Image  # RGBA, turned and scaled
    mask: NDArray[np.bool_]  # (h, w), what of it is seen where nothing hides it


@dataclass(frozen=True)
class Layout:
    """How scenes look; `compose` says what most of it means."""

    size: tuple[int, int] = (256, 256)
    objects: tuple[int, int] = (0, 8)
    scale: tuple[float, float] = (0.06, 0.5)
    rotation: float = 30.0
    overlap: float = 0.3
    pale: float = 0.0
    """Share of white in the ground, from which objects of any colour then stand out."""

    def __post_init__(self) -> None:
        if min(self.size) < 16:
            raise InputError(f"size is {self.size}; give a height and a width of at least 16 pixels")
        if not 0 <= self.objects[0] <= self.objects[1]:
            raise InputError(f"objects is {self.objects}; give the least and the greatest number, from 0 on")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale is {self.scale}; give the least and the greatest share of the side, in 0..1")
        if not 0 <= self.rotation <= 180:
            raise InputError(f"rotation is {self.rotation}; give degrees in 0..180")
        if not 0 <= self.overlap < 1:
            raise InputError(f"overlap is {self.overlap}; give the share of an object that may be hidden, in 0..1")
        if not 0 <= self.pale <= 1:
            raise InputError(f"pale is {self.pale}; give the share of white in the ground, in 0..1")


def compose(
    stickers: Sequence[Sticker],
    count: int,
    seed: int,
    start: int = 0,
    size: tuple[int, int] = (256, 256),
    objects: tuple[int, int] = (0, 8),
    scale: tuple[float, float] = (0.06, 0.5),
    rotation: float = 30.0,
    overlap: float = 0.3,
) -> Iterator[Scene]:
    """Compose scenes `start` to `start + count - 1` of the data set that the stickers, the seed and the rest name.

    A scene depends on its number, not on those before it: pieces made apart are the pieces of the whole. Each class is
    as frequent as any other, however many stickers it has.

    Args:
        size: (height, width) in pixels.
        objects: Least and greatest number of objects, uniform; those that find no room are left out.
        scale: Least and greatest longer side of an object's box, in the shorter side of the picture; its logarithm is
            uniform, so small objects are frequent.
        rotation: Greatest turn each way, in degrees.
        overlap: Greatest share of an object's pixels that the edge of the picture and the objects above it may hide.

    Raises:
        InputError: No stickers, or a number out of its range, which is named.
    """
    layout = Layout(size, objects, scale, rotation, overlap)
    if not stickers:
        raise InputError("There are no stickers to compose scenes of; read some with read_stickers")
    if seed < 0:
        raise InputError(f"seed is {seed}; give a number from 0 on")
    by_name: dict[str, list[Sticker]] = {name: [] for name in sorted({each.name for each in stickers})}
    for each in stickers:
        by_name[each.name].append(each)
    names = list(by_name)

    def scene(index: int) -> Scene:
        draw = np.random.default_rng([seed, index])
        return place(_chosen(by_name, draw, layout.objects), draw, index, names, layout)

    return (scene(i) for i in range(start, start + count))


def _chosen(
    by_name: dict[str, list[Sticker]], draw: np.random.Generator, objects: tuple[int, int]
) -> Iterator[Sticker]:
    """A random number of random stickers, drawn as they are asked for, but the number when the first is."""
    names = list(by_name)
    for _ in range(draw.integers(objects[0], objects[1] + 1)):
        several = by_name[names[draw.integers(len(names))]]
        yield several[draw.integers(len(several))]


def place(
    stickers: Iterable[Sticker], draw: np.random.Generator, index: int, names: list[str], layout: Layout
) -> Scene:
    """Compose one scene of these stickers, turned and scaled at random; those that find no room are left out.

    Args:
        draw: What is random; stickers that come of it, too, are asked for one after another.
        names: Names of all classes, sorted, also of those that are not among the stickers.
    """
    height, width = layout.size
    ground = texture(draw, height, width)
    if layout.pale:
        ground = (ground + layout.pale * (255.0 - ground)).round().astype(np.uint8)
    canvas = Image.fromarray(ground).convert("RGBA")
    owner = np.full((height, width), -1)  # the topmost object at each pixel
    placed: list[_Object] = []
    for chosen in stickers:
        each = _turned(chosen, draw, layout)
        corner = _room(each, placed, owner, draw, layout.overlap)
        if corner is None:
            continue
        there, part = _meet(owner, each.mask, corner)
        there[part] = len(placed)
        canvas.alpha_composite(*_cut(each.image, corner))
        placed.append(each)
    extents = [np.nonzero(owner == number) for number in range(len(placed))]
    boxes = [(x.min(), y.min(), x.max() + 1, y.max() + 1) for y, x in extents]
    return Scene(
        index=index,
        image=canvas.convert("RGB"),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        areas=np.array([len(y) for y, _ in extents], np.int64),
        classes=np.array([names.index(each.name) for each in placed], np.int64),
        names=names,
    )


def _turned(chosen: Sticker, draw: np.random.Generator, layout: Layout) -> _Object:
    """A sticker, turned, and scaled so that its box then has the side that was drawn."""
    image = chosen.image
    image = image.rotate(draw.uniform(-layout.rotation, layout.rotation), Image.Resampling.BICUBIC, expand=True)
    image = image.crop(visible_box(image))
    low, high = (math.log(share) for share in layout.scale)
    side = max(MIN_SIDE, math.exp(draw.uniform(low, high)) * min(layout.size))
    ratio = side / max(image.size)
    image = image.resize([max(1, round(ratio * each)) for each in image.size], Image.Resampling.BICUBIC)
    return _Object(chosen.name, image, np.asarray(image.getchannel("A")) >= VISIBLE)


def _room(
    each: _Object, placed: list[_Object], owner: NDArray[np.int64], draw: np.random.Generator, overlap: float
) -> tuple[int, int] | None:
    """A random corner (y, x), maybe outside of the picture, where no object loses more than may be hidden."""
    height, width = each.mask.shape
    seen = np.bincount(owner[owner >= 0], minlength=len(placed))
    least = [(1 - overlap) * other.mask.sum() for other in placed]
    for _ in range(TRIES):
        y = int(draw.integers(owner.shape[0] + 1)) - height // 2
        x = int(draw.integers(owner.shape[1] + 1)) - width // 2
        there, part = _meet(owner, each.mask, (y, x))
        under = there[part]
        left = seen - np.bincount(under[under >= 0], minlength=len(placed))
        if part.sum() and part.sum() >= (1 - overlap) * each.mask.sum() and (left >= np.maximum(least, 1)).all():
            return y, x
    return None


def _meet(
    owner: NDArray[np.int64], mask: NDArray[np.bool_], corner: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The parts of the picture and of a mask at `corner` that lie on each other, as views."""
    (y, x), (height, width) = corner, mask.shape
    rows, columns = slice(max(y, 0), max(y + height, 0)), slice(max(x, 0), max(x + width, 0))
    there = owner[rows, columns]
    top, left = max(-y, 0), max(-x, 0)
    return there, mask[top : top + there.shape[0], left : left + there.shape[1]]


def _cut(image: Image.Image, corner: tuple[int, int]) -> tuple[Image.Image, tuple[int, int]]:
    """The picture without what is above or left of the canvas, and where (x, y) it goes: Pillow cuts the rest."""
    y, x = corner
    return image.crop((max(-x, 0), max(-y, 0), *image.size)), (max(x, 0), max(y, 0))


def write_scenes(folder: str | Path, scenes: Iterable[Scene], suffix: str = ".png") -> Path:
    """Write scenes as a COCO folder: `images/000000.png` and so on by their numbers, and `annotations.json`.

    Args:
        folder: Made where it is missing; must not hold an `annotations.json`.
        suffix: ".png", which keeps every pixel, or ".jpg".

    Returns:
        The path of `annotations.json`.

    Raises:
        InputError: Another suffix, or a folder that holds a data set.
    """
    if suffix not in (".png", ".jpg"):
        raise InputError(f"suffix is {suffix!r}; give '.png' or '.jpg'")
    file = Path(folder) / "annotations.json"
    if file.exists():
        raise InputError(f"{file} is there already; give another folder, or remove that")
    (file.parent / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, int | str]] = []
    annotations: list[dict[str, object]] = []
    names: list[str] = []
    for scene in scenes:
        name = f"images/{scene['index']:06}{suffix}"
        scene["image"].save(file.parent / name, quality=JPEG_QUALITY)
        width, height = scene["image"].size
        images.append({"id": scene["index"] + 1, "file_name": name, "height": height, "width": width})
        names = scene["names"]
        for (x1, y1, x2, y2), area, kind in zip(
            scene["boxes"].tolist(), scene["areas"].tolist(), scene["classes"].tolist(), strict=True
        ):
            annotation = {"id": len(annotations) + 1, "image_id": scene["index"] + 1, "category_id": kind + 1}
            annotations.append({**annotation, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0})
    categories = [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(names, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return file
