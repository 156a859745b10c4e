"""Decoding: one token of each row at a time, from the weights of a `GPT` and a static key-value cache.

A decoded token costs one pass over the weights, so all else must be small beside it. `Decoder` computes what
`module.hidden` behind a `Cache` and then `module.head` compute, in fewer operations and through the products that are
fast for few rows. Weights that were trained between two calls are seen: no copy of a matrix outlives a call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bedplate.models.gpt import GPT
from bedplate.nn.attention import Attention
from bedplate.nn.block import ACTIVATIONS, MLP, Block
from bedplate.nn.cache import Cache
from bedplate.nn.heads import LinearCrossEntropy
from bedplate.nn.norm import RMSNorm
from bedplate.nn.trunk import Trunk

GEMV_ROWS = 2  # on the CPU: up to so many 16-bit rows, ATen's own product is faster than oneDNN's
MKL_ROWS = 4  # up to so many fp32 rows, MKL is faster when asked for the transposed result
PACKED_STEPS = 32  # packing the matrices for more rows takes as long as a dozen steps,
PACKED_BYTES = 2**30  # and as much memory again
SMALLEST_CAPACITY = 256  # of a captured graph; larger ones are powers of two
WARM_UP = 3  # steps before a capture, in which libraries allocate and choose their kernels

_PLAIN = {GPT, Trunk, nn.ModuleList, Block, Attention, MLP, RMSNorm, LinearCrossEntropy}
_PLAIN |= {nn.Linear, nn.Embedding, nn.LayerNorm, nn.Identity, nn.Dropout}
_captured: WeakKeyDictionary[GPT, Decoder] = WeakKeyDictionary()  # the last of each module


class _Switch:
    """Who of this process's threads has oneDNN turned off."""

    def __init__(self) -> None:
        self.lock, self.users, self.before = Lock(), 0, True


_switch = _Switch()


class _Weights(NamedTuple):
    """Of a product, or of a norm."""

    weight: Tensor
    bias: Tensor | None


class _Layer(NamedTuple):
    """What a block is made of: `qkv` is one product, and so is `inner`, of the gate (if there is one) and up."""

    attn_norm: _Weights
    qkv: _Weights
    qk_norm: tuple[Tensor, Tensor] | None
    o: _Weights
    mlp_norm: _Weights
    inner: _Weights
    down: _Weights
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
        yield Decoder(module, batch_size, capacity, pack=_packing_pays(module, batch_size, steps))
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


class Decoder:
    """Steps of one token a row.

    On the CPU a step runs as it is written. Keys, values and the residual stream are fp32, in which the attention of
    one token is several times faster than in 16 bits. On CUDA a step is one captured graph that asks the host nothing.

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
        self._wide = torch.promote_types(weight.dtype, torch.float32) if device.type == "cpu" else weight.dtype
        self._embed, self._head = weight, self._product(module.head)
        self._positions = None if module.positions is None else module.positions.weight.detach()
        self._layers = [self._layer(block) for block in module.trunk.blocks]
        self._norm = self._norm_weights(module.trunk.norm)
        self._windows = {layer.window for layer in self._layers}
        self._addresses = _addresses(module)

        self._capacity, self._length, self._ragged = capacity, 0, False
        self._last_pos = min(capacity, module.config.max_position_embeddings) - 1
        self._ids, self._pos = (torch.zeros(batch_size, dtype=torch.long, device=device) for _ in range(2))
        self._slot = torch.zeros(1, dtype=torch.long, device=device)
        self._written = torch.zeros(capacity, batch_size, dtype=torch.long, device=device)
        shape = batch_size, 2 * c.num_key_value_heads, capacity, c.head_dim
        make = torch.zeros if static else torch.empty  # what is masked is read, and must be numbers
        both = [make(shape, dtype=self._wide, device=device) for _ in self._layers]
        self._cache = [(kv, *kv.chunk(2, 1)) for kv in both]
        self._key_pos = torch.zeros(batch_size, capacity, dtype=torch.long, device=device)
        self._mask = torch.zeros(batch_size, 1, 1, capacity, dtype=self._wide, device=device)  # added to the scores
        self._logits = torch.empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rotary: list[Tensor] = []
        if module.trunk.rotary is not None:
            tables = module.trunk.rotary.tables(torch.arange(self._last_pos + 1, device=device))
            self._rotary = [table.to(self._wide) for table in tables]

    def serves(self, module: GPT, batch_size: int, capacity: int) -> bool:
        """Whether it has this shape, and the module's weights still lie where it reads them."""
        same = (batch_size, capacity) == (len(self._ids), self._capacity)
        return same and self._addresses == _addresses(module)

    def start(self, cache: Cache, pos: Tensor | None) -> None:
        """Take over the prompts from `cache`; `pos (B, 1)` of each row's next token, None where all are the same."""
        n = self._length = cache.length
        for layer, (_, *kept) in enumerate(self._cache):
            for ours, theirs in zip(kept, cache.held(layer), strict=True):
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
        few = self._dtype.itemsize == 2 and len(self._ids) <= GEMV_ROWS
        with _without_onednn() if few else nullcontext():
            self._run(self._capacity if self._static else self._length)

    def _run(self, n: int) -> None:
        """One step over the first `n` slots of the cache, from `_ids` to `_logits` and the likeliest `_ids`."""
        self._mask.index_fill_(3, self._slot, 0.0)
        self._key_pos.index_copy_(1, self._slot, self._pos[:, None])
        masks = {window: self._visible(window, n) for window in self._windows}
        rotary = [table.index_select(0, self._pos) for table in self._rotary]
        x = F.embedding(self._ids, self._embed).to(self._wide)
        if self._positions is not None:
            x = x + F.embedding(self._pos, self._positions)
        for layer, cache in zip(self._layers, self._cache, strict=True):
            h = self._normed(x, layer.attn_norm)
            x = x + _linear(self._attend(h, layer, cache, n, rotary, masks[layer.window]), layer.o)
            h = self._normed(x, layer.mlp_norm)
            x = x + _linear(self._expand(h, layer), layer.down)
        self._logits = _linear(self._normed(x, self._norm), self._head).to(self._wide)
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

    def _normed(self, x: Tensor, norm: _Weights) -> Tensor:
        c = self._config
        if c.norm == "rms":
            return _rms_norm(x, norm.weight, c.norm_eps).to(self._dtype)
        return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, c.norm_eps).to(self._dtype)

    def _attend(
        self, h: Tensor, layer: _Layer, cache: tuple[Tensor, ...], n: int, rotary: list[Tensor], mask: Tensor | None
    ) -> Tensor:
        """What the heads give `(B, H Dh)` over the first `n` slots of `cache`, into which the new key and value go."""
        c = self._config
        heads, shared = c.num_attention_heads, c.num_key_value_heads
        qkv = _linear(h, layer.qkv).to(self._wide).view(len(h), -1, c.head_dim)
        if layer.qk_norm is not None:
            q, k, v = qkv.split((heads, shared, shared), 1)
            q_weight, k_weight = layer.qk_norm
            qkv = torch.cat((_rms_norm(q, q_weight, c.norm_eps), _rms_norm(k, k_weight, c.norm_eps), v), 1)
        if rotary:
            qk, (cos, sin) = qkv.narrow(1, 0, heads + shared), rotary
            torch.addcmul(qk.roll(c.head_dim // 2, -1).mul_(sin), qk, cos, out=qk)
        new, (both, keys, values) = qkv.narrow(1, heads, 2 * shared), cache
        if self._static:
            both.index_copy_(2, self._slot, new.unsqueeze(2))
        else:
            both.select(2, n - 1).copy_(new)
        # The query heads that share a key head are its queries: no key is repeated, and every kernel can do it.
        q = qkv.narrow(1, 0, heads).unflatten(1, (shared, -1))
        keys, values = keys.narrow(2, 0, n), values.narrow(2, 0, n)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask).flatten(1).to(self._dtype)

    def _expand(self, h: Tensor, layer: _Layer) -> Tensor:
        """The feed-forward network up to its last product."""
        activation = ACTIVATIONS[self._config.activation]
        inner = _linear(h, layer.inner)
        if not self._config.gated:
            return activation(inner)
        gate, up = inner.chunk(2, -1)
        return activation(gate) * up

    def _layer(self, block: nn.Module) -> _Layer:
        assert isinstance(block, Block)
        attn, mlp = block.attn, block.mlp
        qk_norm = None
        if self._config.qk_norm:
            qk_norm = self._norm_weights(attn.q_norm).weight, self._norm_weights(attn.k_norm).weight
        return _Layer(
            self._norm_weights(block.attn_norm),
            self._product(attn.q_proj, attn.k_proj, attn.v_proj),
            qk_norm,
            self._product(attn.o_proj),
            self._norm_weights(block.mlp_norm),
            self._product(mlp.up_proj) if mlp.gate_proj is None else self._product(mlp.gate_proj, mlp.up_proj),
            self._product(mlp.down_proj),
            attn.window,
        )

    def _norm_weights(self, norm: nn.Module) -> _Weights:
        assert isinstance(norm, RMSNorm | nn.LayerNorm)
        bias = norm.bias.detach().to(self._wide) if isinstance(norm, nn.LayerNorm) else None
        return _Weights(norm.weight.detach().to(self._wide), bias)

    def _product(self, *linears: nn.Linear) -> _Weights:
        """The weights of several products of the same input as those of one."""
        weights: list[Tensor] = [m.weight for m in linears]
        biases: list[Tensor] = [m.bias for m in linears if m.bias is not None]
        if self._pack:
            return _Weights(_packed(torch.cat(weights)), torch.cat(biases) if biases else None)
        return _Weights(_side_by_side(*weights), _side_by_side(*biases) if biases else None)


def _packing_pays(module: GPT, batch_size: int, steps: int) -> bool:
    """Whether packed matrices save more than packing them takes: with three rows and more, half of a step."""
    weight = module.embed.weight
    size = sum(parameter.nbytes for parameter in module.parameters() if parameter.dim() > 1)
    return (
        batch_size > GEMV_ROWS
        and steps >= PACKED_STEPS
        and size <= PACKED_BYTES
        and torch.backends.mkldnn.is_available()
        and (
            weight.dtype == torch.float32
            or (weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
    )


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


@contextmanager
def _without_onednn() -> Iterator[None]:
    """16-bit products of one or two rows by ATen itself, which reads the matrix once at the speed of the memory.

    oneDNN fills tiles that one row leaves empty, and reaches 15 of 38 GB/s. Where it has no bf16, ATen is used anyway.
    The switch is the process's: another thread's products take the same way meanwhile, and many rows are slower there.
    """
    with _switch.lock:
        if _switch.users == 0:
            _switch.before = torch._C._get_mkldnn_enabled()
            torch._C._set_mkldnn_enabled(False)
        _switch.users += 1
    try:
        yield
    finally:
        with _switch.lock:
            _switch.users -= 1
            if _switch.users == 0:
                torch._C._set_mkldnn_enabled(_switch.before)


def _linear(x: Tensor, weights: _Weights) -> Tensor:
    """`F.linear` of a few rows `(B, K)`, in fp32 on the CPU in the form that MKL is fast for.

    Its product of one row runs on one thread (14 of 38 GB/s), that of a batch of blocks of the matrix on all of them.
    """
    weight, bias = weights
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if x.device.type != "cpu" or x.dtype != torch.float32 or len(x) > MKL_ROWS or not torch.backends.mkl.is_available():
        return F.linear(x, weight, bias)
    if len(x) > 1:
        out = (weight @ x.t()).t()
    else:
        blocks = max(2, torch.get_num_threads())
        rows = len(weight) // blocks
        out = torch.bmm(weight[: blocks * rows].view(blocks, rows, -1), x.t().expand(blocks, -1, -1)).view(1, -1)
        if out.shape[1] < len(weight):
            out = torch.cat((out, F.linear(x, weight[blocks * rows :])), 1)
    return out if bias is None else out + bias


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.is_cuda:
        return F.rms_norm(x, weight.shape, weight, eps)  # one kernel there, ten on the CPU
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * scale).mul_(weight)


def _side_by_side(*parameters: Tensor) -> Tensor:
    """The parameters below each other in one tensor, which they become views of, where they are not yet.

    So nothing is held twice, and what is trained or loaded in place is seen in both.
    """
    first, rows = parameters[0], [len(parameter) for parameter in parameters]
    starts = [first.storage_offset() + start * first[0].numel() for start in accumulate(rows[:-1], initial=0)]
    found = {(parameter.untyped_storage().data_ptr(), parameter.is_contiguous()) for parameter in parameters}
    beside = [parameter.storage_offset() for parameter in parameters] == starts
    if beside and found == {(first.untyped_storage().data_ptr(), True)}:
        return first.detach().as_strided((sum(rows), *first.shape[1:]), first.stride())
    with torch.inference_mode(False), torch.no_grad():
        joined = torch.cat(parameters)
        for parameter, part in zip(parameters, joined.split(rows), strict=True):
            parameter.data = part
    return joined


def _addresses(module: GPT) -> tuple[int, ...]:
    return tuple(parameter.data_ptr() for parameter in module.parameters())
