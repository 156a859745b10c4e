"""The table of a model's scores on tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHARES = ("accuracy", "acc_norm", "acc", "exact_match")  # shown in percent


def print_tasks(result: Mapping[str, Any]) -> None:
    """A line a task, then the means of groups and the mean of all, with 95 % intervals."""
    rows = [["task", "kind", "rows", "chance", "scores (95 % interval)"]]
    for name, task in result["tasks"].items():
        chance = "" if task["chance"] is None else f"{task['chance']:.1%}"
        rows.append([name, task["kind"], f"{task['n']:,}", chance, _scores(task["metrics"])])
    for key, groups in result.get("groups", {}).items():
        rows += [
            [f"{key}: {value}", f"mean of {group['tasks']}", f"{group['n']:,}", "", _scores(group["metrics"])]
            for value, group in groups.items()
        ]
    if result["metrics"]:
        rows.append(["all", f"mean of {len(result['tasks'])}", f"{result['n']:,}", "", _scores(result["metrics"])])
    _print_table(rows)
    cut = sum(task.get("truncated", 0) for task in result["tasks"].values())
    if cut:
        print(f"{cut:,} rows are longer than the model's context and were cut on the left")


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
    for name, kind, n, chance, scores in rows:
        print(f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {n:>{widths[2]}}  {chance:>{widths[3]}}  {scores}")
