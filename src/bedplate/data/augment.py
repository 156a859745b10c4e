"""Augmentation of whole batches on the device that trains: settings, each of which is called on a batch.

All randomness comes from the default generator of the pixels' device, in a fixed order of draws, so a loop that seeds
it by the step resumes exactly. Nothing waits for the device, loops over images or needs another library than torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from bedplate.data import geometry, mixing
from bedplate.data.colour import jitter
from bedplate.data.geometry import Size
from bedplate.data.images import GREY
from bedplate.data.randaugment import MAX_MAGNITUDE, randaugment
from bedplate.errors import InputError

WHOLE = (1.0, 1.0)


@dataclass(frozen=True)
class ImageAugment:
    """Augmentation for classification and self-supervision; off is the default of all but what must be chosen with it.

    Called as `(pixels, size)` on uint8 (B, 3, H, W), or floats in 0..1, it gives float32 (B, 3, *size) in 0..1, not
    normalised. The order is: crop, shift and flip; RandAugment; colour; erasing. With nothing on it only resizes.

    Attributes:
        crop_scale: Least and greatest share of the area that a crop shows; (1, 1) is no crop.
        crop_ratio: Least and greatest width / height of a crop, in pixels of the input.
        zoom_out: Greatest factor by which what a crop shows is widened, up to 2; outside of a picture its edge goes on.
            1 is off.
        flip: Mirror every other picture from left to right.
        shift: Greatest shift each way, in pixels of the input, black entering: the pad-and-crop of CIFAR.
        randaugment: (operations, magnitude in 0..10); (0, 0) is off. See `randaugment.randaugment`.
        colour: Range of the factors of brightness, contrast and saturation, 1 - colour..1 + colour.
        hue: Greatest turn of the hue each way, in turns of the colour circle, up to 0.5.
        grey: Probability that a picture loses its colours.
        erasing: Probability that a rectangle is filled with noise.
        mixup: Parameter of mixup's Beta distribution; 0 is off. Only `mix` uses it.
        cutmix: Parameter of CutMix's Beta distribution; 0 is off. Only `mix` uses it.
    """

    crop_scale: tuple[float, float] = WHOLE
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    zoom_out: float = 1.0
    flip: bool = False
    shift: int = 0
    randaugment: tuple[int, int] = (0, 0)
    colour: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        if len(self.randaugment) != 2 or self.randaugment[0] < 0 or not 0 <= self.randaugment[1] <= MAX_MAGNITUDE:
            raise InputError(
                f"randaugment is {self.randaugment!r}; "
                f"give a number of operations and a magnitude in 0..{MAX_MAGNITUDE}"
            )

    def __call__(self, pixels: Tensor, size: int | Size) -> Tensor:
        """Augment a batch: (B, 3, H, W) to float32 (B, 3, *size)."""
        size = (size, size) if isinstance(size, int) else size
        source = _size_of(pixels)
        if tuple(self.crop_scale) == WHOLE and self.zoom_out == 1 and source == size:
            pixels = geometry.as_floats(geometry.shift_and_flip(pixels, self.shift, self.flip))
        else:
            pixels = self._crop(pixels, source, size)
        operations, magnitude = self.randaugment
        if operations:
            pixels = randaugment(pixels, operations, magnitude)
        if self.colour or self.hue or self.grey:
            pixels = jitter(pixels, self.colour, self.hue, self.grey)
        return mixing.erase(pixels, self.erasing) if self.erasing else pixels

    def mix(self, pixels: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Mixup and CutMix of floats (B, 3, H, W) and labels (B,): see `mixing.mix`."""
        return mixing.mix(pixels, labels, classes, self.mixup, self.cutmix)

    def _crop(self, pixels: Tensor, source: Size, size: Size) -> Tensor:
        batch, device = len(pixels), pixels.device
        if tuple(self.crop_scale) == WHOLE:
            windows = geometry.whole_windows(batch, source, device)
        else:
            windows = geometry.random_crops(batch, source, self.crop_scale, self.crop_ratio, device)
        if self.shift:
            offsets = torch.randint(-self.shift, self.shift + 1, (batch, 2), device=device)
            windows = windows + offsets.repeat(1, 2)
        if self.zoom_out > 1:
            pixels, windows = geometry.zoomed_out(pixels, windows, self.zoom_out)
        if self.flip:
            windows = geometry.mirrored(windows, torch.rand(batch, device=device) < 0.5)
        return geometry.resample(pixels, windows, size)[0]


@dataclass(frozen=True)
class BoxAugment:
    """Augmentation for detection: boxes move with the pixels.

    Called as `(pixels, boxes, classes, size)` on uint8 (B, 3, H, W) or floats in 0..1, boxes (B, M, 4) as x1 y1 x2 y2
    in pixels and classes (B, M) padded with -1, it gives float32 (B, 3, *size) in 0..1, not normalised, boxes in pixels
    of that, and classes. The order is: mosaic, scale, place and flip in one resampling; colour. Where no picture is, it
    is grey as in `images.letterbox`. With nothing on it only resizes.

    Attributes:
        scale: Least and greatest zoom, uniform; at 1 a picture just fits into the canvas. Larger ones are cropped at
            random, smaller ones lie at a random place. (1, 1) is off, (0.1, 2) large-scale jitter (arXiv 2012.07177).
        flip: Mirror every other picture from left to right.
        mosaic: Probability that a picture is joined by the three before it in the batch, each in a quarter around a
            random point at half its zoom (Bochkovskiy et al. 2020, arXiv 2004.10934, section 3.3). Where it is on there
            is room for 4 M boxes.
        keep: Share of its area that a box must keep; one that is cut to less becomes padding.
        colour, hue: As in `ImageAugment`.
    """

    scale: tuple[float, float] = WHOLE
    flip: bool = False
    mosaic: float = 0.0
    keep: float = 0.25
    colour: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        _check(self)

    def __call__(
        self, pixels: Tensor, boxes: Tensor, classes: Tensor, size: int | Size
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Augment a batch: pixels (B, 3, *size), boxes (B, M or 4 M, 4), classes (B, M or 4 M)."""
        size = (size, size) if isinstance(size, int) else size
        batch, device = len(pixels), pixels.device
        joined = torch.rand(batch, device=device) < self.mosaic
        whole = geometry.whole_windows(batch, size, device)
        frames = geometry.quarters(batch, size, device) if self.mosaic else [whole]
        shown, covered = torch.zeros((), device=device), torch.zeros((), device=device)
        moved, kept = [], []
        for number, frame in enumerate(frames):
            here = joined if number else torch.ones_like(joined)  # a picture that stays single is all of its first part
            frame = torch.where(joined.unsqueeze(1), frame, whole)
            windows = self._windows(frame, joined, _size_of(pixels), size)
            part, area = geometry.resample(pixels.roll(number, 0), windows, size, frame)
            shown, covered = shown + part * here.view(-1, 1, 1, 1), covered + area * here.view(-1, 1, 1, 1)
            there = classes.roll(number, 0).masked_fill(~here.unsqueeze(1), -1)
            ends, there = geometry.move_boxes(boxes.roll(number, 0), there, windows, size, self.keep, frame)
            moved.append(ends)
            kept.append(there)
        shown = shown + GREY[0] / 255 * (1 - covered)
        if self.colour or self.hue:
            shown = jitter(shown, self.colour, self.hue)
        return shown, torch.cat(moved, 1), torch.cat(kept, 1)

    def _windows(self, frames: Tensor, joined: Tensor, source: Size, size: Size) -> Tensor:
        fit = min(size[0] / source[0], size[1] / source[1])
        windows = geometry.random_scales(frames, source, fit * torch.where(joined, 0.5, 1.0), self.scale)
        if self.flip:
            windows = geometry.mirrored(windows, torch.rand(len(frames), device=frames.device) < 0.5)
        return windows


def _size_of(pixels: Tensor) -> Size:
    height, width = pixels.shape[-2:]
    return height, width


_RANGES = {
    "scale": (0.01, 100.0),
    "mosaic": (0.0, 1.0),
    "keep": (0.0, 1.0),
    "crop_scale": (1e-3, 1.0),
    "crop_ratio": (0.01, 100.0),
    "zoom_out": (1.0, 2.0),
    "shift": (0, 1024),
    "colour": (0.0, 1.0),
    "hue": (0.0, 0.5),
    "grey": (0.0, 1.0),
    "erasing": (0.0, 1.0),
    "mixup": (0.0, 100.0),
    "cutmix": (0.0, 100.0),
}


def _check(settings: ImageAugment | BoxAugment) -> None:
    """Raise an InputError that names the setting which is out of its range."""
    for field in fields(settings):
        if field.name not in _RANGES:
            continue
        low, high = _RANGES[field.name]
        value = getattr(settings, field.name)
        pair = value if isinstance(value, Sequence) else (value, value)
        if len(pair) != 2 or not low <= pair[0] <= pair[1] <= high:
            wanted = "two numbers, the smaller first," if isinstance(value, Sequence) else "a number"
            raise InputError(f"{field.name} is {value!r}; give {wanted} in {low:g}..{high:g}")
