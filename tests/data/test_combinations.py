"""Held-out combinations: names of two parts, each part of which is still seen."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.data.combinations import LEFT, held_out_combinations, name_parts
from bedplate.errors import InputError

TONES = ("light", "medium", "dark", "blue")
PEOPLE = ("woman judge", "man judge", "Santa Claus", "cook", "waiter")
NAMES = [f"{person}: {tone} skin tone" for person in PEOPLE for tone in TONES]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Woman judge: dark skin tone", ("woman judge", "dark skin tone")),
        ("flag: France", ("flag", "france")),
        ("red heart", None),
        ("kiss: man, man", None),
        ("keycap: :", None),
        (": x", None),
        ("x:", None),
    ],
)
def test_a_name_has_two_parts_or_none(name: str, parts: tuple[str, str] | None) -> None:
    assert name_parts(name) == parts


@given(st.integers(0, 7), st.integers(0, 2**32 - 1), st.randoms())
def test_every_part_is_still_seen_in_others(count: int, seed: int, draw: object) -> None:
    names = [*NAMES, *NAMES, "red heart", "flag: France"]
    draw.shuffle(names)  # type: ignore[attr-defined]
    held = held_out_combinations(names, count, seed)
    assert len(set(held)) == count and set(held) <= {name.lower() for name in NAMES}
    left = [name_parts(name) for name in {name.lower() for name in NAMES} - set(held)]
    for side in (0, 1):
        counts = Counter(parts[side] for parts in left if parts)
        assert all(counts[parts[side]] >= LEFT for name in held if (parts := name_parts(name)))
    assert held == held_out_combinations(sorted(names), count, seed)
    firsts = Counter(parts[0] for name in held if (parts := name_parts(name)))
    assert max(firsts.values(), default=0) <= -(-count // len(PEOPLE)) or count > len(PEOPLE)


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match=r"data.hold_out=50: only \d+ names"):
        held_out_combinations(NAMES, 50, 0)
