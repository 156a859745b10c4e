"""Texts with a label each: read from files with rows, split and sampled in proportion to the classes."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from bedplate.data import sources
from bedplate.data.formats import missing_column
from bedplate.data.labels import (
    LABEL_NAMES,
    MAX_CLASSES,
    SHORT,
    as_label,
    check_classes,
    doubts,
    first_named,
    how_to_name,
    listed,
    sample_indices,
    sorted_classes,
    split_indices,
    unknown_label,
)
from bedplate.data.sources import Paths, checked_text, shown
from bedplate.errors import InputError

NAMED_ROWS = 100
"""First rows whose columns are taken for all (rows of JSON Lines need not hold the same)."""

# Names under which published data sets keep texts, the clearest first.
TEXT_NAMES = (
    *("text", "sentence", "review", "content", "comment", "tweet", "message", "body", "document", "utterance"),
    *("review_text", "comment_text", "tweet_text", "sms", "email", "post", "query", "question", "description"),
    *("headline", "title"),
)
INDEX_NAME = re.compile(r"|(?i:unnamed.*|(.*[ _.-])?(id|ids|idx|index|uuid|key))|.*[a-z]I[dD]")
KEY = re.compile(r"[!-~]*")  # one word of ASCII: no text by itself


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their labels.

    Attributes:
        texts: Stripped of surrounding white space, never empty.
        labels: As many; stripped, never empty.
        sources: As many; "file:line" of each.
        column: Name of the column of the texts.
        label: Name of the column of the labels.
        dropped: How many rows reading left out, by reason ("empty texts", "missing labels", "repeated texts"); only
            reasons that occurred. Parts of the data keep the counts of the whole.
    """

    texts: list[str]
    labels: list[str]
    sources: list[str]
    column: str
    label: str
    dropped: dict[str, int]

    @property
    def classes(self) -> list[str]:
        """The distinct labels, sorted: as numbers where all of them are numbers."""
        return sorted_classes(self.labels)

    def doubts(self) -> list[str]:
        """What a person should know of the labels before they are learnt, as sentences."""
        return doubts(self.labels)

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: ArrayLike) -> Self:
        """The rows of these (n,) indices, in their order."""
        numbers = np.asarray(indices, np.int64).tolist()
        return replace(
            self,
            texts=[self.texts[i] for i in numbers],
            labels=[self.labels[i] for i in numbers],
            sources=[self.sources[i] for i in numbers],
        )


def read_labelled(
    path: Paths, column: str | None = None, label: str | None = None, classes: Sequence[str] | None = None
) -> LabelledTexts:
    """Read the labelled texts that `path` names into memory, in the order of `sources.rows`.

    Rows with a blank text or without a label are left out, as are repetitions of a text under one label within one
    file (a text that a file has under several labels stays as often as it is there); all of these are counted.

    Args:
        path: File, folder, glob, tar archive, `hf:` id, or a list of these, of formats with rows.
        column: Column of the texts; guessed by name, else by values (the strings of the greatest mean length).
        label: Column of the labels, which are strings, whole numbers or booleans; guessed by name, else by values (the
            only column of few and short ones).
        classes: The known labels, where the data must have no others.

    Raises:
        InputError: What `sources.rows` raises, columns that cannot be guessed, no usable row, a text or label of a
            wrong type, a label that is not among `classes`, or, where these are not given, labels that are no classes:
            only one, more than 1,000, or another one in every row of more than 20.
    """
    named = column is not None or label is not None
    if column is None or label is None:
        column, label = _guess_columns(path, column, label)
    if column == label:
        raise InputError(f"'{column}' cannot be both text and label: {how_to_name('label')}")
    usable, dropped = _usable_rows(path, column, label, classes)
    rows = _without_repetitions(usable)
    if len(rows) < len(usable):
        dropped["repeated texts"] = len(usable) - len(rows)
    if not rows:
        told = ", ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "there are no rows"
        raise InputError(f"{shown(path)}: no row with both a '{column}' and a '{label}' ({told}); give labelled texts")
    texts, labels, places = map(list, zip(*rows, strict=True))
    if not named and label in labels:
        raise InputError(
            f"{shown(path)}: its first line looks like a row, not like the names of columns, as the label "
            f"'{label}' is among the labels; put text,label above it, or name the columns"
        )
    data = LabelledTexts(texts, labels, places, column, label, dict(dropped))
    if classes is None:
        check_classes(data.labels, data.label, shown(path))
    return data


def split_labelled(data: LabelledTexts, fraction: float, seed: int) -> tuple[LabelledTexts, LabelledTexts]:
    """Split into (rest, held out), each in the data's proportions of classes and in its order.

    The held-out part has `round(fraction * len(data))` rows; every class stays in the rest.

    Raises:
        InputError: A fraction outside of (0, 1), or one that leaves either part fewer rows than there are classes.
    """
    rest, held = split_indices(data.labels, fraction, seed)
    return data.select(rest), data.select(held)


def sample_labelled(data: LabelledTexts, count: int, seed: int) -> LabelledTexts:
    """Sample `count` rows in the data's proportions of classes, each class at least once, in the data's order.

    Samples of one seed are nested: the rows of a smaller one are among those of a greater one.

    Raises:
        InputError: More rows than there are, or fewer than classes.
    """
    return data.select(sample_indices(data.labels, count, seed))


class _Row(NamedTuple):
    text: str
    label: str
    source: str

    @property
    def file(self) -> str:
        return self.source.rpartition(":")[0]


def _usable_rows(
    path: Paths, column: str, label: str, classes: Sequence[str] | None
) -> tuple[list[_Row], Counter[str]]:
    """The rows that have a text and a label, and how many lack which."""
    known = None if classes is None else frozenset(classes)
    rows: list[_Row] = []
    dropped = Counter[str]()
    lacking: dict[str, dict[str, Any]] = {}  # file: its first row without the label's key, as JSON Lines may have
    having: set[str] = set()
    for source, values in sources.rows(path):
        if column not in values:
            raise missing_column(source, column, values)
        text = "" if values[column] is None else checked_text(source, column, values[column]).strip()
        row = _Row(text, as_label(values.get(label), source, label), source)
        if label in values:
            having.add(row.file)
        else:
            lacking.setdefault(row.file, values)
        if not (row.text and row.label):
            dropped["missing labels" if row.text else "empty texts"] += 1
        elif known is None or row.label in known:
            rows.append(row)
        else:
            raise unknown_label(row.label, classes or (), source)
    for file, values in lacking.items():
        if file not in having:
            raise missing_column(file, label, values)
    return rows, dropped


def _without_repetitions(rows: list[_Row]) -> list[_Row]:
    """The rows less those that repeat the text and label of a row of their file, where the text has no other label."""
    labels: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        labels.setdefault((row.file, row.text), set()).add(row.label)
    seen: set[tuple[str, str]] = set()
    kept = []
    for row in rows:
        key = (row.file, row.text)
        if key not in seen or len(labels[key]) > 1:
            kept.append(row)
        seen.add(key)
    return kept


def _guess_columns(path: Paths, column: str | None, label: str | None) -> tuple[str, str]:
    """(column of the texts, column of the labels): by their names, else by their values."""
    first_rows = islice(sources.rows(path), NAMED_ROWS)
    names = list(dict.fromkeys(name for _, row in first_rows for name in row))
    if not names:
        raise InputError(f"{shown(path)}: no rows; give labelled texts")
    column = column or first_named(TEXT_NAMES, names, label)
    label = label or first_named(LABEL_NAMES, names, column)
    if column is not None and label is not None:
        return column, label
    profiles: dict[str, _Profile] = {}
    for _, row in sources.rows(path):
        for name, value in row.items():
            if name not in (column, label) and not INDEX_NAME.fullmatch(name):
                profiles.setdefault(name, _Profile()).add(value)
    if label is None:
        candidates = [name for name, profile in profiles.items() if profile.may_be_label()]
        if len(candidates) != 1:
            raise _undecided(path, "label", names, candidates)
        (label,) = candidates
        del profiles[label]
    if column is None:
        lengths = {name: profile.mean_length() for name, profile in profiles.items() if profile.may_be_text()}
        if not lengths:
            raise _undecided(path, "column", names, [])
        column = max(lengths, key=lambda name: lengths[name])
    return column, label


class _Profile:
    """What decides whether a column holds texts or labels, in constant memory."""

    def __init__(self) -> None:
        self.values = self.characters = 0
        self.only_strings = self.only_keys = self.only_labels = True
        self.labels: set[str] = set()

    def add(self, value: object) -> None:
        if value is None or value == "":
            return
        self.values += 1
        if isinstance(value, str):
            self.characters += len(value)
            self.only_keys = self.only_keys and KEY.fullmatch(value) is not None
        else:
            self.only_strings = False
        if self.only_labels:
            try:
                label = as_label(value)
            except InputError:
                label = None
            self.only_labels = label is not None and len(label) <= SHORT and len(self.labels) <= MAX_CLASSES
            self.labels.add(label or "")

    def may_be_label(self) -> bool:
        """Whether the values are short and few: five rows a class, on average."""
        return self.only_labels and 2 <= len(self.labels - {""}) <= max(2, self.values // 5)

    def may_be_text(self) -> bool:
        return self.values > 0 and self.only_strings and not self.only_keys

    def mean_length(self) -> float:
        return self.characters / self.values


def _undecided(path: Paths, key: str, names: Sequence[str], candidates: Sequence[str]) -> InputError:
    what = "the labels" if key == "label" else "the texts"
    several = f", of which {listed(candidates)} could be it" if candidates else ""
    return InputError(
        f"{shown(path)}: it is not clear which column holds {what}: present are {listed(names)}{several}; "
        f"{how_to_name(key)}"
    )
