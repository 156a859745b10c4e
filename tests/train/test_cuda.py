"""What a GPU runs: the same training as the CPU, compiled, sharded and saved. Skipped where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch

import bedplate
from bedplate.train.log import read_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def losses(run: Path) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in read_rows(run / "metrics.jsonl") if "loss" in row])


TRAINING = ("train.steps=12", "log.every=1", "train.device=cuda", "train.threads=null")


@pytest.mark.parametrize("preset", ["qwen3", "gpt2", "llama"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_equals_the_cpu(tmp_path: Path, tiny_recipe: Any, preset: str, optimizer: str) -> None:
    common = (*TRAINING, f"model.preset={preset}", f"optimizer.name={optimizer}")
    bedplate.pretrain(tiny_recipe(tmp_path / "cpu", *common, "train.device=cpu"))
    bedplate.pretrain(tiny_recipe(tmp_path / "gpu", *common))
    torch.testing.assert_close(losses(tmp_path / "gpu"), losses(tmp_path / "cpu"), rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    "options",
    [
        ("train.precision=bf16",),
        ("train.compile=true",),
        ("train.compile=true", "train.precision=bf16", "train.activation_checkpointing=true"),
        ("data.isolate_documents=true", "train.precision=bf16"),
        ("train.micro_batch_size=2", "train.ema=0.9", "train.precision=bf16"),
    ],
    ids=lambda options: " ".join(options),
)
def test_the_switches_change_speed_and_rounding_alone(
    tmp_path: Path, tiny_recipe: Any, options: tuple[str, ...]
) -> None:
    isolated = tuple(option for option in options if option.startswith("data."))
    bedplate.pretrain(tiny_recipe(tmp_path / "plain", *TRAINING, *isolated))
    bedplate.pretrain(tiny_recipe(tmp_path / "options", *TRAINING, *options))
    torch.testing.assert_close(losses(tmp_path / "options"), losses(tmp_path / "plain"), rtol=0, atol=5e-2)


def test_a_stopped_run_goes_on(tmp_path: Path, tiny_recipe: Any) -> None:
    recipe = tiny_recipe(tmp_path / "run", *TRAINING, "checkpoint.every=4")
    bedplate.pretrain(recipe, "train.steps=8", "schedule.decay=0", "schedule.warmup=0")
    bedplate.pretrain(recipe, "train.steps=12", "schedule.decay=0", "schedule.warmup=0", resume=True)
    bedplate.pretrain(tiny_recipe(tmp_path / "straight", *TRAINING, "schedule.decay=0", "schedule.warmup=0"))
    torch.testing.assert_close(losses(tmp_path / "run"), losses(tmp_path / "straight"), rtol=0, atol=2e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("options", [(), ("parallel.shard=2",), ("parallel.tensor=2",)])
def test_two_gpus_train_as_one(torchrun: Any, tmp_path: Path, tiny_recipe: Any, options: tuple[str, ...]) -> None:
    bedplate.pretrain(tiny_recipe(tmp_path / "one", *TRAINING))
    recipe = tiny_recipe(tmp_path / "two", *TRAINING, *options).model_dump(mode="json")
    done = torchrun(2, {"two": {"recipe": recipe}})
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=0, atol=2e-3)
