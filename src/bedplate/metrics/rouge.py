"""ROUGE: how much of reference summaries a summary holds (Lin 2004), by the library `rouge-score`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from bedplate.metrics.intervals import Floats, ratio_interval

NAMES = ("rouge1", "rouge2", "rougeL")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=(?P<next>\w))|(?<=[。！？])|\n\s*\n")
ABBREVIATED = ("Mr.", "Mrs.", "Ms.", "Dr.", "Prof.", "vs.", "cf.", "e.g.", "i.e.")  # which end no sentence
BLANK_LINE = re.compile(r"\n\s*\n")
WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")  # of Chinese and Japanese signs


def need_rouge() -> None:
    """Make sure that the library is there.

    Raises:
        ImportError: it is not; says how to install it.
    """
    try:
        import rouge_score  # noqa: F401
    except ImportError as error:
        raise ImportError("ROUGE needs the package rouge-score; install it: pip install 'bedplate[eval]'") from error


def rouge_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Floats]:
    """F1 of ROUGE-1 and ROUGE-2 (one and two words) and ROUGE-L (longest common subsequence) `(N,)` of each text.

    Of several references the one of the highest score counts. Words are compared in lower case, as they are written (no
    stemming). The library knows words of a-z and 0-9 alone; where most letters of the references are others, words are
    what Unicode calls so, and each sign of Chinese and Japanese is one.

    Raises:
        ImportError: see `need_rouge`.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for the references of {len(references)} texts")
    need_rouge()
    from rouge_score.rouge_scorer import RougeScorer

    letters = [letter for several in references for text in several for letter in text if letter.isalpha()]
    other_script = 2 * sum(not letter.isascii() for letter in letters) > len(letters)
    scorer = RougeScorer(list(NAMES), tokenizer=_UnicodeWords() if other_script else None)
    scored = [scorer.score_multi(list(several), text) for text, several in zip(predictions, references, strict=True)]
    return {name: np.array([each[name].fmeasure for each in scored]) for name in NAMES}


def rouge(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """{"rouge1", "rouge2", "rougeL": {"value", "low", "high", "n"}}: mean F1 from 0 to 1, see `rouge_scores`.

    Intervals are 95 % percentile-bootstrap intervals over texts.
    """
    scores = rouge_scores(predictions, references)
    return {
        name: ratio_interval(values, np.ones(len(values)), resamples=resamples, seed=seed)
        for name, values in scores.items()
    }


class _UnicodeWords:
    """A tokenizer in the library's form."""

    def tokenize(self, text: str) -> list[str]:
        marked = unicodedata.normalize("NFC", text.lower())
        # Marks stay with their letters, as the vowels of Hindi's words do: for Python they are no part of a word.
        return WORDS.findall("".join("\u02bc" if unicodedata.category(c)[0] == "M" else c for c in marked))


def lead(document: str) -> str:
    """The first sentence: the baseline that a summariser has to beat."""
    text = document.strip()
    for found in SENTENCE_END.finditer(text):
        if BLANK_LINE.search(found.group()):
            return text[: found.start()]
        if text[: found.start()].rpartition(" ")[2].lstrip("(") in ABBREVIATED:
            continue
        following = found["next"]
        if following is None or (
            following.isalpha() and following == following.upper()
        ):  # a capital, or a caseless sign
            return text[: found.start()]
    return text
