"""What comparisons of texts and of pictures have in common around the comparison itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from bedplate.errors import InputError
from bedplate.measure.comparison import Comparison
from bedplate.recipe import FinetuneRecipe, VisionRecipe

Counts = Sequence[int | Literal["all"]]
TEST_SHARE, TEST_MOST = 0.2, 2000  # of the rows, where no test file is given


@dataclass(frozen=True)
class Asked:
    """What `transfer` was asked; see there."""

    paths: list[str]
    base: str
    labels: Counts
    seeds: int
    test: str | Path | Sequence[str | Path] | None
    column: str | None
    label: str | None
    out: Path
    settings: Mapping[str, Any]
    say: Callable[[str], object]

    def sections(self, known: Sequence[str]) -> dict[str, Any]:
        """The settings, which may have the known sections.

        Raises:
            InputError: another section, or a moving average of weights.
        """
        if wrong := sorted(self.settings.keys() - set(known)):
            raise InputError(f"settings: {wrong[0]!r} is no part of a comparison; it has {', '.join(known)}")
        for name, section in self.settings.items():
            if not isinstance(section, Mapping):
                raise InputError(f"settings: {name} holds {section!r}, not a section; give {name}.KEY=VALUE")
        if self.settings.get("train", {}).get("ema") is not None:
            raise InputError("settings: train.ema is not used in comparisons; leave it out")
        return dict(self.settings)

    def counts(self, there: int, classes: int, what: str) -> list[int]:
        """The numbers of labels that there are, ascending; what is more than there is, is said."""
        wanted = {there if count == "all" else count for count in self.labels}
        for count in sorted(wanted):
            if count < classes:
                few = f"labels={count}: fewer than one for each of {classes} classes"
                if max(wanted) < classes:
                    raise InputError(f"{few}; give at least that many")
                self.say(f"{few}; left out.")
            if count > there:
                self.say(f"{count:,} labels are left out: there are {there:,} to learn from.")
        if not (counts := sorted(count for count in wanted if classes <= count <= there)):
            raise InputError(
                f"no number of labels is left: there are {there:,} {what} to learn from; give fewer, or all"
            )
        return counts


class Study(ABC):
    """A comparison that is ready to run, and how its result is written.

    Attributes:
        what: the things that have labels.
        sections: of the recipe, what the settings may say.
        counts: the numbers of labels to learn from.
        facts: of the data, as transfer.json has them.
    """

    what: ClassVar[str]
    sections: ClassVar[tuple[str, ...]]
    recipe: FinetuneRecipe | VisionRecipe
    comparison: Comparison[Any]
    counts: list[int]
    facts: dict[str, Any]

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The network adapted from the most labels with the first seed."""

    @abstractmethod
    def commands(self, out: Path) -> list[str]:
        """What a person may do next."""

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """What the adapted model's card says of its kind: values of `hub.card.model_card`."""

    @abstractmethod
    def save(self, directory: Path, card: str) -> None:
        """Write `module` as a model directory."""

    def shown(self, mistakes: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The result's mistakes as the report shows them."""
        return mistakes
