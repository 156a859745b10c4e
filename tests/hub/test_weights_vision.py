"""Files of ViT and ViTMAE: every spelling is read, the Hub's is written, and what is not known is refused aloud."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bedplate.errors import InputError
from bedplate.hub.config_vision import vision_config_from_hf, vision_config_to_hf, vision_labels_from_hf
from bedplate.hub.weights_vision import their_name, vision_names, vision_tensor_from_hf, vision_tensors_to_hf
from bedplate.models.mae import MAE, MAEConfig
from bedplate.models.vit import VisionConfig, VisionModel, ViT
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "image_size": 16,
    "patch_size": 4,
}
DECODER: dict[str, Any] = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 40,
}
TRUNK = TrunkConfig(32, 2, 4, 4, 8, 56, **PRESETS["vit"])
VIT = VisionConfig((16, 16), 4, TRUNK)
MAE_CONFIG = MAEConfig(VIT, TrunkConfig(16, 1, 2, 2, 8, 40, **PRESETS["vit"]))


@torch.no_grad()
def randomised(module: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.eval()


def saved(kind: str, folder: Path, **options: Any) -> Path:
    """A directory that `transformers` wrote."""
    config = transformers.ViTMAEConfig if "MAE" in kind else transformers.ViTConfig
    randomised(getattr(transformers, kind)(config(**SIZES | options))).save_pretrained(folder)
    return folder


def read(folder: Path) -> VisionModel | MAE:
    values = json.loads((folder / "config.json").read_text())
    return filled(vision_config_from_hf(values), load_file(folder / "model.safetensors"), vision_labels_from_hf(values))


def filled(config: VisionConfig | MAEConfig, tensors: Mapping[str, Tensor], labels: Any = None) -> VisionModel | MAE:
    """The module of these tensors, all of which have a place in it."""
    module = MAE(config) if isinstance(config, MAEConfig) else ViT(config, labels) if labels else VisionModel(config)
    names = vision_names(config, tensors)
    assert {their_name(config, name) for name in module.state_dict()} == names.keys()
    module.load_state_dict(
        {
            name: vision_tensor_from_hf(config, name, lambda source: tensors[names[source]])
            for name in module.state_dict()
        }
    )
    return module.eval()


def write(folder: Path, module: VisionModel | MAE) -> Path:
    folder.mkdir()
    labels = module.labels if isinstance(module, ViT) else None
    (folder / "config.json").write_text(json.dumps(vision_config_to_hf(module.config, labels)))
    save_file(vision_tensors_to_hf(module), folder / "model.safetensors", {"format": "pt"})
    return folder


def check_equal(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, left), right in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def test_a_classifier_comes_back_byte_for_byte(tmp_path: Path) -> None:
    theirs = saved("ViTForImageClassification", tmp_path / "theirs", num_labels=3, hidden_dropout_prob=0.1)
    module = read(theirs)
    assert isinstance(module, ViT) and module.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert module.config == replace(VIT, trunk=replace(TRUNK, dropout=0.1))
    ours = write(tmp_path / "ours", module)
    assert filecmp.cmp(ours / "model.safetensors", theirs / "model.safetensors", shallow=False)
    check_equal(read(ours), module)
    config = transformers.AutoConfig.from_pretrained(ours)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"} and config.hidden_dropout_prob == 0.1


def test_a_bare_model_loses_its_pooler_alone(tmp_path: Path) -> None:
    theirs = saved("ViTModel", tmp_path / "theirs")
    module = read(theirs)
    assert not isinstance(module, ViT)
    before, after = load_file(theirs / "model.safetensors"), vision_tensors_to_hf(module)
    assert before.keys() - after.keys() == {"pooler.dense.weight", "pooler.dense.bias"} and after.keys() < before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    write(tmp_path / "ours", module)
    model = transformers.ViTModel.from_pretrained(tmp_path / "ours", add_pooling_layer=False)
    assert torch.equal(model.embeddings.cls_token, module.cls_token)


def test_two_labels_without_names_are_those_of_transformers(tmp_path: Path) -> None:
    module = read(saved("ViTForImageClassification", tmp_path))
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())
    assert isinstance(module, ViT) and module.labels == ["LABEL_0", "LABEL_1"]


def test_every_spelling_of_mae_is_read(tmp_path: Path) -> None:
    theirs = saved("ViTMAEForPreTraining", tmp_path / "theirs", **DECODER)
    written = load_file(theirs / "model.safetensors")
    assert any(name.startswith("decoder.decoder_encoder.layer.1.") for name in written)  # what 5.24 writes
    module = read(theirs)
    assert isinstance(module, MAE)

    ours = write(tmp_path / "ours", module)
    hub = load_file(ours / "model.safetensors")
    assert "decoder.decoder_layers.1.attention.attention.query.weight" in hub and hub.keys() != written.keys()
    check_equal(read(ours), module)

    model, info = transformers.ViTMAEForPreTraining.from_pretrained(ours, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    in_memory = model.state_dict()
    assert "vit.layers.1.attention.q_proj.weight" in in_memory
    check_equal(filled(module.config, in_memory), module)


def test_the_encoder_of_a_mae_alone(tmp_path: Path) -> None:
    module = read(saved("ViTMAEModel", tmp_path, **DECODER))
    assert type(module) is VisionModel and module.config == VIT


def test_a_patch_keeps_its_pixels_in_their_places() -> None:
    """Ours stand in the order (C, P, P), theirs in (P, P, C)."""
    module = MAE(MAE_CONFIG)
    module.pred.bias.data = torch.arange(48.0)
    theirs = vision_tensors_to_hf(module)["decoder.decoder_pred.bias"].view(4, 4, 3)
    for c, row, column in ((0, 0, 0), (2, 1, 3), (1, 3, 0)):
        assert theirs[row, column, c] == module.pred.bias.view(3, 4, 4)[c, row, column]


DEPARTURES = {
    "conv": replace(VIT, stem="conv"),
    "residual": replace(VIT, stem="residual"),
    "mean": replace(VIT, pooling="mean"),
    "mae-conv": replace(MAE_CONFIG, encoder=replace(VIT, stem="conv")),
    "mae-wide": replace(MAE_CONFIG, encoder=replace(VIT, image_size=(16, 24))),
}


@pytest.mark.parametrize("name", DEPARTURES)
def test_departures_come_back_and_are_refused_by_transformers(name: str, tmp_path: Path) -> None:
    config = DEPARTURES[name]
    module = randomised(MAE(config) if isinstance(config, MAEConfig) else ViT(config, ["a", "b"]))
    folder = write(tmp_path / "ours", module)
    again = read(folder)
    assert again.config == config
    check_equal(again, module)
    with pytest.raises(ValueError, match="bedplate_vit"):
        transformers.AutoModel.from_pretrained(folder)
    kind = transformers.ViTMAEForPreTraining if name.startswith("mae") else transformers.ViTForImageClassification
    if name == "mean":  # of the same shapes: by no name may its weights get in
        model, info = kind.from_pretrained(folder, output_loading_info=True)
        assert info["missing_keys"] == model.state_dict().keys()


@pytest.mark.parametrize("family", ["vit", "vit_mae"])
def test_absent_keys_mean_what_they_mean_there(family: str) -> None:
    defaults = transformers.AutoConfig.for_model(family).to_dict()
    assert vision_config_from_hf({"model_type": family}) == vision_config_from_hf(defaults)


@pytest.mark.parametrize(
    "config",
    [
        VIT,
        replace(
            VIT, image_size=(16, 24), num_channels=1, trunk=replace(TRUNK, attention_bias=False, activation="relu")
        ),
        MAE_CONFIG,
        replace(MAE_CONFIG, mask_ratio=0.6, norm_pix_loss=False),
        *DEPARTURES.values(),
    ],
)
def test_configs_come_back(config: VisionConfig | MAEConfig) -> None:
    values = json.loads(json.dumps(vision_config_to_hf(config)))
    assert vision_config_from_hf(values) == config
    assert vision_labels_from_hf(values) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "deit"}, r"c.json: model_type='deit' is not supported; supported: vit, vit_mae"),
        ({"patch_size": [16, 16]}, r"patch_size=\[16, 16\] is not supported; supported: one number"),
        ({"image_size": [32, "a"]}, "image_size.1='a': input should be a valid integer"),
        ({"image_size": 225}, "c.json: image_size=225x225 is not a multiple of patch_size=16"),
        ({"hidden_act": "gelu_10"}, "hidden_act='gelu_10' is not supported"),
        ({"num_attention_heads": 7}, "a hidden size of 768 is not a multiple of 7 attention heads"),
        ({"head_dim": 16}, "head_dim=16 is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config=.* is not supported"),
        ({"stem": "conv"}, "model_type='vit' does not go with .*; use bedplate_vit"),
        ({"model_type": "bedplate_vit"}, "model_type='bedplate_vit' does not go with .*; use vit"),
        ({"model_type": "vit_mae", "mask_ratio": 2}, "mask_ratio=2: input should be less than or equal to 1"),
        ({"model_type": "vit_mae", "mask_ratio": 1}, "c.json: mask_ratio=1.0 keeps 0 of 196 patches"),
    ],
)
def test_refuses_what_our_modules_do_not_have(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        vision_config_from_hf({"model_type": "vit", **values}, "c.json")
    assert str(caught.value).startswith("c.json: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            replace(VIT, trunk=replace(TRUNK, qk_norm=True)),
            "a vit directory cannot hold a model with trunk.qk_norm=True",
        ),
        (
            replace(MAE_CONFIG, decoder=replace(MAE_CONFIG.decoder, norm_eps=1e-5)),
            "a vit_mae directory cannot hold a model with decoder.norm_eps=1e-05",
        ),
    ],
)
def test_refuses_what_a_config_file_cannot_say(config: VisionConfig | MAEConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        vision_config_to_hf(config)


def test_labels() -> None:
    values = vision_config_to_hf(VIT, ["cat", "dog", "sheep"])
    assert vision_labels_from_hf(values) == ["cat", "dog", "sheep"]
    cranes = {"id2label": {"0": "crane", "1": "cat", "2": "crane"}}  # as ImageNet's list has a bird and a machine
    assert vision_labels_from_hf(values | cranes) == ["crane", "cat", "crane (2)"]
    with pytest.raises(InputError, match="problem_type='multi_label_classification' is not supported"):
        vision_labels_from_hf(values | {"problem_type": "multi_label_classification"})
