"""Texts that are nearly the same, found exactly and without comparing every pair.

Two sets of shingles whose Jaccard similarity is at least t share a shingle among the |x| - ceil(t |x|) + 1 first ones
of each, whatever the order; with the rarest first, few pairs do (Bayardo, Ma and Srikant 2007, "Scaling Up All Pairs
Similarity Search"; Xiao et al. 2008, "Efficient Similarity Joins for Near Duplicate Detection").
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from bedplate.data.order import keys
from bedplate.errors import InputError

Numbers = NDArray[np.int64]
Shingles = NDArray[np.uint64]
"""(n,) sorted distinct hashes"""

SHINGLE = 5
CHUNK_TEXTS = 256
BLOCK_SHINGLES = 2**23
"""Shingles that are indexed at one time, some 64 bytes each."""


def near_duplicates(texts: Sequence[str], against: Sequence[str], threshold: float = 0.7) -> Numbers:
    """Find the texts that nearly repeat a text of `against`.

    Nearly: the Jaccard similarity of their sets of shingles, the runs of 5 characters of the text in lower case and
    with one space for whatever is no letter or digit, is at least `threshold`. Shorter texts are compared whole.

    Args:
        texts: The texts to be found.
        against: What they are compared with.
        threshold: Least similarity, in (0, 1]; 1 finds only texts of the same shingles.

    Returns:
        (n,) sorted indices of `texts`. The search is exact, but for a chance of 2^-64 that two shingles are confused.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold {threshold} is not in (0, 1]: give the least similarity of near duplicates")
    found = np.zeros(len(texts), bool)
    for block in _blocks(_shingle_sets(against)):
        index = _Index(block, threshold)
        rest = np.flatnonzero(~found).tolist()
        for i, shingles in zip(rest, _shingle_sets(texts[i] for i in rest), strict=True):
            found[i] = index.has_near(shingles)
    return np.flatnonzero(found)


def _normalised(text: str) -> str:
    """In lower case, each run of what is no letter or digit as one space; signs stay where there is nothing else."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", " ", folded).strip() or folded.strip()


def _shingle_sets(texts: Iterable[str]) -> Iterator[Shingles]:
    """The shingles of each text, at least one."""
    iterator = iter(texts)
    while chunk := list(islice(iterator, CHUNK_TEXTS)):
        padded = [_normalised(text).ljust(SHINGLE, "\0") for text in chunk]
        points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        n = len(points) - SHINGLE + 1
        first, second, third, fourth, fifth = (points[i : i + n] for i in range(SHINGLE))  # 21 bits each
        bits = np.uint64(21)
        hashes = keys(0, (((first << bits) | second) << bits) | third, (fourth << bits) | fifth)
        start = 0
        for text in padded:
            own = np.sort(hashes[start : start + len(text) - SHINGLE + 1])
            yield own[np.append(True, own[1:] != own[:-1])]  # np.unique takes up to six times as long
            start += len(text)


def _blocks(sets: Iterable[Shingles]) -> Iterator[list[Shingles]]:
    """The sets in lists of at most about BLOCK_SHINGLES shingles."""
    block: list[Shingles] = []
    total = 0
    for shingles in sets:
        block.append(shingles)
        total += len(shingles)
        if total > BLOCK_SHINGLES:
            yield block
            block, total = [], 0
    if block:
        yield block


class _Index:
    """Sets in order of size, their shingles as ranks (the rarest first), and where the head of each lies."""

    def __init__(self, sets: list[Shingles], threshold: float) -> None:
        self.threshold = threshold
        self.loose = threshold * (1 - 1e-9)  # for filters: 0.07 * 100 rounds to more than 7
        sets = sorted(sets, key=len)
        self.sizes = np.array([len(shingles) for shingles in sets])
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.vocabulary, ids, counts = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
        self.rank_of = np.empty(len(counts), np.int64)
        self.rank_of[np.argsort(counts, kind="stable")] = np.arange(len(counts))
        owners = np.repeat(np.arange(len(sets)), self.sizes)
        base = owners * len(counts)
        self.ranks = np.sort(base + self.rank_of[ids]) - base  # ascending within each set
        self.heads = self._head(self.sizes)
        self.last = self.ranks[self.starts + self.heads - 1]
        in_head = np.arange(len(owners)) - self.starts[owners] < self.heads[owners]
        # rank * sets + set, sorted: a search finds the sets of a range of sizes that have a rank in their heads
        self.postings = np.sort(self.ranks[in_head] * len(sets) + owners[in_head])
        self.owners = self.postings % len(sets)
        self.marked = np.zeros(len(counts), bool)

    def has_near(self, shingles: Shingles) -> bool:
        """Whether a set of the index is similar to this one, (n,)."""
        size = len(shingles)
        low = int(self.sizes.searchsorted(math.ceil(self.loose * size)))
        high = int(self.sizes.searchsorted(math.floor(size / self.loose), "right"))
        places = np.minimum(self.vocabulary.searchsorted(shingles), len(self.vocabulary) - 1)
        ranks = np.sort(self.rank_of[places[self.vocabulary[places] == shingles]])
        # Shingles that the index does not have are the rarest of all: they come first, and match nothing.
        head = int(self._head(np.array(size)))
        ranks_in_head = ranks[: max(0, head - (size - len(ranks)))]
        if low == high or not len(ranks_in_head):
            return False
        shared = np.bincount(self._owners(ranks_in_head, low, high) - low, minlength=high - low)
        # What the heads do not share lies, of the one whose head ends at the lower rank, behind its head.
        sizes = self.sizes[low:high]
        behind = np.where(ranks_in_head[-1] <= self.last[low:high], size - head, sizes - self.heads[low:high])
        needed = self.loose / (1 + self.loose) * (size + sizes)
        candidates = low + np.flatnonzero((shared > 0) & (shared + behind >= needed))
        self.marked[ranks] = True
        near = any(self._similarity(size, i) >= self.threshold for i in candidates.tolist())
        self.marked[ranks] = False
        return near

    def _head(self, sizes: Numbers) -> Numbers:
        """How many first shingles of sets of these sizes share one with those of every similar set."""
        return sizes - np.ceil(self.loose * sizes).astype(np.int64) + 1

    def _owners(self, ranks: Numbers, low: int, high: int) -> Numbers:
        """The sets from `low` to `high` that have these ranks in their heads, once for each rank."""
        first = ranks * len(self.sizes)
        starts = self.postings.searchsorted(first + low)
        counts = self.postings.searchsorted(first + high) - starts
        ends = np.cumsum(counts)
        return self.owners[np.arange(ends[-1]) + np.repeat(starts - ends + counts, counts)]

    def _similarity(self, size: int, number: int) -> float:
        """Jaccard similarity of the marked set and one of the index."""
        start, other = self.starts[number], self.sizes[number]
        shared = np.count_nonzero(self.marked[self.ranks[start : start + other]])
        return float(shared / (size + other - shared))
