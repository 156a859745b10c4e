import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from bedplate.data.loader import IGNORE
from bedplate.data.masking import MaskedBatches, MaskedLoader, Masking
from bedplate.errors import InputError

WORDS, MASK, VOCABULARY = np.arange(4, 40), 3, 40
IS_WORD = np.isin(np.arange(VOCABULARY), WORDS)


def batch_of(ids: np.ndarray, padding: int = 0) -> dict[str, torch.Tensor]:
    """Rows with targets, as a text loader gives them; the last `padding` tokens of each row are padding."""
    targets = np.concatenate((ids[:, 1:], np.full((len(ids), 1), 7)), 1)
    if padding:
        targets[:, ids.shape[1] - padding :] = IGNORE
        ids[:, ids.shape[1] - padding :] = 0
    return {"ids": torch.from_numpy(ids), "targets": torch.from_numpy(targets)}


@st.composite
def batches(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    rows, length = draw(st.integers(1, 4)), draw(st.integers(2, 40))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return batch_of(generator.integers(0, VOCABULARY, (rows, length)), draw(st.integers(0, length // 2)))


@given(batches(), st.sampled_from([0.1, 0.15, 0.5, 0.9]), st.sampled_from([0, 1]), st.integers(0, 5))
def test_what_is_asked_for_is_the_text_and_nothing_else_changes(
    batch: dict[str, torch.Tensor], rate: float, shift: int, step: int
) -> None:
    masked = Masking(MASK, IS_WORD, rate, shift, seed=1)(batch, step)
    ids, length = batch["ids"], batch["ids"].shape[1]
    at, targets, shown = masked["masked_at"], masked["masked_targets"], masked["masked_ids"]
    assert at.shape == targets.shape == (len(ids), max(1, round(rate * length)))
    for row in range(len(ids)):
        counted = targets[row] != IGNORE
        places = at[row][counted] + shift
        assert len(set(places.tolist())) == len(places)
        assert torch.equal(ids[row][places], targets[row][counted])
        assert bool(torch.from_numpy(IS_WORD)[targets[row][counted]].all())
        others = torch.ones(length, dtype=torch.bool)
        others[places] = False
        assert torch.equal(shown[row][others], ids[row][others])
        if shift:  # the state one place before is asked for the token that a causal model would be asked for there
            assert torch.equal(batch["targets"][row][at[row][counted]], targets[row][counted])
        # A place is left over only where there are no more words, or where the text of the row has had its share.
        asks = batch["targets"][row].numpy() != IGNORE
        filled = int(asks.sum())  # padding follows the last place that asks
        in_text = np.arange(length) < filled
        in_text[0] &= not shift
        share = max(1, round(rate * (filled + 1)))
        assert int(counted.sum()) == min(len(counted), share, int((IS_WORD[ids[row].numpy()] & in_text).sum()))


def test_a_short_text_keeps_most_of_its_words() -> None:
    ids = np.random.default_rng(0).integers(4, VOCABULARY, (8, 64))
    masked = Masking(MASK, np.ones(VOCABULARY, bool), 0.15, 0, seed=0)(batch_of(ids, padding=48))
    hidden = (masked["masked_targets"] != IGNORE).sum(1)
    assert hidden.tolist() == [3] * 8, "rate of the 16 tokens that are there, and of the target behind them"
    assert int(masked["masked_at"][masked["masked_targets"] != IGNORE].max()) < 16


def test_eight_tenths_are_hidden_and_a_tenth_is_swapped() -> None:
    ids = np.random.default_rng(0).integers(4, VOCABULARY, (64, 200))
    masked = Masking(MASK, IS_WORD, 0.5, 1, seed=0)(batch_of(ids))
    shown = masked["masked_ids"].gather(1, masked["masked_at"] + 1)
    hidden, kept = (shown == MASK).float().mean(), (shown == masked["masked_targets"]).float().mean()
    assert hidden.item() == pytest.approx(0.8, abs=0.02)
    assert kept.item() == pytest.approx(0.1 + 0.1 / len(WORDS), abs=0.02)


def test_masks_do_not_depend_on_how_rows_are_shared_and_change_with_the_step() -> None:
    batch = batch_of(np.random.default_rng(0).integers(4, VOCABULARY, (4, 50)))
    masking = Masking(MASK, IS_WORD, 0.2, 1, seed=0)
    whole = masking(batch, 3)
    half = masking({name: value[2:] for name, value in batch.items()}, 3)
    assert all(torch.equal(half[name], whole[name][2:]) for name in half)
    assert not torch.equal(whole["masked_ids"], masking(batch, 4)["masked_ids"])


def test_loaders_mask_what_they_wrap() -> None:
    batch = batch_of(np.random.default_rng(0).integers(4, VOCABULARY, (2, 30)))

    class One:
        def batch(self, step: int) -> dict[str, torch.Tensor]:
            return batch

    masking = Masking(MASK, IS_WORD, 0.2, 1, seed=0)
    assert torch.equal(MaskedLoader(One(), masking).batch(5)["masked_at"], masking(batch, 5)["masked_at"])
    held_out = MaskedBatches([batch, batch], masking)
    first, again = list(held_out), list(held_out)
    assert torch.equal(first[0]["masked_ids"], again[1]["masked_ids"])


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    with pytest.raises(InputError, match=r"the tokenizer has no mask token; add one of <\|mask\|>, "):
        Masking.of(tokenizer, 0.15, 1, 0)
