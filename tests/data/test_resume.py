"""Preparations that are killed, and what goes on from them: the same bytes as if nothing had happened."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bedplate.data import jobs, shards, text
from bedplate.data import sources as sources_
from bedplate.data.shards import TextData
from bedplate.data.text import prepare
from bedplate.errors import InputError

from .writers import SENTENCES, write_jsonl

Interrupt = Callable[..., None]


def files_of(data: TextData) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(data.directory).iterdir()}


def at_call(number: int, action: Callable[[], None]) -> Interrupt:
    """An `on_progress` that acts in its call of this number."""
    calls = 0

    def progress(*_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            action()

    return progress


def stop() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Rows, texts of several pieces and empty documents in files that end within jobs."""
    long = tmp_path / "long.txt"
    long.write_text("".join(SENTENCES) * 12)
    first = write_jsonl(tmp_path / "a.jsonl", [f"{i} {SENTENCES[i % 3]}" if i % 4 else "" for i in range(40)])
    return [first, long, write_jsonl(tmp_path / "b.jsonl", ["", *SENTENCES * 5, ""])]


@pytest.fixture
def journalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces, jobs and shards, and a journal after every job, which the disk may write when it likes."""
    monkeypatch.setattr(shards.os, "fsync", lambda _: None)
    monkeypatch.setattr(sources_, "PIECE_CHARACTERS", 200)
    monkeypatch.setattr(text, "JOURNAL_SECONDS", 0)
    monkeypatch.setattr(jobs, "JOB_CHARACTERS", 300)
    monkeypatch.setattr(shards, "SHARD_BYTES", 222)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(1, 12), min_size=1, max_size=4), torn=st.binary(max_size=300))
def test_stopped_anywhere_and_again_it_ends_in_the_same_bytes(
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
    sources: list[Path],
    journalled: None,
    stops: list[int],
    torn: bytes,
) -> None:
    folder = tmp_path_factory.mktemp("caches")
    whole = prepare(sources, tokenizer, val_fraction=0.3, cache_dir=folder / "whole")
    again = folder / "again"
    for number in stops:
        with pytest.raises(KeyboardInterrupt):
            prepare(sources, tokenizer, val_fraction=0.3, cache_dir=again, on_progress=at_call(number, stop))
            raise KeyboardInterrupt  # it was done before
        for shard in again.glob("*.tmp/*.bin"):  # written, but not recorded
            shard.write_bytes(shard.read_bytes() + torn)
    found = prepare(sources, tokenizer, val_fraction=0.3, cache_dir=again)
    assert files_of(found) == files_of(whole)
    assert found.meta["skipped_empty"] == 12


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_process_is_gone_on_with(
    tokenizer: Tokenizer, tmp_path: Path, sources: list[Path], journalled: None, workers: int
) -> None:
    whole = prepare(sources, tokenizer, val_fraction=0.3, cache_dir=tmp_path / "whole")
    orphans = kill_a_preparation(tokenizer, sources, tmp_path, workers=workers)
    assert len(orphans) == (workers if workers > 1 else 0)
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in orphans):
        assert time.monotonic() < deadline, "the workers of a killed process must end"
        time.sleep(0.05)
    seen: list[int] = []
    found = prepare(
        sources,
        tokenizer,
        val_fraction=0.3,
        cache_dir=tmp_path / "cache",
        workers=workers,
        on_progress=lambda documents, *_: seen.append(documents),
    )
    assert seen[0] > 20  # of what was done nothing was tokenised again
    assert files_of(found) == files_of(whole)


def test_a_killed_worker_is_told_and_gone_on_with(
    tokenizer: Tokenizer, tmp_path: Path, sources: list[Path], journalled: None
) -> None:
    def kill() -> None:
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join()
        time.sleep(0.5)  # until the pool has seen it

    options: dict[str, Any] = {"val_fraction": 0.3, "cache_dir": tmp_path / "cache"}
    with pytest.raises(InputError, match=r"a worker process was killed \(out of memory\?\); give the same"):
        prepare(sources, tokenizer, **options, workers=2, on_progress=at_call(10, kill))
    seen: list[int] = []
    found = prepare(sources, tokenizer, **options, on_progress=lambda documents, *_: seen.append(documents))
    assert seen[0] > 20  # of what was done nothing was tokenised again
    assert files_of(found) == files_of(prepare(sources, tokenizer, val_fraction=0.3, cache_dir=tmp_path / "whole"))


def kill_a_preparation(tokenizer: Tokenizer, sources: list[Path], folder: Path, **options: Any) -> list[int]:
    """Prepare `sources` in a process that kills itself at its tenth job; return the ids of its children."""
    tokenizer.save(str(folder / "tokenizer.json"))
    arguments = f"{list(map(str, sources))!r}, tokenizer, val_fraction=0.3, cache_dir={str(folder / 'cache')!r}"
    script = folder / "killed.py"
    script.write_text(
        "import multiprocessing, os\n"
        "from bedplate.data import jobs, shards, sources, text\n"
        "from bedplate.data.tokenizer import load_tokenizer\n"
        "if __name__ == '__main__':\n"
        "    text.JOURNAL_SECONDS, sources.PIECE_CHARACTERS = 0, 200\n"
        "    jobs.JOB_CHARACTERS, shards.SHARD_BYTES = 300, 222\n"
        f"    tokenizer, calls = load_tokenizer({str(folder)!r}), []\n"
        "    def progress(*_):\n"
        "        calls.append(0)\n"
        "        if len(calls) == 10:\n"
        "            print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "            os.kill(os.getpid(), 9)\n"
        f"    text.prepare({arguments}, on_progress=progress, **{options!r})\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    assert killed.returncode == -9
    return [int(pid) for pid in killed.stdout.split()]


def test_sources_that_are_done_are_not_read_again(
    tokenizer: Tokenizer, tmp_path: Path, sources: list[Path], journalled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"val_fraction": 0, "cache_dir": tmp_path / "cache"}
    with pytest.raises(KeyboardInterrupt):
        prepare(sources, tokenizer, **options, on_progress=at_call(12, stop))
    opened: list[str] = []
    real = jobs.documents_in
    monkeypatch.setattr(jobs, "documents_in", lambda name, column: opened.append(name) or real(name, column))
    prepare(sources, tokenizer, **options)
    assert opened == [str(source) for source in sources[1:]]


def test_a_process_killed_at_the_very_end_has_nothing_left_to_do(
    tokenizer: Tokenizer, tmp_path: Path, sources: list[Path], journalled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files_of(prepare(sources, tokenizer, cache_dir=tmp_path / "whole"))
    for last in (shards.write_meta, Path.rename):
        owner: Any = shards if last is shards.write_meta else Path
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, last.__name__, lambda *_: stop())
            prepare(sources, tokenizer, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(jobs, "Encoder", lambda *_: pytest.fail("tokenised again"))
    assert files_of(prepare(sources, tokenizer, cache_dir=tmp_path / "cache")) == whole


@pytest.mark.parametrize("damage", ["shorter", "missing", "journal", "format"])
def test_a_journal_that_does_not_fit_starts_over(
    tokenizer: Tokenizer, tmp_path: Path, sources: list[Path], journalled: None, damage: str
) -> None:
    whole = files_of(prepare(sources, tokenizer, cache_dir=tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        prepare(sources, tokenizer, cache_dir=tmp_path, on_progress=at_call(9, stop))
    (journal,) = tmp_path.glob("*.tmp/journal.json")
    shard = journal.parent / "train-00000.bin"
    if damage == "shorter":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "missing":
        shard.unlink()
    else:
        journal.write_text("{" if damage == "journal" else json.dumps({**json.loads(journal.read_text()), "format": 0}))
    assert files_of(prepare(sources, tokenizer, cache_dir=tmp_path)) == whole


def test_what_is_done_waits_a_week(
    tokenizer: Tokenizer, tmp_path: Path, sources: list[Path], journalled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = tmp_path / "cache", write_jsonl(tmp_path / "other.jsonl", ["a", "b"])
    with pytest.raises(KeyboardInterrupt):
        prepare(sources, tokenizer, cache_dir=cache, on_progress=at_call(9, stop))
    prepare(other, tokenizer, cache_dir=cache)
    (journal,) = cache.glob("*.tmp/journal.json")
    old = time.time() - text.LEFTOVER_SECONDS - 1
    os.utime(journal, (old, old))
    prepare(other, tokenizer, val_fraction=0, cache_dir=cache)
    assert not list(cache.glob("*.tmp"))


def test_bad_text_leaves_nothing_since_it_will_be_other_text(
    tokenizer: Tokenizer, tmp_path: Path, sources: list[Path], journalled: None
) -> None:
    with open(sources[0], "a") as file:
        file.write('{"text": 1}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:41: 'text' holds int"):
        prepare(sources, tokenizer, val_fraction=0, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_after_a_full_disk_it_goes_on(
    tokenizer: Tokenizer, tmp_path: Path, sources: list[Path], journalled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files_of(prepare(sources, tokenizer, cache_dir=tmp_path / "whole"))

    def full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="free space there and do the same again"):
        prepare(sources, tokenizer, cache_dir=tmp_path / "cache", on_progress=at_call(9, full))
    seen: list[int] = []
    found = prepare(
        sources, tokenizer, cache_dir=tmp_path / "cache", on_progress=lambda *counts: seen.append(counts[0])
    )
    assert seen[0] > 20 and files_of(found) == whole


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_stays_flat_as_the_corpus_grows(tokenizer: Tokenizer, tmp_path: Path, workers: int) -> None:
    """A process that may grow by 24 MiB prepares 16 and 160 MiB."""
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    script = tmp_path / "child.py"
    script.write_text(
        "import resource, sys\n"
        "from bedplate.data.text import prepare\n"
        "from bedplate.data.tokenizer import load_tokenizer\n"
        "if __name__ == '__main__':\n"
        f"    tokenizer = load_tokenizer({str(tmp_path)!r})\n"
        f"    prepare(sys.argv[1], tokenizer, cache_dir=sys.argv[1] + '.cache', workers={workers})\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks = []
    for size in (16, 160):
        path = tmp_path / f"{size}.jsonl"
        with open(path, "w") as file:
            number = 0
            while file.tell() < size * 2**20:
                file.write(json.dumps({"text": f"{number} " + "".join(SENTENCES) * 8}) + "\n")
                number += 1
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, str(script), str(path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        peaks.append(int(done.stdout) * (1 if sys.platform == "darwin" else 1024))
    assert peaks[1] - peaks[0] < 24 * 2**20
