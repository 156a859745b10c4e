"""`evaluate`: measure a model on text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bedplate.api.multimodal import evaluate_multimodal
from bedplate.api.predict import label_options
from bedplate.api.vision_predict import evaluate_images
from bedplate.api.zeroshot import evaluate_labels
from bedplate.data.examples import Reading, SortedEvalLoader
from bedplate.data.labelled import LabelledTexts, read_labelled
from bedplate.data.loader import EvalLoader
from bedplate.data.masking import MaskedBatches, Masking
from bedplate.data.summaries import read_summaries
from bedplate.data.text import prepare
from bedplate.errors import InputError
from bedplate.hub.image_model import ImageModel
from bedplate.hub.load import load
from bedplate.hub.model import Model
from bedplate.hub.multimodal import MultimodalModel
from bedplate.measure.likelihood import Scorer, Scoring
from bedplate.measure.suite import run_suite
from bedplate.metrics.classification import confusion_matrix
from bedplate.models.bert import MaskedLM
from bedplate.models.classifier import Classifier
from bedplate.tasks.classify import Classify
from bedplate.tasks.language import Language
from bedplate.tasks.masked import Masked
from bedplate.tasks.summarize import Summarizer, require_rouge, score
from bedplate.tasks.zeroshot import Labels
from bedplate.train.hardware import choose_device

MASK_RATE = 0.15  # of the tokens that a masked language model is asked for, as most are trained


def evaluate(
    model: Model | ImageModel | MultimodalModel | str | Path,
    data: str | Path | Sequence[str | Path] | None = None,
    *,
    suite: str | Path | None = None,
    harness: str | Path | None = None,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    scoring: Scoring | None = None,
    progress: Callable[[str], object] = lambda line: None,
    column: str | None = None,
    sequence_length: int | None = None,
    batch_size: int | None = None,
    isolate_documents: bool = False,
    device: str = "auto",
    label: str | None = None,
    adapter: str | Path | None = None,
    summary: str | None = None,
    labels: Labels | None = None,
    probe: str | Path | Sequence[str | Path] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure a model on what it is for: text, tasks, labelled texts, summaries, or labels that it has not learnt.

    Exactly one of `data`, `suite` and `harness` says on what. What a suite is and what it gives, see `run_suite`; for
    the tasks of lm-evaluation-harness, see `run_harness`.

    Of a summariser, ROUGE of the summaries that it writes, and of the documents' first sentences. Of a classifier,
    accuracy, macro-averaged F1 and loss; a text longer than `sequence_length` is read in windows. Of another language
    model, bits per UTF-8 byte and nats per token on all of a text.

    Documents are joined by the end-of-text token and cut into rows of `sequence_length`, so a token sees at most that
    many before it; `isolate_documents` hides the documents of a row from each other.

    Args:
        model: a model, or what `load` takes.
        suite: a folder of jsonl files, each a task.
        harness: a folder of task definitions (yaml) for lm-evaluation-harness, and `tasks`, the names of those to run.
        limit: rows of each task, its first ones.
        scoring: of a suite: causal, masked or both; see `Scorer`.
        progress: called with a line as each task of a suite is done.
        column: column of the text (default: `text`, for a classifier guessed).
        sequence_length: tokens of a row (default: the context, at most 1,024; a classifier's as it was trained).
        batch_size: rows at one time (default: 8), of a language model on a text.
        device: auto (the first GPU, else the CPU), cpu, cuda or mps, for a model that is loaded here.
        label: column of the label (default: guessed), for a classifier.
        adapter: a LoRA adapter to put on it, for a model that is loaded here.
        summary: column of the summaries (default: guessed), for a summariser, whose documents are in `column`.
        probe: of a model of images, labelled pictures that its frozen features are judged with, see `evaluate_images`.
        labels: what a model that has not learnt them chooses between, see `api.zeroshot.evaluate_labels`, which says
            what is returned.
        options: with labels, those of `predict`: examples, shots, seed, method, template, calibrate.

    Returns:
        {"n": rows, "metrics": {name: {"value", "low", "high", "n"}}, "sequence_length"}; of a language model also
        "tokens" and "bytes", of a classifier "data" (what was found) and "confusion" (rows: truth, in the order of the
        model's labels), of a summariser "data" and "baselines" ({"lead": metrics of first sentences}).

    Raises:
        InputError: labels that the classifier does not know, or options that do not fit the model.
    """
    given = [name for name, value in (("data", data), ("suite", suite), ("harness", harness)) if value is not None]
    if len(given) != 1:
        raise InputError(f"give one of data, suite and harness to measure on, not {' and '.join(given) or 'none'}")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be 1 or more")
    loaded = load(model, choose_device(device), adapter=adapter) if isinstance(model, str | Path) else model
    others: dict[str, Any]
    if isinstance(loaded, MultimodalModel):
        others = {"suite": suite, "harness": harness, "tasks": tasks or None, "limit": limit, "scoring": scoring}
        others |= {"summary": summary, "sequence_length": sequence_length, "batch_size": batch_size, "probe": probe}
        others |= {"isolate_documents": isolate_documents or None}
        others |= {name: options.pop(name, None) for name in ("examples", "shots", "method", "calibrate")}
        from bedplate.hub.draw_model import DrawModel

        if not isinstance(loaded, DrawModel):  # nothing is drawn
            others["seed"] = options.pop("seed", None)
        if name := next((name for name, value in others.items() if value is not None), None):
            raise InputError(
                f"{name} is for other models, and one of texts and pictures is measured on data alone; leave it out"
            )
        assert data is not None
        return evaluate_multimodal(loaded, as_list(data), column=column, label=label, labels=labels, **options)
    seed, examples = options.pop("seed", None), options.pop("examples", None)
    if seed is not None and not isinstance(examples, str | Path):
        raise InputError(
            f"seed={seed} draws examples of labels from a file, and none is given as examples; leave it out"
        )
    chosen = label_options(labels, examples, options.pop("shots", None), seed or 0, options)
    if name := next((name for name in ("judge", "best_of", "ranker") if name in options), None):
        raise InputError(f"{name}={options[name]} is for models that draw, and this is none")
    if isinstance(loaded, ImageModel):
        others = {"suite": suite, "harness": harness, "tasks": tasks or None, "limit": limit}
        others |= {"scoring": scoring, "summary": summary, "labels": labels, "sequence_length": sequence_length}
        others |= options | {"batch_size": batch_size}
        others |= {"isolate_documents": isolate_documents or None}
        if name := next((name for name, value in others.items() if value is not None), None):
            raise InputError(
                f"{name} is for models of text; a model of images is measured on data: pictures with labels or boxes"
            )
        assert data is not None
        return evaluate_images(loaded, as_list(data), column=column, label=label, probe=probe)
    if probe is not None:
        raise InputError(f"probe={probe} is for models of images, and this is a model of text")
    if data is None:
        if labels is not None:
            raise InputError("labels are for data; a suite and a harness bring their own")
        of_data = {"column": column, "label": label, "summary": summary, "sequence_length": sequence_length}
        of_data |= {"batch_size": batch_size, "isolate_documents": isolate_documents or None}
        _need_none(of_data | options, "a suite or a harness")
        return _on_tasks(loaded, suite, harness, tasks, limit, scoring, progress)
    if tasks or limit is not None or scoring is not None:
        raise InputError("tasks, limit and scoring are for suite and harness; a text or labelled texts have none")
    if labels is not None:
        of_text = {"summary": summary, "sequence_length": sequence_length, "batch_size": batch_size}
        _need_none(of_text | {"isolate_documents": isolate_documents or None}, "a choice between labels")
        return evaluate_labels(loaded, data, column=column, label=label, **chosen, **options)
    _need_none(options, "text or labelled texts")
    return _on_texts(
        loaded, as_list(data), column, label, summary, sequence_length, batch_size, isolate_documents=isolate_documents
    )


def _need_none(given: Mapping[str, Any], what: str) -> None:
    """Refuse options that measuring on `what` does not have.

    Raises:
        InputError: one of them is given.
    """
    if name := next((name for name, value in given.items() if value is not None), None):
        raise InputError(f"{name} is no option of measuring on {what}; leave it out")


def as_list(data: str | Path | Sequence[str | Path]) -> list[str]:
    """One path or several as a list of strings."""
    return [str(data)] if isinstance(data, str | Path) else [str(path) for path in data]


def _on_texts(
    loaded: Model,
    paths: list[str],
    column: str | None,
    label: str | None,
    summary: str | None,
    sequence_length: int | None,
    batch_size: int | None,
    *,
    isolate_documents: bool,
) -> dict[str, Any]:
    """What the model was taught, on texts; arguments as those of `evaluate`."""
    if loaded.tokenizer is None:
        raise InputError("the model has no tokenizer.json, which measuring on text needs")
    loaded.need_tokenizer()  # one of this model
    module, length = loaded.module, _length(loaded, sequence_length)
    writer = loaded.summarizer()
    if summary is not None and writer is None:
        raise InputError(f"summary={summary!r} is for summarisers; this model was not taught to summarise")
    if batch_size is not None and (writer is not None or isinstance(module, Classifier)):
        raise InputError("batch_size is for language models; this one's batches follow from the lengths of its texts")
    if isinstance(module, Classifier):
        if isolate_documents:
            raise InputError("isolate_documents is for language models; a classifier reads each text by itself")
        data = read_labelled(paths, column, label, module.labels)
        return _classifier(module, loaded.tokenizer, data, replace(_reading(loaded), sequence_length=length))
    if label is not None:
        raise InputError(f"label={label!r} is for classifiers; this is a language model, measured on text alone")
    if writer is not None:
        if sequence_length is not None or isolate_documents:
            raise InputError("sequence_length and isolate_documents are not for summarisers; leave them out")
        return _summarizer(writer, paths, column, summary)
    return _language_model(loaded, paths, column or "text", length, batch_size or 8, isolate_documents)


def _reading(loaded: Model) -> Reading:
    """How a classifier reads texts."""
    config = loaded.config
    return Reading.of(loaded.tokenizer_config, config.max_position_embeddings, config.is_encoder)


def _length(loaded: Model, wanted: int | None) -> int:
    """Tokens of a row: those that are wanted, or as many as the model reads, within limits."""
    context = loaded.config.max_position_embeddings
    if wanted is None and isinstance(loaded.module, Classifier):
        return _reading(loaded).sequence_length
    length = min(context, 1024) if wanted is None else wanted
    if length < 1:
        raise InputError(f"sequence_length={length} must be 1 or more")
    if length > context:
        raise InputError(f"sequence_length={length} is longer than the model's context of {context} tokens")
    return length


def _language_model(
    loaded: Model, paths: list[str], column: str, length: int, batch_size: int, isolate_documents: bool
) -> dict[str, Any]:
    tokenizer, module = loaded.need_tokenizer(), loaded.module
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(paths, tokenizer, column=column, val_fraction=0, cache_dir=scratch)
        text = prepared.train if prepared.val is None else prepared.val  # of a prepared folder what was held out
        batches = EvalLoader(text, length, batch_size, isolate_documents=isolate_documents)
        if isinstance(module, MaskedLM):
            masks = Masking.of(tokenizer, MASK_RATE, shift=0, seed=0)
            metrics = Masked(module, tokenizer).evaluate(MaskedBatches(batches, masks))
        else:
            metrics = Language(loaded.need_language_model(), tokenizer).evaluate(batches)
        tokens, size = len(text), text.bytes
    rows = int(metrics["loss"]["n"])
    return {"n": rows, "metrics": metrics, "tokens": tokens, "bytes": size, "sequence_length": length}


def _on_tasks(
    model: Model,
    suite: str | Path | None,
    harness: str | Path | None,
    tasks: Sequence[str],
    limit: int | None,
    scoring: Scoring | None,
    progress: Callable[[str], object],
) -> dict[str, Any]:
    if suite is not None:
        if tasks:
            raise InputError("tasks are names of a harness's tasks; of a suite all files are scored")
        return run_suite(Scorer(model, scoring), suite, limit=limit, progress=progress)
    if scoring is not None:
        raise InputError("scoring is for a suite; lm-evaluation-harness reads from left to right")
    try:
        from bedplate.measure.harness import run_harness
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise InputError("lm-evaluation-harness is not installed; pip install 'bedplate[eval]'") from None
    assert harness is not None
    return run_harness(model, harness, tasks, limit=limit)


def _summarizer(writer: Summarizer, paths: list[str], column: str | None, summary: str | None) -> dict[str, Any]:
    require_rouge()  # before hours of writing
    data = read_summaries(paths, column, summary)
    documents = [row.document for row in data.rows]
    found = {"document": data.document, "summary": data.summary, "windowed": writer.windowed(documents)}
    return {"n": len(data.rows), **score(data.rows, writer.summarize(documents)), "data": found}


def _classifier(module: Classifier, tokenizer: Tokenizer, data: LabelledTexts, reading: Reading) -> dict[str, Any]:
    labels = [module.labels.index(label) for label in data.labels]
    rows, task = reading.rows(tokenizer, data.texts, labels), Classify(module)
    logits, truth = task.logits(SortedEvalLoader(rows))
    matrix = confusion_matrix(truth.numpy(), logits.argmax(1).numpy(), len(module.labels))
    return {
        "n": len(data),
        "metrics": task.measure(logits, truth),
        "sequence_length": reading.sequence_length,
        "data": {
            "column": data.column,
            "label": data.label,
            "dropped": dict(data.dropped),
            "windowed": rows.windowed,
            "truncated": rows.truncated,
        },
        "labels": module.labels,
        "confusion": matrix.tolist(),
    }
