"""Masked autoencoding: paint the hidden patches of an image from those that are seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bedplate.metrics.intervals import ratio_interval
from bedplate.models.mae import MAE
from bedplate.tasks import Batch
from bedplate.tasks.pixels import as_bytes, normalize


class Reconstruct:
    """Masked autoencoding (arXiv 2111.06377). Batches hold `pixels (B, C, H, W)` uint8; to evaluate, `index (B,)` too.

    Attributes:
        mean, std: of each channel, of pixels in 0..1.
        augment: what training does to the pixels of a batch, uint8 in and floats in 0..1 out, of the model's size.
        collect: makes of one rank's results those of all, where ranks share the held-out batches.
    """

    metrics: ClassVar[Mapping[str, Literal["min", "max"]]] = {"loss": "min"}
    unit: ClassVar[Literal["tokens", "images"]] = "images"

    def __init__(
        self,
        module: MAE,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Callable[[Tensor], Tensor] | None = None,
        collect: Callable[[list[Tensor]], list[Tensor]] = list,
    ) -> None:
        self.module, self.augment, self.collect = module, augment, collect
        self.mean, self.std = mean, std

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        pixels = self.augment(batch["pixels"]) if self.augment else batch["pixels"]
        return {"loss": self.module.loss(normalize(pixels, self.mean, self.std))}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """The mean squared error of hidden patches (`loss`), with its interval over images.

        Which patches of an image are hidden depends on its index alone, so that evaluations compare. An image that
        fills up the batches of several ranks counts once.
        """
        module, device = self.module, self.module.device
        was_training = module.training
        module.eval()
        rows = []
        for batch in batches:
            pixels = normalize(batch["pixels"].to(device), self.mean, self.std)
            noise = torch.stack([self._noise(1, seed)[0] for seed in batch["index"].tolist()]).to(device)
            losses = module.losses(pixels, module.masks(pixels, noise))
            rows.append(torch.stack([batch["index"].cpu().double(), losses.cpu().double()], 1))
        module.train(was_training)
        table = torch.cat(self.collect(rows)).numpy()
        losses_by_image = table[np.unique(table[:, 0], return_index=True)[1], 1]
        return {"loss": ratio_interval(losses_by_image, np.ones(len(losses_by_image)))}

    def samples(self, seed: int) -> list[dict[str, str]]:
        """None in words; see `reconstructions`."""
        return []

    def flops(self, batch: Batch) -> int:
        return len(batch["pixels"]) * self.module.flops_per_image()

    @torch.no_grad()
    def reconstructions(self, pixels: Tensor, seed: int) -> dict[str, Tensor]:
        """{"original", "masked", "reconstructed"} as images `(B, C, H, W)` uint8; see `MAE.reconstruct`."""
        module, device = self.module, self.module.device
        was_training = module.training
        module.eval()
        noise = self._noise(len(pixels), seed).to(device)
        images = module.reconstruct(normalize(pixels.to(device), self.mean, self.std), noise)
        module.train(was_training)
        return {name: as_bytes(image.cpu(), self.mean, self.std) for name, image in images.items()}

    def _noise(self, images: int, seed: int) -> Tensor:
        rows, columns = self.module.config.encoder.grid
        return torch.rand(images, rows * columns, generator=torch.Generator().manual_seed(seed))
