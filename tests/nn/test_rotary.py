"""Rotary positions and the norm, against their formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.nn.norm import RMSNorm
from bedplate.nn.rotary import RopeConfig, Rotary, inverse_frequencies, rotate

TYPES = [
    RopeConfig(),
    RopeConfig("linear", factor=4.0),
    RopeConfig("llama3", rope_theta=500_000.0, factor=8.0, original_max_position_embeddings=64),
    RopeConfig("yarn", factor=4.0, original_max_position_embeddings=64),
]
HEAD_DIM = 8


def turned(config: RopeConfig, x: torch.Tensor, *positions: int) -> torch.Tensor:
    return rotate(x.expand(1, len(positions), 1, HEAD_DIM), *Rotary(config, HEAD_DIM).tables(torch.tensor(positions)))


@pytest.mark.parametrize("config", TYPES, ids=lambda config: config.rope_type)
@settings(deadline=None, derandomize=True, max_examples=20)
@given(i=st.integers(0, 500), j=st.integers(0, 500), shift=st.integers(0, 500), seed=st.integers(0, 999))
def test_scores_depend_on_distance_only(config: RopeConfig, i: int, j: int, shift: int, seed: int) -> None:
    q, k = torch.randn(2, HEAD_DIM, generator=torch.Generator().manual_seed(seed))
    here = (turned(config, q, i) * turned(config, k, j)).sum()
    there = (turned(config, q, i + shift) * turned(config, k, j + shift)).sum()
    torch.testing.assert_close(here, there, rtol=0, atol=2e-3)


@pytest.mark.parametrize("config", TYPES, ids=lambda config: config.rope_type)
def test_norm_is_kept_but_for_yarn_which_sharpens(config: RopeConfig) -> None:
    x = torch.randn(HEAD_DIM, generator=torch.Generator().manual_seed(0))
    scale = 0.1 * math.log(4) + 1 if config.rope_type == "yarn" else 1.0
    norms = turned(config, x, 0, 1, 77, 4000).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, scale * float(x.norm())))


def test_rotation_is_the_formula() -> None:
    """Pair (x_i, x_{i + d/2}) is turned by pos * theta^(-2i/d), as complex numbers are."""
    x, up = torch.randn(2, 2, 5, 3, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    x, pos = x.requires_grad_(), torch.tensor([0, 1, 2, 7, 100])
    angle = pos[:, None] * 10_000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    z = torch.complex(*x.chunk(2, -1)) * torch.exp(1j * angle)[:, None]
    expected, found = torch.cat((z.real, z.imag), -1), rotate(x, *Rotary(RopeConfig(), HEAD_DIM).tables(pos))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, x, up), torch.autograd.grad(expected, x, up))


def test_positions_by_row() -> None:
    x, pos = torch.randn(2, 3, 1, HEAD_DIM), torch.tensor([[0, 1, 2], [5, 0, 9]])
    rotary = Rotary(RopeConfig(), HEAD_DIM)
    for row in range(2):
        alone = rotate(x[row : row + 1], *rotary.tables(pos[row]))
        assert torch.equal(rotate(x, *rotary.tables(pos))[row], alone[0])


def test_stretching() -> None:
    """Linear divides all frequencies; llama3 and yarn keep the fastest, divide the slowest and blend between."""
    plain, _ = inverse_frequencies(RopeConfig(), 64)
    for config in TYPES[1:]:
        base, _ = inverse_frequencies(RopeConfig(rope_theta=config.rope_theta), 64)
        inv, _ = inverse_frequencies(config, 64)
        assert ((inv <= base * 1.0001) & (inv >= base / config.factor * 0.9999)).all()
        torch.testing.assert_close(inv[-1], base[-1] / config.factor)
        if config.rope_type != "linear":
            torch.testing.assert_close(inv[0], base[0])
    torch.testing.assert_close(inverse_frequencies(TYPES[1], 64)[0], plain / 4)


def test_tables_are_fp32_on_any_default() -> None:
    with torch.device("meta"):
        rotary = Rotary(RopeConfig(), HEAD_DIM)
    cos, sin = rotary.tables(torch.arange(3))
    assert cos.dtype == sin.dtype == torch.float32 and cos.device.type == "cpu"
    assert rotate(torch.zeros(1, 3, 1, HEAD_DIM, dtype=torch.bfloat16), cos, sin).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    norm, x = RMSNorm(6, eps=0.1), (5 * torch.randn(4, 3, 6, generator=generator)).to(dtype).requires_grad_()
    norm.weight.data = torch.randn(6, generator=generator)
    out = norm(x)
    exact = x.double()
    expected = exact / (exact.square().mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight.double()
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    up = torch.linspace(-1, 1, out.numel()).view_as(out)
    ours = torch.autograd.grad(out.double(), (x, norm.weight), up.double(), retain_graph=True)
    theirs = torch.autograd.grad(expected, (x, norm.weight), up.double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=4 * tolerance, atol=4 * tolerance)


def test_rms_norm_of_large_and_zero_values() -> None:
    norm = RMSNorm(4, eps=1e-6)
    assert norm(torch.zeros(1, 4)).eq(0).all()
    torch.testing.assert_close(norm(torch.full((1, 4), 3e4)), torch.ones(1, 4))
