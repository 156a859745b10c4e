"""ViT beside that of `transformers`, and what it promises of sizes, starts and parts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bedplate.errors import InputError
from bedplate.hub.config_vision import vision_config_from_hf, vision_config_to_hf
from bedplate.hub.weights_vision import vision_names, vision_tensor_from_hf, vision_tensors_to_hf
from bedplate.models.vit import VisionConfig, VisionModel, ViT
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS

ATOL = 1e-5
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "image_size": 16,
    "patch_size": 4,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "square": {},
    "wide": {"image_size": [16, 24]},
    "grey": {"num_channels": 1, "patch_size": 8},
    "no-qkv-bias": {"qkv_bias": False, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
}


def config(**options: Any) -> VisionConfig:
    trunk = TrunkConfig(32, 2, 4, 4, 8, 56, **PRESETS["vit"])
    return VisionConfig(**{"image_size": (16, 24), "patch_size": 4, "trunk": trunk, **options})


def images(c: VisionConfig, count: int = 3) -> Tensor:
    return torch.randn(count, c.num_channels, *c.image_size, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def randomised(module: Any) -> Any:
    """In evaluation, and with weights that hide nothing: norms and biases are random too, and the weights large."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        is_gain = "norm" in name and name.endswith("weight")
        parameter.copy_(float(is_gain) + 0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def theirs(kind: str, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    return randomised(getattr(transformers, kind)(transformers.ViTConfig(**SIZES | options)))


def ours_of(model: Any, labels: int = 0) -> VisionModel:
    """Our module with the weights of theirs."""
    c = vision_config_from_hf(model.config.to_dict())
    assert isinstance(c, VisionConfig)
    module = ViT(c, [str(i) for i in range(labels)]) if labels else VisionModel(c)
    state = model.state_dict()
    names = vision_names(c, state)
    module.load_state_dict(
        {name: vision_tensor_from_hf(c, name, lambda source: state[names[source]]) for name in module.state_dict()}
    )
    return module.eval()


def theirs_of(kind: str, module: VisionModel, folder: Path) -> Any:
    """Their model, read from the files of ours."""
    transformers = pytest.importorskip("transformers")
    values = vision_config_to_hf(module.config, module.labels if isinstance(module, ViT) else None)
    (folder / "config.json").write_text(json.dumps(values))
    save_file(vision_tensors_to_hf(module), folder / "model.safetensors", {"format": "pt"})
    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    unread = {name for name in info["missing_keys"] if not name.startswith("pooler.")}
    assert not unread and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def check_same(ours: Tensor, their: Tensor, what: str) -> None:
    assert their.std() > 1000 * ATOL, "too alike to show a difference"
    worst = (ours - their).abs().max().item()
    print(f"parity {what}: {worst:.1e}")
    assert worst < ATOL


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_classifiers_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    model = theirs("ViTForImageClassification", num_labels=5, **VARIANTS[variant])
    module = ours_of(model, 5)
    pixels = images(module.config)
    check_same(module(pixels), model(pixels).logits, f"{variant} read")
    again = theirs_of("ViTForImageClassification", module, tmp_path)
    check_same(module(pixels), again(pixels).logits, f"{variant} written")


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_hidden_states_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    model = theirs("ViTModel", **VARIANTS[variant])
    module = ours_of(model)
    pixels = images(module.config)
    check_same(module(pixels), model(pixels).last_hidden_state, f"{variant} read")
    again = theirs_of("ViTModel", module, tmp_path)
    check_same(module(pixels), again(pixels).last_hidden_state, f"{variant} written")


@pytest.mark.parametrize("size", [(24, 24), (8, 32), (16, 20)])
@torch.inference_mode()
def test_interpolated_positions_are_those_of_transformers(size: tuple[int, int]) -> None:
    model = theirs("ViTForImageClassification")
    module = ours_of(model, 2)
    pixels = torch.randn(2, 3, *size)
    expected = model(pixels, interpolate_pos_encoding=True).logits
    check_same(module(pixels, interpolate_pos_encoding=True), expected, f"{size}")
    # A copy for this size has these positions for its own.
    copy = module.with_image_size(size)
    torch.testing.assert_close(copy(pixels), module.hidden(pixels, interpolate_pos_encoding=True))


def test_refuses_other_pixels() -> None:
    module = VisionModel(config())
    with pytest.raises(InputError, match=r"pixels of 24x16.*for 16x24.*interpolate_pos_encoding=True"):
        module(torch.zeros(1, 3, 24, 16))
    with pytest.raises(InputError, match="image_size=15x24 is not a multiple of patch_size=4"):
        module(torch.zeros(1, 3, 15, 24), interpolate_pos_encoding=True)
    with pytest.raises(InputError, match="pixels have 1 channels, and this model reads 3"):
        module(torch.zeros(1, 1, 16, 24))
    with pytest.raises(InputError, match="image_size=16x22 is not a multiple"):
        config(image_size=(16, 22))
    with pytest.raises(InputError, match=r"patch_size=6 must be 2\^n"):
        config(image_size=(12, 12), patch_size=6, stem="conv")


@pytest.mark.parametrize("stem", ["patch", "conv", "residual"])
def test_fresh_weights(stem: Any) -> None:
    """A pure function of the seed; blocks pass their input on, and a classifier says nothing yet."""
    module, same, other = (ViT(config(stem=stem), ["a", "b", "c"]).eval() for _ in range(3))
    for m, seed in ((module, 3), (same, 3), (other, 4)):
        m.init_weights(seed)
    for (name, a), (_, b) in zip(module.named_parameters(), same.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(module.cls_token, other.cls_token)
    pixels = images(module.config)
    with torch.no_grad():
        assert (module(pixels) == 0).all()
        torch.testing.assert_close(module.hidden(pixels), module.trunk.norm(module.tokens(pixels)))
        assert 0.5 < module.embed(pixels).std() < 2


def test_fresh_positions_tell_row_and_column() -> None:
    module = VisionModel(config())
    module.init_weights(0)
    table, quarter = module.positions[0, 1:].unflatten(0, (4, 6)), 8
    assert (module.positions[0, 0] == 0).all()
    for row, column, i in ((0, 0, 3), (3, 5, 0), (2, 1, 7), (1, 4, 2)):
        rate = 10_000 ** (-i / quarter)
        expected = [math.sin(column * rate), math.cos(column * rate), math.sin(row * rate), math.cos(row * rate)]
        assert table[row, column, i::quarter].tolist() == pytest.approx(expected, abs=1e-6)


@torch.inference_mode()
def test_parts_of_the_states() -> None:
    module = randomised(VisionModel(config()))
    pixels = images(module.config)
    states = module.hidden(pixels)
    order = torch.stack([torch.randperm(24) for _ in pixels])
    shuffled = module.hidden(pixels, kept=order)
    back = order.argsort(1)[..., None].expand(-1, -1, 32)
    torch.testing.assert_close(shuffled[:, 1:].gather(1, back), states[:, 1:])
    torch.testing.assert_close(module.hidden(pixels, at=torch.tensor([3, 0, 24]))[:, 0], states[[0, 1, 2], [3, 0, 24]])
    features = module.features(pixels)
    assert features.shape == (3, 32, 4, 6)
    torch.testing.assert_close(features[:, :, 2, 5], states[:, 1 + 2 * 6 + 5])


@torch.inference_mode()
def test_patches_left_out_are_not_seen() -> None:
    module = randomised(VisionModel(config()))
    pixels = images(module.config, 1)
    changed = pixels.clone()
    changed[..., 4:, :] = 7.0  # all but the first row of patches
    kept = torch.tensor([[1, 4, 5]])
    torch.testing.assert_close(module.hidden(pixels, kept=kept), module.hidden(changed, kept=kept))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_classifiers_begin_with_the_base(pooling: Any) -> None:
    base = randomised(VisionModel(config()))
    module = ViT.of(base, ["a", "b"], pooling=pooling, dropout=0.1).eval()
    pixels, states = images(base.config), base.hidden(images(base.config))
    assert module.config.pooling == pooling and module.config.trunk.dropout == 0.1
    assert (module(pixels) == 0).all()
    torch.testing.assert_close(module.pooled(pixels), states[:, 0] if pooling == "cls" else states[:, 1:].mean(1))
    randomised(module)
    larger = ViT.of(module, ["x", "y", "z"], image_size=(32, 24))
    assert not larger.score.weight.any()
    assert larger.positions.shape[1] == 1 + 8 * 6 and larger(torch.zeros(1, 3, 32, 24)).shape == (1, 3)


def test_scores_of_the_same_labels_go_on() -> None:
    base = randomised(ViT(config(pooling="mean"), ["a", "b"]))
    again = ViT.of(base, ["a", "b"])
    torch.testing.assert_close(again(images(base.config)), base(images(base.config)))
    again.score.bias.data.add_(1)  # a copy, not the base's own
    assert not torch.equal(again.score.bias, base.score.bias)
    larger = ViT.of(base, ["a", "b"], image_size=(32, 24))
    assert torch.equal(larger.score.weight, base.score.weight)
    for others, pooling in ((["b", "a"], None), (["a", "b", "c"], None), (["a", "b"], "cls")):
        assert not ViT.of(base, others, pooling=pooling).score.weight.any()


@pytest.mark.parametrize("stem", ["patch", "conv", "residual"])
def test_flops_are_three_times_those_of_the_forward_pass(stem: Any) -> None:
    module = VisionModel(config(stem=stem))
    # PyTorch's counter knows no fused attention on the CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, 16, 24))
    assert module.flops_per_image() == 3 * counter.get_total_flops()


def test_every_weight_learns() -> None:
    for stem in ("patch", "conv", "residual"):
        module = randomised(ViT(replace(config(), stem=stem), ["a", "b"]))
        module(images(module.config)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
