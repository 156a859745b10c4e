from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bedplate.data.loader import prefetch
from bedplate.data.pair_loader import PairEvalLoader, PairLoader, TextEncoder
from bedplate.data.pairs import Pairs, drawn_text, read_pairs
from bedplate.data.picture_order import Mates
from bedplate.data.pixel_store import PixelStore
from bedplate.data.tokenizer import frame_texts, train_tokenizer
from bedplate.errors import InputError

from .pictures import save

TEMPLATES = ("{}", "a picture of {}")
COUNT = 21


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    root = tmp_path_factory.mktemp("pairs")
    for i in range(COUNT):
        save(root / f"{i:02}.png", i).with_suffix(".txt").write_text(f"thing {i // 2}\nnumber {i}")
    return read_pairs(root)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a picture of thing number 0 1 2 3 4 5 6 7 8 9"] * 9, 300)


@pytest.fixture
def store(pairs: Pairs, tmp_path: Path) -> PixelStore:
    return PixelStore(pairs, (6, 8), "cover", tmp_path, 1)


def test_a_batch_holds_each_picture_with_a_text_of_its_own(
    pairs: Pairs, tokenizer: Tokenizer, store: PixelStore
) -> None:
    loader = PairLoader(pairs, TextEncoder(tokenizer, 64), 7, 5, store, templates=TEMPLATES)
    assert loader.steps_per_epoch == 3
    for step in range(4):
        batch = loader.batch(step)
        index = batch["index"].tolist()
        assert np.array_equal(batch["pixels"].numpy(), store.pixels(np.array(index)))
        assert batch["group"].tolist() == [i // 2 for i in index]
        texts = [drawn_text(pairs.texts[i], TEMPLATES, 5, step, row) for row, i in enumerate(index)]
        for text, ids in zip(texts, batch["ids"].tolist(), strict=True):
            end = ids.index(0)
            assert tokenizer.decode(ids[:end]) == text and set(ids[end:]) == {0}
        assert (batch["ids"] != 0).any(0)[:-1].all(), "as long as the longest, and no longer"
    assert sorted(torch.cat([loader.batch(step)["index"] for step in range(3)]).tolist()) == list(range(COUNT))


def test_texts_that_read_alike_are_one_text(tmp_path: Path) -> None:
    for number, text in enumerate(["A red cat", "a red cat", "a red dog that is much longer", "A RED CAT"]):
        save(tmp_path / f"{number}.png", number).with_suffix(".txt").write_text(text)
    pairs, batches = read_pairs(tmp_path), []
    for lowercase in (True, False):
        tokenizer = train_tokenizer(["a red cat dog that is much longer A RED CAT"] * 9, 300, lowercase=lowercase)
        store = PixelStore(pairs, (6, 8), "cover", tmp_path / str(lowercase), 1)
        batches.append([batch["text"] for batch in PairEvalLoader(pairs, TextEncoder(tokenizer, 64), 3, store)])
    (first, last), capitals = batches[0], torch.cat(batches[1])
    assert first[0] == first[1] == last[0] != first[2], "whatever else is in the batch"
    assert len(set(capitals.tolist())) == 4


def test_every_second_row_is_a_mate_of_the_one_before(pairs: Pairs, tokenizer: Tokenizer, store: PixelStore) -> None:
    loader = PairLoader(pairs, TextEncoder(tokenizer, 64), 6, 5, store, templates=TEMPLATES, mates=True)
    assert loader.steps_per_epoch == 7 and loader.epoch(7) == 1
    rows = torch.cat([loader.batch(step)["index"] for step in range(7)]).view(-1, 2)
    assert sorted(rows[:, 0].tolist()) == list(range(COUNT)), "each once an epoch"
    for picture, mate in rows.tolist():  # pictures 0 and 1 are a group, 2 and 3, ...; 20 is one alone
        assert mate == (picture ^ 1 if picture < COUNT - 1 else picture)


@given(
    groups=st.lists(st.integers(0, 4), min_size=1, max_size=20),
    broken=st.sets(st.integers(0, 19)),
    draw=st.integers(0, 2**64 - 1),
)
def test_a_mate_is_another_usable_picture_of_the_group(groups: list[int], broken: set[int], draw: int) -> None:
    usable = np.array([i for i in range(len(groups)) if i not in broken], np.int64)
    found = Mates(usable, np.array(groups))(usable, np.full(len(usable), draw, np.uint64))
    for picture, mate in zip(usable.tolist(), found.tolist(), strict=True):
        others = [i for i in usable.tolist() if groups[i] == groups[picture] and i != picture]
        assert mate in (others or [picture])


@given(step=st.integers(0, 10**6), seed=st.integers(0, 9), mates=st.booleans())
def test_any_step_is_the_same_whenever_it_is_asked_for(step: int, seed: int, mates: bool) -> None:
    pairs = Pairs([None] * 5, [(str(i), "x") for i in range(5)], list("abcde"), {}, [1] * 5)  # type: ignore[list-item]

    class Black:
        usable = np.arange(5)
        pixels = staticmethod(lambda index: np.zeros((len(index), 3, 1, 1), np.uint8))
        __len__ = lambda self: 5  # noqa: E731

    def make(*rank: int) -> PairLoader:
        encoder = TextEncoder(train_tokenizer([], 260), 9)
        return PairLoader(pairs, encoder, 4, seed, Black(), *rank, mates=mates)  # type: ignore[arg-type]

    whole, again = make().batch(step), make()
    again.batch(0)
    assert all(torch.equal(value, again.batch(step)[name]) for name, value in whole.items())
    assert make(0, 2).texts(step) + make(1, 2).texts(step) == make().texts(step)
    parts = [make(rank, 2).batch(step) for rank in range(2)]
    assert torch.equal(torch.cat([part["index"] for part in parts]), whole["index"])


def test_a_resumed_run_reads_the_batches_that_were_to_come(
    pairs: Pairs, tokenizer: Tokenizer, store: PixelStore
) -> None:
    loader = PairLoader(pairs, TextEncoder(tokenizer, 64), 4, 1, store, templates=TEMPLATES)
    straight = list(prefetch(loader, 0, 9, pin=False))
    resumed = list(prefetch(loader, 6, 9, pin=False))
    for one, other in zip(straight[6:], resumed, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_scored_pairs_come_once_each_with_their_first_text(
    pairs: Pairs, tokenizer: Tokenizer, store: PixelStore
) -> None:
    loader = PairEvalLoader(pairs, TextEncoder(tokenizer, 64), 8, store, templates=("the {}", "{}"))
    batches = list(loader)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(COUNT))
    said = [tokenizer.decode(ids) for batch in batches for ids in batch["ids"].tolist()]
    assert said == [f"the thing {i // 2}" for i in range(COUNT)]


@given(text=st.text(max_size=30), context=st.integers(2, 9))
def test_a_text_ends_with_the_first_end_token_of_its_row(text: str, context: int) -> None:
    tokenizer = train_tokenizer([], 260)
    for each in (tokenizer, frame_texts(tokenizer)):
        ids = TextEncoder(each, context)([text, ""]).tolist()
        plain = tokenizer.encode(text).ids if "<|" not in text else ids[0][: ids[0].index(0)]
        assert ids[0] == [*plain[: context - 1], 0] and ids[1] == [0] * len(ids[0])


def test_what_a_text_spells_out_is_no_special_token(tokenizer: Tokenizer) -> None:
    encoder = TextEncoder(tokenizer, 40)
    (ids,) = encoder(["a<|endoftext|>b"]).tolist()
    assert 0 not in ids[:-1] and tokenizer.decode(ids) == "a<|endoftext|>b"
    assert encoder.cut == 0 and TextEncoder(tokenizer, 3)(["one two"]).shape == (1, 3)


def test_texts_that_lose_their_end_are_counted_once() -> None:
    encoder = TextEncoder(train_tokenizer([], 260), 4)  # bytes, three of a text
    assert encoder.shortened(["abc", "a"], "context") == []
    (line,) = encoder.shortened(["abcd", "abcde", "abcd", "b"], "context")
    assert line == "2 of 3 texts are longer than context=4 tokens and lose their end."


@pytest.mark.parametrize("templates", [[], ["a picture"], ["{} {}"]])
def test_a_template_needs_one_place_for_a_text(
    templates: list[str], pairs: Pairs, tokenizer: Tokenizer, store: PixelStore
) -> None:
    with pytest.raises(InputError, match="template"):
        PairLoader(pairs, TextEncoder(tokenizer, 64), 4, 1, store, templates=templates)
