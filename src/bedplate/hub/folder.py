"""Files and folders of models, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bedplate.errors import InputError


@contextmanager
def new_folder(directory: str | Path, overwrite: bool) -> Iterator[Path]:
    """An empty folder to write a model into, which takes the place of `directory` at the end, if nothing fails.

    Raises:
        InputError: a folder is there that may not be replaced, or the disk is full.
    """
    directory = Path(os.path.realpath(directory))  # a link stays, and what it points to is replaced
    partial, old = (directory.with_name(f".{directory.name}.{kind}") for kind in ("partial", "old"))
    if old.exists() and not directory.exists():
        os.replace(old, directory)  # an overwriting save was killed between its two renames
    _check_target(directory, overwrite)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if directory.exists():
            os.replace(directory, old)
        try:
            os.replace(partial, directory)
        except OSError:
            if old.exists():
                os.replace(old, directory)
            raise
    except OSError as error:
        raise _unwritable(directory, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _check_target(directory: Path, overwrite: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; give a folder")
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{directory}: the folder exists and is not empty; choose another or pass overwrite=True")
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: is not a model directory and is not overwritten; choose another folder")


def read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file}: no such file; a model directory has one")
    try:
        values = json.loads(file.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start} is not UTF-8; save or download it again") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno}: not valid JSON ({error.msg}); save or download it again") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: must hold a JSON object, got {type(values).__name__}")
    return values


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    write_atomic(file, lambda path: path.write_text(json.dumps(values, indent=2) + "\n", "utf-8"))


def write_atomic(file: Path, write: Callable[[Path], object]) -> None:
    """`write` a temporary file, flush it to the disk, and only then give it its name."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        write(partial)
        with partial.open("rb") as opened:
            os.fsync(opened.fileno())
        os.replace(partial, file)
    except (OSError, SafetensorError) as error:
        raise _unwritable(file, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _unwritable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be written ({error}); free some disk space or choose another folder")
