"""`predict`: a model on what a person has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bedplate.data.sources import documents, kind_of
from bedplate.errors import InputError
from bedplate.hub.model import Model, load
from bedplate.train.hardware import choose_device


def predict(
    model: Model | str | Path,
    inputs: str | Sequence[str] = (),
    *,
    file: str | Path | None = None,
    column: str = "text",
    device: str = "auto",
    adapter: str | Path | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Predictions, one an input, in order.

    Args:
        model: a model, or what `load` takes.
        inputs: texts.
        file: texts in place of `inputs`: a .txt is one, in other formats each row is one.
        column: column of the text in `file`.
        device: auto (the first GPU, else the CPU), cpu, cuda or mps, for a model that is loaded here.
        adapter: a LoRA adapter to put on it, for a model that is loaded here.
        options: those of `Model.predict`.

    Returns:
        [{"label", "score", "scores"}] of a classifier, [{"text"}] of a summariser or another language model.

    Raises:
        InputError: nothing to predict, both texts and a file, or an empty text.
    """
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    if texts and file is not None:
        raise InputError("give either texts or a file, not both")
    named = [(f"text {number}", text) for number, text in enumerate(texts, 1)] if file is None else _read(file, column)
    if not named:
        raise InputError("nothing to predict: give a text, or a file")
    for name, text in named:
        if not text.strip():
            raise InputError(f"{name}: the text is empty; remove it or fill it in")
    loaded = model if isinstance(model, Model) else load(model, choose_device(device), adapter=adapter)
    return loaded.predict([text for _, text in named], **options)


def _read(file: str | Path, column: str) -> list[tuple[str, str]]:
    if kind_of(str(file)) is None and not Path(file).is_dir() and Path(file).exists():
        raise InputError(f"{file}: unknown format; give .txt, .jsonl, .csv, .tsv or .parquet")
    return [(document.source, "".join(document.pieces)) for document in documents(file, column)]
