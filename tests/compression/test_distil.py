"""A teacher: what it says of texts, what it keeps of that, and what a student learns of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bedplate
from bedplate.compression.distil import Teacher, read_unlabelled, with_labels
from bedplate.errors import InputError
from bedplate.recipe.finetune import TeacherRecipe
from bedplate.tasks.classify import Classify
from bedplate.train.hardware import Hardware

LABELS = ["place", "time"]
CPU = Hardware(torch.device("cpu"), torch.float32, 1, "as asked")


def teacher_of(source: Path, cache: Path, labels: list[str] | None = None) -> Teacher:
    return Teacher(TeacherRecipe(model=str(source)), labels or LABELS, CPU, cache)


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)


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


def test_labels_are_matched_by_name(tmp_path: Path, tiny_classified: Path) -> None:
    told = teacher_of(tiny_classified, tmp_path).probabilities(TEXTS)
    assert told.argmax(1).tolist() == [1, 0] and told.sum(1) == pytest.approx(1)
    assert np.array_equal(teacher_of(tiny_classified, tmp_path, LABELS[::-1]).probabilities(TEXTS), told[:, ::-1])


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
    told = teacher_of(source, tmp_path).probabilities(TEXTS)
    predicted = bedplate.load(source).predict(TEXTS)
    assert told.tolist() == pytest.approx(np.array([[row["scores"][label] for label in LABELS] for row in predicted]))


def test_texts_are_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_classified: Path) -> None:
    monkeypatch.setattr("bedplate.compression.distil.BLOCK", 2)
    monkeypatch.setattr("bedplate.compression.distil.PATIENCE", -1.0)
    teacher = teacher_of(tiny_classified, tmp_path)
    texts = ["a dog today", "a cat again", "the river at night"]
    reading = Classify.logits
    blocks: list[int] = []
    monkeypatch.setattr(Classify, "logits", lambda self, batches: blocks.append(1) or reading(self, batches))
    said: list[str] = []
    told = teacher.probabilities(texts, said.append)
    assert len(blocks) == 2 and said[1:] == ["The teacher has read 2 of 3 texts."]
    assert np.array_equal(teacher.probabilities(texts), told) and len(blocks) == 2
    assert np.array_equal(teacher.probabilities([*texts[:2], "new"])[:2], told[:2]) and len(blocks) == 3
    for kept in tmp_path.glob("*.npy"):
        kept.write_bytes(kept.read_bytes()[:-3])
    assert np.array_equal(teacher.probabilities(texts), told) and len(blocks) == 5
    for parameter in (teacher.module.score.weight, teacher.module.embed.weight):  # another teacher is asked anew
        with torch.no_grad():
            parameter[0] += 1
        teacher.fingerprint = teacher._fingerprint()
        assert not np.array_equal(teacher.probabilities(texts), told)


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, tiny_classified: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert len(teacher_of(tiny_classified, tmp_path / "file").probabilities(TEXTS)) == 2


def test_a_full_disk_keeps_no_half_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_classified: Path
) -> None:
    def full(file: Any, values: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bedplate.compression.distil.np.save", full)
    assert len(teacher_of(tiny_classified, tmp_path).probabilities(TEXTS)) == 2
    assert not list(tmp_path.iterdir())


def test_scores_that_are_no_numbers_are_refused(tmp_path: Path, tiny_classified: Path) -> None:
    teacher = teacher_of(tiny_classified, tmp_path)
    torch.nn.init.constant_(teacher.module.score.weight, float("nan"))
    teacher.fingerprint = teacher._fingerprint()
    with pytest.raises(InputError, match=r"teacher.model=.* gives scores that are no numbers"):
        teacher.probabilities(TEXTS)


def test_unlabelled_texts_are_distinct_and_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("words,note\n one ,x\ntwo,y\none,z\n,w\n", "utf-8")
    (tmp_path / "b.jsonl").write_text('{"words": null}\n{"words": "three"}\n', "utf-8")
    recipe = TeacherRecipe(model="m", path=[str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")], column="words")
    assert read_unlabelled(recipe, "text") == ["one", "two", "three"]
