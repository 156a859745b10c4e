"""The command line of `finetune`, `transfer`, `predict`, of `evaluate` on labels, and of a model that answers."""

import json
from pathlib import Path
from typing import Any

import pytest

import bedplate
from bedplate.measure import transfer as measure
from bedplate.recipe import write_recipe

TEXTS = ["the cat sees a dog at night", "her sister hears the river in the garden", "a dog likes her today"]


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_finetune: Any) -> Path:
    write_recipe(tiny_finetune(tmp_path / "run", "train.steps=2"), tmp_path / "f.yaml")
    return tmp_path / "f.yaml"


@pytest.fixture
def no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the standard input fails, as it would hang in a script."""

    class Closed:
        def isatty(self) -> bool:
            return False

        def __getattr__(self, name: str) -> Any:
            raise AssertionError("stdin was read")

    monkeypatch.setattr("sys.stdin", Closed())


def one_value(result: Any) -> Any:
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_finetune(run_cli: Any, recipe_file: Path, tmp_path: Path) -> None:
    value = one_value(run_cli("finetune", recipe_file, "train.batch_size=8", "--json"))
    assert {"out", "model", "steps", "parameters", "metrics", "seconds", "data"} <= set(value)
    assert value["steps"] == 2 and value["data"]["column"] == "text" and value["out"] == str(tmp_path / "run")


def test_finetune_says_what_it_measured_and_where_things_are(
    run_cli: Any, recipe_file: Path, tmp_path: Path, labelled: Path
) -> None:
    lines = labelled.read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "test.csv").write_text("".join([lines[0], *lines[131:]]), "utf-8")
    result = run_cli("finetune", recipe_file, f"data.test_path={tmp_path}/test.csv")
    assert result.code == 0 and "test accuracy: " in result.out and "95 % interval" in result.out
    assert f"Model: {tmp_path}/run/model\nReport: {tmp_path}/run/report.html\n" in result.out
    assert "Texts from column 'text', labels from 'label' (place, time)" in result.err
    assert run_cli("finetune", recipe_file, f"data.test_path={tmp_path}/test.csv", "--resume").code == 0


def test_transfer(
    run_cli: Any, tmp_path: Path, tiny_model: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(measure, "LEAST_STEPS", 2)
    common = ("transfer", "--data", labelled, "--base", tiny_model, "--labels", "1_0, 20", "--seeds", 1)
    result = run_cli(*common, "--out", tmp_path / "one")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == [
        "The same network from scratch",
        "TF-IDF + logistic regression",
    ]
    assert lines[0].startswith("Adapted from ") and all("    10: " in line and "    20: " in line for line in lines[:3])
    assert len([line for line in lines if "labels, adapted less" in line]) == 4
    assert lines[-2:] == [f"Model: {tmp_path}/one/model", f"Report: {tmp_path}/one/report.html"]
    assert "to learn from, 32 to score on." in result.err

    value = one_value(run_cli(*common, "--out", tmp_path / "two", "--json", "optimizer.learning_rate=0.02"))
    assert value["out"] == str(tmp_path / "two") and len(value["rows"]) == 6
    assert value["settings"]["optimizer"]["learning_rate"] == 0.02
    stored = json.loads((tmp_path / "two" / "transfer.json").read_text("utf-8"))
    assert stored == {key: item for key, item in value.items() if key not in ("out", "model")}


# predict


def test_predict_prints_a_label_a_line(run_cli: Any, tiny_classified: Path, no_input: None) -> None:
    result = run_cli("predict", tiny_classified, *TEXTS)
    rows = [line.split("\t") for line in result.out.splitlines()]
    assert [row[0] for row in rows] == ["time", "place", "time"]
    assert all(row[1].endswith("  " + text) for row, text in zip(rows, TEXTS, strict=True))
    assert result.code == 0 and result.err == ""


def test_predict_gives_json_in_the_order_of_the_texts(run_cli: Any, tiny_classified: Path, no_input: None) -> None:
    value = one_value(run_cli("predict", tiny_classified, *TEXTS, "--json"))
    assert [row["label"] for row in value] == ["time", "place", "time"]
    for row in value:
        assert set(row) == {"label", "score", "scores"} and list(row["scores"]) == ["place", "time"]
        assert row["score"] == max(row["scores"].values()) and sum(row["scores"].values()) == pytest.approx(1)


FILES = {
    "texts.csv": "id,words\n" + "".join(f"{i},{text}\n" for i, text in enumerate(TEXTS)),
    "texts.tsv": "words\tid\n" + "".join(f"{text}\t{i}\n" for i, text in enumerate(TEXTS)),
    "texts.jsonl": "".join(json.dumps({"words": text, "id": 1}) + "\n" for text in TEXTS),
}


@pytest.mark.parametrize("name", FILES)
def test_predict_reads_each_row_of_a_file(
    run_cli: Any, tiny_classified: Path, tmp_path: Path, no_input: None, name: str
) -> None:
    (tmp_path / name).write_text(FILES[name], "utf-8")
    options = ("--file", tmp_path / name, "--column", "words")
    value = one_value(run_cli("predict", tiny_classified, *options, "--json"))
    assert value == bedplate.load(tiny_classified).predict(TEXTS)
    shown = run_cli("predict", tiny_classified, *options).out.splitlines()
    assert [line.split("\t")[0] for line in shown] == ["time", "place", "time"]
    result = run_cli("predict", tiny_classified, "--file", tmp_path / name)
    assert result.code == 2 and "no column 'text'" in result.err and "words" in result.err


def test_a_text_file_is_one_text(run_cli: Any, tiny_classified: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("\n".join(TEXTS), "utf-8")
    (row,) = one_value(run_cli("predict", tiny_classified, "--file", tmp_path / "one.txt", "--json"))
    assert [row] == bedplate.load(tiny_classified).predict("\n".join(TEXTS))


def test_predict_continues_with_a_language_model(run_cli: Any, tiny_model: Path, no_input: None) -> None:
    value = one_value(run_cli("predict", tiny_model, "The cat", "--json"))
    assert list(value[0]) == ["text"]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("gap.csv", "text\nsome words\n  \nmore words\n", ["gap.csv:3", "the text is empty"]),
        ("gap.jsonl", '{"text": "some"}\n{"text": ""}\n', ["gap.jsonl:2", "the text is empty"]),
        ("null.jsonl", '{"text": "some"}\n{"text": null}\n', ["null.jsonl:2"]),
        ("empty.txt", " \n", ["empty.txt", "the text is empty"]),
        ("empty.csv", "text\n", ["empty.csv", "no text"]),
        ("notes.docx", "PK", ["notes.docx", "unknown format"]),
    ],
)
def test_what_predict_cannot_read(
    run_cli: Any, tiny_classified: Path, tmp_path: Path, name: str, content: str, parts: list[str]
) -> None:
    (tmp_path / name).write_text(content)
    result = run_cli("predict", tiny_classified, "--file", tmp_path / name)
    assert result.code == 2 and result.out == "" and result.err.count("\n") == 1
    assert result.err.startswith("Error: ") and all(part in result.err for part in parts)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "nothing to predict: give a text, or a file"),
        (("some words", ""), "text 2: the text is empty"),
        (("some words", "--file", "x.csv"), "either texts or a file, not both"),
        (("--file", "missing.csv"), "missing.csv: no such file"),
    ],
)
def test_what_predict_is_not_given(
    run_cli: Any, tiny_classified: Path, no_input: None, arguments: tuple[str, ...], part: str
) -> None:
    result = run_cli("predict", tiny_classified, *arguments)
    assert result.code == 2 and result.out == "" and part in result.err and result.err.count("\n") == 1


# evaluate


def test_evaluate_of_a_classifier(run_cli: Any, tiny_classified: Path, labelled: Path, tmp_path: Path) -> None:
    value = one_value(run_cli("evaluate", tiny_classified, "--data", labelled, "--json"))
    assert value["n"] == 160 and set(value["metrics"]) == {"accuracy", "macro_f1", "loss"}
    assert {"value", "low", "high"} <= set(value["metrics"]["accuracy"]) and value["metrics"]["accuracy"]["value"] == 1
    assert value["labels"] == ["place", "time"] and value["confusion"] == [[80, 0], [0, 80]]

    spoilt = "opinion,kind\n" + "".join(f"{text},time\n" for text in TEXTS) + " ,time\n"
    (tmp_path / "own.csv").write_text(spoilt, "utf-8")
    columns = ("--column", "opinion", "--label", "kind")
    shown = run_cli("evaluate", tiny_classified, "--data", tmp_path / "own.csv", *columns).out
    assert "accuracy: 0.6667" in shown and "3 texts from column 'opinion', labels from 'kind'" in shown
    assert "left out: 1 empty texts" in shown
    assert "place: predicted as nothing" in shown and "time: predicted as 1 place, 2 time" in shown


def test_evaluate_refuses_what_does_not_fit(
    run_cli: Any, tiny_classified: Path, tiny_model: Path, labelled: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.csv").write_text("text,label\nsome words,manner\n", "utf-8")
    result = run_cli("evaluate", tiny_classified, "--data", tmp_path / "other.csv")
    assert result.code == 2 and "other.csv:2: label 'manner' is not among the known classes" in result.err
    result = run_cli("evaluate", tiny_classified, "--data", labelled, "--sequence-length", 33)
    assert result.code == 2 and "sequence_length=33 is longer than the model's context" in result.err
    result = run_cli("evaluate", tiny_model, "--data", labelled, "--label", "label")
    assert result.code == 2 and "label='label' is for classifiers" in result.err


def test_windows_of_a_long_text_are_one_prediction(run_cli: Any, tiny_classified: Path, tmp_path: Path) -> None:
    long = " ".join(TEXTS[:1] * 8)
    (tmp_path / "long.csv").write_text(f"text,label\n{long},time\n{TEXTS[1]},place\n", "utf-8")
    shown = run_cli("evaluate", tiny_classified, "--data", tmp_path / "long.csv")
    assert "1 texts of more than 32 tokens were read in windows" in shown.out and "2 texts from" in shown.out
    assert len(one_value(run_cli("predict", tiny_classified, long, "--json"))) == 1


def test_generate_chat_with_a_finetuned_model(run_cli: Any, recipe_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"prompt": "a", "response": "today"}\n' * 8)
    options = ("task=chat", f"data.path={path}", "data.val_fraction=0", "model.dropout=0", "train.epochs=null")
    options = (*options, "train.steps=40", "optimizer.learning_rate=0.01")
    assert run_cli("finetune", recipe_file, *options).code == 0
    result = run_cli("generate", tmp_path / "run", "a", "--chat", "--temperature", 0, "--max-new-tokens", 12)
    assert (result.code, result.out) == (0, "today\n")
