"""A discrete image tokenizer: a convolutional encoder and decoder around finite scalar quantisation (FSQ)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.errors import InputError

EPS = 1e-3  # keeps what is bounded off the edges, where rounding would leave the range
NARROWEST = 16  # channels of a map at least
GROUP = 16  # channels that share a group norm's statistics


@dataclass(frozen=True, slots=True)
class ImageTokenizerConfig:
    """The shape of an image tokenizer.

    Attributes:
        image_size: (height, width) in pixels.
        patch: side in pixels of what one code stands for, a power of two.
        levels: values that each dimension of a code takes; their product is the size of the codebook.
        width: channels of the map of codes; a map of twice the resolution has half of them.
        blocks: residual blocks at each resolution, in the encoder and in the decoder.
    """

    image_size: tuple[int, int]
    patch: int = 8
    levels: tuple[int, ...] = (8, 5, 5, 5)
    width: int = 128
    blocks: int = 1
    num_channels: int = 3

    def __post_init__(self) -> None:
        if self.patch < 2 or self.patch & (self.patch - 1):
            raise InputError(f"patch={self.patch} is not a power of two from 2 on, as halving needs")
        if any(side % self.patch for side in self.image_size):
            height, width = self.image_size
            raise InputError(f"image_size={height}x{width} is not a multiple of patch={self.patch}")
        if not self.levels or any(not 3 <= level <= 256 for level in self.levels):
            raise InputError(f"levels={list(self.levels)}: give one number or more, each from 3 to 256")
        if self.width % GROUP:
            raise InputError(f"width={self.width} is not a multiple of {GROUP}")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of codes."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def codebook_size(self) -> int:
        """How many codes there are."""
        return math.prod(self.levels)

    @property
    def widths(self) -> list[int]:
        """Channels of each map, from half the picture's resolution down to that of the codes."""
        depth = int(math.log2(self.patch))
        return [max(NARROWEST, self.width >> (depth - 1 - n)) // GROUP * GROUP for n in range(depth)]


class FSQ:
    """Finite scalar quantisation (arXiv 2309.15505): each channel is bounded and rounded to one of a few values.

    The codebook is implicit: a code is the digits of its channels, the first the fastest. Nothing is learnt here, and
    no code can die for want of a loss. Not a module: its constants stay fp32 whatever weights are cast to.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        with torch.device("cpu"):  # also while a model is built on the meta device
            self.levels = torch.tensor(levels)
            self.basis = torch.tensor([math.prod(levels[:n]) for n in range(len(levels))])
            self.half = (self.levels - 1) * (1 - EPS) / 2
            self.offset = torch.where(self.levels % 2 == 1, 0.0, 0.5)  # an even number of values has no middle one
            self.shift = (self.offset / self.half).atanh()
            self.centre = (self.levels // 2).float()

    def __call__(self, z: Tensor) -> Tensor:
        """The nearest values, from -1 to 1, to the bounded `z (..., len(levels))`, of which they have the gradient."""
        self._follow(z.device)
        bounded = (z.float() + self.shift).tanh() * self.half - self.offset
        return (bounded + (bounded.round() - bounded).detach()) / self.centre

    def codes(self, values: Tensor) -> Tensor:
        """The codes `(...)` int64 of values `(..., len(levels))` that a call gave."""
        self._follow(values.device)
        digits = (values * self.centre + self.centre).round().long()
        return (digits * self.basis).sum(-1)

    def values(self, codes: Tensor) -> Tensor:
        """The inverse of `codes`."""
        self._follow(codes.device)
        digits = codes[..., None] // self.basis % self.levels
        return (digits - self.centre) / self.centre

    def _follow(self, device: torch.device) -> None:
        if self.basis.device != device:
            with torch.inference_mode(False):  # whoever asks first, training may use them
                for name, value in vars(self).items():
                    setattr(self, name, value.to(device))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each behind a group norm and SiLU, added to what they read: `(B, C, H, W)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(width // GROUP, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second_norm = nn.GroupNorm(width // GROUP, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(F.silu(self.first_norm(x)))
        return x + self.second(F.silu(self.second_norm(inner)))


class ImageTokenizer(nn.Module):
    """Pixels to codes and back; pixels are normalised, around -1 to 1."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = c = config
        widths, inner = c.widths, c.num_channels
        down: list[nn.Module] = []
        for width in widths:
            down += [nn.Conv2d(inner, width, 3, stride=2, padding=1), *(ResidualBlock(width) for _ in range(c.blocks))]
            inner = width
        self.encoder = nn.Sequential(*down)
        self.encoder_norm = nn.GroupNorm(inner // GROUP, inner)
        self.to_code = nn.Conv2d(inner, len(c.levels), 1)
        self.quantizer = FSQ(c.levels)
        self.from_code = nn.Conv2d(len(c.levels), inner, 3, padding=1)
        up: list[nn.Module] = [ResidualBlock(inner) for _ in range(c.blocks)]
        for width in reversed(widths[:-1]):
            # A product before the map grows costs a quarter of one behind it; the block smooths the steps.
            up += [nn.Conv2d(inner, width, 1), nn.Upsample(scale_factor=2)]
            up += [ResidualBlock(width) for _ in range(c.blocks)]
            inner = width
        self.decoder = nn.Sequential(*up)
        self.decoder_norm = nn.GroupNorm(inner // GROUP, inner)
        self.to_pixels = nn.Conv2d(inner, 4 * c.num_channels, 3, padding=1)

    @property
    def device(self) -> torch.device:
        return self.to_code.weight.device

    @property
    def codebook_size(self) -> int:
        """How many codes there are."""
        return self.config.codebook_size

    def forward(self, pixels: Tensor) -> Tensor:
        """What `pixels (B, C, H, W)` become through their codes, of the same shape, with gradients."""
        return self._decode(self._quantized(pixels))

    def encode(self, pixels: Tensor) -> Tensor:
        """Codes `(B, rows, columns)` int64 of `pixels (B, C, H, W)`."""
        return self.quantizer.codes(self._quantized(pixels))

    def decode(self, codes: Tensor) -> Tensor:
        """Pixels `(B, C, H, W)` of codes `(B, rows, columns)`."""
        return self._decode(self.quantizer.values(codes))

    def _quantized(self, pixels: Tensor) -> Tensor:
        """Values of the codes `(B, rows, columns, len(levels))`."""
        # With channels last the convolutions take less time, on the CPU as on GPUs.
        x = self.encoder(pixels.contiguous(memory_format=torch.channels_last))
        return self.quantizer(self.to_code(F.silu(self.encoder_norm(x))).permute(0, 2, 3, 1))

    def _decode(self, values: Tensor) -> Tensor:
        x = self.from_code(values.to(self.from_code.weight.dtype).permute(0, 3, 1, 2))
        x = self.to_pixels(F.silu(self.decoder_norm(self.decoder(x))))
        return F.pixel_shuffle(x, 2)

    def flops_per_image(self) -> int:
        """Training FLOPs an image: 6 a weight of every convolution and place of its output."""
        total, (height, width) = 0, self.config.image_size
        rows, columns = self.config.grid
        for name, module in self.named_modules():
            if name.startswith("encoder.") and isinstance(module, nn.Conv2d):
                height, width = height // module.stride[0], width // module.stride[1]
                total += module.weight.numel() * height * width
            elif isinstance(module, nn.Upsample):
                rows, columns = 2 * rows, 2 * columns
            elif isinstance(module, nn.Conv2d):  # of the decoder, but for the one to the codes, which has their grid
                total += module.weight.numel() * rows * columns
        return 6 * total

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fresh weights, a pure function of the seed; see `initial_weights`."""
        parameters = dict(self.named_parameters())
        for name, value in self.initial_weights(seed):
            parameters[name].copy_(value)

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Fresh weights by name: normal with 1 / sqrt(fan in), a block's second convolution zero, gains 1, biases 0."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                yield name, torch.full(parameter.shape, 1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("second.weight"):
                yield name, torch.zeros(parameter.shape)
            else:
                scale = math.prod(parameter.shape[1:]) ** -0.5
                yield name, torch.randn(parameter.shape, generator=generator) * scale
