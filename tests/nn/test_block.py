"""The activation that compiled code computes in a form of its own."""

import pytest
import torch
import torch.nn.functional as F

from bedplate.nn.block import gelu_tanh


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_gelu_tanh_is_the_same_function_where_compiled(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float
) -> None:
    x = torch.linspace(-12, 12, 2001, dtype=dtype, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    expected = F.gelu(exact, approximate="tanh")
    (expected_grad,) = torch.autograd.grad(expected.sum(), exact)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    y = gelu_tanh(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=tolerance, atol=tolerance)
