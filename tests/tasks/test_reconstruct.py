"""Masked autoencoding as a task: evaluations compare, training resumes exactly, pictures come back as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bedplate.models.mae import MAE, MAEConfig
from bedplate.models.vit import VisionConfig
from bedplate.nn.config import TrunkConfig
from bedplate.nn.embed import patchify
from bedplate.nn.presets import PRESETS
from bedplate.tasks.reconstruct import Reconstruct

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def make_task(augment: Any = None, dropout: float = 0.0, collect: Any = list) -> Reconstruct:
    trunk, decoder = (TrunkConfig(d, 2, 4, 4, d // 4, 2 * d, **PRESETS["vit"] | {"dropout": dropout}) for d in (32, 16))
    module = MAE(MAEConfig(VisionConfig((16, 16), 4, trunk), decoder))
    module.init_weights(0)
    with torch.no_grad():  # no output is zero
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return Reconstruct(module, MEAN, STD, augment, collect)


def stripes(count: int, seed: int = 0) -> Tensor:
    """Images of a wave whose phase the seen patches tell, `(B, 3, 16, 16)` uint8."""
    generator = torch.Generator().manual_seed(seed)
    phase = 6.3 * torch.rand(count, 1, 1, 1, generator=generator)
    waves = torch.sin(0.6 * torch.arange(16.0) + phase).expand(-1, 3, 16, -1)
    return (127 + 100 * waves).to(torch.uint8)


def batches(pixels: Tensor, size: int) -> list[dict[str, Tensor]]:
    index = torch.arange(len(pixels))
    return [{"pixels": p, "index": i} for p, i in zip(pixels.split(size), index.split(size), strict=True)]


def test_loss_is_that_of_normalised_pixels() -> None:
    task, pixels = make_task(), stripes(5)
    torch.manual_seed(3)
    total, weight = task.loss({"pixels": pixels})["loss"]
    torch.manual_seed(3)
    by_channel = [(pixels[:, c].float() / 255 - MEAN[c]) / STD[c] for c in range(3)]
    expected, _ = task.module.loss(torch.stack(by_channel, 1))
    torch.testing.assert_close(total, expected)
    assert weight == 5


def test_augmentation_is_for_training_alone() -> None:
    task = make_task(lambda pixels: pixels.flip(-1).float() / 255)
    plain, pixels = make_task(), stripes(5)
    torch.manual_seed(3)
    flipped = task.loss({"pixels": pixels})["loss"][0]
    torch.manual_seed(3)
    torch.testing.assert_close(flipped, plain.loss({"pixels": pixels.flip(-1)})["loss"][0])
    assert task.evaluate(batches(pixels, 2)) == plain.evaluate(batches(pixels, 2))


def test_the_default_generator_decides_a_step() -> None:
    task = make_task(dropout=0.2)

    def step(seed: int) -> float:
        torch.manual_seed(seed)
        return task.loss({"pixels": stripes(4)})["loss"][0].item()

    assert step(1) == step(1) != step(2)


def test_evaluations_compare() -> None:
    """What is hidden follows from an image's index, in whatever batches it comes, and no other randomness is used."""
    task, pixels = make_task(dropout=0.2), stripes(12)
    task.module.train()
    state = torch.get_rng_state()
    whole = task.evaluate(batches(pixels, 12))["loss"]
    assert torch.equal(torch.get_rng_state(), state) and task.module.training
    assert whole["n"] == 12 and whole["low"] < whole["value"] < whole["high"]
    again = task.evaluate(reversed(batches(pixels, 5)))["loss"]
    assert again == pytest.approx(whole, rel=1e-5)

    other = [batch | {"index": batch["index"] + 100} for batch in batches(pixels, 12)]
    assert task.evaluate(other)["loss"]["value"] != pytest.approx(whole["value"], rel=1e-4)


def test_an_image_counts_once() -> None:
    """Ranks fill their batches up with images that others have."""
    seen = batches(stripes(4), 2)

    def collect(rows: list[Tensor]) -> list[Tensor]:
        return [part for row in rows for part in (row, rows[0])]

    assert make_task(collect=collect).evaluate(seen) == make_task().evaluate(seen)


def test_reconstructions_are_pictures() -> None:
    task, pixels = make_task(), stripes(3)
    images = task.reconstructions(pixels, seed=0)
    assert {name: (image.dtype, image.shape) for name, image in images.items()} == dict.fromkeys(
        ("original", "masked", "reconstructed"), (torch.uint8, pixels.shape)
    )
    assert torch.equal(images["original"], pixels)
    grey = (torch.tensor(MEAN) * 255).round().to(torch.uint8).repeat_interleave(16)
    is_hidden = (patchify(images["masked"], 4) == grey).all(2)
    assert is_hidden.sum(1).tolist() == [12, 12, 12]  # of 16
    kept = ~is_hidden
    assert torch.equal(patchify(images["reconstructed"], 4)[kept], patchify(pixels, 4)[kept])
    assert (patchify(images["reconstructed"], 4)[is_hidden] != patchify(pixels, 4)[is_hidden]).any()
    again, other = task.reconstructions(pixels, seed=0), task.reconstructions(pixels, seed=1)
    assert torch.equal(again["masked"], images["masked"]) and not torch.equal(other["masked"], images["masked"])


def test_learns_to_paint_what_it_never_saw() -> None:
    task = make_task()
    task.module.init_weights(0)
    held_out = batches(stripes(64, seed=1), 32)
    before = task.evaluate(held_out)["loss"]
    optimizer = torch.optim.AdamW([p for p in task.module.parameters() if p.requires_grad], lr=3e-3)
    torch.manual_seed(0)
    for step in range(300):
        total, weight = task.loss({"pixels": stripes(32, seed=2 + step)})["loss"]
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
    after = task.evaluate(held_out)["loss"]
    print(f"{before} to {after}")
    assert before["low"] > 0.9 and after["high"] < 0.7  # each place's mean alone gives 0.84


def test_flops_grow_with_the_batch() -> None:
    task = make_task()
    assert task.flops({"pixels": stripes(6)}) == 6 * task.module.flops_per_image() > 0
    assert task.samples(0) == []
