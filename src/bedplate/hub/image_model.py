"""`ImageModel`, what `load` returns for a model of images: a module, its processor and its card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bedplate.data.images import Source, decode
from bedplate.errors import InputError
from bedplate.hub.directory import read_config_values
from bedplate.hub.options import taken
from bedplate.hub.processor import ImageProcessor, read_processor
from bedplate.hub.vision_directory import VisionModule, encoder_of, load_vision_module, save_vision_directory
from bedplate.models.attention_maps import attention_maps
from bedplate.models.detector import Detector
from bedplate.models.set_detector import SetDetector
from bedplate.models.vit import ImagePooling, ViT
from bedplate.tasks.classify import as_predictions
from bedplate.tasks.classify_images import image_logits

Images = Source | Sequence[Source]


@dataclass
class ImageModel:
    """A model of images: a classifier, a detector, or what these begin from.

    `module(pixels)` takes what `processor` makes of pictures: it gives logits (B, C) of a classifier, hidden states
    (B, 1 + N, D) of an encoder.
    """

    instead_of_text: ClassVar[str] = "reads pictures and writes no text; use predict"

    module: VisionModule
    processor: ImageProcessor
    card: str = ""

    @property
    def config(self) -> Any:
        return self.module.config

    @property
    def labels(self) -> list[str] | None:
        """A classifier's or detector's labels, in the order of its scores; None for others."""
        return self.module.labels if isinstance(self.module, ViT | Detector | SetDetector) else None

    def predict(self, inputs: Images, **options: Any) -> list[Any]:
        """One prediction a picture, in order; pictures are paths, bytes, PIL images or arrays.

        A classifier gives `{"label", "score", "scores": {label: probability}}`; `batch_size` is an option. A detector
        gives a list of `{"label", "score", "box": [x1, y1, x2, y2] in pixels of the picture}`, surest first; options
        are `threshold`, the least score (default 0.3), `most`, boxes of a picture at most, and `batch_size`.

        Raises:
            InputError: what is no picture, an unknown option, or a model that predicts nothing.
        """
        images = listed(inputs)
        if isinstance(self.module, ViT):
            batch_size = taken(options, {"batch_size": 64}, "a classifier of pictures")["batch_size"]
            return self._classify(images, batch_size)
        if isinstance(self.module, Detector | SetDetector):
            chosen = taken(options, {"batch_size": 8, "threshold": 0.3, "most": 100}, "a detector")
            return self._detect(images, **chosen)
        raise InputError(
            "this model has seen pictures without labels and predicts nothing; fine-tune it (bedplate finetune), or "
            "take its vectors (model.embed)"
        )

    @torch.no_grad()
    def embed(
        self, images: Images, *, pooling: ImagePooling | None = None, normalize: bool = False, batch_size: int = 64
    ) -> Tensor:
        """A vector of each picture, `(N, D)` fp32 on the CPU, in order.

        Args:
            pooling: the class token's final state ("cls") or the mean of the patches' ("mean"; default: the config's).
            normalize: whether vectors get length 1.
        """
        encoder = encoder_of(self.module)
        way = pooling or encoder.config.pooling
        if way not in ("cls", "mean"):
            raise InputError(f"pooling={way!r} is not known; choose cls or mean")
        parts = []
        for pixels in self._batches(listed(images), batch_size):
            states = encoder.hidden(pixels).float()
            parts.append((states[:, 0] if way == "cls" else states[:, 1:].mean(1)).cpu())
        vectors = torch.cat(parts) if parts else torch.zeros(0, encoder.config.trunk.hidden_size)
        return torch.nn.functional.normalize(vectors, dim=1) if normalize else vectors

    def attention(self, images: Images, *, layer: int = -1, batch_size: int = 16) -> Tensor:
        """Where it looks: `(N, H, rows, columns)` fp32 on the CPU, in order; see `models.attention_maps`.

        A map covers what `processor.seen` gives of its picture.
        """
        encoder, pictures = encoder_of(self.module), listed(images)
        if not pictures:
            return torch.zeros(0, encoder.config.trunk.num_attention_heads, *encoder.config.grid)
        return torch.cat([attention_maps(encoder, part, layer).cpu() for part in self._batches(pictures, batch_size)])

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write a model directory; see `save_vision_directory`."""
        save_vision_directory(directory, self.module, self.processor, self.card, overwrite=overwrite)

    @torch.no_grad()
    def _classify(self, images: list[Source], batch_size: int) -> list[dict[str, Any]]:
        assert isinstance(self.module, ViT)
        parts = [
            image_logits(self.module, pixels, self.processor.flip).float().cpu()
            for pixels in self._batches(images, batch_size)
        ]
        return as_predictions(torch.cat(parts), self.module.labels) if parts else []

    @torch.no_grad()
    def _detect(self, images: list[Source], batch_size: int, threshold: float, most: int) -> list[list[dict[str, Any]]]:
        assert isinstance(self.module, Detector | SetDetector)
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: give 1 or more")
        found: list[list[dict[str, Any]]] = []
        for first in range(0, len(images), batch_size):
            decoded = [decode(image, _name(image, first + n)) for n, image in enumerate(images[first:][:batch_size])]
            pixels = self.processor(decoded).to(self.module.device)
            for image, row in zip(decoded, self.module.detect(pixels, threshold=threshold, most=most), strict=True):
                boxes = self.processor.boxes_on(image, row["boxes"].float().cpu())
                rows = zip(boxes.tolist(), row["scores"].tolist(), row["classes"].tolist(), strict=True)
                found.append([{"label": self.module.labels[c], "score": s, "box": box} for box, s, c in rows])
        return found

    def _batches(self, images: list[Source], batch_size: int) -> Iterator[Tensor]:
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: give 1 or more")
        for first in range(0, len(images), batch_size):
            part = images[first : first + batch_size]
            pixels = self.processor.pixels(part, [_name(image, first + n) for n, image in enumerate(part)])
            dtype = next(self.module.parameters()).dtype
            yield self.processor.normalize(pixels.to(self.module.device)).to(dtype)


def load_image_model(
    directory: Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> ImageModel:
    """The model of images in a model directory; see `hub.load.load`."""
    module = load_vision_module(directory, dtype, device)
    card = directory / "README.md"
    text = card.read_text("utf-8", errors="replace") if card.is_file() else ""
    return ImageModel(module, read_processor(directory, encoder_of(module).config.image_size), text)


def is_image_model(directory: Path) -> bool:
    """Whether a model directory is of a model of images."""
    from bedplate.hub.vision_directory import is_vision

    return (directory / "config.json").is_file() and is_vision(read_config_values(directory)[0])


def listed(images: Images) -> list[Source]:
    """One picture or several as a list."""
    if isinstance(images, str | Path | bytes | Image.Image):
        return [images]
    return [images] if isinstance(images, np.ndarray) else list(images)


def _name(image: Source, number: int) -> str:
    return str(image) if isinstance(image, str | Path) else f"image {number + 1}"
