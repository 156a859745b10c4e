"""The order in which pictures come, whatever a batch of them holds: shuffled for training, once each for scoring."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bedplate.data import order
from bedplate.errors import InputError

Batch = dict[str, Tensor]
Collate = Callable[[NDArray[np.int64]], Batch]


class Shuffled:
    """Batches for training: every picture once an epoch, in an order drawn anew for each; resumed by the step alone.

    All batches are full: one may hold the end of an epoch and the beginning of the next.

    Args:
        usable: Numbers of the pictures (n,).
        collate: Makes a batch of the pictures of such numbers.
        batch_size: Pictures of the global batch (all ranks together).
        seed: Chooses the order.
        rank, world_size: This process among all (W); it gets rows [rank B / W, (rank + 1) B / W) of the global batch.

    Raises:
        InputError: A batch that ranks cannot share.
    """

    def __init__(
        self, usable: NDArray[np.int64], collate: Collate, batch_size: int, seed: int, rank: int, world_size: int
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise InputError(
                f"train.batch_size {batch_size} is not a multiple of {world_size} processes; choose one that is"
            )
        self._usable, self._collate, self._batch_size, self._seed = usable, collate, batch_size, seed
        rows = batch_size // world_size
        self._rows = np.arange(rank * rows, (rank + 1) * rows)
        self._drawn_a_step = batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every picture has been seen."""
        return -(-len(self._usable) // self._drawn_a_step)

    def batch(self, step: int) -> Batch:
        """This rank's rows of the batch of one step (B = batch_size / world_size)."""
        return self._collate(self.index(step))

    def index(self, step: int) -> NDArray[np.int64]:
        """(B,) numbers of the pictures of this rank's rows of the batch of one step."""
        return self._at(step * self._batch_size + self._rows)

    def _at(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """The pictures that come as these (B,) numbers, counted from the first epoch's first on."""
        epoch, place = np.divmod(number, len(self._usable))
        return self._usable[order.permute(place, len(self._usable), order.keys(self._seed, 0, epoch))]

    def epoch(self, step: int) -> float:
        """How often the data has been read before `step`."""
        return step * self._drawn_a_step / len(self._usable)


class Mates:
    """Of a picture another one of its group, drawn anew each time; where it is the only one, itself.

    Args:
        usable: Numbers of the pictures that there are (n,).
        groups: Of each picture, also of those that are not usable.
    """

    def __init__(self, usable: NDArray[np.int64], groups: NDArray[np.int64]) -> None:
        self._members = usable[np.argsort(groups[usable], kind="stable")]  # group after group
        starts = np.unique(groups[self._members], return_index=True)[1]
        counts = np.diff(starts, append=len(usable))
        self._start, self._count, self._place = (np.zeros(len(groups), np.int64) for _ in range(3))
        self._start[self._members], self._count[self._members] = np.repeat(starts, counts), np.repeat(counts, counts)
        self._place[self._members] = np.arange(len(usable)) - np.repeat(starts, counts)

    def __call__(self, pictures: NDArray[np.int64], draws: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The mates (B,) of usable pictures (B,); `draws` (B,) are random numbers of 64 bits."""
        count = self._count[pictures]
        further = 1 + (draws % np.maximum(count - 1, 1).astype(np.uint64)).astype(np.int64)
        return self._members[self._start[pictures] + (self._place[pictures] + further) % count]


class InOrder:
    """All pictures once, in their order.

    Args:
        usable: Numbers of the pictures (n,).
        collate: Makes a batch of the pictures of such numbers.
        batch_size: Pictures of a batch; the last has fewer where they run out.
        max_batches: Stop after so many batches; None for all.
        rank, world_size: This process among all (W). It gets batches rank, rank + W, ...; where they run out the last
            one again, so that every rank has as many.
    """

    def __init__(
        self,
        usable: NDArray[np.int64],
        collate: Collate,
        batch_size: int,
        max_batches: int | None,
        rank: int,
        world_size: int,
    ) -> None:
        self._usable, self._collate, self._batch_size = usable, collate, batch_size
        batches = -(-len(usable) // batch_size)
        self._batches = batches if max_batches is None else min(batches, max_batches)
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        """Count the batches of this rank."""
        return -(-self._batches // self._world_size)

    @property
    def index(self) -> NDArray[np.int64]:
        """(n,) numbers of the pictures in the order in which they come, of all ranks together."""
        return self._usable[: self._batches * self._batch_size]

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self._rank, len(self) * self._world_size, self._world_size):
            yield self.batch(min(step, self._batches - 1))

    def batch(self, step: int) -> Batch:
        """The batch at a place in the order."""
        return self._collate(self._usable[step * self._batch_size : (step + 1) * self._batch_size])
