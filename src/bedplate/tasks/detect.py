"""Object detection: what a picture holds, and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bedplate.data.box_loader import from_canvas
from bedplate.data.boxes import BoxedImages
from bedplate.errors import InputError
from bedplate.metrics.intervals import ratio_interval
from bedplate.models.detector import Detector
from bedplate.models.set_detector import SetDetector
from bedplate.tasks import Batch
from bedplate.tasks.pixels import normalize

JUDGED = 0.001
"""The least score of detections that are judged: average precision counts those of low scores, too."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One picture: its true boxes, those that are found, boxes in pixels of the canvas, and its loss.

    Attributes:
        truth: {"boxes" (M, 4), "classes" (M,)} as arrays.
        found: {"boxes" (K, 4), "scores" (K,), "classes" (K,)}.
        loss, weight: as the modules' `image_losses` have them.
    """

    truth: dict[str, NDArray[Any]]
    found: dict[str, NDArray[Any]]
    loss: float
    weight: float


class Augment(Protocol):
    """What training shows of a batch, pixels in 0..1 and padded boxes; see `data.augment.BoxAugment`."""

    def __call__(
        self, pixels: Tensor, boxes: Tensor, classes: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class Detect:
    """Boxes and their classes in each picture, by a dense head or by queries.

    Batches hold `pixels (B, 3, H, W)` uint8, `boxes (B, M, 4)` as x1 y1 x2 y2 in pixels, `classes (B, M)`, -1 for
    padding, and `index (B,)`.

    Args:
        mean, std: of each channel of values in 0..1, taken out before the network.
        augment: what training shows of a batch; None shows it as it is.
    """

    metrics: ClassVar[Mapping[str, Literal["min", "max"]]] = {"map_50": "max", "map": "max", "loss": "min"}
    unit: ClassVar[Literal["tokens", "images"]] = "images"

    def __init__(
        self,
        module: Detector | SetDetector,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        augment: Augment | None = None,
    ) -> None:
        self.module, self.mean, self.std, self.augment = module, mean, std, augment

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        pixels, boxes, classes = batch["pixels"], batch["boxes"], batch["classes"]
        if self.augment is not None:
            pixels, boxes, classes = self.augment(pixels, boxes, classes, self.module.config.vision.image_size)
        return self.module.losses(normalize(pixels, self.mean, self.std), boxes, classes)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """The metrics of COCO ("map", "map_50", ...) and the `loss`, with intervals over pictures."""
        return {name: value for name, value in self.report(batches).items() if name not in ("per_class", "curves")}

    def report(self, batches: Iterable[Batch], boxed: BoxedImages | None = None) -> dict[str, Any]:
        """What `evaluate` measures, and "per_class" and "curves" as `metrics.detection.detection_metrics` has them.

        Args:
            boxed: what the batches were made of. Then boxes are judged in pixels of the pictures, as sizes of objects
                ask for, and not of the canvas; and a detection inside of a crowd is neither right nor wrong.

        Raises:
            InputError: no picture holds a box, or pycocotools is not installed.
        """
        from bedplate.metrics.detection import detection_metrics, need_pycocotools

        try:
            need_pycocotools()
        except ImportError as error:
            raise InputError(str(error)) from error
        judged = self.judged(batches)
        truth, found = [each.truth for each in judged.values()], [each.found for each in judged.values()]
        if boxed is not None:
            every, canvas = boxed.truth(), self.module.config.vision.image_size
            truth = [every[index] for index in judged]
            found = [
                row | {"boxes": from_canvas(row["boxes"], boxed.sizes[index], canvas)}
                for index, row in zip(judged, found, strict=True)
            ]
        if not any(len(each.truth["boxes"]) for each in judged.values()):
            raise InputError(f"none of the {len(truth)} held-out pictures holds a box: add some that do, to score by")
        losses, weights = np.array([(each.loss, each.weight) for each in judged.values()]).T
        # Of all pictures at least 1, as the modules' own weights are: one without objects has a loss and no weight.
        loss = ratio_interval(losses, np.maximum(weights, 1 / len(weights)))
        return detection_metrics(truth, found, self.module.labels) | {"loss": loss}

    @torch.no_grad()
    def judged(self, batches: Iterable[Batch]) -> dict[int, Judged]:
        """What there is and what is found in each picture, by its index, in the batches' order.

        A picture that comes twice, as one that fills up a batch does, counts once.
        """
        module, device = self.module, self.module.device
        was_training = module.training
        module.eval()
        judged = {}
        for batch in batches:
            output = module(normalize(batch["pixels"].to(device), self.mean, self.std))
            parts, weights = module.losses_of(output, batch["boxes"].to(device), batch["classes"].to(device))
            found = module.found_in(output, threshold=JUDGED)
            for row, index in enumerate(batch["index"].tolist()):
                own = batch["classes"][row].cpu() >= 0
                judged[index] = Judged(
                    {name: batch[name][row].cpu()[own].numpy() for name in ("boxes", "classes")},
                    {name: value.cpu().numpy() for name, value in found[row].items()},
                    parts["loss"][row].item(),
                    weights[row].item(),
                )
        module.train(was_training)
        return judged

    def samples(self, seed: int) -> list[dict[str, str]]:
        """None: the report shows pictures."""
        return []

    def flops(self, batch: Batch) -> int:
        return len(batch["pixels"]) * self.module.flops_per_image(batch["classes"].shape[1])
