"""Directories of vision models: read with every tensor checked, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedplate.errors import InputError
from bedplate.hub.config_detector import KINDS, detector_from_hf, detector_to_hf
from bedplate.hub.config_vision import FILES, vision_config_from_hf, vision_config_to_hf, vision_labels_from_hf
from bedplate.hub.directory import Unfilled, as_dtype, check_tensors, read_config_values, read_weights, write_weights
from bedplate.hub.folder import new_folder, write_json
from bedplate.hub.processor import FILE, ImageProcessor
from bedplate.hub.weights_vision import their_name, vision_names, vision_tensor_from_hf, vision_tensors_to_hf
from bedplate.models.detector import Detector, DetectorConfig
from bedplate.models.mae import MAE
from bedplate.models.set_detector import SetDetector
from bedplate.models.vit import VisionConfig, VisionModel, ViT

VisionModule = VisionModel | ViT | MAE | Detector | SetDetector


def is_vision(values: dict[str, Any]) -> bool:
    """Whether a config file is of a model of images."""
    return values.get("model_type") in (*FILES, *KINDS)


def load_vision_module(
    directory: str | Path, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> VisionModule:
    """The model in a directory, in evaluation mode; see `hub.directory.load_module`.

    Raises:
        InputError: a config that our modules do not have; a tensor that is missing, unexpected or of another shape.
    """
    directory = Path(directory)
    values, file = read_config_values(directory)
    weights = read_weights(directory)
    with torch.device("meta"), Unfilled():
        module = _make(values, file)
    template = dict(module.named_parameters())
    names, sources = _names(module, weights, list(template))
    check_tensors(directory, {sources[name]: tuple(p.shape) for name, p in template.items()}, names, weights)
    target = weights[names[sources[next(iter(template))]]].dtype if dtype is None else as_dtype(dtype)
    state = {}
    for name in template:
        tensor = _read(module, name, lambda source: weights[names[source]])
        state[name] = tensor.to(device, target, copy=True, memory_format=torch.contiguous_format)
    module.load_state_dict(state, assign=True)
    return module.eval()


def _make(values: dict[str, Any], file: str) -> VisionModule:
    if values.get("model_type") in KINDS:
        shape, labels = detector_from_hf(values, file)
        return Detector(shape, labels) if isinstance(shape, DetectorConfig) else SetDetector(shape, labels)
    config, names = vision_config_from_hf(values, file), vision_labels_from_hf(values, file)
    if not isinstance(config, VisionConfig):
        return MAE(config)
    return VisionModel(config) if names is None else ViT(config, names)


def _names(module: VisionModule, given: Iterable[str], own: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """({standard name: name in the checkpoint}, {our name: standard name}); detectors' are our own."""
    if isinstance(module, Detector | SetDetector):
        return {name: name for name in given}, {name: name for name in own}
    return vision_names(module.config, given), {name: their_name(module.config, name) for name in own}


def _read(module: VisionModule, name: str, read: Callable[[str], Tensor]) -> Tensor:
    if isinstance(module, Detector | SetDetector):
        return read(name)
    return vision_tensor_from_hf(module.config, name, read)


def encoder_of(module: VisionModule) -> VisionModel:
    """What reads pictures in a vision model, whatever stands behind it."""
    return module if isinstance(module, VisionModel) else module.encoder


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
    if isinstance(module, Detector | SetDetector):
        config = detector_to_hf(module.config, module.labels)
        tensors = {name: parameter.detach() for name, parameter in module.named_parameters()}
    else:
        config = vision_config_to_hf(module.config, module.labels if isinstance(module, ViT) else None)
        tensors = vision_tensors_to_hf(module)
    config["torch_dtype"] = str(kind).removeprefix("torch.")
    with new_folder(directory, overwrite) as partial:
        write_json(partial / "config.json", config)
        write_json(partial / FILE, processor.to_hf())
        if card:
            (partial / "README.md").write_text(card, "utf-8")
        write_weights(partial, {name: tensor.to(kind) for name, tensor in tensors.items()})
