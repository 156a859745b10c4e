"""What is shipped in the zoo: small files, filled cards, models that work."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import bedplate

ZOO = Path(__file__).parents[1] / "zoo" / "src" / "bedplate_zoo"
NAMES = sorted(path.parent.name for path in ZOO.glob("*/config.json"))
TEXTS = [name for name in NAMES if (ZOO / name / "tokenizer.json").is_file()]
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


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TEXTS])
def test_a_persons_own_picture_gets_an_answer(name: str, tmp_path: Path) -> None:
    picture = Image.new("RGB", (300, 200), (200, 180, 190))
    picture.save(tmp_path / "own.png")
    (found,) = bedplate.predict(ZOO / name, str(tmp_path / "own.png"), draw=tmp_path / "drawn.png")
    labels = bedplate.load(ZOO / name).labels
    rows = found if isinstance(found, list) else [found]
    assert all(row["label"] in labels and 0 <= row["score"] <= 1 for row in rows)
    assert (tmp_path / "drawn.png").is_file()


@pytest.mark.skipif(not (DATA / "bccd").is_dir(), reason="the photos are not here")
def test_detect_mini_finds_as_well_as_its_card_says() -> None:
    pytest.importorskip("pycocotools")
    card = (ZOO / "detect-mini" / "README.md").read_text("utf-8")
    claimed = re.search(r"bccd-val: map_50 \| ([0-9.]+)", card)
    assert claimed is not None
    measured = bedplate.evaluate(ZOO / "detect-mini", str(DATA / "bccd" / "val"))["metrics"]["map_50"]["value"]
    assert measured == pytest.approx(float(claimed[1]), abs=0.003)
