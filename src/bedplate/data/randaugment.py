"""RandAugment of a batch, each picture by operations of its own; on one device."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.data.colour import LUMA

MAX_MAGNITUDE = 10
OPERATIONS = (
    *("identity", "brightness", "contrast", "posterize", "solarize", "autocontrast", "equalize"),  # curves of values
    *("color", "sharpness"),  # blends of pixels
    *("rotate", "shear-x", "shear-y", "translate-x", "translate-y"),  # moves
)
"""The 14 operations of the paper, by the names that it and Pillow have."""
_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
FIRST_CURVE, FIRST_BLEND, FIRST_MOVE = (_NUMBER[name] for name in ("brightness", "color", "rotate"))

ENHANCEMENT = 0.9
ROTATION = 30.0  # degrees
SHEAR = 0.3
TRANSLATION = 0.45  # of the side
POSTERIZED_BITS = 4
GREY = 128.0


def randaugment(pixels: Tensor, operations: int, magnitude: float) -> Tensor:
    """Apply `operations` operations, each drawn for each picture alone, uniformly of the 14 (Cubuk et al. 2019).

    arXiv 1909.13719, with the ranges of arXiv 1805.09501 (AutoAugment): at magnitude 10 the factors of brightness,
    contrast, color and sharpness are 0.1 or 1.9, a rotation is 30 degrees, a shear 0.3, a translation 0.45 of the side;
    posterize keeps 4 bits and solarize inverts everything. Signs are random. Moves uncover grey.

    Args:
        pixels: float32 (B, 3, H, W) in 0..1.
        magnitude: In 0..10.
    """
    for _ in range(operations):
        which = torch.randint(len(OPERATIONS), (len(pixels),), device=pixels.device)
        sign = torch.randint(0, 2, (len(pixels),), device=pixels.device) * 2.0 - 1
        pixels = apply(pixels, which, sign * magnitude / MAX_MAGNITUDE)
    return pixels


def apply(pixels: Tensor, which: Tensor, strength: Tensor) -> Tensor:
    """Apply to each picture the operation `which` (B,), a number into `OPERATIONS`, with `strength` (B,) in -1..1.

    Values are rounded to 8 bits, so that curves are tables of 256. Each of the three kinds of operations is one
    computation for all of its kind: a table, a blend, an affine sampling.

    Args:
        pixels: float32 (B, 3, H, W) in 0..1.

    Returns:
        (B, 3, H, W) float32 in 0..1.
    """
    levels = (pixels * 255).round_().clamp_(0, 255)
    levels = _where((which >= FIRST_CURVE) & (which < FIRST_BLEND), _curved, levels, which, strength)
    levels = _where((which >= FIRST_BLEND) & (which < FIRST_MOVE), _blended, levels, which, strength)
    return _where(which >= FIRST_MOVE, _moved, levels, which, strength) / 255


def _where(
    needed: Tensor, change: Callable[[Tensor, Tensor, Tensor], Tensor], levels: Tensor, which: Tensor, strength: Tensor
) -> Tensor:
    """`change(levels, which, strength)` of the pictures that need it.

    On the CPU only those are computed. An accelerator computes all and takes what is needed: to ask how many there are
    would be to wait for it.
    """
    if levels.device.type != "cpu":
        return torch.where(needed.view(-1, 1, 1, 1), change(levels, which, strength), levels)
    rows = needed.nonzero().squeeze(1)
    if len(rows):
        levels[rows] = change(levels[rows], which[rows], strength[rows])
    return levels


def _is(which: Tensor, name: str, ndim: int = 1) -> Tensor:
    return (which == _NUMBER[name]).view(-1, *[1] * (ndim - 1))


def _curved(levels: Tensor, which: Tensor, strength: Tensor) -> Tensor:
    """Operations that give each value of a channel another: a table of 256 for each picture and channel."""
    batch, channels = levels.shape[:2]
    index = levels.flatten(2).long()  # (B, C, HW)
    counts = torch.zeros(batch, channels, 256, device=levels.device).scatter_add_(
        2, index, torch.ones((), device=levels.device).expand(index.shape)
    )
    value = torch.arange(256, device=levels.device, dtype=torch.float32).expand(batch, channels, 256)
    factor, amount = (1 + ENHANCEMENT * strength).view(-1, 1, 1), strength.abs().view(-1, 1, 1)
    channel_means = (counts * value).sum(2) / counts.sum(2)
    grey = (channel_means[:, 0] * LUMA[0] + channel_means[:, 1] * LUMA[1] + channel_means[:, 2] * LUMA[2]).round()
    unit = 2.0 ** (POSTERIZED_BITS * amount).round()
    tables = {
        "brightness": value * factor,
        "contrast": torch.lerp(grey.view(-1, 1, 1).expand_as(value), value, factor),
        "posterize": (value / unit).floor() * unit,
        "solarize": torch.where(value < 256 * (1 - amount), value, 255 - value),
        "autocontrast": _autocontrast(counts, value),
        "equalize": _equalize(counts, value),
    }
    table = value
    for name, changed in tables.items():
        table = torch.where(_is(which, name, 3), changed, table)
    return table.round().clamp(0, 255).gather(2, index).view_as(levels)


def _autocontrast(counts: Tensor, value: Tensor) -> Tensor:
    """Stretch each channel's values to 0..255 (Pillow's `ImageOps.autocontrast`)."""
    low = torch.where(counts > 0, value, 255).amin(2, keepdim=True)
    high = torch.where(counts > 0, value, 0).amax(2, keepdim=True)
    return torch.where(high > low, (value - low) * (255 / (high - low).clamp(min=1)), value)


def _equalize(counts: Tensor, value: Tensor) -> Tensor:
    """Make each channel's values equally frequent (Pillow's `ImageOps.equalize`)."""
    last = counts.gather(2, torch.where(counts > 0, value, 0).amax(2, keepdim=True).long())
    step = ((counts.sum(2, keepdim=True) - last) / 255).floor()
    before = counts.cumsum(2) - counts
    return torch.where(step > 0, ((before + (step / 2).floor()) / step.clamp(min=1)).floor(), value)


def _blended(levels: Tensor, which: Tensor, strength: Tensor) -> Tensor:
    """Blend or part pixels from their own grey ("color") or from their smoothed surroundings ("sharpness")."""
    red, green, blue = levels.unbind(1)
    grey = (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]).round_().unsqueeze(1)
    around = F.avg_pool2d(levels, 3, stride=1, padding=1, count_include_pad=False)
    smooth = ((around * 9 + levels * 4) / 13).round_()  # Pillow's kernel: 5 in the middle, 1 around it
    factor = (1 + ENHANCEMENT * strength).view(-1, 1, 1, 1)
    return torch.lerp(torch.where(_is(which, "sharpness", 4), smooth, grey), levels, factor).clamp_(0, 255)


def _moved(levels: Tensor, which: Tensor, strength: Tensor) -> Tensor:
    """Rotate, shear or translate about the middle, sampled bilinearly, with grey around."""
    height, width = levels.shape[2:]
    angle = torch.where(_is(which, "rotate"), strength * math.radians(ROTATION), 0.0)
    # Coordinates of affine_grid run from -1 to 1 along both sides: what crosses from one to the other is scaled.
    x_of_y = torch.where(_is(which, "shear-x"), strength * SHEAR, 0.0) - angle.sin()
    y_of_x = torch.where(_is(which, "shear-y"), strength * SHEAR, 0.0) + angle.sin()
    right = torch.where(_is(which, "translate-x"), strength * TRANSLATION * 2, 0.0)
    down = torch.where(_is(which, "translate-y"), strength * TRANSLATION * 2, 0.0)
    theta = torch.stack(
        [angle.cos(), x_of_y * (height / width), right, y_of_x * (width / height), angle.cos(), down], 1
    ).view(-1, 2, 3)
    with torch.autocast(levels.device.type, enabled=False):  # half precision would misplace what is moved
        grid = F.affine_grid(theta, list(levels.shape), align_corners=False)
        return F.grid_sample(levels - GREY, grid, align_corners=False) + GREY
