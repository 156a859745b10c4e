"""One layer: attention and a feed-forward network, each behind a norm and added to the residual stream."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.nn.attention import Attention, Context
from bedplate.nn.config import TrunkConfig
from bedplate.nn.mask import pick
from bedplate.nn.norm import RMSNorm, for_matmul


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form (arXiv 1606.08415, section 2), in x's dtype.

    0.5 (1 + tanh z) is sigmoid(2 z), and on the CPU an exp costs half a tanh. That pays only where the rest is fused.
    """
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    y = x.float()
    return (y * torch.sigmoid(2 * math.sqrt(2 / math.pi) * y * (1 + 0.044715 * y * y))).to(x.dtype)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), OpenAI's stand-in for GELU (arXiv 1606.08415, section 2), in CLIP.

    Written with SiLU, whose gradient is one kernel, it takes fewer passes over memory where nothing is fused.
    """
    return F.silu(1.702 * x) / 1.702


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
}


def make_norm(config: TrunkConfig) -> nn.Module:
    """The trunk's norm over the hidden size."""
    if config.norm == "rms":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, config.norm_eps, bias=config.norm_bias)


class MLP(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) where gated (GLU variants, arXiv 2002.05202)."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        d, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(d, inner, bias=bias) if config.gated else None
        self.up_proj = nn.Linear(d, inner, bias=bias)
        self.down_proj = nn.Linear(inner, d, bias=bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.activation(self.up_proj(x)))
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm residual layer, `(B, N, D) -> (B, N, D)`, or `(B, K, D)` where K tokens of each row are wanted."""

    def __init__(self, config: TrunkConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = make_norm(config) if layer or config.first_norm else nn.Identity()
        self.attn = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = pick(x, ctx.at) + self.dropout(self.attn(for_matmul(self.attn_norm(x)), ctx))
        return x + self.dropout(self.mlp(for_matmul(self.mlp_norm(x))))


class PostNormBlock(Block):
    """The same with each norm behind the residual sum (arXiv 1706.03762), as in BERT."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = self.attn_norm(pick(x, ctx.at) + self.dropout(self.attn(for_matmul(x), ctx)))
        return self.mlp_norm(x + self.dropout(self.mlp(for_matmul(x))))
