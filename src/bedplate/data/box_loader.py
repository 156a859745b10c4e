"""Batches of pictures on one canvas with their boxes, in an order that is a pure function of (seed, step).

A picture is scaled until it fits the canvas, from its top left corner on (`images.letterbox`), and its boxes with it.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from bedplate.data.boxes import BoxedImages
from bedplate.data.image_files import LabelledImages
from bedplate.data.picture_order import Batch, InOrder, Shuffled
from bedplate.data.pixel_store import LIMIT_BYTES, PixelStore
from bedplate.errors import InputError

Size = tuple[int, int]

NO_OBJECT = -1
"""Class of the rows that only fill up."""


def box_store(
    boxed: BoxedImages,
    canvas: Size,
    cache_dir: str | Path,
    workers: int | None = None,
    limit: int = LIMIT_BYTES,
) -> PixelStore:
    """The pictures on a canvas (H, W), decoded once where they fit; arguments and errors are those of `PixelStore`."""
    images = LabelledImages(boxed.images, None, [], {})
    return PixelStore(images, canvas, "letterbox", cache_dir, workers, limit)


def fingerprint(boxed: BoxedImages, store: PixelStore) -> str:
    """Hash of the pictures, their boxes and classes, in order, for resuming: hexadecimal, 32 characters."""
    total = hashlib.blake2b(f"{store.fingerprint} {boxed.names}".encode(), digest_size=16)
    for boxes, classes, crowd in zip(boxed.boxes, boxed.classes, boxed.crowd, strict=True):
        total.update(len(boxes).to_bytes(8, "little") + boxes.tobytes() + classes.tobytes() + crowd.tobytes())
    return total.hexdigest()


def to_canvas(boxes: ArrayLike, size: ArrayLike, canvas: Size) -> NDArray[np.float32]:
    """Boxes (M, 4) of a picture of a size (height, width), in pixels of the canvas (H, W)."""
    return (np.asarray(boxes, np.float64) * _scale(size, canvas)).astype(np.float32)


def from_canvas(boxes: ArrayLike, size: ArrayLike, canvas: Size) -> NDArray[np.float32]:
    """Boxes (M, 4) on the canvas (H, W), in pixels of a picture of a size (height, width), cut at its edges."""
    height, width = np.asarray(size).tolist()
    found = np.asarray(boxes, np.float64).reshape(-1, 4) / _scale(size, canvas)
    return np.clip(found, 0, [width, height, width, height]).astype(np.float32)


class BoxLoader(Shuffled):
    """Batches for training: every picture that is not broken once an epoch, those without an object too.

    All batches are full: one may hold the end of an epoch and the beginning of the next.

    Args:
        boxed: The pictures and boxes; crowds are left out.
        canvas: (H, W) of the store.
        batch_size: Pictures of the global batch (all ranks together).
        seed: Chooses the order.
        store: The pixels of `boxed`, see `box_store`.
        rank, world_size: This process among all (W); it gets rows [rank B / W, (rank + 1) B / W) of the global batch.

    Raises:
        InputError: A batch that ranks cannot share, or no box to learn from.
    """

    def __init__(
        self,
        boxed: BoxedImages,
        canvas: Size,
        batch_size: int,
        seed: int,
        store: PixelStore,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not sum(boxed.counts().values()):
            raise InputError(f"{boxed.images[0].where} and the others: no box to learn from; label some objects")
        super().__init__(store.usable, _Rows(boxed, canvas, store), batch_size, seed, rank, world_size)

    def batch(self, step: int) -> Batch:
        """This rank's rows of the batch of one step (B = batch_size / world_size).

        Returns:
            `pixels` uint8 (B, 3, H, W); `boxes` float32 (B, M, 4), x1 y1 x2 y2 in pixels of the canvas, and `classes`
            int64 (B, M), where M is the most objects of a picture of the batch, at least 1: the rows that fill up have
            boxes of 0 and class -1; and `index` int64 (B,) of the pictures.
        """
        return super().batch(step)


class BoxEvalLoader(InOrder):
    """All pictures that are not broken once, in their order, in batches as `BoxLoader.batch` gives them.

    What a judge needs is there, too: crowds, which `crowd` (B, M) bool marks, and `scale` (B,), the pixels of the
    canvas that one of the picture has become.

    Args:
        boxed: The pictures and boxes.
        canvas: (H, W) of the store.
        batch_size: Pictures of a batch; the last has fewer where they run out.
        store: The pixels of `boxed`.
        max_batches: Stop after so many batches; None for all.
        rank, world_size: This process among all (W). It gets batches rank, rank + W, ...; where they run out the last
            one again, so that every rank has as many.
    """

    def __init__(
        self,
        boxed: BoxedImages,
        canvas: Size,
        batch_size: int,
        store: PixelStore,
        max_batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        rows = _Rows(boxed, canvas, store, judged=True)
        super().__init__(store.usable, rows, batch_size, max_batches, rank, world_size)


class _Rows:
    """Makes a batch of pictures by their numbers."""

    def __init__(self, boxed: BoxedImages, canvas: Size, store: PixelStore, judged: bool = False) -> None:
        assert len(boxed) == len(store)
        self._store, self._judged = store, judged
        self._scale = [_scale(size, canvas) for size in boxed.sizes]
        kept = [np.ones_like(crowd) if judged else ~crowd for crowd in boxed.crowd]
        self._crowd = [crowd[keep] for crowd, keep in zip(boxed.crowd, kept, strict=True)]
        self._classes = [classes[keep] for classes, keep in zip(boxed.classes, kept, strict=True)]
        self._boxes = [
            to_canvas(boxes[keep], size, canvas)
            for boxes, size, keep in zip(boxed.boxes, boxed.sizes, kept, strict=True)
        ]

    def __call__(self, index: NDArray[np.int64]) -> Batch:
        most = max(1, *(len(self._boxes[i]) for i in index))
        boxes = np.zeros((len(index), most, 4), np.float32)
        classes = np.full((len(index), most), NO_OBJECT, np.int64)
        crowd = np.zeros_like(classes, dtype=bool)
        for row, i in enumerate(index.tolist()):
            boxes[row, : len(self._boxes[i])] = self._boxes[i]
            classes[row, : len(self._classes[i])] = self._classes[i]
            crowd[row, : len(self._crowd[i])] = self._crowd[i]
        scale = np.array([self._scale[i] for i in index], np.float32)
        judged = {"crowd": torch.from_numpy(crowd), "scale": torch.from_numpy(scale)} if self._judged else {}
        return {
            "pixels": torch.from_numpy(self._store.pixels(index)),
            "boxes": torch.from_numpy(boxes),
            "classes": torch.from_numpy(classes),
            "index": torch.from_numpy(index),
            **judged,
        }


def _scale(size: ArrayLike, canvas: Size) -> float:
    height, width = np.asarray(size).tolist()
    return min(canvas[0] / height, canvas[1] / width)
