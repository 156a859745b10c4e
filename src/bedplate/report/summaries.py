"""Sections of a page about a summariser: how good its summaries are, and some of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from bedplate.report.page import quotes, table, text
from bedplate.report.plot import clip

SHOWN_CHARACTERS = 600  # of a document
TITLES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
EXPLAINED = (
    "ROUGE is the share of words (ROUGE-1), of pairs of words (ROUGE-2) and of words in the same order (ROUGE-L) that "
    "a summary has in common with one that a person wrote; the F1 of precision and recall, of 100. In brackets the "
    "95 % interval over documents. It counts words and not truth: read the examples as well."
)


def summary_sections(scored: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """`scored` holds "metrics" and "baselines" ({name: the same}), each {"rouge1", "rouge2", "rougeL": {"value", "low",
    "high", "n"}}, and "examples" ([{"document", "reference", "text"}])."""
    if not scored:
        return []
    rows = [["This model", *map(_shown, _ordered(scored["metrics"]))]]
    names = {"lead": "The document's first sentence"}
    rows += [[names.get(name, name), *map(_shown, _ordered(metrics))] for name, metrics in scored["baselines"].items()]
    count = scored["metrics"]["rougeL"]["n"]
    head = [f"{count:,} documents", *TITLES.values()]
    items = [
        (f"summary: {row['text']}\n\nreference: {row['reference']}", clip(row["document"], SHOWN_CHARACTERS))
        for row in scored["examples"]
    ]
    return [
        ("How good the summaries are", [table(rows, head), text(EXPLAINED, muted=True)]),
        ("Examples", [quotes(items)]),
    ]


def _ordered(metrics: Mapping[str, Any]) -> Sequence[Mapping[str, float]]:
    return [metrics[name] for name in TITLES]


def _shown(metric: Mapping[str, float]) -> str:
    """`38.2 (37.1 to 39.4)`."""
    value, low, high = (100 * metric[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"
