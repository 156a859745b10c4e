"""Texts with a label each: read from files with rows, split and sampled in proportion to the classes."""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bedplate.data import sources
from bedplate.data.formats import missing_column
from bedplate.data.order import keys, permute
from bedplate.data.sources import Paths, checked_text, shown
from bedplate.errors import InputError

MAX_CLASSES = 1000
NAMED_ROWS = 100
"""First rows whose columns are taken for all (rows of JSON Lines need not hold the same)."""
UNBALANCED = 10
"""How often the most frequent label occurs for each time of the rarest, where that is said aloud."""
SHORT = 40
"""Longest label, in characters, of a column that is taken for the labels by its values."""

# Names under which published data sets keep texts and labels, the clearest first; spaces and dashes count as "_".
TEXT_NAMES = (
    *("text", "sentence", "review", "content", "comment", "tweet", "message", "body", "document", "utterance"),
    *("review_text", "comment_text", "tweet_text", "sms", "email", "post", "query", "question", "description"),
    *("headline", "title"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "category", "sentiment", "target", "intent", "topic", "emotion", "polarity"),
    *("class_label", "class_index", "class_name", "label_text", "stance", "genre", "tag", "rating", "stars", "score"),
)
INDEX_NAME = re.compile(r"|(?i:unnamed.*|(.*[ _.-])?(id|ids|idx|index|uuid|key))|.*[a-z]I[dD]")
KEY = re.compile(r"[!-~]*")  # one word of ASCII: no text by itself
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


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
        labels = set(self.labels)
        numeric = all(NUMBER.fullmatch(label) for label in labels)
        return sorted(labels, key=lambda label: (float(label) if numeric else 0.0, label))

    def doubts(self) -> list[str]:
        """What a person should know of the labels before they are learnt, as sentences."""
        counts, spelt, found = Counter(self.labels), dict[str, list[str]](), []
        for name in self.classes:
            spelt.setdefault("".join(name.lower().split()), []).append(name)
        for names in spelt.values():
            if len(names) > 1:
                found.append(f"{_listed(names)} are taken for different labels; are they spellings of one?")
        rows = counts.most_common()
        if rows[0][1] >= UNBALANCED * rows[-1][1]:
            shown = [f"{name!r} {count:,}" for name, count in (rows if len(rows) <= 6 else [*rows[:3], *rows[-3:]])]
            found.append(
                f"The labels are unbalanced ({', '.join(shown)}): accuracy says little of rare ones, macro F1 more."
            )
        return found

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
    if column is None or label is None:
        column, label = _guess_columns(path, column, label)
    if column == label:
        raise InputError(f"'{column}' cannot be both text and label: {_how_to_name('label')}")
    usable, dropped = _usable_rows(path, column, label, classes)
    rows = _without_repetitions(usable)
    if len(rows) < len(usable):
        dropped["repeated texts"] = len(usable) - len(rows)
    if not rows:
        told = ", ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "there are no rows"
        raise InputError(f"{shown(path)}: no row with both a '{column}' and a '{label}' ({told}); give labelled texts")
    texts, labels, places = map(list, zip(*rows, strict=True))
    data = LabelledTexts(texts, labels, places, column, label, dict(dropped))
    if classes is None:
        _check_classes(data, shown(path))
    return data


def split_labelled(data: LabelledTexts, fraction: float, seed: int) -> tuple[LabelledTexts, LabelledTexts]:
    """Split into (rest, held out), each in the data's proportions of classes and in its order.

    The held-out part has `round(fraction * len(data))` rows; every class stays in the rest.

    Raises:
        InputError: A fraction outside of (0, 1), or one that leaves either part fewer rows than there are classes.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction {fraction} is not in (0, 1): give the share of rows to hold out")
    held, classes = round(fraction * len(data)), len(data.classes)
    for count, part, change in ((held, "held out", "greater"), (len(data) - held, "left", "smaller")):
        if count < classes:
            raise InputError(
                f"a fraction of {fraction} of {len(data)} rows gives {count} {part}, fewer than the {classes} classes: "
                f"give a {change} fraction, or more rows"
            )
    order = _proportional_order(data, seed)
    return data.select(np.sort(order[:-held])), data.select(np.sort(order[-held:]))


def sample_labelled(data: LabelledTexts, count: int, seed: int) -> LabelledTexts:
    """Sample `count` rows in the data's proportions of classes, each class at least once, in the data's order.

    Samples of one seed are nested: the rows of a smaller one are among those of a greater one.

    Raises:
        InputError: More rows than there are, or fewer than classes.
    """
    classes = len(data.classes)
    if count > len(data):
        raise InputError(f"cannot sample {count} of {len(data)} labelled rows: give {len(data)} or less, or more data")
    if count < classes:
        raise InputError(f"{count} labelled rows cannot hold each of {classes} classes: give {classes} or more")
    return data.select(np.sort(_proportional_order(data, seed)[:count]))


def _proportional_order(data: LabelledTexts, seed: int) -> NDArray[np.int64]:
    """(n,) row numbers in an order of which every beginning holds the classes in the data's proportions.

    One row of each class, then the apportionment of Webster: its shares never shrink as the whole grows, which those of
    largest remainders may do (Balinski and Young 1982, "Fair Representation").
    """
    n = len(data)
    shuffled = permute(np.arange(n), n, keys(seed))
    codes = np.unique(np.array(data.labels, object), return_inverse=True)[1][shuffled]
    counts = np.bincount(codes)
    earlier = np.empty(n, np.int64)  # rows of the same class before each row
    earlier[np.argsort(codes, kind="stable")] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    return shuffled[np.lexsort((codes, (earlier + 0.5) / counts[codes], earlier > 0))]


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
        row = _Row(text, _as_label(values.get(label), source, label), source)
        if label in values:
            having.add(row.file)
        else:
            lacking.setdefault(row.file, values)
        if not (row.text and row.label):
            dropped["missing labels" if row.text else "empty texts"] += 1
        elif known is None or row.label in known:
            rows.append(row)
        else:
            near = {name.lower(): name for name in reversed(classes or ())}
            match = difflib.get_close_matches(row.label.lower(), near, n=1)
            hint = f" (did you mean {near[match[0]]!r}?)" if match else ""
            raise InputError(
                f"{source}: label '{row.label[:SHORT]}' is not among the known classes {_listed(classes or ())}{hint}; "
                f"mend the row or leave it out"
            )
    for file, values in lacking.items():
        if file not in having:
            raise missing_column(file, label, values)
    return rows, dropped


def _as_label(value: object, source: str = "", name: str = "") -> str:
    """The label that a value of column `name` stands for; "" where it stands for none."""
    if isinstance(value, str):
        return checked_text(source, name, value).strip()
    if value is None or value != value:  # NaN: a missing number, as pandas writes it
        return ""
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    raise InputError(
        f"{source}: '{name}' holds {str(value)[:SHORT]} ({type(value).__name__}), which is no class; "
        f"mend the row, or {_how_to_name('label')}"
    )


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


def _check_classes(data: LabelledTexts, where: str) -> None:
    classes = data.classes
    if len(classes) > MAX_CLASSES or len(classes) == len(data) > 20:
        raise InputError(
            f"{where}: {len(classes):,} distinct labels in {len(data):,} rows: is '{data.label}' the label column? "
            f"If not, {_how_to_name('label')}"
        )
    if len(classes) == 1:
        raise InputError(f"{where}: every label in '{data.label}' is '{classes[0]}'; give rows of two classes or more")


def _guess_columns(path: Paths, column: str | None, label: str | None) -> tuple[str, str]:
    """(column of the texts, column of the labels): by their names, else by their values."""
    first_rows = islice(sources.rows(path), NAMED_ROWS)
    names = list(dict.fromkeys(name for _, row in first_rows for name in row))
    if not names:
        raise InputError(f"{shown(path)}: no rows; give labelled texts")
    column = column or _first_named(TEXT_NAMES, names, label)
    label = label or _first_named(LABEL_NAMES, names, column)
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
                label = _as_label(value)
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


def _first_named(known: Sequence[str], names: Sequence[str], taken: str | None) -> str | None:
    """The column whose name is the earliest among the known ones."""
    spelt = {re.sub(r"[ -]", "_", name.strip().lower()): name for name in reversed(names) if name != taken}
    return next((spelt[name] for name in known if name in spelt), None)


def _undecided(path: Paths, key: str, names: Sequence[str], candidates: Sequence[str]) -> InputError:
    what = "the labels" if key == "label" else "the texts"
    several = f", of which {_listed(candidates)} could be it" if candidates else ""
    return InputError(
        f"{shown(path)}: it is not clear which column holds {what}: present are {_listed(names)}{several}; "
        f"{_how_to_name(key)}"
    )


def _how_to_name(key: str) -> str:
    return f"name the column: data.{key}=... in a recipe, --{key} on the command line"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(map(repr, names[:20])) + more
