"""Learning an image tokenizer: a picture is to come back from its codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.metrics.intervals import ratio_interval
from bedplate.models.image_tokenizer import ImageTokenizer
from bedplate.tasks import Batch, row_count
from bedplate.tasks.pixels import as_bytes, normalize

SCALES = 3  # at which edges are compared, each half of the one before
LEAST_ERROR = 1e-10  # mean squared error of pixels in 0..1; without it equal pictures would have no PSNR


class ImageTokens:
    """Reconstruction through codes. Batches hold `pixels (B, 3, H, W)` uint8; to evaluate, `index (B,)` too.

    Attributes:
        mean, std: of each channel, of pixels in 0..1.
        l1_weight, edge_weight: of the parts of the loss beside the squared error, see `reconstruction_losses`.
        augment: what training does to a batch's pixels, uint8 in and floats in 0..1 out.
        collect: makes of one rank's results those of all, where ranks share the held-out batches.
    """

    metrics: ClassVar[Mapping[str, Literal["min", "max"]]] = {
        "psnr": "max",
        "loss": "min",
        "codebook_use": "max",
        "perplexity": "max",
    }
    unit: ClassVar[Literal["tokens", "images"]] = "images"

    def __init__(
        self,
        module: ImageTokenizer,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        l1_weight: float = 1.0,
        edge_weight: float = 1.0,
        augment: Callable[[Tensor], Tensor] | None = None,
        collect: Callable[[list[Tensor]], list[Tensor]] = list,
    ) -> None:
        self.module, self.mean, self.std = module, mean, std
        self.l1_weight, self.edge_weight = l1_weight, edge_weight
        self.augment, self.collect = augment, collect

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        pixels = self.augment(batch["pixels"]) if self.augment else batch["pixels"]
        losses = self._losses(normalize(pixels, self.mean, self.std))[0]
        return {"loss": (losses.sum(), row_count(losses))}

    def _losses(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(loss of each picture, what it became)."""
        rebuilt = self.module(pixels).float()
        return reconstruction_losses(rebuilt, pixels, self.l1_weight, self.edge_weight), rebuilt

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """How pictures come back: `psnr`, the mean over pictures in dB, and `loss`, with intervals; and of all their
        codes `codebook_use`, the share of the codebook that occurs, and `perplexity`, as how many equally frequent ones
        they are (exact counts: their ends are the value).

        A picture that fills up the batches of several ranks counts once.
        """
        module, device = self.module, self.module.device
        was_training = module.training
        module.eval()
        rows = []
        for batch in batches:
            pixels = batch["pixels"].to(device)
            values = normalize(pixels, self.mean, self.std)
            losses, rebuilt = self._losses(values)
            scores = [batch["index"].to(device), losses, psnr(pixels, self.seen(rebuilt))]
            codes = module.encode(values).flatten(1)
            rows.append(torch.cat([torch.stack([each.cpu().double() for each in scores], 1), codes.cpu().double()], 1))
        module.train(was_training)
        table = torch.cat(self.collect(rows)).numpy()
        table = table[np.unique(table[:, 0], return_index=True)[1]]
        ones = np.ones(len(table))
        shares = np.bincount(table[:, 3:].astype(np.int64).ravel(), minlength=module.codebook_size) / table[:, 3:].size
        used = shares[shares > 0]
        return {
            "psnr": ratio_interval(table[:, 2], ones),
            "loss": ratio_interval(table[:, 1], ones),
            "codebook_use": _exact(len(used) / len(shares), len(table)),
            "perplexity": _exact(math.exp(-(used * np.log(used)).sum()), len(table)),
        }

    def samples(self, seed: int) -> list[dict[str, str]]:
        """None in words; see `reconstructed`."""
        return []

    def flops(self, batch: Batch) -> int:
        return len(batch["pixels"]) * self.module.flops_per_image()

    @torch.no_grad()
    def reconstructed(self, pixels: Tensor) -> Tensor:
        """What pictures `(B, 3, H, W)` uint8 become through their codes, uint8 on the CPU."""
        was_training = self.module.training
        self.module.eval()
        rebuilt = self.module(normalize(pixels.to(self.module.device), self.mean, self.std))
        self.module.train(was_training)
        return self.seen(rebuilt).cpu()

    def seen(self, values: Tensor) -> Tensor:
        """Normalised pixels as bytes."""
        return as_bytes(values, self.mean, self.std)


def reconstruction_losses(rebuilt: Tensor, pixels: Tensor, l1_weight: float, edge_weight: float) -> Tensor:
    """How far each picture `(B, C, H, W)` is from what it became, `(B,)`: mean squared error, mean absolute error, and
    the mean absolute error of differences between neighbours, at scales of 1, 1/2 and 1/4.

    The last speaks of edges, which the other two would rather have blurred than a little out of place.
    """
    error = rebuilt - pixels
    losses = error.square().mean((1, 2, 3))
    if l1_weight:
        losses = losses + l1_weight * error.abs().mean((1, 2, 3))
    for scale in range(SCALES if edge_weight else 0):
        error = F.avg_pool2d(error, 2) if scale else error  # differences are linear: those of the error are the errors
        edges = error.diff(dim=2).abs().mean((1, 2, 3)) + error.diff(dim=3).abs().mean((1, 2, 3))
        losses = losses + edge_weight / SCALES * edges
    return losses


def psnr(pixels: Tensor, rebuilt: Tensor) -> Tensor:
    """Peak signal-to-noise ratio `(B,)` in dB of pictures `(B, C, H, W)` of bytes; at most 100."""
    error = ((pixels.float() - rebuilt.float()) / 255).square().mean((1, 2, 3))
    return -10 * error.clamp(min=LEAST_ERROR).log10()


def _exact(value: float, n: int) -> dict[str, float]:
    return {"value": value, "low": value, "high": value, "n": n}
