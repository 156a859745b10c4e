"""The page of a reader: how it learned, how often it is right by kind of question, and pictures with its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bedplate.report import pictures
from bedplate.report.adapt import INTERVAL, Sections, curves, data_section, with_interval
from bedplate.report.page import run_report, table, text

BLIND = (
    "Two columns say what is right without looking at a picture: the most frequent answer of the kind (majority), and "
    "the most frequent answer to the same question (question alone). What a reader is above them comes from the "
    "pictures."
)
CHANCE = "Drawn by chance, each kind of question in its turn."


def answer_report(record: Mapping[str, Any]) -> str:
    """The page of a run that taught a reader: `page.run_report` with `answer_sections`."""
    headlines = {
        "test_accuracy": ("Test questions", "answered right"),
        "val_accuracy": ("Validation questions", "answered right"),
    }
    summary = dict(record.get("summary", {}))
    for prefix, name in (("val", "validation"), ("test", "test")):
        if metric := (record.get(name) or {}).get("accuracy"):
            summary[f"{prefix}_accuracy"] = metric["value"]
            summary |= {f"{prefix}_accuracy_{end}": metric[end] for end in ("low", "high")}
    sections = answer_sections(record)
    return run_report({**record, "summary": summary, "metrics": [], "sections": sections, "headlines": headlines})


def answer_sections(record: Mapping[str, Any]) -> Sections:
    """`record` holds, each optional: "metrics" (the rows of metrics.jsonl), "scored" (of `tasks.answer.score`, with
    "on", the part that was scored), "wrong" and "right" ({"image", "question", "text", "truth"}), and "data" (facts,
    see `adapt.data_section`)."""
    sections: Sections = []
    if rows := record.get("metrics"):
        sections.append(("How it learned", curves(rows, {"val_accuracy": "answered right"}, "questions")))
    if scored := record.get("scored"):
        whose = {"test": "On the test pictures.", "val": "On the validation pictures."}[scored["on"]]
        explained = text(whose, INTERVAL.format(others="other pictures of the same kind"), BLIND, muted=True)
        sections.append(("How often it is right", [by_kind(scored), explained]))
        if captioned := scored.get("captions"):
            rows_of = [[name, f"{m['value']:.3f} ({m['low']:.3f} to {m['high']:.3f})"] for name, m in captioned.items()]
            sections.append(("How good its captions are", [table(rows_of, ["Metric", "Value"])]))
    for heading, key in (("Some that it took wrong", "wrong"), ("Some that it took right", "right")):
        if found := record.get(key):
            sections.append((heading, [answers(found, caption=CHANCE)]))
    return [*sections, *data_section(record.get("data", {}), "pictures")]


def by_kind(scored: Mapping[str, Any]) -> str:
    """A line for each kind of question, and one for all."""
    kinds = dict(scored["kinds"])
    every = {"accuracy": scored["metrics"]["accuracy"]}
    every |= {name: values["accuracy"] for name, values in scored["baselines"].items()}
    lines = {**kinds, "all": every} if len(kinds) > 1 else {"all": every}
    rows = [
        [
            name,
            f"{line['accuracy']['n']:,}",
            *(with_interval(line, key) for key in ("accuracy", "question", "majority")),
        ]
        for name, line in lines.items()
    ]
    return table(rows, ["Kind", "Questions", "Answered right", "Question alone", "Majority"])


def answers(rows: Sequence[Mapping[str, Any]], *, caption: str = "") -> str:
    """A grid of pictures with question, answer and, where that is another, the true one."""
    return pictures.grid([row["image"] for row in rows], [_said(row) for row in rows], caption=caption)


def _said(row: Mapping[str, Any]) -> str:
    said = f"{row['question'] or '(caption)'}\n“{row['text']}”"
    return said if row["text"] == row["truth"] else f"{said}\ntrue: “{row['truth']}”"
