"""Directories of image tokenizers: the same codes after a round trip; damaged ones are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bedplate
from bedplate.errors import InputError
from bedplate.hub.image_tokens_model import ImageTokensModel
from bedplate.hub.processor import ImageProcessor
from bedplate.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig


@pytest.fixture
def model() -> ImageTokensModel:
    module = ImageTokenizer(ImageTokenizerConfig((16, 16), patch=4, levels=(5, 4), width=32))
    module.init_weights(0)
    return ImageTokensModel(module.eval(), ImageProcessor((16, 16), fit="letterbox"), "a card")


def _pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (20, 30, 3), np.uint8)) for _ in range(3)]


def test_a_directory_gives_the_same_codes_and_pictures(model: ImageTokensModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    again = bedplate.load(tmp_path / "model")
    assert isinstance(again, ImageTokensModel)
    assert again.processor == model.processor and again.card == "a card" and again.module.config == model.module.config
    codes = model.encode(_pictures())
    assert torch.equal(again.encode(_pictures(), batch_size=2), codes)
    assert again.predict(_pictures()[0]) == [{"codes": codes[0].tolist()}]
    shown = again.decode(codes)
    assert [image.size for image in shown] == [(16, 16)] * 3
    assert [image.tobytes() for image in shown] == [image.tobytes() for image in model.decode(codes)]
    facts = bedplate.info(again)
    assert (facts["family"], facts["codes"], facts["grid"]) == ("imagetokenizer", 20, [4, 4])


def test_no_pictures_have_no_codes(model: ImageTokensModel) -> None:
    assert model.encode([]).shape == (0, 4, 4) and model.predict([]) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"levels": [5, "4"]}, "levels"),
        ({"image_size": 16}, "image_size"),
        ({"patch": 3}, "power of two"),
        ({"levels": [5, 4, 3]}, "to_code.weight"),
    ],
)
def test_a_damaged_config_is_refused(
    model: ImageTokensModel, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    model.save(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(InputError, match=said):
        bedplate.load(tmp_path / "model")
