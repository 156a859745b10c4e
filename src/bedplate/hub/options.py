"""Options as people give them: known ones, and numbers where numbers are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from bedplate.errors import InputError


def taken(options: Mapping[str, Any], known: Mapping[str, Any], whose: str) -> dict[str, Any]:
    """`known` options with their defaults, and what is given in place of these.

    Raises:
        InputError: one that is not known.
    """
    if unknown := next((name for name in options if name not in known), None):
        raise InputError(f"{unknown} is no option of {whose}; it has {', '.join(known) or 'none'}")
    return {**known, **options}


def check_kinds(kind: type[Integral] | type[Real], **settings: object) -> None:
    """Refuse settings that are no (whole) numbers.

    Raises:
        InputError: One is none.
    """
    for name, value in settings.items():
        if not isinstance(value, kind):
            raise InputError(f"{name}={value!r}: must be a {'whole ' if kind is Integral else ''}number")
