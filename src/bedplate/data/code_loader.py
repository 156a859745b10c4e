"""Batches of images' codes with a text each; order and texts are pure functions of (seed, step), as of `PairLoader`."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from bedplate.data.pair_loader import PLAIN, TextEncoder, check_templates
from bedplate.data.pairs import Pairs, drawn_text
from bedplate.data.picture_order import Batch, InOrder, Shuffled

Codes = NDArray[np.int32]


class CodeLoader(Shuffled):
    """Batches for training: every picture once an epoch, each time with a text drawn anew.

    Args:
        pairs: The pictures' texts.
        codes: Of each picture, (N, codes).
        usable: Numbers of the pictures (n,) that have codes.
        encoder: Of the texts.
        batch_size: Pictures of the global batch (all ranks together).
        seed: Chooses the order and the texts.
        rank, world_size: This process among all (W); it gets rows [rank B / W, (rank + 1) B / W) of the global batch.
        templates: What texts are put into, see `pairs.drawn_text`.

    Raises:
        InputError: A batch that ranks cannot share, or a template without its place for a text.
    """

    def __init__(
        self,
        pairs: Pairs,
        codes: Codes,
        usable: NDArray[np.int64],
        encoder: TextEncoder,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        templates: Sequence[str] = PLAIN,
    ) -> None:
        assert len(pairs) == len(codes)
        self._pairs, self._encoder, self._templates = pairs, encoder, check_templates(templates)
        super().__init__(usable, partial(_codes, codes), batch_size, seed, rank, world_size)

    def batch(self, step: int) -> Batch:
        """This rank's rows of the batch of one step (B = batch_size / world_size).

        Returns:
            `codes` int64 (B, codes); `ids` int64 (B, L), each text with the end token, filled up with it; `index`
            int64 (B,) of the pictures.
        """
        pairs, batch = self._pairs, super().batch(step)
        texts = [
            drawn_text(pairs.texts[i], self._templates, self._seed, step, row, pairs.whole[i] if pairs.whole else None)
            for i, row in zip(batch["index"].tolist(), self._rows.tolist(), strict=True)
        ]
        return batch | {"ids": self._encoder(texts)}


class CodeEvalLoader(InOrder):
    """All pictures once, in their order, each with its first text in the first template.

    Args:
        pairs, codes, usable, encoder, templates: As of `CodeLoader`.
        batch_size: Pictures of a batch; the last has fewer where they run out.
        rank, world_size: This process among all (W). It gets batches rank, rank + W, ...; where they run out the last
            one again, so that every rank has as many.
    """

    def __init__(
        self,
        pairs: Pairs,
        codes: Codes,
        usable: NDArray[np.int64],
        encoder: TextEncoder,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        templates: Sequence[str] = PLAIN,
    ) -> None:
        assert len(pairs) == len(codes)
        template = check_templates(templates)[0]

        def collate(index: NDArray[np.int64]) -> Batch:
            texts = [template.replace("{}", pairs.texts[i][0]) for i in index.tolist()]
            return _codes(codes, index) | {"ids": encoder(texts)}

        super().__init__(usable, collate, batch_size, None, rank, world_size)


def _codes(codes: Codes, index: NDArray[np.int64]) -> Batch:
    return {"codes": torch.from_numpy(codes[index].astype(np.int64)), "index": torch.from_numpy(index)}
