"""Pictures with questions and their answers; a caption is the answer to the empty question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from bedplate.data.image_files import hash_pictures
from bedplate.data.image_refs import ImageRef, forget_files
from bedplate.data.labels import split_indices
from bedplate.data.pairs import Pairs
from bedplate.data.remote import is_remote, location
from bedplate.data.sources import Paths, kind_of, resolve, shown
from bedplate.errors import InputError

CAPTION = "caption"
"""Kind of the empty question."""


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Attributes:
        text: The question; "" asks for a caption.
        answers: What counts as right, at least one; the first is learnt.
        kind: What the question is of, for tables; "" where nobody says.
    """

    text: str
    answers: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Asked:
    """N pictures and the questions about each.

    Attributes:
        images: Handles of the pictures.
        questions: Of each picture, at least one.
        dropped: How many rows or files reading left out, by reason. Parts keep the counts of the whole.
    """

    images: list[ImageRef]
    questions: list[tuple[Question, ...]]
    dropped: dict[str, int]

    @property
    def sources(self) -> list[str]:
        """Where each picture is, as errors call it."""
        return [image.where for image in self.images]

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: ArrayLike) -> Self:
        """The pictures of these (n,) indices, in their order."""
        rows = np.asarray(indices, np.int64).tolist()
        return replace(self, images=[self.images[i] for i in rows], questions=[self.questions[i] for i in rows])

    def split(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Split pictures at random into (rest, held out), as `labels.split_indices` does."""
        rest, held = split_indices([""] * len(self), fraction, seed)
        return self.select(rest), self.select(held)

    def fingerprint(self, cache_dir: str | Path) -> str:
        """Hash of the pictures and questions in their order; see `image_files.fingerprint`."""
        asked = [[(each.text, each.answers, each.kind) for each in several] for several in self.questions]
        return hash_pictures(self.images, asked, "", cache_dir)


def captions(pairs: Pairs) -> Asked:
    """Ask for a caption of each picture; the first of its texts is learnt, all that are no keywords count as right."""
    whole = pairs.whole or [len(texts) for texts in pairs.texts]
    asked: list[tuple[Question, ...]] = [
        (Question("", texts[:count], CAPTION),) for texts, count in zip(pairs.texts, whole, strict=True)
    ]
    return Asked(pairs.images, asked, dict(pairs.dropped))


def join(parts: Sequence[Asked]) -> Asked:
    """All pictures of several parts, in their order; what is asked of one picture comes together, captions in one."""
    found: dict[tuple[object, ...], tuple[ImageRef, list[Question], list[str]]] = {}
    dropped = Counter[str]()
    for part in parts:
        dropped.update(part.dropped)
        for image, questions in zip(part.images, part.questions, strict=True):
            place = (image.file, image.kind, image.place, image.column)
            _, asked, said = found.setdefault(place, (image, [], []))
            asked += [each for each in questions if each.text]
            said += [answer for each in questions if not each.text for answer in each.answers]
    every = [
        (*asked, Question("", tuple(dict.fromkeys(said)), CAPTION)) if said else tuple(asked)
        for _, asked, said in found.values()
    ]
    return Asked([image for image, *_ in found.values()], every, dict(dropped))


def read_questions(
    path: Paths,
    image: str | None = None,
    question: str | None = None,
    answer: str | None = None,
    kind: str | None = None,
) -> Asked:
    """Find the pictures that `path` names, in a fixed order, with the questions about them.

    - A table (csv, tsv, jsonl, parquet, `hf:` id): a row is a question. Columns hold a picture (a path relative to the
      table, or the Hub's {bytes, path}), the question, its answer or a list of answers, and maybe the question's kind.
      Rows of one picture are joined.
    - easy-vqa's layout: a folder with `images/ID.png` and `questions.json`, a list of [question, answer, ID].
    - VQA v2: `..._questions.json` beside `..._annotations.json`, pictures whose names end in their number in the
      folder or below. Answers that three people or more gave are right, the most frequent is learnt.
    - A folder with `questions.jsonl` (or .csv, .tsv, .parquet), maybe with `captions.jsonl`, or with other tables.
    - What `pairs.read_pairs` reads: a table without questions, a WebDataset archive, COCO's captions, a folder of
      pictures with texts. Each text that is no keyword is a caption, the right answer to the empty question.

    Where a folder has parts called train and val, test or the like, only train is read. Rows without a question or
    without an answer are left out and counted in `dropped`. The kind of questions whose data say none is "yes_no",
    "number" or "other", by the answer, as VQA v2 tells them apart.

    Args:
        path: File, folder, glob, URL of a table, `hf:` id, or a list of these.
        image: Column of the pictures; guessed by values, then by name.
        question: Column of the questions; guessed by name.
        answer: Column of the answers or captions; guessed by name.
        kind: Column of the kinds; guessed by name.

    Raises:
        InputError: Nothing found, a column that is not there or cannot be guessed, a question about a picture that is
            not there, or a damaged file.
    """
    from bedplate.data.question_formats import Columns, read_file, read_folder

    forget_files()
    items = [path] if isinstance(path, str | Path) else list(path)
    if not items:
        raise InputError("the list of data paths is empty: give at least one file, folder, glob or hf: id")
    columns = Columns(image, question, answer, kind)
    parts: list[Asked] = []
    for item in items:
        name = location(item)
        local = Path(name).expanduser()
        if name.startswith("hf:") or is_remote(name):
            parts += [read_file(each, columns) for each in _tables(resolve(name))]
        elif local.is_dir():
            parts += read_folder(local, columns)
        elif local.is_file() and local.suffix.lower() == ".json":
            parts.append(read_file(str(local), columns))
        else:
            parts += [read_file(each, columns) for each in _tables(resolve(name))]
    asked = join(parts)
    if not asked.images:
        left_out = ", ".join(f"{reason}: {count}" for reason, count in asked.dropped.items())
        raise InputError(f"{shown(path)}: no questions{f' ({left_out})' if left_out else ''}; give some with answers")
    return asked


def _tables(names: Iterable[str]) -> list[str]:
    return [name for name in names if (kind_of(name) or ("",))[0] != "txt"]


def majority_answers(asked: Asked, learnt: Asked | None = None) -> list[str]:
    """What someone answers who sees no picture, to each question in order: the most frequent answer.

    That is the most frequent of the kind in `asked` itself, or, where they have learnt from other questions, to these
    exact words there, else of the kind, else of all.
    """
    counts: dict[tuple[str, ...], Counter[str]] = {}
    for question in _each(asked if learnt is None else learnt):
        for key in _keys(question, learnt is not None):
            counts.setdefault(key, Counter())[question.answers[0]] += 1
    best = {key: count.most_common(1)[0][0] for key, count in counts.items()}
    return [next(best[key] for key in _keys(each, learnt is not None) if key in best) for each in _each(asked)]


def majority_baseline(asked: Asked, learnt: Asked | None = None) -> dict[str, float]:
    """The share of questions that `majority_answers` gets right, of each kind and of "all"."""
    right: dict[str, list[bool]] = {}
    for question, answer in zip(_each(asked), majority_answers(asked, learnt), strict=True):
        for kind in (question.kind, "all"):
            right.setdefault(kind, []).append(answer in question.answers)
    return {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}


def _each(asked: Asked) -> Iterator[Question]:
    return (question for several in asked.questions for question in several)


def _keys(question: Question, by_words: bool) -> list[tuple[str, ...]]:
    """What an answer may be known for, the nearest first."""
    return [*([(question.kind, question.text)] if by_words else []), (question.kind,), ()]
