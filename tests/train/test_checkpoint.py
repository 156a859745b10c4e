"""Checkpoints: whole or not there, on full disks, of other models, damaged."""

import os
import resource
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint import HuggingFaceStorageWriter

import bedplate
from bedplate.errors import InputError
from bedplate.train.checkpoint import Checkpoint, Checkpoints, is_full


def checkpoint(step: int, best: int | None = None, size: int = 4) -> Checkpoint:
    found = None if best is None else {"metric": "loss", "value": 0.1, "step": best}
    tensors = {"w": torch.full((size,), float(step))}
    return Checkpoint(step, model=tensors, optimizer={"w/momentum": torch.ones(size)}, ema={}, best=found, losses=[0.1])


def save(checkpoints: Checkpoints, which: Checkpoint) -> None:
    checkpoints.save(which)
    checkpoints.wait()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond `size` bytes: a full disk, near enough."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, checkpoint(7, best=3))
    loaded = checkpoints.load()
    assert (loaded.step, loaded.best, loaded.losses, loaded.ema) == (7, checkpoint(7, best=3).best, [0.1], {})
    assert loaded.model["w"].eq(7).all() and loaded.optimizer["w/momentum"].eq(1).all()


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 7):
        save(checkpoints, checkpoint(step, best=min(step, 2)))
    assert checkpoints.steps() == [2, 5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in (2, 5, 6)]


def test_a_writer_killed_before_the_rename_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, checkpoint(1))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", die)
        save(checkpoints, checkpoint(2))
    assert checkpoints.steps() == [1] and checkpoints.load().step == 1
    save(checkpoints, checkpoint(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_a_removal_cut_short_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, checkpoint(1))

    def die(path: Path) -> None:
        next(path.glob("*.safetensors")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", die)
        save(checkpoints, checkpoint(2))
    assert checkpoints.steps() == [2]
    checkpoints.clean()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("limit", [0, 100, 3000])
def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path: Path, limit: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, checkpoint(1, size=1000))
    with largest_file(limit), pytest.raises(InputError, match=r"no space left .* step 2; .* is .*step-00000001; free"):
        save(checkpoints, checkpoint(2, size=1000))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoints.load().model["w"].eq(1).all()
    save(checkpoints, checkpoint(2, size=1000))
    assert checkpoints.load().step == 2


def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    with largest_file(10), pytest.raises(InputError, match="there is no earlier checkpoint"):
        save(Checkpoints(tmp_path, keep=1), checkpoint(1))


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(13, "Permission denied"), False),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception, full: bool) -> None:
    assert is_full(error) is full


@pytest.mark.parametrize(
    ("into", "message"),
    [
        ({"a": torch.ones(2), "b": torch.ones(3)}, "lacks tensor 'b'"),
        ({}, "has an unknown tensor 'a'"),
        ({"a": torch.ones(3)}, r"'a' has shape \(2,\) in the checkpoint and \(3,\)"),
    ],
)
def test_a_checkpoint_of_another_model_changes_nothing(
    tmp_path: Path, into: dict[str, torch.Tensor], message: str
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, Checkpoint(1, model={"a": torch.zeros(2)}, optimizer={}, ema={}, best=None))
    with pytest.raises(InputError, match=f"step-00000001: .*{message}"):
        checkpoints.load(into={f"model/{name}": tensor for name, tensor in into.items()})
    assert all(tensor.eq(1).all() for tensor in into.values())


def test_who_waits_for_a_checkpoint_is_alive_as_long_as_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a watchdog would end a healthy run whose last checkpoint takes longer than it waits."""
    monkeypatch.setattr("bedplate.train.checkpoint.LOOK", 0)
    checkpoints, written, beats = Checkpoints(tmp_path, keep=1), Future[None](), []
    sizes = [5, 6, 6, 6, 7, 7]  # of what is there, whenever somebody looks

    def size(self: Checkpoints, step: int) -> int:
        if len(sizes) == 1:
            written.set_result(None)
        return sizes.pop(0)

    monkeypatch.setattr(Checkpoints, "_written", size)
    checkpoints.alive = lambda: beats.append(len(sizes))
    checkpoints._pending = 1, written
    checkpoints.wait()
    assert beats == [5, 4, 1], "at 5, 6 and 7 bytes, and not while nothing grew"


def test_training_may_go_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, weights, may_write = Checkpoints(tmp_path, keep=1), torch.zeros(1000), threading.Event()
    write = HuggingFaceStorageWriter.write_data
    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", lambda *args: may_write.wait() and write(*args))
    checkpoints.save(Checkpoint(1, model={"w": weights}, optimizer={}, ema={}, best=None))
    weights.fill_(7)  # the next step
    assert checkpoints.steps() == []
    may_write.set()
    assert checkpoints.load().model["w"].eq(0).all()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, checkpoint(1))
    next((tmp_path / "step-00000001").glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match=r"step-00000001/.*safetensors: the file is damaged \(it is missing\)"):
        checkpoints.load()


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"step": 1}', '{"files": 3}'])
def test_a_damaged_record_of_a_checkpoint_is_named(tmp_path: Path, text: str | None) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, checkpoint(1))
    record = tmp_path / "step-00000001" / "state.json"
    record.unlink() if text is None else record.write_text(text)
    with pytest.raises(InputError, match=r"state\.json: the file is damaged or missing .* resume from the one before"):
        checkpoints.load()


@pytest.mark.parametrize(
    ("name", "said"),
    [("metrics.jsonl", r"metrics\.jsonl:2: the line is damaged"), ("environment.json", "remove it and resume")],
)
def test_damaged_notes_of_a_run_are_named(
    tiny_run: Path, tiny_recipe: Any, tmp_path: Path, name: str, said: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    lines = (run / name).read_text().split("\n")
    (run / name).write_text("\n".join([lines[0], "{damaged", *lines[2:]]))
    with pytest.raises(InputError, match=said):
        bedplate.pretrain(tiny_recipe(run, "train.steps=40", "train.batch_size=16"), resume=True)


@pytest.fixture
def stopped(tmp_path: Path, tiny_recipe: Any) -> Any:
    """The recipe of a run whose disk was full when its second checkpoint was due, after 4 of 6 steps."""
    recipe = tiny_recipe(tmp_path / "run", "train.steps=6", "checkpoint.every=2", "evaluate.every=100", "log.every=1")
    save = Checkpoints.save

    def full_at_4(self: Checkpoints, which: Checkpoint) -> None:
        if which.step == 4:
            self.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # for the report as well, as on a real disk
        save(self, which)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", full_at_4)
        try:
            with pytest.raises(
                InputError, match="no space left on the disk; every checkpoint is whole; free some space"
            ):
                bedplate.pretrain(recipe)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return recipe


def test_a_run_on_a_full_disk_is_resumed_from_the_checkpoint_before(stopped: Any) -> None:
    assert Checkpoints(stopped.out / "checkpoints", 1).steps() == [2]
    assert bedplate.pretrain(stopped, resume=True)["steps"] == 6


def test_a_truncated_checkpoint_is_named_with_the_remedy(stopped: Any) -> None:
    (file,) = (stopped.out / "checkpoints" / "step-00000002").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"step-00000002/.*\.safetensors: the file is damaged .* resume from"):
        bedplate.pretrain(stopped, resume=True)


def test_no_free_disk_is_found_before_anything_is_written(
    tmp_path: Path, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="MB are needed for checkpoints and 0 MB are free"):
        bedplate.pretrain(tiny_recipe(tmp_path / "deep" / "run"))
    assert not (tmp_path / "deep").exists()
