"""What is to be tokenised: a corpus as a stream of small jobs, the same in every process, to be entered anywhere.

    sources ─► documents ─► entries (split, piece) ─► jobs of about 256 Ki characters ─► Encoder ─► Encoded

Where a job ends changes no token, so preparations that were cut elsewhere, or read by other processes, make the same
shards.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from bedplate.data.shards import SPLITS
from bedplate.data.sources import cut_text, documents_in

Entry = tuple[int, str | None]
"""(index of the split, next piece of the current document of that split, or None at its end); an empty document is
(`EMPTY`, None)."""

TRAIN, VAL = range(len(SPLITS))
EMPTY = -1
HASHES = 2**64
JOB_CHARACTERS = 2**18
UNIT_CHARACTERS = 2**12
"""Size of the pieces of whole lines by which a lone .txt is split: 4 KiB of ASCII."""


class Place(NamedTuple):
    """A place in a corpus: `entries` of the source of this index are behind it, and all sources before.

    Journals hold places: what changes where an entry ends needs another `shards.FORMAT`.
    """

    source: int = 0
    entries: int = 0


class Job(NamedTuple):
    """Entries to tokenise, and the place just after them."""

    entries: list[Entry]
    end: Place


class Encoded(NamedTuple):
    """A tokenised job: for each split what `SplitWriter.append` takes (ids, document ends, bytes of text)."""

    splits: list[tuple[np.ndarray, np.ndarray, int]]
    empty: int


@dataclass(frozen=True)
class Corpus:
    """The text of one preparation, in reading order.

    Attributes:
        sources: (name, as `sources.resolve` gives it; hash below which its documents are for validation).
        column: Key or column of the text in formats with rows.
        by_pieces: Whether it is one lone text, split by runs of whole lines.
        job_characters: Size of a job.
    """

    sources: list[tuple[str, int]]
    column: str
    by_pieces: bool = False
    job_characters: int = field(default_factory=lambda: JOB_CHARACTERS)

    def jobs(self, start: Place = Place(), stop: int | None = None) -> Iterator[Job]:  # noqa: B008  (immutable)
        """Stream the jobs from a place to the source of index `stop`, or to the end."""
        entries: list[Entry] = []
        size, place = 0, start
        for place, entry in self._places(start, len(self.sources) if stop is None else stop):
            entries.append(entry)
            size += 16 + len(entry[1] or "")  # an entry costs something even if its text is short
            if size >= self.job_characters:
                yield Job(entries, place)
                entries, size = [], 0
        if entries:
            yield Job(entries, place)

    def _places(self, start: Place, stop: int) -> Iterator[tuple[Place, Entry]]:
        """Entries, each with the place behind it."""
        for index in range(start.source, stop):
            behind = start.entries if index == start.source else 0
            entries = islice(self._entries(*self.sources[index]), behind, None)
            for number, entry in enumerate(entries, behind + 1):
                yield Place(index, number), entry

    def _entries(self, name: str, threshold: int) -> Iterator[Entry]:
        for document in documents_in(name, self.column):
            if self.by_pieces:
                yield from _runs(document.pieces, threshold)
                continue
            first = next(document.pieces, None)
            if first is None:
                yield EMPTY, None
                continue
            split = _split_of(first, threshold)
            yield split, first
            for piece in document.pieces:
                yield split, piece
            yield split, None


def split_hashes(pieces: Iterator[str], by_pieces: bool) -> Iterator[int]:
    """The hashes in [0, 2^64) by which a document, or each unit of a lone text, is sorted into train or val."""
    return map(_hash, cut_text(pieces, UNIT_CHARACTERS) if by_pieces else islice(pieces, 1))


def _runs(pieces: Iterable[str], threshold: int) -> Iterator[Entry]:
    """Entries of a lone text; units that follow one another on the same side stay one document."""
    units = cut_text(pieces, UNIT_CHARACTERS)
    for split, run in groupby(units, key=lambda unit: _split_of(unit, threshold)):
        for unit in run:
            yield split, unit
        yield split, None


def _hash(piece: str) -> int:
    return int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "little")


def _split_of(first: str, threshold: int) -> int:
    return VAL if _hash(first) < threshold else TRAIN


class Encoder:
    """Tokenises jobs. Built from JSON, so that every process has the same one, and none truncates or pads."""

    def __init__(self, tokenizer_json: str, end_of_text: int) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A text that spells out "<|endoftext|>" stays text: data must not be able to forge the borders of documents.
        self._tokenizer.encode_special_tokens = True
        self._end_of_text = end_of_text

    def __call__(self, entries: list[Entry]) -> Encoded:
        texts = [text for _, text in entries if text is not None]
        encodings = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        ids: list[list[int]] = [[] for _ in SPLITS]
        ends: list[list[int]] = [[] for _ in SPLITS]
        text_bytes = [0 for _ in SPLITS]
        empty = 0
        for split, text in entries:
            if split == EMPTY:
                empty += 1
            elif text is None:
                ids[split].append(self._end_of_text)
                ends[split].append(len(ids[split]))
            else:
                ids[split].extend(next(encodings).ids)
                text_bytes[split] += len(text.encode())
        splits = [
            (np.array(ids[split], np.uint32), np.array(ends[split], np.int64), text_bytes[split])
            for split in range(len(SPLITS))
        ]
        return Encoded(splits, empty)
