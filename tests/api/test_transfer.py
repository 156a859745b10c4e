"""`transfer`: a fair comparison (the same samples, unseen test texts), its figures, its folder, its command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bedplate
from bedplate.cli.transfer import print_table
from bedplate.data.duplicates import near_duplicates
from bedplate.data.labelled import LabelledTexts
from bedplate.errors import InputError
from bedplate.measure import transfer as measure
from bedplate.measure.transfer import Transfer

SETTINGS = {"train": {"epochs": 1, "precision": "fp32", "threads": 1}}
Fits = list[tuple[str, int, LabelledTexts]]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Any:
    """Few steps, and what the machine can multiply is not measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)
        patch.setattr(measure, "LEAST_STEPS", 12)
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, labelled: Path) -> tuple[Any, Fits, Transfer]:
    """(the result of 10, 40 and all labels with two seeds, (arm, seed, sample) of each fit, the comparison)."""
    pytest.importorskip("sklearn")
    fits: Fits = []
    made: list[Transfer] = []
    network, tfidf, run = Transfer._network, Transfer._tfidf, Transfer.run

    def spy_network(self: Transfer, sample: LabelledTexts, arm: str, seed: int) -> Any:
        fits.append((arm, seed, sample))
        return network(self, sample, arm, seed)

    def spy_tfidf(self: Transfer, sample: LabelledTexts) -> Any:
        fits.append(("tfidf", fits[-1][1], sample))
        return tfidf(self, sample)

    def spy_run(self: Transfer, counts: Any) -> None:
        made.append(self)
        run(self, counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transfer, "_network", spy_network)
        patch.setattr(Transfer, "_tfidf", spy_tfidf)
        patch.setattr(Transfer, "run", spy_run)
        out = tmp_path_factory.mktemp("transfer") / "compared"
        result = bedplate.transfer(labelled, tiny_model, labels=(40, "all", 10), seeds=2, out=out, settings=SETTINGS)
    return result, fits, made[0]


def test_all_arms_learn_from_the_same_samples(compared: Any) -> None:
    _, fits, comparison = compared
    counts = [10, 40, len(comparison.train)]
    assert [(arm, seed, len(sample)) for arm, seed, sample in fits] == [
        (arm, seed, count) for count in counts for seed in (0, 1) for arm in ("pretrained", "scratch", "tfidf")
    ]
    texts = {(arm, seed, len(sample)): sample.texts for arm, seed, sample in fits}
    for seed in (0, 1):
        for count in counts:
            assert texts["pretrained", seed, count] == texts["scratch", seed, count] == texts["tfidf", seed, count]
        assert set(texts["tfidf", seed, 10]) < set(texts["tfidf", seed, 40]) < set(texts["tfidf", seed, counts[2]])
    assert texts["tfidf", 0, 40] != texts["tfidf", 1, 40]


def test_no_test_text_is_in_the_training(compared: Any) -> None:
    result, fits, comparison = compared
    assert result["data"]["test"] == len(comparison.test) == 32
    assert result["data"]["train"] + result["data"]["near_duplicates"] == 128
    for _, _, sample in fits:
        assert len(near_duplicates(sample.texts, comparison.test.texts)) == 0


def test_the_figures_are_those_of_the_predictions(compared: Any) -> None:
    result, _, comparison = compared
    assert result["classes"] == ["place", "time"] and result["seeds"] == 2 and result["majority"] == 0.5
    assert len(result["rows"]) == 9 and len(result["differences"]) == 6
    for row in result["rows"]:
        correct = np.stack(comparison.cells[row["labels"], row["arm"]].predicted) == comparison.truth
        assert correct.shape == (2, 32)
        assert row["accuracy"]["value"] == pytest.approx(correct.mean())
        assert row["by_seed"] == pytest.approx(correct.mean(1).tolist())
        assert row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"]
        assert 0 <= row["macro_f1"]["low"] <= row["macro_f1"]["value"] <= 1 and row["seconds"] > 0
    accuracy = {(row["labels"], row["arm"]): row["accuracy"]["value"] for row in result["rows"]}
    for row in result["differences"]:
        gain = accuracy[row["labels"], row["arm"]] - accuracy[row["labels"], row["over"]]
        assert row["arm"] == "pretrained" and row["accuracy"]["value"] == pytest.approx(gain)
    matrix = result["confusion"]["matrix"]
    assert np.sum(matrix) == 32 and np.sum(matrix, 1).tolist() == [16, 16]
    assert np.trace(matrix) / 32 == pytest.approx(result["rows"][-3]["by_seed"][0])
    assert len(result["mistakes"]) == min(10, 32 - np.trace(matrix))


def test_the_folder_holds_the_figures_a_report_and_the_adapted_model(compared: Any, labelled: Path) -> None:
    result, _, comparison = compared
    out = Path(result["out"])
    assert {path.name for path in out.iterdir()} == {"model", "transfer.json", "report.html"}
    stored = json.loads((out / "transfer.json").read_text("utf-8"))
    assert stored["rows"] == result["rows"] and stored["differences"] == result["differences"]
    assert stored["data"]["path"] == ["labelled.csv"] and {"environment", "settings"} <= set(stored)
    page = (out / "report.html").read_text("utf-8")
    assert "TF-IDF + logistic regression" in page and "from scratch" in page
    model = bedplate.load(out / "model")
    best = comparison.cells[len(comparison.train), "pretrained"].predicted[0]
    predicted = [model.labels.index(row["label"]) for row in model.predict(comparison.test.texts)]
    assert predicted == best.tolist()
    assert str(labelled.parent) not in model.card and "means over 2 seeds" in model.card


def test_the_same_again(compared: Any, tmp_path: Path, tiny_model: Path, labelled: Path) -> None:
    """A smaller comparison repeats its part of the larger one: nothing but the seed and the sample decides."""
    rows = {(row["labels"], row["arm"]): row for row in compared[0]["rows"]}
    again = bedplate.transfer(labelled, tiny_model, labels=[10], seeds=2, out=tmp_path / "again", settings=SETTINGS)
    for row in again["rows"]:
        before = rows[row["labels"], row["arm"]]
        assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in before.items() if k != "seconds"}


def test_a_test_file_and_what_is_said(tmp_path: Path, tiny_model: Path, labelled: Path) -> None:
    lines, said = labelled.read_text("utf-8").splitlines(keepends=True), list[str]()
    (tmp_path / "train.csv").write_text("".join([*lines[:101], " ,time\n"]), "utf-8")
    (tmp_path / "test.csv").write_text("".join([lines[0], *lines[91:]]), "utf-8")
    result = bedplate.transfer(
        tmp_path / "train.csv",
        tiny_model,
        labels=[9, 9, 100, 1000],
        seeds=1,
        test=tmp_path / "test.csv",
        out=tmp_path / "out",
        settings=SETTINGS,
        say=said.append,
    )
    data = result["data"]
    assert data["test"] == 70 and data["near_duplicates"] >= 10 and data["train"] == 100 - data["near_duplicates"]
    assert data["dropped"] == {"empty texts": 1}
    assert f"{data['near_duplicates']} near-duplicates of test texts were removed from the training." in said
    assert "Left out: 1 empty texts." in said
    assert f"1,000 labels are left out: there are {data['train']} to learn from." in said
    assert f"100 labels are left out: there are {data['train']} to learn from." in said
    assert {row["labels"] for row in result["rows"]} == {9}


def test_without_scikit_learn_an_arm_is_left_out_and_said(
    tmp_path: Path, tiny_model: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "find_spec", lambda name: None)
    said: list[str] = []
    result = bedplate.transfer(
        labelled, tiny_model, labels=[8], seeds=1, out=tmp_path / "out", settings=SETTINGS, say=said.append
    )
    assert list(result["arms"]) == ["pretrained", "scratch"]
    assert [row["arm"] for row in result["rows"]] == ["pretrained", "scratch"] and len(result["differences"]) == 1
    assert any("TF-IDF is left out" in line and "pip install" in line for line in said)
    assert "TF-IDF + logistic" not in (tmp_path / "out/report.html").read_text("utf-8")


def test_a_person_reads_one_line_an_arm(compared: Any, capsys: pytest.CaptureFixture[str]) -> None:
    result = compared[0]
    print_table(result)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 6
    for line, name in zip(lines, result["arms"].values(), strict=False):
        assert line.startswith(name) and line.count("%") == 9 and "    10: " in line
    share = result["rows"][0]["accuracy"]["value"]
    assert f"    10: {share:.1%} (" in lines[0]
    gain = result["differences"][0]["accuracy"]
    assert lines[3].startswith(f"10 labels, adapted less The same network from scratch: {100 * gain['value']:+.1f}")


def test_a_disk_that_is_full_or_forbidden_is_one_sentence(
    tmp_path: Path, tiny_model: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bedplate.api.transfer.write_whole", full)
    with pytest.raises(InputError, match=r"out: cannot be written \(No space left on device\)"):
        bedplate.transfer(labelled, tiny_model, labels=[10], seeds=1, out=tmp_path / "out", settings=SETTINGS)


def test_settings_and_labels_of_another_form_are_told(tmp_path: Path, tiny_model: Path, labelled: Path) -> None:
    with pytest.raises(InputError, match=r"settings: train holds 5, not a section; give train\.KEY=VALUE"):
        bedplate.transfer(labelled, tiny_model, labels=[10], seeds=1, out=tmp_path / "out", settings={"train": 5})
    with pytest.raises(InputError, match=r"labels='10,all': give a list of numbers"):
        bedplate.transfer(labelled, tiny_model, labels="10,all", seeds=1, out=tmp_path / "out")  # type: ignore[arg-type]


def test_texts_without_words_leave_tfidf_the_most_frequent_label(tmp_path: Path, tiny_model: Path) -> None:
    pytest.importorskip("sklearn")
    rows = [f"{'+' * (i % 7 + 1)} {i},{'yes' if i % 3 else 'no'}\n" for i in range(10)]
    path = tmp_path / "signs.csv"
    path.write_text("text,label\n" + "".join(rows), "utf-8")
    said: list[str] = []
    result = bedplate.transfer(
        path, tiny_model, labels=["all"], seeds=1, out=tmp_path / "out", settings=SETTINGS, say=said.append
    )
    (row,) = [row for row in result["rows"] if row["arm"] == "tfidf"]
    assert row["accuracy"]["value"] == result["majority"]
    assert any("most frequent label" in line for line in said)


def test_counts_below_the_classes_are_left_out_where_others_remain(
    tmp_path: Path, tiny_model: Path, labelled: Path
) -> None:
    said: list[str] = []
    result = bedplate.transfer(
        labelled, tiny_model, labels=[1, 10], seeds=1, out=tmp_path / "out", settings=SETTINGS, say=said.append
    )
    assert {row["labels"] for row in result["rows"]} == {10}
    assert "labels=1: fewer than one for each of 2 classes; left out." in said
