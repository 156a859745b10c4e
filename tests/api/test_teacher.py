"""Distillation: a classifier learns what a teacher says of texts with labels and without."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import bedplate
from bedplate.errors import InputError, Interrupted
from tests.api.test_finetune import read, stop_at, weights_of, write


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
