"""Batches of pictures, in an order that is a pure function of (seed, step): resuming needs the step alone."""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from bedplate.data.image_files import LabelledImages, fingerprint
from bedplate.data.picture_order import Batch, InOrder, Shuffled
from bedplate.data.pixel_store import LIMIT_BYTES, PixelStore

__all__ = ["LIMIT_BYTES", "ImageEvalLoader", "ImageLoader", "PixelStore", "fingerprint"]


class ImageLoader(Shuffled):
    """Batches for training: every picture that is not broken once an epoch, in an order drawn anew for each.

    All batches are full: one may hold the end of an epoch and the beginning of the next.

    Args:
        images: The pictures and labels.
        batch_size: Pictures of the global batch (all ranks together).
        seed: Chooses the order.
        store: The pixels of `images`.
        among: Numbers of the pictures (n,) that batches hold, distinct; None for all.
        rank, world_size: This process among all (W); it gets rows [rank B / W, (rank + 1) B / W) of the global batch.

    Raises:
        InputError: A batch that ranks cannot share.
    """

    def __init__(
        self,
        images: LabelledImages,
        batch_size: int,
        seed: int,
        store: PixelStore,
        rank: int = 0,
        world_size: int = 1,
        *,
        among: NDArray[np.int64] | None = None,
    ) -> None:
        assert len(images) == len(store)
        usable = store.usable if among is None else np.intersect1d(store.usable, among)
        collate = partial(_collate, store, images.targets)
        super().__init__(usable, collate, batch_size, seed, rank, world_size)

    def batch(self, step: int) -> Batch:
        """This rank's rows of the batch of one step (B = batch_size / world_size).

        Returns:
            `pixels` uint8 (B, 3, H, W), `index` int64 (B,) of the pictures, and `labels` int64 (B,), indices into
            `images.classes`, where there are labels.
        """
        return super().batch(step)


class ImageEvalLoader(InOrder):
    """All pictures that are not broken once, in their order, in batches as `ImageLoader.batch` gives them.

    Args:
        images: The pictures and labels.
        batch_size: Pictures of a batch; the last has fewer where they run out.
        store: The pixels of `images`.
        max_batches: Stop after so many batches; None for all.
        rank, world_size: This process among all (W). It gets batches rank, rank + W, ...; where they run out the last
            one again, so that every rank has as many.
    """

    def __init__(
        self,
        images: LabelledImages,
        batch_size: int,
        store: PixelStore,
        max_batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert len(images) == len(store)
        collate = partial(_collate, store, images.targets)
        super().__init__(store.usable, collate, batch_size, max_batches, rank, world_size)


def _collate(store: PixelStore, targets: NDArray[np.int64] | None, index: NDArray[np.int64]) -> Batch:
    batch = {"pixels": torch.from_numpy(store.pixels(index)), "index": torch.from_numpy(index)}
    return batch if targets is None else batch | {"labels": torch.from_numpy(targets[index])}
