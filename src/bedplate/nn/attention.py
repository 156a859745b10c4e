"""Multi-head attention with grouped keys, optional QK-norm and rotary positions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import has_torch_function

from bedplate.nn.cache import Cache
from bedplate.nn.config import TrunkConfig
from bedplate.nn.mask import Keys, pick, visible
from bedplate.nn.norm import RMSNorm
from bedplate.nn.rotary import rotate
from bedplate.nn.span import Span

Tables = tuple[Tensor, Tensor]  # cos and sin of rotary positions
CPU_HAS_BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
WRITTEN_OUT = 512  # keys up to which attention in batched products trains faster in bf16 on a CPU than PyTorch's kernel

READ_WRITTEN_OUT = 256  # the same of reading, where every query sees every key


@dataclass(slots=True)
class Context:
    """What all blocks share in one pass through the trunk: rotary tables, masks and the cache."""

    queries: Keys
    keys: Keys
    length: int  # keys in all
    is_causal: bool  # PyTorch's fused causal kernel is exact
    unmasked: bool  # every query sees every key
    rotary: Tables | None
    local_rotary: Tables | None  # of layers with a window
    cache: Cache | None
    at: Tensor | None = None  # (B,) or (B, K): the tokens of each row whose output is wanted; None for all
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(span: Span, cache: Cache | None, rotary: Tables | None, local_rotary: Tables | None = None) -> Context:
        """Decide from static facts alone which kernel serves the span. By default, all layers have one `rotary`."""
        n, local_rotary = span.x.shape[1], local_rotary or rotary
        if cache is None or cache.length == 0:
            queries, keys = cache.extend(span) if cache is not None else (Keys.of(span),) * 2
            return Context(queries, keys, n, span.kind == "causal", span.kind == "full", rotary, local_rotary, cache)
        queries, keys = cache.extend(span)
        # is_causal aligns the first query with the first key, so it is wrong for a span behind a cache; but a single
        # token behind a plain cache sees everything.
        return Context(queries, keys, cache.length, False, n == 1 and cache.plain, rotary, local_rotary, cache)

    def last(self, at: Tensor) -> Context:
        """What the last block gets when of each row only the tokens at `at (B,)` or `(B, K)` are wanted.

        Its queries and its MLP are then computed for these tokens alone. No cache, no padding there.
        """
        assert self.cache is None
        return replace(self, queries=self.queries.at(at), is_causal=False, at=at, _masks={})

    def query_rotary(self, tables: Tables) -> Tables:
        """Of rotary tables those of the queries, `(N | B, N or K, 1, head_dim)`."""
        if self.at is None:
            return tables
        cos, sin = (pick(t if t.dim() == 4 else t.expand(len(self.at), *t.shape), self.at) for t in tables)
        return cos, sin

    def mask(self, window: int | None) -> tuple[Tensor | None, bool]:
        """(boolean mask or None, is_causal) for layers with this window; each mask is made once and shared.

        The trunk asks before its blocks do: a compiled block that makes a mask is another than one that finds it.
        """
        if window is not None and self.length <= window + 1:
            window = None  # positions of a document are consecutive: nothing is out of reach
        if window is None and (self.is_causal or self.unmasked):
            return None, self.is_causal
        if window not in self._masks:
            self._masks[window] = visible(self.queries, self.keys, window, self.at)
        return self._masks[window], False


class Attention(nn.Module):
    """Scaled dot-product attention, `(B, N, D) -> (B, N, D)`, or `(B, K, D)` where K tokens of each row are wanted."""

    def __init__(self, config: TrunkConfig, layer: int) -> None:
        super().__init__()
        c = config
        self.layer, self.head_dim, self.dropout = layer, c.head_dim, c.dropout
        self.window = c.windows[layer] if c.windows else None
        self.grouped = c.num_key_value_heads != c.num_attention_heads
        query_size, key_size = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, query_size, bias=c.attention_bias)
        self.k_proj = nn.Linear(c.hidden_size, key_size, bias=c.attention_bias)
        self.v_proj = nn.Linear(c.hidden_size, key_size, bias=c.attention_bias)
        self.o_proj = nn.Linear(query_size, c.hidden_size, bias=c.output_bias)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        heads = *x.shape[:2], -1, self.head_dim
        asked = pick(x, ctx.at)
        q = self.q_norm(self.q_proj(asked).view(*asked.shape[:2], -1, self.head_dim))
        k = self.k_norm(self.k_proj(x).view(heads))
        v = self.v_proj(x).view(heads)
        rotary = ctx.rotary if self.window is None else ctx.local_rotary
        if rotary is not None:
            q, k = rotate(q, *ctx.query_rotary(rotary)), rotate(k, *rotary)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if ctx.cache is not None:
            k, v = ctx.cache.update(self.layer, k, v)
        mask, is_causal = ctx.mask(self.window)
        dropout = self.dropout if self.training else 0.0
        if _written_out_pays(q, k) or (mask is None and not is_causal and _written_out_reads_faster(q, k)):
            out = _written_out(q, k, v, mask, is_causal, dropout)
        else:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, enable_gqa=self.grouped
            )
        return self.o_proj(out.transpose(1, 2).flatten(2))


def writes_out(keys: int) -> bool:
    """Whether this CPU, training in bf16, keeps the softmax of every head over that many keys."""
    return CPU_HAS_BF16 and keys <= WRITTEN_OUT


def _written_out_pays(q: Tensor, k: Tensor) -> bool:
    """Whether this is training in bf16 on a CPU that multiplies it, over few keys.

    The backward pass of PyTorch's kernel multiplies small 16-bit tiles of one head at a time there: with 17 tokens it
    takes ten times as long as batched products, with 65 six times, with 197 twice and a half, with 512 1.4 times
    (least times, where freed memory is kept: `train.hardware`).
    """
    return (
        q.is_cpu
        and writes_out(k.shape[2])
        and torch.is_grad_enabled()
        and q.requires_grad
        and (torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype) == torch.bfloat16
    )


def _written_out_reads_faster(q: Tensor, k: Tensor) -> bool:
    """Whether this is reading in bf16 on a CPU that multiplies it, all of a few keys by as many queries.

    Batched products and a softmax take 0.6 of the time of PyTorch's kernel over 65 keys, 0.8 over 197, 1.2 over 512.
    Their scores are rounded to bf16, as in training on a CPU: of the output 0.4 to 0.9 %, where the kernel loses 0.2.
    Compiled, they would break the graph, and a function mode looks for the kernel (`models.attention_maps`).
    """
    return (
        q.is_cpu
        and CPU_HAS_BF16
        and q.shape[2] == k.shape[2] <= READ_WRITTEN_OUT
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not has_torch_function((q, k))
        and q.dtype == torch.bfloat16
    )


@torch.compiler.disable  # in one kernel with QK-norm and rotation, TorchInductor 2.13 makes NaN of it in bf16 on a CPU
def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, dropout: float = 0.0) -> Tensor:
    """Attention of `q (B, H, N, Dh)` to `k, v (B, Hkv, M, Dh)`; `mask` is True where a query sees a key."""
    q, k, v, groups = q.bfloat16(), k.bfloat16(), v.bfloat16(), q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if is_causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    # Added, for to fill by a boolean mask takes twice as long or more. Finite, for padding may see nothing.
    bias = None if mask is None else (mask.bfloat16() - 1) * torch.finfo(torch.bfloat16).max
    return _WrittenOut.apply(q * q.shape[-1] ** -0.5, k, v, bias, dropout)


class _WrittenOut(torch.autograd.Function):
    """softmax(q k^T) v in batched products, `q` scaled before; autograd would keep the scores and turn k's gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # it would take the softmax in fp32
            scores = torch.matmul(q, k.transpose(2, 3))
            if bias is not None:
                scores += bias
            weights = torch.softmax(scores, -1)
            kept = F.dropout(torch.ones_like(weights), dropout) if dropout else None
            ctx.save_for_backward(q, k, v, weights, kept)
            return torch.matmul(weights if kept is None else weights * kept, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        q, k, v, weights, kept = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            used, grad_weights = weights, torch.matmul(grad, v.transpose(2, 3))
            if kept is not None:
                used, grad_weights = weights * kept, grad_weights * kept
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_q, grad_k = torch.matmul(grad_scores, k), torch.matmul(grad_scores.transpose(2, 3), q)
            return grad_q, grad_k, torch.matmul(used.transpose(2, 3), grad), None, None
