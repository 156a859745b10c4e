"""What data with one label a row share, be the rows texts or pictures: labels, classes, proportional samples."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from bedplate.data.order import keys, permute
from bedplate.data.sources import checked_text
from bedplate.errors import InputError

MAX_CLASSES = 1000
SHORT = 40
"""Longest label, in characters, that is shown or taken for one."""
LABEL_NAMES = (
    *("label", "labels", "class", "category", "sentiment", "target", "intent", "topic", "emotion", "polarity"),
    *("class_label", "class_index", "class_name", "label_text", "stance", "genre", "tag", "rating", "stars", "score"),
)
"""Names under which published data sets keep labels, the clearest first; spaces and dashes count as "_"."""
UNBALANCED = 10
"""How often the most frequent label occurs for each time of the rarest, where that is said aloud."""
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def sorted_classes(labels: Iterable[str]) -> list[str]:
    """The distinct labels, sorted: as numbers where all of them are numbers."""
    distinct = set(labels)
    numeric = all(NUMBER.fullmatch(label) for label in distinct)
    return sorted(distinct, key=lambda label: (float(label) if numeric else 0.0, label))


def as_label(value: object, source: str = "", name: str = "") -> str:
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
        f"mend the row, or {how_to_name('label')}"
    )


def unknown_label(label: str, classes: Sequence[str], source: str) -> InputError:
    """The error that a label is not among the known classes, with the nearest of them."""
    near = {name.lower(): name for name in reversed(classes)}
    match = difflib.get_close_matches(label.lower(), near, n=1)
    hint = f" (did you mean {near[match[0]]!r}?)" if match else ""
    return InputError(
        f"{source}: label '{label[:SHORT]}' is not among the known classes {listed(classes)}{hint}; "
        f"mend the row or leave it out"
    )


def check_classes(labels: Sequence[str], column: str, where: str) -> None:
    """Raise InputError where labels are no classes: one, over `MAX_CLASSES`, or another in each of over 20 rows."""
    classes = set(labels)
    if len(classes) > MAX_CLASSES or len(classes) == len(labels) > 20:
        raise InputError(
            f"{where}: {len(classes):,} distinct labels in {len(labels):,} rows: is '{column}' the label column? "
            f"If not, {how_to_name('label')}"
        )
    if len(classes) == 1:
        raise InputError(f"{where}: every label in '{column}' is '{labels[0]}'; give rows of two classes or more")


def doubts(labels: Sequence[str]) -> list[str]:
    """What a person should know of the labels before they are learnt, as sentences."""
    counts, spelt, found = Counter(labels), dict[str, list[str]](), []
    for name in sorted_classes(labels):
        spelt.setdefault("".join(name.lower().split()), []).append(name)
    for names in spelt.values():
        if len(names) > 1:
            found.append(f"{listed(names)} are taken for different labels; are they spellings of one?")
    rows = counts.most_common()
    if rows[0][1] >= UNBALANCED * rows[-1][1]:
        shown = [f"{name!r} {count:,}" for name, count in (rows if len(rows) <= 6 else [*rows[:3], *rows[-3:]])]
        found.append(
            f"The labels are unbalanced ({', '.join(shown)}): accuracy says little of rare ones, macro F1 more."
        )
    return found


def split_indices(labels: Sequence[str], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split row numbers into sorted (rest, held out), each in the proportions of the labels.

    The held-out part has `round(fraction * n)` rows; every label stays in the rest.

    Raises:
        InputError: A fraction outside of (0, 1), or one that leaves either part fewer rows than there are labels.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction {fraction} is not in (0, 1): give the share of rows to hold out")
    held, classes = round(fraction * len(labels)), len(set(labels))
    for count, part, change in ((held, "held out", "greater"), (len(labels) - held, "left", "smaller")):
        if count < classes:
            raise InputError(
                f"a fraction of {fraction} (data.val_fraction) of {len(labels)} rows gives {count} {part}, fewer "
                f"than the {classes} classes: give a {change} fraction, or more rows"
            )
    order = proportional_order(labels, seed)
    return np.sort(order[:-held]), np.sort(order[-held:])


def sample_indices(labels: Sequence[str], count: int, seed: int) -> NDArray[np.int64]:
    """Sample `count` sorted row numbers in the proportions of the labels, each label at least once.

    Samples of one seed are nested: the rows of a smaller one are among those of a greater one.

    Raises:
        InputError: More rows than there are, or fewer than labels.
    """
    classes = len(set(labels))
    if count > len(labels):
        raise InputError(
            f"cannot sample {count} of {len(labels)} labelled rows: give {len(labels)} or less, or more data"
        )
    if count < classes:
        raise InputError(f"{count} labelled rows cannot hold each of {classes} classes: give {classes} or more")
    return np.sort(proportional_order(labels, seed)[:count])


def proportional_order(labels: Sequence[str], seed: int) -> NDArray[np.int64]:
    """(n,) row numbers in an order of which every beginning holds the labels in the data's proportions.

    One row of each label, then the apportionment of Webster: its shares never shrink as the whole grows, which those of
    largest remainders may do (Balinski and Young 1982, "Fair Representation").
    """
    n = len(labels)
    shuffled = permute(np.arange(n), n, keys(seed))
    codes = np.unique(np.array(labels, object), return_inverse=True)[1][shuffled]
    counts = np.bincount(codes)
    earlier = np.empty(n, np.int64)  # rows of the same label before each row
    earlier[np.argsort(codes, kind="stable")] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    return shuffled[np.lexsort((codes, (earlier + 0.5) / counts[codes], earlier > 0))]


def first_named(known: Sequence[str], names: Sequence[str], taken: str | None = None) -> str | None:
    """The column whose name is the earliest among the known ones."""
    spelt = {re.sub(r"[ -]", "_", name.strip().lower()): name for name in reversed(names) if name != taken}
    return next((spelt[name] for name in known if name in spelt), None)


def how_to_name(key: str) -> str:
    """How a person names a column."""
    option = {"image": "column", "answer": "label"}.get(key, key)
    return f"name the column: data.{key}=... in a recipe, --{option} on the command line"


def listed(names: Sequence[str]) -> str:
    """Quoted names, the first 20 of many."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(map(repr, names[:20])) + more
