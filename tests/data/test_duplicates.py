import random
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.data import duplicates
from bedplate.data.duplicates import near_duplicates
from bedplate.errors import InputError


def shingles(text: str) -> set[str]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"[\W_]+", " ", folded).strip() or folded.strip()
    return {text[i : i + 5] for i in range(max(1, len(text) - 4))}


def brute_force(texts: list[str], against: list[str], threshold: float) -> list[int]:
    sets = [shingles(other) for other in against]
    return [i for i, a in enumerate(map(shingles, texts)) if any(len(a & b) / len(a | b) >= threshold for b in sets)]


WORDS = ("film", "films", "good", "the best", "worst", "A", "Über", "ﬁne", "世界", "!?", " ", "1984", "boring", "\n")
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), max_size=12)


@given(TEXTS, TEXTS, st.one_of(st.sampled_from([0.07, 0.1, 0.25, 1 / 3, 0.5, 0.6, 0.7, 0.9, 1.0]), st.floats(0.01, 1)))
def test_the_same_as_comparing_all_pairs(texts: list[str], against: list[str], threshold: float) -> None:
    assert near_duplicates(texts, against, threshold).tolist() == brute_force(texts, against, threshold)


@given(st.lists(st.text(max_size=12), max_size=6), st.lists(st.text(max_size=12), max_size=6))
def test_the_same_for_any_characters(texts: list[str], against: list[str]) -> None:
    assert near_duplicates(texts, against, 0.4).tolist() == brute_force(texts, against, 0.4)


def test_the_same_among_strings_of_two_letters() -> None:
    """Few shingles, so that many pairs lie at the very edge of what the filters let pass."""
    draw = random.Random(0)
    for _ in range(500):
        texts, against = (
            ["".join(draw.choices("ab", k=draw.randint(5, 14))) for _ in range(draw.randint(1, 8))] for _ in range(2)
        )
        threshold = draw.choice([0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8])
        assert near_duplicates(texts, against, threshold).tolist() == brute_force(texts, against, threshold)


def test_thresholds_whose_products_round_up() -> None:
    """7 of 100 shingles are 0.07 of them, though 0.07 * 100 > 7 in floating point."""
    long = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=104))
    pairs = [(part, whole) for whole in range(1, 101) for part in range(1, whole) if part / whole * whole > part]
    assert (7, 100) in pairs
    for part, whole in pairs:
        short, other = long[: part + 4], long[: whole + 4]
        assert near_duplicates([short], [other], part / whole).tolist() == [0]
        assert near_duplicates([other], [short], part / whole).tolist() == [0]


def edited(text: str, edits: int, draw: random.Random) -> str:
    words = text.split()
    for _ in range(edits):
        words[draw.randrange(len(words))] = draw.choice(["lorem", "ipsum", "dolor"])
    return " ".join(words)


@pytest.mark.parametrize("block", [500, duplicates.BLOCK_SHINGLES])
def test_the_same_among_edited_copies_of_many_lengths(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_SHINGLES", block)  # the small one: several indices after each other
    monkeypatch.setattr(duplicates, "CHUNK_TEXTS", 7)
    draw = random.Random(0)
    syllables = ["ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(300)]
    against = [" ".join(draw.choices(words, k=draw.randint(3, 40))) for _ in range(40)]
    texts = [edited(draw.choice(against), draw.randint(0, 8), draw) for _ in range(50)]
    found = [brute_force(texts, against, threshold) for threshold in (0.5, 0.7, 0.9)]
    assert 0 < len(found[2]) < len(found[1]) < len(found[0]) < len(texts)
    assert [near_duplicates(texts, against, threshold).tolist() for threshold in (0.5, 0.7, 0.9)] == found


def test_case_signs_and_spaces_make_no_difference() -> None:
    texts = ["A dull,  dull film!", "a bright film", "ＤＵＬＬ dull film -- a", "a dull dull film"]
    assert near_duplicates(texts, ["'a DULL dull film'"], 1.0).tolist() == [0, 3]
    assert near_duplicates(texts, ["'a DULL dull film'"]).tolist() == [0, 2, 3]  # 9 of 13 shingles and more are alike


def test_short_texts_are_compared_whole() -> None:
    assert near_duplicates(["Bad", "bad.", "bade", "!!", "?", ""], ["BAD!", "?"]).tolist() == [0, 1, 4]


def test_nothing_to_compare_with() -> None:
    assert near_duplicates(["a"], []).tolist() == []
    assert near_duplicates([], ["a"]).tolist() == []
    assert near_duplicates(["a"], ["a"]).dtype == np.int64


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.1, float("nan")])
def test_a_threshold_that_is_no_similarity(threshold: float) -> None:
    with pytest.raises(InputError, match=r"threshold .* is not in \(0, 1\]"):
        near_duplicates(["a"], ["a"], threshold)
