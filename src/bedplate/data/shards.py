"""Token shards: what `prepare` writes and a run reads, one stream of tokens a split in memory-mapped files.

A cache directory holds, for each split, `SPLIT-00000.bin`, `SPLIT-00001.bin`, ... (little-endian ids, one after the
other, each document ended by the end-of-text id), `SPLIT.starts.bin` (uint64 position of each document's first token)
and one `meta.json`; while they are written, `journal.json` says what of them is on the disk. The directory may be a
URL to read from.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from bedplate.data import remote
from bedplate.data.remote import RemoteArray

FORMAT = 1
SHARD_BYTES = 2**28
SPLITS = ("train", "val")
META, JOURNAL = "meta.json", "journal.json"


class TokenStream:
    """The tokens of one split, read-only, as if they were one array.

    Attributes:
        documents: Number of documents.
        bytes: UTF-8 bytes of text behind the tokens (the end-of-text ids stand for none).
        meta: Everything that `meta.json` records of the cache.
    """

    def __init__(self, directory: Path | str, split: str, meta: dict[str, Any]) -> None:
        counts = meta[split]
        self.meta = meta
        self.documents: int = counts["documents"]
        self.bytes: int = counts["bytes"]
        self._length: int = counts["tokens"]
        self._shard_tokens: int = meta["shard_tokens"]
        names, starts = counts["shards"], f"{split}.starts.bin"
        self._shards: Sequence[np.memmap | RemoteArray]
        if isinstance(directory, Path):
            self._shards = [np.memmap(directory / name, meta["dtype"], mode="r") for name in names]
            kept = directory / starts
        else:
            sizes, folder = meta["files"], remote.mirror(f"{directory}#{meta['fingerprint']}")
            self._shards = [RemoteArray(f"{directory}/{name}", sizes[name], meta["dtype"], folder) for name in names]
            kept = remote.whole(f"{directory}/{starts}", sizes[starts], folder)  # searched, not read in windows
        self._starts = np.memmap(kept, "<u8", mode="r")

    def __len__(self) -> int:
        """Count the tokens."""
        return self._length

    def tokens(self, start: int, count: int) -> np.ndarray:
        """Return tokens [start, start + count) as (count,) int64; IndexError outside the stream."""
        self._check(start, count)
        out = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            shard, offset = divmod(start + done, self._shard_tokens)
            part = self._shards[shard][offset : offset + count - done]
            out[done : done + len(part)] = part
            done += len(part)
        return out

    def documents_of(self, start: int, count: int) -> np.ndarray:
        """Return for each of the tokens [start, start + count) the index of its document, (count,) int64."""
        self._check(start, count)
        positions = np.arange(start, start + count, dtype=np.uint64)
        return np.searchsorted(self._starts, positions, side="right").astype(np.int64) - 1

    def document_around(self, position: int) -> tuple[int, int]:
        """Return (first token, one past the last) of the document that holds a token."""
        self._check(position, 1)
        index = int(np.searchsorted(self._starts, np.uint64(position), side="right"))
        stop = int(self._starts[index]) if index < len(self._starts) else self._length
        return int(self._starts[index - 1]), stop

    def _check(self, start: int, count: int) -> None:
        if not 0 <= start <= start + count <= self._length:
            raise IndexError(f"tokens [{start}, {start + count}) of a stream of {self._length}")


class TextData:
    """Prepared text: `train` and, unless the recipe asked for none, `val`.

    Args:
        directory: A folder that `prepare` made, or the URL of one: of that only the blocks that are read are fetched,
            and kept on this machine's disk.

    Attributes:
        directory: Where the shards lie: a Path, or the URL as a string.
        meta: `meta.json`: fingerprint, dtype, vocab_size, how the split was made, counts of each split, skipped_empty,
            sources.
    """

    def __init__(self, directory: Path | str) -> None:
        place = remote.location(directory).rstrip("/")
        self.directory = place if remote.is_remote(place) else Path(place)
        self.meta: dict[str, Any] = json.loads(_read_meta(self.directory))
        self.train = TokenStream(self.directory, "train", self.meta)
        self.val = TokenStream(self.directory, "val", self.meta) if self.meta["val"]["tokens"] else None


class SplitWriter:
    """Writes one split's shards and document starts; a document may cross from one shard to the next.

    Args:
        directory: Where to write.
        split: Name of the split.
        dtype: Of the ids.
        shard_tokens: Tokens in each shard but the last.
        done: What `sync` returned, to go on from there; the files must have the sizes that they had then.
    """

    def __init__(
        self, directory: Path, split: str, dtype: str, shard_tokens: int, done: dict[str, Any] | None = None
    ) -> None:
        self._directory, self._split = directory, split
        self._dtype, self._shard_tokens = np.dtype(dtype), shard_tokens
        self._next_start: int = done["next_start"] if done else 0
        self.shards: list[str] = list(done["shards"]) if done else []
        self.documents, self.tokens, self.bytes = (
            done[name] if done else 0 for name in ("documents", "tokens", "bytes")
        )
        self._starts: IO[bytes] = self._open(f"{split}.starts.bin", "ab" if done else "wb")
        self._shard: IO[bytes] | None = self._open(self.shards[-1], "ab") if self.shards else None

    def append(self, ids: np.ndarray, ends: np.ndarray, text_bytes: int) -> None:
        """Write the next tokens.

        Args:
            ids: (n,) tokens, end-of-text ids included.
            ends: (d,) positions in `ids` just after the end of a document, rising.
            text_bytes: UTF-8 bytes of the text behind `ids`.
        """
        if len(ends):
            bounds = np.concatenate([[self._next_start], self.tokens + ends])
            self._starts.write(bounds[:-1].astype("<u8").tobytes())
            self._next_start = int(bounds[-1])
            self.documents += len(ends)
        self.bytes += text_bytes
        while len(ids):
            room = self._shard_tokens - self.tokens % self._shard_tokens
            if room == self._shard_tokens:
                self._open_shard()
            assert self._shard is not None
            part, ids = ids[:room], ids[room:]
            self._shard.write(part.astype(self._dtype).tobytes())
            self.tokens += len(part)

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        """Bring everything to the disk."""
        for file in (self._shard, self._starts):
            if file is not None:
                _sync_and_close(file)

    def sync(self) -> dict[str, Any]:
        """Bring everything to the disk; return what a writer needs to go on from here."""
        for file in (self._shard, self._starts):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())
        return {**self.counts(), "next_start": self._next_start}

    def counts(self) -> dict[str, Any]:
        """Return what `meta.json` says of this split."""
        return {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes, "shards": self.shards}

    def _open_shard(self) -> None:
        if self._shard is not None:
            _sync_and_close(self._shard)
        self.shards.append(f"{self._split}-{len(self.shards):05d}.bin")
        self._shard = self._open(self.shards[-1], "wb")

    def _open(self, name: str, mode: str) -> IO[bytes]:
        return open(self._directory / name, mode)  # closed by __exit__


def write_journal(directory: Path, state: dict[str, Any]) -> None:
    """Record how far a preparation has come, after its files have been brought to the disk as far."""
    sync_directory(directory)  # the names of new shards
    _write_json(directory / JOURNAL, {"format": FORMAT, **state, "files": _shard_sizes(directory)})


def read_journal(directory: Path) -> dict[str, Any] | None:
    """Return the state that `write_journal` recorded, all files cut back to it; None where there is none to use."""
    try:
        journal: dict[str, Any] = json.loads((directory / JOURNAL).read_text(encoding="utf-8"))
        found, recorded = _shard_sizes(directory), journal["files"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return None
    if journal["format"] != FORMAT or any(found.get(name, -1) < size for name, size in recorded.items()):
        return None
    for name, size in recorded.items():
        os.truncate(directory / name, size)
    return journal


def write_meta(directory: Path, meta: dict[str, Any]) -> None:
    """Write `meta.json` with the sizes of all files beside it, and bring directory and file to the disk."""
    _write_json(directory / META, {"format": FORMAT, **meta, "files": _shard_sizes(directory)})


def is_whole(directory: Path | str) -> bool:
    """Whether `directory` holds a cache of this format of which every file has the size that `meta.json` records."""
    if isinstance(directory, Path):
        sizes = _file_sizes(directory) if os.path.isfile(directory / META) else {}  # it may be a text, not a path
    else:
        sizes = remote.sizes(directory)
    if META not in sizes:
        return False
    content = _read_meta(directory)
    try:
        meta = json.loads(content)
        recorded = meta["files"]
        return bool(meta["format"] == FORMAT and recorded == {name: sizes[name] for name in recorded})
    except (ValueError, KeyError, TypeError):
        return False


def _read_meta(directory: Path | str) -> bytes:
    if isinstance(directory, Path):
        return (directory / META).read_bytes()
    return remote.read(f"{directory}/{META}")


def _file_sizes(directory: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(directory.iterdir()) if file.is_file()}


def _shard_sizes(directory: Path) -> dict[str, int]:
    return {name: size for name, size in _file_sizes(directory).items() if name.endswith(".bin")}


def _write_json(file: Path, values: dict[str, Any]) -> None:
    """Write a file that is there in full or not at all, and bring it to the disk."""
    temporary = file.with_suffix(".part")
    with open(temporary, "w", encoding="utf-8") as target:
        json.dump(values, target, indent=1)
        target.flush()
        os.fsync(target.fileno())
    temporary.replace(file)
    sync_directory(file.parent)


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk, so that a rename in it outlives a power failure."""
    if os.name == "posix":  # Windows cannot open directories, and journals renames
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_and_close(file: IO[bytes]) -> None:
    with file:
        file.flush()
        os.fsync(file.fileno())
