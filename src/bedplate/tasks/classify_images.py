"""Image classification: which of some labels a picture has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.metrics.calibration import expected_calibration_error
from bedplate.metrics.classification import accuracy, macro_f1
from bedplate.metrics.intervals import ratio_interval
from bedplate.models.vit import ViT
from bedplate.tasks import Batch, row_count
from bedplate.tasks.pixels import normalize


class Augment(Protocol):
    """What training shows of a batch; see `data.augment.ImageAugment`."""

    def __call__(self, pixels: Tensor, size: tuple[int, int]) -> Tensor: ...

    def mix(self, pixels: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]: ...


class ClassifyImages:
    """A label for each picture. Batches hold `pixels (B, 3, H, W)` uint8, `labels (B,)` and `index (B,)`.

    Args:
        mean, std: of each channel of values in 0..1, taken out before the network.
        augment: what training shows of a batch; None shows it as it is.
        label_smoothing: share of the target that all classes share (arXiv 1512.00567, section 7).
        flip: whether a picture's logits are the mean of its own and its mirror image's, when it is not trained on.
        collect: makes of one rank's results those of all, where ranks share the batches that are not trained on.
    """

    metrics: ClassVar[Mapping[str, Literal["min", "max"]]] = {
        "accuracy": "max",
        "macro_f1": "max",
        "ece": "min",
        "loss": "min",
    }
    unit: ClassVar[Literal["tokens", "images"]] = "images"

    def __init__(
        self,
        module: ViT,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        augment: Augment | None = None,
        label_smoothing: float = 0.0,
        flip: bool = False,
        collect: Callable[[list[Any]], list[Any]] = list,
    ) -> None:
        self.module, self.mean, self.std, self.collect = module, mean, std, collect
        self.augment, self.label_smoothing, self.flip = augment, label_smoothing, flip

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        pixels, labels, classes = batch["pixels"], batch["labels"], len(self.module.labels)
        targets = F.one_hot(labels, classes).float()
        if self.augment is not None:
            pixels, targets = self.augment.mix(self.augment(pixels, self.module.config.image_size), labels, classes)
        logits = self.module(normalize(pixels, self.mean, self.std)).float()
        total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=self.label_smoothing)
        return {"loss": (total, row_count(logits))}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Accuracy, macro-averaged F1, expected calibration error and nats a picture (`loss`), with intervals."""
        return self.measure(*self.logits(batches))

    def measure(self, logits: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
        """The metrics of `logits (N, C)` for pictures of `labels (N,)`."""
        predicted, truth = logits.argmax(1).numpy(), labels.numpy()
        nats = F.cross_entropy(logits, labels, reduction="none").double().numpy()
        confidence = logits.softmax(1).max(1).values.numpy()
        return {
            "accuracy": accuracy(truth, predicted),
            "macro_f1": macro_f1(truth, predicted, len(self.module.labels)),
            "ece": expected_calibration_error(confidence, truth == predicted),
            "loss": ratio_interval(nats, np.ones(len(nats))),
        }

    @torch.no_grad()
    def logits(self, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """(logits `(N, C)`, labels `(N,)`) of all ranks' pictures in the batches' order, on the CPU in fp32.

        A picture that comes twice, as one that fills up the batches of several ranks does, counts once.
        """
        module, device = self.module, self.module.device
        was_training = module.training
        module.eval()
        parts = []
        for batch in batches:
            scores = image_logits(module, normalize(batch["pixels"].to(device), self.mean, self.std), self.flip)
            parts.append((batch["index"].cpu(), scores.float().cpu(), batch["labels"].cpu()))
        module.train(was_training)
        index, scores, labels = (torch.cat(part) for part in zip(*self.collect(parts), strict=True))
        first = np.sort(np.unique(index.numpy(), return_index=True)[1])
        return scores[first], labels[first]

    def samples(self, seed: int) -> list[dict[str, str]]:
        """None: the report shows pictures."""
        return []

    def flops(self, batch: Batch) -> int:
        return len(batch["pixels"]) * self.module.flops_per_image()


def image_logits(module: Callable[[Tensor], Tensor], pixels: Tensor, flip: bool) -> Tensor:
    """Logits `(B, C)` of normalised pixels; with `flip` the mean of those of a picture and of its mirror image."""
    logits = module(pixels)
    return (logits + module(pixels.flip(-1))) / 2 if flip else logits
