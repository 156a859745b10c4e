"""Tasks: a model, its objective, its metrics and its predictions. The training loop knows only this protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]


def row_count(rows: Tensor) -> Tensor:
    """How many rows these are, a scalar beside them: filled there, for a copy to a GPU would wait until it is idle."""
    return torch.full((), float(len(rows)), device=rows.device)


class Task(Protocol):
    """What the loop asks of a task.

    Where the loss is no sum over rows, a task also has `micro_batches(batch, rows) -> list[Batch]`: the parts of a
    batch that it learns from one after the other, each with what `loss` must know of the whole.
    """

    metrics: ClassVar[Mapping[str, Literal["min", "max"]]]
    """what `evaluate` measures, and whether the least or the greatest value is best"""

    unit: ClassVar[Literal["tokens", "images"]]
    """what the speed of training is counted in"""

    @property
    def module(self) -> nn.Module:
        """The network that is trained."""

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """{name: (sum over the batch, weight)}; "loss" is what is minimised.

        Where that holds more than the loss that `evaluate` measures, "next_token" or else "masked" is the part to
        compare with it.
        """

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """{metric: {"value", "low", "high", "n"}}."""

    def samples(self, seed: int) -> list[dict[str, str]]:
        """A few predictions to look at."""

    def flops(self, batch: Batch) -> int:
        """Floating-point operations of one training step on the batch."""
