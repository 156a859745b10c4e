"""What a run writes and shows while it trains: metrics.jsonl, samples.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bedplate.errors import InputError
from bedplate.recipe.schema import LogRecipe

SLOW = 0.1  # share of the time that is waited for data, from which on a person is told


class RunLog:
    """Rows of numbers to metrics.jsonl and a person's screen (stderr).

    Of several ranks one writes; the logs of the others are `muted`.
    """

    def __init__(self, folder: Path, recipe: LogRecipe, console: Console | None = None, muted: bool = False) -> None:
        self.folder, self.recipe, self.muted = folder, recipe, muted
        self.console = console or Console(stderr=True, quiet=muted)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=muted or not self.console.is_terminal,
        )
        self._bar = self._progress.add_task("train", total=None, numbers="")
        self._tensorboard: Any = None
        self._make_writer: Any = None

    def __enter__(self) -> RunLog:
        if self.recipe.tensorboard and not self.muted:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError('log.tensorboard needs TensorBoard: pip install "bedplate[track]"') from None
            self._make_writer = SummaryWriter  # made with the first row: until then there is no run directory
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def total(self, steps: int) -> None:
        """Tell the bar how many steps there will be."""
        self._progress.update(self._bar, total=steps)

    def rewind(self, step: int) -> None:
        """Forget rows of later steps, which a resumed run is about to write again."""
        if self.muted:
            return
        for path in (self.folder / "metrics.jsonl", self.folder / "samples.jsonl"):
            rows = [row for row in read_rows(path) if row["step"] <= step]
            if path.exists():
                write_whole(path, "".join(_line(row) for row in rows))

    def numbers(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.jsonl; rows have `step`."""
        if self.muted:
            return
        self._append("metrics.jsonl", row)
        if self._make_writer is not None:
            if self._tensorboard is None:
                self._tensorboard = self._make_writer(str(self.folder / "tensorboard"), purge_step=row["step"])
            for key, value in row.items():
                if key != "step" and isinstance(value, int | float):
                    self._tensorboard.add_scalar(key, value, row["step"])
        if "val_loss" in row or not self.console.is_terminal:
            self.say(f"step {row['step']:>6}  {_short(row)}")

    def samples(self, step: int, samples: list[dict[str, str]]) -> None:
        """Add samples to samples.jsonl and show them."""
        if self.muted:
            return
        for sample in samples:
            self._append("samples.jsonl", {"step": step, **sample})
            text = " ".join((sample["prompt"] + sample["text"]).split())
            self.console.print(f"             {text}", style="dim", markup=False, highlight=False)

    def advance(self, step: int, row: dict[str, Any] | None) -> None:
        """Move the bar to `step` finished steps."""
        self._progress.update(self._bar, completed=step)
        if row:
            self._progress.update(self._bar, numbers=_short(row))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _append(self, name: str, row: dict[str, Any]) -> None:
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(_line(row))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl file that this package wrote; a last line cut off by a killed writer is left out.

    Raises:
        InputError: a line is no JSON object.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        if line:
            rows.append(_row(line, f"{path}:{number}"))
    return rows


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise InputError(f"{where}: the line is damaged; remove it, or start a new run with another `out`")
    return row


def write_whole(path: Path, text: str) -> None:
    """Write a small file beside its place and rename it: whoever is killed meanwhile leaves the old one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _short(row: dict[str, Any]) -> str:
    shown = {
        "loss": "loss {:.3f}",
        "val_bits_per_byte": "held-out {:.4f} bits/byte",
        "val_masked_accuracy": "{:.1%} of hidden tokens foretold",
        "val_accuracy": "held-out accuracy {:.1%}",
        "val_map_50": "held-out mAP@50 {:.1%}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "images_per_second": "{:,.1f} images/s",
        "mfu": "{:.0%} of peak",
    }
    if row.get("waiting", 0) > SLOW:
        shown["waiting"] = "waiting for data {:.0%}"  # the loader is what holds the run up
    if not any(key.startswith("val_") for key in shown.keys() & row.keys()):
        shown["val_loss"] = "held-out loss {:.4f}"  # of a task that has nothing better to say
    return "  ".join(form.format(row[key]) for key, form in shown.items() if _is_number(row.get(key)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
