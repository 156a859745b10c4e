"""Pictures of every kind that people have, as RGB; and the three ways to bring one to a given size."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from bedplate.errors import InputError

Pixels = NDArray[np.uint8]
Source = str | Path | bytes | Image.Image | NDArray[np.generic]

MAX_PIXELS = 89_478_485
"""Pixels above which a picture is refused: a quarter GiB as RGB, and where PIL begins to suspect an attack."""
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Only these are opened: PIL would run Ghostscript on an EPS. Most frequent first, as they are tried in turn."""
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".jp2", ".avif"),
)
"""Of files that are taken for pictures, in lower case."""
SPARE = 2
"""How many times larger than wanted a JPEG is decoded at least: no loss that one sees (PIL's `reducing_gap`)."""
SMALL_PIXELS = 2**16
# Markers of JPEG: what a plain one has before its pixels (JFIF, tables, restarts, comments), its frame, its only scan.
TABLES = frozenset((0xE0, 0xDB, 0xC4, 0xDD, 0xFE))
BASELINE, SCAN = 0xC0, 0xDA
GREY = (127, 127, 127)
FLOAT_RANGES = (1.0, 255.0, 65535.0)


class BadImage(InputError):
    """A picture that cannot be decoded; the message names it."""


def decode(source: Source, where: str | None = None, at_least: tuple[int, int] | None = None) -> Image.Image:
    """The first frame of a picture as it is to be seen: turned as its EXIF says, on white where it is transparent.

    16 bits a channel become 8 by the range of the type. 32-bit integers have no agreed range: they are taken for 16-bit
    ones where all fit, else for 31 bits. Floats are taken for 0..1, else 0..255, else 0..65535.

    Args:
        source: A path, the bytes of a file, a PIL image (left as it is), or an array (H, W) or (H, W, 3).
        where: What to call it in errors; a path names itself.
        at_least: (height, width) that is enough: a much larger JPEG is then decoded at 1/2, 1/4 or 1/8 of its size,
            never below `SPARE` times these, in a fraction of the time and memory.

    Returns:
        A PIL image of mode RGB.

    Raises:
        BadImage: No picture, a damaged one, or one of more than `MAX_PIXELS` pixels.
    """
    where = where or (str(source) if isinstance(source, str | Path) else "picture")
    try:
        return _decode(source, where, at_least)
    except (InputError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise BadImage(f"{where}: no such file; check the path") from error
    except Exception as error:  # on damaged files PIL's decoders raise nearly anything
        if isinstance(error, OSError) and error.errno is not None:
            raise BadImage(f"{where}: cannot be read: {error.strerror}; check the file and its permissions") from error
        raise BadImage(f"{where}: {_complaint(error)}; replace the file or leave it out") from error


def _decode(source: Source, where: str, at_least: tuple[int, int] | None) -> Image.Image:
    if isinstance(source, Image.Image):
        return _as_rgb(ImageOps.exif_transpose(source), where)
    if isinstance(source, np.ndarray):
        return _as_rgb(Image.fromarray(source), where)
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not content:
        raise BadImage(f"{where}: an empty file; replace the file or leave it out")
    if (small := _plain_small_jpeg(content)) is not None:
        return small
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if at_least is not None:
            side = SPARE * max(at_least)  # EXIF may yet swap height and width
            image.draft(None, (side, side))
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(
                f"{where}: {image.width:,} x {image.height:,} pixels, more than the {MAX_PIXELS:,} that are decoded; "
                f"make it smaller"
            )
        image.load()
        if image.format == "JPEG" and not ("exif" in image.info or "xmp" in image.info):
            upright: Image.Image = image  # asking costs a third of the decoding of a small picture
        else:
            try:
                upright = ImageOps.exif_transpose(image)
            except (SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error):
                upright = image  # photos with mangled EXIF are common: they have no known turn, but are whole
        return _as_rgb(upright, where)


def _plain_small_jpeg(data: bytes) -> Image.Image | None:
    """A JPEG of few pixels, three channels and no EXIF, exactly as PIL opens it; None for any other file.

    For thumbnails PIL spends most of the time on looking at headers in Python. Only those are passed by here.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, size = 2, (0, 0)
    while (head := data[at : at + 9])[:1] == b"\xff" and len(head) == 9:
        marker, length = head[1], head[2] << 8 | head[3]
        if marker == SCAN:
            break
        if marker == BASELINE:
            size = (head[7] << 8 | head[8], head[5] << 8 | head[6])
            if head[4] != 8 or data[at + 9 : at + 10] != b"\x03" or not 0 < size[0] * size[1] <= SMALL_PIXELS:
                return None
        elif marker not in TABLES:
            return None
        at += 2 + length
    else:
        return None
    try:
        return Image.frombytes("RGB", size, data, "jpeg", "RGB", "") if size[0] else None
    except (OSError, ValueError):
        return None  # damaged: PIL's own way says how


def _complaint(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"no picture of a known kind ({', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than the {MAX_PIXELS:,} pixels that are decoded"
    return f"truncated or corrupt picture ({str(error) or type(error).__name__})"


def _as_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        grey = _eight_bits(values, where)
        if isinstance(transparent := image.info.get("transparency"), int):  # a PNG's, of 16 bits as its greys
            grey.paste(255, mask=Image.fromarray(values == transparent))
        return grey.convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: NDArray[np.generic], where: str) -> Image.Image:
    """Greys (H, W) of a wider type as 8 bits, rounded."""
    if values.dtype.kind in "ui":
        low, high = int(values.min()), int(values.max())
        full = 65535.0 if values.dtype.itemsize <= 2 or (low >= 0 and high <= 65535) else 2.0**31 - 1
    else:
        top = float(values.max())
        if not (np.isfinite(values).all() and top <= FLOAT_RANGES[-1]):
            raise BadImage(f"{where}: a picture of floats beyond 0..65535; save it with 8 or 16 bits")
        full = next(limit for limit in FLOAT_RANGES if top <= limit)
    scaled = np.clip(values.astype(np.float64), 0, full) * (255 / full)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def resize_to(image: Image.Image, height: int, width: int) -> Image.Image:
    """Stretch to a size; bilinear with antialiasing, as the processors of Hugging Face's ViT do."""
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale until a size is covered and cut out the centre, in one step."""
    if image.size == (width, height):
        return image
    scale = max(height / image.height, width / image.width)
    left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = (max(0.0, left), max(0.0, top), min(image.width, image.width - left), min(image.height, image.height - top))
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def letterbox(image: Image.Image, height: int, width: int) -> tuple[Image.Image, float]:
    """Scale until the picture fits a size, and pad it with grey at the bottom or the right.

    Returns:
        The picture and its scale: a point (x, y) of the original lies at (scale x, scale y), to within half a pixel,
        since sides are whole.
    """
    scale = min(height / image.height, width / image.width)
    inner = resize_to(image, max(1, round(scale * image.height)), max(1, round(scale * image.width)))
    if inner.size == (width, height):
        return inner, scale
    canvas = Image.new("RGB", (width, height), GREY)
    canvas.paste(inner, (0, 0))
    return canvas, scale


def crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale the shorter side to a square's and cut out the centre; bicubic, as the processors of Hugging Face's CLIP.

    Those round the longer side down to whole pixels, and begin the cut at one. So does this, but in one step: a picture
    may be very long, and is never made larger than the square.
    """
    if height != width:
        raise InputError(f"pictures of {height} x {width} pixels cannot be cropped; that is for squares: use cover")
    shorter, longer = sorted(image.size)
    scaled = tuple(width if side == shorter else int(width * longer / shorter) for side in image.size)
    first = tuple((side - width) // 2 for side in scaled)
    across, down = (side / new for side, new in zip(image.size, scaled, strict=True))
    box = (first[0] * across, first[1] * down, (first[0] + width) * across, (first[1] + height) * down)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


FITS: dict[str, Callable[[Image.Image, int, int], Image.Image]] = {
    "cover": cover,
    "crop": crop,
    "letterbox": lambda image, height, width: letterbox(image, height, width)[0],
    "stretch": resize_to,
}


def fit(image: Image.Image, height: int, width: int, mode: str) -> Image.Image:
    """Bring a picture to a size: "cover" or "crop" (cut), "letterbox" (padded) or "stretch" (out of shape).

    Raises:
        InputError: Another mode, or a side below 1.
    """
    if mode not in FITS:
        raise InputError(f"'{mode}' is no way to fit a picture: give one of {', '.join(FITS)}")
    if min(height, width) < 1:
        raise InputError(f"pictures of {height} x {width} pixels cannot be: give sides of 1 or more")
    return FITS[mode](image, height, width)


def to_pixels(image: Image.Image) -> Pixels:
    """An RGB image as uint8 (3, H, W)."""
    return cast(Pixels, np.asarray(image).transpose(2, 0, 1))
