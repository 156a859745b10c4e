"""ClipModel: labels nobody taught, one space for texts and pictures, free shapes on disk, and bad input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, normalizers, processors

import bedplate
from bedplate.data.tokenizer import train_tokenizer
from bedplate.errors import InputError
from bedplate.hub.clip_model import ClipModel
from bedplate.hub.directory import read_weights
from bedplate.hub.load import load
from bedplate.hub.processor import ImageProcessor
from bedplate.models.clip import Clip
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.models.vit import VisionConfig, VisionModel
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS

TRUNK = TrunkConfig(16, 2, 2, 2, 8, 32)
VIT = TrunkConfig(16, 2, 2, 2, 8, 32, **PRESETS["vit"])
CONTEXT = 24


def tokenizer() -> Tokenizer:
    return train_tokenizer(["a photo of a cat", "a photo of a dog and a red heart"] * 20, 300)


def made(text: GPTConfig | None = None, vision: VisionConfig | None = None, **options: Any) -> ClipModel:
    text = text or GPTConfig("qwen3", 300, CONTEXT, True, TRUNK)
    vision = vision or VisionConfig((16, 16), 4, VIT, stem="conv", pooling="mean")
    options = {"text_pooling": "mean"} | options
    module = Clip.of(GPT(text), VisionModel(vision), 12, eos_token_id=0, seed=3, **options)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in module.parameters():
            if parameter.dim():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    processor = ImageProcessor((16, 16), fit="cover")
    return ClipModel(module.eval(), processor, tokenizer(), "# Card", ("{label}", "a {label}"))


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return made()


def pictures(count: int = 3) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (20, 30, 3)).astype(np.uint8)) for _ in range(count)]


SHAPES: dict[str, Any] = {
    "text-mini and vision-mini": {},
    "learned positions, end token": {
        "text": GPTConfig.from_preset(
            "gpt2",
            vocab_size=300,
            max_position_embeddings=CONTEXT,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
        ),
        "text_pooling": "eos",
    },
    "siglip": {"has_logit_bias": True},
    "a vision tower of clip": {"vision": VisionConfig((16, 16), 4, VIT, patch_bias=False, pre_norm=True)},
    "a norm in front": {"vision": VisionConfig((16, 12), 4, VIT, pre_norm=True, pooling="mean")},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=[name.replace(" ", "-") for name in SHAPES])
def test_free_shapes_come_back_from_the_disk(tmp_path: Path, shape: dict[str, Any]) -> None:
    model = made(**shape)
    model.processor = replace(model.processor, size=model.config.vision.image_size)
    model.save(tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    assert values["model_type"] == "bedplate_clip"  # which transformers refuses
    back = load(tmp_path / "m")
    assert isinstance(back, ClipModel) and back.config == model.config and back.processor == model.processor
    assert back.templates == model.templates and back.card == "# Card"
    for name, parameter in model.module.named_parameters():
        assert torch.equal(back.module.get_parameter(name), parameter), name
    texts = ["a red heart", "cat"]
    torch.testing.assert_close(back.embed(texts), model.embed(texts), atol=0, rtol=0)
    torch.testing.assert_close(back.embed(pictures()), model.embed(pictures()), atol=0, rtol=0)
    facts = bedplate.info(back)
    assert facts["family"] == "clip" and facts["projection_dim"] == 12 and facts["trunk"]["hidden_size"] == 16


def test_a_directory_in_bf16_keeps_its_scale_exact_and_within_its_limit(tmp_path: Path, model: ClipModel) -> None:
    module = made().module.to(torch.bfloat16)
    module.logit_scale.data = torch.tensor(4.6012345)
    ClipModel(module, model.processor, model.tokenizer).save(tmp_path / "m")
    back = load(tmp_path / "m").module
    assert back.logit_scale.item() == pytest.approx(4.6012345, abs=1e-6)
    loaded = load(tmp_path / "m")
    near = (loaded.embed(pictures()) * model.embed(pictures())).sum(1)
    assert near.min() > 0.99 and loaded.predict(pictures(), labels="cat,dog")[0]["score"] > 0
    assert back.text.embed.weight.dtype == torch.bfloat16 and bedplate.info(tmp_path / "m")["dtype"] == "bfloat16"
    module.logit_scale.data = torch.tensor(9.0)  # a reader that knows no limit would compute with e^9
    ClipModel(module, model.processor, model.tokenizer).save(tmp_path / "m", overwrite=True)
    assert read_weights(tmp_path / "m")["logit_scale"].exp().item() == pytest.approx(100)


def test_labels_are_chosen_by_their_words_in_templates(model: ClipModel) -> None:
    labels = {"kitty": "cat", "hund": "dog", "love": "red heart"}
    got = model.predict(pictures(), labels=labels, template=["a photo of a {label}", "{label}"])
    images = model.embed(pictures())
    both = [model.embed([before + word for word in labels.values()]) for before in ("a photo of a ", "")]
    means = torch.nn.functional.normalize(both[0] + both[1], dim=1)
    wanted = (images @ means.T * model.module.scale().detach()).softmax(1)
    for row, prediction in zip(wanted, got, strict=True):
        assert list(prediction["scores"]) == list(labels)
        assert list(prediction["scores"].values()) == pytest.approx(row.tolist(), abs=1e-5)
        assert prediction["label"] == list(labels)[int(row.argmax())]
        assert prediction["score"] == pytest.approx(row.max().item(), abs=1e-5)
    own = model.predict(pictures(), labels="kitty=cat,hund=dog,love=red heart")
    assert own == model.predict(pictures(), labels=labels, template=list(model.templates)) != got


def test_top_names_the_surest_alone(model: ClipModel) -> None:
    whole, some = (model.predict(pictures(1), labels="cat,dog,heart,photo", top=top)[0] for top in (None, 2))
    ranked = sorted(whole["scores"].items(), key=lambda item: -item[1])
    assert list(some["scores"].items()) == ranked[:2] and some["label"] == whole["label"] == ranked[0][0]


def test_vectors_do_not_depend_on_their_batch(model: ClipModel) -> None:
    texts = ["cat", "a photo of a dog", "a red heart and a photo"]
    alone = torch.cat([model.embed([text]) for text in texts])
    torch.testing.assert_close(model.embed(texts, batch_size=2), alone, atol=1e-5, rtol=1e-5)
    assert model.embed(texts).norm(dim=1).tolist() == pytest.approx([1] * 3)
    raw = model.embed(texts, normalize=False)
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=1), alone, atol=1e-5, rtol=1e-5)
    assert model.embed([]).shape == (0, 12) and model.predict([], labels="cat,dog") == []


def test_a_string_is_a_text_and_a_path_a_picture(tmp_path: Path, model: ClipModel) -> None:
    file = tmp_path / "cat.png"
    pictures(1)[0].save(file)
    torch.testing.assert_close(model.embed([file]), model.embed(pictures(1)))
    torch.testing.assert_close(model.embed(file.read_bytes()), model.embed(pictures(1)))
    assert (model.embed("cat.png") - model.embed(file)).abs().max() > 1e-3
    with pytest.raises(InputError, match="either texts or pictures"):
        model.embed(["cat", file])


def test_what_a_text_spells_out_does_not_end_it(model: ClipModel) -> None:
    assert (model.embed(["<|endoftext|> cat"]) - model.embed(["<|endoftext|> dog"])).abs().max() > 1e-3


def test_a_saved_tokenizer_ends_its_texts_by_itself(tmp_path: Path, model: ClipModel) -> None:
    model.save(tmp_path / "m")
    saved = load(tmp_path / "m").tokenizer
    assert saved.encode("cat").ids == [*model.tokenizer.encode("cat").ids, 0]


def test_an_encoders_frame_does_not_end_a_text_before_it_begins(model: ClipModel) -> None:
    framed = Tokenizer.from_str(model.tokenizer.to_str())
    end = framed.id_to_token(0)
    framed.post_processor = processors.TemplateProcessing(single=f"{end} $A {end}", special_tokens=[(end, 0)])
    other = replace(model, tokenizer=framed)
    torch.testing.assert_close(other.embed(["cat", "dog"]), model.embed(["cat", "dog"]))


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ("cat,dog,cat", "the label 'cat' is there twice"),
        (["cat"], "only 'cat' is given"),
        ("cat,,dog", "label 2 of 3 is empty"),
        ({"a": "cat", "b": "cat"}, "the words 'cat' are there twice"),
        ([1, 2], "label 1: must be a string, not int"),
        (None, "labels: none are given"),
        ("cat," + "photo " * 40, "label 2 .* tokens with its end, and this model reads 24; shorten the label$"),
    ],
)
def test_labels_that_are_none(model: ClipModel, labels: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        model.predict(pictures(1), labels=labels)


def test_labels_that_a_tokenizer_makes_the_same_are_no_choice(model: ClipModel) -> None:
    lower = Tokenizer.from_str(model.tokenizer.to_str())
    lower.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match="labels: 'cat' and 'Cat' are the same tokens to this model; give each label"):
        replace(model, tokenizer=lower).predict(pictures(1), labels="cat,dog,Cat")
    assert len(model.predict(pictures(1), labels="cat,dog,Cat")[0]["scores"]) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"template": "a photo"}, r"template 'a photo': must hold \{label\} once"),
        ({"template": []}, "template: none is given"),
        ({"top": 0}, "top=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"method": "prompt"}, "method is no option of a CLIP; it has labels"),
        ({"calibrate": True}, "calibrate is no option"),
    ],
)
def test_options_that_do_not_fit(model: ClipModel, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        model.predict(pictures(1), labels="cat,dog", **options)


def test_a_text_beyond_the_context_is_cut_where_that_is_wanted(model: ClipModel) -> None:
    long = "photo " * 100
    with pytest.raises(InputError, match=r"text 2 \('photo photo.*reads 24; shorten the text, or give truncate=True"):
        model.embed(["cat", long])
    torch.testing.assert_close(model.embed([long], truncate=True), model.embed(["photo " * 300], truncate=True))
    with pytest.raises(InputError, match="text 1: the text is empty"):
        model.embed([" "])


def test_pictures_that_are_none_and_pictures_of_odd_sizes(tmp_path: Path, model: ClipModel) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png: no picture of a known kind"):
        model.predict(tmp_path / "text.png", labels="cat,dog")
    assert model.predict(Image.new("RGB", (1, 1)), labels="cat,dog")[0]["label"] in ("cat", "dog")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")  # 50 kB on the disk, 1.2 GB as RGB
    with pytest.raises(InputError, match=r"large\.png: .*more than the 89,478,485"):
        model.predict(tmp_path / "large.png", labels="cat,dog")


def test_without_a_tokenizer_it_knows_pictures_alone(tmp_path: Path, model: ClipModel) -> None:
    replace(model, tokenizer=None).save(tmp_path / "m")
    back = load(tmp_path / "m")
    torch.testing.assert_close(back.embed(pictures()), model.embed(pictures()))
    with pytest.raises(InputError, match="no tokenizer and reads no texts"):
        back.predict(pictures(), labels="cat,dog")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "clip"}, "a tower of model_type='qwen3' is none of clip, but of bedplate_clip"),
        ({"text_pooling": "max"}, "text_pooling='max'"),
        ({"projection_dim": 13}, "'text_projection.weight' has shape"),
        ({"eos_token_id": 999}, "eos_token_id=999 is no token"),
        ({"vision_config": {"model_type": "vit_mae"}}, "is no encoder of pictures"),
        ({"text_config": {"model_type": "t5"}}, "text_config: model_type='t5' is not supported"),
    ],
)
def test_config_files_that_do_not_fit(tmp_path: Path, model: ClipModel, change: dict[str, Any], told: str) -> None:
    model.save(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=told):
        load(tmp_path / "m")


def test_a_missing_tensor_is_named(tmp_path: Path, model: ClipModel) -> None:
    from safetensors.torch import save_file

    model.save(tmp_path / "m")
    weights = dict(read_weights(tmp_path / "m"))
    del weights["logit_scale"]
    save_file(weights, tmp_path / "m" / "model.safetensors")
    with pytest.raises(InputError, match="'logit_scale' is missing"):
        load(tmp_path / "m")


def test_what_a_directory_cannot_hold_is_refused(tmp_path: Path) -> None:
    trunk = replace(TRUNK, qk_norm=False)
    with pytest.raises(InputError, match="cannot hold"):
        made(GPTConfig("qwen3", 300, CONTEXT, True, trunk)).save(tmp_path / "m")
    assert not (tmp_path / "m").exists()
