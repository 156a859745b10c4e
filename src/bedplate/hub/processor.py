"""preprocessor_config.json: how a picture comes to be what a model reads, in the form of `transformers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from bedplate.data.images import Source, decode, fit, to_pixels
from bedplate.errors import InputError
from bedplate.hub.folder import read_json
from bedplate.tasks.pixels import normalize

FILE = "preprocessor_config.json"
HALVES = (0.5, 0.5, 0.5)
SIDES = "height", "width", "shortest_edge"
BILINEAR, BICUBIC = 2, 3  # PIL's numbers
CLIP = "CLIP"  # how the names of its processors begin
CLIP_DEFAULTS: dict[str, Any] = {
    "do_center_crop": True,
    "resample": BICUBIC,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),  # of the pictures that OpenAI's were trained on
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
Fit = Literal["stretch", "cover", "letterbox", "crop"]


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """What is done to a picture before a network: brought to `size`, scaled to 0..1, less `mean`, over `std`.

    Attributes:
        size: (height, width) in pixels.
        fit: "stretch", as ViT's processors of `transformers` do; "cover", cut; "letterbox", padded with grey;
            "crop", cut as CLIP's do, bicubic, where the others are bilinear.
        flip: whether predictions are the mean of a picture's and its mirror image's.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = HALVES
    std: tuple[float, ...] = HALVES
    fit: Fit = "stretch"
    flip: bool = False

    def pixels(self, images: Sequence[Source], where: Sequence[str] | None = None) -> Tensor:
        """Pictures (paths, bytes, PIL images or arrays) as uint8 `(B, 3, H, W)`.

        Raises:
            InputError: one is no picture, by the name that `where` gives it.
        """
        names = where or [str(image) if isinstance(image, str | Path) else f"image {n}" for n, image in _count(images)]
        rows = [
            to_pixels(fit(decode(image, name, self.size), *self.size, self.fit))
            for image, name in zip(images, names, strict=True)
        ]
        return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, 3, *self.size, dtype=torch.uint8)

    def __call__(self, images: Sequence[Source]) -> Tensor:
        """Pictures as the network reads them, fp32 `(B, 3, H, W)`."""
        return self.normalize(self.pixels(images))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Stored pixels `(B, 3, H, W)` as the network reads them."""
        return normalize(pixels, self.mean, self.std)

    def seen(self, image: Image) -> Image:
        """What of a picture the network reads, at the picture's own scale: a map over its canvas covers just that."""
        if self.fit == "stretch":
            return image
        across, down = image.width / self.size[1], image.height / self.size[0]
        scale = max(across, down) if self.fit == "letterbox" else min(across, down)
        height, width = (max(1, round(scale * side)) for side in self.size)
        return fit(image, height, width, self.fit)

    def boxes_on(self, image: Image, boxes: Tensor) -> Tensor:
        """Boxes `(M, 4)`, x1 y1 x2 y2 in pixels of the network's canvas, in pixels of the picture, within its edges."""
        height, width = self.size
        across, down = image.width / width, image.height / height
        if self.fit == "letterbox":
            across = down = max(across, down)
        elif self.fit != "stretch":
            raise InputError(f"a detector's pictures are stretched or letterboxed, not cut (fit={self.fit})")
        edges = torch.tensor([image.width, image.height] * 2, dtype=boxes.dtype)
        return (boxes * torch.tensor([across, down] * 2)).clamp(min=0).minimum(edges)

    @staticmethod
    def of(values: Mapping[str, Any], size: tuple[int, int], where: str = FILE) -> ImageProcessor:
        """The processor of a file's values; `size` is the model's, which pictures are brought to.

        Raises:
            InputError: a processor that does something else with a picture.
        """
        kind = str(values.get("image_processor_type", values.get("feature_extractor_type", "ViTImageProcessor")))
        is_clip = kind.startswith(CLIP)
        if is_clip:
            edge = values.get("size", 224)
            edge = {"shortest_edge": edge} if isinstance(edge, int) else edge
            values = {**CLIP_DEFAULTS, "crop_size": 224, **values, "size": edge}
        for key in ("do_resize", "do_rescale", "do_normalize"):
            if values.get(key, True) is not True:
                raise InputError(f"{where}: {key}={values[key]!r} is not supported; this model's pictures need {key}")
        own, name = (BICUBIC, "bicubic") if is_clip else (BILINEAR, "bilinear")
        if (resample := values.get("resample", own)) not in (own, None):
            raise InputError(f"{where}: resample={resample!r} is not supported; supported: {own} ({name})")
        factor = values.get("rescale_factor", 1 / 255)
        if not _is_number(factor) or abs(factor - 1 / 255) > 1e-9:
            raise InputError(f"{where}: rescale_factor={factor!r} is not supported; supported: 1/255")
        for key in ("size", "crop_size"):
            _check_size(values.get(key), f"{where}: {key}")
        given = _size(values.get("crop_size") if values.get("do_center_crop") else values.get("size"))
        if given is not None and given != size:
            raise InputError(
                f"{where}: pictures are brought to {given[0]}x{given[1]}, and the model in config.json reads "
                f"{size[0]}x{size[1]}; make them agree"
            )
        side, cut = values.get("size"), bool(values.get("do_center_crop"))
        scaled = isinstance(side, Mapping) and "shortest_edge" in side
        if cut != scaled or (cut and _size(side) != size):
            raise InputError(
                f"{where}: size={side!r} with do_center_crop={cut} is not supported; supported: height and width "
                "without a crop, or a shortest_edge as long as the crop"
            )
        if is_clip and not cut:
            raise InputError(f"{where}: do_center_crop=False of a {kind} is not supported; its pictures are cut")
        way: Any = "crop" if is_clip else values.get("fit") or ("cover" if cut else "stretch")
        if way not in (ways := get_args(Fit)):
            raise InputError(f"{where}: fit={way!r} of a {kind} is not supported; supported: {', '.join(ways)}")
        mean, std = (_channels(values.get(key) or HALVES, f"{where}: {key}") for key in ("image_mean", "image_std"))
        return ImageProcessor(size, mean, std, way, bool(values.get("test_time_flip", False)))

    def to_hf(self) -> dict[str, Any]:
        """The file's values; a way to fit that `transformers` does not have is a type that it does not have either."""
        height, width = self.size
        kinds = {"stretch": "ViTImageProcessor", "crop": "CLIPImageProcessor"}
        size = {"height": height, "width": width}
        values: dict[str, Any] = {
            "image_processor_type": kinds.get(self.fit, "BedplateImageProcessor"),
            "do_resize": True,
            "size": {"shortest_edge": height} if self.fit == "crop" else size,
            **({"do_center_crop": True, "crop_size": size} if self.fit == "crop" else {}),
            "resample": BICUBIC if self.fit == "crop" else BILINEAR,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        if self.fit not in kinds:
            values["fit"] = self.fit
        return values | ({"test_time_flip": True} if self.flip else {})


def read_processor(directory: Path, size: tuple[int, int]) -> ImageProcessor:
    """That of a model directory; one without the file is read with ViT's own settings."""
    file = directory / FILE
    return ImageProcessor.of(read_json(file), size, str(file)) if file.is_file() else ImageProcessor(size)


def _size(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if not isinstance(value, Mapping):
        return None
    if "shortest_edge" in value:
        return int(value["shortest_edge"]), int(value["shortest_edge"])
    return (int(value["height"]), int(value["width"])) if {"height", "width"} <= value.keys() else None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_size(value: object, what: str) -> None:
    """Refuse a size whose sides are no whole numbers."""
    sides = [value[key] for key in SIDES if key in value] if isinstance(value, Mapping) else [value]
    if value is not None and not all(type(side) is int and side > 0 for side in sides):
        raise InputError(f"{what}={value!r} is no size in pixels; mend it")


def _channels(value: object, what: str) -> tuple[float, ...]:
    """A value for each of the three colours, or one for all."""
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    numbers = [float(each) for each in values if _is_number(each)]
    if len(values) != 3 or len(numbers) != 3:
        raise InputError(f"{what}={value!r} is neither a number nor three of them, one for each colour; mend it")
    return tuple(numbers)


def _count(images: Sequence[Any]) -> list[tuple[int, Any]]:
    return list(enumerate(images, 1))
