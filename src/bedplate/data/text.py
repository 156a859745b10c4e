"""From documents to token shards: tokenise, end each document, split, pack, and cache by content.

    Corpus ─► jobs ─► engine (who tokenises) ─► SplitWriter, with a journal ─► cache directory ─► TextData

Results are written in the order of the corpus by this process alone, so the shards do not depend on the engine, the
number of workers, or how often the preparation was killed and went on.
"""

import errno
import glob
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bedplate.data import remote, shards
from bedplate.data.engines import ENGINES
from bedplate.data.jobs import HASHES, TRAIN, VAL, Corpus, Place, split_hashes
from bedplate.data.shards import SplitWriter, TextData
from bedplate.data.sources import Paths, content_hash, documents, kind_of, no_text, resolve, shown
from bedplate.data.tokenizer import end_of_text_id, tokenizer_hash, vocabulary_size
from bedplate.errors import InputError

Progress = Callable[[int, int, int], None]
"""Called with the documents, tokens and bytes of text written so far."""

JOURNAL_SECONDS = 10
"""Work that a kill can cost. Bringing the shards to the disk this often costs nothing that can be measured."""
LEFTOVER_SECONDS = 7 * 24 * 3600
"""How long what a dead preparation has done waits for somebody who goes on with it."""


def prepare(
    path: Paths,
    tokenizer: Tokenizer,
    *,
    column: str = "text",
    val_path: Paths | None = None,
    val_fraction: float = 0.01,
    cache_dir: str | Path,
    workers: int = 1,
    engine: str = "local",
    on_progress: Progress | None = None,
) -> TextData:
    """Tokenise `path` into memory-mapped shards, or open those that an earlier call left in `cache_dir`.

    Text is streamed: memory does not grow with it. A call that was killed is gone on with by the next one, from a
    journal that is at most `JOURNAL_SECONDS` old.

    A document goes to validation when the hash of its first piece, as a fraction of all hashes, is below
    `val_fraction`: duplicates land on one side, and neither order nor neighbours matter. If that takes no document, the
    one of smallest hash goes. A source of one lone .txt is split by runs of whole lines of about 4 KiB instead
    (`meta["split"] == "pieces"`, each run a document of its own). A special token that the text spells out stays
    text.

    Args:
        path: Training text, as `sources.documents` takes it, or a folder or URL that an earlier call has filled, which
            is opened with the split that it has.
        tokenizer: Must have an end-of-text token, which is added after each document.
        column: Key or column of the text in formats with rows.
        val_path: Validation text of its own; then nothing is split off `path`.
        val_fraction: Share of the documents for validation, in [0, 1); 0 for none.
        cache_dir: Folder of all caches; this one is at `cache_dir/FINGERPRINT`, by content, tokenizer and settings. It
            may be a URL: what is not there yet is made on this disk and uploaded when whole, `meta.json` last.
        workers: Processes that tokenise; 1 stays in this one. With more, a script must call this under
            `if __name__ == "__main__":`, since each process imports it.
        engine: "local", or "ray": the workers are those of a Ray cluster. The shards are the same.
        on_progress: Called after each job.

    Raises:
        InputError: What `sources.documents` raises, a split that leaves one side empty, a full disk, a worker
            that was killed, or no Ray.
    """
    _check_settings(val_fraction, workers, engine)
    if (ready := _ready(path, tokenizer, val_path)) is not None:
        return ready
    place = remote.location(cache_dir)
    url = place.rstrip("/") if remote.is_remote(place) else None
    folder = Path(place) if url is None else remote.mirror(url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); give another cache folder") from error
    fingerprint = _fingerprint(path, val_path, tokenizer, column, val_fraction, folder)
    with _locked(folder / f"{fingerprint}.lock"):
        there = f"{url}/{fingerprint}"
        uploaded = url is not None and shards.is_whole(there)
        if uploaded and not shards.is_whole(folder / fingerprint):
            return TextData(there)
        job = _Preparation(path, val_path, val_fraction, column, tokenizer, workers, engine, on_progress)
        target = job.made(folder, fingerprint)
        if url is not None and not uploaded:
            remote.upload(target, there, last=shards.META)
    return TextData(target)


def _check_settings(val_fraction: float, workers: int, engine: str) -> None:
    if engine not in ENGINES:
        raise InputError(f"engine '{engine}' is not known; choose one of {', '.join(ENGINES)}")
    if not 0 <= val_fraction < 1:
        raise InputError(f"val_fraction {val_fraction} is not in [0, 1): give the share of documents for validation")
    if workers < 1:
        raise InputError(f"workers {workers} is not a number of processes: give 1 or more")
    if engine == "local" and workers > 1 and multiprocessing.parent_process() is not None:
        # A worker has run the user's script again, whose call would wait for the lock that its parent holds.
        raise InputError("workers > 1 in a script: put the call under `if __name__ == '__main__':`, or use workers=1")


def _ready(path: Paths, tokenizer: Tokenizer, val_path: Paths | None) -> TextData | None:
    """The shards in a folder or URL that `prepare` has filled; None where `path` is text."""
    places = [path] if isinstance(path, str | Path) else path
    name = remote.location(places[0]) if len(places) == 1 else ""
    place = name if remote.is_remote(name) else Path(os.path.expanduser(name))
    if kind_of(name) is not None or glob.has_magic(name) or not name or not shards.is_whole(place):
        return None
    data = TextData(place)
    if data.meta.get("tokenizer", tokenizer_hash(tokenizer)) != tokenizer_hash(tokenizer):
        raise InputError(f"{shown(path)}: was prepared with another tokenizer; give that one as tokenizer.path")
    if val_path is not None:
        raise InputError(f"{shown(path)}: is prepared and split already; leave data.val_path out")
    return data


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


def _remove_leftovers(folder: Path, own: Path) -> None:
    """Remove what dead preparations left and nobody can or will go on with: no journal, or an old one."""
    for leftover in folder.glob("*.tmp"):
        journal = leftover / shards.JOURNAL
        with _locked(leftover.with_suffix(".lock"), wait=False) as free:
            if leftover == own or not free:
                continue
            if not journal.exists() or time.time() - journal.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(leftover)


def _is_lone_text(path: Paths) -> bool:
    names = resolve(path)
    kind = kind_of(names[0]) if len(names) == 1 else None
    return kind is not None and kind[0] == "txt"


@dataclass
class _Preparation:
    """One build of one cache: its settings."""

    path: Paths
    val_path: Paths | None
    val_fraction: float
    column: str
    tokenizer: Tokenizer
    workers: int
    engine: str
    on_progress: Progress | None

    def made(self, folder: Path, fingerprint: str) -> Path:
        """The cache of this fingerprint, made in a folder beside its place where it is not there; its lock is ours."""
        target = folder / fingerprint
        if shards.is_whole(target):
            return target
        half_made = target.with_suffix(".tmp")
        _remove_leftovers(folder, half_made)
        if not shards.is_whole(half_made):  # else it was killed before the next lines
            self._build(half_made, fingerprint)
        (half_made / shards.JOURNAL).unlink(missing_ok=True)
        if target.exists():  # damaged
            shutil.rmtree(target)
        half_made.rename(target)
        shards.sync_directory(folder)
        return target

    def _build(self, directory: Path, fingerprint: str) -> None:
        """Fill `directory`, or go on with filling it; what is worth nothing is removed when that fails."""
        state = shards.read_journal(directory)
        if state is None:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
        splits = self.val_path is None and self.val_fraction > 0
        by_pieces = splits and _is_lone_text(self.path)
        way = "path" if self.val_path is not None else "pieces" if by_pieces else "documents" if splits else "none"
        try:
            with _telling_full_disk(directory):
                meta = self._write(directory, self._corpus(by_pieces, splits), state or {})
                self._check(meta)
                shards.write_meta(directory, {"fingerprint": fingerprint, "split": way, **meta})
        except BaseException as error:
            # Bad text must be mended, and is another text then. After a kill (also of a worker), a full disk or a
            # network that is gone, the journal is of use.
            bad_text = isinstance(error, InputError) and not isinstance(error.__cause__, OSError | BrokenExecutor)
            if bad_text or not (directory / shards.JOURNAL).exists():
                shutil.rmtree(directory)
            raise

    def _corpus(self, by_pieces: bool, splits: bool) -> Corpus:
        threshold = self._threshold(by_pieces) if splits else 0
        val = [] if self.val_path is None else resolve(self.val_path)
        sources = [(name, threshold) for name in resolve(self.path)] + [(name, HASHES) for name in val]
        return Corpus(sources, self.column, by_pieces)

    def _threshold(self, by_pieces: bool) -> int:
        """Return the hash below which a unit is for validation: by the fraction, or just above the smallest of all.

        Reads no further than to the first unit that the fraction takes, which in large corpora comes soon.
        """
        wanted = int(self.val_fraction * HASHES)
        smallest = HASHES
        for document in documents(self.path, self.column):
            for found in split_hashes(document.pieces, by_pieces):
                smallest = min(smallest, found)
                if smallest < wanted:
                    return wanted
        return smallest + 1

    def _write(self, directory: Path, corpus: Corpus, state: dict[str, Any]) -> dict[str, Any]:
        """Write all shards from where `state` says; return their part of the meta."""
        vocab_size = vocabulary_size(self.tokenizer)
        dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        shard_tokens = shards.SHARD_BYTES // dtype.itemsize
        encoder = (self.tokenizer.to_str(), end_of_text_id(self.tokenizer))
        empty, start = state.get("skipped_empty", 0), Place(*state.get("place", ()))
        with (
            SplitWriter(directory, "train", dtype.str, shard_tokens, state.get("train")) as train,
            SplitWriter(directory, "val", dtype.str, shard_tokens, state.get("val")) as val,
        ):
            recorded = time.monotonic()
            for encoded, place in ENGINES[self.engine](corpus, start, self.workers, encoder):
                train.append(*encoded.splits[TRAIN])
                val.append(*encoded.splits[VAL])
                empty += encoded.empty
                if time.monotonic() - recorded >= JOURNAL_SECONDS:
                    done = {"place": place, "skipped_empty": empty, "train": train.sync(), "val": val.sync()}
                    shards.write_journal(directory, done)
                    recorded = time.monotonic()
                if self.on_progress is not None:
                    totals = (train.documents + val.documents, train.tokens + val.tokens, train.bytes + val.bytes)
                    self.on_progress(*totals)
        return {
            "dtype": dtype.str,
            "vocab_size": vocab_size,
            "tokenizer": tokenizer_hash(self.tokenizer),
            "shard_tokens": shard_tokens,
            "skipped_empty": empty,
            "sources": {"path": shown(self.path), "val_path": None if self.val_path is None else shown(self.val_path)},
            "train": train.counts(),
            "val": val.counts(),
        }

    def _check(self, meta: dict[str, Any]) -> None:
        """Raise InputError where a split has come out empty."""
        train, val = meta["train"]["documents"], meta["val"]["documents"]
        if self.val_path is not None and not val:
            raise no_text(self.val_path)
        if train:
            return
        if self.val_path is not None or not val:
            raise no_text(self.path)
        if val == 1:
            why = "a single document cannot be split for validation"
        else:
            why = f"val_fraction {self.val_fraction} leaves nothing to train on (equal documents stay together)"
        raise InputError(
            f"{shown(self.path)}: {why}; give text to validate on (data.val_path, --val-data), or hold none out "
            "(data.val_fraction=0, --val-fraction 0)"
        )


@contextmanager
def _telling_full_disk(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        written = sum(file.stat().st_size for file in directory.glob("*.bin"))
        raise InputError(
            f"{directory.parent}: no space left on the device after {written:,} bytes of tokens; free space there and "
            f"do the same again, or choose another cache folder (data.cache)"
        ) from error
