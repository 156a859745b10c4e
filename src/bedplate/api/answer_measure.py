"""What `evaluate` measures of a reader."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from bedplate.data.pairs import read_pairs
from bedplate.data.pixel_store import PixelStore
from bedplate.data.question_loader import QuestionEvalLoader, within
from bedplate.data.questions import Asked, captions, read_questions
from bedplate.errors import InputError
from bedplate.hub.reader_model import ReaderModel
from bedplate.tasks.answer import Answer, score

ROWS = 32  # pictures at one time


def measure_reader(
    model: ReaderModel, data: Sequence[str], *, column: str | None, label: str | None, **options: Any
) -> dict[str, Any]:
    """Answer the questions in `data`, or caption its pictures where there are no questions.

    Args:
        column: of the picture or its path (default: guessed).
        label: of the answer, or of the caption (default: guessed).

    Returns:
        {"n": questions, "pictures", "metrics": {"accuracy", "loss"}, "baselines", "kinds", "captions", "dropped"}; see
        `tasks.answer.score`.

    Raises:
        InputError: an option that a reader does not have, or no questions and no captions.
    """
    if options:
        raise InputError(f"{next(iter(options))} is no option of a reader; it is measured on data, column and label")
    asked = _read(data, column, label)
    asked = within(asked, model.tokenizer, model.module.config.context)
    with tempfile.TemporaryDirectory() as scratch:
        store = PixelStore(asked, model.processor.size, model.processor.fit, scratch, 1)
        batches = QuestionEvalLoader(asked, model.tokenizer, ROWS, store)
        its = model.processor
        task = Answer(
            model.module, model.tokenizer, asked.questions, its.mean, its.std, max_new_tokens=model.max_new_tokens
        )
        rows = task.answers(batches)
    found = score(rows, asked)
    return {"n": len(rows), "pictures": len(asked), **found, "dropped": dict(asked.dropped), "broken": store.broken}


def _read(data: Sequence[str], column: str | None, label: str | None) -> Asked:
    """Questions, or else captions.

    Raises:
        InputError: what reading questions raises, where there are no captions either.
    """
    try:
        return read_questions(list(data), column, answer=label)
    except InputError as error:
        try:
            return captions(read_pairs(list(data), column, label))
        except InputError:
            raise error from None
