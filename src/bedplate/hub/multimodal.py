"""What models of texts and pictures have in common: where they are registered, and what verbs ask of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "clip": "bedplate.hub.clip_model",
        "bedplate_clip": "bedplate.hub.clip_model",
        "bedplate_reader": "bedplate.hub.reader_model",
        "bedplate_image_tokens": "bedplate.hub.image_tokens_model",
        "bedplate_draw": "bedplate.hub.draw_model",
    }
)
"""`model_type` in a config file -> the module whose `load_directory(directory, device, dtype)` reads it."""


class MultimodalModel(ABC):
    """A model of texts and pictures: a module, what prepares both for it, and its card."""

    module: nn.Module
    card: str
    instead_of_text: ClassVar[str]
    """What it does, as it continues no text, and the verb for that."""

    @abstractmethod
    def predict(self, inputs: Any, **options: Any) -> list[Any]:
        """One prediction an input, in order: a dict with "label" and "score", "text", or "image".

        Raises:
            InputError: an input that is none, or an option that this model does not have.
        """

    @abstractmethod
    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write a model directory, whole or not at all."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What `info` says of it besides "family", "parameters", "dtype" and "card"."""


def load_multimodal(
    directory: Path, model_type: str, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> MultimodalModel:
    """The model in a directory whose config file has a `model_type` of `KINDS`; see `hub.load.load`."""
    model: MultimodalModel = import_module(KINDS[model_type]).load_directory(directory, device, dtype)
    return model
