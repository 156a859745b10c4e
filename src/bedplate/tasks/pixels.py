"""From stored pixels to what a network reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels `(B, C, H, W)`, uint8 or floats in 0..1, as fp32 less `mean (C)`, over `std (C)`."""
    scale = 1 / 255 if pixels.dtype == torch.uint8 else 1.0
    offset, factor = (_by_channel(tuple(values), pixels.device) for values in (mean, std))
    return (pixels.float() * scale - offset) / factor


def as_bytes(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised pixels `(B, C, H, W)` as uint8: the inverse of `normalize`, clipped."""
    shape = (-1, 1, 1)
    factor, offset = (torch.tensor(each, device=values.device).view(shape) for each in (std, mean))
    return ((values.float() * factor + offset) * 255).round().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`(C, 1, 1)`, kept: to copy it anew for each batch would make a GPU wait."""
    with torch.inference_mode(False):  # whoever asks first, training may use it
        return torch.tensor(values, device=device).view(-1, 1, 1)
