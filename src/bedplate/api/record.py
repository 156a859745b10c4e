"""What a run leaves on paper: facts of the machine, and the report."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bedplate.report.page import run_report
from bedplate.train.hardware import Hardware
from bedplate.train.log import read_rows

RECORDED = ("bedplate", "torch", "numpy", "tokenizers", "safetensors")


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


def write_report(out: Path, record: dict[str, Any], timings: dict[str, float]) -> Path:
    """Write `out/report.html` from the run's files and its record; return its path."""
    metrics = read_rows(out / "metrics.jsonl")
    trained = [row for row in metrics if "tokens_per_second" in row]
    seconds = sum(row["seconds"] for row in trained)
    train = record["recipe"]["train"]
    steps = trained[-1]["step"] if trained else 0
    summary: dict[str, Any] = {"parameters": record["parameters"], "steps": steps}
    if trained and seconds:
        summary |= {
            "tokens": steps * train["batch_size"] * train["sequence_length"],
            "seconds": seconds,
            "tokens_per_second": sum(row["tokens_per_second"] * row["seconds"] for row in trained) / seconds,
            "mfu": sum(row["mfu"] * row["seconds"] for row in trained) / seconds,
        }
    if best := record["metrics"].get("bits_per_byte"):
        summary |= {"val_bits_per_byte": best["value"]}
        summary |= {"val_bits_per_byte_low": best["low"], "val_bits_per_byte_high": best["high"]}
    page = run_report(
        {
            "name": record["name"],
            "summary": summary,
            "metrics": metrics,
            "samples": read_rows(out / "samples.jsonl"),
            "settings": record["recipe"],
            "environment": record["environment"],
            "timings": timings,
            "next": [
                f'bedplate generate {out}/model "Once upon a time"',
                f"bedplate evaluate {out}/model --data YOUR_TEXT.txt",
                f"bedplate info {out}/model",
            ],
        }
    )
    path = out / "report.html"
    path.write_text(page, "utf-8")
    return path
