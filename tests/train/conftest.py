"""A task that fits a line: the loop knows no more of it than of language."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from bedplate.recipe import read_recipe
from bedplate.recipe.schema import LogRecipe
from bedplate.tasks import Batch
from bedplate.train.hardware import choose_hardware
from bedplate.train.log import RunLog
from bedplate.train.loop import Data, Trainer

MakeTrainer = Callable[..., Trainer]


class Line:
    """Weighted least squares: batches hold `x (B, 3)`, `y (B,)` and `w (B,)`; `val` are the losses it will measure."""

    metrics: ClassVar[Mapping[str, str]] = {"loss": "min"}
    unit: ClassVar[str] = "tokens"

    def __init__(self, val: Iterable[float] = ()) -> None:
        self.module: nn.Module = nn.Linear(3, 1)
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.fill_(0.5)
        self.val = iter(val)

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        error = (self.module(batch["x"])[:, 0] - batch["y"]).square() * batch["w"]
        return {"loss": (error.sum(), batch["w"].sum())}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        value = next(self.val)
        return {"loss": {"value": value, "low": value, "high": value, "n": 1}}

    def samples(self, seed: int) -> list[dict[str, str]]:
        return []

    def flops(self, batch: Batch) -> int:
        return 1


def line_batch(step: int) -> dict[str, Tensor]:
    """8 rows, a pure function of the step; weights are such that micro-batches of 2 weigh unequally."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    return {"x": x, "y": x.sum(1) + 1, "w": torch.tensor([1.0, 1, 0, 1, 0, 0, 1, 0])}


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """`make_trainer(*overrides, val=..., folder=...)`: a trainer of `Line`; `trainer.saved` lists the saved weights."""

    def make(*overrides: str, val: Sequence[float] = (), folder: str = "run", patience: int | None = None) -> Trainer:
        base = {"out": str(tmp_path / folder), "data": {"path": "-"}}
        train = {"steps": 10, "batch_size": 8, "precision": "fp32", "threads": 1}
        recipe = read_recipe({**base, "train": train, "evaluate": {"metric": "loss"}}, overrides)
        recipe.out.mkdir(exist_ok=True)
        task = Line(val)
        data = Data(
            lambda first, stop: (line_batch(step) for step in range(first, stop)), (lambda: ()) if val else None
        )
        saved: list[dict[str, Tensor]] = []

        def save() -> None:
            saved.append({name: p.detach().clone() for name, p in task.module.named_parameters()})

        trainer = Trainer(
            recipe,
            task,
            data,
            choose_hardware(recipe.train),
            recipe.out,
            save,
            RunLog(recipe.out, LogRecipe(every=recipe.log.every)),
            steps=recipe.train.steps,
            evaluate_every=recipe.evaluate.every,
            metric=recipe.evaluate.metric,
            patience=patience,
        )
        trainer.saved = saved  # type: ignore[attr-defined]
        return trainer

    return make


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine can multiply is not asked again for each of many short runs."""
    monkeypatch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`torchrun(ranks, {name: job})`: jobs of `under_torchrun.py`, each in `tmp_path/NAME`, one after the other."""

    def run(ranks: int, jobs: dict[str, dict[str, Any]]) -> "subprocess.CompletedProcess[str]":
        for name, job in jobs.items():
            job = {"overrides": [f"out={tmp_path / name}"], "resume": False, "stop_at": None, "hang_at": None} | job
            (tmp_path / f"{name}.json").write_text(json.dumps(job), "utf-8")
        script = str(Path(__file__).parent / "under_torchrun.py")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += [script, str(tmp_path), *jobs]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)

    return run
