"""Names of two parts, such as "woman judge: dark skin tone", and combinations of these that training never sees."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from bedplate.errors import InputError

LEFT = 2
"""Other combinations in which a part of a held-out name is seen at least."""


def name_parts(name: str) -> tuple[str, str] | None:
    """("woman judge", "dark skin tone") of "Woman judge: dark skin tone"; None of one that has not two parts."""
    head, separator, tail = name.lower().partition(":")
    head, tail = head.strip(), tail.strip()
    return (head, tail) if separator and head and tail and not {":", ","} & set(tail) else None


def held_out_combinations(names: Iterable[str], count: int, seed: int) -> list[str]:
    """Choose names of two parts to hold out, so that each of their parts is seen with `LEFT` other ones at least.

    They are spread over as many first parts as there are.

    Args:
        names: Of the pictures; case does not count, and a name counts once.

    Returns:
        `count` names in lower case, sorted.

    Raises:
        InputError: So many cannot be held out.
    """
    by_parts = {parts: name.lower() for name in names if (parts := name_parts(name))}
    heads, tails = (Counter(parts[side] for parts in by_parts) for side in (0, 1))
    drawn = np.random.default_rng(seed).permutation(len(by_parts)).tolist()
    all_parts = sorted(by_parts)
    place, turn = dict[tuple[str, str], int](), Counter[str]()
    for number in drawn:
        parts = all_parts[number]
        place[parts] = turn[parts[0]]
        turn[parts[0]] += 1
    held: list[str] = []
    for parts in sorted((all_parts[number] for number in drawn), key=place.__getitem__):  # each first part has a turn
        if len(held) < count and heads[parts[0]] > LEFT and tails[parts[1]] > LEFT:
            heads[parts[0]] -= 1
            tails[parts[1]] -= 1
            held.append(by_parts[parts])
    if len(held) < count:
        raise InputError(
            f"data.hold_out={count}: only {len(held)} names of two parts ('PART: PART') can be held out so that each "
            f"part is seen with {LEFT} others; give fewer"
        )
    return sorted(held)
