"""Distillation: a classifier learns what a teacher says of texts with labels and without."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bedplate
from bedplate.api.teacher import Teacher, read_unlabelled, with_labels
from bedplate.errors import InputError, Interrupted
from bedplate.recipe.finetune import TeacherRecipe
from bedplate.tasks.classify import Classify
from bedplate.train.hardware import Hardware
from tests.api.test_finetune import read, stop_at, weights_of, write

CPU = Hardware(torch.device("cpu"), torch.float32, 1, "as asked")
LABELS = ["place", "time"]


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)


@pytest.fixture(scope="module")
def files(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """8 texts with labels, which show one end of two of each label, 112 without, and 40 to score."""
    rows, folder = read(labelled), tmp_path_factory.mktemp("teacher")
    shown = [row for row in rows[:120] if row["text"].endswith(("in the garden", "today"))][:8]
    unlabelled = folder / "unlabelled.jsonl"
    unlabelled.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows[:120]), "utf-8")
    return {
        "few": write(folder / "few.csv", shown),
        "unlabelled": unlabelled,
        "test": write(folder / "test.csv", rows[120:]),
    }


@pytest.fixture
def few(files: dict[str, Path]) -> tuple[str, ...]:
    parts = (f"data.path={files['few']}", f"data.test_path={files['test']}", "data.val_fraction=0")
    return (*parts, "train.epochs=null", "train.steps=30")


def accuracy(result: dict[str, Any]) -> float:
    return float(result["test"]["accuracy"]["value"])


def test_a_teacher_makes_unlabelled_texts_worth_labels(
    tmp_path: Path, tiny_finetune: Any, tiny_classified: Path, files: dict[str, Path], few: tuple[str, ...], capsys: Any
) -> None:
    alone = bedplate.finetune(tiny_finetune(tmp_path / "alone", *few))
    teacher = (f"teacher.model={tiny_classified}", f"teacher.path={files['unlabelled']}")
    capsys.readouterr()
    taught = bedplate.finetune(tiny_finetune(tmp_path / "taught", *few, *teacher))
    assert accuracy(taught) == 1 > accuracy(alone)
    unlabelled = taught["data"]["unlabelled"]
    assert 100 < unlabelled <= 112  # 8 of the 120 have labels, and some nearly repeat a text that is scored
    said = capsys.readouterr().err
    assert f"reads {unlabelled + 8} texts" in said and "on 100.0% of the 8 texts with labels" in said
    card = (tmp_path / "taught/model/README.md").read_text("utf-8")
    assert f"{unlabelled} texts without labels" in card and str(tmp_path) not in card
    assert str(tiny_classified.parent) not in card and str(files["unlabelled"].parent) not in card
    assert "Texts without labels, read by the teacher" in (tmp_path / "taught/report.html").read_text("utf-8")


def test_a_teacher_that_weighs_nothing_changes_nothing(
    tmp_path: Path, tiny_finetune: Any, tiny_classified: Path, few: tuple[str, ...]
) -> None:
    bedplate.finetune(tiny_finetune(tmp_path / "alone", *few))
    bedplate.finetune(tiny_finetune(tmp_path / "mute", *few, f"teacher.model={tiny_classified}", "teacher.weight=0"))
    for name, value in weights_of(tmp_path / "alone").items():
        torch.testing.assert_close(weights_of(tmp_path / "mute")[name], value)


@given(st.integers(0, 2**31), st.floats(0, 1), st.integers(2, 5))
def test_targets_weigh_both_cross_entropies(seed: int, weight: float, classes: int) -> None:
    draw = np.random.default_rng(seed)
    logits = torch.from_numpy(draw.normal(size=(6, classes)).astype(np.float32))
    told = torch.from_numpy(draw.normal(size=(6, classes)).astype(np.float32)).softmax(1)
    labels = draw.integers(-1, classes, 6)
    kept = told.clone()
    found = F.cross_entropy(
        logits, torch.from_numpy(with_labels(told.numpy(), labels, weight)).float(), reduction="none"
    )
    assert torch.equal(told, kept)
    for row, label in enumerate(labels.tolist()):
        teacher = F.cross_entropy(logits[row], told[row])
        wanted = (
            teacher
            if label < 0
            else weight * teacher + (1 - weight) * F.cross_entropy(logits[row], torch.tensor(label))
        )
        assert found[row].item() == pytest.approx(wanted.item(), abs=1e-5)


def test_labels_are_matched_by_name(tmp_path: Path, tiny_classified: Path) -> None:
    texts = ["the cat sees a dog at night", "the house hears a dog near the sea"]
    recipe = TeacherRecipe(model=str(tiny_classified))
    told = Teacher(recipe, LABELS, CPU).probabilities(texts)
    assert told.argmax(1).tolist() == [1, 0] and told.sum(1) == pytest.approx(1)
    predicted = bedplate.load(tiny_classified).predict(texts)
    assert told.tolist() == pytest.approx(np.array([[row["scores"][label] for label in LABELS] for row in predicted]))
    assert np.array_equal(Teacher(recipe, LABELS[::-1], CPU).probabilities(texts), told[:, ::-1])


def test_texts_are_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_classified: Path) -> None:
    monkeypatch.setenv("BEDPLATE_CACHE", str(tmp_path))
    teacher, texts = Teacher(TeacherRecipe(model=str(tiny_classified)), LABELS, CPU), ["a dog today", "a cat again"]
    told = teacher.probabilities(texts)
    reading = Classify.logits
    read_again: list[int] = []
    monkeypatch.setattr(Classify, "logits", lambda self, batches: read_again.append(1) or reading(self, batches))
    assert np.array_equal(teacher.probabilities(texts), told) and not read_again
    teacher.probabilities(texts[::-1])
    assert len(read_again) == 1
    (kept, _) = sorted((tmp_path / "teacher").glob("*.npy"), key=lambda file: file.stem != teacher.key(texts))
    kept.write_bytes(kept.read_bytes()[:-3])
    assert np.array_equal(teacher.probabilities(texts), told) and len(read_again) == 2


def test_a_teacher_does_not_read_what_is_scored(
    tmp_path: Path, tiny_finetune: Any, tiny_classified: Path, files: dict[str, Path], few: tuple[str, ...]
) -> None:
    near = tmp_path / "near.jsonl"
    texts = [row["text"].upper() + " !" for row in read(files["test"])] + ["my friend likes plain tea in 1984"]
    near.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    teacher = (f"teacher.model={tiny_classified}", f"teacher.path={near}", "train.steps=1")
    assert bedplate.finetune(tiny_finetune(tmp_path / "run", *few, *teacher))["data"]["unlabelled"] == 1


def test_unlabelled_texts_are_distinct_and_of_any_format(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("words,note\n one ,x\ntwo,y\none,z\n,w\n", "utf-8")
    (tmp_path / "b.txt").write_text("three\n", "utf-8")
    recipe = TeacherRecipe(model="m", path=[str(tmp_path / "a.csv"), str(tmp_path / "b.txt")], column="words")
    assert read_unlabelled(recipe, "text", ["two"]) == ["one", "three"]


def test_a_run_with_a_teacher_is_resumed_to_the_same_and_with_no_other(
    tmp_path: Path, tiny_finetune: Any, tiny_classified: Path, files: dict[str, Path], few: tuple[str, ...]
) -> None:
    teacher = (*few, f"teacher.model={tiny_classified}", f"teacher.path={files['unlabelled']}", "train.steps=6")
    bedplate.finetune(tiny_finetune(tmp_path / "straight", *teacher))
    stopped = tiny_finetune(tmp_path / "stopped", *teacher, "checkpoint.every=2")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 3)
        bedplate.finetune(stopped)
    other = write(tmp_path / "other.csv", read(files["test"])[:3])
    for override, message in (
        (f"teacher.path={other}", "the run began with other data"),
        ("teacher.weight=0.9", r"the run began with teacher.weight=0.5"),
    ):
        with pytest.raises(InputError, match=message):
            bedplate.finetune(tiny_finetune(tmp_path / "stopped", *teacher, override), resume=True)
    bedplate.finetune(stopped, resume=True)
    for name, value in weights_of(tmp_path / "straight").items():
        assert torch.equal(weights_of(tmp_path / "stopped")[name], value)
