"""Directories of vision models: read with every tensor checked, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bedplate.errors import InputError
from bedplate.hub.config_vision import FILES, vision_config_from_hf, vision_config_to_hf, vision_labels_from_hf
from bedplate.hub.directory import Unfilled, as_dtype, check_tensors, read_config_values, read_weights, write_weights
from bedplate.hub.folder import new_folder, write_json
from bedplate.hub.processor import FILE, ImageProcessor
from bedplate.hub.weights_vision import their_name, vision_names, vision_tensor_from_hf, vision_tensors_to_hf
from bedplate.models.mae import MAE, MAEConfig
from bedplate.models.vit import VisionConfig, VisionModel, ViT

VisionModule = VisionModel | ViT | MAE


def is_vision(values: dict[str, Any]) -> bool:
    """Whether a config file is of a model of images."""
    return values.get("model_type") in FILES


def load_vision_module(
    directory: str | Path, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> VisionModule:
    """The model in a directory, in evaluation mode; see `hub.directory.load_module`.

    Raises:
        InputError: a config that our modules do not have; a tensor that is missing, unexpected or of another shape.
    """
    directory = Path(directory)
    values, file = read_config_values(directory)
    config, labels, weights = vision_config_from_hf(values, file), vision_labels_from_hf(values, file), None
    weights = read_weights(directory)
    names = vision_names(config, weights)
    with torch.device("meta"), Unfilled():
        module = _make(config, labels)
    template = dict(module.named_parameters())
    expected = {their_name(config, name): tuple(p.shape) for name, p in template.items()}
    check_tensors(directory, expected, names, weights)
    first = their_name(config, next(iter(template)))
    target = weights[names[first]].dtype if dtype is None else as_dtype(dtype)
    state = {}
    for name in template:
        tensor = vision_tensor_from_hf(config, name, lambda source: weights[names[source]])
        state[name] = tensor.to(device, target, copy=True, memory_format=torch.contiguous_format)
    module.load_state_dict(state, assign=True)
    return module.eval()


def _make(config: VisionConfig | MAEConfig, labels: list[str] | None) -> VisionModule:
    if isinstance(config, MAEConfig):
        return MAE(config)
    return VisionModel(config) if labels is None else ViT(config, labels)


def encoder_of(module: VisionModule) -> VisionModel:
    """What reads pictures in a vision model, whatever stands behind it."""
    return module.encoder if isinstance(module, MAE) else module


def save_vision_directory(
    directory: str | Path,
    module: VisionModule,
    processor: ImageProcessor,
    card: str = "",
    *,
    overwrite: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Write `config.json`, `preprocessor_config.json`, `model.safetensors` and the card, whole or not at all.

    Args:
        dtype: of the weights on the disk; by default as they are.

    Raises:
        InputError: the folder exists and is not empty, the disk is full, or the config cannot hold the model.
    """
    size = encoder_of(module).config.image_size
    if processor.size != size:
        raise InputError(f"the processor gives pictures of {processor.size}, and the model reads {size}")
    kind = dtype or next(module.parameters()).dtype
    config = vision_config_to_hf(module.config, module.labels if isinstance(module, ViT) else None)
    config["torch_dtype"] = str(kind).removeprefix("torch.")
    with new_folder(directory, overwrite) as partial:
        write_json(partial / "config.json", config)
        write_json(partial / FILE, processor.to_hf())
        if card:
            (partial / "README.md").write_text(card, "utf-8")
        write_weights(partial, {name: tensor.to(kind) for name, tensor in vision_tensors_to_hf(module).items()})
