"""The loop: what a step is, what is saved, and when it stops."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import bedplate
from bedplate.data.loader import IGNORE, TextLoader
from bedplate.data.text import prepare
from bedplate.errors import InputError
from bedplate.tasks import Batch
from bedplate.tasks.language import Language
from bedplate.train.checkpoint import Checkpoints
from bedplate.train.log import read_rows
from bedplate.train.loop import split, step_seed
from bedplate.train.optim import finish_gradients


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.parameters.items()}


def last_weights(run: Path) -> dict[str, Tensor]:
    return Checkpoints(run / "checkpoints", 1).load().model


def test_accumulation_equals_one_large_batch_where_micro_batches_weigh_unequally(make_trainer: Any) -> None:
    whole, parts = make_trainer(folder="a"), make_trainer("train.micro_batch_size=2", folder="b")
    for trainer in (whole, parts):
        trainer.run()
        assert not torch.equal(trainer.parameters["weight"], torch.full((1, 3), 0.5)), "nothing was learnt"
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, atol=1e-6, rtol=0)
    losses = [[row["loss"] for row in read_rows(t.folder / "metrics.jsonl")] for t in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_accumulating_a_language_model_equals_one_large_batch(tmp_path: Path, tiny_recipe: Any) -> None:
    common = ("train.steps=3", "data.isolate_documents=true", "log.every=1", "optimizer.clip_norm=0.5")
    recipes = [tiny_recipe(tmp_path / "a", *common), tiny_recipe(tmp_path / "b", *common, "train.micro_batch_size=2")]
    for recipe in recipes:
        bedplate.pretrain(recipe)
    a, b = (last_weights(recipe.out) for recipe in recipes)
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, atol=5e-6, rtol=0)  # AdamW divides sums of another order
    rows = [read_rows(recipe.out / "metrics.jsonl") for recipe in recipes]
    assert [r["loss"] for r in rows[0] if "loss" in r] == pytest.approx([r["loss"] for r in rows[1] if "loss" in r])


def test_a_mean_of_means_would_be_wrong(tmp_path: Path, tiny_recipe: Any, tiny_run: Path) -> None:
    """The batches of the test above do tell the two apart: micro-batches count unequal numbers of tokens."""
    model = bedplate.load(tiny_run)
    assert model.tokenizer is not None
    shards = prepare(tiny_recipe(tmp_path).data.path, model.tokenizer, val_fraction=0.1, cache_dir=tmp_path)
    batch = TextLoader([shards.train], None, 32, 8, 0, isolate_documents=True).batch(0)
    task, micro = Language(model.module, model.tokenizer), split(batch, 2)
    counts = [int((part["targets"] != IGNORE).sum()) for part in micro]
    assert len(set(counts)) > 1
    with torch.no_grad():
        (total, weight), sums = task.loss(batch)["loss"], [task.loss(part)["loss"][0] for part in micro]
    mean = (total / weight).item()
    assert sum(sums).item() / sum(counts) == pytest.approx(mean, abs=1e-6)  # type: ignore[union-attr]
    assert abs(sum((s / n).item() for s, n in zip(sums, counts, strict=True)) / 4 - mean) > 1e-4


def test_a_step_weighs_at_least_one(make_trainer: Any) -> None:
    """As a batch of pictures with hardly an object in it does; however it is parted, its gradient is the same."""
    steps = []
    for number, micro in enumerate(("null", "2")):
        trainer = make_trainer(f"train.micro_batch_size={micro}", "train.steps=1", folder=str(number))
        light = {"x": torch.ones(8, 3), "y": torch.zeros(8), "w": torch.tensor([0.25, 0, 0, 0, 0.25, 0, 0, 0])}
        trainer.data.train = lambda *_, batch=light: (each for each in [batch])
        trainer.run()
        steps.append(trainer._norm)
    torch.testing.assert_close(steps[0], steps[1])
    torch.testing.assert_close(steps[0], torch.tensor(0.5 * 2 * 2.0 * 2))  # (w.sum / 1) * 2 * error * |(1, 1, 1, 1)|


def test_ranks_draw_other_numbers_and_a_resumed_step_the_same() -> None:
    def drawn(step: int, rank: int) -> Tensor:
        torch.manual_seed(step_seed(3, step, rank))
        return torch.rand(4)

    seen = torch.stack([drawn(step, rank) for step in range(3) for rank in range(4)])
    assert len(seen.unique(dim=0)) == len(seen)
    assert torch.equal(drawn(1, 2), seen[6])


def test_a_batch_without_counted_tokens_moves_nothing() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.zeros(2)
    assert finish_gradients([parameter], torch.tensor(0), 1.0) == 0 and parameter.grad.eq(0).all()


def test_the_average_of_the_weights_is_the_one_of_the_formula(make_trainer: Any) -> None:
    trainer = make_trainer("train.steps=5", "train.ema=0.8")
    expected, seen, step = weights(trainer), [], trainer._train_step
    first = {name: value.clone() for name, value in expected.items()}

    def watched(batch: Batch) -> None:
        step(batch)
        seen.append(weights(trainer))

    trainer._train_step = watched
    trainer.run()
    for now, name in itertools.product(seen, expected):
        expected[name] = 0.8 * expected[name] + 0.2 * now[name]
    for name, value in expected.items():
        torch.testing.assert_close(trainer.saved[0][name], value)  # the average is what is saved
        assert torch.equal(trainer.parameters[name], seen[-1][name])  # and the run's own weights are left alone
        assert not torch.equal(first[name], value)


def test_the_model_is_from_the_best_evaluation(make_trainer: Any) -> None:
    val = [9.0, 5.0, 3.0, 6.0, 7.0, 8.0]  # before the first step, then after 2, 4, 6, 8 and 10
    trainer = make_trainer("evaluate.every=2", "checkpoint.every=2", "checkpoint.keep=1", val=val)
    trainer.run()
    assert trainer.best == {"metric": "loss", "value": 3.0, "loss": 3.0, "step": 4}
    assert trainer.checkpoints.steps() == [4, 10]  # the newest `keep` and the best
    best = trainer.checkpoints.load(4)
    for name, value in trainer.saved[0].items():
        assert torch.equal(value, best.model[name])
        assert not torch.equal(value, trainer.checkpoints.load(10).model[name])


def test_rows_say_how_much_of_the_time_was_waited_for_data(make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, now = make_trainer("log.every=5", "evaluate.every=5", val=[1.0, 1.0, 1.0]), [0.0]
    monkeypatch.setattr("bedplate.train.loop.time", SimpleNamespace(perf_counter=lambda: now[0]))
    batches, loss, evaluate = trainer.data.train, trainer.task.loss, trainer.task.evaluate

    def passing(seconds: float, value: Any) -> Any:
        now[0] += seconds
        return value

    def late(first: int, stop: int) -> Any:
        for step, batch in enumerate(batches(first, stop), first):
            yield passing(3.0 if step >= 5 else 0.0, batch)

    trainer.data = replace(trainer.data, train=late)
    trainer.task.loss = lambda batch: passing(1.0, loss(batch))
    trainer.task.evaluate = lambda held_out: passing(100.0, evaluate(held_out))
    trainer.run()
    rows = [row for row in read_rows(trainer.folder / "metrics.jsonl") if "waiting" in row]
    assert [(row["waiting"], row["seconds"]) for row in rows] == [(0.0, 5.0), (0.75, 20.0)]


def test_the_untrained_network_is_never_the_best(make_trainer: Any) -> None:
    trainer = make_trainer("evaluate.every=5", val=[1.0, 8.0, 9.0])
    trainer.run()
    assert trainer.best["step"] == 5


def spoil(task: Any, step: int, how: str) -> None:
    """Make a task's loss, or only its gradient, infinite at a step counted from 1."""
    calls, loss = itertools.count(1), task.loss

    def spoilt(batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        value, weight = loss(batch)["loss"]
        if next(calls) == step:
            value = value * torch.nan if how == "loss" else value + 0 * (value * 0).sqrt()  # d sqrt(0) is infinite
        return {"loss": (value, weight)}

    task.loss = spoilt


@pytest.mark.parametrize(
    ("how", "message"), [("loss", "the loss became nan"), ("gradient", "the gradient norm became")]
)
def test_a_spoilt_step_stops_the_run_and_names_the_last_good_checkpoint(
    make_trainer: Any, how: str, message: str
) -> None:
    trainer = make_trainer("checkpoint.every=3", "log.every=2")
    spoil(trainer.task, 8, how)
    with pytest.raises(InputError, match=rf"{message}.* at step 8; the last good checkpoint is .*step-00000006;"):
        trainer.run()
    assert all(value.isfinite().all() for value in trainer.checkpoints.load().model.values())
    again = make_trainer("checkpoint.every=3", "log.every=2")
    again.resume()
    again.run()
    assert again.step == 10


def test_weights_that_a_last_update_spoilt_are_not_kept(make_trainer: Any) -> None:
    trainer = make_trainer("checkpoint.every=1", "optimizer.learning_rate=1e300")
    with pytest.raises(InputError, match=r"the weights are not finite after step 1; nothing was saved yet"):
        trainer.run()
    assert trainer.checkpoints.steps() == []


def test_an_absurd_learning_rate_leaves_finite_checkpoints(tmp_path: Path, tiny_recipe: Any) -> None:
    rates = ("optimizer.learning_rate=1e30", "optimizer.muon_learning_rate=1e30", "checkpoint.every=1")
    with pytest.raises(InputError, match=r"lower optimizer\.learning_rate"):
        bedplate.pretrain(tiny_recipe(tmp_path / "run", *rates))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", 1)
    for step in checkpoints.steps():
        assert all(value.isfinite().all() for value in checkpoints.load(step).model.values())
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activation_checkpointing_gives_the_same_weights(tmp_path: Path, tiny_recipe: Any, dropout: float) -> None:
    common = ("train.steps=3", f"model.dropout={dropout}")
    for name, switch in (("a", "false"), ("b", "true")):
        bedplate.pretrain(tiny_recipe(tmp_path / name, *common, f"train.activation_checkpointing={switch}"))
    a, b = last_weights(tmp_path / "a"), last_weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_compiling_gives_nearly_the_same_weights(tmp_path: Path, tiny_recipe: Any) -> None:
    for name, switch in (("a", "false"), ("b", "true")):
        bedplate.pretrain(tiny_recipe(tmp_path / name, "train.steps=3", f"train.compile={switch}"))
    a, b = last_weights(tmp_path / "a"), last_weights(tmp_path / "b")
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, atol=1e-3, rtol=0)


def test_a_tiny_run_in_bf16_learns(tmp_path: Path, tiny_recipe: Any) -> None:
    small = ("model.num_hidden_layers=1", "train.batch_size=2", "train.steps=2", "evaluate.batches=1", "log.every=1")
    bedplate.pretrain(tiny_recipe(tmp_path / "run", *small, "train.precision=bf16"))
    losses = [row["loss"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 2 and all(0 < loss < 7 for loss in losses)
    assert last_weights(tmp_path / "run")["embed.weight"].dtype == torch.float32  # weights stay whole; products do not
    assert "bf16 (as asked)" in json.loads((tmp_path / "run" / "environment.json").read_text())["hardware"]


def test_seeds_decide_the_weights(tmp_path: Path, tiny_recipe: Any) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        bedplate.pretrain(tiny_recipe(tmp_path / name, "train.steps=2", f"seed={seed}"))
    a, b, c = (last_weights(tmp_path / name)["embed.weight"] for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)
