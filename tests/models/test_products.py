"""Products of many 16-bit rows on a CPU that multiplies no 16-bit numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bedplate.models import products

SUPPORTED = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


@pytest.fixture(params=SUPPORTED, ids=str)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    monkeypatch.setattr(torch.ops.mkldnn, SUPPORTED[request.param], lambda: False)
    return request.param


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, products.WIDE_ROWS, 37])
def test_products_are_those_of_fp32_rounded_once(dtype: torch.dtype, rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, products.WIDE_BLOCK + 33, bias=bias, dtype=dtype)
    x = torch.randn(2, rows, 96, dtype=dtype)
    with torch.no_grad(), products.many_rows(linear.weight):
        got = linear(x)
    wanted = F.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_fp32_and_cpus_with_such_numbers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not isinstance(products.many_rows(torch.zeros(1)), products._Widened)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert not isinstance(products.many_rows(torch.zeros(1, dtype=torch.bfloat16)), products._Widened)


def test_more_threads_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 96)
    weight, x, out = torch.randn(64, 32), torch.randn(1, 32), torch.empty(1, 64)
    products._in_blocks(out, x, weight)
    torch.testing.assert_close(out, x @ weight.t())
