"""Masks over rows of text: what masked language modelling learns from."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from bedplate.data.loader import IGNORE, Batch, Loader
from bedplate.data.tokenizer import mask_id, special_ids, vocabulary_size

HIDDEN, SWAPPED = 0.8, 0.1  # of the chosen tokens; the others stay as they are (BERT, arXiv 1810.04805, section 3.1)


@dataclass(frozen=True)
class Masking:
    """Chooses the tokens of a row that are to be foretold, and hides them.

    Every row has the same number of chosen tokens, so that shapes are static. What is chosen follows from the seed, the
    step and the row's own tokens: it does not depend on how rows are shared by ranks and micro-batches.

    Args:
        tokenizer: has the mask token.
        rate: share of a row's tokens that are chosen.
        shift: 0, a token is foretold from its own place, as in BERT; 1, from the place before it, as a causal model
            foretells (masked next-token prediction, arXiv 2410.24159, section 2).
        seed: of the choice.
    """

    mask: int
    is_word: np.ndarray  # (V,) bool: tokens that may be hidden, or stand in for another
    rate: float
    shift: int
    seed: int

    @staticmethod
    def of(tokenizer: Tokenizer, rate: float, shift: int, seed: int) -> Masking:
        """
        Raises:
            InputError: the tokenizer has no mask token.
        """
        is_word = np.ones(vocabulary_size(tokenizer), bool)
        is_word[special_ids(tokenizer)] = False
        return Masking(mask_id(tokenizer), is_word, rate, shift, seed)

    def __call__(self, batch: Batch, step: int = 0) -> Batch:
        """The batch with `masked_ids (B, T)`, and `masked_at` and `masked_targets (B, K)`, int64.

        The state at `masked_at` foretells `masked_targets`; K is `rate` of T, at least 1. Of a row that ends in padding
        only `rate` of its text is hidden. Where a row has fewer words than that, the targets left over are -100.
        """
        rows = zip(batch["ids"].numpy(), batch["targets"].numpy(), strict=True)
        parts = [self._row(ids, targets, step) for ids, targets in rows]
        names = "masked_ids", "masked_at", "masked_targets"
        return batch | {
            name: torch.from_numpy(np.stack(part)) for name, part in zip(names, zip(*parts, strict=True), strict=True)
        }

    def _row(self, ids: np.ndarray, targets: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        generator = np.random.default_rng((self.seed, step, zlib.crc32(ids.tobytes())))
        before = np.r_[IGNORE, targets[:-1]]  # what the token before is asked for: not the next document, nor padding
        in_text = before != IGNORE
        if not self.shift:
            in_text |= targets != IGNORE  # a document's first token, too, can be foretold from what follows
        filled = 1 + int(np.flatnonzero(np.r_[True, targets != IGNORE])[-1])  # places that ask, and the last target
        is_word = self.is_word[ids] & in_text & (np.arange(len(ids)) < filled - 1)
        count = max(1, round(self.rate * len(ids)))
        order = np.argsort(np.where(is_word, generator.random(len(ids)), 2.0), kind="stable")[:count]
        is_word[order[max(1, round(self.rate * filled)) :]] = False
        chosen = np.sort(order)
        counted = is_word[chosen]
        wanted = np.where(counted, ids[chosen], IGNORE)
        fate = generator.random(count)
        stand_in = np.where(fate < HIDDEN, self.mask, generator.choice(np.flatnonzero(self.is_word), count))
        masked = ids.copy()
        changed = counted & (fate < HIDDEN + SWAPPED)
        masked[chosen[changed]] = stand_in[changed]
        return masked, np.maximum(chosen - self.shift, 0), wanted


class MaskedLoader:
    """The batches of another loader with masks, a pure function of (seed, step)."""

    def __init__(self, loader: Loader, masking: Masking) -> None:
        self._loader, self._masking = loader, masking

    def batch(self, step: int) -> Batch:
        return self._masking(self._loader.batch(step), step)


class MaskedBatches:
    """Held-out batches with masks, the same in every pass."""

    def __init__(self, batches: Iterable[Batch], masking: Masking) -> None:
        self._batches, self._masking = batches, masking

    def __iter__(self) -> Iterator[Batch]:
        return map(self._masking, self._batches)
