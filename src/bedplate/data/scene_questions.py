"""Questions with exact answers about composed scenes. A seed is a data set, of any length.

Only what is unambiguous is asked: a thing that a question speaks of is the only one of its description, and one that is
left of another is so by its whole box and a gap. What is right is drawn before what is asked: yes and no are as likely,
and so is each count, whatever the words.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from bedplate.data.english import a, counted, plural
from bedplate.data.questions import CAPTION, Question
from bedplate.data.scenes import Layout, Scene, place
from bedplate.data.shapes import colour_of
from bedplate.data.stickers import Sticker
from bedplate.errors import InputError

T = TypeVar("T")

MOST = 4
"""The highest count that is asked for."""
OTHERS = (1, 3)
"""The least and greatest number of things beside those that are counted."""
GAP = 0.04
"""Pixels between two boxes of which one is left of the other or above it, at least, in the shorter side."""
SAYS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
WORDS = {
    "what": ("what is the {} thing?", "which thing is {}?", "what is {}?"),
    "how_many": ("how many {} are there?", "how many {} are in the picture?", "how many {} do you see?"),
    "colour": ("what colour is the {}?", "what color is the {}?", "which colour does the {} have?"),
    "yes_no": ("is there {}?", "is there {} in the picture?", "do you see {}?"),
    "relation": ("what is {} the {}?", "which thing is {} the {}?"),
}
"""How each kind is asked: in one of these ways, at random."""
TRIES = 8
"""Scenes that are tried until one has room for all its things; the last is taken as it is."""
ASKED = ("how_many", "what", "colour", "relation", "relation")
"""What is tried once for each scene, beside a question that is answered yes and one that is answered no."""


class Thing(NamedTuple):
    """What a scene may show: a name and, where it has a dominant one, a colour."""

    name: str
    colour: str | None

    @property
    def label(self) -> str:
        """What tells it from others: "red circle"; a name that says the colour, "red heart", stays as it is."""
        return f"{self.colour} {self.name}" if self.colour and self.colour not in self.name.split() else self.name


@dataclass(frozen=True)
class Seen:
    """The things in a scene, their boxes (M, 4) and the gap in pixels that makes one lie left of another."""

    things: list[Thing]
    boxes: NDArray[np.float32]
    gap: float

    def unique(self) -> list[tuple[int, str]]:
        """(number, shortest description) of each thing that is the only one of some description."""
        names, labels = [each.name for each in self.things], [each.label for each in self.things]
        found = []
        for number, thing in enumerate(self.things):
            if names.count(thing.name) == 1:
                found.append((number, thing.name))
            elif labels.count(thing.label) == 1 and thing.colour:
                found.append((number, thing.label))
        return found

    def relates(self, one: int, side: str, other: int) -> bool:
        """Whether the one lies left of (right of, above, below) the other, with a gap between their boxes."""
        axis = 0 if side in ("left", "right") else 1
        first, second = (one, other) if side in ("left", "above") else (other, one)
        return bool(self.boxes[first, axis + 2] + self.gap <= self.boxes[second, axis])

    def beside(self, side: str, other: int) -> int | None:
        """The only thing on a side of another, where no third may be taken to be there; else None."""
        axis, sign = 0 if side in ("left", "right") else 1, 1 if side in ("left", "above") else -1
        centre = (self.boxes[:, axis] + self.boxes[:, axis + 2]) / 2
        maybe = [n for n in range(len(self.things)) if n != other and sign * centre[n] < sign * centre[other]]
        return maybe[0] if len(maybe) == 1 and self.relates(maybe[0], side, other) else None


class AskedScene(TypedDict):
    """A scene, its questions with one answer each, and what a caption says of it."""

    scene: Scene
    things: list[Thing]
    """Of each object, in the order of the boxes."""
    questions: list[Question]
    caption: str


def ask_scenes(
    stickers: Sequence[Sticker],
    count: int,
    seed: int,
    start: int = 0,
    size: tuple[int, int] = (64, 64),
    scale: tuple[float, float] = (0.18, 0.32),
    rotation: float = 15.0,
    pale: float = 0.75,
) -> Iterator[AskedScene]:
    """Compose scenes `start` to `start + count - 1` of the data set that the stickers and the seed name, and ask.

    A scene depends on its number, not on those before it. In it are 0 to 4 things of one description, which are
    counted, and 1 to 3 others. Nothing hides anything.

    Kinds of questions: `what` (is the red thing), `how_many`, `colour`, `left`, `right`, `above` and `below` (what is
    there of a thing), `yes_no` (is there something, and is it left of another). Answers are names without colours
    ("circle"), digits, colours, "yes" and "no". What has no dominant colour is not asked for by colour, and while it is
    shown nothing is called by a colour alone.

    Args:
        stickers: Things; of one name in several colours, as `shapes.shapes()` gives them, or pictures of your own.
        size: (height, width) in pixels.
        scale: Least and greatest longer side of a thing, in the shorter side of the picture.
        rotation: Greatest turn each way, in degrees.
        pale: Share of white in the textures that things lie on.

    Raises:
        InputError: Stickers of fewer than two names, or a number out of its range, which is named.
    """
    layout = Layout(size, (0, 0), scale, rotation, 0.0, pale)
    if seed < 0:
        raise InputError(f"seed is {seed}; give a number from 0 on")
    drawn: dict[Thing, list[Sticker]] = {}
    labels: dict[str, Thing] = {}
    for each in stickers:
        thing = Thing(each.name, colour_of(each.image))
        drawn.setdefault(labels.setdefault(thing.label, thing), []).append(each)  # a red heart is a "red heart"
    if len({thing.name for thing in drawn}) < 2:
        raise InputError("questions about scenes need stickers of two names or more; give others, or shapes()")
    world = _World(dict(sorted(drawn.items(), key=lambda item: item[0].label)), layout)
    return (world.scene(np.random.default_rng([seed, i]), i) for i in range(start, start + count))


class _World:
    """All things that there are."""

    def __init__(self, drawn: dict[Thing, list[Sticker]], layout: Layout) -> None:
        self._drawn, self._layout = drawn, layout
        self._things = list(drawn)
        self._labels = {thing.label: thing for thing in drawn}
        self._sorted = sorted(self._labels)
        self._by_name = list(dict.fromkeys(Thing(thing.name, None) for thing in self._things))

    def scene(self, draw: np.random.Generator, index: int) -> AskedScene:
        described, shown = self._cast(draw)
        stickers = [Sticker(_any(draw, self._drawn[thing]).image, thing.label) for thing in shown]
        for _ in range(TRIES):
            scene = place(stickers, draw, index, self._sorted, self._layout)
            if len(scene["boxes"]) == len(stickers):
                break
        things = [self._labels[scene["names"][number]] for number in scene["classes"].tolist()]
        seen = Seen(things, scene["boxes"], GAP * min(self._layout.size))
        asked = [self._ask(draw, kind, seen, described) for kind in ASKED]
        first = bool(draw.random() < 0.5)
        asked += [self._whether(draw, seen, answer) for answer in (first, not first)]
        questions = list({each.text: each for each in asked if each}.values())
        return AskedScene(scene=scene, things=things, questions=questions, caption=caption(things))

    def _cast(self, draw: np.random.Generator) -> tuple[Thing, list[Thing]]:
        """(what is counted: a name, a colour or both, "" for what is left open; the things of a scene)."""
        described = _any(draw, self._descriptions(draw) or self._by_name)
        fitting = [thing for thing in self._things if _fits(thing, described)]
        others = [thing for thing in self._things if not _fits(thing, described)]
        shown = [_any(draw, fitting) for _ in range(draw.integers(MOST + 1))]
        shown += [_any(draw, others) for _ in range(draw.integers(OTHERS[0], OTHERS[1] + 1))]
        return described, [shown[i] for i in draw.permutation(len(shown))]

    def _descriptions(self, draw: np.random.Generator) -> list[Thing]:
        """By a name, by a colour, or by both: all that may be said so of some things, and not of all."""
        coloured = [thing for thing in self._things if thing.colour]
        form = draw.integers(3) if coloured else 0
        if form == 0:
            return self._by_name
        found = list(dict.fromkeys(Thing("", thing.colour) for thing in coloured)) if form == 1 else coloured
        return [each for each in found if not all(_fits(thing, each) for thing in self._things)]

    def _ask(self, draw: np.random.Generator, kind: str, seen: Seen, described: Thing) -> Question | None:
        """A question of a kind, where the scene has one that is not ambiguous."""
        if kind == "how_many":
            count = sum(_fits(thing, described) for thing in seen.things)
            if count > MOST or _doubtful(seen.things, described):
                return None
            return Question(_said(draw, kind, _several(described)), (str(count),), kind)
        if kind == "what":
            colours = [thing.colour for thing in seen.things]
            only = [thing for thing in seen.things if thing.colour and colours.count(thing.colour) == 1]
            only = [] if None in colours else only  # what has many colours may be called by one of them
            thing = _any(draw, only) if only else None
            return Question(_said(draw, kind, thing.colour), (thing.name,), kind) if thing else None
        if kind == "colour":
            names = [thing.name for thing in seen.things]
            only = [thing for thing in seen.things if thing.colour and names.count(thing.name) == 1]
            thing = _any(draw, only) if only else None
            return Question(_said(draw, kind, thing.name), (str(thing.colour),), kind) if thing else None
        return _beside(draw, seen)

    def _whether(self, draw: np.random.Generator, seen: Seen, answer: bool) -> Question | None:
        """A question to which this is the answer: of where a thing is, or whether it is there."""
        related = _related(draw, seen, answer) if draw.random() < 0.5 else None
        return related or self._there(draw, seen, answer)

    def _there(self, draw: np.random.Generator, seen: Seen, answer: bool) -> Question | None:
        """Whether something is there. What is not may be a name and a colour that are, but not of one thing."""
        said = [each for each in self._descriptions(draw) if _seen(seen.things, each) == answer]
        said = [each for each in said if not _doubtful(seen.things, each)]
        near = [
            each
            for each in said
            if each.name
            and each.colour
            and _seen(seen.things, Thing(each.name, None))
            and _seen(seen.things, Thing("", each.colour))
        ]
        if not answer and near and draw.random() < 0.5:
            said = near
        if not said:
            return None
        return Question(_said(draw, "yes_no", _one(_any(draw, said))), ("yes" if answer else "no",), "yes_no")


def _related(draw: np.random.Generator, seen: Seen, answer: bool) -> Question | None:
    """Whether a thing lies on a side of another, of two that lie so or the other way round."""
    side = _any(draw, list(SAYS))
    unique = seen.unique()
    pairs = [(one, other) for one in unique for other in unique if seen.relates(one[0], side, other[0])]
    if not pairs:
        return None
    (_, one), (_, other) = _any(draw, pairs)
    if not answer:
        one, other = other, one
    return Question(f"is the {one} {SAYS[side]} the {other}?", ("yes" if answer else "no",), "yes_no")


def _beside(draw: np.random.Generator, seen: Seen) -> Question | None:
    """What lies on a side of a thing."""
    found = [
        (side, there, said)
        for side in SAYS
        for other, said in seen.unique()
        if (there := seen.beside(side, other)) is not None
    ]
    if not found:
        return None
    side, there, said = _any(draw, found)
    return Question(_said(draw, "relation", SAYS[side], said), (seen.things[there].name,), side)


def _fits(thing: Thing, described: Thing) -> bool:
    return described.name in ("", thing.name) and described.colour in (None, thing.colour)


def _seen(things: Sequence[Thing], described: Thing) -> bool:
    return any(_fits(thing, described) for thing in things)


def _doubtful(things: Sequence[Thing], described: Thing) -> bool:
    """Whether a colour is spoken of while something without a dominant one is shown, of which it may be one."""
    return described.colour is not None and any(
        thing.colour is None and described.name in ("", thing.name) for thing in things
    )


def _one(described: Thing) -> str:
    return a(described.label) if described.name else f"something {described.colour}"


def _several(described: Thing) -> str:
    return plural(described.label) if described.name else f"{described.colour} things"


def _said(draw: np.random.Generator, kind: str, *words: str | None) -> str:
    return _any(draw, WORDS[kind]).format(*words)


def _any(draw: np.random.Generator, several: Sequence[T]) -> T:
    return several[int(draw.integers(len(several)))]


def caption(things: Sequence[Thing]) -> str:
    """What there is, the most frequent first, then by name: "two red circles, a black cat and a blue star"."""
    labels = [thing.label for thing in things]
    parts = [counted(label, labels.count(label)) for label in sorted(set(labels), key=lambda x: (-labels.count(x), x))]
    if not parts:
        return "nothing"
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if parts[1:] else parts[0]


def write_questions(folder: str | Path, scenes: Iterable[AskedScene]) -> Path:
    """Write scenes as a folder that `read_questions` reads: `images/000000.png`, `questions.jsonl`, `captions.jsonl`.

    Returns:
        The folder, made where it was missing.

    Raises:
        InputError: The folder holds a data set.
    """
    root = Path(folder)
    files = {name: root / f"{name}.jsonl" for name in ("questions", "captions")}
    for file in files.values():
        if file.exists():
            raise InputError(f"{file} is there already; give another folder, or remove that")
    (root / "images").mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {name: [] for name in files}
    for each in scenes:
        name = f"images/{each['scene']['index']:06}.png"
        each["scene"]["image"].save(root / name)
        for asked in each["questions"]:
            row = {"image": name, "question": asked.text, "answer": asked.answers[0], "kind": asked.kind}
            lines["questions"].append(json.dumps(row, ensure_ascii=False))
        lines["captions"].append(json.dumps({"image": name, CAPTION: each["caption"]}, ensure_ascii=False))
    for kind, file in files.items():
        file.write_text("".join(f"{line}\n" for line in lines[kind]), "utf-8")
    return root
