"""Directories of readers: round trips to the bit, pictures and questions in, texts out, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

import bedplate
from bedplate.data.tokenizer import end_of_text_id, train_tokenizer, vocabulary_size
from bedplate.errors import InputError
from bedplate.hub.processor import ImageProcessor
from bedplate.hub.reader_model import ReaderModel
from bedplate.models.gpt import GPTConfig
from bedplate.models.reader import Reader, ReaderConfig
from bedplate.models.vit import VisionConfig
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS

TOKENIZER = train_tokenizer(["what colour is it? how many are there?"] * 3, 300)
KINDS: dict[str, dict[str, Any]] = {
    "qwen3, patches": {"stem": "patch"},
    "gpt2, convolutions": {"preset": "gpt2", "stem": "conv"},
    "llama, mlp": {"preset": "llama", "stem": "conv", "connector": "mlp", "tie_word_embeddings": False},
}


def make(
    stem: Any = "conv",
    connector: Any = "linear",
    preset: str = "qwen3",
    tokenizer: Tokenizer = TOKENIZER,
    **options: Any,
) -> ReaderModel:
    vision = VisionConfig((16, 16), 8, TrunkConfig(16, 1, 2, 2, 8, 32, **PRESETS["vit"]), stem=stem)
    language = GPTConfig.from_preset(
        preset,
        vocab_size=vocabulary_size(tokenizer),
        max_position_embeddings=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        **options,
    )
    reader, generator = Reader(ReaderConfig(vision, language, connector)).eval(), torch.Generator().manual_seed(0)
    for parameter in reader.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    reader.tie_weights()
    return ReaderModel(reader, tokenizer, ImageProcessor((16, 16), fit="cover"), max_new_tokens=5, card="A reader.")


def pictures(count: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(256, size=(20, 24, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_gives_the_same_model_back(kind: str, tmp_path: Path) -> None:
    model = make(**KINDS[kind])
    model.save(tmp_path / "model")
    loaded = bedplate.load(tmp_path / "model")
    assert isinstance(loaded, ReaderModel)
    assert loaded.module.config == model.module.config and loaded.card == "A reader."
    assert loaded.max_new_tokens == 5 and loaded.processor == model.processor
    theirs = loaded.module.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.module.state_dict().items())
    assert loaded.predict(pictures(2)) == model.predict(pictures(2))
    names = json.loads((tmp_path / "model" / "config.json").read_text())
    assert names["text_config"]["model_type"] in ("qwen3", "gpt2", "llama") and names["model_type"] == "bedplate_reader"
    half = bedplate.load(tmp_path / "model", dtype="bf16")
    assert next(half.module.parameters()).dtype == torch.bfloat16 and len(half.predict(pictures(1))) == 1


def test_a_directory_of_before_has_no_places(tmp_path: Path) -> None:
    model = make()
    without = Reader(replace(model.module.config, places=False)).eval()
    without.init_weights(0)
    replace(model, module=without).save(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "places"}))
    loaded = bedplate.load(tmp_path / "model")
    assert isinstance(loaded, ReaderModel) and not loaded.module.config.places
    config.write_text(json.dumps(json.loads(config.read_text()) | {"places": "yes"}))
    with pytest.raises(InputError, match="places='yes' must be true or false"):
        bedplate.load(tmp_path / "model")


def test_an_answer_does_not_depend_on_those_beside_it() -> None:
    model, shown = make(), pictures(3)
    asked = ["what colour is it?", "how many?", "is it there?"]
    alone = [model.predict(image, question)[0] for image, question in zip(shown, asked, strict=True)]
    together = model.predict(shown, asked, batch_size=2)
    assert [row["text"] for row in together] == [row["text"] for row in alone]
    assert [row["score"] for row in together] == pytest.approx([row["score"] for row in alone], rel=1e-4)
    several = model.ask(shown[0], asked)
    assert [row["text"] for row in several] == [model.predict(shown[0], each)[0]["text"] for each in asked]


def test_the_score_is_the_probability_of_the_text_and_its_end() -> None:
    model, image = make(), pictures(1)[0]
    prompt, end = model.prompt("how many?"), end_of_text_id(TOKENIZER)
    pixels = model.processor([image])
    row = model.module.generate(model.module.seen(pixels), [prompt], max_new_tokens=5, temperature=0.0, stop_ids={end})[
        0
    ]
    text = row if len(row) == 5 else [*row, end]
    logs = model.module(pixels, torch.tensor([prompt + text]))[0].log_softmax(-1)
    product = sum(float(logs[len(prompt) - 1 + n, token].detach()) for n, token in enumerate(text))
    found = model.ask(image, "how many?")[0]
    assert found["score"] == pytest.approx(np.exp(product), rel=1e-3)
    assert found["text"] == TOKENIZER.decode(row).strip()


def test_a_text_that_the_context_cut_is_scored_without_an_end() -> None:
    model, image, end = make(), pictures(1)[0], end_of_text_id(TOKENIZER)
    with torch.no_grad():
        model.module.language.embed.weight[end] = 0  # its logit is 0 with tied weights, and others are above it
    question = "how " * 20
    prompt, context = model.prompt(question), model.module.config.context
    pixels = model.processor([image])
    (row,) = model.module.generate(
        model.module.seen(pixels), [prompt], max_new_tokens=99, temperature=0.0, stop_ids={end}
    )
    assert len(row) == context - len(prompt) < 10, "the context was full before the text ended"
    logs = model.module(pixels, torch.tensor([prompt + row[:-1]]))[0].log_softmax(-1)
    product = sum(float(logs[len(prompt) - 1 + n, token].detach()) for n, token in enumerate(row))
    (found,) = model.ask(image, question, max_new_tokens=99)
    assert found["score"] == pytest.approx(np.exp(product), rel=1e-3)


def test_a_picture_is_read_once_however_many_questions_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = make(), []
    look = model.module.look
    monkeypatch.setattr(model.module, "look", lambda pixels: read.append(len(pixels)) or look(pixels))
    model.ask(pictures(1)[0], ["how many?", "what colour?", "is it?"])
    assert read == [1]


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda m: m.ask(pictures(1)[0], " "), "the question is empty"),
        (lambda m: m.ask(pictures(1)[0], []), "no question"),
        (lambda m: m.ask(pictures(1)[0], [3]), "question 1: must be a string, not int"),
        (lambda m: m.ask(pictures(1)[0], 3), "question 1: must be a string, not int"),
        (lambda m: m.predict(pictures(1), [3]), "question 1: must be a string, not int"),
        (lambda m: bedplate.ask(pictures(1)[0], 3, model=m), "question 1: must be a string, not int"),
        (lambda m: m.ask(pictures(1)[0], "how " * 30), r"has \d+ tokens, and this model reads 25, its answer included"),
        (lambda m: m.predict(pictures(2), ["how many?"]), "1 questions for 2 pictures"),
        (lambda m: m.predict(pictures(1), beams=3), "beams is no option of a reader"),
        (lambda m: m.predict(pictures(1), batch_size=0), "batch_size=0"),
        (lambda m: m.predict(pictures(1), max_new_tokens=0), "max_new_tokens=0: give 1 or more"),
        (lambda m: m.predict(pictures(1), max_new_tokens=-1), "max_new_tokens=-1: give 1 or more"),
        (lambda m: m.predict(pictures(1), num_beams=0), "num_beams=0"),
        (lambda m: m.caption(b"no picture"), "image 1"),
    ],
)
def test_what_cannot_be_answered_is_said(call: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        call(make())


def test_a_folder_is_no_picture_to_ask_about(tmp_path: Path) -> None:
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(InputError, match=f"^{tmp_path}: a folder; ask takes one picture$"):
            bedplate.ask(folder, "how many?", model=make())


@pytest.mark.parametrize("size", [(1, 1), (3000, 2)])
def test_pictures_of_any_size_are_read(size: tuple[int, int]) -> None:
    assert len(make().caption(Image.new("RGB", size))) == 1


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("vision_config", None, "vision_config=None must be the values"),
        ("text_config", {"model_type": "x"}, "text_config: model_type='x' is not supported"),
        ("connector", "tape", "connector='tape' is not known"),
        ("max_new_tokens", 0, "max_new_tokens=0 must be a whole number"),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, key: str, value: Any, complaint: str) -> None:
    make().save(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(InputError, match=complaint):
        bedplate.load(tmp_path / "model")


def test_a_directory_without_its_tokenizer_says_so(tmp_path: Path) -> None:
    make().save(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        bedplate.load(tmp_path / "model")


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    make().save(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors["connector.0.weight"]
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"connector\.0\.weight"):
        bedplate.load(tmp_path / "model")
