"""Generated pictures in every form, for the tests of the data room."""

import gzip
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random picture (H, W, 3) that JPEG keeps well."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(picture: NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def save(path: Path, seed: int = 0, side: int = 8) -> Path:
    """A file of a picture, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(side, side, seed)).save(path)
    return path


def write_idx(path: Path, array: NDArray[np.uint8]) -> Path:
    data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def killed(*_: object) -> None:
    """Work in which the system kills the process that does it."""
    os._exit(9)
