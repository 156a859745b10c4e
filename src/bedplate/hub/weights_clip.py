"""Names and layouts of CLIP's weights: checkpoints of `transformers`' CLIPModel, to and from our module.

Free shapes, which `transformers` does not know, are kept under our own names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bedplate.models.clip import MAX_SCALE, Clip, ClipConfig

# Our module or parameter on the left, theirs on the right; {} is the layer.
_LAYER = {
    "attn_norm": "layer_norm1",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.o_proj": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}
_NAMES = {
    "text.embed": "text_model.embeddings.token_embedding",
    "text.positions": "text_model.embeddings.position_embedding",
    "text.trunk.norm": "text_model.final_layer_norm",
    "vision.cls_token": "vision_model.embeddings.class_embedding",
    "vision.positions": "vision_model.embeddings.position_embedding.weight",
    "vision.embed.projection": "vision_model.embeddings.patch_embedding",
    "vision.pre_norm": "vision_model.pre_layrnorm",
    "vision.trunk.norm": "vision_model.post_layernorm",
    **{
        f"{tower}.trunk.blocks.{{}}.{ours}": f"{tower}_model.encoder.layers.{{}}.{theirs}"
        for tower in ("text", "vision")
        for ours, theirs in _LAYER.items()
    },
    "text_projection": "text_projection",
    "visual_projection": "visual_projection",
    "logit_scale": "logit_scale",
}
_UNUSED = ".embeddings.position_ids"  # a buffer of old checkpoints
SCALARS = ("logit_scale", "logit_bias")


def clip_name(config: ClipConfig, name: str) -> str:
    """The checkpoint's name of our tensor `name`."""
    if not config.is_standard:
        return name
    layer = re.search(r"\.(\d+)\.", name)
    pattern = name if layer is None else name.replace(layer[0], ".{}.", 1)
    if pattern in _NAMES:
        return _NAMES[pattern]
    module, _, kind = pattern.rpartition(".")
    return f"{_NAMES[module].format(layer[1] if layer else '')}.{kind}"


def clip_names(names: Iterable[str]) -> dict[str, str]:
    """{name in the checkpoint: the same}, without what is not used."""
    return {name: name for name in names if not name.endswith(_UNUSED)}


def clip_shape(config: ClipConfig, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The checkpoint's shape of our tensor `name`, of `shape`."""
    return tuple(shape[-1:] if name == "vision.cls_token" else shape[1:]) if _is_token(config, name) else shape


def clip_tensor_from_hf(config: ClipConfig, name: str, read: Callable[[str], Tensor]) -> Tensor:
    """Our tensor `name`; `read` gives a checkpoint's tensor by its name."""
    tensor = read(clip_name(config, name))
    if not _is_token(config, name):
        return tensor
    return tensor[None, None] if name == "vision.cls_token" else tensor[None]


@torch.no_grad()
def clip_tensors_to_hf(module: Clip) -> dict[str, Tensor]:
    """A module's parameters under the checkpoint's names and in its layout.

    A scale is stored as it is used: a reader that knows no limit then computes the same.
    """
    tensors = {}
    for name, parameter in module.named_parameters():
        tensor = parameter.detach()
        if name == "logit_scale":
            tensor = tensor.clamp(max=MAX_SCALE)
        shape = clip_shape(module.config, name, tuple(tensor.shape))
        tensors[clip_name(module.config, name)] = tensor.reshape(shape).contiguous()
    return tensors


def _is_token(config: ClipConfig, name: str) -> bool:
    """Whether it has leading dimensions of 1 here that it does not have there."""
    return config.is_standard and name in ("vision.cls_token", "vision.positions")
