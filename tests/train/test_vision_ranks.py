"""Runs on images that ranks share: the losses, metrics and models of a process of its own."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import bedplate
from bedplate.errors import InputError
from bedplate.models.mae import MAE
from bedplate.train.checkpoint import Checkpoints
from bedplate.train.log import read_rows

from .pixel_masks import masks_of_pixels

Torchrun = Callable[..., "subprocess.CompletedProcess[str]"]
TIMING = ("images_per_second", "mfu", "waiting", "seconds")
WAYS = {"data": {}, "fsdp2": {"shard": 2}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of noise around two colours: 14 each to train on, 5 to score."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 14), ("test", 5)):
        for name, colour in (("blue", (40, 60, 200)), ("red", (200, 50, 40))):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = (draw.normal(0, 60, (8, 8, 3)) + colour).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of 10 pictures, each of a red and a blue square on grey."""
    root, draw = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    images, annotations = [], []
    for number in range(10):
        pixels = np.full((32, 32, 3), 110, np.uint8) + draw.integers(0, 30, (32, 32, 3), dtype=np.uint8)
        for kind, colour in enumerate([(220, 30, 30), (30, 30, 220)]):
            x, y = (int(value) for value in draw.integers(0, 20, 2))
            pixels[y : y + 12, x : x + 12] = colour
            box = {"bbox": [x, y, 12, 12], "area": 144, "iscrowd": 0}
            annotations.append(box | {"id": len(annotations) + 1, "image_id": number, "category_id": kind})
        Image.fromarray(pixels).save(root / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 32, "width": 32})
    categories = [{"id": 0, "name": "red"}, {"id": 1, "name": "blue"}]
    values = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(values))
    return root


@pytest.fixture
def recipe(pictures: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`recipe(task, out, **sections)`: a tiny run without anything drawn by chance, so that ranks change nothing."""
    monkeypatch.setattr(MAE, "masks", masks_of_pixels)
    of_task: dict[str, dict[str, Any]] = {
        "classify_images": {"data": {"test_path": str(pictures / "test")}},
        "mae": {"decoder": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}},
        "detect": {"model": {"image_size": 32, "patch_size": 8}, "data": {"path": str(scenes)}},
    }

    def make(task: str, out: Path, **sections: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {
            "task": task,
            "out": str(out),
            "model": {"image_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
            "data": {"path": str(pictures / "train"), "val_fraction": 0.3, "workers": 1},
            "augment": {"flip": False},
            "train": {"precision": "fp32", "threads": 1, "batch_size": 4, "epochs": None, "steps": 6, "ema": 0.9},
            "optimizer": {"name": "adamw"},
            "evaluate": {"every": 3},
            "checkpoint": {"every": 3},
            "log": {"every": 1},
        }
        for name, section in [*of_task[task].items(), *sections.items()]:
            values[name] = values.get(name, {}) | section
        return values

    return make


def rows(run: Path) -> list[dict[str, float]]:
    """All that a run has written of its steps and evaluations, but for its speed."""
    return [{k: v for k, v in row.items() if k not in TIMING} for row in read_rows(run / "metrics.jsonl")]


def same_runs(found: Path, expected: Path) -> None:
    """Whether all that two runs leave behind is the same: their steps, metrics, weights and reports."""
    assert len(rows(found)) == len(rows(expected))
    for row, wanted in zip(rows(found), rows(expected), strict=True):
        assert row == pytest.approx(wanted, rel=0, abs=1e-5), found.name
    models = [load_file(run / "model" / "model.safetensors") for run in (found, expected)]
    torch.testing.assert_close(*models, rtol=0, atol=1e-4, msg=lambda text: f"{found.name}: {text}")
    files = [sorted(path.name for path in run.iterdir()) for run in (found, expected)]
    assert files[0] == files[1]
    if (expected / "scored.json").exists():
        scored = [json.loads((run / "scored.json").read_text("utf-8"))["metrics"] for run in (found, expected)]
        for name in scored[1].keys() - {"per_class", "curves"}:
            assert scored[0][name] == pytest.approx(scored[1][name], rel=0, abs=1e-5), name
    shown = [(run / "report.html").read_text("utf-8").count("data:image/") for run in (found, expected)]
    assert shown[0] == shown[1] > 0


def test_losses_metrics_and_models_are_those_of_one_process(
    torchrun: Torchrun, tmp_path: Path, recipe: Callable[..., dict[str, Any]]
) -> None:
    pytest.importorskip("pycocotools")

    def named(task: str, way: str, parallel: dict[str, Any]) -> dict[str, Any]:
        if task == "filters":  # which Muon needs whole
            values = recipe("classify_images", tmp_path / f"{way}-filters", parallel=parallel)
            stem = {"stem": "residual", "patch_size": 4, "pooling": "mean"}
            return values | {"model": values["model"] | stem, "optimizer": {"name": "muon"}}
        if task != "tuned":
            return recipe(task, tmp_path / f"{way}-{task}", parallel=parallel)
        base = {"base": str(tmp_path / "fsdp2-mae"), "model": {"pooling": "mean"}}
        return recipe("classify_images", tmp_path / f"{way}-tuned", parallel=parallel) | base

    tasks = ("classify_images", "filters", "mae", "tuned", "detect")
    jobs = {f"{way}-{task}": {"recipe": named(task, way, WAYS[way])} for task in tasks for way in WAYS}
    done = torchrun(2, jobs)
    assert done.returncode == 0, done.stderr
    for task in tasks:
        alone = Path(bedplate.pretrain(named(task, "alone", {}))["out"])
        for way in WAYS:
            same_runs(tmp_path / f"{way}-{task}", alone)


def test_a_sharded_run_goes_on_in_one_process(
    torchrun: Torchrun, tmp_path: Path, recipe: Callable[..., dict[str, Any]]
) -> None:
    bedplate.pretrain(recipe("mae", tmp_path / "straight"))
    done = torchrun(2, {"parts": {"recipe": recipe("mae", tmp_path / "parts", parallel={"shard": 2}), "stop_at": 4}})
    assert done.returncode == 0, done.stderr
    assert Checkpoints(tmp_path / "parts" / "checkpoints", 1).steps()[-1] == 4
    bedplate.pretrain(recipe("mae", tmp_path / "parts"), resume=True)
    same_runs(tmp_path / "parts", tmp_path / "straight")


def test_what_ranks_cannot_do_is_refused(tmp_path: Path, recipe: Callable[..., dict[str, Any]]) -> None:
    for parallel, message in (
        ({"tensor": 2}, "parallel.tensor=2: tensor parallelism is for language models"),
        ({"shard": 2}, "1 process was started; start a multiple of 2 with torchrun"),
    ):
        with pytest.raises(InputError, match=message):
            bedplate.pretrain(recipe("mae", tmp_path / "no", parallel=parallel))
    assert not (tmp_path / "no").exists()
