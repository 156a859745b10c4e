"""Each verb on the command line: its help, its `--json`, what it prints for a person."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from bedplate import _VERBS
from bedplate.cli import main as cli
from bedplate.recipe import write_recipe

VERBS = [verb for verb in _VERBS if verb != "load"]


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_recipe: Any) -> Path:
    write_recipe(tiny_recipe(tmp_path / "run", "train.steps=2"), tmp_path / "r.yaml")
    return tmp_path / "r.yaml"


def one_value(result: Any) -> Any:
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_and_every_default(run_cli: Any, verb: str) -> None:
    shown = " ".join(run_cli(verb, "--help").out.split())
    assert f"Example: bedplate {verb}" in shown and "\\" not in shown
    command = typer.main.get_command(cli.app).commands[verb]  # type: ignore[attr-defined]
    for parameter in command.params:
        assert parameter.opts[0] in shown or parameter.param_type_name == "argument"
        assert getattr(parameter, "help", ""), f"{verb} {parameter.name} says nothing"
        if not parameter.required and parameter.param_type_name == "option" and parameter.default not in (None, False):
            assert f"[default: {parameter.default}]" in shown, parameter.name


def test_the_verbs_of_the_shell_are_those_of_python(run_cli: Any) -> None:
    shown = run_cli("--help").out
    assert all(f"  {verb} " in shown for verb in VERBS)


def test_pretrain_prints_one_json_value(run_cli: Any, recipe_file: Path) -> None:
    value = one_value(run_cli("pretrain", recipe_file, "train.steps=1", "--json"))
    assert value["steps"] == 1 and {"out", "model", "parameters", "metrics"} <= set(value)
    assert "seconds" in value


def test_pretrain_says_what_it_measured_and_where_things_are(run_cli: Any, recipe_file: Path, tmp_path: Path) -> None:
    result = run_cli("pretrain", recipe_file)
    assert result.code == 0 and "bits_per_byte: " in result.out and "95 % interval" in result.out
    assert f"Model: {tmp_path}/run/model\nReport: {tmp_path}/run/report.html\n" in result.out
    assert "Training on cpu, 1 threads, fp32 (as asked)." in result.err  # progress is not a result
    assert run_cli("pretrain", recipe_file, "--resume").code == 0


def test_a_dry_run_prints_the_recipe_and_the_sizes(run_cli: Any, recipe_file: Path, tmp_path: Path) -> None:
    result = run_cli("pretrain", recipe_file, "--dry-run")
    assert result.code == 0 and "hidden_size: 32" in result.out
    for word in ("Hardware", "Parameters", "Tokens", "FLOPs", "Memory"):
        assert word in result.out
    value = one_value(run_cli("pretrain", recipe_file, "--dry-run", "--json"))
    assert value["recipe"]["train"]["steps"] == 2 and not (tmp_path / "run").exists()


def test_tokenizer_and_prepare(run_cli: Any, tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "tokenizer"
    assert one_value(run_cli("tokenizer", corpus, "--out", out, "--vocab-size", 300, "--json"))["vocab_size"] == 300
    assert "299 entries" in run_cli("tokenizer", corpus, "--out", tmp_path / "b", "--vocab-size", 299).out
    meta = one_value(run_cli("prepare", corpus, "--tokenizer", out, "--cache", tmp_path / "cache", "--json"))
    assert meta["train"]["documents"] > 300
    assert "documents" in run_cli("prepare", corpus, "--tokenizer", out, "--cache", tmp_path / "cache").out


def test_evaluate(run_cli: Any, tiny_run: Path, corpus: Path) -> None:
    value = one_value(run_cli("evaluate", tiny_run, "--data", corpus, "--json"))
    assert {"value", "low", "high"} <= set(value["metrics"]["bits_per_byte"]) and value["n"] > 0
    assert "bits_per_byte: " in run_cli("evaluate", tiny_run, "--data", corpus).out


def test_generate(run_cli: Any, tiny_run: Path) -> None:
    options = ("--max-new-tokens", 5, "--seed", 1)
    rows = one_value(run_cli("generate", tiny_run, "The cat", "Her", *options, "--json"))
    assert [row["prompt"] for row in rows] == ["The cat", "Her"]
    (row,) = one_value(run_cli("generate", tiny_run, "The cat", *options, "--json"))
    assert run_cli("generate", tiny_run, "The cat", *options).out == row["prompt"] + row["text"] + "\n"  # streamed


def test_info_and_doctor(run_cli: Any, tiny_run: Path) -> None:
    assert one_value(run_cli("info", tiny_run, "--json"))["family"] == "qwen3"
    assert "hidden_size" in run_cli("info", tiny_run).out
    assert {"ok", "checks"} == set(one_value(run_cli("doctor", "--json")))
