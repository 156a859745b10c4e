"""Evaluation suites: a folder of jsonl files, each a task whose kind its keys tell."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.data.sources import checked_text, kind_of, resolve, rows
from bedplate.errors import InputError
from bedplate.measure.branches import Score
from bedplate.measure.likelihood import Scorer
from bedplate.metrics.intervals import ratio_interval
from bedplate.metrics.proportion import macro_average, proportion

Row = dict[str, Any]
Pair = tuple[str, str]
Metrics = dict[str, dict[str, float]]
GROUP_KEYS = ("field", "linguistics_term")  # columns of BLiMP that say what a paradigm tests


@dataclass(frozen=True)
class Kind:
    """What the rows of a task ask.

    Attributes:
        keys: that a row must have.
        pairs: the (context, continuation) pairs of a row, as one text each when joined.
        measure: metrics from rows and the scores of their pairs.
        chance: the accuracy of a blind guess at a row; None where there is nothing to choose from.
    """

    keys: tuple[str, ...]
    pairs: Callable[[Row], list[Pair]]
    measure: Callable[[Sequence[Row], Sequence[Sequence[Score]]], Metrics]
    chance: Callable[[Row], float] | None


@dataclass(frozen=True)
class Task:
    name: str
    kind: str
    rows: list[Row]
    sources: list[str]  # file:line of each row

    @property
    def hash(self) -> str:
        """BLAKE2b of the rows, whatever their file's compression, white space and order of keys."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()


def run_suite(
    scorer: Scorer,
    folder: str | Path,
    *,
    limit: int | None = None,
    progress: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Score every task of a suite.

    Args:
        folder: of jsonl files, or one such file.
        limit: rows of each file, its first ones.
        progress: called with a line as each task is done.

    Returns:
        {"n": rows, "metrics": {"accuracy": mean over tasks}, "chance": mean over tasks (None where one has none),
        "groups": {key: {value: {"n", "tasks", "chance", "metrics"}}},
        "tasks": {name: {"n", "kind", "chance", "hash", "truncated", "metrics"}}, "scoring", "limit", "hash"}.

    Raises:
        InputError: the folder holds no task, or a row is not what its file's kind asks for.
    """
    tasks = read_suite(folder, limit)
    results = {}
    for number, task in enumerate(tasks, 1):
        results[task.name] = result = score_task(scorer, task)
        progress(f"{number}/{len(tasks)} {task.name}: accuracy {result['metrics']['accuracy']['value']:.3f}")
    return {
        "n": sum(len(task.rows) for task in tasks),
        "metrics": _average(results.values()),
        "chance": _chance(results.values()),
        "groups": _grouped(tasks, results),
        "tasks": results,
        "scoring": scorer.scoring,
        "limit": limit,
        "hash": hashlib.blake2b("".join(task.hash for task in tasks).encode(), digest_size=16).hexdigest(),
    }


def read_suite(folder: str | Path, limit: int | None = None) -> list[Task]:
    """The tasks of a folder, named by their paths in it without suffixes; see `run_suite`."""
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit} must be 1 or more rows of each file")
    root = Path(folder)
    files = [name for name in resolve(folder) if (kind_of(name) or ("",))[0] == "jsonl"]
    if not files:
        raise InputError(f"{folder}: no .jsonl file in it (.jsonl.gz, .xz and .zst also do); {_known_kinds()}")
    tasks: dict[str, Task] = {}
    for file in files:
        path = Path(file)
        inside = path.relative_to(root) if path != root and path.is_relative_to(root) else Path(path.name)
        name = inside.as_posix()[: inside.as_posix().lower().rindex(".jsonl")]
        if name in tasks:
            raise InputError(f"{file}: the suite has two tasks {name}; rename one of their files")
        tasks[name] = _read_task(name, file, limit)
    return list(tasks.values())


def score_task(scorer: Scorer, task: Task) -> dict[str, Any]:
    """{"n", "kind", "chance", "hash", "truncated": rows whose context was cut, "metrics"} of one task."""
    kind = KINDS[task.kind]
    requests = []
    for source, row in zip(task.sources, task.rows, strict=True):
        group = [scorer.encode(context, continuation) for context, continuation in kind.pairs(row)]
        try:
            scorer.check(group)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        requests.append(group)
    return {
        "n": len(task.rows),
        "kind": task.kind,
        "chance": float(np.mean([kind.chance(row) for row in task.rows])) if kind.chance else None,
        "hash": task.hash,
        "truncated": sum(any(map(scorer.too_long, group)) for group in requests),
        "metrics": kind.measure(task.rows, scorer.score(requests)),
    }


def _read_task(name: str, file: str, limit: int | None) -> Task:
    found: list[Row] = []
    sources: list[str] = []
    kind = ""
    for source, row in rows(file):
        kind = kind or _recognised(source, row)
        _check(kind, source, row)
        found.append(row)
        sources.append(source)
        if len(found) == limit:
            break
    if not found:
        raise InputError(f"{file}: no rows; {_known_kinds()}")
    return Task(name, kind, found, sources)


def _recognised(source: str, row: Row) -> str:
    for name, kind in KINDS.items():
        if row.keys() >= set(kind.keys):
            return name
    raise InputError(f"{source}: a row with keys {', '.join(row) or 'none'} is of no known kind; {_known_kinds()}")


def _check(kind: str, source: str, row: Row) -> None:
    """Refuse a row that lacks a key of its file's kind, or holds something else there."""
    for key in KINDS[kind].keys:
        if key not in row:
            raise InputError(f"{source}: no '{key}', which a row of {kind} has; present are {', '.join(row) or 'none'}")
        value = row[key]
        if key == "gold":
            continue
        if key not in ("choices", "context_options"):
            _checked(source, key, value, may_be_empty=key in ("query", "context"))
            continue
        if not isinstance(value, list) or len(value) < 2:
            raise InputError(f"{source}: '{key}' must be a list of two or more strings")
        for option in value:
            _checked(source, key, option, may_be_empty=False)
    if "gold" in KINDS[kind].keys:
        options, gold = len(_options(row)), row["gold"]
        if type(gold) is not int or not 0 <= gold < options:
            raise InputError(
                f"{source}: 'gold' is {gold!r}; it must be the number of the right one, 0 to {options - 1}"
            )


def _checked(source: str, key: str, value: object, *, may_be_empty: bool) -> None:
    if not (checked_text(source, key, value).strip() or may_be_empty):
        raise InputError(f"{source}: '{key}' holds an empty string; there is nothing to score")


def _options(row: Row) -> list[str]:
    options: list[str] = row["choices"] if "choices" in row else row["context_options"]
    return options


def _spaced(context: str, continuation: str) -> Pair:
    """A continuation set off from its context by one space, where neither brings white space along."""
    bare = context and not context[-1].isspace() and not continuation[0].isspace()
    return context, f" {continuation}" if bare else continuation


def _pairs(measured: Sequence[Row], scores: Sequence[Sequence[Score]]) -> Metrics:
    return {"accuracy": proportion([good.log_likelihood > bad.log_likelihood for good, bad in scores])}


def _choices(measured: Sequence[Row], scores: Sequence[Sequence[Score]]) -> Metrics:
    right, normalised = [], []
    for row, options in zip(measured, scores, strict=True):
        nats = np.array([score.log_likelihood for score in options])
        length = np.array([len(choice.encode()) for choice in row["choices"]])
        right.append(nats.argmax() == row["gold"])
        normalised.append((nats / length).argmax() == row["gold"])
    return {"accuracy": proportion(right), "acc_norm": proportion(normalised)}


def _contexts(measured: Sequence[Row], scores: Sequence[Sequence[Score]]) -> Metrics:
    nats = ([score.log_likelihood for score in options] for options in scores)
    return {"accuracy": proportion([np.argmax(n) == row["gold"] for n, row in zip(nats, measured, strict=True)])}


def _continued(measured: Sequence[Row], scores: Sequence[Sequence[Score]]) -> Metrics:
    flat = list(chain(*scores))
    nats = np.array([score.log_likelihood for score in flat])
    by_token = ratio_interval(-nats, [score.tokens for score in flat])
    return {
        "accuracy": proportion([score.greedy for score in flat]),
        "log_likelihood": ratio_interval(nats, np.ones(len(nats))),
        "perplexity": {key: math.exp(value) if key != "n" else value for key, value in by_token.items()},
    }


KINDS = {
    "minimal_pairs": Kind(
        ("sentence_good", "sentence_bad"),
        lambda row: [("", row["sentence_good"]), ("", row["sentence_bad"])],
        _pairs,
        lambda row: 1 / 2,
    ),
    "multiple_choice": Kind(
        ("query", "choices", "gold"),
        lambda row: [_spaced(row["query"], choice) for choice in row["choices"]],
        _choices,
        lambda row: 1 / len(row["choices"]),
    ),
    "schema": Kind(
        ("context_options", "continuation", "gold"),
        lambda row: [_spaced(context, row["continuation"]) for context in row["context_options"]],
        _contexts,
        lambda row: 1 / len(row["context_options"]),
    ),
    "continuation": Kind(
        ("context", "continuation"),
        lambda row: [_spaced(row["context"], row["continuation"])],
        _continued,
        None,
    ),
}


def _known_kinds() -> str:
    kinds = "; ".join(f"{name} ({', '.join(kind.keys)})" for name, kind in KINDS.items())
    return f"known kinds and their keys: {kinds}"


def _average(results: Iterable[Mapping[str, Any]]) -> Metrics:
    """The mean of the accuracies of tasks."""
    return {"accuracy": macro_average([result["metrics"]["accuracy"] for result in results])}


def _chance(results: Iterable[Mapping[str, Any]]) -> float | None:
    """The mean of the chances of tasks; None where a task has none."""
    chances = [result["chance"] for result in results]
    return None if None in chances else float(np.mean(chances))


def _grouped(tasks: Sequence[Task], results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over the tasks whose rows carry the same value of a key in `GROUP_KEYS`, or that share a sub-folder."""
    members: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for task in tasks:
        if "/" in task.name:
            members["folder"][task.name.rpartition("/")[0]].append(task.name)
        for key in GROUP_KEYS:
            value = task.rows[0].get(key)
            if isinstance(value, str) and all(row.get(key) == value for row in task.rows):
                members[key][value].append(task.name)
    return {
        key: {
            value: {
                "n": sum(results[name]["n"] for name in names),
                "tasks": len(names),
                "chance": _chance(results[name] for name in names),
                "metrics": _average(results[name] for name in names),
            }
            for value, names in sorted(groups.items())
        }
        for key, groups in members.items()
    }
