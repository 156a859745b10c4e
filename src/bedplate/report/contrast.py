"""The page of a model that was taught which texts belong to which pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bedplate.report import pictures
from bedplate.report.adapt import INTERVAL, Sections, curves, data_section, with_interval
from bedplate.report.page import run_report, table, text

WAYS = {"image_to_text": "A text for a picture", "text_to_image": "A picture for a text"}
KS = (1, 5, 10)
PARTS = {"test": "test", "val": "held-out"}
EXPLAINED = (
    "Of all {part} pictures and texts: how often what belongs together is the nearest, or among the nearest 5 or 10. "
    "Whoever guesses finds it at the first try in {chance:.2f} % of the cases."
)
COSINE = "Below a picture is the nearest of all {part} texts, and the cosine between both."


def contrast_report(record: Mapping[str, Any]) -> str:
    """The page: `run_report` with how it learned, what it finds, and pictures with their nearest texts.

    `record` holds, each optional: "metrics" (the rows of metrics.jsonl), "measured" (of `metrics.retrieval`) with "on"
    ("val" or "test") and "chance"; "right" and "wrong" ({"image", "label", "predicted", "score"}); "data" (facts).
    """
    sections: Sections = []
    if rows := record.get("metrics"):
        names = {"val_image_to_text_r1": "a text for a picture", "val_text_to_image_r1": "a picture for a text"}
        sections.append(("How it learned", curves(rows, names, "pairs")))
    summary = dict(record.get("summary", {}))
    part = PARTS[record.get("on", "val")]
    if measured := record.get("measured"):
        sections.append(("What it finds", _found(measured, part, record["chance"])))
        best = measured["image_to_text_r1"]
        summary |= {"val_recall": best["value"], "val_recall_low": best["low"], "val_recall_high": best["high"]}
    for heading, key in (("Pictures with the right text nearest", "right"), ("Pictures with a wrong one", "wrong")):
        if record.get(key):
            explained = text(COSINE.format(part=part), muted=True)
            sections.append((heading, [_pictures(record[key]), explained]))
    sections += data_section(record.get("data", {}), "pictures")
    headlines = {"val_recall": (f"{part.capitalize()} pictures", "whose text was found")}
    return run_report({**record, "summary": summary, "metrics": [], "sections": sections, "headlines": headlines})


def _found(measured: Mapping[str, Any], part: str, chance: float) -> list[str]:
    rows = [
        [name, f"{measured[f'{way}_r1']['n']:,}", *(with_interval(measured, f"{way}_r{k}") for k in KS)]
        for way, name in WAYS.items()
    ]
    head = ["", "Number", *(f"Recall at {k}" for k in KS)]
    said = EXPLAINED.format(part=part, chance=100 * chance)
    return [table(rows, head), text(said, INTERVAL.format(others="other pairs of the same kind"), muted=True)]


def _pictures(rows: Sequence[Mapping[str, Any]]) -> str:
    captions = [
        f"“{row['predicted']}”, {row['score']:.2f}"
        + ("" if row["label"] == row["predicted"] else f"\nits own: “{row['label']}”")
        for row in rows
    ]
    return pictures.grid([row["image"] for row in rows], captions)
