"""The key-value cache: keys and values of every layer, and what the mask rule must know of them."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from bedplate.nn.mask import Keys
from bedplate.nn.span import Span


def uncompiled() -> AbstractContextManager[object]:
    """Within it, compiled modules run as they are written: for what a growing cache would compile again and again.

    PyTorch compiles a function in so many variants and then no more, so that training would pay for a few samples.
    """
    # Without the compiler nothing is compiled, and to import it takes a second.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class Cache:
    """Preallocated keys and values for rows of at most `capacity` tokens.

    A decoded token is written in place, so a step costs one token, not a copy of the past. No gradient
    flows through it.

    Shapes: keys and values `(B, H, capacity, Dh)` a layer, allocated at the first write, which tells dtype and device.
    """

    def __init__(self, num_layers: int, batch_size: int, capacity: int) -> None:
        self.batch_size, self.capacity, self.length = batch_size, capacity, 0
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers
        self._order = self._pos = self._valid = self._doc = torch.empty(0)
        self._has_valid = self._has_doc = False

    def extend(self, span: Span) -> tuple[Keys, Keys]:
        """Take a span's order, positions, validity and documents in; return (its queries, all keys)."""
        batch, n, start = span.x.shape[0], span.x.shape[1], self.length
        assert batch == self.batch_size, f"the cache holds {self.batch_size} rows, the span {batch}"
        assert start + n <= self.capacity, f"the cache holds {self.capacity} tokens, {start + n} are needed"
        if start == 0:
            self._order, self._pos, self._doc = (
                torch.zeros(batch, self.capacity, dtype=torch.long, device=span.x.device) for _ in range(3)
            )
            self._valid = torch.ones(batch, self.capacity, dtype=torch.bool, device=span.x.device)
        stop = self.length = start + n
        before = self._order[:, start - 1 : start] if start else 0
        self._order[:, start:stop] = span.order() + before
        self._pos[:, start:stop] = span.pos
        if span.valid is not None:
            self._valid[:, start:stop], self._has_valid = span.valid, True
        if span.doc is not None:
            self._doc[:, start:stop], self._has_doc = span.doc, True
        return self._view(start, stop), self._view(0, stop)

    def _view(self, start: int, stop: int) -> Keys:
        rows = slice(None), slice(start, stop)
        valid = self._valid[rows] if self._has_valid else None
        doc = self._doc[rows] if self._has_doc else None
        return Keys(self._order[rows], self._pos[rows], valid, doc)

    @property
    def plain(self) -> bool:
        """True while nothing is padded and there is one document: a single new token then sees every key."""
        return not (self._has_valid or self._has_doc)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append `k`, `v (B, H, n, Dh)` of the span that `extend` took in; return all keys and values of the layer."""
        keys, values = self._keys[layer], self._values[layer]
        if keys is None or values is None:
            shape = (k.shape[0], k.shape[1], self.capacity, k.shape[3])
            keys, values = k.new_empty(shape), v.new_empty(shape)
            self._keys[layer], self._values[layer] = keys, values
        start = self.length - k.shape[2]
        keys[:, :, start : self.length] = k
        values[:, :, start : self.length] = v
        return self.held(layer)

    def held(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values `(B, H, length, Dh)` of a layer that was written to."""
        keys, values = self._keys[layer], self._values[layer]
        assert keys is not None and values is not None
        return keys[:, :, : self.length], values[:, :, : self.length]

    def repeated(self, times: int | Tensor, capacity: int) -> Cache:
        """A cache of `capacity` tokens in which each row stands `times` times, or row i `times[i]` times of `(B,)`, one
        copy below the other."""
        assert capacity >= self.length
        rows = self.batch_size * times if isinstance(times, int) else int(times.sum())
        copy = Cache(len(self._keys), rows, capacity)
        copy.length, copy._has_valid, copy._has_doc = self.length, self._has_valid, self._has_doc
        for name in ("_order", "_pos", "_valid", "_doc"):
            setattr(copy, name, _widened(getattr(self, name), times, 1, self.length, capacity))
        for ours, theirs in ((self._keys, copy._keys), (self._values, copy._values)):
            theirs[:] = [None if t is None else _widened(t, times, 2, self.length, capacity) for t in ours]
        return copy

    def reorder(self, rows: Tensor, start: int = 0) -> None:
        """Let row i go on from what row `rows[i]` of `rows (B,)` holds.

        A row only takes from rows that share its first `start` tokens, and all tokens' places: those stay where they
        are, so that beams behind a long prompt cost a copy of what they wrote, not of the prompt.
        """
        for tensor in (*self._keys, *self._values):
            if tensor is not None:
                written = tensor[:, :, start : self.length]
                written.copy_(written.index_select(0, rows))


def _widened(tensor: Tensor, times: int | Tensor, dim: int, length: int, capacity: int) -> Tensor:
    """Rows repeated in place, and room for `capacity` tokens along `dim`, of which `length` are there."""
    repeated = tensor.narrow(dim, 0, length).repeat_interleave(times, 0)
    missing = capacity - length
    filler = repeated.new_ones if tensor.dtype == torch.bool else repeated.new_zeros
    shape = [*repeated.shape[:dim], missing, *repeated.shape[dim + 1 :]]
    return torch.cat((repeated, filler(shape)), dim)
