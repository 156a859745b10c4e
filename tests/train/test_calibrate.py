"""The measured speed is a line in depth, whatever the clock says."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bedplate.api.plan import gpt_config
from bedplate.recipe import read_recipe
from bedplate.train import calibrate
from bedplate.train.calibrate import Speed, measure_speed
from bedplate.train.hardware import Hardware

CPU = Hardware(torch.device("cpu"), torch.float32, 1, "as asked")


def speed_of(*overrides: str) -> Speed:
    model = {"hidden_size": 32, "num_attention_heads": 2}
    train = {"steps": 1, "batch_size": 8, "sequence_length": 64}
    recipe = read_recipe({"out": "-", "data": {"path": "-"}, "model": model, "train": train}, overrides)
    return measure_speed(gpt_config(recipe, 300), recipe, CPU)


@pytest.fixture
def work_is_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock that a pass moves by 1 s a row, token and layer, and an update by 10 s a layer."""
    now = 0.0

    class Clocked(calibrate._Probe):
        def _now(self) -> float:
            nonlocal now
            depth = len(self.module.trunk.blocks)
            has_gradients = any(p.grad is not None for p in self.parameters)
            if has_gradients:
                now += self.ids.numel() * depth
                self.updating = True
            elif getattr(self, "updating", False):
                now += 10 * depth
                self.updating = False
            return now

    monkeypatch.setattr(calibrate, "_Probe", Clocked)
    monkeypatch.setattr(calibrate, "matmul_ceiling", lambda hardware: 1e12)
    yield


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 12])
def test_each_layer_adds_its_time(work_is_time: Any, layers: int) -> None:
    speed = speed_of(f"model.num_hidden_layers={layers}")
    assert speed.passes == pytest.approx(8 * 64 * layers) and speed.update == pytest.approx(10 * layers)


def test_micro_batches_are_so_many_passes_and_one_update(work_is_time: Any) -> None:
    speed = speed_of("model.num_hidden_layers=5", "train.micro_batch_size=2")
    assert speed.passes == pytest.approx(8 * 64 * 5) and speed.update == pytest.approx(50)


def test_a_long_pass_is_measured_on_fewer_tokens(work_is_time: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "matmul_ceiling", lambda hardware: 5e7)  # some 400 tokens of these networks in 8 s
    assert speed_of("model.num_hidden_layers=5").passes == pytest.approx(8 * 64 * 5)


@pytest.mark.parametrize(
    "switch",
    [
        "model.preset=gpt2",
        "train.activation_checkpointing=true",
        "train.ema=0.9",
        "optimizer.name=adamw",
        "data.isolate_documents=true",
        "train.micro_batch_size=1",
    ],
)
def test_what_trains_can_be_measured(switch: str) -> None:
    speed = speed_of(switch, "model.num_hidden_layers=4")
    assert speed.passes > 0 and speed.update > 0 and speed.step == speed.passes + speed.update and speed.ceiling > 1e8
