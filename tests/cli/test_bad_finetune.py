"""Bad input of fine-tuning, transfer and prediction: exit code 2, one sentence that names the place, nothing left."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bedplate.recipe import write_recipe


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_finetune: Any) -> Path:
    write_recipe(tiny_finetune(tmp_path / "run", "train.steps=2"), tmp_path / "f.yaml")
    return tmp_path / "f.yaml"


def assert_refused(result: Any, out: Path, *parts: object) -> None:
    """The last line of stderr is the only error and holds these parts; no folder is left."""
    assert result.code == 2 and result.out == "", result.err
    lines = result.err.splitlines()
    assert lines[-1].startswith("Error: ") and result.err.count("Error: ") == 1 and "Traceback" not in result.err
    for part in parts:
        assert str(part) in lines[-1], lines[-1]
    assert not out.exists()


def rows(*pairs: tuple[str, str]) -> str:
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in pairs)


DATA = {
    "one-class.csv": (rows(("a b", "x"), ("c d", "x"), ("e f", "x")), ["every label in 'label' is 'x'", "two classes"]),
    "empty.csv": (rows(("", "x"), ("  ", "y")), ["no row with both a 'text' and a 'label'", "empty texts: 2"]),
    "nothing.csv": ("", ["nothing.csv"]),
    "no-label.csv": (
        "text,author\n" + "".join(f"some words of {i},writer {i}\n" for i in range(9)),
        ["it is not clear which column holds the labels", "'text', 'author'", "data.label=..."],
    ),
    "each-its-own.csv": (rows(*((f"text {i} of many", f"label {i}") for i in range(30))), ["30 distinct labels"]),
    "too-few.csv": (rows(("some words", "x"), ("other words", "y"), ("words again", "x")), ["fraction", "more rows"]),
    "latin.csv": (b"text,label\ncaf\xe9,x\n", ["latin.csv", "not UTF-8"]),
    "bad.jsonl": ('{"text": "ok", "label": 1}\n{"text": \n', ["bad.jsonl:2", "not JSON"]),
    "half.jsonl": ('{"text": "ok", "label": 1.5}\n{"text": "so", "label": 2}\n', ["half.jsonl:1", "1.5", "no class"]),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("verb", ["finetune", "transfer"])
def test_wrong_examples(
    run_cli: Any, recipe_file: Path, tiny_model: Path, tmp_path: Path, verb: str, name: str
) -> None:
    content, parts = DATA[name]
    data, out = tmp_path / name, tmp_path / "run"
    data.write_bytes(content if isinstance(content, bytes) else content.encode())
    command = {
        "finetune": (recipe_file, f"data.path={data}"),
        "transfer": ("--data", data, "--base", tiny_model, "--out", out),
    }[verb]
    assert_refused(run_cli(verb, *command), out, *parts)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.column=words", ["no column 'words'", "'text', 'label'"]),
        ("data.label=stars", ["no column 'stars'", "'text', 'label'"]),
        ("data.label=text", ["it is not clear which column holds the texts", "data.column=..."]),
        ("data.path=missing.csv", ["missing.csv", "no such file"]),
        ("data.test_path=missing.csv", ["missing.csv", "no such file"]),
        ("base=missing", ["missing", "no such folder"]),
        ("train.sequence_length=33", ["train.sequence_length=33", "32 tokens", "give at most that"]),
        ("evaluate.metric=f1", ["evaluate.metric='f1'", "accuracy, macro_f1, loss"]),
        ("evaluate.metrik=f1", ["unknown key 'evaluate.metrik'", "did you mean 'evaluate.metric'?"]),
        ("model.pooling=max", ["model.pooling", "'max'"]),
        ("train.steps=0", ["train.steps", "greater than 0"]),
        ("task=vote", ["task", "'vote'"]),
        ("teacher.model=missing", ["missing", "no such folder"]),
        ("teacher.path=texts.csv", ["teacher has settings and no model; give teacher.model"]),
        ("teacher.weight=1.5", ["teacher.weight", "less than or equal to 1"]),
    ],
)
def test_a_wrong_recipe(run_cli: Any, recipe_file: Path, tmp_path: Path, override: str, parts: list[str]) -> None:
    assert_refused(run_cli("finetune", recipe_file, override), tmp_path / "run", *parts)


def test_a_recipe_without_an_end(run_cli: Any, recipe_file: Path, tmp_path: Path) -> None:
    result = run_cli("finetune", recipe_file, "train.steps=null", "train.epochs=null")
    assert_refused(result, tmp_path / "run", "train.steps and train.epochs are both null; give one of them")


def test_recipes_of_another_verb(run_cli: Any, recipe_file: Path, tmp_path: Path, tiny_recipe: Any) -> None:
    assert_refused(
        run_cli("pretrain", recipe_file), tmp_path / "run", "has `task: classify`, so it is for `bedplate finetune`"
    )
    write_recipe(tiny_recipe(tmp_path / "run"), tmp_path / "p.yaml")
    result = run_cli("finetune", tmp_path / "p.yaml")
    assert_refused(result, tmp_path / "run", "p.yaml", "unknown key 'model.preset'")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.column=text", "for task: classify"),
        ("data.test_path=x.csv", "for task: classify"),
        ("model.attention=bidirectional", "for task: classify"),
        ("model.pooling=mean", "for task: classify"),
        ("teacher.model=runs/large", "for task: classify"),
    ],
)
def test_settings_of_the_other_task(run_cli: Any, recipe_file: Path, tmp_path: Path, override: str, part: str) -> None:
    assert_refused(run_cli("finetune", recipe_file, "task=chat", override), tmp_path / "run", part)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("optimizer.learning_rat=1", "'optimizer.learning_rate'"),
        ("data.path=x.csv", "'data' is no part of a comparison"),
        ("fast", "is not of the form key.path=value"),
    ],
)
def test_settings_of_a_comparison(
    run_cli: Any, tmp_path: Path, tiny_model: Path, labelled: Path, override: str, part: str
) -> None:
    command = ("--data", labelled, "--base", tiny_model, "--out", tmp_path / "run", override)
    assert_refused(run_cli("transfer", *command), tmp_path / "run", part)


@pytest.mark.parametrize("option", ["data.test_path", "data.val_path"])
def test_a_label_that_was_not_in_the_training(
    run_cli: Any, recipe_file: Path, tmp_path: Path, tiny_model: Path, labelled: Path, option: str
) -> None:
    (tmp_path / "other.csv").write_text(rows(("the cat sees a dog today", "time"), ("a dog sees her", "manner")))
    parts = ("other.csv:3", "label 'manner' is not among the known classes", "place", "time")
    assert_refused(run_cli("finetune", recipe_file, f"{option}={tmp_path}/other.csv"), tmp_path / "run", *parts)
    command = ("--data", labelled, "--test", tmp_path / "other.csv", "--base", tiny_model, "--out", tmp_path / "run")
    assert_refused(run_cli("transfer", *command), tmp_path / "run", *parts)


@pytest.mark.parametrize("option", ["data.test_path", "data.val_path"])
def test_nothing_is_left_to_train_on(
    run_cli: Any, recipe_file: Path, tmp_path: Path, tiny_model: Path, labelled: Path, option: str
) -> None:
    """All examples, or all of a class, are scored too."""
    lines = labelled.read_text("utf-8").splitlines(keepends=True)
    parts = ("no example of the label 'place' is left to train on", "near-duplicates", "give more examples of it")
    for name, kept in (("same.csv", lines), ("class.csv", [lines[0], *(x for x in lines if x.endswith("place\n"))])):
        scored = tmp_path / name
        scored.write_text("".join(kept), "utf-8")
        assert_refused(run_cli("finetune", recipe_file, f"{option}={scored}"), tmp_path / "run", *parts)
        command = ("--data", labelled, "--test", scored, "--base", tiny_model, "--out", tmp_path / "run")
        assert_refused(run_cli("transfer", *command), tmp_path / "run", *parts)


@pytest.fixture
def t5(tmp_path: Path) -> Path:
    folder = tmp_path / "t5"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    return folder


@pytest.mark.parametrize("verb", ["finetune", "transfer"])
def test_a_base_that_is_none(
    run_cli: Any, recipe_file: Path, tmp_path: Path, t5: Path, tiny_model: Path, labelled: Path, verb: str
) -> None:
    def refused(base: Path, *parts: object) -> None:
        command = {
            "finetune": (recipe_file, f"base={base}"),
            "transfer": ("--data", labelled, "--base", base, "--out", tmp_path / "run"),
        }[verb]
        assert_refused(run_cli(verb, *command), tmp_path / "run", *parts)

    refused(t5, "config.json: model_type='t5' is not supported; supported: gpt2, llama, qwen3, bert, modernbert")
    (tmp_path / "void").mkdir()
    refused(tmp_path / "void", "void", "no such file; a model directory has one")
    mute = tmp_path / "mute"
    shutil.copytree(tiny_model, mute)
    (mute / "tokenizer.json").unlink()
    refused(mute, "no tokenizer")


def test_a_classifier_is_no_base_of_a_chat_or_a_transfer(
    run_cli: Any, recipe_file: Path, tmp_path: Path, tiny_classified: Path, labelled: Path
) -> None:
    said = "this model is a classifier (of place, time) and writes no text; use `predict` with it"
    (tmp_path / "chat.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 3)
    result = run_cli(
        "finetune", recipe_file, f"base={tiny_classified}", "task=chat", f"data.path={tmp_path}/chat.jsonl"
    )
    assert_refused(result, tmp_path / "run", said)
    command = ("--data", labelled, "--base", tiny_classified, "--out", tmp_path / "run")
    assert_refused(run_cli("transfer", *command), tmp_path / "run", said)
    assert_refused(run_cli("generate", tiny_classified, "The"), tmp_path / "run", said)
    assert_refused(run_cli("generate", tiny_classified, "The", "--chat"), tmp_path / "run", said)


def test_a_teacher_that_is_none(
    run_cli: Any, recipe_file: Path, tmp_path: Path, tiny_classified: Path, tiny_model: Path, labelled: Path
) -> None:
    result = run_cli("finetune", recipe_file, f"teacher.model={tiny_model}")
    assert_refused(result, tmp_path / "run", "tiny", "is no classifier; fine-tune it on the same labels first")
    other = tmp_path / "other.csv"
    other.write_text(labelled.read_text("utf-8").replace(",time", ",hour"), "utf-8")
    result = run_cli("finetune", recipe_file, f"teacher.model={tiny_classified}", f"data.path={other}")
    assert_refused(result, tmp_path / "run", "only one of them has 'hour', 'time'")
    result = run_cli("finetune", recipe_file, f"teacher.model={tiny_classified}", "teacher.path=missing.jsonl")
    assert_refused(result, tmp_path / "run", "missing.jsonl", "no such file")
    taught = (f"teacher.model={tiny_classified}", f"teacher.path={labelled}")
    result = run_cli("finetune", recipe_file, *taught)
    assert_refused(result, tmp_path / "run", "labelled.csv: no text is left to learn from the teacher alone")
    result = run_cli("finetune", recipe_file, *taught, "teacher.column=words")
    assert_refused(result, tmp_path / "run", "no column 'words' among 'text', 'label'; name that of the texts")


@pytest.mark.parametrize("verb", ["finetune", "transfer"])
def test_an_existing_output_folder_is_left_as_it_was(
    run_cli: Any, recipe_file: Path, tmp_path: Path, tiny_model: Path, labelled: Path, verb: str
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    command = {
        "finetune": (recipe_file,),
        "transfer": ("--data", labelled, "--base", tiny_model, "--out", out),
    }[verb]
    assert_refused(run_cli(verb, *command), tmp_path / "none", out, "already exists")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--labels", "100,x"), "'x' is neither a number nor `all`"),
        (("--labels", "0"), "'0' is neither a number nor `all`"),
        (("--labels", ""), "neither a number nor `all`"),
        (("--labels", "1"), "labels=1: fewer than one for each of 2 classes"),
        (("--labels", "500"), "no number of labels is left: there are 1"),
        (("--seeds", "0"), "seeds=0: at least 1 is needed"),
        (("--column", "words"), "no column 'words'"),
    ],
)
def test_options_of_transfer(
    run_cli: Any, tmp_path: Path, tiny_model: Path, labelled: Path, options: tuple[str, str], part: str
) -> None:
    result = run_cli("transfer", "--data", labelled, "--base", tiny_model, "--out", tmp_path / "run", *options)
    assert result.code == 2 and result.out == "" and "Traceback" not in result.err
    assert part in " ".join(result.err.split()) and not (tmp_path / "run").exists()


def test_no_free_disk(run_cli: Any, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))  # type: ignore[attr-defined]
    assert_refused(run_cli("finetune", recipe_file), tmp_path / "run", "MB are needed", "free some space")
