"""Device, precision and threads: chosen, and said why."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bedplate.data import cores as quota
from bedplate.errors import InputError
from bedplate.recipe.schema import TrainRecipe
from bedplate.train import hardware as room
from bedplate.train.hardware import choose_hardware, matmul_ceiling


@pytest.fixture(autouse=True)
def _threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("multiplies", "dtype", "reason"),
    [(False, torch.float32, "no bf16 multiplication"), (True, torch.bfloat16, "multiplies bf16")],
)
def test_auto_takes_bf16_where_the_hardware_has_it_and_says_why(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool, dtype: torch.dtype, reason: str
) -> None:
    monkeypatch.setattr(room, "multiplies_bf16", lambda device: multiplies)
    chosen = choose_hardware(TrainRecipe(steps=1, device="cpu", threads=1))
    assert chosen.dtype == dtype and reason in str(chosen) and "cpu, 1 threads" in str(chosen)


def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "multiplies_bf16", lambda device: True)
    assert choose_hardware(TrainRecipe(steps=1, precision="fp32", threads=1)).dtype == torch.float32


def test_threads_are_set() -> None:
    choose_hardware(TrainRecipe(steps=1, threads=1))
    assert torch.get_num_threads() == 1


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device cuda is not available to PyTorch here; use auto"):
        choose_hardware(TrainRecipe(steps=1, device="cuda", threads=1))


def test_the_ceiling_is_measured_in_no_time_on_slow_hardware() -> None:
    chosen = choose_hardware(TrainRecipe(steps=1, precision="fp32", device="cpu", threads=1))
    assert 1e7 < matmul_ceiling(chosen, largest=256) < 1e14
    sizes: list[int] = []
    randn = torch.randn

    def recorded(*size: int, **options: object) -> torch.Tensor:
        sizes.append(size[0])
        return randn(*size, **options)  # type: ignore[call-overload, no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", recorded)
        matmul_ceiling(chosen, seconds=1e-9)  # the first product already takes longer
    assert set(sizes) == {256}


@pytest.mark.parametrize(("limit", "cores"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 8)])
def test_the_quota_of_a_container_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(limit + "\n")
    monkeypatch.setattr(quota, "CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert quota.available_cores() == cores


@pytest.mark.parametrize(
    ("environment", "asked"), [({}, {(-4, 0), (-1, 2**31 - 1)}), ({"MALLOC_ARENA_MAX": "2"}, set())]
)
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], asked: set[tuple[int, int]]
) -> None:
    calls = set()
    library = SimpleNamespace(mallopt=lambda *call: calls.add(call))
    monkeypatch.setattr(room.sys, "platform", "linux")
    monkeypatch.setattr(room.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(room.os, "environ", environment)
    room.keep_freed_memory()
    assert calls == asked
    del library.mallopt  # as in musl
    room.keep_freed_memory()
