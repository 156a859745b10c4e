"""Pre-training that goes on from a base."""

from pathlib import Path
from typing import Any

import pytest
import torch

import bedplate
from bedplate.errors import InputError
from bedplate.recipe import Recipe
from bedplate.train.log import read_rows

OWN = ("model", "tokenizer")


@pytest.fixture
def go_on(tiny_recipe: Any, tiny_run: Path) -> Any:
    """`go_on(out, *overrides)`: the tiny recipe from the tiny run's model."""

    def make(out: Path, *overrides: str) -> Recipe:
        values = tiny_recipe(out, *overrides).model_dump(exclude_unset=True, exclude=set(OWN))
        return Recipe.model_validate({**values, "base": str(tiny_run)})

    return make


def test_it_starts_from_the_weights_of_the_base(tmp_path: Path, go_on: Any, tiny_run: Path) -> None:
    recipe = go_on(
        tmp_path / "run", "train.steps=1", "optimizer.learning_rate=1e-12", "optimizer.muon_learning_rate=1e-12"
    )
    bedplate.pretrain(recipe)
    base, after = bedplate.load(tiny_run), bedplate.load(recipe.out)
    assert base.need_tokenizer().to_str() == after.need_tokenizer().to_str()
    for name, value in base.module.state_dict().items():
        torch.testing.assert_close(after.module.state_dict()[name], value, atol=1e-6, rtol=0)
    card = (recipe.out / "model" / "README.md").read_text("utf-8")
    assert f"base: {tiny_run.name}" in card and str(tiny_run) not in card


def test_it_learns_on(tmp_path: Path, go_on: Any) -> None:
    result = bedplate.pretrain(go_on(tmp_path / "run", "evaluate.every=20"))
    first = next(row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "val_loss" in row)
    assert first["step"] == 0 and result["metrics"]["bits_per_byte"]["value"] < first["val_bits_per_byte"] < 5


def test_a_base_brings_its_own_network_and_tokenizer(tmp_path: Path, tiny_recipe: Any, tiny_run: Path) -> None:
    with pytest.raises(ValueError, match="brings its own model; leave `model` out, or base"):
        tiny_recipe(tmp_path / "run", f"base={tiny_run}")


def test_rows_fit_into_the_context_of_the_base(tmp_path: Path, go_on: Any) -> None:
    with pytest.raises(InputError, match=r"train.sequence_length=4096 is longer than the context of "):
        bedplate.pretrain(go_on(tmp_path / "run", "train.sequence_length=4096"))


def test_its_plan_is_that_of_the_base(tmp_path: Path, go_on: Any, tiny_run: Path) -> None:
    plan = bedplate.pretrain(go_on(tmp_path / "run"), dry_run=True)
    assert plan["parameters"] == sum(p.numel() for p in bedplate.load(tiny_run).module.parameters())


def test_a_grown_base_begins_where_it_stood_and_loads_everywhere(tmp_path: Path, go_on: Any, tiny_run: Path) -> None:
    transformers = pytest.importorskip("transformers")
    recipe = go_on(tmp_path / "run", "evaluate.every=20").model_copy(update={"grow_layers": 3})
    before = sum(p.numel() for p in bedplate.load(tiny_run).module.parameters())
    assert bedplate.pretrain(recipe, dry_run=True)["parameters"] > before
    bedplate.pretrain(recipe)
    plain = go_on(tmp_path / "plain", "evaluate.every=20", "train.steps=1")
    bedplate.pretrain(plain)
    grown, same = (
        next(row for row in read_rows(run / "metrics.jsonl") if "val_loss" in row)["val_loss"]
        for run in (recipe.out, plain.out)
    )
    assert grown == same
    model = bedplate.load(recipe.out)
    other = transformers.AutoModelForCausalLM.from_pretrained(recipe.out / "model")
    ids = torch.arange(12)[None]
    assert other.config.num_hidden_layers == 3
    torch.testing.assert_close(model.module(ids), other(ids).logits, atol=1e-5, rtol=1e-5)


def test_only_a_base_grows(tmp_path: Path, tiny_recipe: Any) -> None:
    with pytest.raises(ValueError, match=r"grow_layers is for a base; without one give model\.num_hidden_layers"):
        tiny_recipe(tmp_path / "run", "grow_layers=3")
