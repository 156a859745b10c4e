"""What this machine is and how it multiplies: device, threads, precision, measured speed."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from bedplate.data.cores import available_cores
from bedplate.errors import InputError
from bedplate.recipe.schema import LoopRecipe

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@dataclass(frozen=True)
class Hardware:
    """The chosen device and precision, and why."""

    device: torch.device
    dtype: torch.dtype  # of matrix products
    threads: int
    reason: str

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in bf16, weights and sums in fp32; nothing at all for fp32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        threads = f", {self.threads} threads" if self.device.type == "cpu" else ""
        return f"{name}{threads}, {'bf16' if self.dtype == torch.bfloat16 else 'fp32'} ({self.reason})"


def choose_hardware(recipe: LoopRecipe) -> Hardware:
    """Resolve `train.device`, `train.threads` and `train.precision`, and set the thread count.

    Raises:
        InputError: a device that this machine does not have.
    """
    asked = "OMP_NUM_THREADS" in os.environ  # PyTorch has followed it already
    threads = recipe.threads or (torch.get_num_threads() if asked else available_cores())
    torch.set_num_threads(threads)
    device = choose_device(recipe.device)
    if device.type == "cpu":
        keep_freed_memory()
    if recipe.precision != "auto":
        return Hardware(device, torch.bfloat16 if recipe.precision == "bf16" else torch.float32, threads, "as asked")
    if multiplies_bf16(device):
        return Hardware(device, torch.bfloat16, threads, "this hardware multiplies bf16")
    return Hardware(device, torch.float32, threads, "this hardware has no bf16 multiplication")


def choose_device(name: str) -> torch.device:
    """The device of that name, or for "auto" the first GPU, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name, False):
        raise InputError(f"device {name} is not available to PyTorch here; use auto")
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # of the processes that torchrun started on this machine
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies bf16. Emulation, which is slower than fp32, does not count."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one.

    It would give blocks of 32 MiB and more back to the system, which clears every page before it hands it out again.
    Where `MALLOC_...` is set in the environment, that holds.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def matmul_ceiling(hardware: Hardware, largest: int = 8192, seconds: float = 0.03, repeats: int = 3) -> float:
    """FLOP/s of a large square matrix product: what model FLOPs utilisation is measured against.

    Sizes double until one product takes `seconds`, so that slow hardware answers at once too; each counts with the best
    of `repeats`.
    """
    ceiling, n, best = 0.0, 256, 0.0
    while n <= largest and best < seconds:
        a, b = (torch.randn(n, n, device=hardware.device, dtype=hardware.dtype) for _ in range(2))
        best = float("inf")
        for _ in range(repeats + 1):
            start = time.perf_counter()
            product = a @ b
            product[0, 0].item()  # waits for the device
            best = min(best, time.perf_counter() - start)
        ceiling, n = max(ceiling, 2 * n**3 / best), 2 * n
    return ceiling
