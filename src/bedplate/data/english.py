"""A little English, of nouns that name things: their article and their plural."""

import re

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
HEAD = re.compile(r"(?= (?:of|with|in|on|at|for|to|and|without|behind) |, |: )")
"""Where a name's head ends and what is said of it begins: slice | of pizza."""
IRREGULAR = {
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "tooth": "teeth",
    "woman": "women",
    **{name: f"{name[:-1]}ves" for name in ("leaf", "loaf", "shelf", "wolf")},
    **{name: name for name in ("bison", "deer", "fish", "moose", "salmon", "sheep", "shrimp", "squid")},
}
"""Plurals that no rule gives, by the last word of a head; names of things that pictures show."""


def a(name: str) -> str:
    """The name with its article, by its first letter."""
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    """Several of it: "red boxes", "slices of pizza", "grey wolves"."""
    head, *rest = HEAD.split(name, maxsplit=1)
    before, space, last = head.rpartition(" ")
    if last.lower() in IRREGULAR:
        head = f"{before}{space}{IRREGULAR[last.lower()]}"
    elif re.search(r"(s|x|z|ch|sh)$", head):
        head += "es"
    elif re.search(r"[^aeiou]y$", head):
        head = f"{head[:-1]}ies"
    else:
        head += "s"
    return head + "".join(rest)


def counted(name: str, count: int) -> str:
    """So many of it: "a star", "two stars", "11 stars"."""
    if count == 1:
        return a(name)
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} {plural(name)}"
