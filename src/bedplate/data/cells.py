"""Drawn blood smears: pictures to try a detector of blood cells on where there is no photo."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

PLASMA, CELL = (223, 216, 222), (205, 150, 165)
RIM = ((1.0, -12), (0.9, 0), (0.55, 12), (0.4, 22))
"""(share of the radius, how much lighter) of a red cell's rings from its rim to its pale middle."""
RADIUS = (17.0, 21.0)
FINE = 3
"""Pixels drawn for one that is shown, for smooth rims."""
TRIES = 400


def draw_cells(
    seed: int, size: tuple[int, int] = (240, 320), count: int = 14
) -> tuple[Image.Image, NDArray[np.float32]]:
    """Draw at most `count` red cells that hardly touch, at the scale of BCCD's photos at 320 pixels of width.

    Args:
        seed: A seed is a picture.
        size: (height, width) in pixels.
        count: Cells at most; fewer where no more fit.

    Returns:
        The picture, RGB, and boxes (M, 4) as x1 y1 x2 y2 in pixels.
    """
    (height, width), generator = size, np.random.default_rng(seed)
    canvas = Image.new("RGB", (width * FINE, height * FINE), PLASMA)
    pen = ImageDraw.Draw(canvas)
    cells: list[tuple[float, float, float]] = []
    for _ in range(TRIES):
        radius = generator.uniform(*RADIUS)
        if len(cells) == count or 2 * radius >= min(size):
            break
        x, y = generator.uniform(radius, width - radius), generator.uniform(radius, height - radius)
        if any((x - a) ** 2 + (y - b) ** 2 < 0.9 * (radius + r) ** 2 for a, b, r in cells):
            continue
        cells.append((x, y, radius))
        tint = np.array(CELL) + generator.normal(0, 4, 3)
        for share, lighter in RIM:
            left, top, right, bottom = (
                FINE * (centre + sign * radius * share) for sign in (-1, 1) for centre in (x, y)
            )
            pen.ellipse((left, top, right, bottom), fill=tuple(int(value + lighter) for value in tint))
    smooth = canvas.resize((width, height), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(1))
    grainy = np.asarray(smooth, np.float64) + generator.normal(0, 3, (height, width, 1))
    boxes = [(x - r, y - r, x + r, y + r) for x, y, r in cells]
    return Image.fromarray(grainy.clip(0, 255).astype(np.uint8)), np.array(boxes, np.float32).reshape(-1, 4)
