"""What pixels look like: colour jitter as one matrix a picture; batches on one device."""

import math
from functools import cache

import torch
from torch import Tensor

from bedplate.data.geometry import uniform

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a pixel's grey (ITU-R BT.601, as in Pillow's mode L)."""
YIQ = (LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""Rows: brightness, and the two axes of colour that hue turns in (NTSC)."""


def jitter(pixels: Tensor, strength: float, hue: float, grey: float = 0.0) -> Tensor:
    """Change the brightness, contrast and saturation of each picture by random factors, and turn its hue.

    The factors are uniform in 1 - `strength`..1 + `strength`, the turn is uniform within `hue` of a circle (Howard
    2013, arXiv 1312.5402; the form of the ranges is that of Chen et al. 2020, arXiv 2002.05709, appendix A).

    Args:
        pixels: float32 (B, 3, H, W) in 0..1.
        strength: In 0..1.
        hue: In 0..0.5.
        grey: Probability that a picture loses its colours.
    """
    count, device = len(pixels), pixels.device
    brightness, contrast, saturation = (uniform(count, 1 - strength, 1 + strength, device) for _ in range(3))
    turn = uniform(count, -hue, hue, device)
    if grey:
        saturation = saturation * (torch.rand(count, device=device) >= grey)
    return change_colours(pixels, brightness, contrast, saturation, turn)


def change_colours(pixels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, turn: Tensor) -> Tensor:
    """Apply brightness, contrast, saturation and hue in this order, as one affine map of the colours a picture.

    The first three are Pillow's `ImageEnhance` (blends with black, with the picture's mean grey, with each pixel's own
    grey), except that values are clipped to 0..1 once, at the end. Hue turns the colours about the grey axis in YIQ,
    which keeps every pixel's grey.

    Args:
        pixels: float32 (B, 3, H, W) in 0..1.
        brightness, contrast, saturation: (B,) factors; 1 changes nothing.
        turn: (B,) in turns of the colour circle; 0 changes nothing.
    """
    batch, channels, height, width = pixels.shape
    device = pixels.device
    yiq, rgb = _yiq(device)
    luma = yiq[:1]
    angle = 2 * math.pi * turn
    cosine, sine, zero, one = angle.cos(), angle.sin(), torch.zeros_like(turn), torch.ones_like(turn)
    rotation = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], 1).view(batch, 3, 3)
    with torch.autocast(device.type, enabled=False):
        toned = torch.lerp(luma.expand(3, 3), torch.eye(3, device=device), saturation.view(-1, 1, 1))
        toned = rgb @ rotation @ yiq @ toned
        grey = pixels.mean((2, 3)) @ luma.T * brightness.unsqueeze(1)  # (B, 1), the mean that contrast keeps
        matrix = toned * (brightness * contrast).view(-1, 1, 1)
        # Saturation and hue leave greys alone, so contrast's offset passes through them.
        offset = (grey * (1 - contrast).unsqueeze(1)).unsqueeze(1)
        changed = torch.baddbmm(offset, matrix, pixels.view(batch, channels, height * width))
    return changed.clamp_(0, 1).view_as(pixels)


@cache  # copied to the device once: copying waits for it
def _yiq(device: torch.device) -> tuple[Tensor, Tensor]:
    """The matrices (3, 3) from red, green and blue to YIQ and back."""
    matrix = torch.tensor(YIQ, dtype=torch.float64)
    return matrix.float().to(device), matrix.inverse().float().to(device)
