"""Where things are put, and whether there is room for them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bedplate.errors import InputError

URL = re.compile(r"(?!file:)\w{2,}:/")


def cache_folder(path: Path | None = None, *, local: bool = True) -> Path:
    """`path` if given, else `$BEDPLATE_CACHE`, else `~/.cache/bedplate`.

    Args:
        local: whether it must be of this machine, as all but tokenised shards must. A `$BEDPLATE_CACHE` that is a URL
            then counts as not given.

    Raises:
        InputError: `path` is a URL, and that is not allowed.
    """
    default, of_environment = "~/.cache/bedplate", os.environ.get("BEDPLATE_CACHE")
    if local and path is not None and URL.match(str(path)):
        raise InputError(f"data.cache={path}: pictures are kept on this machine; give a folder")
    if path is None and (of_environment is None or (local and URL.match(of_environment))):
        path = Path(default)
    return (path or Path(of_environment or default)).expanduser()


def word(path: Path) -> str:
    """A path as one word of a shell's command."""
    return shlex.quote(str(path))


def refuse_existing(folder: Path, remedy: str) -> None:
    """Raise InputError if an output folder is there and holds anything, so that nothing is ever overwritten."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder}: already exists; {remedy}")


def check_disk(folder: Path, needed: int) -> None:
    """Raise InputError if fewer than `needed` bytes are free where `folder` is, or will be."""
    free = shutil.disk_usage(_there(folder)).free
    if free < needed:
        raise InputError(
            f"{folder}: {needed / 1e6:,.0f} MB are needed for checkpoints and {free / 1e6:,.0f} MB are free; "
            "free some space or give an `out` on another disk"
        )


def check_writable(folder: Path) -> None:
    """Raise InputError if a folder cannot be written to, or made, as far as permissions tell."""
    if not os.access(_there(folder), os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written to; check permissions, or give another place")


def _there(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def make_folder(folder: Path) -> None:
    """Make an output folder; one that cannot be made is an InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); give another `out`") from error
    check_writable(folder)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Lock a run directory, so that no second process trains in it; the system frees it when its holder dies."""
    if sys.platform == "win32":  # which has no such lock
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process trains here; wait for it or give another `out`") from None
        yield
    finally:
        os.close(descriptor)
