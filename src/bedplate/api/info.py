"""`info`: what a model is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bedplate.hub.image_model import ImageModel
from bedplate.hub.load import load
from bedplate.hub.model import Model
from bedplate.hub.multimodal import MultimodalModel
from bedplate.hub.vision_directory import encoder_of


def info(model: Model | ImageModel | MultimodalModel | str | Path) -> dict[str, Any]:
    """What a model is.

    Returns:
        {"family", "parameters", "dtype", "trunk", "card"}; of text also "context", "vocab_size", "tied",
        "tokenizer", of images "image_size", "patch_size", "stem", "labels".
    """
    loaded = load(model) if isinstance(model, str | Path) else model
    if isinstance(loaded, ImageModel):
        return _of_images(loaded)
    if isinstance(loaded, MultimodalModel):
        return _shared(loaded) | loaded.facts() | {"card": loaded.card}
    config = loaded.config
    return {
        "family": config.family,
        "parameters": sum(p.numel() for p in loaded.module.parameters()),
        "dtype": str(loaded.module.embed.weight.dtype).removeprefix("torch."),
        "context": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "tied": config.tie_word_embeddings,
        "tokenizer": loaded.tokenizer is not None,
        "trunk": asdict(config.trunk),
        "card": loaded.card,
    }


def _shared(model: ImageModel | MultimodalModel) -> dict[str, Any]:
    return {
        "family": type(model.module).__name__.lower(),
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "dtype": str(next(model.module.parameters()).dtype).removeprefix("torch."),
    }


def _of_images(model: ImageModel) -> dict[str, Any]:
    config = encoder_of(model.module).config
    return {
        **_shared(model),
        "image_size": list(config.image_size),
        "patch_size": config.patch_size,
        "stem": config.stem,
        "labels": model.labels,
        "trunk": asdict(config.trunk),
        "card": model.card,
    }
