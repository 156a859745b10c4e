"""Many ranks are one run: the losses of a process of its own, the same checkpoints, the same end after faults."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

import bedplate
from bedplate.errors import InputError
from bedplate.recipe import Recipe, write_recipe
from bedplate.train.checkpoint import Checkpoints
from bedplate.train.log import read_rows

Torchrun = Callable[..., "subprocess.CompletedProcess[str]"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def curve(run: Path, key: str = "loss") -> list[float]:
    return [row[key] for row in read_rows(run / "metrics.jsonl") if key in row]


TRAINING = ("train.steps=8", "log.every=1", "evaluate.every=4", "checkpoint.every=4", "parallel.timeout=60")
DATA, SHARD, TENSOR = (), ("parallel.shard=2",), ("parallel.tensor=2",)
MICRO, AGAIN = "train.micro_batch_size=2", "train.activation_checkpointing=true"
WAYS: dict[str, tuple[int, Sequence[str]]] = {
    "data": (2, DATA),
    "data, micro-batches": (2, (MICRO,)),
    "fsdp2": (2, SHARD),
    "fsdp2, micro-batches": (2, (*SHARD, MICRO)),
    "fsdp2, recomputed": (2, (*SHARD, AGAIN)),
    "tensor": (2, TENSOR),
    "tensor, recomputed, micro-batches": (2, (*TENSOR, AGAIN, MICRO)),
    "fsdp2 x tensor": (4, (*SHARD, *TENSOR)),
    "data x fsdp2": (4, SHARD),
    "data x tensor": (4, TENSOR),
}
FULLY = ("data", "fsdp2", "fsdp2 x tensor")  # the ways that train every model; the others one
MODELS = {
    "qwen3-adamw": ("optimizer.name=adamw", "train.ema=0.9"),
    "qwen3-muon": ("optimizer.name=muon", "model.num_key_value_heads=2", "model.num_attention_heads=4"),
    "gpt2-muon": ("optimizer.name=muon", "model.preset=gpt2", "data.isolate_documents=true"),
    "llama-adamw": ("optimizer.name=adamw", "model.preset=llama", "model.tie_word_embeddings=false"),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Any) -> Path:
    """The folder of the runs of one process, one a model; recipes of the same data find its shards."""
    folder = tmp_path_factory.mktemp("alone")
    for model, options in MODELS.items():
        bedplate.pretrain(tiny_recipe(folder / model, *TRAINING, *options))
    return folder


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_losses_are_those_of_one_process(
    torchrun: Torchrun, tmp_path: Path, tiny_recipe: Any, alone: Path, ranks: int
) -> None:
    jobs, model_of = {}, {}
    for way, (needed, options) in WAYS.items():
        models = list(MODELS) if way in FULLY else ["qwen3-muon"]
        for model in models if needed == ranks else ():
            name = f"{way}, {model}".replace(" ", "-")
            recipe = tiny_recipe(tmp_path / name, *TRAINING, *MODELS[model], *options)
            jobs[name], model_of[name] = {"recipe": recipe.model_dump(mode="json")}, model
    done = torchrun(ranks, jobs)
    assert done.returncode == 0, done.stderr
    for name, model in model_of.items():
        tolerance = {"rtol": 0.0, "atol": 1e-5 if "adamw" in model else 1e-3}
        for key in ("loss", "gradient_norm", "val_loss"):
            found, expected = (torch.tensor(curve(run / m, key)) for run, m in ((tmp_path, name), (alone, model)))
            torch.testing.assert_close(found, expected, **tolerance, msg=lambda text, n=name: f"{n}: {text}")
        found, expected = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / name, alone / model))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(
            path.name for path in (alone / model).iterdir()
        )


ELASTIC = ("train.steps=12", "log.every=1", "evaluate.every=6", "checkpoint.every=100", "train.batch_size=12")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_of_2_ranks_goes_on_with_1_and_with_3(
    torchrun: Torchrun, tmp_path: Path, tiny_recipe: Any, optimizer: str
) -> None:
    def recipe(name: str, *options: str) -> dict[str, Any]:
        made: Recipe = tiny_recipe(tmp_path / name, *ELASTIC, f"optimizer.name={optimizer}", "train.ema=0.9", *options)
        return made.model_dump(mode="json")

    bedplate.pretrain(recipe("straight"))
    # Stopped in step 5; its checkpoint is gone on with by one process, then by three of another layout.
    sharded = {name: {"recipe": recipe(name, *SHARD), "stop_at": 5} for name in ("one", "three")}
    done = torchrun(2, sharded)
    assert done.returncode == 0, done.stderr
    assert Checkpoints(tmp_path / "one" / "checkpoints", 1).steps() == [5]
    bedplate.pretrain(recipe("one"), resume=True)
    done = torchrun(3, {"three": {"recipe": recipe("three", "parallel.shard=3"), "resume": True}})
    assert done.returncode == 0, done.stderr
    for name in ("one", "three"):
        assert torch.tensor(curve(tmp_path / name)).allclose(torch.tensor(curve(tmp_path / "straight")), atol=1e-4)
        found, expected = (load_file(tmp_path / each / "model" / "model.safetensors") for each in (name, "straight"))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The ranks that a torchrun has started."""
    return [
        child
        for child in psutil.Process(process.pid).children()
        if "bedplate" in child.cmdline() and "torch.distributed.run" not in child.cmdline()
    ]


@pytest.mark.parametrize(("kills", "seed"), [(2, 0), pytest.param(10, 1, marks=pytest.mark.slow)])
def test_killing_ranks_at_random_moments_changes_nothing(
    torchrun: Torchrun, tmp_path: Path, tiny_recipe: Any, kills: int, seed: int
) -> None:
    """Every step is saved, so that moments fall into steps, into checkpoints and between them."""
    options = (*SHARD, f"train.steps={25 * kills}", "log.every=1", "checkpoint.every=1", "evaluate.every=25")
    recipe = tiny_recipe(tmp_path / "killed", *options)
    straight = {"straight": {"recipe": tiny_recipe(tmp_path, *options).model_dump(mode="json")}}
    done = torchrun(2, straight)
    assert done.returncode == 0, done.stderr
    write_recipe(recipe, tmp_path / "recipe.yaml")
    command = [*TORCHRUN, "2", "--max-restarts", str(kills), "--monitor-interval", "0.1"]
    command += ["-m", "bedplate", "pretrain", str(tmp_path / "recipe.yaml")]
    draw, metrics = random.Random(seed), recipe.out / "metrics.jsonl"
    with open(tmp_path / "errors.txt", "w") as errors:
        process = subprocess.Popen(command, env=ENVIRONMENT, stderr=errors, stdout=subprocess.DEVNULL, text=True)
        for _ in range(kills):
            before = len(read_rows(metrics))
            while len(read_rows(metrics)) <= before:
                assert process.poll() is None, (tmp_path / "errors.txt").read_text()
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.5))
            draw.choice(workers(process)).kill()
            time.sleep(0.5)
        assert process.wait(timeout=300) == 0, (tmp_path / "errors.txt").read_text()
    told = (tmp_path / "errors.txt").read_text()
    assert told.count("Going on from step") == kills and "Traceback" not in told.partition("torch")[0]
    assert curve(recipe.out) == curve(tmp_path / "straight")  # to the bit: the ranks and their sums are the same
    assert curve(recipe.out, "val_loss") == curve(tmp_path / "straight", "val_loss")
    model = Path("model") / "model.safetensors"
    assert (recipe.out / model).read_bytes() == (tmp_path / "straight" / model).read_bytes()
    assert not [*recipe.out.rglob(".*")]


def test_a_hanging_rank_ends_the_run_with_a_message(torchrun: Torchrun, tmp_path: Path, tiny_recipe: Any) -> None:
    recipe = tiny_recipe(tmp_path, "parallel.timeout=4", "checkpoint.every=2", "train.steps=9").model_dump(mode="json")
    began = time.monotonic()
    done = torchrun(2, {"hung": {"recipe": recipe, "hang_at": 4}})
    assert done.returncode != 0 and time.monotonic() - began < 60
    message = (
        r"Error: rank {}: nothing was finished for 4 s (parallel.timeout): a rank hangs or has died. It was in step 4."
    )
    assert any(message.format(rank) in done.stderr for rank in (0, 1))
    assert "step-00000002; start the run again with --resume" in done.stderr


def test_ranks_that_do_not_fit_are_told_once(tmp_path: Path, tiny_recipe: Any) -> None:
    write_recipe(tiny_recipe(tmp_path / "run"), tmp_path / "recipe.yaml")
    command = [*TORCHRUN, "2", "-m", "bedplate", "pretrain", str(tmp_path / "recipe.yaml"), "parallel.shard=3"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=100)
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    assert done.stderr.count("parallel.shard=3 x parallel.tensor=1 ranks hold one copy of the model, but 2") == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "parallel.shard=2",
            "parallel.shard=2 x parallel.tensor=1 .* but 1 process was started; start a multiple of 2",
        ),
        ("parallel.tensor=4", "start a multiple of 4 with torchrun, or change them"),
    ],
)
def test_shards_need_ranks(tmp_path: Path, tiny_recipe: Any, option: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bedplate.pretrain(tiny_recipe(tmp_path / "run", option))
    assert not (tmp_path / "run").exists()
