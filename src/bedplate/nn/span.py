"""Span: the one kind of sequence that enters the trunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Embeddings and the five things that decide what each token may see.

    With `order = cumsum(step)`, token i sees token j iff `order[j] <= order[i]`, j is valid, and
    `doc[j] == doc[i] or doc[j] == 0`. The rule is big_vision's PaliGemma `make_attn_mask`, widened by documents.

    Shapes: `x (B, N, D)`; `pos (N,)` or `(B, N)`; `step`, `valid`, `doc (B, N)`.
    """

    x: Tensor
    pos: Tensor
    runs: tuple[tuple[int, int], ...] | None = None  # static (length, step) runs, the same in all rows
    step: Tensor | None = None  # given instead of `runs` where rows differ
    valid: Tensor | None = None  # False: padding, seen by no other token
    doc: Tensor | None = None  # 0: a prefix that every document sees
    right_padded: bool = False  # the builder's promise that all padding stands after the row's last valid token

    def __post_init__(self) -> None:
        assert (self.runs is None) != (self.step is None), "give either runs or step"
        assert self.runs is None or sum(length for length, _ in self.runs) == self.x.shape[1], "runs cover x"

    @property
    def kind(self) -> Literal["full", "causal", "mixed"]:
        """What attention kernel the span may take, decided without reading any tensor."""
        if self.runs is None or self.doc is not None:
            return "mixed"
        steps = {step for length, step in self.runs if length > 0}
        # In a right-padded causal row the padding comes last, where no valid token looks: it needs no mask.
        if steps == {1} and (self.valid is None or self.right_padded):
            return "causal"
        return "full" if steps == {0} and self.valid is None else "mixed"

    def order(self) -> Tensor:
        """cumsum(step), `(B, N)` or `(1, N)`, int64."""
        if self.step is not None:
            return self.step.long().cumsum(1)
        steps = [torch.full((length,), step, device=self.x.device) for length, step in self.runs or ()]
        return torch.cat(steps).cumsum(0)[None]

    @staticmethod
    def causal(
        x: Tensor,
        pos: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        doc: Tensor | None = None,
        right_padded: bool = False,
    ) -> Span:
        """Text as a GPT reads it: every token sees itself and what stands before it."""
        n = x.shape[1]
        pos = torch.arange(n, device=x.device) if pos is None else pos
        return Span(x, pos, runs=((n, 1),), valid=valid, doc=doc, right_padded=right_padded)

    @staticmethod
    def full(x: Tensor, pos: Tensor | None = None, *, valid: Tensor | None = None, doc: Tensor | None = None) -> Span:
        """Text or image as an encoder reads it: every token sees every other."""
        n = x.shape[1]
        pos = torch.arange(n, device=x.device) if pos is None else pos
        return Span(x, pos, runs=((n, 0),), valid=valid, doc=doc)
