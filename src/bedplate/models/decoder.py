"""Decoding: one token of each row at a time, from the weights of a `GPT` and a static key-value cache.

A decoded token costs one pass over the weights, so all else must be small beside it. `Decoder` computes what
`module.hidden` behind a `Cache` and then `module.head` compute, in fewer operations and through the products that are
fast for few rows. Weights that were trained between two calls are seen: no copy of a matrix outlives a call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bedplate.models.gpt import GPT
from bedplate.models.products import GEMV_ROWS, Product, by_tiles, packing_pays, without_onednn
from bedplate.nn.attention import Attention
from bedplate.nn.block import ACTIVATIONS, MLP, Block
from bedplate.nn.cache import Cache
from bedplate.nn.config import TrunkConfig
from bedplate.nn.heads import LinearCrossEntropy
from bedplate.nn.norm import RMSNorm
from bedplate.nn.trunk import Trunk

SMALLEST_CAPACITY = 256  # of a captured graph; larger ones are powers of two
WARM_UP = 3  # steps before a capture, in which libraries allocate and choose their kernels

_PLAIN = {GPT, Trunk, nn.ModuleList, Block, Attention, MLP, RMSNorm, LinearCrossEntropy}
_PLAIN |= {nn.Linear, nn.Embedding, nn.LayerNorm, nn.Identity, nn.Dropout}
_captured: WeakKeyDictionary[GPT, Decoder] = WeakKeyDictionary()  # the last of each module


class _Norm(NamedTuple):
    weight: Tensor
    bias: Tensor | None


class _Layer(NamedTuple):
    """What a block is made of: `qkv` is one product, and so is `inner`, of the gate (if there is one) and up."""

    attn_norm: _Norm
    qkv: Product
    qk_gains: list[Tensor]  # of queries and keys, where these have norms
    o: Product
    mlp_norm: _Norm
    inner: Product
    down: Product
    window: int | None


def decodable(module: GPT) -> bool:
    """Whether a `Decoder` computes what the module would.

    It does not under autocast, which casts the weights, where modules are exchanged, wrapped or hooked (adapters,
    quantisation, FSDP), where weights differ in dtype or device, nor where tokens see those behind them.
    """
    weights = list(module.parameters())
    kinds = {(type(p), p.device, p.dtype) for p in weights}
    device = weights[0].device.type
    return (
        module.config.is_causal
        and len(kinds) == 1
        and type(weights[0]) is nn.Parameter
        and device in ("cpu", "cuda")
        and not torch.is_autocast_enabled(device)
        and all(type(m) in _PLAIN and not (m._forward_hooks or m._forward_pre_hooks) for m in module.modules())
    )


@contextmanager
def borrowed_decoder(module: GPT, batch_size: int, length: int, steps: int) -> Iterator[Decoder]:
    """A decoder of `batch_size` rows for `steps` tokens behind `length`, nobody else's meanwhile.

    On CUDA the module's last one is kept, as capturing a graph takes as long as dozens of tokens.
    """
    capacity = length + steps
    if module.embed.weight.device.type != "cuda":
        yield Decoder(module, batch_size, capacity, pack=packing_pays(module, batch_size, steps))
        return
    capacity = max(SMALLEST_CAPACITY, 1 << (capacity - 1).bit_length())
    decoder = _captured.pop(module, None)
    if decoder is None or not decoder.serves(module, batch_size, capacity):
        decoder = None  # its memory is free before the next one takes some
        decoder = Decoder(module, batch_size, capacity, static=True)
        decoder.capture()
    try:
        yield decoder
    finally:
        _captured[module] = decoder


class _Rows:
    """Rows `(R, width)` that an RMSNorm reads.

    On the CPU it is ten kernels of PyTorch's. Two of others do it as well: beside the constant sqrt(width eps) a row
    has the norm sqrt(width) rms, and to scale rows to a norm is the first half of weight normalisation.
    """

    def __init__(self, like: Tensor, count: int, width: int, eps: float, *, padded: bool) -> None:
        self.padded = like.new_full((count, width + padded), math.sqrt(width * eps))
        self.rows = self.padded[:, :width]
        self._norms = like.new_full((count, 1), math.sqrt(width))

    def normed(self, gain: Tensor, out: Tensor) -> None:
        """Write rows / rms * gain; `gain` and `out` have one column more, which means nothing."""
        torch.mul(torch._weight_norm_interface(self.padded, self._norms)[0], gain, out=out)


class _Heads:
    """Queries, keys and values of one token of each row on their way from a product into the attention.

    Each head stands twice, if they are rotated: from the middle of the one to the middle of the other, its halves are
    swapped.
    """

    def __init__(self, like: Tensor, product: Tensor, config: TrunkConfig) -> None:
        c, batch = config, len(product)
        heads, shared, dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        count, width = heads + 2 * shared, dim if c.rope is None else 2 * dim
        self._config, self._given = c, product.view(batch, count, 1, dim)
        self._padded = c.qk_norm and like.device.type == "cpu"
        self._rows = _Rows(like, batch * count, width, c.norm_eps, padded=self._padded)
        self._normed = torch.empty_like(self._rows.padded) if self._padded else self._rows.padded
        self._copies = self._rows.rows.view(batch, count, -1, dim)
        if c.rope is None and not c.qk_norm and like.dtype == product.dtype:
            self._copies = self._given
        out, both = self._copies[:, :, 0], slice(heads + shared)
        self._qk, self.kv = out[:, both], out[:, heads:]
        self.q = out[:, :heads].unflatten(1, (shared, -1))  # those that share a key are its queries: none is repeated
        straight = self._normed[:, :width].view(batch, count, width)[:, both]
        self._straight, self._swapped = straight[..., :dim], straight[..., dim // 2 :][..., :dim]

    def gains(self, q_gain: Tensor, k_gain: Tensor) -> list[Tensor]:
        """What `update` takes; on the CPU a gain for every number."""
        if not self._padded:
            return [q_gain, k_gain]
        c, (batch, count, copies, dim) = self._config, self._copies.shape
        each = q_gain.new_zeros(count, dim)
        each[: c.num_attention_heads] = q_gain
        each[c.num_attention_heads : -c.num_key_value_heads] = k_gain
        return [F.pad(each.repeat(batch, copies), (0, 1))]

    def update(self, gains: list[Tensor], rotary: list[Tensor]) -> None:
        """Make `q` and `kv` of what the product gave."""
        given, c = self._given, self._config
        if gains and not self._padded:
            q, k, v = given[:, :, 0].split((c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads), 1)
            q, k = (F.rms_norm(x, gain.shape, gain, c.norm_eps) for x, gain in zip((q, k), gains, strict=True))
            given = torch.cat((q, k, v), 1).unsqueeze(2)
        if self._copies is not given:
            self._copies.copy_(given)
        if self._padded:
            self._rows.normed(gains[0], out=self._normed)
        if rotary:
            cos, sin = rotary
            torch.addcmul(self._swapped * sin, self._straight, cos, out=self._qk)
        elif self._padded:
            self._qk.copy_(self._straight)


class Decoder:
    """Steps of one token a row.

    On the CPU a step runs as it is written. Products stream their matrices through the caches, so each call between
    them is a slow one: there are few, and they write into memory and views that are made once. Keys, values and the
    residual stream are fp32, in which the attention of one token is several times faster than in 16 bits. On CUDA a
    step is one captured graph that asks the host nothing.

    Shapes: tokens and positions `(B,)`; keys above values `(B, 2 Hkv, capacity, Dh)` a layer. All rows write the same
    slot of the cache; a mask hides the padding behind shorter prompts.

    Args:
        static: every step is the same sequence of operations on the same memory, as a graph must be: attention runs
            over the whole capacity, and the likeliest token is chosen and kept on the device.
        pack: copy the matrices into oneDNN's layout.
    """

    def __init__(
        self, module: GPT, batch_size: int, capacity: int, *, static: bool = False, pack: bool = False
    ) -> None:
        weight, c = module.embed.weight.detach(), module.config.trunk
        self._config, self._dtype, self._static, self._pack = c, weight.dtype, static, pack
        device = weight.device
        wide = torch.promote_types(weight.dtype, torch.float32) if device.type == "cpu" else weight.dtype
        self._wide, self._embed = wide, weight
        self._positions = None if module.positions is None else module.positions.weight.detach()

        self._capacity, self._length, self._ragged = capacity, 0, False
        self._last_pos = min(capacity, module.config.max_position_embeddings) - 1
        self._ids, self._pos = (torch.zeros(batch_size, dtype=torch.long, device=device) for _ in range(2))
        self._slot = torch.zeros(1, dtype=torch.long, device=device)
        self._written = torch.zeros(capacity, batch_size, dtype=torch.long, device=device)
        shape = c.num_hidden_layers, batch_size, 2 * c.num_key_value_heads, capacity, c.head_dim
        make = torch.zeros if static else torch.empty  # what is masked is read, and must be numbers
        self._cache = make(shape, dtype=wide, device=device)
        self._key_pos = torch.zeros(batch_size, capacity, dtype=torch.long, device=device)
        self._mask = torch.zeros(batch_size, 1, 1, capacity, dtype=wide, device=device)  # added to the scores
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rotary: list[Tensor] = []
        if module.trunk.rotary is not None:
            tables = module.trunk.rotary.tables(torch.arange(self._last_pos + 1, device=device))
            self._rotary = [table.to(wide) for table in tables]

        self._padded = c.norm == "rms" and device.type == "cpu"
        self._make_buffers(module.config.vocab_size)
        self._head = Product.of(module.head, pack=pack)
        self._layers = [self._layer(block) for block in module.trunk.blocks]
        self._norm = self._norm_weights(module.trunk.norm)
        self._windows = {layer.window for layer in self._layers}
        self._addresses = _addresses(module)  # now that the layers' weights lie side by side

    def _make_buffers(self, vocab_size: int) -> None:
        """What every layer writes into, in the weights' dtype where products take or give it."""
        c, batch_size, shared = self._config, len(self._ids), self._config.num_key_value_heads
        like = self._embed.new_empty(0, dtype=self._wide)

        def low(width: int) -> Tensor:
            return self._embed.new_empty(batch_size, width)

        self._stream = _Rows(like, batch_size, c.hidden_size, c.norm_eps, padded=self._padded)
        self._normed = low(c.hidden_size + self._padded)
        self._h = self._normed[:, : c.hidden_size]
        self._qkv = low((c.num_attention_heads + 2 * shared) * c.head_dim)
        self._heads = _Heads(like, self._qkv, c)
        self._attended = low(c.num_attention_heads * c.head_dim)
        self._attended_heads = self._attended.view(batch_size, shared, -1, c.head_dim)
        self._out = low(c.hidden_size)
        self._inner = low(c.intermediate_size * (2 if c.gated else 1))
        self._gate_up = self._inner.chunk(2, 1)
        self._low_logits = low(vocab_size)
        self._logits = self._low_logits.to(self._wide)

    def serves(self, module: GPT, batch_size: int, capacity: int) -> bool:
        """Whether it has this shape, and the module's weights still lie where it reads them."""
        same = (batch_size, capacity) == (len(self._ids), self._capacity)
        return same and self._addresses == _addresses(module)

    def start(self, cache: Cache, pos: Tensor | None) -> None:
        """Take over the prompts from `cache`; `pos (B, 1)` of each row's next token, None where all are the same."""
        n = self._length = cache.length
        for layer, both in enumerate(self._cache):
            for ours, theirs in zip(both.chunk(2, 1), cache.held(layer), strict=True):
                ours[:, :, :n] = theirs
        self._ragged = pos is not None
        self._slot.fill_(n)
        self._pos.copy_(self._slot if pos is None else pos[:, 0])
        slots = torch.arange(self._capacity, device=self._pos.device)
        self._key_pos.copy_(slots.expand_as(self._key_pos))
        self._mask.zero_().masked_fill_((slots >= self._pos[:, None])[:, None, None], -torch.inf)

    def step(self, ids: Tensor) -> Tensor:
        """Logits `(B, V)` after the tokens `ids (B, 1)`; the next step writes over them."""
        self._ids.copy_(ids[:, 0])
        self._advance()
        return self._logits

    def greedy(self, ids: Tensor, steps: int) -> Tensor:
        """The likeliest tokens `(B, steps)` after `ids (B, 1)`, none of which passes through the host on the way."""
        assert self._static, "the tokens of a step that is not static are chosen by its caller"
        first = self._length
        self._ids.copy_(ids[:, 0])
        for _ in range(steps):
            self._advance()
        return self._written[first : self._length].t()

    def capture(self) -> None:
        """Record a step on CUDA, which all steps then replay."""
        graph = torch.cuda.CUDAGraph()
        backends = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # these take a mask
        with sdpa_kernel(backends), torch.cuda.device(self._ids.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._run(self._capacity)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                self._run(self._capacity)
        self._graph = graph

    def _advance(self) -> None:
        assert self._length < self._capacity, f"the decoder holds {self._capacity} tokens a row"
        self._length += 1
        if self._graph is not None:
            self._graph.replay()
            return
        few = self._dtype.itemsize == 2 and len(self._ids) <= GEMV_ROWS and not by_tiles(self._dtype)
        with without_onednn() if few else nullcontext():
            self._run(self._capacity if self._static else self._length)

    def _run(self, n: int) -> None:
        """One step over the first `n` slots of the cache, from `_ids` to `_logits` and the likeliest `_ids`."""
        if self._static or self._ragged or self._windows != {None}:
            self._mask.index_fill_(3, self._slot, 0.0)
            self._key_pos.index_copy_(1, self._slot, self._pos[:, None])
        masks = {window: self._visible(window, n) for window in self._windows}
        rotary = [table.index_select(0, self._pos) for table in self._rotary]
        x = self._stream.rows.copy_(F.embedding(self._ids, self._embed))
        if self._positions is not None:
            x.add_(F.embedding(self._pos, self._positions))
        slots = (self._cache if self._static else self._cache.select(3, n - 1)).unbind()
        held = [part.unbind() for part in self._cache.narrow(3, 0, n).chunk(2, 2)]
        for layer, slot, keys, values in zip(self._layers, slots, *held, strict=True):
            layer.qkv.into(self._qkv, self._behind(layer.attn_norm))
            self._heads.update(layer.qk_gains, rotary)
            if self._static:
                slot.index_copy_(2, self._slot, self._heads.kv.unsqueeze(2))
            else:
                slot.copy_(self._heads.kv)
            x.add_(layer.o.into(self._out, self._attend(keys, values, masks[layer.window])))
            layer.inner.into(self._inner, self._behind(layer.mlp_norm))
            x.add_(layer.down.into(self._out, self._activated()))
        self._head.into(self._low_logits, self._behind(self._norm))
        if self._logits is not self._low_logits:
            self._logits.copy_(self._low_logits)
        if self._static:
            self._ids.copy_(self._logits.argmax(-1))
            self._written.index_copy_(0, self._slot, self._ids[None])
        self._slot.add_(1)
        self._pos.add_(1).clamp_(max=self._last_pos)  # a row that has ended may be at the end of the context

    def _visible(self, window: int | None, n: int) -> Tensor | None:
        """What is added to the scores `(B, 1, 1, n)`; None where every row sees all of the `n` slots."""
        if window is not None and (self._static or n > window + 1):
            far = self._pos[:, None] - self._key_pos[:, :n] > window
            return self._mask[..., :n].masked_fill(far[:, None, None], -torch.inf)
        return self._mask[..., :n] if self._static or self._ragged else None

    def _behind(self, norm: _Norm) -> Tensor:
        """The residual stream behind a norm, as products take it."""
        c, x = self._config, self._stream.rows
        if self._padded:
            self._stream.normed(norm.weight, out=self._normed)
            return self._h
        if c.norm == "rms":
            return F.rms_norm(x, norm.weight.shape, norm.weight, c.norm_eps)
        return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, c.norm_eps).to(self._dtype)

    def _attend(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """What the heads give `(B, H Dh)`."""
        out = F.scaled_dot_product_attention(self._heads.q, keys, values, attn_mask=mask)
        if self._wide == self._dtype:
            return out.flatten(1)
        self._attended_heads.copy_(out)
        return self._attended

    def _activated(self) -> Tensor:
        """What the feed-forward network's last product takes."""
        activation = ACTIVATIONS[self._config.activation]
        if not self._config.gated:
            return activation(self._inner)
        gate, up = self._gate_up
        return activation(gate).mul_(up)

    def _layer(self, block: nn.Module) -> _Layer:
        assert isinstance(block, Block)
        attn, mlp, pack = block.attn, block.mlp, self._pack
        gains: list[Tensor] = []
        if self._config.qk_norm:
            assert isinstance(attn.q_norm, RMSNorm) and isinstance(attn.k_norm, RMSNorm)
            gains = self._heads.gains(*(norm.weight.detach().to(self._wide) for norm in (attn.q_norm, attn.k_norm)))
        return _Layer(
            self._norm_weights(block.attn_norm),
            Product.of(attn.q_proj, attn.k_proj, attn.v_proj, pack=pack),
            gains,
            Product.of(attn.o_proj, pack=pack),
            self._norm_weights(block.mlp_norm),
            Product.of(*(proj for proj in (mlp.gate_proj, mlp.up_proj) if proj is not None), pack=pack),
            Product.of(mlp.down_proj, pack=pack),
            attn.window,
        )

    def _norm_weights(self, norm: nn.Module) -> _Norm:
        assert isinstance(norm, RMSNorm | nn.LayerNorm)
        weight = norm.weight.detach().to(self._wide)
        bias = norm.bias.detach().to(self._wide) if isinstance(norm, nn.LayerNorm) else None
        return _Norm(F.pad(weight, (0, 1)) if self._padded else weight, bias)


def _addresses(module: GPT) -> tuple[int, ...]:
    return tuple(parameter.data_ptr() for parameter in module.parameters())
