"""What is scored is not learnt from: pictures that lie in two parts of the data, byte for byte."""

from collections.abc import Mapping
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from bedplate.data.image_refs import ImageRef
from bedplate.data.images import BadImage
from bedplate.errors import InputError

USES = {"train": "to train on", "val": "held out to choose the best epoch", "test": "to score once, at the end"}


class Part(Protocol):
    """Pictures, with whatever is known of each."""

    @property
    def images(self) -> list[ImageRef]: ...

    def __len__(self) -> int: ...

    def select(self, indices: ArrayLike) -> Self: ...


P = TypeVar("P", bound=Part)


def keep_apart(parts: Mapping[str, P]) -> tuple[dict[str, P], int]:
    """Leave out of "train" what "val" or "test" hold, and of "val" what "test" holds.

    Pictures that cannot be read stay: the loader counts and names them.

    Returns:
        The parts that were given, in their order, and how many pictures were left out.

    Raises:
        InputError: Of a part nothing is left.
    """
    if len(parts) == 1:
        return dict(parts), 0  # no file is read in vain
    scored: set[bytes] = set()
    kept: dict[str, P] = {}
    for name in sorted(parts, key=list(USES).index, reverse=True):
        digests = [_digest(ref) for ref in parts[name].images]
        rows = np.flatnonzero([digest not in scored for digest in digests])
        if not digests:
            raise InputError(f"there is no picture {USES[name]}; give some")
        if len(rows) == 0:
            raise InputError(
                f"every picture {USES[name]} is also one that is scored in another part; give other pictures for one "
                "of both"
            )
        kept[name] = parts[name] if len(rows) == len(digests) else parts[name].select(rows)
        scored.update(digest for digest in digests if digest is not None)
    return {name: kept[name] for name in parts}, sum(len(part) - len(kept[name]) for name, part in parts.items())


def _digest(ref: ImageRef) -> bytes | None:
    try:
        return ref.digest()
    except BadImage:
        return None
