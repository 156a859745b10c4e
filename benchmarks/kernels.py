"""Forward and backward of the operations that bedplate writes itself, beside PyTorch's own ways, in one process.

    python benchmarks/kernels.py [--threads 1]

Prints the median milliseconds of each, interleaved, and the ratio to the first row of its group.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.nn.heads import linear_cross_entropy
from bedplate.nn.norm import RMSNorm
from bedplate.nn.rotary import RopeConfig, Rotary, rotate
from bedplate.train.muon import orthogonalize


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    c, s = cos[..., :half], sin[..., half:]
    return torch.cat((a * c - b * s, b * c + a * s), -1)


def compare(title: str, ways: dict[str, Callable[[], Tensor]], rounds: int = 15) -> None:
    """Time each way with its backward pass, the ways taking turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name, way in ways.items():
            start = time.perf_counter()
            out = way()
            if out.requires_grad:
                out.backward(torch.ones_like(out))
            if number >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    print(title)
    first = statistics.median(next(iter(times.values())))
    for name, each in times.items():
        median = statistics.median(each)
        print(f"  {name:<46} {median:8.2f} ms  ({min(each):.2f} .. {max(each):.2f})  x {first / median:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    torch.manual_seed(0)

    x = torch.randn(8, 256, 384, requires_grad=True)
    norm = RMSNorm(384, 1e-6)
    compare(
        "RMSNorm, 8 x 256 x 384",
        {"torch rms_norm": lambda: F.rms_norm(x, (384,), norm.weight, 1e-6), "bedplate": lambda: norm(x)},
    )

    q = torch.randn(8, 256, 6, 64, requires_grad=True)
    cos, sin = Rotary(RopeConfig(), 64).tables(torch.arange(256))
    compare(
        "rotary positions, 8 x 256 x 6 x 64",
        {"plain autograd": lambda: plain_rotate(q, cos, sin), "bedplate": lambda: rotate(q, cos, sin)},
    )

    weight = torch.randn(8192, 384, requires_grad=True)
    targets = torch.randint(0, 8192, (8, 256))
    compare(
        "head and cross-entropy, 2,048 rows x 384, 8,192 tokens",
        {
            "torch cross_entropy of all logits": lambda: F.cross_entropy(
                (x @ weight.t()).flatten(0, 1), targets.flatten(), reduction="sum"
            ),
            "bedplate": lambda: linear_cross_entropy(x, weight, targets)[0],
        },
    )

    stack = torch.randn(24, 384, 384)
    compare(
        "Newton-Schulz of 24 matrices 384 x 384, fp32",
        {
            "one by one": lambda: torch.cat([orthogonalize(matrix[None]) for matrix in stack]),
            "bedplate, batched": lambda: orthogonalize(stack),
        },
    )


if __name__ == "__main__":
    main()
