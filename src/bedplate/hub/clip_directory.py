"""Directories of CLIPs: read with every tensor checked, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bedplate.data.tokenizer import affixes, save_tokenizer
from bedplate.errors import InputError
from bedplate.hub.clip_texts import TEMPLATES, checked_templates, end_id, ended
from bedplate.hub.config_clip import clip_config_from_hf, clip_config_to_hf
from bedplate.hub.directory import Unfilled, as_dtype, check_tensors, read_config_values, read_weights, write_weights
from bedplate.hub.folder import new_folder, read_json, write_json
from bedplate.hub.processor import FILE, ImageProcessor
from bedplate.hub.weights_clip import (
    SCALARS,
    clip_name,
    clip_names,
    clip_shape,
    clip_tensor_from_hf,
    clip_tensors_to_hf,
)
from bedplate.models.clip import Clip, ClipConfig

WHOLE = "processor_config.json"  # where transformers 5 puts the processors of texts and of pictures
TEMPLATES_KEY = "label_templates"


def load_clip_module(
    directory: str | Path, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> Clip:
    """The module in a directory, in evaluation mode; its scale stays fp32, see `hub.directory.load_module`.

    Raises:
        InputError: a config that our module does not have; a tensor that is missing, unexpected or of another shape.
    """
    directory = Path(directory)
    config = clip_config_from_hf(*read_config_values(directory))
    weights = read_weights(directory)
    with torch.device("meta"), Unfilled():
        module = Clip(config)
    template = dict(module.named_parameters())
    names = clip_names(weights)
    expected = {clip_name(config, name): clip_shape(config, name, tuple(p.shape)) for name, p in template.items()}
    check_tensors(directory, expected, names, weights)
    target = weights[clip_name(config, "visual_projection.weight")].dtype if dtype is None else as_dtype(dtype)
    state = {}
    for name in template:
        tensor = clip_tensor_from_hf(config, name, weights.__getitem__)
        kind = torch.float32 if name in SCALARS else target
        state[name] = tensor.to(device, kind, copy=True, memory_format=torch.contiguous_format)
    module.load_state_dict(state, assign=True)
    return module.eval()


def read_clip_processor(directory: Path, config: ClipConfig) -> tuple[ImageProcessor, tuple[str, ...]]:
    """How pictures are prepared, and the templates of labels.

    A directory that does not say has the settings of CLIP's own pictures and the paper's template.
    """
    size = config.vision.image_size
    own = {"image_processor_type": "CLIPImageProcessor", "size": size[0], "crop_size": size[0]}
    for file, key in ((directory / FILE, None), (directory / WHOLE, "image_processor")):
        if file.is_file():
            values: Any = read_json(file) if key is None else read_json(file).get(key) or own
            templates = values.get(TEMPLATES_KEY) or TEMPLATES
            return ImageProcessor.of(values, size, str(file)), checked_templates(templates, f"{file}: {TEMPLATES_KEY}")
    return ImageProcessor.of(own, size), TEMPLATES


def save_clip_directory(
    directory: str | Path,
    module: Clip,
    processor: ImageProcessor,
    tokenizer: Tokenizer | None = None,
    card: str = "",
    *,
    templates: Sequence[str] = TEMPLATES,
    tokenizer_config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Write config, processor with templates, weights, tokenizer and card; it is written beside its place first.

    A tokenizer that puts no end token behind a text does so when it is read again.

    Args:
        dtype: of the weights on the disk; by default as they are.

    Raises:
        InputError: the folder exists and is not empty, the disk is full, or config or tokenizer do not fit the model.
    """
    if processor.size != module.config.vision.image_size:
        raise InputError(
            f"the processor gives pictures of {processor.size}, and the model reads {module.config.vision.image_size}"
        )
    kind = dtype or module.dtype
    config = clip_config_to_hf(module.config) | {"torch_dtype": str(kind).removeprefix("torch.")}
    if tokenizer is not None:
        tokenizer = ended(tokenizer, module.config)
    if module.config.is_standard:  # whose class has ids as defaults, which another vocabulary may not even hold
        end = None if tokenizer is None else end_id(tokenizer, module.config)
        first = [] if tokenizer is None else affixes(tokenizer)[0]
        config["text_config"] |= {"bos_token_id": first[0] if first else end, "pad_token_id": end}
    with new_folder(directory, overwrite) as partial:
        write_json(partial / "config.json", config)
        write_json(partial / FILE, processor.to_hf() | {TEMPLATES_KEY: list(checked_templates(templates))})
        if tokenizer is not None:
            save_tokenizer(tokenizer, partial, module.config.text.max_position_embeddings, tokenizer_config)
        if card:
            (partial / "README.md").write_text(card, "utf-8")
        write_weights(partial, {name: _stored(tensor, kind) for name, tensor in clip_tensors_to_hf(module).items()})


def _stored(tensor: Tensor, kind: torch.dtype) -> Tensor:
    """A single number keeps its precision: rounded to bf16, a scale is off by up to a half percent of its logarithm."""
    return tensor.to(kind) if tensor.dim() else tensor
