"""From stored pixels to what a network reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels `(B, C, H, W)`, uint8 or floats in 0..1, as fp32 less `mean (C)`, over `std (C)`."""
    scale = 1 / 255 if pixels.dtype == torch.uint8 else 1.0
    shape = (-1, 1, 1)
    offset = torch.tensor(mean, device=pixels.device).view(shape)
    factor = torch.tensor(std, device=pixels.device).view(shape)
    return (pixels.float() * scale - offset) / factor
