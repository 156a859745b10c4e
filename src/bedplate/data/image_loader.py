"""Batches of pictures, in an order that is a pure function of (seed, step): resuming needs the step alone."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bedplate.data import order
from bedplate.data.image_files import LabelledImages, fingerprint
from bedplate.data.pixel_store import LIMIT_BYTES, PixelStore
from bedplate.errors import InputError

__all__ = ["LIMIT_BYTES", "ImageEvalLoader", "ImageLoader", "PixelStore", "fingerprint"]

Batch = dict[str, Tensor]


class ImageLoader:
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
        if batch_size < 1 or batch_size % world_size:
            raise InputError(
                f"train.batch_size {batch_size} is not a multiple of {world_size} processes; choose one that is"
            )
        assert len(images) == len(store)
        self._store, self._targets = store, images.targets
        self._usable = store.usable if among is None else np.intersect1d(store.usable, among)
        self._batch_size, self._seed = batch_size, seed
        rows = batch_size // world_size
        self._rows = np.arange(rank * rows, (rank + 1) * rows)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every picture has been seen."""
        return -(-len(self._usable) // self._batch_size)

    def batch(self, step: int) -> Batch:
        """This rank's rows of the batch of one step (B = batch_size / world_size).

        Returns:
            `pixels` uint8 (B, 3, H, W), `index` int64 (B,) of the pictures, and `labels` int64 (B,), indices into
            `images.classes`, where there are labels.
        """
        usable = self._usable
        epoch, place = np.divmod(step * self._batch_size + self._rows, len(usable))
        drawn = order.permute(place, len(usable), order.keys(self._seed, 0, epoch))
        return _collate(self._store, self._targets, usable[drawn])

    def epoch(self, step: int) -> float:
        """How often the data has been read before `step`."""
        return step * self._batch_size / len(self._usable)


class ImageEvalLoader:
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
        self._store, self._targets, self._batch_size = store, images.targets, batch_size
        batches = -(-len(store.usable) // batch_size)
        self._batches = batches if max_batches is None else min(batches, max_batches)
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        """Count the batches of this rank."""
        return -(-self._batches // self._world_size)

    @property
    def index(self) -> NDArray[np.int64]:
        """(n,) numbers of all ranks' pictures in the order in which they come."""
        return self._store.usable[: self._batches * self._batch_size]

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self._rank, len(self) * self._world_size, self._world_size):
            yield self.batch(min(step, self._batches - 1))

    def batch(self, step: int) -> Batch:
        """The batch at a place in the order."""
        index = self._store.usable[step * self._batch_size : (step + 1) * self._batch_size]
        return _collate(self._store, self._targets, index)


def _collate(store: PixelStore, targets: NDArray[np.int64] | None, index: NDArray[np.int64]) -> Batch:
    batch = {"pixels": torch.from_numpy(store.pixels(index)), "index": torch.from_numpy(index)}
    return batch if targets is None else batch | {"labels": torch.from_numpy(targets[index])}
