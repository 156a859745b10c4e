"""Stopping and going on: whenever a run is stopped, the resumed one ends equal to the undisturbed one, to the bit."""

import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import bedplate
from bedplate.api.pretrain import pretrain
from bedplate.errors import InputError, Interrupted
from bedplate.recipe import write_recipe
from bedplate.train.checkpoint import Checkpoints
from bedplate.train.log import read_rows
from bedplate.train.loop import Trainer

TIMING = {"tokens_per_second", "mfu", "waiting", "seconds"}


def end_of(run: Path) -> dict[str, Any]:
    """What a finished run comes to: the bits of its last checkpoint and model, and its rows without timings."""
    last = Checkpoints(run / "checkpoints", 1).load()
    bits = {name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in last.tensors().items()}
    files = {name: (run / name).read_bytes() for name in ("model/model.safetensors", "samples.jsonl")}
    rows = [{k: v for k, v in row.items() if k not in TIMING} for row in read_rows(run / "metrics.jsonl")]
    return {"checkpoint": bits, "state": last.state(), "metrics.jsonl": rows} | files


def assert_no_leftovers(run: Path) -> None:
    assert not [*run.rglob(".*")]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process a SIGTERM while it is in that step."""
    train_step = Trainer._train_step

    def stopping(self: Trainer, batch: Any) -> None:
        train_step(self, batch)
        if self.step + 1 == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_train_step", stopping)


DOCUMENTS = ("objective.document_weight=1", "objective.document_batch=16")
PASSAGES = ("objective.passage_weight=1", "objective.passage_batch=8")
EVERYTHING = (
    "model.dropout=0.1",
    "train.ema=0.9",
    "data.isolate_documents=true",
    "train.micro_batch_size=4",
    "objective.masked_share=0.25",
    *DOCUMENTS,
    *PASSAGES,
)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("options", [(), EVERYTHING], ids=["plain", "everything"])
def test_20_steps_equal_12_and_8_to_the_bit(
    tmp_path: Path, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch, optimizer: str, options: tuple[str, ...]
) -> None:
    common = (f"optimizer.name={optimizer}", "evaluate.every=5", "log.every=8", "checkpoint.every=100", *options)
    straight, stopped = (tiny_recipe(tmp_path / name, *common) for name in ("straight", "stopped"))
    bedplate.pretrain(straight)
    with monkeypatch.context() as patch:
        stop_at(patch, 12)
        with pytest.raises(Interrupted, match=r"Stopped after step 12 of 20; everything is saved"):
            bedplate.pretrain(stopped)
    assert not (stopped.out / "model").exists()
    bedplate.pretrain(stopped, resume=True)
    expected, found = end_of(straight.out), end_of(stopped.out)
    saved = Checkpoints(straight.out / "checkpoints", 1).load()
    assert saved.optimizer and bool(saved.ema) == bool(options)
    assert expected == found


def test_resuming_a_finished_run_writes_the_same_model_again(tmp_path: Path, tiny_recipe: Any) -> None:
    recipe = tiny_recipe(tmp_path / "run", "train.steps=3")
    before = bedplate.pretrain(recipe), end_of(recipe.out)
    after = bedplate.pretrain(recipe, resume=True), end_of(recipe.out)
    assert before[1] == after[1] and before[0]["metrics"] == after[0]["metrics"]


def test_resuming_a_run_that_never_began_begins_it(tmp_path: Path, tiny_recipe: Any) -> None:
    assert bedplate.pretrain(tiny_recipe(tmp_path / "run", "train.steps=2"), resume=True)["steps"] == 2


@pytest.mark.parametrize(
    "override",
    ["model.hidden_size=48", "optimizer.name=adamw", "train.ema=0.5", "seed=7", "tokenizer.vocab_size=290"],
)
def test_another_network_is_not_resumed(tiny_run: Path, tiny_recipe: Any, override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(InputError, match=rf"recipe.yaml: the run began with {key}=.*resume with the same"):
        bedplate.pretrain(tiny_recipe(tiny_run, "train.steps=40", override), resume=True)


def test_other_data_is_not_resumed(tiny_run: Path, tiny_recipe: Any, tmp_path: Path, corpus: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(corpus.read_text("utf-8").splitlines(keepends=True)[:300]), "utf-8")
    with pytest.raises(InputError, match="the run began with other data"):
        bedplate.pretrain(
            tiny_recipe(tiny_run, "train.steps=40", "train.batch_size=16", f"data.path={other}"), resume=True
        )


def test_the_same_data_elsewhere_is_resumed(tmp_path: Path, tiny_recipe: Any, corpus: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", "train.steps=2")
    bedplate.pretrain(recipe)
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(corpus.read_bytes())
    bedplate.pretrain(recipe, f"data.path={moved}", resume=True)


LONG = ("train.steps=120", "evaluate.every=50", "log.every=1", "checkpoint.every=50", "model.dropout=0.1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Any) -> dict[str, Any]:
    recipe = tiny_recipe(tmp_path_factory.mktemp("undisturbed") / "run", *LONG)
    bedplate.pretrain(recipe)
    return end_of(recipe.out)


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(
    tmp_path: Path, tiny_recipe: Any, undisturbed: dict[str, Any], number: signal.Signals
) -> None:
    recipe, file = tiny_recipe(tmp_path / "run", *LONG), tmp_path / "a recipe.yaml"
    write_recipe(recipe, file)
    command = [sys.executable, "-m", "bedplate", "pretrain", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: len(read_rows(recipe.out / "metrics.jsonl")) > 3, process)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    (step,) = Checkpoints(recipe.out / "checkpoints", 1).steps()[-1:]
    message = f"Stopped after step {step} of 120; everything is saved in {recipe.out}."
    assert err.splitlines()[-1] == f"{message} Go on with: bedplate pretrain '{file}' --resume"
    assert (recipe.out / "report.html").is_file()
    bedplate.pretrain(file, resume=True)
    assert end_of(recipe.out) == undisturbed


def kill_until_finished(recipe: Any, kills: int, seed: int) -> list[int]:
    """Train in processes of which the first `kills` are killed at random moments; return the steps they had reached."""
    context, draw, reached = multiprocessing.get_context("forkserver"), random.Random(seed), []
    context.set_forkserver_preload(["bedplate.api.pretrain", "torch._dynamo"])  # each process then starts at once
    metrics, checkpoints = recipe.out / "metrics.jsonl", Checkpoints(recipe.out / "checkpoints", 1)
    for kill in range(kills + 1):
        process = context.Process(target=pretrain, args=(recipe,), kwargs={"resume": True})
        process.start()
        if kill < kills:
            size = metrics.stat().st_size if metrics.exists() else 0
            while kill % 4 and process.is_alive() and (not metrics.exists() or metrics.stat().st_size <= size):
                time.sleep(0.002)  # most kills wait for the first step; every fourth hits the preparations
            process.join(draw.uniform(0, 0.4))
            assert process.is_alive(), f"finished before kill {kill}: {process.exitcode}"
            process.kill()
        process.join()
        if checkpoints.steps():
            reached.append(checkpoints.load().step)  # the newest checkpoint is always whole
    assert process.exitcode == 0
    return reached


@pytest.mark.parametrize(("kills", "seed"), [(3, 0), pytest.param(20, 1, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_changes_nothing(
    tmp_path: Path, tiny_recipe: Any, undisturbed: dict[str, Any], kills: int, seed: int
) -> None:
    steps = LONG if kills == 3 else (*LONG, "train.steps=600")
    recipe = tiny_recipe(tmp_path / "run", *steps, "checkpoint.every=1")
    reached = kill_until_finished(recipe, kills, seed)
    assert reached == sorted(reached) and reached[-1] == recipe.train.steps
    if kills > 3:
        straight = tiny_recipe(tmp_path / "straight", *steps, "checkpoint.every=1")
        bedplate.pretrain(straight)
        undisturbed = end_of(straight.out)
    assert end_of(recipe.out) == undisturbed
    assert_no_leftovers(recipe.out)


def test_the_recipe_of_a_run_resumes_it(tmp_path: Path, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path / "run", "train.steps=4")
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted, match=r"Go on with: bedplate pretrain .*recipe\.yaml --resume"):
            bedplate.pretrain(recipe)
    assert bedplate.pretrain(recipe.out / "recipe.yaml", resume=True)["steps"] == 4
    assert json.loads((recipe.out / "environment.json").read_text("utf-8"))["data"]


def test_a_run_is_not_resumed_to_an_earlier_step(tiny_run: Path, tiny_recipe: Any) -> None:
    before = (tiny_run / "recipe.yaml").read_bytes()
    with pytest.raises(InputError, match=r"the run is at step \d+, past train.steps=1"):
        bedplate.pretrain(tiny_run / "recipe.yaml", "train.steps=1", resume=True)
    assert (tiny_run / "recipe.yaml").read_bytes() == before
