"""From documents to token shards: tokenise, end each document, split, pack, and cache by content.

    documents ─► units (split, piece) ─► jobs of about 256 Ki characters ─► encoder processes ─► SplitWriter

The parent reads and writes, in order; only tokenising is shared out, so the shards do not depend on the number of
workers.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bedplate.data import shards
from bedplate.data.shards import SPLITS, SplitWriter, TextData
from bedplate.data.sources import Paths, content_hash, cut_text, documents, kind_of, resolve, shown
from bedplate.data.tokenizer import end_of_text_id, tokenizer_hash, vocabulary_size
from bedplate.errors import InputError

Entry = tuple[int, str | None]
"""(index of the split, next piece of the current document of that split, or None at its end)"""
Encoded = list[tuple[np.ndarray, np.ndarray, int]]
"""For each split what `SplitWriter.append` takes: ids, document ends, bytes of text."""
Progress = Callable[[int, int, int], None]
"""Called with the documents, tokens and bytes of text written so far."""

TRAIN, VAL = range(len(SPLITS))
HASHES = 2**64
JOB_CHARACTERS = 2**18
UNIT_CHARACTERS = 2**12
"""Size of the pieces of whole lines by which a lone .txt is split: 4 KiB of ASCII."""


def prepare(
    path: Paths,
    tokenizer: Tokenizer,
    *,
    column: str = "text",
    val_path: Paths | None = None,
    val_fraction: float = 0.01,
    cache_dir: str | Path,
    workers: int = 1,
    on_progress: Progress | None = None,
) -> TextData:
    """Tokenise `path` into memory-mapped shards, or open those that an earlier call left in `cache_dir`.

    A document goes to validation when the hash of its first piece, as a fraction of all hashes, is below
    `val_fraction`: duplicates land on one side, and neither order nor neighbours matter. If that takes no document, the
    one of smallest hash goes. A source of one lone .txt is split by runs of whole lines of about 4 KiB instead
    (`meta["split"] == "pieces"`, each run a document of its own). A special token that the text spells out stays
    text.

    Args:
        path: Training text, as `sources.documents` takes it.
        tokenizer: Must have an end-of-text token, which is added after each document.
        column: Key or column of the text in formats with rows.
        val_path: Validation text of its own; then nothing is split off `path`.
        val_fraction: Share of the documents for validation, in [0, 1); 0 for none.
        cache_dir: Folder of all caches; this one is at `cache_dir/FINGERPRINT`, by content, tokenizer and settings.
        workers: Processes that tokenise; 1 stays in this one. With more, a script must call this under
            `if __name__ == "__main__":`, since each process imports it.
        on_progress: Called after each job.

    Raises:
        InputError: What `sources.documents` raises, a split that leaves one side empty, or a full disk.
    """
    if not 0 <= val_fraction < 1:
        raise InputError(f"val_fraction {val_fraction} is not in [0, 1): give the share of documents for validation")
    if workers < 1:
        raise InputError(f"workers {workers} is not a number of processes: give 1 or more")
    if workers > 1 and multiprocessing.parent_process() is not None:
        # A worker has run the user's script again, whose call would wait for the lock that its parent holds.
        raise InputError("workers > 1 in a script: put the call under `if __name__ == '__main__':`, or use workers=1")
    cache_dir = Path(cache_dir)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{cache_dir}: cannot be made ({error.strerror}); give another cache folder") from error
    fingerprint = _fingerprint(path, val_path, tokenizer, column, val_fraction, cache_dir)
    target = cache_dir / fingerprint
    with _locked(cache_dir / f"{fingerprint}.lock"):
        if not shards.is_whole(target):
            _remove_leftovers(cache_dir, target.with_suffix(".tmp"))
            job = _Preparation(path, val_path, val_fraction, column, tokenizer, workers, on_progress)
            job.build(target.with_suffix(".tmp"), fingerprint)
            if target.exists():  # damaged
                shutil.rmtree(target)
            target.with_suffix(".tmp").rename(target)
            shards.sync_directory(cache_dir)
    return TextData(target)


def _fingerprint(
    path: Paths, val_path: Paths | None, tokenizer: Tokenizer, column: str, val_fraction: float, cache_dir: Path
) -> str:
    settings = {
        "format": shards.FORMAT,
        "shard_bytes": shards.SHARD_BYTES,
        "train": content_hash(path, cache_dir),
        "val": content_hash(val_path, cache_dir) if val_path is not None else val_fraction,
        "tokenizer": tokenizer_hash(tokenizer),
        "column": column,
    }
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of one cache, so that of many processes one prepares; the system frees it when its holder dies.

    Yields whether the lock is held: always, when told to `wait`. Windows has no such lock; there two may prepare the
    same cache at once, of which one fails.
    """
    with open(path, "a") as file:
        held = True
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held = False
        yield held


def _remove_leftovers(cache_dir: Path, own: Path) -> None:
    """Remove what killed preparations left half-made: `own`, whose lock is ours, and those whose lock nobody holds."""
    for leftover in cache_dir.glob("*.tmp"):
        with _locked(leftover.with_suffix(".lock"), wait=False) as free:
            if free or leftover == own:
                shutil.rmtree(leftover)


def _is_lone_text(path: Paths) -> bool:
    names = resolve(path)
    kind = kind_of(names[0]) if len(names) == 1 else None
    return kind is not None and kind[0] == "txt"


def _hash(piece: str) -> int:
    return int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "little")


def _split_of(first: str, threshold: int) -> int:
    return VAL if _hash(first) < threshold else TRAIN


@dataclass
class _Preparation:
    """One build of one cache: its settings, and what it has counted."""

    path: Paths
    val_path: Paths | None
    val_fraction: float
    column: str
    tokenizer: Tokenizer
    workers: int
    on_progress: Progress | None
    skipped_empty: int = 0

    def build(self, directory: Path, fingerprint: str) -> None:
        """Fill `directory`, or leave nothing there."""
        splits = self.val_path is None and self.val_fraction > 0
        by_pieces = splits and _is_lone_text(self.path)
        way = "path" if self.val_path is not None else "pieces" if by_pieces else "documents" if splits else "none"
        directory.mkdir()
        try:
            with _telling_full_disk(directory):
                meta = self._write(directory, self._threshold(by_pieces) if splits else 0, by_pieces)
                if not meta["train"]["documents"]:
                    raise self._nothing_to_train_on(meta["val"]["documents"])
                shards.write_meta(directory, {"fingerprint": fingerprint, "split": way, **meta})
        except BaseException:
            shutil.rmtree(directory)
            raise

    def _threshold(self, by_pieces: bool) -> int:
        """Return the hash below which a unit is for validation: by the fraction, or just above the smallest of all.

        Reads no further than to the first unit that the fraction takes, which in large corpora comes soon.
        """
        wanted = int(self.val_fraction * HASHES)
        smallest = HASHES
        for document in documents(self.path, self.column):
            units = cut_text(document.pieces, UNIT_CHARACTERS) if by_pieces else islice(document.pieces, 1)
            for unit in units:
                smallest = min(smallest, _hash(unit))
                if smallest < wanted:
                    return wanted
        return smallest + 1

    def _nothing_to_train_on(self, val_documents: int) -> InputError:
        if val_documents == 1:
            why = "a single document cannot be split for validation"
        else:
            why = f"val_fraction {self.val_fraction} leaves nothing to train on (equal documents stay together)"
        return InputError(f"{shown(self.path)}: {why}; give data.val_path, or set data.val_fraction to 0")

    def _write(self, directory: Path, threshold: int, by_pieces: bool) -> dict[str, Any]:
        """Write all shards, with documents whose hash is below `threshold` in val; return their part of the meta."""
        vocab_size = vocabulary_size(self.tokenizer)
        dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        shard_tokens = shards.SHARD_BYTES // dtype.itemsize
        encoder = (self.tokenizer.to_str(), end_of_text_id(self.tokenizer))
        entries = self._piece_entries(threshold) if by_pieces else self._entries(self.path, threshold)
        with (
            SplitWriter(directory, "train", dtype.str, shard_tokens) as train,
            SplitWriter(directory, "val", dtype.str, shard_tokens) as val,
        ):
            for encoded in _in_order(_jobs(self._with_val(entries)), self.workers, encoder):
                train.append(*encoded[TRAIN])
                val.append(*encoded[VAL])
                if self.on_progress is not None:
                    totals = (train.documents + val.documents, train.tokens + val.tokens, train.bytes + val.bytes)
                    self.on_progress(*totals)
        return {
            "dtype": dtype.str,
            "vocab_size": vocab_size,
            "shard_tokens": shard_tokens,
            "skipped_empty": self.skipped_empty,
            "sources": {"path": shown(self.path), "val_path": None if self.val_path is None else shown(self.val_path)},
            "train": train.counts(),
            "val": val.counts(),
        }

    def _with_val(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        yield from entries
        if self.val_path is not None:
            yield from self._entries(self.val_path, HASHES)

    def _entries(self, path: Paths, threshold: int) -> Iterator[Entry]:
        for document in documents(path, self.column):
            first = next(document.pieces, None)
            if first is None:
                self.skipped_empty += 1
                continue
            split = _split_of(first, threshold)
            yield split, first
            for piece in document.pieces:
                yield split, piece
            yield split, None

    def _piece_entries(self, threshold: int) -> Iterator[Entry]:
        """Entries of a lone text; pieces that follow one another on the same side stay one document."""
        for document in documents(self.path, self.column):
            pieces = cut_text(document.pieces, UNIT_CHARACTERS)
            for split, run in groupby(pieces, key=lambda piece: _split_of(piece, threshold)):
                for piece in run:
                    yield split, piece
                yield split, None


@contextmanager
def _telling_full_disk(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        written = sum(file.stat().st_size for file in directory.iterdir())
        raise InputError(
            f"{directory.parent}: no space left on the device after {written:,} bytes of tokens; "
            f"free space there or choose another data.cache_dir"
        ) from error


def _jobs(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    job: list[Entry] = []
    size = 0
    for entry in entries:
        job.append(entry)
        size += 16 + len(entry[1] or "")  # an entry costs something even if its text is short
        if size >= JOB_CHARACTERS:
            yield job
            job, size = [], 0
    if job:
        yield job


class _Encoder:
    """Tokenises jobs. Built from JSON, so that every process has the same one, and none truncates or pads."""

    def __init__(self, tokenizer_json: str, end_of_text: int) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A text that spells out "<|endoftext|>" stays text: data must not be able to forge the borders of documents.
        self._tokenizer.encode_special_tokens = True
        self._end_of_text = end_of_text

    def __call__(self, job: list[Entry]) -> Encoded:
        texts = [text for _, text in job if text is not None]
        encodings = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        ids: list[list[int]] = [[] for _ in SPLITS]
        ends: list[list[int]] = [[] for _ in SPLITS]
        text_bytes = [0 for _ in SPLITS]
        for split, text in job:
            if text is None:
                ids[split].append(self._end_of_text)
                ends[split].append(len(ids[split]))
            else:
                ids[split].extend(next(encodings).ids)
                text_bytes[split] += len(text.encode())
        return [
            (np.array(ids[split], np.uint32), np.array(ends[split], np.int64), text_bytes[split])
            for split in range(len(SPLITS))
        ]


_worker_encoder: _Encoder | None = None


def _start_worker(tokenizer_json: str, end_of_text: int) -> None:
    global _worker_encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism; threads in each would fight
    _worker_encoder = _Encoder(tokenizer_json, end_of_text)


def _encode_in_worker(job: list[Entry]) -> Encoded:
    assert _worker_encoder is not None
    return _worker_encoder(job)


def _in_order(jobs: Iterable[list[Entry]], workers: int, encoder: tuple[str, int]) -> Iterator[Encoded]:
    """Encode jobs in `workers` processes; results come in the order of the jobs, with few of either in memory."""
    if workers == 1:
        yield from map(_Encoder(*encoder), jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_start_worker, initargs=encoder) as pool:
        pending: deque[Future[Encoded]] = deque()
        for job in jobs:
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
            pending.append(pool.submit(_encode_in_worker, job))
        while pending:
            yield pending.popleft().result()
