"""Attention in batched products, as bf16 trains on a CPU, against PyTorch's own kernel."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.models.gpt import GPT, GPTConfig
from bedplate.models.vit import VisionConfig, VisionModel
from bedplate.nn import attention
from bedplate.nn.attention import _written_out
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS

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


def test_dropout_is_that_of_the_weights() -> None:
    heads = [torch.randn(3, 2, N, 16, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3)]
    results = []
    for ours in (True, False):
        q, k, v = (x.clone().requires_grad_() for x in heads)
        torch.manual_seed(0)
        if ours:
            out = _written_out(q, k, v, None, False, dropout=0.4)
        else:
            weights = torch.softmax(torch.matmul(q * 0.25, k.transpose(2, 3)), -1)
            out = torch.matmul(weights * F.dropout(torch.ones_like(weights), 0.4), v)
        out.float().square().sum().backward()
        results.append([out.float(), q.grad, k.grad, v.grad])
    for found, expected in zip(*results, strict=True):
        assert found is not None and expected is not None
        assert (found - expected).norm() / expected.norm() < 0.02


@pytest.mark.slow
def test_compiled_blocks_have_the_gradients_of_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchInductor 2.13 made NaN of attention in bf16 that it fused with QK-norm and rotation."""
    monkeypatch.setattr(attention, "CPU_HAS_BF16", True)
    sizes = dict(vocab_size=300, max_position_embeddings=64, hidden_size=128, num_hidden_layers=2)
    plain = GPT(GPTConfig.from_preset("qwen3", num_attention_heads=2, **sizes))
    for number, parameter in enumerate(plain.parameters()):
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(number))
    compiled = copy.deepcopy(plain)
    for block in compiled.trunk.blocks:
        block.compile()
    ids, targets = torch.randint(0, 300, (2, 4, 64), generator=torch.Generator().manual_seed(0))
    at = torch.arange(0, 60, 6).expand(4, -1)
    for loss in (lambda gpt: gpt.loss(ids, targets), lambda gpt: gpt.masked_loss(ids, at, targets[:, :10])):
        found, expected = [], []
        for gpt, gradients in ((compiled, found), (plain, expected)):
            with torch.autocast("cpu", torch.bfloat16):
                nats, count = loss(gpt)
            gradients.extend(torch.autograd.grad(nats / count, list(gpt.parameters())))
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() <= 0.05 * other.norm()  # NaN fails


@pytest.mark.skipif(not attention.CPU_HAS_BF16, reason="this CPU multiplies no bf16")
@pytest.mark.parametrize("size", [16, 80])
def test_pictures_are_read_as_they_were_trained_on(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients the hidden states are to the bit those of training up to 256 keys, and the kernel's beyond."""
    trunk = TrunkConfig(32, 2, 2, 2, 16, 64, **PRESETS["vit"])
    module = VisionModel(VisionConfig((size, size), 4, trunk)).eval()
    module.init_weights(seed=0)
    for name, weight in module.named_parameters():
        if name.endswith("o_proj.weight"):
            torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(2))
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    fused: list[int] = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: fused.append(1) or kernel(*a, **k))
    with torch.autocast("cpu", torch.bfloat16):
        trained = module(pixels)
        fused.clear()
        with torch.no_grad():
            read = module(pixels)
    few = 1 + (size // 4) ** 2 <= attention.READ_WRITTEN_OUT
    assert bool(fused) != few
    assert torch.equal(read, trained) if few else (read - trained).norm() / trained.norm() < 0.01
    with torch.no_grad():
        module(pixels)
    assert fused, "fp32 takes the kernel"
