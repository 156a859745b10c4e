"""`ImageTokensModel`: an image tokenizer with what prepares pictures for it, and its directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bedplate.errors import InputError
from bedplate.hub.directory import Unfilled, as_dtype, check_tensors, read_config_values, read_weights, write_weights
from bedplate.hub.folder import new_folder, write_json
from bedplate.hub.image_model import Images, listed
from bedplate.hub.multimodal import MultimodalModel
from bedplate.hub.options import taken
from bedplate.hub.processor import FILE, ImageProcessor, read_processor
from bedplate.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from bedplate.tasks.pixels import as_bytes

MODEL_TYPE = "bedplate_image_tokens"


@dataclass
class ImageTokensModel(MultimodalModel):
    """Pictures to grids of codes and back."""

    instead_of_text: ClassVar[str] = "reads pictures and writes no text; use predict"

    module: ImageTokenizer
    processor: ImageProcessor
    card: str = ""

    def predict(self, inputs: Images, **options: Any) -> list[dict[str, Any]]:
        """`{"codes": rows of numbers}` of each picture, in order; `batch_size` is an option."""
        batch_size = taken(options, {"batch_size": 64}, "an image tokenizer")["batch_size"]
        return [{"codes": codes.tolist()} for codes in self.encode(inputs, batch_size=batch_size)]

    @torch.no_grad()
    def encode(self, images: Images, *, batch_size: int = 64) -> Tensor:
        """Codes `(N, rows, columns)` int64 on the CPU of pictures (paths, bytes, PIL images or arrays)."""
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: give 1 or more")
        pictures, dtype = listed(images), next(self.module.parameters()).dtype
        parts = [
            self.module.encode(self.processor(pictures[first : first + batch_size]).to(self.module.device, dtype)).cpu()
            for first in range(0, len(pictures), batch_size)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, *self.module.config.grid, dtype=torch.long)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> list[Image.Image]:
        """The pictures of codes `(N, rows, columns)`."""
        pixels = [self.module.decode(part.to(self.module.device)) for part in codes.split(64)]
        return pictures_of([as_bytes(part, self.processor.mean, self.processor.std).cpu() for part in pixels])

    def facts(self) -> dict[str, Any]:
        config = self.module.config
        return {
            "image_size": list(config.image_size),
            "patch_size": config.patch,
            "grid": list(config.grid),
            "codes": config.codebook_size,
            "levels": list(config.levels),
        }

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write `config.json`, `preprocessor_config.json`, `model.safetensors` and the card, whole or not at all."""
        with new_folder(directory, overwrite) as partial:
            kind = str(next(self.module.parameters()).dtype).removeprefix("torch.")
            values = {"model_type": MODEL_TYPE, "torch_dtype": kind}
            write_json(partial / "config.json", values | config_to_values(self.module.config))
            write_json(partial / FILE, self.processor.to_hf())
            if self.card:
                (partial / "README.md").write_text(self.card, "utf-8")
            write_weights(partial, {name: parameter.detach() for name, parameter in self.module.named_parameters()})


def load_directory(
    directory: Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> ImageTokensModel:
    """The image tokenizer in a directory, in evaluation mode.

    Raises:
        InputError: a config that is none; a tensor that is missing, unexpected or of another shape.
    """
    config = config_from_values(*read_config_values(directory))
    with torch.device("meta"), Unfilled():
        module = ImageTokenizer(config)
    fill(module, directory, device, dtype)
    return ImageTokensModel(module.eval(), read_processor(directory, config.image_size), read_card(directory))


def fill(
    module: torch.nn.Module, directory: Path, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> None:
    """Give a module on the meta device the weights of a directory that has them by the module's own names."""
    weights, template = read_weights(directory), dict(module.named_parameters())
    check_tensors(directory, {n: tuple(p.shape) for n, p in template.items()}, {n: n for n in weights}, weights)
    target = weights[next(iter(template))].dtype if dtype is None else as_dtype(dtype)
    state = {name: weights[name].to(device, target, copy=True) for name in template}
    module.load_state_dict(state, assign=True)


def read_card(directory: Path) -> str:
    card = directory / "README.md"
    return card.read_text("utf-8", errors="replace") if card.is_file() else ""


def config_to_values(config: ImageTokenizerConfig) -> dict[str, Any]:
    """A config as a file has it."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}


def config_from_values(values: Mapping[str, Any], where: str) -> ImageTokenizerConfig:
    """The inverse of `config_to_values`; `where` names the file in errors.

    Raises:
        InputError: a value is missing, of the wrong type, or does not go with another.
    """
    found: dict[str, Any] = {}
    for field in fields(ImageTokenizerConfig):
        is_list = field.name in ("image_size", "levels")
        value = values.get(field.name, None if field.name == "image_size" else field.default)
        numbers = list(value) if is_list and isinstance(value, list | tuple) else [value]
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers) or (
            field.name == "image_size" and len(numbers) != 2
        ):
            raise InputError(
                f"{where}: {field.name}={value!r} must be {'a list of numbers' if is_list else 'a number'}"
            )
        found[field.name] = tuple(numbers) if is_list else value
    try:
        return ImageTokenizerConfig(**found)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def pictures_of(pixels: Sequence[Tensor]) -> list[Image.Image]:
    """Batches of pixels `(B, 3, H, W)` uint8 as PIL images."""
    return [Image.fromarray(np.ascontiguousarray(row)) for part in pixels for row in part.permute(0, 2, 3, 1).numpy()]
