"""The mask rule as one function, for spans that no fused kernel covers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bedplate.nn.span import Span


@dataclass(frozen=True, slots=True)
class Keys:
    """What the mask rule needs to know of a row of tokens: `order`, `pos (B|1, K)`, `valid`, `doc (B, K)` or None."""

    order: Tensor
    pos: Tensor
    valid: Tensor | None
    doc: Tensor | None

    @staticmethod
    def of(span: Span) -> Keys:
        pos = span.pos if span.pos.dim() > 1 else span.pos[None]
        return Keys(span.order(), pos, span.valid, span.doc)

    def at(self, index: Tensor) -> Keys:
        """Some tokens of each row, `index (B,)` or `(B, K)`."""
        order, pos = (pick(values.expand(len(index), -1), index) for values in (self.order, self.pos))
        return Keys(order, pos, None, None if self.doc is None else pick(self.doc, index))


def pick(values: Tensor, index: Tensor | None) -> Tensor:
    """Some tokens of each row, `(B, N, ...) -> (B, K, ...)` at `index (B, K)`, or K = 1 at `(B,)`; without it, all."""
    if index is None:
        return values
    index = index if index.dim() > 1 else index[:, None]
    return values[torch.arange(len(index), device=index.device)[:, None], index]


def visible(queries: Keys, keys: Keys, window: int | None = None, index: Tensor | None = None) -> Tensor:
    """Which keys each query sees, `(B|1, 1, Q, K)` bool. The queries are the last Q of the keys, or those at `index`.

    `window` is the largest allowed |pos_i - pos_j|; `index (B,)` or `(B, Q)` are the queries, no padding. A padding
    token sees itself as well, so that no row is empty: an empty row would be a softmax over nothing, and its NaN would
    reach the valid tokens through 0 * NaN.
    """
    seen = keys.order[:, None, :] <= queries.order[:, :, None]
    if keys.valid is not None and index is not None:
        seen = seen & keys.valid[:, None, :]
    elif keys.valid is not None:
        q, k = seen.shape[1], seen.shape[2]
        itself = torch.ones(q, k, dtype=torch.bool, device=seen.device).tril(k - q).triu(k - q)
        seen = seen & (keys.valid[:, None, :] | itself)
    if keys.doc is not None:
        assert queries.doc is not None
        key_doc = keys.doc[:, None, :]
        seen = seen & ((key_doc == queries.doc[:, :, None]) | (key_doc == 0))
    if window is not None:
        seen = seen & ((keys.pos[:, None, :] - queries.pos[:, :, None]).abs() <= window)
    return seen[:, None]
