"""How near a picture comes to itself: losses and measures against what they are by definition."""

from __future__ import annotations

import math

import pytest
import torch

from bedplate.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from bedplate.tasks.image_tokens import ImageTokens, as_bytes, psnr, reconstruction_losses
from bedplate.tasks.pixels import normalize

HALVES = (0.5, 0.5, 0.5)


@pytest.fixture
def task() -> ImageTokens:
    module = ImageTokenizer(ImageTokenizerConfig((8, 8), patch=4, levels=(3, 3), width=16))
    module.init_weights(0)
    return ImageTokens(module, HALVES, HALVES)


def _pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_bytes_come_back_from_normalised_pixels() -> None:
    pixels = _pixels(4)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    assert torch.equal(as_bytes(normalize(pixels, mean, std), mean, std), pixels)


def test_psnr_is_that_of_its_definition() -> None:
    pixels = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    other = pixels.clone()
    other[1] += 5
    assert psnr(pixels, other).tolist() == pytest.approx([100, 20 * math.log10(255 / 5)], abs=1e-4)


def test_losses_are_a_pictures_own_and_zero_where_nothing_differs() -> None:
    pixels, rebuilt = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    both = reconstruction_losses(rebuilt, pixels, 1.0, 1.0)
    torch.testing.assert_close(both[1:], reconstruction_losses(rebuilt[1:], pixels[1:], 1.0, 1.0))
    assert reconstruction_losses(pixels, pixels, 1.0, 1.0).abs().max() == 0
    torch.testing.assert_close(
        reconstruction_losses(rebuilt, pixels, 0.0, 0.0), (rebuilt - pixels).square().mean((1, 2, 3))
    )


def test_a_shade_has_no_edges_and_a_wrong_edge_costs() -> None:
    pixels = torch.zeros(1, 3, 8, 8)
    shade = reconstruction_losses(pixels + 0.5, pixels, 0.0, 1.0)
    assert shade.item() == pytest.approx(0.25)
    stripes = pixels.clone()
    stripes[..., ::2] = 0.5
    stripes[..., 1::2] = -0.5
    assert reconstruction_losses(stripes, pixels, 0.0, 1.0) > shade


def test_evaluation_counts_each_picture_once_and_every_code(task: ImageTokens) -> None:
    pixels, index = _pixels(5), torch.arange(5)
    whole = task.evaluate([{"pixels": pixels, "index": index}])
    parts = task.evaluate(
        [{"pixels": pixels[:3], "index": index[:3]}, {"pixels": pixels[2:], "index": index[2:]}]  # 2 comes twice
    )
    assert whole.keys() == task.metrics.keys()
    for name, metric in whole.items():
        assert metric["n"] == 5 and metric["low"] <= metric["value"] <= metric["high"]
        assert parts[name]["value"] == pytest.approx(metric["value"], rel=1e-4)
    codes = task.module.encode(normalize(pixels, HALVES, HALVES)).unique()
    assert whole["codebook_use"]["value"] == len(codes) / 9
    assert 1 <= whole["perplexity"]["value"] <= len(codes)
    seen = task.reconstructed(pixels)
    assert whole["psnr"]["value"] == pytest.approx(float(psnr(pixels, seen).mean()), rel=1e-4)
