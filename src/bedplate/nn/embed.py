"""From pixels to tokens."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.errors import InputError

Stem = Literal["patch", "conv", "residual"]


class PatchEmbed(nn.Module):
    """One linear product of each patch's pixels (arXiv 2010.11929, equation 1): `(B, C, H, W) -> (B, N, D)`.

    Patches come row by row. The weight is kept as a convolution's, `(D, C, P, P)`, as in `transformers`.
    """

    def __init__(self, num_channels: int, patch_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(num_channels, hidden_size, patch_size, stride=patch_size, bias=bias)

    def forward(self, pixels: Tensor) -> Tensor:
        # As a product of rows: on the CPU it takes half the time of a convolution whose stride is its size.
        return F.linear(patchify(pixels, self.patch_size), self.projection.weight.flatten(1), self.projection.bias)


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2 down to the patch grid, then a linear product (arXiv 2106.14881, figure 1).

    Its patches see over their borders, which spares small networks on little data the learning of edges. Widths double
    up to half of D; a norm of each convolution's whole output keeps examples independent of their batch.
    """

    def __init__(self, num_channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        depth = int(math.log2(patch_size))
        assert patch_size == 2**depth, "a stem of stride 2 needs a power of two"
        layers: list[nn.Module] = []
        inner = num_channels
        for level in range(depth):
            width = max(8, hidden_size // 2 ** (depth - level))
            layers += [nn.Conv2d(inner, width, 3, stride=2, padding=1, bias=False), MapNorm(width), nn.GELU()]
            inner = width
        self.layers = nn.Sequential(*layers)
        self.projection = nn.Conv2d(inner, hidden_size, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        # With channels last the convolutions take three quarters of the time, on the CPU as on GPUs.
        x = self.layers(pixels.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)
        return F.linear(x, self.projection.weight.flatten(1), self.projection.bias)


class ResidualStem(nn.Module):
    """A small residual network down to the patch grid: the hybrid of arXiv 2010.11929, section 3.1.

    A 3x3 convolution of stride 2, then a block of arXiv 1512.03385 of stride 2 for each further halving, with the
    averaged shortcut of arXiv 1812.01187 (ResNet-D). As in the hybrid, convolutions are standardised and norms are of
    groups, so examples stay independent of their batch. Widths double up to D. It costs as much as several blocks.
    """

    def __init__(self, num_channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        depth = int(math.log2(patch_size))
        assert patch_size == 2**depth, "a stem of stride 2 needs a power of two"
        widths = [min(hidden_size, max(32, hidden_size // 2 ** (depth - 1 - level))) for level in range(depth)]
        first = StandardConv(num_channels, widths[0], 3, stride=2, padding=1, bias=False)
        blocks = [ResidualBlock(inner, width) for inner, width in pairwise(widths)]
        self.layers = nn.Sequential(first, MapNorm(widths[0], 8), nn.GELU(), *blocks)
        self.projection = nn.Conv2d(widths[-1], hidden_size, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.layers(pixels.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)
        return F.linear(x, self.projection.weight.flatten(1), self.projection.bias)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, `(B, C, H, W) -> (B, D, H / 2, W / 2)`."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.down = StandardConv(inner, width, 3, stride=2, padding=1, bias=False)
        self.down_norm = MapNorm(width, 8)
        self.conv = StandardConv(width, width, 3, padding=1, bias=False)
        self.conv_norm = MapNorm(width, 8)
        self.shortcut = StandardConv(inner, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_norm(self.conv(F.gelu(self.down_norm(self.down(x)))))
        return F.gelu(y + self.shortcut(F.avg_pool2d(x, 2, ceil_mode=True)))


class StandardConv(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1 / fan in (arXiv 1903.10520).

    Norms of groups alone learn more slowly than batch norm; with such filters they do not.
    """

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight.float(), (1, 2, 3), keepdim=True, correction=0)
        fan_in = self.weight[0].numel()
        weight = (self.weight - mean) * torch.rsqrt(variance * fan_in + 1e-5)
        return self._conv_forward(x, weight.to(self.weight.dtype), self.bias)


class MapNorm(nn.GroupNorm):
    """A norm of each example's map, whole or in groups of channels, in its own dtype with sums in fp32.

    Autocast would have maps in fp32 from here to the next convolution: twice the memory traffic for values that are
    rounded there in any case.
    """

    def __init__(self, width: int, groups: int = 1) -> None:
        super().__init__(math.gcd(groups, width), width)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def make_stem(
    stem: Stem, num_channels: int, patch_size: int, hidden_size: int, bias: bool = True
) -> PatchEmbed | ConvStem | ResidualStem:
    """What turns an image into the tokens of a trunk; `bias`: whether the product of a patch has one."""
    if stem == "patch":
        return PatchEmbed(num_channels, patch_size, hidden_size, bias)
    return (ConvStem if stem == "conv" else ResidualStem)(num_channels, patch_size, hidden_size)


def patchify(pixels: Tensor, patch_size: int) -> Tensor:
    """`(B, C, H, W)` as rows of patches `(B, N, C P P)`, the values of each in the order (C, P, P)."""
    b, c, height, width = pixels.shape
    p = patch_size
    blocks = pixels.reshape(b, c, height // p, p, width // p, p)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(b, (height // p) * (width // p), c * p * p)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """The inverse of `patchify`: `(B, N, C P P)` of a grid of (rows, columns) to `(B, C, H, W)`."""
    b, _, values = patches.shape
    (rows, columns), p = grid, patch_size
    blocks = patches.reshape(b, rows, columns, values // p**2, p, p)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(b, values // p**2, rows * p, columns * p)


def sincos_positions(grid: tuple[int, int], hidden_size: int) -> Tensor:
    """Fixed positions `(1, 1 + N, D)` of a class token, whose are zero, and of a grid of (rows, columns).

    A quarter of D each for sine and cosine of the column, then of the row, at wavelengths from 2 pi to 10,000 * 2 pi:
    those of MoCo v3 (arXiv 2104.02057, section 5) and MAE.
    """
    if hidden_size % 4:
        raise InputError(f"hidden_size={hidden_size} must be a multiple of 4 for positions in two dimensions")
    quarter = hidden_size // 4
    frequencies = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )
    parts = []
    for place in (columns, rows):
        angles = place.reshape(-1, 1) * frequencies
        parts += [angles.sin(), angles.cos()]
    table = torch.cat(parts, 1).float()
    return torch.cat([torch.zeros(1, hidden_size), table])[None]


def interpolate_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions `(1, 1 + N, D)` of a grid for another, bicubic as in `transformers`; the class token keeps its own."""
    if old == new:
        return positions
    first, table = positions[:, :1], positions[:, 1:]
    image = table.reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    resized = F.interpolate(image, size=new, mode="bicubic", align_corners=False)
    return torch.cat([first, resized.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)], 1)
