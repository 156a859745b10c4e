"""How many answers to questions are right."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from bedplate.metrics.proportion import proportion

WORD = re.compile(r"(?:(?<![\w.+-])[+-]?\.?(?=\d))?[^\W_]\w*(?:['’.:-][^\W_]\w*)*(?:[+#]+(?!\w))?")
"""A word in the `_shape` of a text: "t-shirt", "-5", ".5", "c++"."""
COMMA = re.compile(r"(?<=\d),(?=\d)")
JOINERS = "\u200c\u200d"
ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {name: str(number) for number, name in enumerate(NUMBERS)}


def normal_answer(answer: str) -> str:
    """An answer as it is compared: in lower case, without punctuation around words and without articles, numbers up to
    ten as digits (the rule of VQA, Antol et al. 2015, but for its list of contractions, and hyphens, which stay inside
    of words).

    A number keeps its sign and its point, and loses the commas between its digits. Where nothing else is left articles
    stay, and so does what holds no word, such as "+": "" is the form of an empty answer alone.
    """
    text = COMMA.sub("", unicodedata.normalize("NFC", answer.lower()).replace("−", "-"))
    words = [text[slice(*found.span())] for found in WORD.finditer(_shape(text))]
    kept = [DIGITS.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(kept or words or text.split())


def _shape(text: str) -> str:
    """The text with "_" for each mark that joins a letter, such as a vowel sign, which `re` takes for no part of it."""
    joins = (each in JOINERS or unicodedata.category(each).startswith("M") for each in text)
    return "".join("_" if join else " " if each == "_" else each for each, join in zip(text, joins, strict=True))


def answer_accuracy(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], kinds: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """The share of answers that are one of the right ones, see `normal_answer`.

    Args:
        predictions: N answers.
        answers: The right ones of each question.
        kinds: Of each question; "" counts in "accuracy" alone.

    Returns:
        {"accuracy", and "accuracy_KIND" for each kind, sorted: {"value", "low", "high", "n"}}, with 95 % intervals of
        `proportion`, which take questions for independent.
    """
    if len(predictions) != len(answers) or (kinds is not None and len(kinds) != len(answers)):
        raise ValueError(f"{len(predictions)} predictions and {len(kinds or ())} kinds for {len(answers)} questions")
    right = [
        normal_answer(said) in map(normal_answer, several) for said, several in zip(predictions, answers, strict=True)
    ]
    found = {"accuracy": proportion(right)}
    for kind in sorted(set(kinds or ()) - {""}):
        found[f"accuracy_{kind}"] = proportion(
            [hit for hit, other in zip(right, kinds or (), strict=True) if other == kind]
        )
    return found
