"""Directories of models that draw: the same drawings after a round trip; prompts and settings that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bedplate
from bedplate.data.tokenizer import end_of_text_id, train_tokenizer, vocabulary_size
from bedplate.errors import InputError
from bedplate.hub import draw_model
from bedplate.hub.clip_model import ClipModel
from bedplate.hub.draw_model import DrawModel, draw_trunk
from bedplate.hub.processor import ImageProcessor
from bedplate.models.clip import Clip, ClipConfig
from bedplate.models.dalle import Dalle, DalleConfig, Painter
from bedplate.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig


@pytest.fixture(scope="module")
def model() -> DrawModel:
    tokens = ImageTokenizer(ImageTokenizerConfig((16, 16), patch=4, levels=(5, 4), width=16))
    tokens.init_weights(0)
    tokenizer = train_tokenizer(["a red heart", "a blue heart"], 280)
    size = vocabulary_size(tokenizer)
    dalle = Dalle(DalleConfig(size, 8, end_of_text_id(tokenizer), (4, 4), 20, draw_trunk(16, 1, 2, dropout=0.1)))
    dalle.init_weights(0)
    torch.nn.init.normal_(dalle.head.weight, generator=torch.Generator().manual_seed(0))
    painter = Painter(dalle, tokens).eval()
    return DrawModel(painter, ImageProcessor((16, 16)), tokenizer, "a card", ["judge: dark"])


def _bytes(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_a_directory_draws_the_same(model: DrawModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    again = bedplate.load(tmp_path / "model")
    assert isinstance(again, DrawModel)
    assert again.module.dalle.config == model.module.dalle.config
    assert (again.processor, again.card, list(again.held_out)) == (model.processor, "a card", ["judge: dark"])
    assert _bytes(again.draw("a red heart", n=3, seed=1)) == _bytes(model.draw("a red heart", n=3, seed=1))
    facts = bedplate.info(tmp_path / "model")
    assert facts["codes"] == 20 and facts["text_length"] == 8 and facts["held_out"] == 1
    assert facts["parameters"] == sum(p.numel() for p in model.module.parameters())


def test_a_picture_depends_on_its_prompt_and_seed_alone(model: DrawModel) -> None:
    together = _bytes(model.draw(["a red heart", "a blue heart"], n=2, seed=3))
    alone = [model.draw(text, seed=seed) for text in ("a red heart", "a blue heart") for seed in (3, 4)]
    assert together == [each for images in alone for each in _bytes(images)]
    assert len(set(together)) > 1
    assert together == _bytes(model.draw([" a red heart ", "a blue heart"], n=2, seed=3))  # space around is none


def test_a_prefix_stays(model: DrawModel) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    whole = model.draw("a red heart", prefix=picture, keep=1.0)
    assert _bytes(whole) == _bytes(model.image_tokens.decode(model.image_tokens.encode(picture)))
    codes = model.image_tokens.encode(picture)[0]
    assert model._prefix(picture, 0.5).tolist() == codes[:2].flatten().tolist()
    assert model._prefix(picture, 0.01).tolist() == codes[:1].flatten().tolist()


def test_predict_gives_pictures_of_texts(model: DrawModel) -> None:
    (row,) = model.predict("a red heart", seed=2)
    assert row["image"].tobytes() == model.draw("a red heart", seed=2)[0].tobytes()
    with pytest.raises(InputError, match="draws from texts"):
        model.predict([Path("photo.png")])
    with pytest.raises(InputError, match="n is no option"):
        model.predict("a red heart", n=2)


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ("", {}, "prompt is empty"),
        (" \n", {}, "prompt is empty"),
        ("a red heart " * 9, {}, "more than the 7 tokens"),
        (3, {}, "prompt 1: must be a string, not int"),
        (["heart", 3], {}, "prompt 2: must be a string, not int"),
        ("heart", {"seed": "x"}, "seed='x': must be a whole number"),
        ("heart", {"n": 1.5}, "n=1.5: must be a whole number"),
        ("heart", {"top_k": "x"}, "top_k='x': must be a whole number"),
        ("heart", {"guidance": "x"}, "guidance='x': must be a number"),
        ("heart", {"n": 0}, "n=0"),
        ("heart", {"top_k": 0}, "top_k=0"),
        ("heart", {"temperature": float("nan")}, "temperature=nan"),
        ("heart", {"guidance": -2.0}, "guidance=-2"),
        ("heart", {"prefix": b"no picture"}, "no picture of a known kind"),
        ("heart", {"prefix": Image.new("RGB", (1, 1)), "keep": 0.0}, "keep=0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(model: DrawModel, prompt: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        model.draw(prompt, **options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_tokens": None}, "image_tokens"),
        ({"image_tokens": {"image_size": [16, 16], "patch": 5}}, "power of two"),
        ({"text_length": "8"}, "text_length"),
        ({"end_token_id": 100000}, "end_token_id"),
        ({"num_attention_heads": 3}, "heads"),
        ({"vocab_size": 290}, "dalle.embed.weight"),
    ],
)
def test_a_damaged_config_is_refused(model: DrawModel, tmp_path: Path, change: dict[str, object], said: str) -> None:
    model.save(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(InputError, match=said):
        bedplate.load(tmp_path / "model")


@pytest.fixture(scope="module")
def ranker(model: DrawModel) -> ClipModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    end = end_of_text_id(model.tokenizer)
    config = ClipConfig.standard(
        sizes,
        sizes,
        vocab_size=vocabulary_size(model.tokenizer),
        max_position_embeddings=12,
        image_size=16,
        patch_size=8,
        projection_dim=8,
        eos_token_id=end,
    )
    clip = Clip(config)
    clip.init_weights(0)
    return ClipModel(clip.eval(), ImageProcessor((16, 16)), model.tokenizer, templates=("{label}", "my {label}"))


@pytest.mark.parametrize("batch", [3, 64])
def test_the_best_of_some_drawings(
    model: DrawModel, ranker: ClipModel, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw_model, "BATCH", batch)
    prompts = ["a red heart", "a blue heart"]
    found = model.draw_best(prompts, ranker, 5, n=2, seed=1, temperature=1.5)
    assert len(found) == 4 and len({image.tobytes() for _, image in found}) > 2
    for number, (seed, image) in enumerate(found):
        prompt, k = prompts[number // 2], number % 2
        drawn = model.draw(prompt, n=5, seed=(1 + k) * 5, temperature=1.5)
        texts = ranker.embed([template.replace("{label}", prompt) for template in ranker.templates]).sum(0)
        assert seed == (1 + k) * 5 + int((ranker.embed(drawn) @ texts).argmax())
        assert image.tobytes() == model.draw(prompt, seed=seed, temperature=1.5)[0].tobytes()
    assert [image.tobytes() for _, image in model.draw_best(prompts, ranker, 1, seed=3)] == _bytes(
        model.draw(prompts, seed=3)
    )


def test_what_cannot_be_ranked_is_refused(model: DrawModel, ranker: ClipModel) -> None:
    with pytest.raises(InputError, match="best_of=0"):
        model.draw_best("a red heart", ranker, 0)
    with pytest.raises(InputError, match="n=0"):
        model.draw_best("a red heart", ranker, 2, n=0)
    with pytest.raises(InputError, match="prompt is empty"):
        model.draw_best(["a red heart", " "], ranker, 2)
    with pytest.raises(InputError, match="prompt 1: must be a string, not int"):
        model.draw_best([3], ranker, 2)
    with pytest.raises(InputError, match="seed='x': must be a whole number"):
        model.draw_best("a red heart", ranker, 2, seed="x")
    short = ClipModel(
        ranker.module, ranker.processor, ranker.tokenizer, templates=("a picture of exactly one {label}",)
    )
    assert len(model.draw_best("a red heart", short, 2)) == 1  # what is drawn may be longer than what ranks it
