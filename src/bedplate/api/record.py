"""What a run leaves on paper: facts of the machine, and the report."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.api.folders import word
from bedplate.metrics.classification import per_class
from bedplate.report.adapt import finetune_report
from bedplate.report.page import run_report
from bedplate.train.hardware import Hardware
from bedplate.train.log import read_rows

Section = tuple[str, Sequence[str]]
RECORDED = ("bedplate", "torch", "numpy", "tokenizers", "safetensors")


OF_THE_RUN = ("dropout", "pooling", "attention", "image_size", "context", "freeze_vision")
"""Settings of a network that a recipe gives even where a base brings the rest."""


def as_used(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe as plain data, without sizes that a base had others of."""
    model = dict(recipe.get("model") or {})
    bases = {
        "text": model.get("text_base"),
        "image": model.get("image_base"),
        "vision": recipe.get("vision_base"),
        "language": recipe.get("text_base"),
    }
    if recipe.get("base"):
        model = _of_the_run(model)
    model |= {name: _of_the_run(model[name]) for name, base in bases.items() if base and name in model}
    return {**recipe, "model": model} if "model" in recipe else dict(recipe)


def _of_the_run(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: _of_the_run(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if key in OF_THE_RUN or (isinstance(value, dict) and value)}


def environment(hardware: Hardware) -> dict[str, Any]:
    """Versions, hardware and the git commit of the current folder, where it is one."""
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in RECORDED},
        "platform": platform.platform(),
        "hardware": str(hardware),
        "git": git_commit(),
    }


def git_commit() -> str | None:
    """The commit checked out in the current folder, with `+` where files differ from it; None outside of git."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout else "") if commit.returncode == 0 else None


def write_report(
    out: Path,
    record: dict[str, Any],
    timings: dict[str, float],
    sections: Sequence[Section] = (),
    commands: Sequence[str] = (),
) -> Path:
    """Write `out/report.html` of a language model from the run's files and its record; return its path.

    Args:
        sections: more (heading, blocks) for the page, placed before what to do next.
        commands: what to do next, in place of what one does with a pre-trained model.
    """
    summary = training_summary(out, record)
    if "seconds" in summary and record["recipe"]["train"].get("sequence_length"):
        train = record["recipe"]["train"]
        summary["tokens"] = summary["steps"] * train["batch_size"] * train["sequence_length"]
    if best := record["metrics"].get("bits_per_byte"):
        summary |= {"val_bits_per_byte": best["value"]}
        summary |= {"val_bits_per_byte_low": best["low"], "val_bits_per_byte_high": best["high"]}
    if foretold := record["metrics"].get("masked_accuracy"):
        summary |= {"val_masked_accuracy": foretold["value"]}
        summary |= {"val_masked_accuracy_low": foretold["low"], "val_masked_accuracy_high": foretold["high"]}
    blank = record.get("blank")
    use = (
        f'predict {word(out)}/model "The film was {blank}."'
        if blank
        else f'generate {word(out)}/model "Once upon a time"'
    )
    commands = commands or [
        f"bedplate {use}",
        f"bedplate evaluate {word(out)}/model --data YOUR_TEXT.txt",
        f"bedplate transfer --base {word(out)}/model --data YOUR_LABELLED_TEXTS.csv",
    ]
    page = run_report(page_record(out, record, timings, summary, commands) | {"sections": sections})
    return write_page(out, page)


def write_finetune_report(out: Path, record: dict[str, Any], timings: dict[str, float]) -> Path:
    """Write `out/report.html` of a classifier's fine-tuning."""
    commands = [
        f'bedplate predict {word(out)}/model "A text of your own"',
        f"bedplate predict {word(out)}/model --file YOUR_TEXTS.csv --json",
        f"bedplate evaluate {word(out)}/model --data YOUR_LABELLED_TEXTS.csv",
    ]
    page = page_record(out, record, timings, training_summary(out, record), commands)
    page |= {key: record[key] for key in ("classes", "test", "confusion", "mistakes") if key in record}
    page |= {"validation": record["metrics"], "data": record["data"][0]}
    if "confusion" in record:
        page["per_class"] = per_class(np.array(record["confusion"]))
    return write_page(out, finetune_report(page))


def training_summary(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What training took, from the rows of metrics.jsonl."""
    trained = [row for row in read_rows(out / "metrics.jsonl") if "seconds" in row]
    seconds = sum(row["seconds"] for row in trained)
    summary: dict[str, Any] = {"parameters": record["parameters"], "steps": trained[-1]["step"] if trained else 0}
    if seconds:
        summary["seconds"] = seconds
        for key in ("tokens_per_second", "images_per_second", "mfu", "waiting"):
            if key in trained[0]:
                summary[key] = sum(row[key] * row["seconds"] for row in trained) / seconds
    return summary


def page_record(
    out: Path, record: dict[str, Any], timings: dict[str, float], summary: dict[str, Any], commands: Sequence[str]
) -> dict[str, Any]:
    return {
        "name": record["name"],
        "summary": summary,
        "metrics": read_rows(out / "metrics.jsonl"),
        "samples": read_rows(out / "samples.jsonl"),
        "settings": record["recipe"],
        "environment": record["environment"],
        "timings": timings,
        "next": list(commands),
    }


def write_page(out: Path, page: str) -> Path:
    path = out / "report.html"
    path.write_text(page, "utf-8")
    return path
