"""ViT: images as a trunk reads them, and their classifier (arXiv 2010.11929)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from bedplate.errors import InputError
from bedplate.nn.block import make_norm
from bedplate.nn.config import TrunkConfig
from bedplate.nn.embed import Stem, interpolate_positions, make_stem, sincos_positions
from bedplate.nn.span import Span
from bedplate.nn.trunk import Trunk

ImagePooling = Literal["cls", "mean"]


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The shape of a vision model, in the names of `transformers`' config files.

    Attributes:
        image_size: (height, width) in pixels that its positions are for, multiples of `patch_size`.
        stem: "patch", ViT's own; "conv" and "residual", departures that `transformers` does not know (see
            `nn.embed.ConvStem` and `ResidualStem`).
        pooling: what a classifier reads: the class token ("cls", ViT's own), or the mean of the patches ("mean").
        patch_bias: whether the product that embeds a patch has a bias; CLIP's has none.
        pre_norm: whether a norm stands before the trunk, as in CLIP.
    """

    image_size: tuple[int, int]
    patch_size: int
    trunk: TrunkConfig
    num_channels: int = 3
    stem: Stem = "patch"
    pooling: ImagePooling = "cls"
    patch_bias: bool = True
    pre_norm: bool = False

    def __post_init__(self) -> None:
        height, width = self.image_size
        if height % self.patch_size or width % self.patch_size:
            raise InputError(f"image_size={height}x{width} is not a multiple of patch_size={self.patch_size}")
        if self.stem != "patch" and self.patch_size & (self.patch_size - 1):
            raise InputError(
                f"stem={self.stem} halves an image again and again: patch_size={self.patch_size} must be 2^n"
            )
        if self.stem != "patch" and not self.patch_bias:
            raise InputError("patch_bias=False is for stem=patch")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def is_standard(self) -> bool:
        """Whether it is a ViT that `transformers` knows."""
        return self.stem == "patch" and self.pooling == "cls" and self.patch_bias and not self.pre_norm


class VisionModel(nn.Module):
    """Pixels in, hidden states out: a class token, then the patches row by row."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        c = config.trunk
        self.embed = make_stem(config.stem, config.num_channels, config.patch_size, c.hidden_size, config.patch_bias)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.hidden_size))
        self.positions = nn.Parameter(torch.zeros(1, 1 + math.prod(config.grid), c.hidden_size))
        self.dropout = nn.Dropout(c.dropout) if c.dropout else nn.Identity()
        self.pre_norm = make_norm(c) if config.pre_norm else nn.Identity()
        self.trunk = Trunk(c)

    @property
    def device(self) -> torch.device:
        return self.cls_token.device

    def forward(self, pixels: Tensor, *, interpolate_pos_encoding: bool = False) -> Tensor:
        """Final hidden states `(B, 1 + N, D)`; options are those of `hidden`."""
        return self.hidden(pixels, interpolate_pos_encoding=interpolate_pos_encoding)

    def hidden(
        self,
        pixels: Tensor,
        *,
        interpolate_pos_encoding: bool = False,
        kept: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states `(B, 1 + N, D)` of normalised pixels `(B, C, H, W)`.

        Args:
            interpolate_pos_encoding: take an image of another size than the config's, with interpolated positions.
            kept: the patches of each image `(B, K)` that are read, in this order; the others are left out.
            at: the tokens of each row `(B,)` whose states are wanted; the result is `(B, 1, D)` then.

        Raises:
            InputError: pixels of another size, where positions are not to be interpolated, or of other channels.
        """
        x = self.tokens(pixels, interpolate_pos_encoding)
        if kept is not None:
            first, patches = x[:, :1], x[:, 1:]
            x = torch.cat([first, patches.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))], 1)
        return self.trunk(Span.full(self.pre_norm(self.dropout(x))), at=at)

    def tokens(self, pixels: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """What enters the trunk `(B, 1 + N, D)`: embedded patches and the class token, at their places."""
        grid = self._grid_of(pixels, interpolate_pos_encoding)
        positions = interpolate_positions(self.positions, self.config.grid, grid)
        patches = self.embed(pixels.to(self.cls_token.dtype)) + positions[:, 1:]
        first = (self.cls_token + positions[:, :1]).to(patches.dtype).expand(len(patches), -1, -1)
        return torch.cat([first, patches], 1)

    def pooled(self, pixels: Tensor, *, interpolate_pos_encoding: bool = False) -> Tensor:
        """What stands for a whole image, `(B, D)`: the class token's final state, or the mean of the patches'."""
        if self.config.pooling == "mean":
            return self.hidden(pixels, interpolate_pos_encoding=interpolate_pos_encoding)[:, 1:].mean(1)
        first = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
        return self.hidden(pixels, interpolate_pos_encoding=interpolate_pos_encoding, at=first)[:, 0]

    def features(self, pixels: Tensor) -> Tensor:
        """The patches' final states as a map `(B, D, rows, columns)`, as detectors read them."""
        states = self.hidden(pixels)[:, 1:]
        return states.transpose(1, 2).unflatten(2, self.config.grid)

    def _grid_of(self, pixels: Tensor, interpolate: bool) -> tuple[int, int]:
        c = self.config
        channels, height, width = pixels.shape[1:]
        if channels != c.num_channels:
            raise InputError(f"pixels have {channels} channels, and this model reads {c.num_channels}")
        if (height, width) == c.image_size:
            return c.grid
        own = f"{c.image_size[0]}x{c.image_size[1]}"
        if not interpolate:
            raise InputError(
                f"pixels of {height}x{width}, and this model's positions are for {own}: resize the image, or give "
                "interpolate_pos_encoding=True"
            )
        return replace(c, image_size=(height, width)).grid  # refuses what is no multiple of a patch

    def with_image_size(self, image_size: tuple[int, int]) -> VisionModel:
        """A copy for images of another size, its positions interpolated; of a classifier without its score."""
        config = replace(self.config, image_size=image_size)
        copy = VisionModel(config)
        weights = {name: value for name, value in self.state_dict().items() if not name.startswith("score.")}
        weights["positions"] = interpolate_positions(weights["positions"], self.config.grid, config.grid)
        copy.load_state_dict(weights)
        return copy.to(self.device)

    def flops_per_image(self, tokens: int | None = None) -> int:
        """Training FLOPs an image, forward and backward, of the stem and of the trunk; `tokens` of all enter it."""
        tokens = tokens or self.positions.shape[1]
        stem = 6 * sum(
            m.weight.numel() * self.config.image_size[0] * self.config.image_size[1] // scale**2
            for m, scale in self._convolutions()
        )
        return tokens * self.trunk.flops_per_token(tokens) + stem

    def _convolutions(self) -> Iterator[tuple[nn.Conv2d, int]]:
        """The stem's convolutions, each with how many pixels of the image one of its outputs stands for, per side."""
        scale = 1
        for module in self.embed.modules():
            if isinstance(module, nn.Conv2d):
                scale *= module.stride[0]
                yield module, scale

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fresh weights, a pure function of the seed; see `initial_weights`."""
        parameters = dict(self.named_parameters())
        for name, value in self.initial_weights(seed):
            parameters[name].copy_(value)

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Fresh weights by name, see `fresh_weight`; positions as sines and cosines."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name == "positions":
                yield name, sincos_positions(self.config.grid, parameter.shape[-1])
            else:
                yield name, fresh_weight(name, parameter.shape, generator)


def fresh_weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """What a weight begins as: blocks as the identity, as in `models.gpt`.

    Matrices and convolutions are normal with 1 / sqrt(fan in), outputs into the residual stream and of a model zero.
    """
    if name.endswith(("cls_token", "mask_token")):
        return torch.randn(shape, generator=generator) * 0.02
    if len(shape) < 2:
        is_gain = name.endswith("weight")  # of norms: no other vector is called so
        return torch.full(shape, 1.0 if is_gain else 0.0)
    if name.endswith(("o_proj.weight", "down_proj.weight", "score.weight", "pred.weight")):
        return torch.zeros(shape)
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


class ViT(VisionModel):
    """Pixels in, a logit for each label out."""

    def __init__(self, config: VisionConfig, labels: Sequence[str]) -> None:
        super().__init__(config)
        self.labels = list(labels)
        self.score = nn.Linear(config.trunk.hidden_size, len(labels))

    def forward(self, pixels: Tensor, *, interpolate_pos_encoding: bool = False) -> Tensor:
        """Logits `(B, C)` of normalised pixels `(B, channels, H, W)`; options are those of `hidden`."""
        return self.score(self.pooled(pixels, interpolate_pos_encoding=interpolate_pos_encoding))

    @staticmethod
    def of(
        base: VisionModel,
        labels: Sequence[str],
        *,
        pooling: ImagePooling | None = None,
        dropout: float | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> ViT:
        """A classifier with a copy of the base's weights, and a score that says nothing yet.

        A base that is a classifier keeps its score if it pools alike and has the same labels in the same order.
        """
        before = base if isinstance(base, ViT) else None
        if image_size is not None and image_size != base.config.image_size:
            base = base.with_image_size(image_size)
        config = base.config
        if dropout is not None:
            config = replace(config, trunk=replace(config.trunk, dropout=dropout))
        module = ViT(replace(config, pooling=pooling or config.pooling), labels)
        weights = {name: value for name, value in base.state_dict().items() if not name.startswith("score.")}
        module.load_state_dict(weights, strict=False)
        if before and (before.labels, before.config.pooling) == (module.labels, module.config.pooling):
            module.score.load_state_dict(before.score.state_dict())
        else:
            for parameter in module.score.parameters():
                nn.init.zeros_(parameter)
        return module.to(base.device)
