"""MAE: an encoder of images learnt by painting in the patches that it did not see (arXiv 2111.06377)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bedplate.errors import InputError
from bedplate.models.vit import VisionConfig, VisionModel, fresh_weight
from bedplate.nn.config import TrunkConfig
from bedplate.nn.embed import patchify, sincos_positions, unpatchify
from bedplate.nn.span import Span
from bedplate.nn.trunk import Trunk

EPS = 1e-6  # added to the variance of a patch before it is divided by


@dataclass(frozen=True, slots=True)
class MAEConfig:
    """The shape of a masked autoencoder.

    Attributes:
        mask_ratio: the share of an image's patches that is hidden.
        norm_pix_loss: whether each patch is painted less its own mean, over its own deviation (table 1d of the paper).
    """

    encoder: VisionConfig
    decoder: TrunkConfig
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True

    def __post_init__(self) -> None:
        rows, columns = self.encoder.grid
        if not 0 < self.kept < rows * columns:
            raise InputError(
                f"mask_ratio={self.mask_ratio} keeps {self.kept} of {rows * columns} patches; some must be kept and "
                "some hidden: choose another, or smaller patches"
            )
        if odd := next((c.hidden_size for c in (self.encoder.trunk, self.decoder) if c.hidden_size % 4), None):
            raise InputError(f"hidden_size={odd} is not a multiple of 4, which positions of rows and columns need")

    @property
    def kept(self) -> int:
        """How many patches of an image the encoder reads."""
        rows, columns = self.encoder.grid
        return int(rows * columns * (1 - self.mask_ratio))

    @property
    def is_standard(self) -> bool:
        """Whether it is a MAE that `transformers` knows: of square images, with a ViT as it knows them."""
        return self.encoder.is_standard and self.encoder.image_size[0] == self.encoder.image_size[1]


class Masks(NamedTuple):
    """Which patches of each image are read `(B, K)`, which are hidden `(B, N - K)`, and the places of both behind one
    another that bring them back in the image's order, `(B, N)`."""

    kept: Tensor
    hidden: Tensor
    restore: Tensor


class MAE(nn.Module):
    """An encoder that reads a few patches of an image, and a small decoder that paints the others from its states.

    Positions of both are sines and cosines, and are not trained.
    """

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        c, d = config.encoder, config.decoder.hidden_size
        rows, columns = c.grid
        self.encoder = VisionModel(c)
        self.encoder.positions.requires_grad_(False)
        self.decoder_embed = nn.Linear(c.trunk.hidden_size, d)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, d))
        self.decoder_positions = nn.Parameter(torch.zeros(1, 1 + rows * columns, d), requires_grad=False)
        self.decoder = Trunk(config.decoder)
        self.pred = nn.Linear(d, c.num_channels * c.patch_size**2)

    @property
    def device(self) -> torch.device:
        return self.mask_token.device

    def forward(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """What each patch is painted as, `(B, N, C P P)`, its values in the order of `nn.embed.patchify`.

        Args:
            pixels: `(B, C, H, W)`, normalised.
            noise: `(B, N)`; the patches of least noise are read. By default it is drawn from PyTorch's generator of
                the device.
        """
        masks = self.masks(pixels, noise)
        return self.pred(self.decoder(Span.full(self._decoder_tokens(pixels, masks)))[:, 1:])

    def loss(self, pixels: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(sum over images of the mean squared error of their hidden patches, number of images); see `forward`."""
        masks = self.masks(pixels, noise)
        losses = self.losses(pixels, masks)
        return losses.sum(), torch.full((), float(len(losses)), device=losses.device)

    def losses(self, pixels: Tensor, masks: Masks) -> Tensor:
        """The mean squared error of each image's hidden patches `(B,)`, in fp32.

        The decoder's last block and the product behind it are computed at these patches alone.
        """
        states = self.decoder(Span.full(self._decoder_tokens(pixels, masks)), at=1 + masks.hidden)
        target = _pick(patchify(pixels, self.config.encoder.patch_size).float(), masks.hidden)
        if self.config.norm_pix_loss:
            mean, deviation = _statistics(target)
            target = (target - mean) / deviation
        return (self.pred(states).float() - target).square().mean((1, 2))

    @torch.no_grad()
    def reconstruct(self, pixels: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """What a person looks at: images `(B, C, H, W)`, normalised as `pixels` are; see `forward`.

        Returns:
            {"original"; "masked": with hidden patches 0, the mean colour; "reconstructed": with hidden patches
            painted}. With `norm_pix_loss` a painted patch is given the mean and deviation of the true one, which the
            model does not foretell.
        """
        c, masks = self.config.encoder, self.masks(pixels, noise)
        patches = patchify(pixels, c.patch_size).float()
        painted = self.pred(self.decoder(Span.full(self._decoder_tokens(pixels, masks)))[:, 1:]).float()
        if self.config.norm_pix_loss:
            mean, deviation = _statistics(patches)
            painted = painted * deviation + mean
        is_hidden = _is_hidden(masks)[..., None]
        images = {
            "original": patches,
            "masked": patches.masked_fill(is_hidden, 0.0),
            "reconstructed": torch.where(is_hidden, painted, patches),
        }
        return {name: unpatchify(values, c.grid, c.patch_size) for name, values in images.items()}

    def masks(self, pixels: Tensor, noise: Tensor | None = None) -> Masks:
        """The masks of a batch by the order of its noise (the paper's section 3, "simple implementation")."""
        rows, columns = self.config.encoder.grid
        shape = (len(pixels), rows * columns)
        if noise is None:
            noise = torch.rand(shape, device=pixels.device)
        assert noise.shape == shape, f"noise is of shape {tuple(noise.shape)}, not {shape}"
        order = noise.argsort(1)
        return Masks(order[:, : self.config.kept], order[:, self.config.kept :], order.argsort(1))

    def _decoder_tokens(self, pixels: Tensor, masks: Masks) -> Tensor:
        """What enters the decoder `(B, 1 + N, D)`: states of what was read, the mask token for what was not."""
        c = self.config.encoder
        if c.stem != "patch":
            # Its convolutions see over a patch's borders and its norms over the whole image: what is hidden must be
            # gone before, or the kept patches would carry it along.
            patches = patchify(pixels, c.patch_size).masked_fill(_is_hidden(masks)[..., None], 0.0)
            pixels = unpatchify(patches, c.grid, c.patch_size)
        states = self.decoder_embed(self.encoder.hidden(pixels, kept=masks.kept))
        blanks = self.mask_token.to(states.dtype).expand(*masks.hidden.shape, -1)
        tokens = _pick(torch.cat([states[:, 1:], blanks], 1), masks.restore)
        return torch.cat([states[:, :1], tokens], 1) + self.decoder_positions

    def flops_per_image(self) -> int:
        """Training FLOPs an image, forward and backward; the decoder's last block counts as if it read all patches."""
        c, patches = self.config, self.decoder_positions.shape[1] - 1
        encoder = self.encoder.flops_per_image(1 + c.kept) + 6 * (1 + c.kept) * self.decoder_embed.weight.numel()
        decoder = (1 + patches) * self.decoder.flops_per_token(1 + patches)
        return encoder + decoder + 6 * (patches - c.kept) * self.pred.weight.numel()

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fresh weights, a pure function of the seed; see `initial_weights`."""
        parameters = dict(self.named_parameters())
        for name, value in self.initial_weights(seed):
            parameters[name].copy_(value)

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Fresh weights by name, as in `models.vit`; the last product is zero, so that painting begins as grey.

        Blocks do not begin as the identity: a decoder of such first learns to paint each place's mean, and is slow to
        leave that. Their outputs are normal, 1 / sqrt(2 L) of what other matrices are, as in GPT-2.
        """
        generator, grid = torch.Generator().manual_seed(seed), self.config.encoder.grid
        for name, parameter in self.named_parameters():
            if name in ("encoder.positions", "decoder_positions"):
                yield name, sincos_positions(grid, parameter.shape[-1])
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                c = self.config.encoder.trunk if name.startswith("encoder.") else self.config.decoder
                scale = (2 * c.num_hidden_layers * parameter.shape[1]) ** -0.5
                yield name, torch.randn(parameter.shape, generator=generator) * scale
            else:
                yield name, fresh_weight(name, parameter.shape, generator)


def _pick(x: Tensor, at: Tensor) -> Tensor:
    """The rows `at (B, K)` of `x (B, N, D)`."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


def _is_hidden(masks: Masks) -> Tensor:
    """Whether each patch is hidden, `(B, N)`."""
    return masks.restore >= masks.kept.shape[1]


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the deviation `(B, N, 1)` of each patch's values."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + EPS).sqrt()
