"""Bad input through the command line: exit code 2, one sentence that names the place, no traceback, nothing left."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bedplate.recipe import write_recipe


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_recipe: Any) -> Path:
    write_recipe(tiny_recipe(tmp_path / "run", "train.steps=2"), tmp_path / "r.yaml")
    return tmp_path / "r.yaml"


def assert_refused(result: Any, *parts: object) -> None:
    """The last line of stderr is the only error, and holds these parts."""
    assert result.code == 2 and result.out == ""
    lines = result.err.splitlines()
    assert lines[-1].startswith("Error: ") and result.err.count("Error: ") == 1 and "Traceback" not in result.err
    for part in parts:
        assert str(part) in lines[-1]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.stepz=5", ["unknown key 'train.stepz'", "did you mean 'train.steps'?"]),
        ("train.steps=many", ["train.steps", "valid integer", "'many'"]),
        ("data.path=missing.jsonl", ["missing.jsonl", "no such file"]),
        ("tokenizer.path=missing", ["missing", "no such file"]),
        ("evaluate.metric=accuracy", ["evaluate.metric='accuracy'", "bits_per_byte"]),
        ("train.steps", ["'train.steps'", "key.path=value"]),
    ],
)
def test_a_wrong_recipe(run_cli: Any, recipe_file: Path, tmp_path: Path, override: str, parts: list[str]) -> None:
    assert_refused(run_cli("pretrain", recipe_file, override), *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("empty.txt", b"", ["empty.txt", "no text"]),
        ("empty.jsonl", b"", ["empty.jsonl", "no text"]),
        ("latin.txt", b"ok \n" + "café".encode("latin-1"), ["latin.txt", "not UTF-8 at byte 7"]),
        ("latin.jsonl", b'{"text": "ok"}\n{"text": "\xe9"}\n', ["latin.jsonl", "not UTF-8 at byte 25"]),
        ("bad.jsonl", b'{"text": "ok"}\n{"text": \n', ["bad.jsonl:2", "not JSON"]),
        ("bad.csv", b"title\nx\n", ["bad.csv", "no column 'text'"]),
        ("cut.jsonl.gz", b"\x1f\x8b\x08\x00", ["cut.jsonl.gz", "truncated or corrupt"]),
    ],
)
@pytest.mark.parametrize("verb", ["pretrain", "tokenizer"])
def test_wrong_data(
    run_cli: Any, recipe_file: Path, tmp_path: Path, verb: str, name: str, content: bytes, parts: list[str]
) -> None:
    data, out = tmp_path / name, tmp_path / "run"
    data.write_bytes(content)
    command = ["pretrain", recipe_file, f"data.path={data}"] if verb == "pretrain" else [verb, data, "--out", out]
    assert_refused(run_cli(*command), *parts)
    assert not out.exists()


def test_a_missing_recipe(run_cli: Any, tmp_path: Path) -> None:
    assert_refused(run_cli("pretrain", tmp_path / "no.yaml"), "no.yaml", "no such recipe")


def test_a_text_too_long_for_a_name_is_no_file(run_cli: Any) -> None:
    """As where the model is forgotten, or the recipe."""
    text = "once upon a time " * 30
    for verb in (("predict", text), ("info", text), ("pretrain", text), ("search", text, "a cat")):
        assert_refused(run_cli(*verb), text.strip()[:20])


def test_folders_that_may_not_be_written_to(
    run_cli: Any, recipe_file: Path, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: access(path, mode) and not (mode & os.W_OK))  # for root, too
    out = tmp_path / "out"
    out.mkdir()
    assert_refused(run_cli("pretrain", recipe_file, f"out={out}"), out, "cannot be written to")
    assert_refused(run_cli("tokenizer", corpus, "--out", tmp_path / "tokenizer"), "tokenizer", "cannot be written to")
    assert list(out.iterdir()) == []


def test_a_home_is_expanded_where_no_shell_does(
    run_cli: Any, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run_cli("tokenizer", corpus, "--vocab-size", 300, "--out=~/tokenizer").code == 0
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file() and not (tmp_path / "~").exists()


def test_malformed_yaml(run_cli: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("out: x\ndata: [1\ntrain: 2\n")
    assert_refused(run_cli("pretrain", tmp_path / "bad.yaml"), "bad.yaml:3", "not valid YAML")


def test_an_existing_output_folder_is_left_as_it_was(run_cli: Any, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    assert_refused(run_cli("pretrain", recipe_file), tmp_path / "run", "already exists", "--resume")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("verb", ["generate", "evaluate", "info"])
def test_damaged_models(run_cli: Any, tiny_model: Path, tmp_path: Path, corpus: Path, verb: str) -> None:
    rest = {"generate": ["The"], "evaluate": ["--data", corpus], "info": []}[verb]
    assert_refused(run_cli(verb, tmp_path / "no-model", *rest), "no-model", "no such folder")
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert_refused(run_cli(verb, model, *rest), weights, "truncated")
    weights.unlink()
    assert_refused(run_cli(verb, model, *rest), model, "no weights")


def test_a_model_of_another_shape_than_its_config(run_cli: Any, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = model / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 128', '"intermediate_size": 64'))
    assert_refused(run_cli("info", model), "has shape", "by config.json")


def test_no_free_disk(run_cli: Any, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))  # type: ignore[attr-defined]
    assert_refused(run_cli("pretrain", recipe_file), "MB are needed", "free some space")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_becomes_nan(run_cli: Any, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bedplate.tasks.language import Language

    loss = Language.loss
    monkeypatch.setattr(
        Language, "loss", lambda self, batch: {k: (s * float("nan"), n) for k, (s, n) in loss(self, batch).items()}
    )
    assert_refused(run_cli("pretrain", recipe_file), "the loss became nan at step 1", "nothing was saved yet")


@pytest.mark.parametrize(
    ("options", "part"),
    [(["--temperature", -1], "temperature"), (["--top-p", 3], "top_p"), (["--max-new-tokens", -1], "max_new_tokens")],
)
def test_settings_of_generate(run_cli: Any, tiny_model: Path, options: list[object], part: str) -> None:
    result = run_cli("generate", tiny_model, "The", "Her", *options)
    assert_refused(result, part)


def test_a_second_tokenizer_in_the_same_folder(run_cli: Any, tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "x").write_text("")
    assert_refused(run_cli("tokenizer", corpus, "--out", tmp_path / "t"), "already exists", "another folder")
