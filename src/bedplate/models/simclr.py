"""SimCLR: an encoder of images learnt by telling two views of a picture from all other pictures (arXiv 2002.05709)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.models.vit import VisionConfig, VisionModel, fresh_weight


@dataclass(frozen=True, slots=True)
class SimCLRConfig:
    """The shape of a network that tells views apart.

    Attributes:
        projection_dim: width of the space in which views are compared; the projector is left behind afterwards.
        temperature: what similarities are divided by.
    """

    encoder: VisionConfig
    projection_dim: int = 128
    temperature: float = 0.2


class SimCLR(nn.Module):
    """An encoder of images, and a projector of two layers behind what a classifier of it reads."""

    def __init__(self, config: SimCLRConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder.trunk.hidden_size
        self.encoder = VisionModel(config.encoder)
        self.projector = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, config.projection_dim, bias=False)
        )

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def forward(self, pixels: Tensor) -> Tensor:
        """Points `(B, P)` of length 1, fp32, of normalised pixels `(B, C, H, W)`."""
        states = self.encoder.hidden(pixels)
        pooled = states[:, 1:].mean(1) if self.config.encoder.pooling == "mean" else states[:, 0]
        return F.normalize(self.projector(pooled).float(), dim=1)

    def losses(self, views: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """(NT-Xent in nats of each view `(2 B,)`, whether it is nearest to the other view of its picture `(2 B,)`).

        Args:
            views, others: points `(B, P)` of two views of the same pictures, in the same order.
        """
        points, count = torch.cat([views, others]), len(views)
        with torch.autocast(points.device.type, enabled=False):  # near 1, half precision tells no two cosines apart
            similarity = points @ points.T / self.config.temperature
        similarity.fill_diagonal_(float("-inf"))  # no view is compared with itself
        target = torch.arange(2 * count, device=points.device).roll(count)
        return F.cross_entropy(similarity, target, reduction="none"), similarity.argmax(1) == target

    def flops_per_image(self) -> int:
        """Training FLOPs a picture, forward and backward, of both its views."""
        weights = sum(m.weight.numel() for m in self.projector if isinstance(m, nn.Linear))
        return 2 * (self.encoder.flops_per_image() + 6 * weights)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fresh weights, a pure function of the seed; see `initial_weights`."""
        parameters = dict(self.named_parameters())
        for name, value in self.initial_weights(seed):
            parameters[name].copy_(value)

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Fresh weights by name, as in `models.vit`: the encoder's as of a `VisionModel` of this seed."""
        generator = torch.Generator().manual_seed(seed)
        with torch.device("meta"):
            encoder = VisionModel(self.config.encoder)
        for name, value in encoder.initial_weights(seed):
            yield f"encoder.{name}", value
        for name, parameter in self.projector.named_parameters(prefix="projector"):
            yield name, fresh_weight(name, parameter.shape, generator)
