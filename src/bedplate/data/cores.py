"""How many processes and threads are worth starting here, and what is said where one of them is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path

from bedplate.errors import InputError

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD" in microseconds, or "max PERIOD"


def available_cores() -> int:
    """CPU cores that this process may use: those of its affinity, and no more than its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = CPU_MAX.read_text("utf-8").strip().partition(" ") if CPU_MAX.is_file() else ("max", "", "")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdigit() else cores


@contextmanager
def telling_killed_workers() -> Iterator[None]:
    """Turn what a pool raises when the system has killed one of its processes into an InputError with the remedy."""
    try:
        yield
    except BrokenExecutor as error:
        raise InputError(
            "a worker process was killed (out of memory?); give the same command again, or fewer workers"
        ) from error
