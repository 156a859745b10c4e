"""`ask`: questions about a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bedplate.api.caption import READER, reader
from bedplate.data.images import Source
from bedplate.errors import InputError
from bedplate.hub.reader_model import ReaderModel
from bedplate.hub.text import strings


def ask(
    image: Source,
    questions: str | Sequence[str],
    *,
    model: ReaderModel | str | Path = READER,
    device: str = "auto",
    **options: Any,
) -> list[dict[str, Any]]:
    """An answer to each question about one picture, which is read once.

    Args:
        image: a path, bytes, a PIL image or an array.
        questions: one or several.
        model: a reader, or what `load` takes.
        device: auto (the first GPU, else the CPU), cpu, cuda or mps, for a model that is loaded here.
        options: num_beams, length_penalty and max_new_tokens, see `ReaderModel.predict`.

    Returns:
        [{"question", "text", "score": probability of the text}].

    Raises:
        InputError: what is no picture, a folder, an empty or too long question, or a model that is no reader.
    """
    asked = strings(questions, "question")
    if isinstance(image, str | Path) and os.path.isdir(image):  # also where a name is too long for a file
        raise InputError(f"{image}: a folder; ask takes one picture")
    found = reader(model, device).ask(image, asked, **options)
    return [{"question": question, **row} for question, row in zip(asked, found, strict=True)]
