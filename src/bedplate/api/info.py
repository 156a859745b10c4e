"""`info`: what a model is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bedplate.hub.model import Model, load


def info(model: Model | str | Path) -> dict[str, Any]:
    """{"family", "parameters", "dtype", "context", "vocab_size", "tied", "tokenizer", "trunk", "card"} of a model."""
    loaded = model if isinstance(model, Model) else load(model)
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
