"""Who tokenises: processes of this machine, or a Ray cluster. Both give the same results in the same order."""

import logging
import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from bedplate.data.cores import telling_killed_workers
from bedplate.data.jobs import Corpus, Encoded, Encoder, Entry, Place
from bedplate.data.remote import is_remote
from bedplate.errors import InputError

Results = Iterator[tuple[Encoded, Place]]
"""Tokenised jobs, each with the place in the corpus just after it."""
Engine = Callable[[Corpus, Place, int, tuple[str, int]], Results]
"""(corpus, place to begin at, workers, arguments of `Encoder`) -> results in the order of the corpus"""

FED = 16
"""Workers that one Ray reader keeps busy; reading is some 30 times as fast as tokenising."""
LARGEST_UNIT = 256
"""Files that one Ray task reads at most: many small ones in each, few to read again when it dies."""
BLOCK_BYTES = 2**20
"""Text that travels between Ray's processes at once: a few jobs."""


def on_this_machine(corpus: Corpus, start: Place, workers: int, encoder: tuple[str, int]) -> Results:
    """Read in this process and tokenise in `workers` (1: in this one too), with few jobs in memory.

    Raises:
        InputError: A worker was killed, or what reading raises.
    """
    if workers == 1:
        encode = Encoder(*encoder)
        for job in corpus.jobs(start):
            yield encode(job.entries), job.end
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, initializer=_start_worker, initargs=encoder)
    with telling_killed_workers(), pool:
        pending: deque[tuple[Future[Encoded], Place]] = deque()
        for job in corpus.jobs(start):
            if len(pending) == 2 * workers:
                future, end = pending.popleft()
                yield future.result(), end
            pending.append((pool.submit(_encode_in_worker, job.entries), job.end))
        for future, end in pending:
            yield future.result(), end


_worker_encoder: Encoder | None = None


def _start_worker(tokenizer_json: str, end_of_text: int) -> None:
    global _worker_encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism; threads in each would fight
    _worker_encoder = Encoder(tokenizer_json, end_of_text)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this the workers of a killed process would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(entries: list[Entry]) -> Encoded:
    assert _worker_encoder is not None
    return _worker_encoder(entries)


def on_ray(corpus: Corpus, start: Place, workers: int, encoder: tuple[str, int]) -> Results:
    """Read and tokenise on a Ray cluster: that of `RAY_ADDRESS`, one that the caller has joined, or one made here.

    Runs of files are read by Ray tasks, jobs tokenised by `workers` tasks of one CPU each, and both are done again
    where a process or machine dies. All machines must reach the files under the same names. Ray Data keeps the order.

    Raises:
        InputError: Ray is not installed, or what reading raises.
    """
    try:
        import ray
        from ray.data import DataContext, TaskPoolStrategy
    except ImportError as error:
        raise InputError('engine ray needs Ray Data: pip install "bedplate[ray]"') from error
    sources = [(_anywhere(name), threshold) for name, threshold in corpus.sources]
    corpus, readers = replace(corpus, sources=sources), 1 + workers // FED
    with _cluster(ray, workers), _quiet(logging.getLogger("ray.data")):
        context = DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.target_max_block_size = BLOCK_BYTES
        with DataContext.current(context):
            units = [{"begin": begin, "stop": stop} for begin, stop in _units(corpus, start, readers)]
            # One unit a block, else Ray gives several to one task. Readers wait most of the time: they count no CPU.
            encoded = (
                ray.data.from_items(units, override_num_blocks=len(units))
                .map_batches(
                    _read, fn_args=(corpus, start), batch_size=1, num_cpus=0, compute=TaskPoolStrategy(size=readers)
                )
                .map_batches(
                    _tokenise, fn_args=(encoder,), batch_size=None, num_cpus=1, compute=TaskPoolStrategy(size=workers)
                )
            )
            for row in encoded.iter_rows():
                result = pickle.loads(row["result"])  # made by our own processes
                if isinstance(result, _Failed):
                    raise InputError(result.why) from (OSError(result.why) if result.is_outside else None)
                yield result


def _anywhere(name: str) -> str:
    """A source's name for processes that run in another folder."""
    return name if name.startswith("hf:") or is_remote(name) else os.path.abspath(name)


class _Failed(NamedTuple):
    """An InputError that a reader met, and whether its cause is outside the text (an OSError)."""

    why: str
    is_outside: bool


def _units(corpus: Corpus, start: Place, readers: int) -> list[tuple[int, int]]:
    """Runs [begin, stop) of the sources that are left, each for one task."""
    left = range(start.source, len(corpus.sources))
    size = min(LARGEST_UNIT, max(1, len(left) // (8 * readers)))
    return [(begin, min(begin + size, left.stop)) for begin in left[::size]]


def _read(unit: dict[str, Any], corpus: Corpus, start: Place) -> Iterator[dict[str, list[bytes]]]:
    """The jobs of one unit; bad input ends it as its last row, so that all that is before it is still written."""
    begin, stop = int(unit["begin"][0]), int(unit["stop"][0])
    try:
        for job in corpus.jobs(max(start, Place(begin)), stop):
            yield {"job": [pickle.dumps(job)]}
    except InputError as error:
        yield {"job": [pickle.dumps(_Failed(str(error), isinstance(error.__cause__, OSError)))]}


def _tokenise(block: dict[str, Any], encoder: tuple[str, int]) -> dict[str, list[bytes]]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encode = _cached_encoder(*encoder)
    jobs = map(pickle.loads, block["job"])
    results = [job if isinstance(job, _Failed) else (encode(job.entries), job.end) for job in jobs]
    return {"result": [pickle.dumps(result) for result in results]}


_cached_encoder = lru_cache(maxsize=1)(Encoder)  # a worker of Ray does many tasks, and those of later calls


@contextmanager
def _cluster(ray: Any, workers: int) -> Iterator[None]:
    """Be connected to Ray. A cluster of our own is of this machine alone, reports nothing, and ends with us."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level="warning")
    else:
        ray.init(
            "local",
            num_cpus=workers,
            object_store_memory=(128 + 16 * workers) * 2**20,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            logging_level="error",
        )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep a logger to its errors."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


ENGINES: dict[str, Engine] = {"local": on_this_machine, "ray": on_ray}
