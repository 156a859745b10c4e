"""Pictures with boxes around their objects, read from COCO JSON, Pascal VOC XML or YOLO text files.

Boxes are x1, y1, x2, y2 in pixels of the upright picture (turned as its EXIF orientation says, as viewers and labelling
tools show it), measured from the top left corner of the top left pixel: a box around all of it is 0, 0, width, height.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bedplate.data import box_formats
from bedplate.data.box_formats import BoxSet, Entry
from bedplate.data.image_refs import ImageRef
from bedplate.data.order import keys, permute
from bedplate.errors import InputError

ROUNDING = 0.5
"""Pixels by which rounding may put a side outside of its picture: clipped without a word."""
WITHOUT_AREA, OUTSIDE = "boxes without area", "boxes outside of their picture"


@dataclass(frozen=True)
class BoxedImages:
    """N pictures and the boxes of their objects; a picture may have none.

    Attributes:
        images: Where the pictures are (N).
        sizes: (N, 2) int64, height and width of the upright pictures.
        boxes: N arrays (M, 4) float32, x1 y1 x2 y2 in pixels of the upright picture, inside of it, all of some area.
        classes: N arrays (M,) int64, places in `names`.
        crowd: N arrays (M,) bool: regions (COCO's `iscrowd`, VOC's `difficult`) in which a detection is neither right
            nor wrong. The judge needs them; nothing is trained on them.
        names: Names of the classes (C): all that the files list, also those without a box.
        ids: (C) ids of the classes in the files; 0 to C - 1 where these have none or disagree.
        dropped: How many boxes and pictures were left out, by reason; only reasons that occurred.
        clipped: How many boxes reached over the edge of their picture by more than half a pixel, and were cut there.

    Parts of the data keep the counts of the whole.
    """

    images: list[ImageRef]
    sizes: NDArray[np.int64]
    boxes: list[NDArray[np.float32]]
    classes: list[NDArray[np.int64]]
    crowd: list[NDArray[np.bool_]]
    names: list[str]
    ids: list[int]
    dropped: dict[str, int]
    clipped: int

    def __len__(self) -> int:
        return len(self.images)

    def counts(self) -> dict[str, int]:
        """The number of boxes of each class, without crowds."""
        every = np.concatenate([c[~crowd] for c, crowd in zip(self.classes, self.crowd, strict=True)])
        return dict(zip(self.names, np.bincount(every, minlength=len(self.names)).tolist(), strict=True))

    def truth(self) -> list[dict[str, Any]]:
        """One {"boxes", "classes", "crowd"} a picture: what `metrics.detection` compares predictions with."""
        rows = zip(self.boxes, self.classes, self.crowd, strict=True)
        return [{"boxes": boxes, "classes": classes, "crowd": crowd} for boxes, classes, crowd in rows]

    def select(self, indices: ArrayLike) -> Self:
        """The pictures of these (n,) indices, in their order."""
        rows = np.asarray(indices, np.int64)
        places = rows.tolist()
        return replace(
            self,
            images=[self.images[i] for i in places],
            sizes=self.sizes[rows],
            boxes=[self.boxes[i] for i in places],
            classes=[self.classes[i] for i in places],
            crowd=[self.crowd[i] for i in places],
        )

    def split(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Split at random into (rest, held out), the latter of `round(fraction * N)` pictures, in the data's order.

        Raises:
            InputError: A fraction outside of (0, 1), or one that leaves either part without a picture.
        """
        if not 0 < fraction < 1:
            raise InputError(f"fraction {fraction} is not in (0, 1): give the share of pictures to hold out")
        n, held = len(self), round(fraction * len(self))
        if not 0 < held < n:
            raise InputError(f"a fraction of {fraction} of {n} pictures leaves one part empty: give another, or more")
        shuffled = permute(np.arange(n), n, keys(seed))
        return self.select(np.sort(shuffled[held:])), self.select(np.sort(shuffled[:held]))


def read_boxes(path: str | Path | Sequence[str | Path], names: Sequence[str] | None = None) -> BoxedImages:
    """Read pictures with boxes; the format is recognised by what is there.

    - COCO: a `.json` file, or a folder with one, alone or in `annotations/` (so a part of a Roboflow export). Pictures
      lie beside it, in `images/`, or in a folder of the annotations' name (`instances_train2017.json`: `train2017/`).
    - Pascal VOC: a folder with XML files in `Annotations/` or beside the pictures. Their corners are 1-based and
      inclusive there, so 1 is taken from xmin and ymin.
    - YOLO: a folder with `images/` and `labels/`, or one of pictures for which the path with `labels` in place of
      `images` exists; class names from `data.yaml` or `classes.txt` in the folder or up to two above. A picture
      without a label file has no object; a polygon stands for the box around it. Where there are parts called train
      and val, test or the like, only train is read.

    All classes that the files list are kept, so that two parts of a set agree, but for a category without a box whose
    name is another one's `supercategory` (Roboflow writes such a dummy). VOC files list no classes: theirs are those
    that occur, sorted. A box is cut at the edge of its picture; one without area or wholly outside is dropped. A
    picture that cannot be read is kept without boxes, of size 1 x 1: `PixelStore` tells that it is broken.

    Args:
        path: File or folder, or a list of these, which are joined by the names of their classes.
        names: The known classes, where the data must have no others; it may lack some. YOLO files that come without
            names number these.

    Raises:
        InputError: What is there is none of these, is damaged, contradicts itself (duplicate ids, unknown ids, a size
            that is not the picture's), names a picture that is missing, has a coordinate that is no finite number, or
            a class that is not among `names`.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    if not paths:
        raise InputError("no path of pictures with boxes: give a COCO .json file, or a folder of one of the formats")
    sets = [box_formats.read(Path(each), names) for each in paths]
    known = list(names) if names is not None else list(dict.fromkeys(name for each in sets for name in each.ids))
    if not known:
        raise InputError(f"{paths[0]}: no class has a name or a box; label some objects first")
    place = {name: number for number, name in enumerate(known)}
    if len(place) < len(known):
        raise InputError(f"names {known} has a name twice: give each class once")
    counts: Counter[str] = sum((each.dropped for each in sets), Counter())
    read = [_checked(entry, place, counts) for each in sets for entry in each.entries]
    if not read:
        raise InputError(f"{paths[0]}: no pictures are listed there; give pictures with boxes")
    sizes, boxes, classes, crowd = (list(column) for column in zip(*read, strict=True))
    clipped = counts.pop("clipped", 0)
    return BoxedImages(
        [ImageRef(str(entry.path), str(entry.path)) for each in sets for entry in each.entries],
        np.array(sizes, np.int64),
        boxes,
        classes,
        crowd,
        known,
        _common_ids(sets, known),
        dict(counts),
        clipped,
    )


def _checked(entry: Entry, place: dict[str, int], counts: Counter[str]) -> tuple[Any, ...]:
    """(size, boxes, classes, crowd) of one picture, its boxes cut at its edges; counts what was cut or left out."""
    height, width = entry.size
    boxes, classes, crowd = [], [], []
    for box in entry.boxes:
        if not all(map(math.isfinite, box.corners)):
            raise InputError(f"{box.where}: its box {list(box.corners)} holds what is no finite number; mend it")
        x1, y1, x2, y2 = box.corners
        if x2 <= x1 or y2 <= y1:
            counts[WITHOUT_AREA] += 1
            continue
        cut = np.clip(box.corners, 0, [width, height, width, height]).astype(np.float32)
        if cut[2] <= cut[0] or cut[3] <= cut[1]:
            counts[OUTSIDE] += 1
            continue
        counts["clipped"] += bool(np.abs(cut - box.corners).max() > ROUNDING)
        if box.name not in place:
            near = difflib.get_close_matches(box.name, place, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(f"{box.where}: class {box.name!r} is not among the known classes {list(place)}{hint}")
        boxes.append(cut)
        classes.append(place[box.name])
        crowd.append(box.crowd)
    stacked = np.stack(boxes) if boxes else np.zeros((0, 4), np.float32)
    return entry.size, stacked, np.array(classes, np.int64), np.array(crowd, bool)


def _common_ids(sets: Sequence[BoxSet], names: Sequence[str]) -> list[int]:
    """The id of each class where all sets that have the class say the same, and no two classes share it."""
    found = [{each.ids[name] for each in sets if name in each.ids} for name in names]
    ids = [next(iter(several)) for several in found if len(several) == 1]
    return ids if len(set(ids)) == len(names) else list(range(len(names)))
