"""Drawn shapes in plain colours, and which colour a sticker has: what questions about scenes need, of no outside files.

A colour is a region of HSV (Smith 1978): a pixel is black, white or grey by its value and saturation, else what its hue
is called; brown is dark orange or red, pink is pale red or magenta.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bedplate.data.stickers import VISIBLE, Sticker, sticker

PLAIN = {
    "red": (220, 20, 30),
    "orange": (250, 130, 10),
    "yellow": (250, 220, 20),
    "green": (30, 160, 50),
    "blue": (30, 80, 220),
    "purple": (130, 50, 190),
    "pink": (250, 120, 190),
    "brown": (125, 75, 35),
    "black": (20, 20, 20),
    "grey": (130, 130, 130),
}
"""Colours of the drawn shapes, as RGB."""
HUES = ((15, "red"), (40, "orange"), (68, "yellow"), (165, "green"), (255, "blue"), (290, "purple"), (340, "pink"))
"""The first degree that a hue does not have any more; red again to 360."""
DARK, GREYISH, BRIGHT = 0.2, 0.15, 0.88
"""Value below which all is black, saturation below which there is no hue, value from which that is white."""
BROWN, PALE = 0.68, 0.5
"""Value below which orange is brown, red too where it is not `VIVID`, and pink purple; saturation below which red is
pink."""
VIVID = 0.75
DOMINANT = 0.6
"""Least share of the visible pixels that must have a colour for the sticker to have it."""
SIDE = 64


def colour_of(image: Image.Image) -> str | None:
    """The name of the colour that most of what is seen of an RGBA picture has; None where no colour is dominant."""
    pixels = np.asarray(image.convert("RGBA"))
    seen = pixels[pixels[..., 3] >= VISIBLE][:, :3]
    if not len(seen):
        return None
    names, counts = np.unique(colour_names(seen), return_counts=True)
    most = int(counts.argmax())
    return str(names[most]) if counts[most] >= DOMINANT * len(seen) else None


def colour_names(pixels: NDArray[np.uint8]) -> NDArray[np.str_]:
    """What the colours (N, 3), RGB, are called (N,)."""
    rgb = pixels.astype(np.float64) / 255
    value, least = rgb.max(1), rgb.min(1)
    range_ = value - least
    saturation = range_ / np.maximum(value, 1e-9)
    red, green, blue = rgb.T
    safe = np.where(range_ > 0, range_, 1)
    sextant = np.select(
        [value == red, value == green], [(green - blue) / safe % 6, (blue - red) / safe + 2], (red - green) / safe + 4
    )
    hue = 60 * sextant
    named = np.array([name for _, name in HUES] + ["red"])[
        np.searchsorted([end for end, _ in HUES], hue, side="right")
    ].astype("<U8")
    dark = value < BROWN
    named[dark & ((named == "orange") | ((named == "red") & (saturation < VIVID)))] = "brown"
    named[dark & (named == "pink")] = "purple"
    named[~dark & (named == "red") & (saturation < PALE)] = "pink"
    plain = saturation < GREYISH
    named[plain] = np.where(value[plain] >= BRIGHT, "white", "grey")
    named[value < DARK] = "black"
    return named


def shapes() -> list[Sticker]:
    """Each of the drawn shapes in each of the plain colours, named by its shape; `colour_of` tells the colour."""
    return [sticker(draw(rgb), name) for name, draw in SHAPES.items() for rgb in PLAIN.values()]


def _polygon(*corners: tuple[float, float]) -> Callable[[tuple[int, int, int]], Image.Image]:
    """A drawing of corners (x, y) in -1..1."""

    def drawn(rgb: tuple[int, int, int]) -> Image.Image:
        image = Image.new("RGBA", (SIDE, SIDE))
        places = [((x + 1) * SIDE / 2, (y + 1) * SIDE / 2) for x, y in corners]
        ImageDraw.Draw(image).polygon(places, (*rgb, 255))
        return image

    return drawn


def _on_circle(radii: tuple[float, ...], count: int) -> list[tuple[float, float]]:
    """Corners around the centre from the top on, their radii in turn."""
    angles = [math.tau * number / count for number in range(count)]
    return [
        (radii[number % len(radii)] * math.sin(angle), -radii[number % len(radii)] * math.cos(angle))
        for number, angle in enumerate(angles)
    ]


def _heart() -> list[tuple[float, float]]:
    """The curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t."""
    turns = [math.tau * number / 60 for number in range(60)]
    return [
        (
            16 * math.sin(t) ** 3 / 17,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17,
        )
        for t in turns
    ]


def _cross(arm: float = 0.32) -> list[tuple[float, float]]:
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    turned = [*quarter, *((-y, x) for x, y in quarter)]
    return [*turned, *((-x, -y) for x, y in turned)]


SHAPES: dict[str, Callable[[tuple[int, int, int]], Image.Image]] = {
    "circle": _polygon(*_on_circle((1.0,), 72)),
    "cross": _polygon(*_cross()),
    "heart": _polygon(*_heart()),
    "square": _polygon((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
    "star": _polygon(*_on_circle((1.0, 0.42), 10)),
    "triangle": _polygon(*_on_circle((1.0,), 3)),
}
