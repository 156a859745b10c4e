"""Matrix products of a few rows: one pass over the matrix, at the speed of the memory where the libraries allow it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate
from threading import Lock
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

GEMV_ROWS = 2  # on the CPU: up to so many 16-bit rows, ATen's own product is faster than oneDNN's without tiles (AMX)
MKL_ROWS = 4  # up to so many fp32 rows, MKL is faster when asked for the transposed result
WIDE_ROWS, WIDE_BLOCK = 4, 512  # of that many rows on, fp32 products of so many of a matrix's rows at a time
PACKED_STEPS = 32  # packing the matrices for more rows takes as long as a dozen steps,
PACKED_BYTES = 2**30  # and as much memory again


class _Switch:
    """Who of this process's threads has oneDNN turned off."""

    def __init__(self) -> None:
        self.lock, self.users, self.before = Lock(), 0, True


_switch = _Switch()


class Product(NamedTuple):
    """`x W^T + b`: the matrix `(out, in)` or what oneDNN packed it into, its transposed view, and the bias `(out,)`."""

    weight: Tensor
    across: Tensor | None
    bias: Tensor | None

    @staticmethod
    def of(*linears: nn.Linear, pack: bool = False) -> Product:
        """Several products of the same input as one, whose results lie beside each other."""
        weights: list[Tensor] = [m.weight for m in linears]
        biases: list[Tensor] = [m.bias for m in linears if m.bias is not None]
        if pack:
            return Product(packed(torch.cat(weights)), None, torch.cat(biases) if biases else None)
        weight = _side_by_side(*weights)
        return Product(weight, weight.t(), _side_by_side(*biases) if biases else None)

    def into(self, out: Tensor, x: Tensor) -> Tensor:
        """The product of a few rows `x (B, in)`, written into `out (B, out)`; in fp32 in the form that MKL is fast for.

        Its product of one row runs on one thread (14 of 38 GB/s), that of a batch of blocks on all of them.
        """
        weight, across, bias = self
        if across is None:
            return out.copy_(torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
        if x.dtype == torch.float32 and len(x) <= MKL_ROWS and not x.is_cuda and torch.backends.mkl.is_available():
            _by_mkl(out, x, weight)
            return out if bias is None else out.add_(bias)
        if len(x) == 1 and x.is_cpu and by_tiles(x.dtype):
            _by_tiles(out, x, weight)
            return out if bias is None else out.add_(bias)
        return torch.mm(x, across, out=out) if bias is None else torch.addmm(bias, x, across, out=out)


def _by_mkl(out: Tensor, x: Tensor, weight: Tensor) -> None:
    if len(x) > 1:
        torch.mm(weight, x.t(), out=out.t())
        return
    _in_blocks(out, x, weight)


def by_tiles(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies numbers of this type in tiles (AMX), so that oneDNN is the faster for one row too."""
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported() and torch._C._get_mkldnn_enabled()


def _by_tiles(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """One row in the form that oneDNN is fast for: 13 to 30 of 30 GB/s, where its `linear` has 8 to 12."""
    if len(weight) >= 2 * weight.shape[1]:
        _in_blocks(out, x, weight)
    else:
        torch.mv(weight, x[0], out=out[0])


def _in_blocks(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """One row by a batch of blocks of the matrix, one for each thread."""
    blocks = min(max(2, torch.get_num_threads()), len(weight))
    rows, rest = divmod(len(weight), blocks)
    if rest:
        torch.mm(x, weight[-rest:].t(), out=out[:, -rest:])
        out, weight = out[:, :-rest], weight[:-rest]
    torch.bmm(weight.view(blocks, rows, -1), x.expand(blocks, 1, -1).mT, out=out.view(blocks, rows, 1))


def packing_pays(module: nn.Module, batch_size: int, steps: int) -> bool:
    """Whether packed matrices save more than packing them takes: with three rows and more, half of a step."""
    matrices = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    dtype = matrices[0].dtype
    return (
        batch_size > GEMV_ROWS
        and steps >= PACKED_STEPS
        and sum(matrix.nbytes for matrix in matrices) <= PACKED_BYTES
        and torch.backends.mkldnn.is_available()
        and (dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    )


def packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


@contextmanager
def without_onednn() -> Iterator[None]:
    """16-bit products of one or two rows by ATen itself, which reads the matrix once at the speed of the memory.

    Without tiles (AMX) oneDNN reaches 15 of 38 GB/s; with them it is asked in another form (`_by_tiles`). Where it has
    no bf16, ATen is used anyway.
    The switch is the process's: another thread's products take the same way meanwhile, and many rows are slower there.
    """
    with _switch.lock:
        if _switch.users == 0:
            _switch.before = torch._C._get_mkldnn_enabled()
            torch._C._set_mkldnn_enabled(False)
        _switch.users += 1
    try:
        yield
    finally:
        with _switch.lock:
            _switch.users -= 1
            if _switch.users == 0:
                torch._C._set_mkldnn_enabled(_switch.before)


class _Widened(TorchFunctionMode):
    """Takes 16-bit products of many rows in fp32, a block of the matrix at a time, which stays in the cache."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and args[1].dtype in (torch.bfloat16, torch.float16):
            x, weight, bias = (*args, None)[:3]
            if x.numel() // x.shape[-1] >= WIDE_ROWS:
                wide = x.float()
                parts = [F.linear(wide, block.float()).to(x.dtype) for block in weight.split(WIDE_BLOCK)]
                out = torch.cat(parts, -1)
                return out if bias is None else out.add_(bias)
        return func(*args, **(kwargs or {}))


def many_rows(like: Tensor) -> AbstractContextManager[object]:
    """Where the CPU multiplies no 16-bit numbers itself, products of many rows are taken in fp32; elsewhere nothing.

    There the libraries widen each number every time that it is multiplied: at 79 rows a third of the speed.
    """
    if like.device.type != "cpu" or like.dtype not in (torch.bfloat16, torch.float16):
        return nullcontext()
    if not torch.backends.mkldnn.is_available():  # and who else multiplies them is not known
        return _Widened()
    onednn = torch.ops.mkldnn
    is_bf16 = like.dtype == torch.bfloat16
    supported = onednn._is_mkldnn_bf16_supported() if is_bf16 else onednn._is_mkldnn_fp16_supported()
    return nullcontext() if supported else _Widened()


def _side_by_side(*parameters: Tensor) -> Tensor:
    """The parameters below each other in one tensor, which they become views of, where they are not yet.

    So nothing is held twice, and what is trained or loaded in place is seen in both.
    """
    first, rows = parameters[0], [len(parameter) for parameter in parameters]
    starts = [first.storage_offset() + start * first[0].numel() for start in accumulate(rows[:-1], initial=0)]
    found = {(parameter.untyped_storage().data_ptr(), parameter.is_contiguous()) for parameter in parameters}
    beside = [parameter.storage_offset() for parameter in parameters] == starts
    if beside and found == {(first.untyped_storage().data_ptr(), True)}:
        return first.detach().as_strided((sum(rows), *first.shape[1:]), first.stride())
    with torch.inference_mode(False), torch.no_grad():
        joined = torch.cat(parameters)
        for parameter, part in zip(parameters, joined.split(rows), strict=True):
            parameter.data = part
    return joined
