"""The table of a model's scores on tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHARES = ("accuracy", "acc_norm", "acc", "exact_match")  # shown in percent
DIGITS = 8  # of a hash


def print_tasks(result: Mapping[str, Any]) -> None:
    """A line a task, then the means of groups and the mean of all, with 95 % intervals.

    The column `data` is the beginning of the hash of what was scored.
    """
    rows = [["task", "kind", "data", "rows", "chance", "scores (95 % interval)"]]
    rows += [_row(name, task["kind"], task) for name, task in result["tasks"].items()]
    for key, groups in result.get("groups", {}).items():
        rows += [_row(f"{key}: {value}", f"mean of {group['tasks']}", group) for value, group in groups.items()]
    if result["metrics"]:
        rows.append(_row("all", f"mean of {len(result['tasks'])}", result))
    _print_table(rows)
    cut = sum(task.get("truncated", 0) for task in result["tasks"].values())
    if cut:
        print(f"{cut:,} rows are longer than the model's context and were cut on the left")


def _row(name: str, kind: str, part: Mapping[str, Any]) -> list[str]:
    """The cells of a task, a group or all; groups have no hash, and a harness knows no chance."""
    chance = "" if part.get("chance") is None else f"{part['chance']:.1%}"
    return [name, kind, part.get("hash", "")[:DIGITS], f"{part['n']:,}", chance, _scores(part["metrics"])]


def _scores(metrics: Mapping[str, Mapping[str, float]]) -> str:
    return "   ".join(f"{name} {_interval(metric, name.split(',')[0] in SHARES)}" for name, metric in metrics.items())


def _interval(metric: Mapping[str, float | None], share: bool) -> str:
    value, low, high = (
        "-" if metric[key] is None else f"{metric[key]:.1%}" if share else f"{metric[key]:.4g}"
        for key in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns of a width each; numbers on the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        aligned = (f"{cell:{side}{width}}" for cell, side, width in zip(row, "<<<>>", widths, strict=False))
        print("  ".join([*aligned, row[-1]]))
