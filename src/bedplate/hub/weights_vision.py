"""Names and layouts of image models' weights: `transformers` checkpoints of ViT and ViTMAE, to and from our modules.

What `transformers` does not know (see `is_standard` of the configs) is kept under our own names, so that none of its
classes takes such a checkpoint for one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bedplate.models.mae import MAE, MAEConfig
from bedplate.models.vit import VisionConfig, VisionModel, ViT

# Our parameter or module on the left, the Hub's on the right; {} is the layer.
_LAYER = {
    "attn_norm": "layernorm_before",
    "attn.q_proj": "attention.attention.query",
    "attn.k_proj": "attention.attention.key",
    "attn.v_proj": "attention.attention.value",
    "attn.o_proj": "attention.output.dense",
    "mlp_norm": "layernorm_after",
    "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense",
}
_VIT = {
    "cls_token": "vit.embeddings.cls_token",
    "positions": "vit.embeddings.position_embeddings",
    "embed.projection": "vit.embeddings.patch_embeddings.projection",
    **{f"trunk.blocks.{{}}.{ours}": f"vit.encoder.layer.{{}}.{theirs}" for ours, theirs in _LAYER.items()},
    "trunk.norm": "vit.layernorm",
}
_NAMES = {
    **_VIT,
    "score": "classifier",
    **{f"encoder.{ours}": theirs for ours, theirs in _VIT.items()},
    "decoder_embed": "decoder.decoder_embed",
    "mask_token": "decoder.mask_token",
    "decoder_positions": "decoder.decoder_pos_embed",
    **{f"decoder.blocks.{{}}.{ours}": f"decoder.decoder_layers.{{}}.{theirs}" for ours, theirs in _LAYER.items()},
    "decoder.norm": "decoder.decoder_norm",
    "pred": "decoder.decoder_pred",
}

# Other spellings of the Hub's names: those of the modules of transformers 5, and what its `save_pretrained` makes of
# the decoder's layers.
_SPELLINGS = {
    r"^vit\.layers\.": "vit.encoder.layer.",
    r"^decoder\.decoder_encoder\.layer\.": "decoder.decoder_layers.",
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}
_HEADS = ("vit.", "classifier.", "decoder.")  # every other name is of a model saved without the prefix
_UNUSED = "vit.pooler."  # what a bare ViTModel puts behind its class token


def their_name(config: VisionConfig | MAEConfig, name: str) -> str:
    """The checkpoint's name of our tensor `name`."""
    if not config.is_standard:
        return name
    pattern, layer = name, re.search(r"\.(\d+)\.", name)
    if layer is not None:
        pattern = name.replace(layer[0], ".{}.", 1)
    if pattern in _NAMES:
        return _NAMES[pattern]
    module, _, kind = pattern.rpartition(".")
    return f"{_NAMES[module].format(layer[1] if layer else '')}.{kind}"


def vision_names(config: VisionConfig | MAEConfig, names: Iterable[str]) -> dict[str, str]:
    """{name as `their_name` has it: name in the checkpoint}, of every spelling, without what is not used."""
    if not config.is_standard:
        return {name: name for name in names}
    full = {}
    for name in names:
        standard = name if name.startswith(_HEADS) else f"vit.{name}"
        for pattern, replacement in _SPELLINGS.items():
            standard = re.sub(pattern, replacement, standard)
        if not standard.startswith(_UNUSED):
            full[standard] = name
    return full


@torch.no_grad()
def vision_tensors_to_hf(module: VisionModel | MAE) -> dict[str, Tensor]:
    """A module's parameters under the checkpoint's names and in its layout; a model without a head has no prefix."""
    config, tensors = module.config, {}
    prefix = "vit." if config.is_standard and not isinstance(module, ViT | MAE) else ""
    for name, parameter in module.named_parameters():
        tensor = parameter.detach()
        if _holds_pixels(config, name):
            tensor = tensor.unflatten(0, (_channels(config), -1)).transpose(0, 1).flatten(0, 1)
        tensors[their_name(config, name).removeprefix(prefix)] = tensor.contiguous()
    return tensors


def vision_tensor_from_hf(config: VisionConfig | MAEConfig, name: str, read: Callable[[str], Tensor]) -> Tensor:
    """Our tensor `name`, of the shape that it has there too; `read` gives a checkpoint's tensor by its name."""
    tensor = read(their_name(config, name))
    if _holds_pixels(config, name):
        tensor = tensor.unflatten(0, (-1, _channels(config))).transpose(0, 1).flatten(0, 1)
    return tensor


def _holds_pixels(config: VisionConfig | MAEConfig, name: str) -> bool:
    """Whether its rows are a patch's values, ours in the order (C, P, P) and theirs (P, P, C)."""
    return config.is_standard and name.startswith("pred.")


def _channels(config: VisionConfig | MAEConfig) -> int:
    return (config.encoder if isinstance(config, MAEConfig) else config).num_channels
