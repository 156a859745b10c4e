"""The fused linear head against PyTorch's plain cross-entropy."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.nn.heads import IGNORE, Kernel, cross_entropy_by_token, fusible, in_buffers, linear_cross_entropy


def inputs(shape: tuple[int, ...] = (2, 11), ignored: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = 3 * torch.randn(*shape, 8, generator=generator)
    weight = torch.randn(13, 8, generator=generator)
    targets = torch.randint(0, 13, shape, generator=generator)
    targets[0, :2] = torch.tensor([0, 12])  # the first and the last of the vocabulary are among them
    targets[torch.rand(shape, generator=generator) < ignored] = IGNORE
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(
        F.linear(hidden, weight).flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )


@pytest.mark.parametrize("rows", [1, 3, 22, 512])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.1])
@pytest.mark.parametrize("scale", [1.0, 0.37])
@pytest.mark.parametrize("kernel", [in_buffers, fusible])
def test_value_and_gradients(rows: int, ignored: float, scale: float, kernel: Kernel) -> None:
    hidden, weight, targets = inputs(ignored=ignored)
    total, count = linear_cross_entropy(hidden, weight, targets, rows, kernel)
    expected = plain(hidden, weight, targets)
    assert count == (targets != IGNORE).sum()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(total * scale, (hidden, weight)),
        torch.autograd.grad(expected * scale, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (ignored <= 1) or (total == 0 and count == 0)


def test_huge_logits_stay_finite() -> None:
    hidden, weight, targets = inputs()
    with torch.no_grad():
        hidden *= 1e4
    total, _ = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(total, plain(hidden, weight, targets))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(total, (hidden, weight)))


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_frozen_inputs(frozen: str) -> None:
    hidden, weight, targets = inputs()
    hidden.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "hidden")
    total, _ = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(total, plain(hidden, weight, targets))
    for tensor in (hidden, weight):
        if tensor.requires_grad:
            (expected,) = torch.autograd.grad(plain(hidden, weight, targets), tensor)
            torch.testing.assert_close(torch.autograd.grad(total, tensor, retain_graph=True)[0], expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: type) -> None:
    hidden, weight, targets = inputs()
    with mode():
        total, _ = linear_cross_entropy(hidden, weight, targets)
        torch.testing.assert_close(total, plain(hidden, weight, targets))
    assert not total.requires_grad


def test_low_precision_is_near_and_gradients_keep_their_types() -> None:
    hidden, weight, targets = inputs()
    expected = plain(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_cross_entropy(hidden, weight, targets)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=0.02, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(total, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.03 * theirs.norm()
    low, low_weight = hidden.detach().bfloat16().requires_grad_(), weight.detach().bfloat16().requires_grad_()
    total, _ = linear_cross_entropy(low, low_weight, targets)
    torch.testing.assert_close(total, expected, rtol=0.02, atol=0)
    assert {grad.dtype for grad in torch.autograd.grad(total, (low, low_weight))} == {torch.bfloat16}


def test_by_token() -> None:
    hidden, weight, targets = inputs()
    losses = cross_entropy_by_token(F.linear(hidden, weight), targets)
    assert losses.shape == targets.shape and (losses[targets == IGNORE] == 0).all()
    torch.testing.assert_close(losses.sum(), plain(hidden, weight, targets))
