"""Where things are put, and whether there is room for them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bedplate.errors import InputError


def cache_folder(path: Path | None = None) -> Path:
    """`path` if given, else `$BEDPLATE_CACHE`, else `~/.cache/bedplate`."""
    return (path or Path(os.environ.get("BEDPLATE_CACHE", "~/.cache/bedplate"))).expanduser()


def refuse_existing(folder: Path, remedy: str) -> None:
    """Raise InputError if an output folder is there and holds anything, so that nothing is ever overwritten."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder}: already exists; {remedy}")


def check_disk(folder: Path, needed: int) -> None:
    """Raise InputError if fewer than `needed` bytes are free where `folder` is, or will be."""
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
    if free < needed:
        raise InputError(
            f"{folder}: {needed / 1e6:,.0f} MB are needed for checkpoints and {free / 1e6:,.0f} MB are free; "
            "free some space or give an `out` on another disk"
        )
