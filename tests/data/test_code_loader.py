"""Batches of codes: those of the pictures that a batch of pictures would hold, with the same texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bedplate.data.code_loader import CodeEvalLoader, CodeLoader, Codes
from bedplate.data.pair_loader import PairLoader, TextEncoder
from bedplate.data.pairs import Pairs, read_pairs
from bedplate.data.pixel_store import PixelStore
from bedplate.data.tokenizer import train_tokenizer

from .pictures import save

TEMPLATES = ("{}", "a picture of {}")
COUNT = 13


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    root = tmp_path_factory.mktemp("pairs")
    for i in range(COUNT):
        save(root / f"{i:02}.png", i).with_suffix(".txt").write_text(f"thing {i}\nnumber {i}")
    return read_pairs(root)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(train_tokenizer(["a picture of thing number 0 1 2 3 4 5 6 7 8 9"] * 9, 300), 32)


@pytest.fixture(scope="module")
def codes() -> Codes:
    return np.arange(COUNT * 4, dtype=np.int32).reshape(COUNT, 4)


def test_codes_come_in_the_order_and_with_the_texts_of_pictures(
    pairs: Pairs, encoder: TextEncoder, codes: Codes, tmp_path: Path
) -> None:
    store = PixelStore(pairs, (6, 6), "stretch", tmp_path, 1)
    pictures = PairLoader(pairs, encoder, 6, 3, store, templates=TEMPLATES)
    loader = CodeLoader(pairs, codes, store.usable, encoder, 6, 3, templates=TEMPLATES)
    assert loader.steps_per_epoch == pictures.steps_per_epoch
    for step in (0, 1, 7):
        batch, theirs = loader.batch(step), pictures.batch(step)
        assert torch.equal(batch["index"], theirs["index"]) and torch.equal(batch["ids"], theirs["ids"])
        assert batch["codes"].dtype == torch.int64
        assert np.array_equal(batch["codes"].numpy(), codes[batch["index"].numpy()])


def test_ranks_share_a_batch(pairs: Pairs, encoder: TextEncoder, codes: Codes) -> None:
    usable = np.arange(COUNT)
    whole = CodeLoader(pairs, codes, usable, encoder, 6, 3, templates=TEMPLATES).batch(2)
    halves = [CodeLoader(pairs, codes, usable, encoder, 6, 3, rank, 2, templates=TEMPLATES).batch(2) for rank in (0, 1)]
    assert torch.equal(torch.cat([half["codes"] for half in halves]), whole["codes"])
    rows = [[*row[: row.index(encoder.end)]] for half in halves for row in half["ids"].tolist()]
    assert rows == [[*row[: row.index(encoder.end)]] for row in whole["ids"].tolist()]


def test_what_is_broken_is_left_out_and_all_else_is_scored_once(
    pairs: Pairs, encoder: TextEncoder, codes: Codes
) -> None:
    usable = np.delete(np.arange(COUNT), 4)
    batches = list(CodeEvalLoader(pairs, codes, usable, encoder, 5, templates=TEMPLATES))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == usable.tolist()
    first = batches[0]["ids"][0].tolist()
    assert encoder.tokenizer.decode(first[: first.index(encoder.end)]) == "thing 0"
    seen = torch.cat([CodeLoader(pairs, codes, usable, encoder, 6, 0).batch(step)["index"] for step in range(4)])
    assert 4 not in seen.tolist()
