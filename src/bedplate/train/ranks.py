"""The processes of a run: who they are, what they agree on, and what happens when one of them hangs."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from bedplate.errors import InputError, RankError
from bedplate.recipe.schema import ParallelRecipe

T = TypeVar("T")
FOREVER = timedelta(days=7)  # ranks may wait for one that tokenises; one that dies is noticed at once


class Ranks:
    """This process among those that `torchrun` started. A process of its own is rank 0 of 1, and nothing is sent.

    Attributes:
        rank, size: this process, and how many there are.
        tensor: ranks that share every matrix product; neighbours, so that they are on one machine.
        data_rank, data_size: which rows of the global batch are this rank's; ranks of one tensor group have the same.
        saving: the group on which checkpoints are written, beside training (None: one process).
    """

    def __init__(self, rank: int = 0, size: int = 1, tensor: int = 1) -> None:
        self.rank, self.size, self.tensor = rank, size, tensor
        self.data_rank, self.data_size = rank // tensor, size // tensor
        self._control: dist.ProcessGroup | None = None
        self.saving: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @staticmethod
    def started() -> int:
        """How many processes `torchrun` started, this one among them; 1 without it."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @staticmethod
    def is_restart() -> bool:
        """Whether `torchrun` has started this process again after a failure."""
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0

    @staticmethod
    @contextmanager
    def joined(recipe: ParallelRecipe, device: torch.device) -> Iterator[Ranks]:
        """The ranks of this run, connected as long as the context lasts.

        Raises:
            InputError: `parallel` does not divide the processes that were started.
        """
        size = Ranks.started()
        if size % (recipe.shard * recipe.tensor):
            raise InputError(
                f"parallel.shard={recipe.shard} x parallel.tensor={recipe.tensor} ranks hold one copy of the model, "
                f"but {size} process{'es were' if size > 1 else ' was'} started; start a multiple of "
                f"{recipe.shard * recipe.tensor} with torchrun, or change them"
            )
        if size == 1:
            yield Ranks()
            return
        if not dist.is_initialized():  # a script may have several runs, and can connect its processes once only
            _connect("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", recipe.timeout)
        ranks = Ranks(dist.get_rank(), size, recipe.tensor)
        try:
            ranks._control = dist.new_group(backend="gloo", timeout=FOREVER)
            ranks.saving = dist.new_group(backend="gloo", timeout=FOREVER)
            yield ranks
            ranks.wait()
        except (dist.DistBackendError, dist.DistNetworkError) as error:
            raise _lost(ranks.rank, error) from error
        except RuntimeError as error:
            if "gloo" not in str(error):
                raise
            raise _lost(ranks.rank, error) from error

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self._control is not None:
            dist.barrier(self._control)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        if self._control is None:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, self._control)
        return bool(flags)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place, on the values' device."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """All ranks' rows of values `(B, ...)` in the order of the ranks, `(W B, ...)`; gradients come back to each."""
        return values if self.size == 1 else _Gather.apply(values, self.rank, self.size)

    def same(self, value: T) -> T:
        """The main rank's value, on every rank."""
        if self._control is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0, self._control)
        return values[0]

    def interleave(self, values: list[T]) -> list[T]:
        """All ranks' values: the first of each data rank in their order, then the second of each, and so on."""
        if self._control is None:
            return values
        lists: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(lists, values, self._control)
        return [value for nth in zip(*lists[:: self.tensor], strict=True) for value in nth]

    def on_main(self, work: Callable[[], T]) -> T:
        """Do the work on the main rank while the others wait; all get its result, or its InputError."""
        value, error = None, None
        if self.is_main:
            try:
                value = work()
            except InputError as bad:
                if self.size == 1:
                    raise
                error = str(bad)
        value, error = self.same((value, error))
        if error is not None:
            raise InputError(error)
        return value  # type: ignore[return-value]

    def main_first(self, work: Callable[[], T]) -> T:
        """Do the work on the main rank, then on the others, which find what it left on the disk."""
        if not self.is_main:
            self.on_main(lambda: None)
            return work()
        done: list[T] = []
        self.on_main(lambda: done.append(work()))
        return done[0]


class _Gather(torch.autograd.Function):
    """Rows of all ranks. A rank's loss has gradients for the rows of others, too: each gets the sum of its own."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rank: int, size: int) -> Tensor:
        ctx.rows = slice(rank * len(values), (rank + 1) * len(values))
        parts = [torch.empty_like(values) for _ in range(size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[ctx.rows], None, None


def _connect(backend: str, timeout: float) -> None:
    """Join the processes that torchrun started."""
    store, rank, size = next(rendezvous("env://"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun then keeps one store over restarts (2.13), in which the addresses of the dead would be found again.
        # Without it there are several agents, whose counts of restarts differ, and each start has a store of its own.
        store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    # The watchdog speaks first: a group that gives up sooner could only say that some transfer failed.
    longest = timedelta(seconds=2 * timeout + 60)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=longest)
    atexit.register(dist.destroy_process_group)


def _lost(rank: int, error: BaseException) -> RankError:
    return RankError(
        f"rank {rank}: another rank died or cannot be reached ({str(error).splitlines()[0]}); look at the messages of "
        "the others, then go on with --resume"
    )


class Watchdog:
    """Ends this process when no step finishes for a while: then some rank hangs, and the others wait for it forever.

    Every rank has one, so that the stacks of all are printed, that of the hanging one among them.
    """

    def __init__(self, ranks: Ranks, seconds: float, advice: Callable[[], str]) -> None:
        self._ranks, self._seconds, self._advice = ranks, seconds, advice
        self._last = time.monotonic()
        self._done = threading.Event()

    def __enter__(self) -> Watchdog:
        self.beat()
        if self._ranks.size > 1:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def beat(self) -> None:
        """Say that something has been finished."""
        self._last = time.monotonic()

    def beating(self, items: Iterable[T]) -> Iterator[T]:
        """The items; each that is taken counts as finished work."""
        for item in items:
            self.beat()
            yield item

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last < self._seconds:
                continue
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            print(f"Where rank {self._ranks.rank} waits:\n{''.join(traceback.format_stack(frame))}", file=sys.stderr)
            print(
                f"Error: rank {self._ranks.rank}: nothing was finished for {self._seconds:g} s (parallel.timeout): a "
                f"rank hangs or has died. {self._advice()}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)  # the main thread waits inside a collective, where no exception reaches it
