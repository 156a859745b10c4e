"""SimCLR: its loss is that of the paper, written out; what it learns is the encoder's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bedplate.data.augment import ImageAugment
from bedplate.models.simclr import SimCLR, SimCLRConfig
from bedplate.models.vit import ImagePooling, VisionModel
from bedplate.tasks.tell_views import TellViews

from .pictures import tiny_config

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
VIEWS = ImageAugment(crop_scale=(0.3, 1.0), flip=True, colour=0.4, hue=0.1, grey=0.2)


def make(pooling: ImagePooling = "mean", temperature: float = 0.2) -> SimCLR:
    config = replace(tiny_config((16, 24), 4), pooling=pooling, stem="conv")
    module = SimCLR(SimCLRConfig(config, 8, temperature))
    module.init_weights(3)
    with torch.no_grad():  # no output is zero
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return module


def test_points_near_each_other_are_told_apart_under_autocast() -> None:
    """In bf16 cosines near 1 are equal, and the nearest one is any."""
    module, generator = make(), torch.Generator().manual_seed(0)
    own = 0.05 * torch.randn(1, 64, 8, generator=generator)
    views = torch.ones(8) + own + 0.005 * torch.randn(2, 64, 8, generator=generator)
    points = torch.nn.functional.normalize(views, dim=2)
    exact = module.losses(*points)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module.losses(*points), exact)
    assert exact[1].float().mean() > 0.8


def test_the_loss_is_equation_1_of_the_paper() -> None:
    module, generator = make(temperature=0.3), torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(2, 5, 8, generator=generator), dim=2)
    losses, nearest = module.losses(points[0], points[1])
    rows = points.flatten(0, 1).double().numpy()
    similar = rows @ rows.T
    for i in range(10):
        j = (i + 5) % 10
        others = [k for k in range(10) if k != i]
        expected = -np.log(np.exp(similar[i, j] / 0.3) / sum(np.exp(similar[i, k] / 0.3) for k in others))
        assert losses[i].item() == pytest.approx(expected, abs=1e-5)
        assert bool(nearest[i]) == (max(others, key=lambda k: similar[i, k]) == j)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_points_are_of_length_1_and_of_what_a_classifier_reads(pooling: ImagePooling) -> None:
    module = make(pooling)
    pixels = torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    points = module(pixels)
    assert points.norm(dim=1).detach() == pytest.approx(np.ones(3), abs=1e-6)
    states = module.encoder.hidden(pixels)
    pooled = states[:, 1:].mean(1) if pooling == "mean" else states[:, 0]
    torch.testing.assert_close(points, torch.nn.functional.normalize(module.projector(pooled), dim=1))


def test_the_encoder_begins_as_a_fresh_one_of_the_same_seed() -> None:
    module = SimCLR(SimCLRConfig(tiny_config()))
    module.init_weights(5)
    encoder = VisionModel(tiny_config())
    encoder.init_weights(5)
    for name, value in encoder.state_dict().items():
        assert torch.equal(module.encoder.state_dict()[name], value)


def test_evaluations_compare_and_leave_the_generator_as_it_was() -> None:
    task = TellViews(make(), MEAN, STD, VIEWS)
    generator = torch.Generator().manual_seed(0)
    batches = [{"pixels": torch.randint(0, 256, (6, 3, 16, 24), generator=generator, dtype=torch.uint8)}] * 2
    torch.manual_seed(1)
    first = task.evaluate(batches)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    assert task.evaluate(batches) == first
    assert first["loss"]["n"] == 24 and 0 <= first["accuracy"]["value"] <= 1


def test_views_of_grey_pictures_lose_their_colours_by_the_probability() -> None:
    pixels = torch.rand(400, 3, 4, 4)
    torch.manual_seed(0)
    shown = ImageAugment(grey=0.25)(pixels, 4)
    is_grey = (shown.amax(1) - shown.amin(1)).amax((1, 2)) < 1e-4
    assert 0.15 < is_grey.float().mean() < 0.35
    torch.testing.assert_close(shown[~is_grey], pixels[~is_grey], atol=1e-5, rtol=0)


def test_it_learns_to_tell_pictures_apart() -> None:
    module = make()
    task = TellViews(module, MEAN, STD, ImageAugment(crop_scale=(0.6, 1.0)))
    colours = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(2))
    batch = {"pixels": (255 * colours.expand(-1, -1, 16, 24)).to(torch.uint8)}
    before = task.evaluate([batch])["loss"]["value"]
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    for _ in range(60):
        total, weight = task.loss(batch)["loss"]
        (total / weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert task.evaluate([batch])["loss"]["value"] < before - 0.5
