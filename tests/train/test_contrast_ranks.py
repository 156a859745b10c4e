"""Contrastive runs that ranks share: every picture stands among the texts of all, as in a process of its own."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import bedplate
from bedplate.train import ranks as module
from bedplate.train.ranks import Ranks

from .test_vision_ranks import rows

Torchrun = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, draw = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for number in range(26):
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        (root / f"{number}.txt").write_text(f"thing {number // 2}" + " long" * (number % 3))
    return root


@pytest.mark.parametrize(("loss", "image_weight"), [("infonce", 0.5), ("siglip", 0.0)])
def test_losses_and_weights_are_those_of_one_process(
    torchrun: Torchrun, tmp_path: Path, pairs: Path, loss: str, image_weight: float
) -> None:
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}

    def recipe(name: str, **train: Any) -> dict[str, Any]:
        return {
            "task": "contrast",
            "out": str(tmp_path / name),
            "model": {
                "text": {**tower, "vocab_size": 270, "context": 32},
                "image": {**tower, "image_size": 8, "patch_size": 4},
                "projection_dim": 12,
            },
            "objective": {"loss": loss, "image_weight": image_weight, "templates": ["{}", "a picture of {}"]},
            "data": {"path": str(pairs), "val_fraction": 0.3, "workers": 1},
            "train": {"precision": "fp32", "threads": 1, "batch_size": 8, "epochs": None, "steps": 6, "ema": 0.9}
            | train,
            "optimizer": {"name": "adamw"},
            "evaluate": {"every": 3},
            "checkpoint": {"every": 3},
            "log": {"every": 1},
        }

    done = torchrun(2, {"data": {"recipe": recipe("data")}, "parts": {"recipe": recipe("parts", micro_batch_size=2)}})
    assert done.returncode == 0, done.stderr
    alone = Path(bedplate.pretrain(recipe("alone"))["out"])
    for way in ("data", "parts"):
        for row, wanted in zip(rows(tmp_path / way), rows(alone), strict=True):
            assert row == pytest.approx(wanted, rel=3e-5, abs=1e-5), way
        found, expected = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / way, alone))
        for name, weight in expected.items():
            if not name.endswith("k_proj.bias"):  # attention does not depend on it: Adam follows what rounding leaves
                torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5, msg=f"{way}: {name}")


def test_a_row_gets_the_gradients_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two ranks: each sends its rows, and in the backward pass the gradients of all rows."""
    others = torch.full((2, 3), 7.0)

    def all_gather(parts: list[Tensor], values: Tensor) -> None:
        parts[0].copy_(others), parts[1].copy_(values)

    def all_reduce(grad: Tensor) -> None:
        grad.add_(10)  # of the first rank

    monkeypatch.setattr(module.dist, "all_gather", all_gather)
    monkeypatch.setattr(module.dist, "all_reduce", all_reduce)
    values = torch.ones(2, 3, requires_grad=True)
    gathered = Ranks(1, 2).gather(values)
    assert torch.equal(gathered, torch.cat([others, torch.ones(2, 3)]))
    (gathered * torch.arange(12.0).view(4, 3)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == (torch.arange(6.0, 12.0).view(2, 3) + 10).tolist()
    assert Ranks().gather(values) is values
