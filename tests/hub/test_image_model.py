"""Directories of models of images: round trips, `transformers` on what we write, pictures in and predictions out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bedplate
from bedplate.errors import InputError
from bedplate.hub.image_model import ImageModel
from bedplate.hub.processor import ImageProcessor
from bedplate.hub.vision_directory import VisionModule, encoder_of
from bedplate.models.attention_maps import attention_maps
from bedplate.models.detector import Detector, DetectorConfig
from bedplate.models.mae import MAE, MAEConfig
from bedplate.models.set_detector import SetDetector, SetDetectorConfig
from bedplate.models.vit import VisionConfig, VisionModel, ViT
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS

SIZE = (16, 24)
TRUNK = TrunkConfig(16, 2, 2, 2, 8, 32, **PRESETS["vit"])
PLAIN = VisionConfig(SIZE, 4, TRUNK)
OWN = VisionConfig(SIZE, 4, TRUNK, stem="conv", pooling="mean")
LABELS = ["cat", "dog", "owl"]
KINDS: dict[str, Callable[[], VisionModule]] = {
    "encoder": lambda: VisionModel(PLAIN),
    "classifier": lambda: ViT(PLAIN, LABELS),
    "classifier of its own kind": lambda: ViT(OWN, LABELS),
    "autoencoder": lambda: MAE(MAEConfig(VisionConfig((16, 16), 4, TRUNK), TRUNK)),
    "dense detector": lambda: Detector(DetectorConfig(PLAIN, head_size=16, head_layers=1), LABELS),
    "set detector": lambda: SetDetector(SetDetectorConfig(PLAIN, num_queries=5, groups=2, denoising=1), LABELS),
    "detector of one class": lambda: Detector(DetectorConfig(PLAIN, head_size=16, head_layers=1), ["cup"]),
}


@pytest.fixture(params=KINDS, ids=lambda name: name.replace(" ", "-"))
def module(request: pytest.FixtureRequest) -> VisionModule:
    """Each kind of module with weights that are all different."""
    torch.manual_seed(0)
    made = KINDS[request.param]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return made.eval()


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_directory_gives_back_the_model(module: VisionModule, picture: Image.Image, tmp_path: Path) -> None:
    size = encoder_of(module).config.image_size
    processor = ImageProcessor(size, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "letterbox", flip=True)
    model = ImageModel(module, processor, "# A card\n")
    model.save(tmp_path / "m")
    loaded = bedplate.load(tmp_path / "m")
    assert isinstance(loaded, ImageModel)
    assert (loaded.processor, loaded.card, loaded.labels) == (processor, "# A card\n", model.labels)
    ours, theirs = dict(module.named_parameters()), dict(loaded.module.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(loaded.embed(picture), model.embed(picture))
    with pytest.raises(InputError, match="not empty"):
        model.save(tmp_path / "m")
    model.save(tmp_path / "m", overwrite=True)


def test_transformers_reads_a_classifier_and_its_pictures(picture: Image.Image, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    module = ViT(PLAIN, LABELS)
    module.init_weights(0)
    torch.nn.init.normal_(module.score.weight, generator=torch.Generator().manual_seed(0))
    model = ImageModel(module.eval(), ImageProcessor(SIZE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    model.save(tmp_path / "m")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "m").eval()
    pixels = ViTImageProcessorPil.from_pretrained(tmp_path / "m")(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, model.processor([picture]), rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels).logits, module(pixels), rtol=0, atol=1e-5)
    assert list(theirs.config.id2label.values()) == LABELS


def test_transformers_refuses_what_it_would_compute_wrongly(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ImageModel(ViT(OWN, LABELS), ImageProcessor(SIZE)).save(tmp_path / "m")
    with pytest.raises(ValueError, match="bedplate_vit"):
        transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "m")


def test_predictions_are_the_modules_own(picture: Image.Image, tmp_path: Path) -> None:
    module = ViT(OWN, LABELS)
    module.init_weights(0)
    torch.nn.init.normal_(module.score.weight, generator=torch.Generator().manual_seed(0))
    picture.save(tmp_path / "one.png")
    pixels = ImageProcessor(SIZE)([picture])
    for flip in (False, True):
        model = ImageModel(module.eval(), ImageProcessor(SIZE, flip=flip))
        logits = module(pixels)
        logits = (logits + module(pixels.flip(-1))) / 2 if flip else logits
        (found,) = model.predict(str(tmp_path / "one.png"))
        assert found["label"] == LABELS[int(logits.argmax())]
        assert list(found["scores"].values()) == pytest.approx(logits.softmax(1)[0].tolist(), abs=1e-6)
        both = model.predict([picture, np.asarray(picture), (tmp_path / "one.png").read_bytes()], batch_size=2)
        assert [row["scores"] for row in both] == [pytest.approx(found["scores"], abs=1e-6)] * 3


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_boxes_are_in_pixels_of_the_picture(fit: Any) -> None:
    processor = ImageProcessor((100, 200), fit=fit)
    tall = Image.new("RGB", (300, 400))
    canvas = torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 200.0, 100.0]])
    scale = (4.0, 4.0) if fit == "letterbox" else (1.5, 4.0)
    wanted = [[10 * scale[0], 20 * scale[1], 30 * scale[0], 60 * scale[1]], [0, 0, 300, 400]]
    assert processor.boxes_on(tall, canvas).tolist() == wanted


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "cover"])
def test_attention_covers_what_is_seen(fit: Any) -> None:
    """A white spot on black is where the network has it, once what is seen of the picture is brought to its size."""
    processor = ImageProcessor(SIZE, fit=fit)
    for size in ((300, 400), (400, 100), (24, 16)):
        image = Image.new("RGB", size)
        image.paste("white", (size[0] // 2, size[1] // 2, size[0] // 2 + size[0] // 6, size[1] // 2 + size[1] // 6))
        again = ImageProcessor(SIZE).pixels([processor.seen(image)]).float()
        assert (again - processor.pixels([image]).float()).abs().mean() < 3, size


def test_attention_of_pictures(module: VisionModule, picture: Image.Image) -> None:
    model = ImageModel(module, ImageProcessor(encoder_of(module).config.image_size))
    maps = model.attention([picture, picture.rotate(90), picture], batch_size=2)
    assert maps.shape == (3, 2, *encoder_of(module).config.grid) and maps.min() > 0
    torch.testing.assert_close(maps[0], maps[2])
    assert not torch.equal(maps[0], maps[1])
    torch.testing.assert_close(maps[:1], attention_maps(encoder_of(module), model.processor([picture])))
    assert model.attention([]).shape == (0, *maps.shape[1:])


def test_bad_input(picture: Image.Image, tmp_path: Path) -> None:
    model = ImageModel(ViT(PLAIN, LABELS).eval(), ImageProcessor(SIZE))
    (tmp_path / "no.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"no\.png"):
        model.predict(tmp_path / "no.png")
    with pytest.raises(InputError, match="threshold is no option of a classifier"):
        model.predict(picture, threshold=0.5)
    with pytest.raises(InputError, match="predicts nothing"):
        ImageModel(VisionModel(PLAIN), ImageProcessor(SIZE)).predict(picture)
    with pytest.raises(InputError, match="pooling='max'"):
        model.embed(picture, pooling="max")  # type: ignore[arg-type]
    model.save(tmp_path / "m")
    file = tmp_path / "m" / "preprocessor_config.json"
    values = json.loads(file.read_text())
    for change, message in (
        ({"size": {"height": 8, "width": 8}}, "8x8"),
        ({"do_normalize": False}, "do_normalize"),
        ({"resample": 3}, "resample=3"),
        ({"rescale_factor": None}, "rescale_factor=None is not supported; supported: 1/255"),
        ({"image_mean": "x"}, "image_mean='x' is neither a number nor three of them"),
        ({"image_std": [1, 2]}, "image_std=.* is neither a number nor three of them"),
        ({"size": {"height": "x", "width": 8}}, "size=.* is no size in pixels"),
        ({"size": {"shortest_edge": None}}, "size=.* is no size in pixels"),
    ):
        file.write_text(json.dumps(values | change))
        with pytest.raises(InputError, match=message):
            bedplate.load(tmp_path / "m")
    file.write_text(json.dumps(values | {"image_mean": 0.25}))
    assert bedplate.load(tmp_path / "m").processor.mean == (0.25, 0.25, 0.25)
    with pytest.raises(InputError, match="adapters are for language models"):
        bedplate.load(tmp_path / "m", adapter="x")
