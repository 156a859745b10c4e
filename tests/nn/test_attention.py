"""Attention in batched products, as bf16 trains on a CPU, against PyTorch's own kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.nn import attention
from bedplate.nn.attention import Attention, Context, _written_out
from bedplate.nn.config import TrunkConfig
from bedplate.nn.span import Span

N = 17


def _seen() -> Tensor:
    seen = torch.rand(3, 1, N, N, generator=torch.Generator().manual_seed(1)) > 0.5
    return seen | torch.eye(N, dtype=torch.bool)


@pytest.mark.parametrize(("mask", "is_causal"), [(None, True), (None, False), (_seen(), False)])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_values_and_gradients_are_those_of_the_fused_kernel(
    mask: Tensor | None, is_causal: bool, key_heads: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(3, h, N, 16, generator=generator) for h in (4, key_heads, key_heads)]
    results = []
    for attend in ("ours", "theirs"):
        q, k, v = (x.clone().requires_grad_() for x in heads)
        if attend == "ours":
            out = _written_out(q, k, v, mask, is_causal)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=True)
        out.float().square().sum().backward()
        results.append([out.float(), q.grad, k.grad, v.grad])
    for found, expected in zip(*results, strict=True):
        assert found is not None and expected is not None
        assert (found - expected).norm() / expected.norm() < 0.02  # bf16 has 8 bits


def test_padding_that_sees_nothing_stays_finite() -> None:
    q, k, v = (torch.randn(1, 2, N, 8, requires_grad=True) for _ in range(3))
    mask = torch.ones(1, 1, N, N, dtype=torch.bool)
    mask[..., 3, :] = False
    out = _written_out(q, k, v, mask, False)
    out.float().sum().backward()
    assert all(x.isfinite().all() for x in (out, q.grad, k.grad, v.grad) if x is not None)


def test_both_ways_compile_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Attention(TrunkConfig(16, 1, 2, 2, 8, 32), 0), torch.randn(2, N, 16)

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x, Context.of(Span.full(x), None, None))

    for has_bf16 in (True, False):
        monkeypatch.setattr(attention, "CPU_HAS_BF16", has_bf16)
        torch._dynamo.reset()
        assert torch._dynamo.explain(forward)(x).graph_break_count == 0
