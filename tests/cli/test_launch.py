"""`bedplate launch`: a file on stdout for the scheduler's own command, or on the disk with what to do next."""

import json
from pathlib import Path
from typing import Any

import pytest

from bedplate.recipe import write_recipe


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_recipe: Any) -> Path:
    write_recipe(tiny_recipe(Path("runs/tiny")), tmp_path / "r.yaml")
    return tmp_path / "r.yaml"


def test_the_file_goes_to_stdout_alone(run_cli: Any, recipe_file: Path) -> None:
    result = run_cli("launch", recipe_file, "--slurm", "--nodes", 2, "--gpus", 2, "train.steps=7")
    assert result.code == 0 and result.err == ""
    assert result.out.startswith("#!/bin/bash\n") and "train.steps=7" in result.out


def test_a_written_file_is_followed_by_how_to_submit_it(run_cli: Any, recipe_file: Path, tmp_path: Path) -> None:
    options = ("--kubernetes", "--image", "x:1", "--volume", "runs", "--output", tmp_path / "job.yaml")
    result = run_cli("launch", recipe_file, *options)
    assert result.code == 0 and result.out == ""
    assert f"kubectl apply -f {tmp_path}/job.yaml" in result.err and (tmp_path / "job.yaml").exists()
    again = run_cli("launch", recipe_file, *options)
    assert again.code == 2 and "already exists" in again.err and "Traceback" not in again.err


def test_json_holds_the_file(run_cli: Any, recipe_file: Path) -> None:
    result = run_cli("launch", recipe_file, "--slurm", "--json")
    value = json.loads(result.out)
    assert value["scheduler"] == "slurm" and value["name"] == "r" and value["output"] is None
    assert value["text"].startswith("#!/bin/bash\n")


@pytest.mark.parametrize("options", [[], ["--slurm", "--sky"]])
def test_one_scheduler_is_named(run_cli: Any, recipe_file: Path, options: list[str]) -> None:
    result = run_cli("launch", recipe_file, *options)
    assert result.code == 2 and "name one scheduler: --slurm, --kubernetes or --sky" in result.err
