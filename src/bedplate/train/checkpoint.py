"""Checkpoints that are whole or not there at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bedplate.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Checkpoint:
    """All that a run needs to go on: the order of the data and the random numbers follow from the step."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor]
    best: dict[str, Any] | None  # {"metric", "value", "step"} of the best evaluation so far
    losses: list[float] = field(default_factory=list)  # of the steps since the last row of the log


class Checkpoints:
    """The checkpoints of a run, `FOLDER/step-00000100/`, each written beside its place, flushed, and then renamed."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        found = (re.fullmatch(r"step-(\d+)", path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then remove those that are neither among the newest `keep` nor the best.

        Raises:
            InputError: the disk is full; every earlier checkpoint is untouched.
        """
        final = self.path(checkpoint.step)
        partial = self.folder / f".{final.name}.partial"
        self.clean()
        if final.exists():
            return final
        try:
            partial.mkdir(parents=True)
            for name in ("model", "optimizer", "ema"):
                if tensors := getattr(checkpoint, name):
                    path = partial / f"{name}.safetensors"
                    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, path)
                    _flush(path)
            state = {"step": checkpoint.step, "best": checkpoint.best, "losses": checkpoint.losses}
            (partial / "state.json").write_text(json.dumps(state), "utf-8")
            _flush(partial / "state.json")
            _flush(partial)
            os.replace(partial, final)
            _flush(self.folder)
        except (OSError, SafetensorError) as error:
            self.clean()
            if is_full(error):
                last = self.steps()
                kept = (
                    f"the last good checkpoint is {self.path(last[-1])}" if last else "there is no earlier checkpoint"
                )
                raise InputError(
                    f"{self.folder}: no space left to write the checkpoint of step {checkpoint.step}; {kept}; "
                    "free some space, then go on with --resume"
                ) from error
            raise
        self._prune(checkpoint)
        return final

    def load(self, step: int | None = None) -> Checkpoint:
        """Read the checkpoint of a step, the newest by default."""
        path = self.path(self.steps()[-1] if step is None else step)
        state = json.loads((path / "state.json").read_text("utf-8"))
        parts = {name: _read(path / f"{name}.safetensors") for name in ("model", "optimizer", "ema")}
        return Checkpoint(state["step"], best=state["best"], losses=state["losses"], **parts)

    def clean(self) -> None:
        """Remove what a killed writer left behind."""
        for partial in self.folder.glob(".step-*.partial"):
            shutil.rmtree(partial)

    def _prune(self, checkpoint: Checkpoint) -> None:
        best = checkpoint.best["step"] if checkpoint.best else None
        for step in self.steps()[: -self.keep]:
            if step != best:
                # Renamed first: a checkpoint whose removal is cut short must not look complete.
                doomed = self.folder / f".{self.path(step).name}.partial"
                os.replace(self.path(step), doomed)
                shutil.rmtree(doomed)


def copy_into(target: dict[str, Tensor], source: dict[str, Tensor], where: Path) -> None:
    """Copy tensors by name.

    Raises:
        InputError: a tensor is missing, unknown or of another shape; nothing has been copied then.
    """
    if missing := sorted(target.keys() ^ source.keys()):
        side = "lacks" if missing[0] in target else "has an unknown"
        raise InputError(
            f"{where}: the checkpoint {side} tensor {missing[0]!r}; it is of another model than the recipe's"
        )
    for name, tensor in target.items():
        if tensor.shape != source[name].shape:
            raise InputError(
                f"{where}: tensor {name!r} has shape {tuple(source[name].shape)} in the checkpoint and "
                f"{tuple(tensor.shape)} in the recipe's model; resume with the recipe that it was trained with"
            )
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def is_full(error: BaseException) -> bool:
    """Whether an error means that the disk is full (safetensors wraps the system's error into its own)."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"os error {code}" in str(error) for code in FULL)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(
            f"{path}: the file is damaged ({error}); remove its checkpoint and resume from the one before"
        ) from None


def _flush(path: Path) -> None:
    """Have the system write a file or folder to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
