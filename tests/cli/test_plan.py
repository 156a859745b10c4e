"""`bedplate plan` on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from bedplate.recipe import write_recipe


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_recipe: Any) -> Path:
    write_recipe(tiny_recipe(tmp_path / "run", "train.precision=bf16"), tmp_path / "r.yaml")
    return tmp_path / "r.yaml"


def test_a_table_for_people(run_cli: Any, recipe_file: Path) -> None:
    shown = run_cli("plan", recipe_file, "--gpu", "h100", "--gpus", 8, "--price", 2).out
    for part in ("Tokens", "about 20 are compute-optimal", "8 x NVIDIA H100 SXM, bf16", "at the fullest moment"):
        assert part in shown
    assert "it fits" in shown and "kWh, $0.0" in shown and "- assumed: " in shown and "- published: " in shown


def test_changes_that_fit_can_be_pasted(run_cli: Any, recipe_file: Path) -> None:
    large = ["model.hidden_size=8192", "train.sequence_length=2048", "train.batch_size=64", "model.num_hidden_layers=8"]
    options = ["--gpu", "a100", "--gpus", 8]
    shown = run_cli("plan", recipe_file, *large, *options).out
    assert "IT DOES NOT FIT" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("Fits with")]
    assert ": it fits" in run_cli("plan", recipe_file, *large, *line.removeprefix("Fits with").split(), *options).out


def test_nothing_fits(run_cli: Any, recipe_file: Path) -> None:
    assert "take more or larger GPUs" in run_cli("plan", recipe_file, "model.hidden_size=32768", "--gpu", "l4").out


def test_json_is_one_value(run_cli: Any, recipe_file: Path) -> None:
    plan = json.loads(run_cli("plan", recipe_file, "--json").out)
    assert plan["time"]["step_seconds"] > 0 and plan["memory"]["total"] > 0


def test_bad_input_exits_with_2(run_cli: Any, recipe_file: Path) -> None:
    result = run_cli("plan", recipe_file, "--gpu", "h1oo")
    assert result.code == 2 and result.out == "" and result.err.startswith("Error: GPU 'h1oo' is not known")


def test_a_dry_run_prints_the_same_table(run_cli: Any, recipe_file: Path) -> None:
    shown = run_cli("pretrain", recipe_file, "--dry-run").out
    assert shown.startswith("seed: 0") and "at the fullest moment" in shown and "Time" not in shown
