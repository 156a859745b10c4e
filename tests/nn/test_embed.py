from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bedplate.nn.embed import MapNorm, StandardConv, make_stem


@pytest.mark.parametrize("stem", ["patch", "conv", "residual"])
def test_a_picture_does_not_depend_on_its_batch(stem: Any) -> None:
    module = make_stem(stem, 3, 8, 24)
    pixels = torch.randn(3, 3, 16, 24)
    tokens = module(pixels)
    assert tokens.shape == (3, 2 * 3, 24)
    for one, own in zip(pixels, tokens, strict=True):
        torch.testing.assert_close(module(one[None])[0], own)


def test_standard_filters_are_those_of_the_formula_whatever_their_scale_and_mean() -> None:
    convolution = StandardConv(5, 7, 3, padding=1, bias=False)
    x = torch.randn(2, 5, 6, 6)
    weight = convolution.weight.detach()
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    standard = centred / (centred.square().mean((1, 2, 3), keepdim=True) * 45 + 1e-5).sqrt()
    torch.testing.assert_close(convolution(x), F.conv2d(x, standard, padding=1))
    before = convolution(x)
    with torch.no_grad():
        convolution.weight.mul_(8).add_(0.5)
    torch.testing.assert_close(convolution(x), before, rtol=1e-3, atol=1e-3)  # but for the epsilon


@pytest.mark.parametrize("groups", [1, 8])
def test_norms_of_maps_are_group_norms_that_keep_the_dtype(groups: int) -> None:
    norm, plain = MapNorm(16, groups), nn.GroupNorm(groups, 16)
    weights = {"weight": torch.randn(16), "bias": torch.randn(16)}
    norm.load_state_dict(weights)
    plain.load_state_dict(weights)
    x = torch.randn(2, 16, 5, 5) * 3 + 1
    torch.testing.assert_close(norm(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        low = norm(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), plain(x.bfloat16().float()), rtol=2e-2, atol=2e-2)
