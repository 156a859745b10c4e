"""What the speed comparisons share: which precisions run here, interleaved rounds, the table and the ratios.

Not a script: the comparisons import it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bedplate.train.hardware import available_cores, multiplies_bf16

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Way:
    """One way to do the work: `run` does `amount` of it, in tokens or images."""

    name: str
    amount: int
    run: Callable[[], object]
    ours: bool


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all comparisons have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    made.add_argument("--threads", type=int, default=available_cores())
    made.add_argument("--rounds", type=int, default=5, help="times that each way is measured, in turn with the others")
    made.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: for one thread on a machine busy with other work"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    return made


def precisions(asked: str) -> list[str]:
    """The precisions to measure; says which one is left out and why."""
    if asked != "auto":
        return [asked]
    if multiplies_bf16(torch.device("cpu")):
        return ["fp32", "bf16"]
    print("bf16 rows are left out: this CPU does not multiply bf16 (no AVX512-BF16, no AMX)")
    return ["fp32"]


def measure(ways: list[Way], rounds: int, clock: str) -> dict[str, list[float]]:
    """Tokens or images a second of each way by round: A B C, A B C, ..., so that a drifting machine slows all alike.

    One run of each goes before and is not counted: compilation, first allocations, first touch of the weights.
    """
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    for way in ways:
        start = now()
        way.run()
        print(f"  warm-up  {way.name:<32} {now() - start:7.1f} s", file=sys.stderr)
    speeds: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(rounds):
        for way in ways:
            start = now()
            way.run()
            speeds[way.name].append(way.amount / (now() - start))
        print(f"  round {number + 1} of {rounds}", file=sys.stderr)
    return speeds


def report(ways: list[Way], speeds: dict[str, list[float]], file: Path | None, unit: str = "tokens") -> None:
    """Print medians with their range, and each of our ways against each of the peer's; write them to `file`."""
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()} {_processor()}")
    print(f"{'':<34} {unit + '/s':>9}   min - max")
    for name, values in speeds.items():
        print(f"{name:<34} {statistics.median(values):9.1f}   {min(values):.1f} - {max(values):.1f}")
    ratios: dict[str, dict[str, float]] = {}
    for peer in (way.name for way in ways if not way.ours):
        ratios[peer] = {}
        print(f"\ntimes the speed of {peer} (median over rounds)")
        for ours in (way.name for way in ways if way.ours):
            pairs = zip(speeds[ours], speeds[peer], strict=True)
            ratios[peer][ours] = statistics.median(a / b for a, b in pairs)
            print(f"  {ours:<32} {ratios[peer][ours]:9.2f}")
    if file is not None:
        record = {"threads": torch.get_num_threads(), "torch": torch.__version__, "processor": _processor()}
        file.write_text(json.dumps(record | {f"{unit}_per_second": speeds, "ratios": ratios}, indent=2) + "\n", "utf-8")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()
