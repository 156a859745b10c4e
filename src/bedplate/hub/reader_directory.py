"""Directories of readers: a vision model and a language model in the names of `transformers`, and what joins them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from tokenizers import Tokenizer

from bedplate.data.tokenizer import save_tokenizer
from bedplate.errors import InputError
from bedplate.hub.config import config_from_hf, config_to_hf
from bedplate.hub.config_vision import vision_config_from_hf, vision_config_to_hf
from bedplate.hub.directory import (
    SpecialTokens,
    Unfilled,
    as_dtype,
    check_tensors,
    layout_name,
    read_config_values,
    read_weights,
    write_weights,
)
from bedplate.hub.folder import new_folder, write_json
from bedplate.hub.processor import FILE, ImageProcessor
from bedplate.hub.weights import full_names, tensor_from_hf, tensors_to_hf, their_shape
from bedplate.hub.weights import their_name as their_text_name
from bedplate.hub.weights_vision import their_name as their_vision_name
from bedplate.hub.weights_vision import vision_names, vision_tensor_from_hf, vision_tensors_to_hf
from bedplate.models.reader import Connector, Reader, ReaderConfig
from bedplate.models.vit import VisionConfig

MODEL_TYPE = "bedplate_reader"
VISION, CONNECTOR, LANGUAGE = "vision_model.", "connector.", "language_model."
"""What the names of a checkpoint's tensors begin with."""
MOST_TOKENS = 1024  # of an answer that a config file may ask for


def reader_config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> tuple[ReaderConfig, int]:
    """(config, tokens of an answer at most) of a config file's values; `where` names the file in errors.

    Raises:
        InputError: a value is missing, of the wrong type, or of no reader that there is.
    """
    inner = {key: values.get(key) for key in ("vision_config", "text_config")}
    for key, value in inner.items():
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: {key}={value!r} must be the values of a model's config file")
    vision = vision_config_from_hf(inner["vision_config"] or {}, f"{where}: vision_config")
    if not isinstance(vision, VisionConfig):
        raise InputError(f"{where}: vision_config is of no encoder of pictures; give one of type vit")
    language = config_from_hf(inner["text_config"] or {}, f"{where}: text_config")
    connector = values.get("connector", "linear")
    if connector not in get_args(Connector):
        raise InputError(f"{where}: connector={connector!r} is not known; supported: {', '.join(get_args(Connector))}")
    places = values.get("places", False)
    if not isinstance(places, bool):
        raise InputError(f"{where}: places={places!r} must be true or false")
    most = values.get("max_new_tokens", 16)
    if not isinstance(most, int) or isinstance(most, bool) or not 0 < most <= MOST_TOKENS:
        raise InputError(f"{where}: max_new_tokens={most!r} must be a whole number from 1 to {MOST_TOKENS}")
    try:
        return ReaderConfig(vision, language, connector, places), most
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def reader_config_to_hf(config: ReaderConfig, max_new_tokens: int) -> dict[str, Any]:
    """The values of the config file of a reader."""
    return {
        "architectures": ["BedplateReader"],
        "model_type": MODEL_TYPE,
        "vision_config": vision_config_to_hf(config.vision),
        "text_config": config_to_hf(config.language),
        "connector": config.connector,
        "places": config.places,
        "max_new_tokens": max_new_tokens,
    }


def load_reader(
    directory: str | Path, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> tuple[Reader, int]:
    """(the reader in a directory, in evaluation mode, tokens of an answer at most); see `hub.directory.load_module`.

    Raises:
        InputError: a config that our modules do not have; a tensor that is missing, unexpected or of another shape.
    """
    directory = Path(directory)
    config, most = reader_config_from_hf(*read_config_values(directory))
    weights = read_weights(directory)
    with torch.device("meta"), Unfilled():
        reader = Reader(config)
    template = dict(reader.named_parameters())  # a tied weight is there once
    sources = {name: _their_name(config, name) for name in template}
    names = _names(config, list(weights))
    shapes = {
        sources[name]: their_shape(sources[name], p.shape) if name.startswith("language.") else tuple(p.shape)
        for name, p in template.items()
    }
    check_tensors(directory, shapes, names, weights)
    target = weights[names[sources["language.embed.weight"]]].dtype if dtype is None else as_dtype(dtype)
    state = {}
    for name in template:
        part, _, own = name.partition(".")
        if part == "connector":
            tensor = weights[names[sources[name]]]
        elif part == "vision":
            tensor = vision_tensor_from_hf(config.vision, own, lambda source: weights[names[VISION + source]])
        else:
            layout = layout_name(config.language, None)
            tensor = tensor_from_hf(layout, own, lambda source: weights[names[LANGUAGE + source]])
        state[name] = tensor.to(device, target, copy=True, memory_format=torch.contiguous_format)
    if config.language.tie_word_embeddings:
        state["language.head.weight"] = state["language.embed.weight"]
    reader.load_state_dict(state, assign=True)
    reader.tie_weights()
    return reader.eval(), most


def save_reader(
    directory: str | Path,
    reader: Reader,
    tokenizer: Tokenizer,
    processor: ImageProcessor,
    card: str = "",
    *,
    max_new_tokens: int,
    overwrite: bool = False,
) -> None:
    """Write `config.json`, `preprocessor_config.json`, `tokenizer.json`, `model.safetensors` and the card, whole or not
    at all.

    Raises:
        InputError: the folder exists and is not empty, the disk is full, or a config cannot hold the model.
    """
    config = reader.config
    if processor.size != config.vision.image_size:
        raise InputError(
            f"the processor gives pictures of {processor.size}, and the model reads {config.vision.image_size}"
        )
    kind = reader.language.embed.weight.dtype
    values = reader_config_to_hf(config, max_new_tokens) | SpecialTokens.of(tokenizer).to_hf()
    layout = layout_name(config.language, None)
    language = tensors_to_hf(layout, dict(reader.language.named_parameters()))
    tensors = {
        **{VISION + name: tensor for name, tensor in vision_tensors_to_hf(reader.vision).items()},
        **{CONNECTOR + name: parameter.detach() for name, parameter in reader.connector.named_parameters()},
        **{LANGUAGE + name: tensor for name, tensor in language.items()},
    }
    with new_folder(directory, overwrite) as partial:
        write_json(partial / "config.json", values | {"torch_dtype": str(kind).removeprefix("torch.")})
        write_json(partial / FILE, processor.to_hf())
        save_tokenizer(tokenizer, partial, config.context)
        if card:
            (partial / "README.md").write_text(card, "utf-8")
        write_weights(partial, {name: tensor.to(kind) for name, tensor in tensors.items()})


def _their_name(config: ReaderConfig, name: str) -> str:
    """The checkpoint's name of our tensor `name`."""
    part, _, own = name.partition(".")
    if part == "vision":
        return VISION + their_vision_name(config.vision, own)
    if part == "language":
        return LANGUAGE + their_text_name(layout_name(config.language, None), own)
    return name


def _names(config: ReaderConfig, given: list[str]) -> dict[str, str]:
    """{name as `_their_name` has it: name in the checkpoint}."""
    parts: dict[str, list[str]] = {VISION: [], LANGUAGE: []}
    names = {}
    for name in given:
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if prefix is None:
            names[name] = name
        else:
            parts[prefix].append(name.removeprefix(prefix))
    vision = vision_names(config.vision, parts[VISION])
    language = full_names(layout_name(config.language, None), parts[LANGUAGE])
    names |= {VISION + ours: VISION + theirs for ours, theirs in vision.items()}
    return names | {LANGUAGE + ours: LANGUAGE + theirs for ours, theirs in language.items()}
