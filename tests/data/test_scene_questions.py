"""Questions about scenes: every answer is what the boxes say, nothing can be guessed, and a seed is a data set."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bedplate.data.english import counted, plural
from bedplate.data.questions import Asked, Question, majority_baseline, read_questions
from bedplate.data.scene_questions import AskedScene, Thing, ask_scenes, caption, write_questions
from bedplate.data.shapes import PLAIN, SHAPES, colour_names, colour_of, shapes
from bedplate.data.stickers import Sticker, sticker
from bedplate.errors import InputError

STICKERS = shapes()
PLURALS = {f"{name}{'es' if name == 'cross' else 's'}": name for name in SHAPES}
SIDES = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}


@pytest.fixture(scope="module")
def scenes() -> list[AskedScene]:
    return list(ask_scenes(STICKERS, 400, 5))


def described(words: str) -> tuple[str | None, str | None]:
    """(colour, name) of what a question speaks of."""
    parts = words.replace("?", "").split()
    colour = next((part for part in parts if part in PLAIN), None)
    name = next((PLURALS.get(part, part) for part in parts if part in SHAPES or part in PLURALS), None)
    assert colour or name, words
    return colour, name


def fitting(things: list[Thing], words: str) -> list[int]:
    colour, name = described(words)
    return [
        i
        for i, each in enumerate(things)
        if each.colour == (colour or each.colour) and each.name == (name or each.name)
    ]


def lies(boxes: np.ndarray, one: int, side: str, other: int, gap: float = 0) -> bool:
    axis, sign = SIDES[side]
    near, far = (one, other) if sign > 0 else (other, one)
    return bool(boxes[near][axis + 2] + gap <= boxes[far][axis])


def recomputed(scene: AskedScene, question: Question) -> str:
    """The answer by the boxes and the things alone; also checks that it is the only one."""
    things, boxes, text = scene["things"], scene["scene"]["boxes"], question.text
    side = next((side for side in SIDES if side in text), None)
    if text.startswith("how many"):
        return str(len(fitting(things, text)))
    if side and text.startswith("is the"):
        first, second = text.removeprefix("is the ").split(side)
        (one,), (other,) = fitting(things, first), fitting(things, second)
        yes, no = (lies(boxes, a, side, b, 2) for a, b in ((one, other), (other, one)))
        assert yes != no
        return "yes" if yes else "no"
    if side:
        (other,) = fitting(things, text.split(side)[1])
        axis, sign = SIDES[side]
        centres = boxes[:, [axis, axis + 2]].mean(1) * sign
        (one,) = np.flatnonzero(centres < centres[other])
        assert lies(boxes, one, side, other, 2) and question.kind == side.split()[0]
        return things[one].name
    found = fitting(things, text)
    if question.kind == "yes_no":
        return "yes" if found else "no"
    (only,) = found
    return things[only].name if question.kind == "what" else str(things[only].colour)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 10**6), st.sampled_from([(64, 64), (48, 96)]))
def test_answers_are_what_the_boxes_say(seed: int, start: int, size: tuple[int, int]) -> None:
    for scene in ask_scenes(STICKERS, 3, seed, start, size):
        assert scene["scene"]["image"].size == size[::-1] and scene["questions"]
        assert len(scene["things"]) == len(scene["scene"]["boxes"])
        for question in scene["questions"]:
            assert question.answers == (recomputed(scene, question),)
        assert len({each.text for each in scene["questions"]}) == len(scene["questions"])


def test_boxes_hold_the_colours_that_the_things_have(scenes: list[AskedScene]) -> None:
    for scene in scenes[:40]:
        pixels = np.asarray(scene["scene"]["image"])
        for thing, (x1, y1, x2, y2) in zip(scene["things"], scene["scene"]["boxes"].astype(int), strict=True):
            middle = pixels[(y1 + y2) // 2 - 1 : (y1 + y2) // 2 + 2, (x1 + x2) // 2 - 1 : (x1 + x2) // 2 + 2]
            assert Counter(colour_names(middle.reshape(-1, 3)).tolist()).most_common(1)[0][0] == thing.colour


def as_asked(scenes: list[AskedScene]) -> Asked:
    return Asked([None] * len(scenes), [tuple(each["questions"]) for each in scenes], {})  # type: ignore[list-item]


def test_nothing_can_be_guessed(scenes: list[AskedScene]) -> None:
    answers: dict[str, Counter[str]] = {}
    for question in (each for scene in scenes for each in scene["questions"]):
        answers.setdefault(question.kind, Counter())[question.answers[0]] += 1
    assert answers.keys() == {"what", "how_many", "colour", "left", "right", "above", "below", "yes_no"}
    assert min(sum(counts.values()) for counts in answers.values()) >= 40
    assert set(answers["how_many"]) == set("01234") and set(answers["yes_no"]) == {"yes", "no"}
    baseline = majority_baseline(as_asked(scenes))
    assert baseline["yes_no"] < 0.55 and baseline["how_many"] < 0.27 and baseline["colour"] < 0.17
    assert all(baseline[kind] < 0.35 for kind in ("what", "left", "right", "above", "below"))
    # Neither do the words of a question tell its answer.
    by_words = majority_baseline(as_asked(scenes[:100]), as_asked(scenes[100:]))
    assert by_words["yes_no"] < 0.65 and by_words["how_many"] < 0.35 and by_words["all"] < 0.45


def test_a_scene_is_a_function_of_its_number(scenes: list[AskedScene]) -> None:
    (again,) = ask_scenes(STICKERS, 1, 5, start=7)
    assert again["questions"] == scenes[7]["questions"] and again["caption"] == scenes[7]["caption"]
    assert np.array_equal(np.asarray(again["scene"]["image"]), np.asarray(scenes[7]["scene"]["image"]))
    (other,) = ask_scenes(STICKERS, 1, 6, start=7)
    assert not np.array_equal(np.asarray(other["scene"]["image"]), np.asarray(scenes[7]["scene"]["image"]))


def test_nothing_is_called_by_a_colour_alone_beside_what_has_no_dominant_one() -> None:
    half = np.zeros((24, 24, 4), np.uint8)
    half[..., 3], half[:8, :, 0], half[8:16, :, 1], half[16:, :, 2] = 255, 220, 200, 255
    flag = Sticker(Image.fromarray(half), "flag")
    assert colour_of(flag.image) is None
    asked = {True: 0, False: 0}
    for scene in ask_scenes([*STICKERS, *[flag] * 8], 300, 1):
        beside = any(thing.colour is None for thing in scene["things"])
        for question in scene["questions"]:
            by_colour = re.search(f"({'|'.join(PLAIN)}) thing|(something|is) ({'|'.join(PLAIN)})", question.text)
            asked[beside] += bool(by_colour)
    assert asked[True] == 0 < asked[False]


def test_the_questions_of_a_seed_stay_the_same() -> None:
    said = "".join(repr(scene["questions"]) for scene in ask_scenes(STICKERS, 40, 7))
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == "dd04c54be8fb1461"


def test_captions_count_what_is_there(scenes: list[AskedScene]) -> None:
    red, blue, fly = Thing("cross", "red"), Thing("box", "blue"), Thing("fly", None)
    assert caption([blue, red, red]) == "two red crosses and a blue box"
    assert caption([fly, Thing("egg", None), fly, blue]) == "two flies, a blue box and an egg"
    assert caption([red]) == "a red cross" and caption([]) == "nothing"
    assert caption([red, blue, fly]) == caption([fly, red, blue])
    assert counted("slice of pizza", 3) == "three slices of pizza" and counted("sun", 12) == "12 suns"
    assert (
        plural("boy") == "boys"
        and plural("grey wolf") == "grey wolves"
        and plural("glass of fish") == "glasses of fish"
    )
    words = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
    for scene in scenes:
        parts = re.split(r", | and ", scene["caption"])
        said = {described(part): words[part.split()[0]] for part in parts}
        assert said == Counter((each.colour, each.name) for each in scene["things"])


def test_written_scenes_read_back(scenes: list[AskedScene], tmp_path: Path) -> None:
    folder = write_questions(tmp_path / "x", scenes[:5])
    asked = read_questions(folder)
    assert len(asked) == 5 and asked.dropped == {}
    for scene, ref, questions in zip(scenes, asked.images, asked.questions, strict=False):
        assert np.array_equal(np.asarray(ref.image()), np.asarray(scene["scene"]["image"]))
        assert list(questions) == [*scene["questions"], Question("", (scene["caption"],), "caption")]
    assert json.loads((folder / "captions.jsonl").read_text().split("\n")[0])["caption"] == scenes[0]["caption"]
    with pytest.raises(InputError, match=r"questions\.jsonl is there already"):
        write_questions(folder, scenes[:5])


def test_own_stickers_of_no_colour_are_asked_for_by_name() -> None:
    def flag(name: str, *colours: str) -> Sticker:
        image = Image.new("RGBA", (30 * len(colours), 60))
        for i, colour in enumerate(colours):
            image.paste(Image.new("RGBA", (30, 60), colour), (30 * i, 0))
        return sticker(image, name)

    mine = [flag("France", "blue", "white", "red"), flag("Italy", "green", "white", "red"), flag("sky", "blue")]
    assert [colour_of(each.image) for each in mine] == [None, None, "blue"]
    assert Thing("blue sky", "blue").label == "blue sky" == Thing("sky", "blue").label
    kinds = Counter[str]()
    for scene in ask_scenes(mine, 60, 2):
        kinds.update(each.kind for each in scene["questions"])
        assert all("None" not in f"{each.text} {each.answers}" for each in scene["questions"])
        assert {each.answers for each in scene["questions"] if each.kind == "colour"} <= {("blue",)}
    assert kinds["left"] and kinds["how_many"] and kinds["yes_no"]


def test_things_of_one_colour_are_told_apart_by_their_names() -> None:
    red = [each for each in shapes() if colour_of(each.image) == "red"][:3]
    assert len({each.name for each in red}) == 3
    for scene in ask_scenes(red, 40, seed=0):
        assert 1 <= len(scene["things"]) <= 7 and scene["caption"] != "nothing"


def test_drawn_shapes_have_the_colour_that_they_were_drawn_in() -> None:
    assert [colour_of(each.image) for each in STICKERS] == list(PLAIN) * len(SHAPES)
    assert [each.name for each in STICKERS] == [name for name in SHAPES for _ in PLAIN]
    assert colour_of(Image.new("RGBA", (4, 4))) is None


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((255, 0, 0), "red"), ((139, 0, 0), "red"), ((255, 165, 0), "orange"), ((255, 255, 0), "yellow"),
        ((0, 128, 0), "green"), ((0, 255, 255), "blue"), ((0, 0, 128), "blue"), ((128, 0, 128), "purple"),
        ((255, 105, 180), "pink"), ((255, 182, 193), "pink"), ((139, 69, 19), "brown"), ((0, 0, 0), "black"),
        ((255, 255, 255), "white"), ((128, 128, 128), "grey"), ((192, 192, 192), "grey"),
    ],
)  # fmt: skip
def test_colours_of_the_web_have_their_names(rgb: tuple[int, int, int], name: str) -> None:
    assert colour_names(np.array([rgb], np.uint8)).tolist() == [name]


def test_bad_input_is_told() -> None:
    with pytest.raises(InputError, match="stickers of two names or more"):
        ask_scenes(STICKERS[:3], 1, 0)
    with pytest.raises(InputError, match="seed is -1"):
        ask_scenes(STICKERS, 1, -1)
    with pytest.raises(InputError, match="pale is 2"):
        ask_scenes(STICKERS, 1, 0, pale=2)
