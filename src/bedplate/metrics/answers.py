"""Answers: which are right, and what somebody who does not look would say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence


def plain(answer: str) -> str:
    """An answer as it is compared: in lower case, single spaces, without the stop that ends it."""
    return " ".join(answer.casefold().split()).rstrip(".!").rstrip()


def is_right(answer: str, accepted: Iterable[str]) -> bool:
    """Whether an answer is one of those that are accepted, as `plain` compares them."""
    return plain(answer) in map(plain, accepted)


def guesses(
    questions: Sequence[str],
    answers: Sequence[str],
    owners: Sequence[int],
    learnt: Sequence[tuple[str, str]] | None = None,
) -> list[str]:
    """The most frequent answer to each question `(N,)`, and to none of its own the most frequent of all.

    It is what a reader who never saw a picture knows; with all questions the same, what one knows who did not read
    either.

    Args:
        answers: the right ones `(N,)`.
        owners: the number of each question's picture `(N,)`: its own answers tell nothing about it.
        learnt: questions with answers that the guesses are made from; without them, those of the other pictures.
    """
    rows = list(zip(questions, answers, strict=True)) if learnt is None else list(learnt)
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in rows:
        counted[question][answer] += 1
    every = _ranked(sum(counted.values(), Counter()))
    ranked = {question: _ranked(counts) for question, counts in counted.items()}
    own: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, owner in zip(questions, answers, owners, strict=True):
        if learnt is None:
            own[owner].append((question, answer))
    found = []
    for question, owner in zip(questions, owners, strict=True):
        same = Counter(answer for asked, answer in own[owner] if asked == question)
        theirs = _most(ranked.get(question, []), same)
        found.append(theirs or _most(every, Counter(answer for _, answer in own[owner])))
    return found


Ranked = list[tuple[str, int]]


def _ranked(counts: Mapping[str, int]) -> Ranked:
    """Answers with their counts, the most frequent first, equally frequent ones by name."""
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))


def _most(ranked: Ranked, without: Mapping[str, int]) -> str:
    """The most frequent answer where some of them are not counted; "" where none is left."""
    best, most = "", 0
    for answer, count in ranked:
        if count - without.get(answer, 0) > most:
            best, most = answer, count - without.get(answer, 0)
        if answer not in without:
            break  # those behind it are no more frequent
    return best
