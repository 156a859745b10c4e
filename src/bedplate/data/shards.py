"""Token shards: what `prepare` writes and a run reads, one stream of tokens a split in memory-mapped files.

A cache directory holds, for each split, `SPLIT-00000.bin`, `SPLIT-00001.bin`, ... (little-endian ids, one after the
other, each document ended by the end-of-text id), `SPLIT.starts.bin` (uint64 position of each document's first token)
and one `meta.json`.
"""

import json
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

FORMAT = 1
SHARD_BYTES = 2**28
SPLITS = ("train", "val")


class TokenStream:
    """The tokens of one split, read-only, as if they were one array.

    Attributes:
        documents: Number of documents.
        bytes: UTF-8 bytes of text behind the tokens (the end-of-text ids stand for none).
        meta: Everything that `meta.json` records of the cache.
    """

    def __init__(self, directory: Path, split: str, meta: dict[str, Any]) -> None:
        counts = meta[split]
        self.meta = meta
        self.documents: int = counts["documents"]
        self.bytes: int = counts["bytes"]
        self._length: int = counts["tokens"]
        self._shard_tokens: int = meta["shard_tokens"]
        self._shards = [np.memmap(directory / name, meta["dtype"], mode="r") for name in counts["shards"]]
        self._starts = np.memmap(directory / f"{split}.starts.bin", "<u8", mode="r")

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

    Attributes:
        directory: Where the shards lie.
        meta: `meta.json`: fingerprint, dtype, vocab_size, how the split was made, counts of each split, skipped_empty,
            sources.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.meta: dict[str, Any] = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        self.train = TokenStream(directory, "train", self.meta)
        self.val = TokenStream(directory, "val", self.meta) if self.meta["val"]["tokens"] else None


class SplitWriter:
    """Writes one split's shards and document starts; a document may cross from one shard to the next."""

    def __init__(self, directory: Path, split: str, dtype: str, shard_tokens: int) -> None:
        self._directory, self._split = directory, split
        self._dtype, self._shard_tokens = np.dtype(dtype), shard_tokens
        self._starts: IO[bytes] = open(directory / f"{split}.starts.bin", "wb")  # noqa: SIM115  (closed by __exit__)
        self._shard: IO[bytes] | None = None
        self._next_start = 0
        self.shards: list[str] = []
        self.documents = self.tokens = self.bytes = 0

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

    def counts(self) -> dict[str, Any]:
        """Return what `meta.json` says of this split."""
        return {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes, "shards": self.shards}

    def _open_shard(self) -> None:
        if self._shard is not None:
            _sync_and_close(self._shard)
        self.shards.append(f"{self._split}-{len(self.shards):05d}.bin")
        self._shard = open(self._directory / self.shards[-1], "wb")  # noqa: SIM115  (closed by __exit__)


def write_meta(directory: Path, meta: dict[str, Any]) -> None:
    """Write `meta.json` with the sizes of all files beside it, and bring directory and file to the disk."""
    files = {file.name: file.stat().st_size for file in sorted(directory.iterdir())}
    with open(directory / "meta.json", "w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, **meta, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)


def is_whole(directory: Path) -> bool:
    """Whether `directory` holds a cache of this format of which every file has the size that `meta.json` records."""
    try:
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        sizes = {name: (directory / name).stat().st_size for name in meta["files"]}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return False
    return bool(meta["format"] == FORMAT and sizes == meta["files"])


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
