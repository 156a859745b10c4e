"""Text classification: which of some labels a text has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from bedplate.data.examples import Reading, SortedEvalLoader
from bedplate.errors import InputError
from bedplate.metrics.classification import accuracy, macro_f1
from bedplate.metrics.intervals import ratio_interval
from bedplate.models.classifier import Classifier
from bedplate.tasks import Batch, row_count


class Classify:
    """A label for each text. Batches hold `ids (B, N)`, `lengths` and `labels (B,)`; to evaluate, `text (B,)` too.

    Where they hold `targets (B, C)`, probabilities of the labels, these are learnt in place of the labels.

    A text longer than a row is read in windows: each of them is trained on, and the mean of their logits decides.
    """

    metrics: ClassVar[Mapping[str, Literal["min", "max"]]] = {"accuracy": "max", "macro_f1": "max", "loss": "min"}
    unit: ClassVar[Literal["tokens", "images"]] = "tokens"

    def __init__(self, module: Classifier) -> None:
        self.module = module

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        logits = self.module(batch["ids"], batch["lengths"])
        total = F.cross_entropy(logits.float(), batch.get("targets", batch["labels"]), reduction="sum")
        return {"loss": (total, row_count(logits))}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Accuracy, macro-averaged F1 and nats a text (`loss`), with intervals over texts."""
        logits, labels = self.logits(batches)
        return self.measure(logits, labels)

    def measure(self, logits: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
        """The metrics of `logits (T, C)` for texts of `labels (T,)`."""
        predicted, truth = logits.argmax(1).numpy(), labels.numpy()
        nats = F.cross_entropy(logits, labels, reduction="none").double().numpy()
        return {
            "accuracy": accuracy(truth, predicted),
            "macro_f1": macro_f1(truth, predicted, len(self.module.labels)),
            "loss": ratio_interval(nats, np.ones(len(nats))),
        }

    @torch.no_grad()
    def logits(self, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """(mean logits over the windows of each text `(T, C)`, labels `(T,)`), on the CPU in fp32."""
        module = self.module
        was_training = module.training
        module.eval()
        device = module.embed.weight.device
        parts = []
        for batch in batches:
            scores = module(batch["ids"].to(device), batch["lengths"].to(device)).float().cpu()
            parts.append((scores, batch["text"], batch["labels"]))
        module.train(was_training)
        scores, text, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        texts = int(text.max()) + 1
        total = torch.zeros(texts, scores.shape[1]).index_add_(0, text, scores)
        windows = torch.bincount(text, minlength=texts)
        return total / windows[:, None], torch.zeros(texts, dtype=torch.long).scatter_(0, text, labels)

    def samples(self, seed: int) -> list[dict[str, str]]:
        """None: a label is nothing to look at."""
        return []

    def flops(self, batch: Batch) -> int:
        rows, length = batch["ids"].shape
        return rows * length * self.module.flops_per_token(length)


def predict_labels(
    module: Classifier, tokenizer: Tokenizer, texts: Sequence[str], reading: Reading
) -> list[dict[str, Any]]:
    """[{"label", "score", "scores": {label: probability}}], one a text, in order."""
    if not texts:
        return []
    rows = reading.rows(tokenizer, texts)
    return as_predictions(Classify(module).logits(SortedEvalLoader(rows))[0], module.labels)


def as_predictions(logits: Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Logits `(T, C)` as a person reads them.

    Raises:
        InputError: they are no numbers.
    """
    probabilities, predictions = logits.softmax(1), []
    if not probabilities.isfinite().all():
        raise InputError("the model's scores are no numbers: its weights are damaged; train or fetch it again")
    for row in probabilities.tolist():
        best = max(range(len(row)), key=row.__getitem__)
        scores = dict(zip(labels, row, strict=True))
        predictions.append({"label": labels[best], "score": row[best], "scores": scores})
    return predictions


def mistakes(
    texts: Sequence[str], labels: Sequence[str], predictions: Sequence[Mapping[str, Any]], count: int = 10
) -> list[dict[str, Any]]:
    """The `count` wrong predictions of the highest score: {"text", "label", "predicted", "score"}."""
    wrong = [
        {"text": text, "label": label, "predicted": prediction["label"], "score": prediction["score"]}
        for text, label, prediction in zip(texts, labels, predictions, strict=True)
        if prediction["label"] != label
    ]
    return sorted(wrong, key=lambda row: -row["score"])[:count]
