"""`bedplate evaluate --suite`: a table for people, one JSON value for programs, a sentence where a row is bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    pairs = [{"sentence_good": f"The cat sees {x}.", "sentence_bad": f"The cat see {x}."} for x in ("a dog", "her")]
    choices = [{"query": "The cat sees", "choices": ["the river.", "at night her."], "gold": 0}]
    for name, rows in (("pairs", pairs), ("choices", choices)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return tmp_path


def test_json_is_alone_on_stdout_and_the_table_has_every_task(
    run_cli: Callable[..., Any], tiny_model: Path, suite: Path
) -> None:
    printed = run_cli("evaluate", tiny_model, "--suite", suite, "--json")
    assert printed.code == 0, printed.err
    result = json.loads(printed.out)
    assert result["n"] == 3 and set(result["tasks"]) == {"pairs", "choices"}
    assert result["tasks"]["pairs"]["metrics"]["accuracy"]["n"] == 2
    assert "2/2 pairs" in printed.err

    table = run_cli("evaluate", tiny_model, "--suite", suite, "--limit", 1)
    lines = table.out.splitlines()
    assert table.code == 0 and lines[0].startswith("task")
    assert [line.split()[0] for line in lines[1:]] == ["choices", "pairs", "all"]
    scored = json.loads(run_cli("evaluate", tiny_model, "--suite", suite, "--limit", 1, "--json").out)
    digits = [part["hash"][:8] for part in (scored["tasks"]["choices"], scored)]
    assert lines[1].split()[1:5] == ["multiple_choice", digits[0], "1", "50.0%"] and "acc_norm" in lines[1]
    assert lines[3].split()[1:7] == ["mean", "of", "2", digits[1], "2", "50.0%"] and scored["chance"] == 0.5


def test_groups_have_the_mean_chance_of_their_tasks_where_each_has_one(
    run_cli: Callable[..., Any], tiny_model: Path, suite: Path
) -> None:
    (suite / "in").mkdir()
    (suite / "open").mkdir()
    four = {"query": "The cat sees", "choices": ["the river.", "at night her.", "a", "b"], "gold": 0}
    (suite / "pairs.jsonl").rename(suite / "in" / "pairs.jsonl")
    (suite / "in" / "four.jsonl").write_text(json.dumps(four) + "\n", "utf-8")
    (suite / "open" / "next.jsonl").write_text('{"context": "The cat", "continuation": "sees"}\n', "utf-8")
    lines = run_cli("evaluate", tiny_model, "--suite", suite).out.splitlines()
    by_name = {line.split("  ")[0]: line for line in lines}
    assert " 37.5%  accuracy" in by_name["folder: in"]
    assert "%  accuracy" not in by_name["folder: open"] and "%  accuracy" not in by_name["all"]


def test_what_is_wrong_is_told_in_a_sentence(run_cli: Callable[..., Any], tiny_model: Path, suite: Path) -> None:
    (suite / "pairs.jsonl").write_text('{"text": "a"}\n', "utf-8")
    for arguments, message in (
        (["--suite", suite], "pairs.jsonl:1: a row with keys text is of no known kind"),
        (["--suite", suite / "none"], "no such file or folder"),
        ([], "give one of data, suite and harness"),
        (["--suite", suite, "--scoring", "backwards"], "not one of causal, masked, both"),
    ):
        result = run_cli("evaluate", tiny_model, *arguments)
        assert result.code == 2 and message in result.err and not result.out, result.err
