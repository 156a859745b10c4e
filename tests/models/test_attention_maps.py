"""Attention maps beside the definition, written out with the layer's own matrices and beside `transformers`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.errors import InputError
from bedplate.models.attention_maps import attention_maps
from bedplate.models.vit import VisionConfig, VisionModel, ViT
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS

TRUNK = TrunkConfig(32, 3, 4, 4, 8, 56, **PRESETS["vit"])
CONFIG = VisionConfig((16, 24), 4, TRUNK)  # 4 rows and 6 columns of patches
PIXELS = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def made(config: VisionConfig = CONFIG, kind: Any = VisionModel) -> Any:
    """A model with weights large enough that attention is far from even."""
    module = kind(config, ["a", "b"]) if kind is ViT else kind(config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        is_gain = "norm" in name and name.endswith("weight")
        parameter.copy_(float(is_gain) + 0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def by_hand(module: VisionModel, layer: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) `(B, H, N, N)` from the states that enter the layer."""
    states: dict[int, Tensor] = {}
    block = module.trunk.blocks[layer]
    handle = block.attn_norm.register_forward_hook(lambda _, __, out: states.update({0: out}))
    module.hidden(PIXELS)
    handle.remove()
    q, k = (
        proj(states[0]).unflatten(-1, (-1, TRUNK.head_dim)).transpose(1, 2)
        for proj in (block.attn.q_proj, block.attn.k_proj)
    )
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    return F.softmax(q @ k.transpose(-1, -2) / TRUNK.head_dim**0.5, -1)


@pytest.mark.parametrize("layer", [0, 1, -1])
@pytest.mark.parametrize("heads", [4, 2])
@torch.no_grad()
def test_maps_are_the_class_tokens_weights(layer: int, heads: int) -> None:
    module = made(replace(CONFIG, trunk=replace(TRUNK, num_key_value_heads=heads)))
    maps, weights = attention_maps(module, PIXELS, layer), by_hand(module, layer)
    assert maps.shape == (2, 4, 4, 6)
    torch.testing.assert_close(maps.flatten(2), weights[:, :, 0, 1:])
    assert maps.flatten(2).std(-1).min() > 1e-3, "too even to show a difference"
    torch.testing.assert_close(maps.sum((2, 3)) + weights[:, :, 0, 0], torch.ones(2, 4))


@torch.no_grad()
@pytest.mark.parametrize("has_bf16", [True, False])
def test_maps_of_a_model_in_bf16(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a CPU that multiplies bf16 reads without PyTorch's kernel."""
    monkeypatch.setattr("bedplate.nn.attention.CPU_HAS_BF16", has_bf16)
    module = made()
    exact = attention_maps(module, PIXELS)
    rounded = attention_maps(module.to(torch.bfloat16), PIXELS.to(torch.bfloat16))
    assert rounded.shape == exact.shape and (rounded - exact).abs().max() < 0.1


def test_of_a_model_that_reads_the_mean_they_are_the_mean_of_the_patches() -> None:
    module = made(replace(CONFIG, pooling="mean"), ViT)
    torch.testing.assert_close(attention_maps(module, PIXELS).flatten(2), by_hand(module, -1)[:, :, 1:, 1:].mean(2))


@torch.no_grad()
def test_equal_keys_are_looked_at_equally() -> None:
    module = made()
    nn.init.zeros_(module.trunk.blocks[-1].attn.k_proj.weight)
    torch.testing.assert_close(attention_maps(module, PIXELS), torch.full((2, 4, 4, 6), 1 / 25))


def test_a_patch_that_answers_the_class_token_is_found() -> None:
    """The key of one patch is set to the class token's query: all heads look there."""
    module = made(VisionConfig((16, 24), 4, replace(TRUNK, num_hidden_layers=1)))
    attn, row, column = module.trunk.blocks[0].attn, 2, 5
    at = 1 + row * 6 + column
    attn.q_proj.register_forward_hook(lambda _, __, q: q + 20 * F.one_hot(torch.tensor(0), 8).repeat(4))

    def answer(_: Any, __: Any, k: Tensor) -> Tensor:
        return k + 20 * (torch.arange(k.shape[1]) == at)[:, None] * F.one_hot(torch.tensor(0), 8).repeat(4)

    attn.k_proj.register_forward_hook(answer)
    maps = attention_maps(module, PIXELS)
    assert (maps[:, :, row, column] > 0.99).all() and not maps.requires_grad


def test_they_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from bedplate.hub.config_vision import vision_config_from_hf
    from bedplate.hub.weights_vision import vision_names, vision_tensor_from_hf

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=4, attn_implementation="eager")
    model = transformers.ViTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    shape, state = vision_config_from_hf(config.to_dict()), model.state_dict()
    assert isinstance(shape, VisionConfig)
    module, names = VisionModel(shape).eval(), vision_names(shape, state)
    module.load_state_dict(
        {name: vision_tensor_from_hf(shape, name, lambda source: state[names[source]]) for name in module.state_dict()}
    )
    pixels = PIXELS[..., :16]
    with torch.no_grad():
        theirs = model(pixels, output_attentions=True).attentions
    for layer in (0, 1):
        maps = attention_maps(module, pixels, layer)
        torch.testing.assert_close(maps.flatten(2), theirs[layer][:, :, 0, 1:], atol=1e-6, rtol=1e-4)


def test_bad_input() -> None:
    for layer in (3, -4):
        with pytest.raises(InputError, match=f"layer={layer}: this model has 3 layers; give 0 to 2, or -3 to -1"):
            attention_maps(made(), PIXELS, layer)
    with pytest.raises(InputError, match="pixels of 24x16"):
        attention_maps(made(), PIXELS.transpose(2, 3))
