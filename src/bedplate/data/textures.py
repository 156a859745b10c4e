"""Backgrounds made by arithmetic, of no outside files: what the objects of composed scenes lie on."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float64]
"""(H, W) in 0..1: how much of the second colour each pixel has."""

TURN = 2 * np.pi
MAX_GRAIN = 16.0


def texture(draw: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """(H, W, 3): a random pattern between two random colours, half of the time with grain."""
    pattern = PATTERNS[draw.integers(len(PATTERNS))]
    share = pattern(draw, height, width)[..., None]
    one, other = draw.uniform(0, 255, (2, 3))
    pixels = one + (other - one) * share
    if draw.random() < 0.5:
        pixels = pixels + draw.normal(0, draw.uniform(2, MAX_GRAIN), (height, width, 1))
    return pixels.round().clip(0, 255).astype(np.uint8)


def _axes(draw: np.random.Generator, height: int, width: int) -> tuple[Field, Field]:
    """Coordinates along and across a random direction, in the shorter side, from a random origin."""
    angle, shorter = draw.uniform(0, TURN), min(height, width)
    y, x = np.mgrid[:height, :width] / shorter
    x, y = x - draw.uniform(0, width / shorter), y - draw.uniform(0, height / shorter)
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _spread(values: Field) -> Field:
    low, high = values.min(), values.max()
    return (values - low) / (high - low if high > low else 1.0)


def flat(draw: np.random.Generator, height: int, width: int) -> Field:
    return np.zeros((height, width))


def gradient(draw: np.random.Generator, height: int, width: int) -> Field:
    return _spread(_axes(draw, height, width)[0])


def rings(draw: np.random.Generator, height: int, width: int) -> Field:
    """A gradient around a point; with more turns, rings."""
    along, across = _axes(draw, height, width)
    return 0.5 - 0.5 * np.cos(np.hypot(along, across) * draw.uniform(0.5, 8) * TURN)


def stripes(draw: np.random.Generator, height: int, width: int) -> Field:
    along, _ = _axes(draw, height, width)
    wave = np.sin(along * draw.uniform(1, 20) * TURN)
    return (wave > 0).astype(np.float64) if draw.random() < 0.5 else 0.5 + 0.5 * wave


def checks(draw: np.random.Generator, height: int, width: int) -> Field:
    along, across = _axes(draw, height, width)
    count = draw.uniform(2, 20)
    return (np.floor(along * count) + np.floor(across * count)) % 2


def dots(draw: np.random.Generator, height: int, width: int) -> Field:
    along, across = _axes(draw, height, width)
    count, radius = draw.uniform(2, 16), draw.uniform(0.15, 0.45)
    return (np.hypot((along * count) % 1 - 0.5, (across * count) % 1 - 0.5) < radius).astype(np.float64)


def noise(draw: np.random.Generator, height: int, width: int) -> Field:
    """Value noise of several octaves, each of half the size and strength: clouds, or marble where it is folded."""
    total, cells, strength = np.zeros((height, width)), int(draw.integers(2, 7)), 1.0
    for _ in range(draw.integers(1, 6)):
        grid = Image.fromarray(draw.random((cells, cells)).astype(np.float32))
        total += strength * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float64)
        cells, strength = cells * 2, strength / 2
    return _spread(np.abs(total - total.mean()) if draw.random() < 0.3 else total)


def patches(draw: np.random.Generator, height: int, width: int) -> Field:
    """Cells around random points, each of one tone."""
    count = int(draw.integers(4, 16))
    y, x = draw.uniform(0, height, (count, 1, 1)), draw.uniform(0, width, (count, 1, 1))
    rows, columns = np.arange(height).reshape(1, -1, 1), np.arange(width).reshape(1, 1, -1)
    return draw.random(count)[((rows - y) ** 2 + (columns - x) ** 2).argmin(0)]


PATTERNS: tuple[Callable[[np.random.Generator, int, int], Field], ...] = (
    *(flat, gradient, rings, stripes, checks, dots, noise, patches),
)
