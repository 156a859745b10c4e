"""Rotary position embeddings (RoFormer, arXiv 2104.09864) and the rules that stretch them to longer contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

RopeType = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Names and defaults are those of `rope_parameters` in a `transformers` config file.

    `original_max_position_embeddings` is the context that the model was first trained with.
    """

    rope_type: RopeType = "default"
    rope_theta: float = 10_000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True


def inverse_frequencies(config: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Inverse frequencies `(head_dim / 2,)` fp32 in radians a position, and the factor on cos and sin."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    inv = 1.0 / config.rope_theta**exponents
    match config.rope_type:
        case "default":
            return inv, 1.0
        case "linear":
            return inv / config.factor, 1.0
        case "llama3":
            return _llama3(config, inv), 1.0
        case "yarn":
            return _yarn(config, inv, head_dim)


def _llama3(config: RopeConfig, inv: Tensor) -> Tensor:
    """Llama 3.1: slow frequencies are divided by `factor`, fast ones kept, those between blended."""
    turns = config.original_max_position_embeddings * inv / (2 * math.pi)  # full turns within the first context
    smooth = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return (1 - smooth) * inv / config.factor + smooth * inv


def _yarn(config: RopeConfig, inv: Tensor, head_dim: int) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): as llama3, but the blend is linear in the dimension, and attention is sharpened."""
    base, context = config.rope_theta, config.original_max_position_embeddings

    def dimension(
        turns: float,
    ) -> float:  # the (fractional) index whose frequency makes `turns` turns within the context
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2).float() - low) / (high - low or 0.001)
    keep = 1 - ramp.clamp(0, 1)
    blended = inv / config.factor * (1 - keep) + inv * keep

    def mscale(weight: float = 1.0) -> float:
        return 1.0 if config.factor <= 1 else 0.1 * weight * math.log(config.factor) + 1.0

    scale = config.attention_factor
    if scale is None and config.mscale and config.mscale_all_dim:
        scale = mscale(config.mscale) / mscale(config.mscale_all_dim)
    return blended, mscale() if scale is None else scale


class Rotary:
    """Makes a span's cos and sin tables. Not a module: its frequencies stay fp32 whatever weights are cast to."""

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        with torch.device("cpu"):  # also while a model is built on the meta device
            self._inv, self._scale = inverse_frequencies(config, head_dim)

    def tables(self, pos: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin, each `(N | B, N, 1, head_dim)` fp32, for `pos (N | B, N)`: what `rotate` takes."""
        if self._inv.device != pos.device:
            self._inv = self._inv.to(pos.device)
        angles = (pos[..., None].float() * self._inv).unsqueeze(-2)
        cos, sin = angles.cos() * self._scale, angles.sin() * self._scale
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the rotation back: nothing but the tables is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        cos, sin = ctx.saved_tensors
        return _swap_halves(grad).mul_(sin).neg_().addcmul_(grad, cos), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _swap_halves(x).mul_(sin).addcmul_(x, cos)


def _swap_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((second, first), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `x (B, N, H, Dh)`; dimension i is paired with i + Dh / 2, as in Hugging Face's checkpoints."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return _Rotate.apply(x, cos, sin) if torch.is_grad_enabled() else _rotated(x, cos, sin)
