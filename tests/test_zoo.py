"""What is shipped in the zoo: small files, filled cards, models that work."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bedplate
from bedplate.data.cells import draw_cells
from bedplate.data.scene_questions import ask_scenes
from bedplate.data.shapes import colour_of, shapes
from bedplate.errors import InputError
from bedplate.hub.clip_model import ClipModel
from bedplate.hub.draw_model import DrawModel
from bedplate.hub.reader_model import ReaderModel

ZOO = Path(__file__).parents[1] / "zoo" / "src" / "bedplate_zoo"
NAMES = sorted(path.parent.name for path in ZOO.glob("*/config.json"))
TEXTS = [name for name in NAMES if name.startswith("text")]
COLOURS = ("red", "yellow", "blue")
DATA = Path(__file__).parents[2] / "shared" / "data"


def test_the_zoo_is_small() -> None:
    sizes = [path.stat().st_size for path in ZOO.rglob("*") if path.is_file()]
    assert max(sizes) <= 15 * 2**20
    assert sum(sizes) <= 64 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_cards_say_what_a_user_must_know(name: str) -> None:
    card = (ZOO / name / "README.md").read_text("utf-8")
    for section in ("## Use", "## Data", "## Evaluation", "## Limits", "## Training"):
        assert section in card
    assert "licence" in card and "held-out" in card and ": /" not in card


@pytest.mark.parametrize("name", NAMES)
def test_models_are_installed_as_they_stand_in_the_source(name: str) -> None:
    pytest.importorskip("bedplate_zoo", reason="pip install ./zoo")
    installed, source = bedplate.load(f"zoo:{name}"), bedplate.load(ZOO / name, dtype="fp32")
    assert next(installed.module.parameters()).dtype == torch.float32
    for key, value in source.module.state_dict().items():
        assert torch.equal(installed.module.state_dict()[key], value)


@pytest.mark.parametrize("name", TEXTS)
def test_transformers_computes_the_same(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(ZOO / name, dtype=torch.float32).eval()
    model = bedplate.load(ZOO / name, dtype="fp32")
    text = "The film was a surprise, and I watched it twice."
    ids = torch.tensor([model.need_tokenizer().encode(text).ids])
    assert transformers.AutoTokenizer.from_pretrained(ZOO / name)(text).input_ids == ids[0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(model.module(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif("text-mini" not in NAMES, reason="the zoo has no text-mini")
def test_text_mini_has_learnt_english() -> None:
    model = bedplate.load(ZOO / "text-mini", dtype="fp32")
    good, bad = "The children were playing in the garden.", "The garden children in were the playing."
    tokenizer = model.need_tokenizer()

    def nats(text: str) -> float:
        ids = torch.tensor([[0, *tokenizer.encode(text).ids]])
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(model.module(ids)[0, :-1], ids[0, 1:]))

    assert nats(good) < nats(bad) < 9.1  # log of the vocabulary: guessing
    calm, angry, food = model.embed(["a moving and beautiful film", "a lovely, touching movie", "slice the onions"])
    assert calm @ angry > calm @ food


@pytest.mark.parametrize("name", ["vision-mini", "detect-mini"])
def test_a_persons_own_picture_gets_an_answer(name: str, tmp_path: Path) -> None:
    picture = Image.new("RGB", (300, 200), (200, 180, 190))
    picture.save(tmp_path / "own.png")
    (found,) = bedplate.predict(ZOO / name, str(tmp_path / "own.png"), draw=tmp_path / "drawn.png")
    labels = bedplate.load(ZOO / name).labels
    rows = found if isinstance(found, list) else [found]
    assert all(row["label"] in labels and 0 <= row["score"] <= 1 for row in rows)
    assert (tmp_path / "drawn.png").is_file()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("clip-mini", "reads pictures and writes no text; use predict --labels or search"),
        ("vision-mini", "reads pictures and writes no text; use predict"),
        ("draw-mini", "draws pictures and writes no text; use draw"),
        ("reader-mini", "writes about pictures and continues no text; use caption or ask"),
    ],
)
def test_models_that_continue_no_text_say_what_they_are_for(name: str, told: str) -> None:
    pytest.importorskip("bedplate_zoo", reason="pip install ./zoo")
    for model, called in ((f"zoo:{name}", f"zoo:{name}"), (bedplate.load(f"zoo:{name}"), "this model")):
        with pytest.raises(InputError, match=f"^{called} {told}$"):
            bedplate.generate(model, "x")


@pytest.mark.skipif(not (DATA / "bccd").is_dir(), reason="the photos are not here")
def test_detect_mini_finds_as_well_as_its_card_says() -> None:
    pytest.importorskip("pycocotools")
    card = (ZOO / "detect-mini" / "README.md").read_text("utf-8")
    claimed = re.search(r"bccd-val: map_50 \| ([0-9.]+)", card)
    assert claimed is not None
    measured = bedplate.evaluate(ZOO / "detect-mini", str(DATA / "bccd" / "val"))["metrics"]["map_50"]["value"]
    assert measured == pytest.approx(float(claimed[1]), abs=0.003)


@pytest.mark.skipif("clip-mini" not in NAMES, reason="the zoo has no clip-mini")
def test_clip_mini_tells_drawn_things_apart() -> None:
    model = bedplate.load(ZOO / "clip-mini", dtype="fp32")
    assert isinstance(model, ClipModel)
    stickers = [each for each in shapes() if each.name in ("circle", "heart") and colour_of(each.image) in COLOURS]
    labels = [f"{colour} {name}" for name in ("circle", "heart") for colour in COLOURS]
    truth = [f"{colour_of(each.image)} {each.name}" for each in stickers]
    found = model.predict([_on_white(each.image) for each in stickers], labels=labels)
    right = sum(row["label"] == label for row, label in zip(found, truth, strict=True))
    assert len(truth) == 6 and right >= 4, [row["label"] for row in found]


@pytest.mark.skipif("reader-mini" not in NAMES, reason="the zoo has no reader-mini")
def test_reader_mini_answers_about_new_scenes() -> None:
    model = bedplate.load(ZOO / "reader-mini", dtype="fp32")
    assert isinstance(model, ReaderModel)
    scenes = list(ask_scenes(shapes(), 40, seed=77))
    answers = [
        (row["text"], question.answers[0])
        for scene in scenes
        for row, question in zip(
            model.ask(scene["scene"]["image"], [each.text for each in scene["questions"]]),
            scene["questions"],
            strict=True,
        )
    ]
    assert sum(said == truth for said, truth in answers) >= 0.75 * len(answers)
    captions = model.caption([scene["scene"]["image"] for scene in scenes])
    assert sum(row["text"] == scene["caption"] for row, scene in zip(captions, scenes, strict=True)) >= 15


@pytest.mark.skipif("draw-mini" not in NAMES, reason="the zoo has no draw-mini")
def test_draw_mini_draws_in_the_colour_of_the_words() -> None:
    model = bedplate.load(ZOO / "draw-mini", dtype="fp32")
    assert isinstance(model, DrawModel)
    images = model.draw(["red heart", "blue circle"], n=2, seed=3)
    assert [image.size for image in images] == [(64, 64)] * 4
    middle = [np.asarray(image, np.float64)[20:44, 20:44].mean((0, 1)) for image in images]
    assert all(red > blue for red, _, blue in middle[:2]) and all(blue > red for red, _, blue in middle[2:])


@pytest.mark.skipif("detect-mini" not in NAMES, reason="the zoo has no detect-mini")
def test_detect_mini_finds_drawn_cells() -> None:
    pictures = [draw_cells(seed) for seed in range(3)]
    found = bedplate.load(ZOO / "detect-mini", dtype="fp32").predict([image for image, _ in pictures], threshold=0.5)
    for (_, boxes), rows in zip(pictures, found, strict=True):
        assert abs(sum(row["label"] == "RBC" for row in rows) - len(boxes)) <= 2


def _on_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", (96, 96), "white")
    canvas.alpha_composite(image.resize((72, 72)), (12, 12))
    return canvas.convert("RGB")
