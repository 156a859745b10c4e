"""Object detection: what a picture holds, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from bedplate.errors import InputError
from bedplate.metrics.intervals import ratio_interval
from bedplate.models.detector import Detector
from bedplate.models.set_detector import SetDetector
from bedplate.tasks import Batch
from bedplate.tasks.pixels import normalize

JUDGED = 0.001
"""The least score of detections that are judged: average precision counts those of low scores, too."""

Rows = list[dict[str, Any]]


class Augment(Protocol):
    """What training shows of a batch, pixels in 0..1 and padded boxes; see `data.augment.BoxAugment`."""

    def __call__(
        self, pixels: Tensor, boxes: Tensor, classes: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def of_all_classes(measured: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What `Detect.report` measured, without what is of single classes."""
    return {name: value for name, value in measured.items() if name not in ("per_class", "curves")}


def need_judge() -> None:
    """Make sure that what judges detections is there.

    Raises:
        InputError: pycocotools is not installed.
    """
    from bedplate.metrics.detection import need_pycocotools

    try:
        need_pycocotools()
    except ImportError as error:
        raise InputError(str(error)) from error


class Detect:
    """Boxes and their classes in each picture, by a dense head or by queries.

    Batches hold `pixels (B, 3, H, W)` uint8, `boxes (B, M, 4)` as x1 y1 x2 y2 in pixels, `classes (B, M)`, -1 for
    padding, and `index (B,)`. Where `crowd (B, M)` bool is there, its boxes are not trained on, and a detection inside
    of one is neither right nor wrong. Where `scale (B,)` is there, boxes are judged in pixels of the pictures, of each
    of which so many pixels of the canvas are one: COCO's small and large boxes are sizes of theirs.

    Args:
        mean, std: of each channel of values in 0..1, taken out before the network.
        augment: what training shows of a batch; None shows it as it is.
        collect: makes of one rank's results those of all, where ranks share the held-out batches.
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
        collect: Callable[[list[Any]], list[Any]] = list,
    ) -> None:
        self.module, self.mean, self.std = module, mean, std
        self.augment, self.collect = augment, collect

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        pixels, boxes, classes = batch["pixels"], batch["boxes"], _learnt(batch)
        if self.augment is not None:
            pixels, boxes, classes = self.augment(pixels, boxes, classes, self.module.config.vision.image_size)
        return self.module.losses(normalize(pixels, self.mean, self.std), boxes, classes)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """The metrics of COCO ("map", "map_50", ...) and the `loss`, with intervals over pictures."""
        return of_all_classes(self.report(batches))

    def report(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """What `evaluate` measures, and "per_class" and "curves" as `metrics.detection.detection_metrics` has them.

        Raises:
            InputError: no picture holds a box, or pycocotools is not installed.
        """
        from bedplate.metrics.detection import detection_metrics

        need_judge()
        truth, found, losses, weights = self.judged(batches)
        if not any((~row["crowd"]).any() for row in truth):
            raise InputError(f"none of the {len(truth)} held-out pictures holds a box: add some that do, to score by")
        metrics = detection_metrics(truth, found, self.module.labels)
        # Of all pictures at least 1, as the modules' own weights are: one without objects has a loss and no weight.
        return metrics | {"loss": ratio_interval(losses, np.maximum(weights, 1 / len(weights)))}

    @torch.no_grad()
    def judged(self, batches: Iterable[Batch]) -> tuple[Rows, Rows, np.ndarray, np.ndarray]:
        """(true boxes, detections, sums of losses, their weights) of all ranks' pictures, in the batches' order.

        Rows are {"boxes", "classes", "crowd" or "scores"} of arrays. A picture that comes twice, as one that fills up
        the batches of several ranks does, counts once.
        """
        module, device = self.module, self.module.device
        was_training = module.training
        module.eval()
        parts: list[dict[int, tuple[dict[str, Any], dict[str, Any], float, float]]] = []
        for batch in batches:
            output = module(normalize(batch["pixels"].to(device), self.mean, self.std))
            boxes, classes = batch["boxes"].to(device), _learnt(batch).to(device)
            losses, weights = module.losses_of(output, boxes, classes)
            found = module.found_in(output, threshold=JUDGED)
            numbers = zip(losses["loss"].tolist(), weights.tolist(), strict=True)
            scales = batch["scale"].tolist() if "scale" in batch else [1.0] * len(found)
            rows = {}
            for index, true, said, (loss, weight), scale in zip(
                batch["index"].tolist(), _true(batch), found, numbers, scales, strict=True
            ):
                answer = {name: value.cpu().numpy() for name, value in said.items()}
                both = [{**row, "boxes": row["boxes"] / scale} for row in (true, answer)]
                rows[index] = both[0], both[1], loss, weight
            parts.append(rows)
        module.train(was_training)
        whole = {index: row for part in self.collect(parts) for index, row in part.items()}
        truth, detections, sums, counts = (list(column) for column in zip(*whole.values(), strict=True))
        return truth, detections, np.array(sums), np.array(counts)

    def samples(self, seed: int) -> list[dict[str, str]]:
        """None: the report shows pictures."""
        return []

    def flops(self, batch: Batch) -> int:
        return len(batch["pixels"]) * self.module.flops_per_image(batch["classes"].shape[1])


def _learnt(batch: Batch) -> Tensor:
    """The classes `(B, M)`, those of crowds as padding."""
    return batch["classes"].masked_fill(batch["crowd"], -1) if "crowd" in batch else batch["classes"]


def _true(batch: Batch) -> Rows:
    """The boxes of each picture without padding."""
    boxes, classes = batch["boxes"].cpu(), batch["classes"].cpu()
    crowd = batch["crowd"].cpu() if "crowd" in batch else torch.zeros_like(classes, dtype=torch.bool)
    real = classes >= 0
    return [
        {"boxes": b[own].numpy(), "classes": c[own].numpy(), "crowd": ignored[own].numpy()}
        for b, c, ignored, own in zip(boxes, classes, crowd, real, strict=True)
    ]
