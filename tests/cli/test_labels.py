"""The command line of labels that a model has not learnt: `predict --labels`, `evaluate --labels`."""

import json
from pathlib import Path
from typing import Any

import pytest

import bedplate

LABELS = "place=in the garden; time=today, at night"
WORDS = {"place": "in the garden", "time": "today, at night"}
TEXTS = ["the cat sees a dog at night", "her sister hears the river"]


def one_value(result: Any) -> Any:
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.mark.parametrize("method", ["embedding", "prompt"])
def test_predict(run_cli: Any, tiny_model: Path, method: str) -> None:
    command = ("predict", tiny_model, *TEXTS, "--labels", LABELS, "--method", method)
    value = one_value(run_cli(*command, "--json"))
    assert value == bedplate.load(tiny_model).predict(TEXTS, labels=WORDS, method=method)
    lines = run_cli(*command).out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [row["label"] for row in value]
    assert all(line.endswith(text) for line, text in zip(lines, TEXTS, strict=True))


def test_a_template_is_a_prompt_with_line_breaks(run_cli: Any, tiny_model: Path) -> None:
    options = ("--labels", "place,time", "--template", "{text}\\nIt is {label}", "--no-calibrate", "--json")
    expected = bedplate.predict(
        tiny_model, TEXTS, labels="place,time", template="{text}\nIt is {label}", calibrate=False
    )
    assert one_value(run_cli("predict", tiny_model, *TEXTS, *options)) == expected


def test_examples_are_drawn_from_a_file(run_cli: Any, tiny_model: Path, labelled: Path, tmp_path: Path) -> None:
    common = ("predict", tiny_model, *TEXTS, "--labels", "time,place", "--json")
    without = one_value(run_cli(*common))
    few = [one_value(run_cli(*common, "--examples", labelled, "--shots", 2, "--seed", seed)) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2] and few[0] != without
    assert list(few[0][0]["scores"]) == ["time", "place"]


def test_evaluate_stands_beside_what_is_reached_without_reading(
    run_cli: Any, tiny_model: Path, labelled: Path, tmp_path: Path
) -> None:
    rows = labelled.read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "some.csv").write_text("".join([*rows[:41], rows[2], rows[4]]), "utf-8")  # two rows are repeated
    common = ("evaluate", tiny_model, "--data", tmp_path / "some.csv", "--labels", LABELS)
    value = one_value(run_cli(*common, "--json"))
    assert value["n"] == 40 and value["labels"] == ["place", "time"] and value["method"] == "embedding"
    assert value["data"]["dropped"] == {"repeated texts": 2}
    assert sum(map(sum, value["confusion"])) == 40 and [sum(row) for row in value["confusion"]] == [20, 20]
    right = value["confusion"][0][0] + value["confusion"][1][1]
    assert value["metrics"]["accuracy"]["value"] == right / 40
    assert value["baselines"]["majority"]["accuracy"]["value"] == 0.5
    assert value["baselines"]["majority"]["macro_f1"]["value"] == pytest.approx(1 / 3)
    for metrics in (value["metrics"], *value["baselines"].values()):
        assert all({"value", "low", "high", "n"} == set(metric) for metric in metrics.values())
    shown = run_cli(*common).out
    assert "accuracy of the most frequent label: 0.5000" in shown and "40 texts from column 'text'" in shown
    few = one_value(run_cli(*common, "--examples", labelled, "--shots", 20, "--json"))
    assert few["metrics"]["accuracy"]["value"] > 0.8  # by words that only one label has


def test_long_texts_are_cut_in_prompts_and_this_is_said(run_cli: Any, tiny_model: Path, tmp_path: Path) -> None:
    long = " ".join(TEXTS * 8)
    (tmp_path / "long.csv").write_text(f"text,label\n{long},time\n{TEXTS[1]},place\n", "utf-8")
    common = ("evaluate", tiny_model, "--data", tmp_path / "long.csv", "--labels", "place,time")
    assert "1 texts were longer than the prompt has room for" in run_cli(*common, "--template", "{text} {label}").out
    assert "longer" not in run_cli(*common).out  # vectors are of all windows


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--labels", "place"), ["only 'place' is given"]),
        (("--labels", ""), ["no labels are given; say what to choose between"]),
        (("--labels", "a=a cat;b=a cat"), ["the words 'a cat' are there twice; give each label words of its own"]),
        (("--labels", "place,place"), ["'place' is there twice"]),
        (("--labels", "place,time", "--method", "magic"), ["method='magic'", "prompt, embedding"]),
        (("--labels", "place,time", "--template", "{text} is"), ["misses {label}"]),
        (("--labels", "place,time", "--method", "embedding", "--no-calibrate"), ["are for method='prompt'"]),
        (("--labels", "place,time", "--shots", 2), ["shots=2 draws from a file of examples"]),
        (("--labels", "Places,time", "--examples", "FILE"), ["label 'place' is none of", "did you mean 'Places'?"]),
        (("--labels", "place,time", "--examples", "FILE", "--shots", 81), ["the examples have 80 of label 'place'"]),
        (("--labels", "place,time", "--examples", "FILE", "--method", "prompt"), ["examples leave", "at most"]),
        (("--labels", "place,time", "--examples", "none.csv"), ["none.csv: no such file"]),
        (("--template", "{text} {label}"), ["template is for a choice between labels"]),
        (("--examples", "FILE"), ["examples is for a choice between labels"]),
        (("--calibrate",), ["calibrate is for a choice between labels"]),
    ],
)
@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_what_is_refused(
    run_cli: Any, tiny_model: Path, labelled: Path, verb: str, options: tuple[Any, ...], parts: list[str]
) -> None:
    given = TEXTS if verb == "predict" else ["--data", labelled]
    result = run_cli(verb, tiny_model, *given, *(labelled if option == "FILE" else option for option in options))
    assert result.code == 2 and result.out == "" and result.err.count("\n") == 1, result.err
    assert result.err.startswith("Error: ") and all(part in result.err for part in parts), result.err


def test_options_of_other_models_are_refused(run_cli: Any, tiny_model: Path, labelled: Path) -> None:
    for verb, given, option in (
        ("predict", TEXTS, ("--beams", 4)),
        ("predict", TEXTS, ("--long", "join")),
        ("predict", TEXTS, ("--max-new-tokens", 5)),
        ("evaluate", ["--data", labelled], ("--question", "text")),
    ):
        result = run_cli(verb, tiny_model, *given, "--labels", "place,time", *option)
        assert result.code == 2 and "is no option of a choice between labels; it has method" in result.err, result.err


def test_labels_of_the_data_must_be_among_those_given(
    run_cli: Any, tiny_model: Path, tiny_classified: Path, labelled: Path
) -> None:
    result = run_cli("evaluate", tiny_model, "--data", labelled, "--labels", "Place,time")
    assert result.code == 2 and "labelled.csv:2: label 'place' is none of Place, time; did you mean" in result.err
    for verb, given in (("predict", TEXTS), ("evaluate", ["--data", labelled])):
        result = run_cli(verb, tiny_classified, *given, "--labels", "place,time")
        assert result.code == 2 and "a classifier with labels of its own (place, time)" in result.err


@pytest.mark.parametrize("method", ["embedding", "prompt"])
def test_any_text_gets_a_label(run_cli: Any, tiny_model: Path, tmp_path: Path, method: str) -> None:
    """Emoji, other scripts, control characters, one megabyte of one word: none is left out."""
    texts = ["🐈🏽‍🦺", "猫は犬を見る", "\x00\x07", "a" * 2**20, "<|endoftext|>", "ﷺ" * 50, "{label}"]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    options = ("--file", tmp_path / "odd.jsonl", "--labels", "place,time", "--method", method, "--json")
    value = one_value(run_cli("predict", tiny_model, *options))
    assert len(value) == len(texts) and all(0.5 <= row["score"] <= 1 for row in value)
