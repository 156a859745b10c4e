"""An image tokenizer from pictures to a used model; resuming gives the same; bad recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import bedplate
from bedplate.api.image_tokens_run import ImageTokensRun
from bedplate.errors import InputError, Interrupted
from bedplate.hub.image_tokens_model import ImageTokensModel
from bedplate.train.log import read_rows


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(24):
        coarse = draw.integers(0, 256, (2, 2, 3), np.uint8)
        Image.fromarray(coarse).resize((16, 16), Image.Resampling.BILINEAR).save(folder / f"{number}.png")
    return folder


def _recipe(out: Path, pictures: Path, **more: Any) -> dict[str, Any]:
    return {
        "task": "image_tokens",
        "out": str(out),
        "model": {"image_size": 16, "patch_size": 4, "levels": [5, 4], "width": 16},
        "data": {"path": str(pictures), "val_fraction": 0.25, "workers": 1},
        "train": {"precision": "fp32", "threads": 1, "batch_size": 4, "epochs": None, "steps": 30},
        "evaluate": {"every": 15},
        "checkpoint": {"every": 5},
        "log": {"every": 5},
    } | more


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tokens"
    bedplate.pretrain(_recipe(out, pictures))
    return out


def test_it_learns_and_is_used(trained: Path, pictures: Path) -> None:
    rows = [row for row in read_rows(trained / "metrics.jsonl") if "val_psnr" in row]
    assert rows[-1]["val_psnr"] > rows[0]["val_psnr"] + 1
    page = (trained / "report.html").read_text("utf-8")
    assert "from its codes" in page and page.count("data:image/png") == 12
    card = (trained / "model" / "README.md").read_text("utf-8")
    assert "discrete tokenizer of pictures of 16x16" in card and str(pictures) not in card
    model = bedplate.load(trained)
    assert isinstance(model, ImageTokensModel)
    assert model.encode(pictures / "0.png").shape == (1, 4, 4)


def test_a_resumed_run_ends_with_the_same_weights(
    trained: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(12))

    def stop(self: Any, batch: Any) -> int:
        if next(steps, None) is None:
            raise Interrupted("stopped")
        return 1

    recipe = _recipe(tmp_path / "run", pictures)
    with monkeypatch.context() as patch:
        patch.setattr("bedplate.tasks.image_tokens.ImageTokens.flops", stop)
        with pytest.raises(Interrupted):
            bedplate.pretrain(recipe)
    bedplate.pretrain(recipe, resume=True)
    ours, theirs = (load_file(out / "model" / "model.safetensors") for out in (tmp_path / "run", trained))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_base_goes_on(trained: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path / "more", pictures, base=str(trained), model={})
    result = bedplate.pretrain(recipe, "train.steps=2")
    began = json.loads((tmp_path / "more" / "metrics.jsonl").read_text("utf-8").splitlines()[0])
    before = [row for row in read_rows(trained / "metrics.jsonl") if "val_psnr" in row]
    assert began["val_psnr"] == pytest.approx(max(row["val_psnr"] for row in before), abs=1e-3)
    assert result["steps"] == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.image_size=18", "multiple of patch"),
        ("model.levels=[2]", "levels"),
        ("data.test_path=x", "test_path"),
        ("parallel.shard=2", "shard"),
        ("base=x", "leave `model` out"),
        ("modell.width=3", "did you mean 'model'"),
        ("evaluate.metric=accuracy", "psnr"),
    ],
)
def test_a_bad_recipe_is_refused(pictures: Path, tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        bedplate.pretrain(_recipe(tmp_path / "run", pictures), override)
    assert not (tmp_path / "run").exists()


def test_settings_that_a_run_keeps_are_those_of_its_recipe(trained: Path, pictures: Path) -> None:
    with pytest.raises(InputError, match="objective"):
        bedplate.pretrain(_recipe(trained, pictures), "objective.edge_weight=0.5", resume=True)
    assert ImageTokensRun.scales
