"""FSQ: codes and values are the same thing, gradients pass; the tokenizer: shapes, determinism, bad sizes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bedplate.errors import InputError
from bedplate.models.image_tokenizer import FSQ, ImageTokenizer, ImageTokenizerConfig

LEVELS = st.lists(st.integers(3, 9), min_size=1, max_size=4).map(tuple)
TINY = ImageTokenizerConfig((16, 24), patch=4, levels=(5, 4, 3), width=32)


@given(LEVELS)
def test_codes_and_values_are_one_to_one(levels: tuple[int, ...]) -> None:
    quantizer, codes = FSQ(levels), torch.arange(math.prod(levels))
    values = quantizer.values(codes)
    assert torch.equal(quantizer.codes(values), codes)
    assert len(values.unique(dim=0)) == len(codes)
    assert values.abs().max() <= 1


@given(LEVELS, st.floats(0.01, 1000), st.integers(0, 2**31))
def test_whatever_comes_in_becomes_a_value_of_the_codebook(levels: tuple[int, ...], scale: float, seed: int) -> None:
    quantizer = FSQ(levels)
    z = torch.randn(64, len(levels), generator=torch.Generator().manual_seed(seed)) * scale
    values = quantizer(z)
    codes = quantizer.codes(values)
    assert int(codes.min()) >= 0 and int(codes.max()) < math.prod(levels)
    torch.testing.assert_close(quantizer.values(codes), values)


@given(LEVELS)
def test_zero_is_the_middle_and_every_level_is_reached(levels: tuple[int, ...]) -> None:
    quantizer = FSQ(levels)
    bounded = (torch.zeros(len(levels)) + quantizer.shift).tanh() * quantizer.half - quantizer.offset
    torch.testing.assert_close(bounded, torch.zeros(len(levels)), atol=1e-5, rtol=0)
    z = torch.linspace(-8, 8, 4001)[:, None].expand(-1, len(levels))
    for column, level in zip(quantizer(z).unbind(1), levels, strict=True):
        assert len(column.unique()) == level
        assert (column.diff() >= 0).all()


def test_the_gradient_passes_the_rounding_as_that_of_the_bound() -> None:
    quantizer = FSQ((8, 5))
    z = torch.randn(10, 2, requires_grad=True)
    quantizer(z).sum().backward()
    expected = (1 - (z.detach() + quantizer.shift).tanh() ** 2) * quantizer.half / quantizer.centre
    assert z.grad is not None
    torch.testing.assert_close(z.grad, expected)


def test_a_picture_through_its_codes_is_the_forward_pass() -> None:
    module = ImageTokenizer(TINY)
    module.init_weights(1)
    pixels = torch.randn(3, 3, 16, 24)
    codes = module.encode(pixels)
    assert codes.shape == (3, 4, 6) and codes.dtype == torch.int64
    assert module.codebook_size == 60 and int(codes.max()) < 60
    torch.testing.assert_close(module.decode(codes), module(pixels))
    torch.testing.assert_close(module(pixels[1:2]), module(pixels)[1:2], atol=1e-5, rtol=1e-5)


def test_every_weight_learns() -> None:
    module = ImageTokenizer(TINY)
    module.init_weights(0)
    for name, parameter in module.named_parameters():
        if name.endswith("second.weight"):
            torch.nn.init.constant_(parameter, 0.1)  # what begins as zero hides what stands before it
    pixels = torch.randn(4, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    (module(pixels) - pixels).square().mean().backward()
    dead = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead


def test_fresh_weights_follow_from_the_seed() -> None:
    first, second, third = (ImageTokenizer(TINY) for _ in range(3))
    for module, seed in ((first, 3), (second, 3), (third, 4)):
        module.init_weights(seed)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.to_pixels.weight, third.to_pixels.weight)


def test_flops_are_those_that_are_counted() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    module = ImageTokenizer(TINY)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.randn(1, 3, 16, 24))
    assert module.flops_per_image() == 3 * counter.get_total_flops()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"patch": 6}, "power of two"),
        ({"patch": 32}, "multiple of patch"),
        ({"levels": (2, 5)}, "from 3 to 256"),
        ({"levels": ()}, "from 3 to 256"),
        ({"width": 40}, "multiple of 16"),
    ],
)
def test_bad_shapes_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ImageTokenizerConfig((16, 24), **values)  # type: ignore[arg-type]
