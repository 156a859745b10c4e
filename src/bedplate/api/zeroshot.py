"""Labels that a model has not learnt: what `predict` and `evaluate` read from files, and what is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.data.labelled import LabelledTexts, read_labelled
from bedplate.hub.model import Model
from bedplate.hub.options import taken
from bedplate.hub.zeroshot import OPTIONS, ZeroShot
from bedplate.metrics.classification import accuracy, confusion_matrix, macro_f1
from bedplate.tasks.zeroshot import Example, Labels, check_label, choose_examples, read_labels

SHOTS = 4  # examples of each label, where a file of them is given

Files = str | Path | Sequence[str | Path]


def read_examples(
    file: Files,
    labels: Labels,
    shots: int | None = None,
    seed: int = 0,
    column: str | None = None,
    label: str | None = None,
) -> list[Example]:
    """`shots` labelled texts of each label out of a file, drawn by the seed.

    Raises:
        InputError: what `read_labelled` raises, a label that is not among `labels`, or too few texts of one.
    """
    names = list(read_labels(labels))
    data = _of_labels(read_labelled(_paths(file), column, label), names)
    return choose_examples(data.texts, data.labels, names, SHOTS if shots is None else shots, seed)


def evaluate_labels(
    model: Model, data: Files, labels: Labels, *, column: str | None = None, label: str | None = None, **options: Any
) -> dict[str, Any]:
    """Accuracy and macro-averaged F1 of a choice between labels that the model has not learnt, beside two baselines.

    Args:
        data: labelled texts; columns are guessed where `column` and `label` do not name them.
        options: those of `hub.zeroshot.ZeroShot`.

    Returns:
        {"n", "metrics": {"accuracy", "macro_f1"}, "baselines": {"chance", "majority": the same metrics}, "method",
        "data", "labels", "confusion" (rows: truth)}. Chance is guessing each label alike, whose F1 is that of a
        seeded draw; majority is the most frequent label of `data` for all.

    Raises:
        InputError: a label in the data that is not among `labels`, an unknown option, and what `ZeroShot` raises.
    """
    chooser = ZeroShot(model, labels, **taken(options, OPTIONS, "a choice between labels"))
    names = chooser.labels
    texts = _of_labels(read_labelled(_paths(data), column, label), names)
    chosen = [names.index(row["label"]) for row in chooser.predict(texts.texts)]
    truth = np.array([names.index(name) for name in texts.labels])
    return {
        "n": len(texts),
        "metrics": measured(truth, np.array(chosen), len(names)),
        "baselines": baselines(truth, len(names)),
        "method": chooser.method,
        "data": {
            "column": texts.column,
            "label": texts.label,
            "dropped": dict(texts.dropped),
            "cut": chooser.cut,
        },
        "labels": names,
        "confusion": confusion_matrix(truth, np.array(chosen), len(names)).tolist(),
    }


def measured(truth: np.ndarray, chosen: np.ndarray, classes: int) -> dict[str, dict[str, float]]:
    """Accuracy and macro-F1 of classes by number, with intervals over texts."""
    return {"accuracy": accuracy(truth, chosen), "macro_f1": macro_f1(truth, chosen, classes)}


def baselines(truth: np.ndarray, classes: int) -> dict[str, dict[str, dict[str, float]]]:
    """What is reached without reading: {"chance", "majority"} of `measured`."""
    drawn = np.random.default_rng(0).integers(0, classes, len(truth))
    most = Counter(truth.tolist()).most_common(1)[0][0]
    return {
        "chance": measured(truth, drawn, classes),
        "majority": measured(truth, np.full(len(truth), most), classes),
    }


def _of_labels(data: LabelledTexts, names: Sequence[str]) -> LabelledTexts:
    for source, name in zip(data.sources, data.labels, strict=True):
        check_label(name, names, source)
    return data


def _paths(files: Files) -> list[str]:
    return [str(files)] if isinstance(files, str | Path) else [str(file) for file in files]
