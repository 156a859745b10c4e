"""The trunk's invariants: whatever way a span takes through kernels, caches and padding, the numbers are the same."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bedplate.nn.attention import Context
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS
from bedplate.nn.span import Span
from bedplate.nn.trunk import Trunk

D = 16
# Two layers each, so that what a token must not see could also reach it through a neighbour.
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {"preset": "gpt2"},
    "llama": {"preset": "llama"},
    "qwen3": {"preset": "qwen3"},
    "qwen3-gqa": {"preset": "qwen3", "num_key_value_heads": 2},
    "llama-window": {"preset": "llama", "windows": (3, None)},
}
VARIANT = pytest.mark.parametrize("variant", VARIANTS)
PROPERTY = settings(deadline=None, derandomize=True, max_examples=12)
SEEDS = st.integers(0, 2**20)


def randomize(module: nn.Module, seed: int) -> None:
    """Weights that hide nothing: no output is zero, no gain is one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = "norm" in name and name.endswith("weight")
        parameter.data = 1 + 0.3 * noise if gain else noise / parameter.shape[-1] ** 0.5


def make_trunk(variant: str) -> Trunk:
    options = {"num_key_value_heads": 4, **VARIANTS[variant]}
    preset = PRESETS[options.pop("preset")]
    config = TrunkConfig(
        hidden_size=D,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=4,
        intermediate_size=24,
        **(preset | options),
    )
    trunk = Trunk(config).eval()
    randomize(trunk, seed=0)
    return trunk


TRUNKS = {variant: make_trunk(variant) for variant in VARIANTS}


def embeddings(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed))


def assert_same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=3e-5)


def right_padding(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def part(span: Span, start: int, stop: int) -> Span:
    """The tokens start to stop of a causal span without padding."""
    doc = None if span.doc is None else span.doc[:, start:stop]
    return replace(span, x=span.x[:, start:stop], pos=span.pos[start:stop], runs=((stop - start, 1),), doc=doc)


def chunked(trunk: Trunk, span: Span, sizes: list[int]) -> Tensor:
    cache = trunk.make_cache(span.x.shape[0], span.x.shape[1])
    out, start = [], 0
    for size in sizes:
        out.append(trunk(part(span, start, start + size), cache))
        start += size
    assert start == span.x.shape[1] == cache.length
    return torch.cat(out, 1)


@st.composite
def splits(draw: st.DrawFn, longest: int = 9) -> list[int]:
    """Sizes of chunks."""
    return draw(st.lists(st.integers(1, 4), min_size=1, max_size=longest).filter(lambda sizes: sum(sizes) <= 12))


@VARIANT
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("padded", [False, True])
def test_fused_paths_equal_the_mask_path_in_value_and_gradient(variant: str, step: int, padded: bool) -> None:
    trunk, results = TRUNKS[variant], []
    valid = right_padding([7, 4]) if padded else None
    for fused in (True, False):
        x = embeddings(2, 7, seed=1).requires_grad_()
        steps = {"runs": ((7, step),)} if fused else {"step": torch.full((2, 7), step)}
        span = Span(x, torch.arange(7), valid=valid, right_padded=padded, **steps)
        assert (span.kind != "mixed") == (fused and not (step == 0 and padded))
        out = trunk(span)
        out = out if valid is None else out[valid]
        trunk.zero_grad()
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        assert x.grad is not None
        results.append([out, x.grad, *(p.grad for p in trunk.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_common_spans_make_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.nn.attention.visible", lambda *_: pytest.fail("a mask was made"))
    trunk, x = TRUNKS["qwen3-gqa"], embeddings(2, 6, seed=0)
    trunk(Span.causal(x))
    trunk(Span.causal(x, valid=right_padding([6, 2]), right_padded=True))
    trunk(Span(x, torch.arange(6), runs=((6, 0),)))
    chunked(trunk, Span.causal(x), [4, 1, 1])
    TRUNKS["llama-window"](Span.causal(x[:, :4]))  # shorter than the window


def test_layers_share_a_mask() -> None:
    span = Span.causal(embeddings(1, 6, seed=0), doc=torch.ones(1, 6))
    ctx = Context.of(span, None, None)
    assert ctx.mask(None)[0] is ctx.mask(None)[0]
    assert ctx.mask(2)[0] is ctx.mask(2)[0] is not ctx.mask(None)[0]


@VARIANT
@PROPERTY
@given(sizes=splits(), seed=SEEDS)
@torch.no_grad()
def test_cached_equals_uncached(variant: str, sizes: list[int], seed: int) -> None:
    trunk, span = TRUNKS[variant], Span.causal(embeddings(2, sum(sizes), seed=seed))
    assert_same(chunked(trunk, span, sizes), trunk(span))


@VARIANT
@PROPERTY
@given(sizes=splits(), seed=SEEDS)
@torch.no_grad()
def test_cached_equals_uncached_with_documents(variant: str, sizes: list[int], seed: int) -> None:
    n = sum(sizes)
    doc = torch.randint(0, 3, (2, n), generator=torch.Generator().manual_seed(seed))
    span = Span.causal(embeddings(2, n, seed=seed), doc=doc)
    assert_same(chunked(TRUNKS[variant], span, sizes), TRUNKS[variant](span))


@VARIANT
@PROPERTY
@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=3), new=st.integers(1, 4), seed=SEEDS)
@torch.no_grad()
def test_decoding_behind_right_padding_equals_single_rows(
    variant: str, lengths: list[int], new: int, seed: int
) -> None:
    trunk, longest = TRUNKS[variant], max(lengths)
    prompts, tokens = embeddings(len(lengths), longest, seed=seed), embeddings(len(lengths), new, seed=seed + 1)
    cache = trunk.make_cache(len(lengths), longest + new)
    out = trunk(Span.causal(prompts, valid=right_padding(lengths), right_padded=True), cache)
    pos = torch.tensor(lengths)[:, None]
    decoded = torch.cat([trunk(Span.causal(tokens[:, t : t + 1], pos + t), cache) for t in range(new)], 1)
    for row, n in enumerate(lengths):
        alone = trunk(Span.causal(torch.cat([prompts[row, :n], tokens[row]])[None]))[0]
        assert_same(torch.cat([out[row, :n], decoded[row]]), alone)


@VARIANT
@PROPERTY
@given(
    lengths=st.lists(st.integers(1, 7), min_size=2, max_size=3),
    step=st.integers(0, 1),
    promised=st.booleans(),
    seed=SEEDS,
)
@torch.no_grad()
def test_padded_batch_equals_single_rows(
    variant: str, lengths: list[int], step: int, promised: bool, seed: int
) -> None:
    trunk, n = TRUNKS[variant], max(lengths)
    x, pos = embeddings(len(lengths), n, seed=seed), torch.arange(n)
    out = trunk(Span(x, pos, runs=((n, step),), valid=right_padding(lengths), right_padded=promised))
    for row, length in enumerate(lengths):
        assert_same(out[row, :length], trunk(Span(x[row : row + 1, :length], pos[:length], runs=((length, step),)))[0])


@VARIANT
@PROPERTY
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=SEEDS)
@torch.no_grad()
def test_packing_equals_separate_rows(variant: str, lengths: list[int], seed: int) -> None:
    trunk, x = TRUNKS[variant], embeddings(1, sum(lengths), seed=seed)
    doc = torch.cat([torch.full((n,), 1 + i) for i, n in enumerate(lengths)])[None]
    pos = torch.cat([torch.arange(n) for n in lengths])[None]
    alone = [trunk(Span.causal(text)) for text in x.split(lengths, 1)]
    assert_same(trunk(Span.causal(x, pos, doc=doc)), torch.cat(alone, 1))


@VARIANT
@PROPERTY
@given(
    prefix=st.integers(1, 4),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    step=st.integers(0, 1),
    cached=st.booleans(),
    seed=SEEDS,
)
@torch.no_grad()
def test_documents_over_a_shared_prefix_equal_separate_rows(
    variant: str, prefix: int, lengths: list[int], step: int, cached: bool, seed: int
) -> None:
    """As several questions on one image: a prefix of step 0 or 1, and texts that see it but not each other."""
    trunk, n = TRUNKS[variant], sum(lengths)
    x = embeddings(1, prefix + n, seed=seed)
    doc = torch.cat([torch.zeros(prefix), *(torch.full((m,), 1 + i) for i, m in enumerate(lengths))])[None].long()
    pos = torch.cat([torch.arange(prefix), *(prefix + torch.arange(m) for m in lengths)])[None]
    if cached:
        cache = trunk.make_cache(1, prefix + n)
        first = trunk(Span(x[:, :prefix], pos[:, :prefix], runs=((prefix, step),)), cache)
        out = torch.cat([first, trunk(Span.causal(x[:, prefix:], pos[:, prefix:], doc=doc[:, prefix:]), cache)], 1)
    else:
        out = trunk(Span(x, pos, runs=((prefix, step), (n, 1)), doc=doc))
    start = prefix
    for m in lengths:
        text = torch.cat([x[:, :prefix], x[:, start : start + m]], 1)
        alone = trunk(Span(text, torch.arange(prefix + m), runs=((prefix, step), (m, 1))))
        assert_same(torch.cat([out[:, :prefix], out[:, start : start + m]], 1), alone)
        start += m


@VARIANT
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("promised", [False, True])
def test_rows_of_padding_only_are_finite(variant: str, step: int, promised: bool) -> None:
    trunk, x = TRUNKS[variant], embeddings(2, 5, seed=0).requires_grad_()
    valid = torch.tensor([[True] * 5, [False] * 5])
    for doc in (None, torch.ones(2, 5)):
        out = trunk(Span(x, torch.arange(5), runs=((5, step),), valid=valid, doc=doc, right_padded=promised))
        trunk.zero_grad()
        out.sum().backward()
        assert x.grad is not None and out.isfinite().all() and x.grad.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trunk.parameters())


@VARIANT
def test_left_padding_changes_nothing_but_costs_a_mask(variant: str) -> None:
    trunk, x = TRUNKS[variant], embeddings(1, 6, seed=0)
    valid = torch.tensor([[False, False, True, True, True, True]])
    out = trunk(Span.causal(x, torch.arange(-2, 4)[None], valid=valid))
    assert_same(out[:, 2:], trunk(Span.causal(x[:, 2:])))


def test_the_cache_holds_what_it_was_made_for() -> None:
    cache = TRUNKS["llama"].make_cache(2, 4)
    with pytest.raises(AssertionError, match="holds 4 tokens, 5 are needed"):
        TRUNKS["llama"](Span.causal(embeddings(2, 5, seed=0)), cache)
    with pytest.raises(AssertionError, match="holds 2 rows, the span 1"):
        TRUNKS["llama"](Span.causal(embeddings(1, 2, seed=0)), cache)


@pytest.mark.parametrize(
    ("preset", "formula"),
    [
        ("qwen3", lambda mlp, x: mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))),
        ("gpt2", lambda mlp, x: mlp.down_proj(F.gelu(mlp.up_proj(x), approximate="tanh"))),
    ],
)
def test_mlp_is_the_formula(preset: str, formula: Callable[[nn.Module, Tensor], Tensor]) -> None:
    mlp, x = TRUNKS[preset].blocks[0].get_submodule("mlp"), embeddings(2, 3, seed=0)
    torch.testing.assert_close(mlp(x), formula(mlp, x))


@VARIANT
@torch.no_grad()
def test_every_weight_of_these_tests_matters(variant: str) -> None:
    """Zero outputs into the residual stream (as fresh Qwen3 weights have) would make every test above pass."""
    trunk, span = make_trunk(variant), Span.causal(embeddings(1, 6, seed=0))
    before = trunk(span)
    for name, parameter in trunk.named_parameters():
        kept = parameter.clone()
        parameter.zero_()
        # A bias of the keys adds the same to all scores of a query.
        assert name.endswith("k_proj.bias") or (trunk(span) - before).abs().max() > 0.01, name
        parameter.copy_(kept)


def test_dropout_is_for_training_only() -> None:
    trunk = make_trunk("gpt2")
    trunk = Trunk(replace(trunk.config, dropout=0.5))
    span = Span.causal(embeddings(1, 6, seed=0))
    assert not torch.equal(trunk(span), trunk(span))
    assert torch.equal(trunk.eval()(span), trunk(span))
