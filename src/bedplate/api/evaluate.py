"""`evaluate`: measure a model on text."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bedplate.api.predict import label_options
from bedplate.api.zeroshot import evaluate_labels
from bedplate.data.examples import SortedEvalLoader, encode_rows
from bedplate.data.labelled import LabelledTexts, read_labelled
from bedplate.data.loader import EvalLoader
from bedplate.data.text import prepare
from bedplate.errors import InputError
from bedplate.hub.model import Model, load
from bedplate.metrics.classification import confusion_matrix
from bedplate.models.classifier import Classifier
from bedplate.tasks.classify import Classify
from bedplate.tasks.language import Language
from bedplate.tasks.zeroshot import Labels
from bedplate.train.hardware import choose_device


def evaluate(
    model: Model | str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    column: str | None = None,
    sequence_length: int | None = None,
    batch_size: int = 8,
    isolate_documents: bool = False,
    device: str = "auto",
    label: str | None = None,
    labels: Labels | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure a model: a language model on a text, a classifier on labelled texts, any other with `labels` on these.

    Of a classifier, accuracy, macro-averaged F1 and loss; a text longer than `sequence_length` is read in windows. Of a
    language model, bits per UTF-8 byte and nats per token on all of a text.

    Documents are joined by the end-of-text token and cut into rows of `sequence_length`, so a token sees at most that
    many before it; `isolate_documents` hides the documents of a row from each other.

    Args:
        model: a model, or what `load` takes.
        column: column of the text (default: `text`, for a classifier guessed).
        sequence_length: tokens of a row (default: the model's context, at most 1,024; 512 for a classifier).
        batch_size: rows at one time, of a language model.
        device: auto (the first GPU, else the CPU), cpu, cuda or mps, for a model that is loaded here.
        label: column of the label (default: guessed), for a classifier.
        labels: what a model that has not learnt them chooses between, see `api.zeroshot.evaluate_labels`, which says
            what is returned.
        options: with labels, those of `predict`: examples, shots, seed, method, template, calibrate.

    Returns:
        {"n": rows, "metrics": {name: {"value", "low", "high", "n"}}, "sequence_length"}; of a language model also
        "tokens" and "bytes", of a classifier "data" (what was found) and "confusion" (rows: truth, in the order of
        the model's labels).

    Raises:
        InputError: labels that the classifier does not know, or options that do not fit the model.
    """
    loaded = model if isinstance(model, Model) else load(model, device=choose_device(device))
    chosen = label_options(
        labels, options.pop("examples", None), options.pop("shots", None), options.pop("seed", 0), options
    )
    if labels is not None:
        return evaluate_labels(loaded, data, column=column, label=label, **chosen, **options)
    if loaded.tokenizer is None:
        raise InputError(f"{model}: the model has no tokenizer.json, which measuring on text needs")
    context, module = loaded.config.max_position_embeddings, loaded.module
    longest = 512 if isinstance(module, Classifier) else 1024
    length = min(context, longest) if sequence_length is None else sequence_length
    if length < 1 or batch_size < 1:
        raise InputError(f"sequence_length={length} and batch_size={batch_size} must be 1 or more")
    if length > context:
        raise InputError(f"sequence_length={length} is longer than the model's context of {context} tokens")
    paths = [str(data)] if isinstance(data, str | Path) else [str(path) for path in data]
    if isinstance(module, Classifier):
        if isolate_documents:
            raise InputError("isolate_documents is for language models; a classifier reads each text by itself")
        return _classifier(module, loaded.tokenizer, read_labelled(paths, column, label, module.labels), length)
    if label is not None:
        raise InputError(f"label={label!r} is for classifiers; this is a language model, measured on text alone")
    with tempfile.TemporaryDirectory() as scratch:
        text = prepare(paths, loaded.tokenizer, column=column or "text", val_fraction=0, cache_dir=scratch).train
        batches = EvalLoader(text, length, batch_size, isolate_documents=isolate_documents)
        metrics = Language(module, loaded.tokenizer).evaluate(batches)
        tokens, size = len(text), text.bytes
    rows = int(metrics["loss"]["n"])
    return {"n": rows, "metrics": metrics, "tokens": tokens, "bytes": size, "sequence_length": length}


def _classifier(module: Classifier, tokenizer: Tokenizer, data: LabelledTexts, length: int) -> dict[str, Any]:
    labels = [module.labels.index(label) for label in data.labels]
    rows, task = encode_rows(tokenizer, data.texts, labels, length), Classify(module)
    logits, truth = task.logits(SortedEvalLoader(rows))
    matrix = confusion_matrix(truth.numpy(), logits.argmax(1).numpy(), len(module.labels))
    return {
        "n": len(data),
        "metrics": task.measure(logits, truth),
        "sequence_length": length,
        "data": {
            "column": data.column,
            "label": data.label,
            "dropped": dict(data.dropped),
            "windowed": rows.windowed,
        },
        "labels": module.labels,
        "confusion": matrix.tolist(),
    }
