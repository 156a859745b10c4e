"""How near captions are to those that people wrote: BLEU-4, CIDEr-D and exact match, in Python alone.

Words are runs of letters and digits in lower case, with the apostrophes, hyphens and points inside of them; all other
punctuation is left out. The reference implementation (coco-caption) runs Stanford's tokenizer, in Java, and then leaves
out a list of punctuation: on plain captions the words are the same. ROUGE-L is in `metrics.rouge`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bedplate.metrics.intervals import Floats, percentile_interval, ratio_interval, resampled_sums
from bedplate.metrics.proportion import proportion

ORDER = 4
"""Words of the longest n-grams that are compared."""
SIGMA = 6.0
"""Words of difference in length that CIDEr-D's Gaussian penalty takes for one standard deviation."""
SCALE = 10.0
WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")

Grams = Counter[tuple[str, ...]]


def words(text: str) -> list[str]:
    """The words of a caption, as the module says."""
    return WORD.findall(text.lower())


class BleuCounts(NamedTuple):
    """What BLEU is computed from: sums over captions of `ORDER` numbers of n-grams, and of lengths in words."""

    matched: tuple[int, ...]
    """n-grams that a reference holds, too, each at most as often as in the reference that has most of it."""
    there: tuple[int, ...]
    length: int
    reference: int
    """Length of the reference nearest in length, the shorter of two."""


def bleu_counts(prediction: str, references: Sequence[str]) -> BleuCounts:
    """The counts of one caption."""
    said, known = words(prediction), [words(text) for text in references]
    most = Grams()
    for each in known:
        most |= _grams(each)
    matched = [0] * ORDER
    for gram, count in (_grams(said) & most).items():
        matched[len(gram) - 1] += count
    there = tuple(max(0, len(said) - n) for n in range(ORDER))
    nearest = min((abs(len(each) - len(said)), len(each)) for each in known)[1]
    return BleuCounts(tuple(matched), there, len(said), nearest)


def bleu(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, resamples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """BLEU-4 of a corpus, 0 to 1 (Papineni et al. 2002, ACL), with its 95 % interval by bootstrap over captions.

    The brevity penalty takes the nearest reference length, as coco-caption does. Without smoothing: where no four words
    in a row match anywhere it is 0.

    Returns:
        {"value", "low", "high", "n"}.
    """
    _check(predictions, references)
    rows = [bleu_counts(text, several) for text, several in zip(predictions, references, strict=True)]
    columns = np.array([[*row.matched, *row.there, row.length, row.reference] for row in rows], np.float64)
    resampled = _bleu(resampled_sums(columns, resamples, np.random.default_rng(seed)))
    return percentile_interval(float(_bleu(columns.sum(0)[None])[0]), resampled, len(rows))


def _bleu(sums: Floats) -> Floats:
    """BLEU (R,) of sums (R, 2 ORDER + 2) of counts."""
    matched, there = sums[:, :ORDER], sums[:, ORDER : 2 * ORDER]
    length, reference = sums[:, -2], sums[:, -1]
    with np.errstate(divide="ignore"):
        precision = np.exp(np.log(matched / np.maximum(there, 1)).mean(1))
        penalty = np.exp(np.minimum(0, 1 - reference / length))
    return np.where(length > 0, precision * penalty, 0.0)


def cider_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """CIDEr-D (N,) of each caption, 0 to 10 (Vedantam et al. 2015, arXiv 1411.5726, section 5).

    n-grams of 1 to 4 words are weighed by tf-idf, where a document is all references of a picture. For each n the
    similarity to a reference is the cosine, with the weights of the caption clipped to the reference's, times
    exp(-d^2 / 2 sigma^2) with the difference d of their lengths. It is averaged over n and references.

    Words are weighed by how rare they are among these very pictures: scores of different sets do not compare, and of a
    single picture all are 0.
    """
    _check(predictions, references)
    known = [[_grams(words(text)) for text in several] for several in references]
    documents = Counter(gram for several in known for gram in set().union(*several))

    def weighed(grams: Grams) -> list[dict[tuple[str, ...], float]]:
        """tf-idf of the n-grams, by n."""
        found: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDER)]
        for gram, count in grams.items():
            found[len(gram) - 1][gram] = count * math.log(len(known) / max(1, documents[gram]))
        return found

    scores = []
    for text, several in zip(predictions, known, strict=True):
        said = _grams(words(text))
        mine = weighed(said)
        total = 0.0
        for grams in several:
            penalty = math.exp(-((_length(said) - _length(grams)) ** 2) / (2 * SIGMA**2))
            total += penalty * sum(map(_clipped_cosine, mine, weighed(grams)))
        scores.append(SCALE * total / (ORDER * len(several)))
    return np.array(scores)


def cider_d(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, resamples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """The mean of `cider_scores` with its 95 % interval by bootstrap over captions: {"value", "low", "high", "n"}."""
    scores = cider_scores(predictions, references)
    return ratio_interval(scores, np.ones(len(scores)), resamples=resamples, seed=seed)


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The share of captions whose words are those of a reference, with its 95 % interval, see `proportion`.

    What holds no word, such as an emoji, is compared as it is.
    """
    _check(predictions, references)
    return proportion(
        [
            (words(text) or text.split()) in [words(each) or each.split() for each in several]
            for text, several in zip(predictions, references, strict=True)
        ]
    )


def _clipped_cosine(mine: dict[tuple[str, ...], float], theirs: dict[tuple[str, ...], float]) -> float:
    norm = math.hypot(*mine.values()) * math.hypot(*theirs.values())
    shared = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
    return shared / norm if norm else 0.0


def _length(grams: Grams) -> int:
    """Pairs of neighbouring words: how coco-caption's CIDEr-D measures length."""
    return sum(count for gram, count in grams.items() if len(gram) == 2)


def _grams(said: Sequence[str]) -> Grams:
    """The n-grams of words, n from 1 to `ORDER`."""
    return Counter(tuple(said[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(said) - n + 1))


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} captions for the references of {len(references)} pictures")
    if not predictions:
        raise ValueError("nothing was scored: no captions")
    if not all(references):
        raise ValueError("a picture has no reference")
