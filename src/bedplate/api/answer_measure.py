"""What `evaluate` measures of a reader."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from bedplate.api.vision_predict import check_parts, left_out
from bedplate.data.pixel_store import PixelStore
from bedplate.data.question_loader import QuestionEvalLoader, within
from bedplate.data.questions import read_questions
from bedplate.errors import InputError
from bedplate.hub.reader_model import ReaderModel
from bedplate.tasks.answer import Answer, score

ROWS = 32  # pictures at one time


def measure_reader(
    model: ReaderModel, data: Sequence[str], *, column: str | None, label: str | None, **options: Any
) -> dict[str, Any]:
    """Answer the questions in `data`, and caption its pictures, whatever there is.

    Args:
        column: of the picture or its path (default: guessed).
        label: of the answer, or of the caption (default: guessed).
        options: `question` and `kind`, of the question and of what kind it is (default: guessed).

    Returns:
        {"n": questions, "pictures", "metrics": {"accuracy", "loss"}, "baselines", "kinds", "captions", "dropped"}; see
        `tasks.answer.score`.

    Raises:
        InputError: an option that a reader does not have, or no questions.
    """
    question, kind = options.pop("question", None), options.pop("kind", None)
    if options:
        known = "data, column, label, question and kind"
        raise InputError(f"{next(iter(options))} is no option of a reader; it is measured on {known}")
    asked = read_questions(list(data), column, question=question, answer=label, kind=kind)
    check_parts(asked.dropped, data)
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
    return {"n": len(rows), "pictures": len(store.usable), **found, **left_out(asked.dropped, store)}
