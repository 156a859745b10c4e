"""Ray Data makes what this machine's processes make, also when processes die. One cluster of two workers for all."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from bedplate.data import engines, jobs, shards, text
from bedplate.data.engines import _units
from bedplate.data.jobs import Corpus, Place
from bedplate.data.text import prepare
from bedplate.errors import InputError

from .test_resume import at_call, files_of, kill_a_preparation, stop
from .writers import SENTENCES, write_jsonl


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of this machine alone: two CPUs, 128 MiB for objects, no dashboard, nothing reported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray = pytest.importorskip("ray")
        ray.init(
            "local",
            num_cpus=2,
            object_store_memory=2**27,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            logging_level="error",
            log_to_driver=False,
        )
        yield ray
        ray.shutdown()


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files of many small jobs and shards."""
    monkeypatch.setattr(jobs, "JOB_CHARACTERS", 300)
    monkeypatch.setattr(shards, "SHARD_BYTES", 222)
    monkeypatch.setattr(engines, "BLOCK_BYTES", 1000)
    long = tmp_path / "long.txt"
    long.write_text("".join(SENTENCES) * 12)
    rows = [f"{i} {SENTENCES[i % 3]}" if i % 4 else "" for i in range(40)]
    return [write_jsonl(tmp_path / "a.jsonl", rows), long, write_jsonl(tmp_path / "b.jsonl", ["", *SENTENCES * 5, ""])]


@pytest.mark.parametrize("readers", [1, 3])
def test_ray_makes_the_same_shards(
    ray: Any, tokenizer: Tokenizer, tmp_path: Path, sources: list[Path], monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    monkeypatch.setattr(engines, "FED", {1: 16, 3: 1}[readers])
    options: dict[str, Any] = {"val_fraction": 0.3, "workers": 2}
    whole = prepare(sources, tokenizer, cache_dir=tmp_path / "local", **options)
    found = prepare(sources, tokenizer, cache_dir=tmp_path / "ray", engine="ray", **options)
    assert files_of(found) == files_of(whole)
    assert found.meta["skipped_empty"] == 12


def test_a_killed_worker_loses_nothing(ray: Any, tokenizer: Tokenizer, tmp_path: Path, sources: list[Path]) -> None:
    psutil = pytest.importorskip("psutil")
    more = [*sources, *(write_jsonl(tmp_path / f"{i}.jsonl", [f"{i} {s}" for s in SENTENCES * 60]) for i in range(4))]
    killed: list[int] = []

    def kill(*_: int) -> None:
        working = [process for process in psutil.process_iter(["name"]) if "MapBatches" in (process.info["name"] or "")]
        ours = [process for process in working if os.getpid() in {parent.pid for parent in process.parents()}]
        if ours and len(killed) < 2:
            ours[0].send_signal(signal.SIGKILL)
            killed.append(ours[0].pid)

    options: dict[str, Any] = {"val_fraction": 0.3, "workers": 2}
    found = prepare(more, tokenizer, cache_dir=tmp_path / "ray", engine="ray", on_progress=kill, **options)
    assert len(killed) == 2
    assert files_of(found) == files_of(prepare(more, tokenizer, cache_dir=tmp_path / "local", **options))


@pytest.mark.slow
def test_a_killed_driver_is_gone_on_with(ray: Any, tokenizer: Tokenizer, tmp_path: Path, sources: list[Path]) -> None:
    """The killed one has a cluster of its own, which dies with it."""
    kill_a_preparation(tokenizer, sources, tmp_path, engine="ray", workers=2)
    seen: list[int] = []
    found = prepare(
        sources,
        tokenizer,
        val_fraction=0.3,
        cache_dir=tmp_path / "cache",
        engine="ray",
        on_progress=lambda documents, *_: seen.append(documents),
    )
    assert seen[0] > 20
    assert files_of(found) == files_of(prepare(sources, tokenizer, val_fraction=0.3, cache_dir=tmp_path / "whole"))


def test_ray_goes_on_with_what_was_begun_here(
    ray: Any, tokenizer: Tokenizer, tmp_path: Path, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(sources, tokenizer, val_fraction=0.3, cache_dir=tmp_path / "whole")
    monkeypatch.setattr(text, "JOURNAL_SECONDS", 0)
    options: dict[str, Any] = {"val_fraction": 0.3, "cache_dir": tmp_path / "cache"}
    for number in (3, 5):  # in the first file and later
        with pytest.raises(KeyboardInterrupt):
            prepare(sources, tokenizer, **options, on_progress=at_call(number, stop))
    assert files_of(prepare(sources, tokenizer, **options, engine="ray", workers=2)) == files_of(whole)


def test_bad_input_is_told_as_it_is_here(ray: Any, tokenizer: Tokenizer, tmp_path: Path, sources: list[Path]) -> None:
    with open(sources[2], "a") as file:
        file.write('{"text": 1}\n')
    with pytest.raises(InputError, match=r"b\.jsonl:18: 'text' holds int, not a string"):
        prepare(sources, tokenizer, val_fraction=0, cache_dir=tmp_path, engine="ray")
    assert not list(tmp_path.glob("*.tmp"))


def test_a_missing_ray_is_told_with_its_remedy(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    path = write_jsonl(tmp_path / "x.jsonl", ["a"])
    with pytest.raises(InputError, match=r'pip install "bedplate\[ray\]"'):
        prepare(path, tokenizer, val_fraction=0, cache_dir=tmp_path, engine="ray")
    with pytest.raises(InputError, match="engine 'spark' is not known; choose one of local, ray"):
        prepare(path, tokenizer, cache_dir=tmp_path, engine="spark")


@pytest.mark.parametrize("count", [1, 7, 8, 100, 30_000])
@pytest.mark.parametrize("readers", [1, 3])
def test_units_cover_what_is_left_once_and_in_order(count: int, readers: int) -> None:
    corpus = Corpus([("x.txt", 0)] * count, "text")
    start = count // 3
    units = _units(corpus, Place(start, 5), readers)
    assert [index for begin, stop in units for index in range(begin, stop)] == list(range(start, count))
    assert all(0 < stop - begin <= engines.LARGEST_UNIT for begin, stop in units)
