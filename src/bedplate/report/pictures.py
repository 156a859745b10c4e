"""Pictures with what a model made of them: for files (PIL images) and for the self-contained page (HTML figures).

Pictures come in as PIL images, or as data URIs that are taken as they are.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from bedplate.report.fonts import font_for, is_writable

Picture = Image.Image | str
Box = tuple[float, float, float, float]

SHOWN = 640  # pixels of the longer side of a picture in a page: twice what it is shown at, for fine screens
SMALL = 128  # up to so many pixels a side a picture is kept as PNG and shown with its pixels as squares
LEGIBLE = 480  # pixels of the longer side from which on there is room for labels
QUALITY = 85
# Okabe and Ito's colours, which colour-blind readers tell apart; yellow last, as the lightest.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
# Ten points of matplotlib's viridis, whose lightness rises evenly.
HEAT = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
HEAT_SHARE = 0.6  # of the map in a blend of picture and map


class Style(NamedTuple):
    """How a box is drawn, in place of the colour of its class."""

    color: str
    dash: float = 0  # the length of a dash, and of the gap behind it, in widths of the line; 0 for none
    word: str = ""  # what stands before the label


def draw_boxes(
    image: Image.Image,
    boxes: Any,
    labels: Sequence[str] = (),
    scores: Sequence[float | None] | None = None,
    *,
    names: Sequence[str] | None = None,
    styles: Sequence[Style] = (),
) -> Image.Image:
    """A copy of a picture with boxes, each in the colour of its class and with its label, or what `legend` has for it.

    A picture whose longer side is less than `LEGIBLE` pixels is enlarged by a whole number, or no label would fit.

    Args:
        boxes: (M, 4), x1 y1 x2 y2 in pixels of the picture.
        labels: M names of classes; none for boxes without labels.
        scores: M numbers from 0 to 1, written behind the labels as percent; None for a box without.
        names: All classes, in the order in which they get their colours: give them, and a class has the same colour in
            all pictures. Without them, the labels of this picture, sorted.
        styles: M others than the colours of classes.

    Returns:
        RGB.
    """
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    if len(labels) not in (0, len(corners)) or (scores is not None and len(scores) != len(corners)):
        raise ValueError(f"{len(corners)} boxes with {len(labels)} labels and {len(scores or ())} scores")
    if len(styles) not in (0, len(corners)):
        raise ValueError(f"{len(corners)} boxes with {len(styles)} styles")
    drawn = legible(image)
    corners = corners * (drawn.width // image.width)
    every = names or sorted(set(labels))
    place, numbers = {name: number for number, name in enumerate(every)}, legend(every)
    colors = [COLORS[place.get(label, 0) % len(COLORS)] for label in labels] or [COLORS[0]] * len(corners)
    how = styles or [Style(color) for color in colors]
    colors = [style.color for style in how]
    pen, thick = ImageDraw.Draw(drawn), max(2, round(max(drawn.size) / 320))
    order = np.argsort([-(box[2] - box[0]) * (box[3] - box[1]) for box in corners], kind="stable").tolist()
    for i in order:  # small boxes lie on top of large ones
        _outline(pen, corners[i], how[i], thick)
    if labels:
        texts = [" ".join(numbers.get(label, label).split()) for label in labels]
        texts = [f"{style.word} {text}".strip() for style, text in zip(how, texts, strict=True)]
        if scores is not None:
            texts = [t if score is None else f"{t} {100 * score:.0f} %" for t, score in zip(texts, scores, strict=True)]
        _write_labels(pen, drawn.size, corners, texts, colors, order[::-1], every)
    return drawn


def _outline(pen: ImageDraw.ImageDraw, corners: Any, style: Style, thick: int) -> None:
    """The sides of a box, with a rim that stands out where the colour does not."""
    x1, y1, x2, y2 = corners
    x2, y2 = max(x2, x1), max(y2, y1)
    if not style.dash:
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_ink(style.color), width=thick + 2)
        pen.rectangle((x1, y1, x2, y2), outline=style.color, width=thick)
        return
    thick *= 2  # the rim would else be most of what is seen of a dash
    inside, step = thick - 1, style.dash * thick  # a line lies inside of its box
    dashes = [
        *((x, y, min(x + step, x2), y + inside) for x in np.arange(x1, x2, 2 * step) for y in (y1, y2 - inside)),
        *((x, y, x + inside, min(y + step, y2)) for y in np.arange(y1, y2, 2 * step) for x in (x1, x2 - inside)),
    ]
    for left, top, right, bottom in dashes:
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=_ink(style.color))
    for dash in dashes:
        pen.rectangle(dash, fill=style.color)


def legible(image: Image.Image) -> Image.Image:
    """A copy, RGB, enlarged by the least whole number that makes its longer side `LEGIBLE` pixels."""
    factor = max(1, -(-LEGIBLE // max(image.size)))
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def legend(names: Sequence[str]) -> dict[str, str]:
    """{name: "#" and its number from 1} of the names with characters that no font on this machine has."""
    font = font_for(names, LEGIBLE // 20)
    return {name: f"#{number}" for number, name in enumerate(names, 1) if not is_writable(name, font)}


def _write_labels(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    boxes: Any,
    texts: Sequence[str],
    colors: Sequence[str],
    order: Sequence[int],
    names: Sequence[str],
) -> None:
    """Labels at their boxes, inside of the picture, where they cover the fewest others."""
    font = font_for(names, max(11, round(max(size) / (42 if len(texts) <= 12 else 56))))
    taken = np.zeros((0, 4))
    for i in order:
        text = texts[i]
        while pen.textlength(text, font=font) > 0.9 * size[0] and len(text) > 1:
            text = f"{text[:-2]}…"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        pad = max(2, round((bottom - top) / 5))
        wide, high = right - left + 2 * pad, bottom - top + 2 * pad
        x1, y1, x2, y2 = boxes[i]
        corners = np.array(
            [(x1, y1 - high), (x1, y1), (x2 - wide, y1), (x1, y2), (x1, y2 - high), (x2 - wide, y2 - high)]
        )
        corners = np.clip(corners, 0, np.maximum([size[0] - wide, size[1] - high], 0))
        spots = np.concatenate([corners, corners + np.array([wide, high])], 1)
        spot = spots[int(np.argmin([_overlap(each, taken) for each in spots]))]
        taken = np.concatenate([taken, spot[None]])
        pen.rectangle(tuple(spot), fill=colors[i])
        pen.text((spot[0] + pad - left, spot[1] + pad - top), text, fill=_ink(colors[i]), font=font)


def _overlap(box: Any, others: Any) -> float:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(np.maximum(sides, 0).prod(1).sum())


def _ink(color: str) -> str:
    """Black or white, whichever has the greater contrast (WCAG 2's luminance) on the colour."""
    shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"


def heat(image: Image.Image, values: Any) -> Image.Image:
    """A picture under a map (h, w) of what matters in it, such as attention: dark is the least, yellow the most.

    The map is stretched to the size of the picture, and its values from the least to the greatest; what is the same
    everywhere is shown as the least.
    """
    grid = np.asarray(values, np.float32)
    if grid.ndim != 2 or not np.isfinite(grid).all():
        raise ValueError(f"a map has two sides and finite values, not the shape {grid.shape} or others")
    spread = float(grid.max() - grid.min()) or 1.0
    shares = Image.fromarray((grid - grid.min()) / spread).resize(image.size, Image.Resampling.BICUBIC)
    points = np.array([[int(color[i : i + 2], 16) for i in (0, 2, 4)] for color in HEAT], np.float64)
    at = np.clip(np.asarray(shares), 0, 1) * (len(points) - 1)
    colored = np.stack([np.interp(at, np.arange(len(points)), points[:, channel]) for channel in range(3)], -1)
    return Image.blend(image.convert("L").convert("RGB"), Image.fromarray(colored.astype(np.uint8)), HEAT_SHARE)


def data_uri(picture: Picture) -> str:
    """A picture as a `data:` URI: PNG up to `SMALL` pixels a side, else JPEG of at most `SHOWN` pixels a side."""
    if isinstance(picture, str):
        if not picture.startswith("data:image/"):
            raise ValueError(f"{picture[:40]!r} is no data URI of an image: a page loads nothing from elsewhere")
        return picture
    shown, small = picture.convert("RGB"), max(picture.size) <= SMALL
    shown.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    if small:
        shown.save(stream, "PNG", optimize=True)
    else:
        shown.save(stream, "JPEG", quality=QUALITY)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(stream.getvalue()).decode()}"


def grid(
    pictures: Sequence[Picture], captions: Sequence[str] = (), *, caption: str = "", wide: int = 150, columns: int = 0
) -> str:
    """Pictures side by side as one `<figure>`, as many in a line as fit.

    Args:
        captions: What stands below each, as many as there are pictures; lines end where `\\n` is.
        caption: What stands below all.
        wide: Pixels that a picture is wide at least.
        columns: Exactly so many in a line, however narrow; 0 for as many as fit.
    """
    if len(captions) not in (0, len(pictures)):
        raise ValueError(f"{len(pictures)} pictures with {len(captions)} captions")
    cells = []
    for number, picture in enumerate(pictures):
        below = captions[number] if captions else ""
        small = not isinstance(picture, str) and max(picture.size) <= SMALL
        style = ' class="pixels"' if small else ""
        shown = f'<img{style} src="{escape(data_uri(picture))}" alt="{"" if below else escape(caption)}">'
        cells.append(f"<div>{shown}{f'<span>{escape(below)}</span>' if below else ''}</div>")
    track = f"repeat({columns}, 1fr)" if columns else f"repeat(auto-fill, minmax({wide}px, 1fr))"
    end = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="pictures" style="grid-template-columns: {track}">{"".join(cells)}</div>{end}</figure>'


def predictions(rows: Sequence[Mapping[str, Any]], *, caption: str = "") -> str:
    """A grid of classified pictures: {"image", "predicted", "score"} and, where it is known, "label"."""
    return grid([row["image"] for row in rows], [_said(row) for row in rows], caption=caption)


def _said(row: Mapping[str, Any]) -> str:
    said = f"“{row['predicted']}”, {100 * row['score']:.0f} % sure"
    label = row.get("label")
    return said if label in (None, row["predicted"]) else f"{said}\nlabelled “{label}”"


def triples(originals: Sequence[Picture], masked: Sequence[Picture], rebuilt: Sequence[Picture]) -> str:
    """Reconstructions as lines of three: the picture, what the model saw of it, and what it made of that."""
    if not len(originals) == len(masked) == len(rebuilt):
        raise ValueError(f"{len(originals)} originals, {len(masked)} masked and {len(rebuilt)} reconstructed pictures")
    captions = ["original", "what the model saw", "what it made of it"] * len(originals)
    pictures = [each for triple in zip(originals, masked, rebuilt, strict=True) for each in triple]
    return grid(pictures, captions, columns=3)


def looks(rows: Sequence[Mapping[str, Any]]) -> str:
    """Classified pictures, each beside itself under the "map" (h, w) of its attention; else as for `predictions`."""
    shown: list[Picture] = [each for row in rows for each in (row["image"], heat(legible(row["image"]), row["map"]))]
    return grid(shown, [each for row in rows for each in (_said(row), "where it looks")], columns=4)


def side_by_side(*pictures: Image.Image, gap: int = 8) -> Image.Image:
    """Pictures in a line on white, top to top: for a file."""
    starts = np.cumsum([0, *(picture.width + gap for picture in pictures)]).tolist()
    line = Image.new("RGB", (starts[-1] - gap, max(picture.height for picture in pictures)), "white")
    for picture, (start, _) in zip(pictures, pairwise(starts), strict=True):
        line.paste(picture, (start, 0))
    return line
