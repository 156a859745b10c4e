"""`evaluate`: measure a model on text."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bedplate.data.loader import EvalLoader
from bedplate.data.text import prepare
from bedplate.errors import InputError
from bedplate.hub.model import Model, load
from bedplate.tasks.language import Language
from bedplate.train.hardware import choose_device


def evaluate(
    model: Model | str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    column: str = "text",
    sequence_length: int | None = None,
    batch_size: int = 8,
    isolate_documents: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Bits per UTF-8 byte and nats per token of a model on all of a text.

    Documents are joined by the end-of-text token and cut into rows of `sequence_length`, so a token sees at most that
    many before it; `isolate_documents` hides the documents of a row from each other.

    Args:
        model: a model, or what `load` takes.
        sequence_length: tokens of a row (default: the model's context, at most 1,024).
        device: auto (the first GPU, else the CPU), cpu, cuda or mps, for a model that is loaded here.

    Returns:
        {"n": rows, "metrics": {name: {"value", "low", "high", "n"}}, "tokens", "bytes", "sequence_length"}.
    """
    loaded = model if isinstance(model, Model) else load(model, device=choose_device(device))
    if loaded.tokenizer is None:
        raise InputError(f"{model}: the model has no tokenizer.json, which measuring on text needs")
    context = loaded.config.max_position_embeddings
    length = min(context, 1024) if sequence_length is None else sequence_length
    if length < 1 or batch_size < 1:
        raise InputError(f"sequence_length={length} and batch_size={batch_size} must be 1 or more")
    if length > context:
        raise InputError(f"sequence_length={length} is longer than the model's context of {context} tokens")
    paths = [str(data)] if isinstance(data, str | Path) else [str(path) for path in data]
    with tempfile.TemporaryDirectory() as scratch:
        text = prepare(paths, loaded.tokenizer, column=column, val_fraction=0, cache_dir=scratch).train
        batches = EvalLoader(text, length, batch_size, isolate_documents=isolate_documents)
        metrics = Language(loaded.module, loaded.tokenizer).evaluate(batches)
        tokens, size = len(text), text.bytes
    rows = int(metrics["loss"]["n"])
    return {"n": rows, "metrics": metrics, "tokens": tokens, "bytes": size, "sequence_length": length}
