"""`doctor`: what this machine and this installation can do, and a remedy for each thing that is wrong."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bedplate.api.folders import cache_folder

if TYPE_CHECKING:
    import torch

GB = 1e9
# Below these a small run is likely to fail; a large one needs more, which only its own dry run can say.
ENOUGH_MEMORY = 2 * GB
ENOUGH_DISK = 2 * GB

Check = dict[str, Any]


def doctor() -> dict[str, Any]:
    """Check versions, device, precision, threads, memory, disk, compiler and extras. Changes nothing, needs no network.

    Returns:
        `{"ok": bool, "checks": [{"name", "value", "ok", "remedy"}]}`. `ok` is false only for what stops or slows down a
        run; a remedy beside a true `ok` says how to get something optional.
    """
    checks = [_python(), *_packages()]
    if all(check["ok"] or check["name"] == "bedplate" for check in checks):  # without these, torch may not even import
        checks += _hardware()
    checks += [_memory(), _disk("disk here", Path.cwd()), _disk("disk for caches", cache_folder())]
    checks += [_compiler(), *_extras()]
    return {"ok": all(check["ok"] for check in checks), "checks": checks}


def _check(name: str, value: str, ok: bool = True, remedy: str = "") -> Check:
    return {"name": name, "value": value, "ok": ok, "remedy": remedy}


def _python() -> Check:
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    remedy = "" if supported else "Use Python 3.11, 3.12 or 3.13."
    return _check(
        "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", supported, remedy
    )


def _requirements() -> list[tuple[str, str, str]]:
    """The (extra or "", distribution, version bounds) that the installed package declares; [] when not installed."""
    try:
        declared = importlib.metadata.requires("bedplate") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in declared:
        requirement, _, marker = line.partition(";")
        match = re.fullmatch(r"\s*([\w.-]+)(?:\[[\w,\s-]*\])?(.*)", requirement)
        assert match, f"not a requirement: {requirement}"
        name, bounds = match.groups()
        extra = re.search(r"extra == ['\"]([\w-]+)", marker)
        found.append((extra.group(1) if extra else "", name, bounds.strip(" ()")))
    return found


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _satisfies(version: str, bounds: str) -> bool:
    """Whether a version lies within bounds such as `>=2.11,<2.14`; local parts such as `+cpu` do not count."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3]]

    for operator, bound in re.findall(r"(>=|<)\s*([\d.]+)", bounds):
        if (numbers(version) >= numbers(bound)) != (operator == ">="):
            return False
    return True


def _packages() -> list[Check]:
    core = [(name, bounds) for extra, name, bounds in _requirements() if not extra]
    if not core:
        remedy = "Install it: pip install . (its dependencies cannot be checked before that)."
        core = [("torch", "")]
        checks = [_check("bedplate", "runs from a source folder, not installed", False, remedy)]
    else:
        checks = [_check("bedplate", importlib.metadata.version("bedplate"))]
    for name, bounds in core:
        version = _version(name)
        ok = version is not None and _satisfies(version, bounds)
        value = (version or "missing") + ("" if ok or not version else f", but {bounds} is needed")
        checks.append(_check(name, value, ok, "" if ok else f'pip install "{name}{bounds}"'))
    return checks


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except FileNotFoundError:
        pass  # not Linux: Python's own name for the processor is the next best
    return platform.processor() or platform.machine()


def _hardware() -> list[Check]:
    import torch

    from bedplate.data.cores import available_cores
    from bedplate.train.hardware import choose_device, multiplies_bf16

    device = choose_device("auto")
    precision = "bf16 in hardware" if multiplies_bf16(device) else "fp32 (no bf16 in hardware)"
    cores = available_cores()
    return [_device(device), _check("precision", precision), _threads(torch.get_num_threads(), cores)]


def _device(device: "torch.device") -> Check:
    import torch

    if device.type == "cpu" and shutil.which("nvidia-smi"):
        remedy = (
            f"torch {torch.__version__} sees no GPU: install its CUDA build, and check that nvidia-smi itself works."
        )
        return _check("device", f"CPU ({_cpu_name()}), although there is an NVIDIA driver", False, remedy)
    count = torch.cuda.device_count()
    gpus = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    value = f"CUDA ({gpus})" if device.type == "cuda" else f"{device.type.upper()} ({_cpu_name()})"
    if device.type == "cpu" and torch.backends.mps.is_available():
        value += "; an Apple GPU too: train.device=mps"
    try:
        torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum().item()
    except RuntimeError as error:  # a build without kernels for this device, or a driver too old: only use shows it
        return _check(
            "device", f"{value} fails: {error}", False, "Install a torch build and a driver that fit the device."
        )
    return _check("device", value)


def _cgroup(name: str) -> str:
    path = Path("/sys/fs/cgroup", name)
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _threads(threads: int, cores: int) -> Check:
    value = f"torch uses {threads}, {cores} core{'s' * (cores > 1)} available"
    if threads > cores:
        return _check(
            "threads", value, False, f"More threads than cores slow each other down: set OMP_NUM_THREADS={cores}."
        )
    return _check("threads", value, remedy=f"For all cores, set OMP_NUM_THREADS={cores}." if threads < cores else "")


def _memory_bytes() -> tuple[int | None, int | None]:
    """Total and available memory in bytes; None for what the platform does not tell."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(encoding="utf-8"), flags=re.MULTILINE))
        total, available = int(kilobytes["MemTotal"]) * 1024, int(kilobytes["MemAvailable"]) * 1024
        if (limit := _cgroup("memory.max")).isdigit():
            total = min(total, int(limit))
            available = min(available, total - int(_cgroup("memory.current") or 0))
        return total, available
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):  # macOS
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    return None, None


def _memory() -> Check:
    total, available = _memory_bytes()
    if total is None:
        return _check("memory", "not known on this platform")
    if available is None:
        return _check("memory", f"{total / GB:.1f} GB")
    ok = available >= ENOUGH_MEMORY
    remedy = "" if ok else "Close other programs, or make the run smaller (batch size, sequence length, model)."
    return _check("memory", f"{available / GB:.1f} GB available of {total / GB:.1f} GB", ok, remedy)


def _disk(name: str, folder: Path) -> Check:
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"bedplate")
    except OSError as error:
        return _check(
            name, f"{folder}: {error.strerror}", False, f"Make {existing} writable, or work in another folder."
        )
    free = shutil.disk_usage(existing).free
    remedy = "" if free >= ENOUGH_DISK else f"Free at least {ENOUGH_DISK / GB:.0f} GB on the disk of {existing}."
    return _check(name, f"{free / GB:.1f} GB free in {folder}", free >= ENOUGH_DISK, remedy)


def _compiler() -> Check:
    """What torch.compile needs on the CPU. It is optional, so its absence is no fault."""
    candidates = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    compiler = next((name for name in candidates if name and shutil.which(name)), None)
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    missing = [] if compiler else ["a C++ compiler"]
    missing += [] if headers else ["the Python headers"]
    if missing:
        absent = " and ".join(missing)
        return _check("compiler", f"no {absent}", remedy=f"Only torch.compile needs {absent}: install to use it.")
    return _check("compiler", f"{compiler}, Python headers")


def _extras() -> list[Check]:
    needed: dict[str, list[str]] = {}
    for extra, name, _ in _requirements():
        if extra:
            needed.setdefault(extra, []).append(name)
    checks = []
    for extra, names in needed.items():
        missing = [name for name in names if _version(name) is None]
        value = f"without {', '.join(missing)}" if missing else "installed"
        checks.append(_check(f"extra {extra}", value, remedy=f'pip install "bedplate[{extra}]"' if missing else ""))
    return checks
