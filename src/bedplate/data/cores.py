"""How many processes and threads are worth starting here."""

from __future__ import annotations

import os
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD" in microseconds, or "max PERIOD"


def available_cores() -> int:
    """CPU cores that this process may use: those of its affinity, and no more than its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = CPU_MAX.read_text("utf-8").strip().partition(" ") if CPU_MAX.is_file() else ("max", "", "")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdigit() else cores
