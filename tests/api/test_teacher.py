"""Distillation: a classifier learns what a teacher says of texts with labels and without."""

import json
import shutil
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
    assert "reads 128 texts" in said and "on 100.0% of the 8 texts with labels" in said
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
    found = F.cross_entropy(logits, torch.from_numpy(with_labels(told.numpy(), labels, weight)), reduction="none")
    assert torch.equal(told, kept)
    for row, label in enumerate(labels.tolist()):
        teacher = F.cross_entropy(logits[row], told[row])
        wanted = (
            teacher
            if label < 0
            else weight * teacher + (1 - weight) * F.cross_entropy(logits[row], torch.tensor(label))
        )
        assert found[row].item() == pytest.approx(wanted.item(), abs=1e-5)


TEXTS = ["the cat sees a dog at night", "the house hears a dog near the sea and finds her sister in the garden"]


def test_labels_are_matched_by_name(tiny_classified: Path) -> None:
    recipe = TeacherRecipe(model=str(tiny_classified))
    told = Teacher(recipe, LABELS, CPU).probabilities(TEXTS)
    assert told.argmax(1).tolist() == [1, 0] and told.sum(1) == pytest.approx(1)
    assert np.array_equal(Teacher(recipe, LABELS[::-1], CPU).probabilities(TEXTS), told[:, ::-1])


@pytest.mark.parametrize("kind", ["classifier", "adapter", "encoder"])
def test_a_teacher_of_any_kind_says_what_it_predicts(
    tmp_path: Path, tiny_finetune: Any, tiny_recipe: Any, tiny_classified: Path, kind: str
) -> None:
    source, run = tiny_classified, tmp_path / "run"
    if kind == "adapter":
        bedplate.finetune(tiny_finetune(run, "adapter.rank=2", "train.steps=4", "optimizer.learning_rate=0.05"))
        source = run / "adapter"
    if kind == "encoder":
        bedplate.pretrain(
            tiny_recipe(tmp_path / "base", "model.preset=bert", "objective.masked_share=1", "train.steps=4")
        )
        options = f"base={tmp_path / 'base'}", "train.sequence_length=12", "data.max_tokens=20", "train.steps=4"
        bedplate.finetune(tiny_finetune(run, *options))
        source = run
    told = Teacher(TeacherRecipe(model=str(source)), LABELS, CPU).probabilities(TEXTS)
    predicted = bedplate.load(source).predict(TEXTS)
    assert told.tolist() == pytest.approx(np.array([[row["scores"][label] for label in LABELS] for row in predicted]))


def test_texts_are_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_classified: Path) -> None:
    monkeypatch.setenv("BEDPLATE_CACHE", str(tmp_path))
    monkeypatch.setattr("bedplate.api.teacher.BLOCK", 2)
    monkeypatch.setattr("bedplate.api.teacher.PATIENCE", -1.0)
    teacher = Teacher(TeacherRecipe(model=str(tiny_classified)), LABELS, CPU)
    texts = ["a dog today", "a cat again", "the river at night"]
    reading = Classify.logits
    blocks: list[int] = []
    monkeypatch.setattr(Classify, "logits", lambda self, batches: blocks.append(1) or reading(self, batches))
    said: list[str] = []
    told = teacher.probabilities(texts, said.append)
    assert len(blocks) == 2 and said[1:] == ["The teacher has read 2 of 3 texts."]
    assert np.array_equal(teacher.probabilities(texts), told) and len(blocks) == 2
    assert np.array_equal(teacher.probabilities([*texts[:2], "new"])[:2], told[:2]) and len(blocks) == 3
    for kept in (tmp_path / "teacher").glob("*.npy"):
        kept.write_bytes(kept.read_bytes()[:-3])
    assert np.array_equal(teacher.probabilities(texts), told) and len(blocks) == 5
    for parameter in (teacher.module.score.weight, teacher.module.embed.weight):  # another teacher is asked anew
        with torch.no_grad():
            parameter[0] += 1
        teacher.fingerprint = teacher._fingerprint()
        assert not np.array_equal(teacher.probabilities(texts), told)


def test_a_cache_that_cannot_be_written_costs_only_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_classified: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("BEDPLATE_CACHE", str(tmp_path / "file"))
    assert len(Teacher(TeacherRecipe(model=str(tiny_classified)), LABELS, CPU).probabilities(TEXTS)) == 2


def test_scores_that_are_no_numbers_are_refused(tiny_classified: Path) -> None:
    teacher = Teacher(TeacherRecipe(model=str(tiny_classified)), LABELS, CPU)
    torch.nn.init.constant_(teacher.module.score.weight, float("nan"))
    teacher.fingerprint = teacher._fingerprint()
    with pytest.raises(InputError, match=r"teacher.model=.* gives scores that are no numbers"):
        teacher.probabilities(TEXTS)


@pytest.mark.parametrize("part", ["val", "test"])
def test_what_is_scored_is_not_learnt_from_the_teacher(
    tmp_path: Path, tiny_finetune: Any, tiny_classified: Path, files: dict[str, Path], part: str, capsys: Any
) -> None:
    near = tmp_path / "near.jsonl"
    texts = [row["text"].upper() + " !" for row in read(files["test"])] + ["my friend likes plain tea in 1984"]
    near.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    parts = (f"data.path={files['few']}", f"data.{part}_path={files['test']}", "data.val_fraction=0", "train.steps=1")
    teacher = (f"teacher.model={tiny_classified}", f"teacher.path={near}")
    data = bedplate.finetune(tiny_finetune(tmp_path / "run", *parts, *teacher))["data"]
    assert data["unlabelled"] == 1 and data["near_duplicates"] >= 40
    assert "1 texts without labels are learnt by its word alone; 40 that nearly repeat" in capsys.readouterr().err


def test_unlabelled_texts_are_distinct_and_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("words,note\n one ,x\ntwo,y\none,z\n,w\n", "utf-8")
    (tmp_path / "b.jsonl").write_text('{"words": null}\n{"words": "three"}\n', "utf-8")
    recipe = TeacherRecipe(model="m", path=[str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")], column="words")
    assert read_unlabelled(recipe, "text") == ["one", "two", "three"]


def test_a_run_with_a_teacher_is_resumed_to_the_same_and_with_no_other(
    tmp_path: Path, tiny_finetune: Any, tiny_classified: Path, files: dict[str, Path], few: tuple[str, ...]
) -> None:
    model = tmp_path / "teacher"
    shutil.copytree(tiny_classified / "model", model)
    teacher = (*few, f"teacher.model={model}", f"teacher.path={files['unlabelled']}", "train.steps=6")
    bedplate.finetune(tiny_finetune(tmp_path / "straight", *teacher))
    stopped = tiny_finetune(tmp_path / "stopped", *teacher, "checkpoint.every=2")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 3)
        bedplate.finetune(stopped)
    shutil.copytree(stopped.out, tmp_path / "bf16")
    bedplate.finetune(tiny_finetune(tmp_path / "bf16", *teacher, "train.precision=bf16"), resume=True)
    other = write(tmp_path / "other.csv", [{"text": "my friend likes plain tea in 1984"}])
    for override, message in (
        (f"teacher.path={other}", "the run began with other data"),
        ("teacher.weight=0.9", r"the run began with teacher.weight=0.5"),
    ):
        with pytest.raises(InputError, match=message):
            bedplate.finetune(tiny_finetune(stopped.out, *teacher, override), resume=True)
    weights = (model / "model.safetensors").read_bytes()
    trained_on = bedplate.load(model)
    torch.nn.init.ones_(trained_on.module.trunk.norm.weight)
    trained_on.save(model, overwrite=True)
    with pytest.raises(InputError, match=r"the teacher is not the one that the run in .* began with; put that back"):
        bedplate.finetune(stopped, resume=True)
    (model / "model.safetensors").write_bytes(weights)
    bedplate.finetune(stopped, resume=True)
    for name, value in weights_of(tmp_path / "straight").items():
        assert torch.equal(weights_of(stopped.out)[name], value)
