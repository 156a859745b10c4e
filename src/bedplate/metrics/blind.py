"""What somebody would answer who does not see the pictures that questions are about."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

Ranked = list[tuple[str, int]]


def question_alone(
    questions: Sequence[str],
    answers: Sequence[str],
    owners: Sequence[int],
    learnt: Sequence[tuple[str, str]] | None = None,
) -> list[str]:
    """The most frequent answer to each question `(N,)` in these words, and to words never asked that of all questions.

    Args:
        answers: the right ones `(N,)`.
        owners: the number of each question's picture `(N,)`.
        learnt: questions with answers, from which it is known. Without them from the other rows: of each row those of
            all other pictures, so that no answer gives itself away.
    """
    rows = list(zip(questions, answers, strict=True)) if learnt is None else list(learnt)
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in rows:
        counted[question][answer] += 1
    every = _ranked(Counter(answer for _, answer in rows))
    ranked = {question: _ranked(counts) for question, counts in counted.items()}
    own: dict[int, list[tuple[str, str]]] = defaultdict(list)
    if learnt is None:
        for question, answer, owner in zip(questions, answers, owners, strict=True):
            own[owner].append((question, answer))
    found = []
    for question, owner in zip(questions, owners, strict=True):
        same = Counter(answer for asked, answer in own[owner] if asked == question)
        theirs = _most(ranked.get(question, []), same)
        found.append(theirs or _most(every, Counter(answer for _, answer in own[owner])))
    return found


def _ranked(counts: Mapping[str, int]) -> Ranked:
    """Answers with their counts, the most frequent first, equally frequent ones by name."""
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))


def _most(ranked: Ranked, without: Mapping[str, int]) -> str:
    """The most frequent answer where some of them are not counted; "" where none is left."""
    left: Ranked = []
    for answer, count in ranked:
        left.append((answer, count - without.get(answer, 0)))
        if answer not in without:
            break  # those behind it are no more frequent
    return next((answer for answer, count in _ranked(dict(left)) if count > 0), "")
