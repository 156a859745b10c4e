"""Telling views apart: which of many pictures another view of one is of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bedplate.metrics.intervals import ratio_interval
from bedplate.models.simclr import SimCLR
from bedplate.tasks import Batch, row_count
from bedplate.tasks.classify_images import Augment
from bedplate.tasks.pixels import normalize


class TellViews:
    """Contrastive learning without labels (SimCLR, arXiv 2002.05709). Batches hold `pixels (B, C, H, W)` uint8.

    Attributes:
        mean, std: of each channel, of pixels in 0..1.
        augment: what makes a view of a picture, of the model's size; called twice a batch.
    """

    metrics: ClassVar[Mapping[str, Literal["min", "max"]]] = {"loss": "min", "accuracy": "max"}
    unit: ClassVar[Literal["tokens", "images"]] = "images"

    def __init__(self, module: SimCLR, mean: Sequence[float], std: Sequence[float], augment: Augment) -> None:
        self.module, self.mean, self.std, self.augment = module, mean, std, augment

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        losses, _ = self._losses(batch["pixels"])
        return {"loss": (losses.sum(), row_count(losses))}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Nats a view (`loss`), and how often the nearest view among the batch's is the other of its picture.

        Which views are shown depends on the batch's place alone, so that evaluations compare. Both figures depend on
        the number of pictures in a batch.
        """
        module, device = self.module, self.module.device
        was_training = module.training
        module.eval()
        rows = []
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for number, batch in enumerate(batches):
                if len(batch["pixels"]) < 2:  # the last, which has no other picture to be told from
                    continue
                torch.manual_seed(number)
                rows.append(torch.stack([part.cpu().double() for part in self._losses(batch["pixels"].to(device))], 1))
        module.train(was_training)
        losses, right = torch.cat(rows).numpy().T
        ones = losses * 0 + 1
        return {"loss": ratio_interval(losses, ones), "accuracy": ratio_interval(right, ones)}

    def samples(self, seed: int) -> list[dict[str, str]]:
        """None in words."""
        return []

    def flops(self, batch: Batch) -> int:
        return len(batch["pixels"]) * self.module.flops_per_image()

    def _losses(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        size = self.module.config.encoder.image_size
        views = torch.cat([self.augment(pixels, size) for _ in range(2)])
        first, second = self.module(normalize(views, self.mean, self.std)).chunk(2)
        return self.module.losses(first, second)
