"""The command line of a summariser, and of beam search."""

import json
from pathlib import Path
from typing import Any

import pytest

from bedplate.recipe import write_recipe

pytest.importorskip("rouge_score")


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_finetune: Any, pairs: Path) -> Path:
    options = ("task=summarize", f"data.path={pairs}", "train.steps=2", "data.val_fraction=0.25")
    write_recipe(tiny_finetune(tmp_path / "run", *options, "evaluate.sample_tokens=2"), tmp_path / "s.yaml")
    return tmp_path / "s.yaml"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    starts = ("the cat sees", "a dog finds", "his sister hears", "the river leaves")
    rows = [{"document": f"{start} {i}", "summary": start} for i in (1, 1984) for start in starts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return tmp_path / "pairs.jsonl"


def test_from_pairs_to_summaries(run_cli: Any, recipe_file: Path, tmp_path: Path, pairs: Path) -> None:
    result = run_cli("finetune", recipe_file)
    assert result.code == 0, result.err
    assert "rougeL: " in result.out and "first sentence rougeL: " in result.out
    model = tmp_path / "run"

    result = run_cli("evaluate", model, "--data", pairs)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert [line.split(":")[0] for line in lines[:6]] == [
        *("rouge1", "rouge2", "rougeL"),
        *("first sentence rouge1", "first sentence rouge2", "first sentence rougeL"),
    ]
    assert all("95 % interval" in line for line in lines[:6])
    assert lines[6] == "8 documents from column 'document', summaries from 'summary'"
    swapped = ("--column", "summary", "--summary", "document")
    value = json.loads(run_cli("evaluate", model, "--data", pairs, *swapped, "--json").out)
    assert value["baselines"]["lead"]["rougeL"]["value"] == pytest.approx(6 / 7), "three of four words are the same"

    (tmp_path / "article.txt").write_text("the cat sees 1", "utf-8")
    plain = run_cli("predict", model, "--file", tmp_path / "article.txt", "--beams", 2, "--max-new-tokens", 4)
    assert plain.code == 0 and plain.out.endswith("\n"), plain.err
    several = ("predict", model, "--file", pairs, "--column", "document", "--max-new-tokens", 4, "--json")
    value = json.loads(run_cli(*several).out)
    assert len(value) == 8 and all(set(item) == {"text"} for item in value)


def refused(result: Any, *parts: str) -> None:
    assert result.code == 2 and result.out == "" and "Traceback" not in result.err
    for part in parts:
        assert part in result.err.splitlines()[-1], result.err


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([{"words": "a", "summary": "b"}], ["which column holds the document", "'words'", "data.document=..."]),
        ([{"document": "a", "words": "b"}], ["which column holds the summary", "'words'", "data.summary=..."]),
        ([{"document": "  ", "summary": "b"}], ["rows.jsonl:1", "the document in 'document' is empty"]),
        ([{"document": "a", "summary": ""}], ["rows.jsonl:1", "the summary in 'summary' is empty"]),
        ([{"document": "a b", "summary": "z " * 40}] * 9, ["rows.jsonl:", "the summary has", "no room"]),
        ([{"document": "a"}, {"document": "b", "summary": "c"}], ["rows.jsonl:1", "no column 'summary'"]),
    ],
)
def test_wrong_rows(run_cli: Any, recipe_file: Path, tmp_path: Path, rows: Any, parts: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    refused(run_cli("finetune", recipe_file, f"data.path={path}", "data.val_fraction=0"), *parts)
    assert not (tmp_path / "run").exists()


def test_beams_of_generate(run_cli: Any, tiny_model: Path) -> None:
    options = ("--beams", 4, "--no-repeat-ngram", 3, "--min-new-tokens", 5, "--max-new-tokens", 9)
    first, again = (run_cli("generate", tiny_model, "the cat", *options, "--json") for _ in range(2))
    assert first.code == 0 and first.out == again.out, "a search draws nothing"
    (value,) = json.loads(first.out)
    assert value["prompt"] == "the cat" and value["text"]
    shown = run_cli("generate", tiny_model, "the cat", *options)
    assert shown.out == f"the cat{value['text']}\n"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--beams", 0), "num_beams=0 must be 1"),
        (("--beams", 2, "--temperature", 0.5), "temperature is of sampling"),
        (("--length-penalty", 2), "give num_beams=2 or more"),
        (("--beams", 2, "--length-penalty", 99), "length_penalty=99.0 must be from -10 to 10"),
        (("--no-repeat-ngram", -1), "no_repeat_ngram_size=-1"),
        (("--min-new-tokens", 200), "min_new_tokens=200 must be from 0 to max_new_tokens"),
        (("--beams", 2, "--chat"), "--beams is for texts to continue"),
    ],
)
def test_wrong_options_of_generate(run_cli: Any, tiny_model: Path, options: Any, part: str) -> None:
    refused(run_cli("generate", tiny_model, "the cat", *options), part)


def test_summaries_are_of_summarisers(run_cli: Any, tiny_model: Path, pairs: Path) -> None:
    refused(run_cli("evaluate", tiny_model, "--data", pairs, "--summary", "summary"), "was not taught to summarise")
    refused(run_cli("predict", tiny_model, "a", "--long", "join"), "long is for summarisers")
