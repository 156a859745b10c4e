"""Checkpoints that are whole or not there at all, written while training goes on."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bedplate.errors import InputError
from bedplate.train.ranks import Ranks

# PyTorch warns of what is meant: that a process of its own saves for itself alone.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARTS = ("model", "optimizer", "ema")
LOOK = 5.0  # seconds between two looks at a checkpoint that is waited for


@dataclass
class Checkpoint:
    """All that a run needs to go on: the order of the data and the random numbers follow from the step."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor]
    best: dict[str, Any] | None  # {"metric", "value", "step"} of the best evaluation so far
    losses: list[float] = field(default_factory=list)  # of the steps since the last row of the log

    def tensors(self) -> dict[str, Tensor]:
        """{"part/name": tensor}, in an order that does not depend on whether a run was resumed."""
        return {f"{part}/{name}": tensor for part in PARTS for name, tensor in sorted(getattr(self, part).items())}

    def state(self) -> dict[str, Any]:
        """What is no tensor."""
        return {"step": self.step, "best": self.best, "losses": self.losses}


class Checkpoints:
    """The checkpoints of a run, `FOLDER/step-00000100/`, each written beside its place, flushed, and then renamed.

    Every rank writes its own shards as safetensors files through `torch.distributed.checkpoint`, which reads them back
    onto any number of ranks. The main rank adds `state.json` and renames.
    """

    def __init__(self, folder: Path, keep: int, ranks: Ranks | None = None) -> None:
        self.folder, self.keep, self._ranks = folder, keep, ranks or Ranks()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None
        self.alive: Callable[[], object] = lambda: None  # called while one waits for a checkpoint that still grows

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        found = (re.fullmatch(r"step-(\d+)", path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint to memory and begin to write it; training may go on at once.

        When it is whole, those that are neither among the newest `keep` nor the best are removed. All ranks call this.

        Raises:
            InputError: the disk is full, at this checkpoint or the one before; every earlier checkpoint is untouched.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        step = checkpoint.step
        if self._pending is not None and self._pending[0] == step:
            return
        self.wait()
        partial = self._partial(step)
        if self._ranks.same(self.path(step).exists()):
            return
        self._ranks.on_main(self.clean)
        self._ranks.on_main(lambda: self._telling_full_disk(step, lambda: partial.mkdir(parents=True)))
        writing: Any = async_save(
            {name: tensor.detach() for name, tensor in checkpoint.tensors().items()},
            storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True),
            process_group=self._ranks.saving,
            no_dist=self._ranks.size == 1,
        )
        self._pending = step, self._thread.submit(self._finish, writing, checkpoint.state())

    def wait(self) -> None:
        """Wait until what `save` began is on the disk.

        Raises:
            InputError: the disk is full.
        """
        if self._pending is None:
            return
        (step, written), self._pending = self._pending, None
        before = -1
        while wait([written], timeout=LOOK).not_done:
            if (now := self._written(step)) != before:
                self.alive()
            before = now
        self._telling_full_disk(step, written.result)
        self._ranks.wait()  # what the main rank has renamed is there for all

    def load(self, step: int | None = None, into: dict[str, Tensor] | None = None) -> Checkpoint:
        """Read the checkpoint of a step, the newest by default.

        Args:
            into: {"model/NAME" or "ema/NAME": tensor} to be filled in place, each with what this rank holds of it.
                Optimizer state is made in the shapes of the model's; without `into` everything is read whole.

        Raises:
            InputError: a file is damaged or missing, or the tensors are of another model; nothing is filled then.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        self.wait()
        path = self.path(self.steps()[-1] if step is None else step)
        state = _check_files(path)
        reader = HuggingFaceStorageReader(str(path))
        found: dict[str, Any] = reader.read_metadata().state_dict_metadata
        stored: dict[str, torch.Size] = {key: meta.size for key, meta in found.items()}
        if into is not None:
            kept = {key: size for key, size in stored.items() if not key.startswith("optimizer/")}
            _check_shapes(kept, into, path)
        tensors = {key: _target(key, size, into or {}) for key, size in stored.items()}
        load(tensors, storage_reader=reader, process_group=self._ranks.saving, no_dist=self._ranks.size == 1)
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        return Checkpoint(state["step"], best=state["best"], losses=state["losses"], **parts)

    def clean(self) -> None:
        """Remove what a killed writer left behind."""
        for partial in self.folder.glob(".step-*.partial"):
            shutil.rmtree(partial)

    def _written(self, step: int) -> int:
        """Bytes that are there of a checkpoint that is being written."""
        sizes = 0
        for file in self._partial(step).glob("*"):
            with suppress(FileNotFoundError):  # it has got its name meanwhile
                sizes += file.stat().st_size
        return sizes

    def _partial(self, step: int) -> Path:
        return self.folder / f".{self.path(step).name}.partial"

    def _finish(self, writing: Future[Any], state: dict[str, Any]) -> None:
        """When all ranks have written their shards: record what belongs to the checkpoint, and give it its name."""
        writing.result()
        if not self._ranks.is_main:
            return
        partial = self._partial(state["step"])
        files = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
        (partial / "state.json").write_text(json.dumps(state | {"files": files}), "utf-8")
        _flush(partial / "state.json")
        _flush(partial)
        os.replace(partial, self.path(state["step"]))
        _flush(self.folder)
        self._prune(state["best"])

    def _telling_full_disk(self, step: int, work: Callable[[], Any]) -> None:
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            work()
        except (OSError, CheckpointException) as error:
            if self._ranks.is_main:
                self.clean()
            causes = [cause for cause, _ in error.failures.values()] if hasattr(error, "failures") else [error]
            if any(is_full(cause) for cause in causes):
                raise self._full(step) from error
            raise causes[0] from error

    def _full(self, step: int) -> InputError:
        last = self.steps()
        kept = f"the last good checkpoint is {self.path(last[-1])}" if last else "there is no earlier checkpoint"
        return InputError(
            f"{self.folder}: no space left to write the checkpoint of step {step}; {kept}; "
            "free some space, then go on with --resume"
        )

    def _prune(self, best: dict[str, Any] | None) -> None:
        for step in self.steps()[: -self.keep]:
            if best is None or step != best["step"]:
                # Renamed first: a checkpoint whose removal is cut short must not look complete.
                doomed = self._partial(step)
                os.replace(self.path(step), doomed)
                shutil.rmtree(doomed)


def _check_files(path: Path) -> dict[str, Any]:
    """What state.json says, if every file is there and can be read."""
    remedy = "remove its checkpoint and resume from the one before"
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text("utf-8"))
        files = dict(state["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / 'state.json'}: the file is damaged or missing ({error}); {remedy}") from None
    for name, size in files.items():
        file = path / name
        if not file.exists() or file.stat().st_size != size:
            what = "is missing" if not file.exists() else f"has {file.stat().st_size:,} bytes and had {size:,}"
            raise InputError(f"{file}: the file is damaged (it {what}); {remedy}")
        try:
            safe_open(file, "pt")
        except SafetensorError as error:
            raise InputError(f"{file}: the file is damaged ({error}); {remedy}") from None
    return state


def _check_shapes(stored: dict[str, torch.Size], into: dict[str, Tensor], where: Path) -> None:
    if missing := sorted(stored.keys() ^ into.keys()):
        side = "lacks" if missing[0] in into else "has an unknown"
        name = missing[0].partition("/")[2]
        raise InputError(f"{where}: the checkpoint {side} tensor {name!r}; it is of another model than the recipe's")
    for key, tensor in into.items():
        if tensor.shape != stored[key]:
            raise InputError(
                f"{where}: tensor {key.partition('/')[2]!r} has shape {tuple(stored[key])} in the checkpoint and "
                f"{tuple(tensor.shape)} in the recipe's model; resume with the recipe that it was trained with"
            )


def _target(key: str, size: torch.Size, into: dict[str, Tensor]) -> Tensor:
    """Where a stored tensor is read to: the given one, or for optimizer state one that lies as its parameter does."""
    if key in into:
        return into[key].detach()
    parameter = into.get("model/" + key.partition("/")[2].rpartition("/")[0])
    if parameter is not None and parameter.shape == size:
        return torch.zeros_like(parameter).detach()
    return torch.zeros(size)


def is_full(error: BaseException) -> bool:
    """Whether an error means that the disk is full (safetensors wraps the system's error into its own)."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"os error {code}" in str(error) for code in FULL)


def _flush(path: Path) -> None:
    """Have the system write a file or folder to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
