"""Pictures as files: which ones are meant, and where they are written with what a model made of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from PIL import Image

from bedplate.data.images import SUFFIXES, Source, decode
from bedplate.data.sources import below
from bedplate.errors import InputError
from bedplate.hub.image_model import ImageModel
from bedplate.models.detector import Detector
from bedplate.models.set_detector import SetDetector
from bedplate.report.pictures import draw_boxes, heat, legible, side_by_side

LOOKED_AT = (1280, 1280)  # pixels of a picture beside its attention at most, whose map is coarse


def is_folder(source: Source) -> TypeGuard[str | Path]:
    """Whether it is the path of a folder; a text too long for a name is none."""
    return isinstance(source, str | Path) and os.path.isdir(os.path.expanduser(source))


def expanded(source: Source) -> list[Source]:
    """A folder as its pictures, anything else as it is."""
    if not is_folder(source):
        return [source]
    found = pictures_below(source)
    if not found:
        raise InputError(f"{source}: a folder without pictures; known suffixes are {', '.join(SUFFIXES)}")
    return list(found)


def pictures_below(folder: str | Path) -> list[Path]:
    """The pictures in a folder and the folders in it, sorted."""
    return sorted(path for path in below(Path(folder).expanduser()) if path.suffix.lower() in SUFFIXES)


def draw_targets(
    model: ImageModel, pictures: Sequence[Source], draw: Path, attention: bool, *, overwrite: bool
) -> list[Path]:
    """The file that is written for each picture: `draw`, or files in it, where it is a folder.

    Raises:
        InputError: a model with nothing to draw, several pictures and one file, a file that is one of the pictures, or
            one that is there and is not to be replaced.
    """
    if attention and isinstance(model.module, Detector | SetDetector):
        raise InputError("attention is drawn for classifiers and encoders; of a detector leave it out: it draws boxes")
    if model.labels is None and not attention:
        raise InputError(f"draw={draw}: this model predicts nothing that could be drawn but its attention; add that")
    if draw.is_dir() or not draw.suffix:
        targets = [draw / f"{name}.png" for name in _names(pictures)]
    elif len(pictures) > 1:
        raise InputError(f"draw={draw}: {len(pictures)} pictures need a folder, not a file")
    elif draw.suffix.lower() not in SUFFIXES:
        raise InputError(f"draw={draw}: give the name of a picture, such as found.png, or a folder")
    else:
        targets = [draw]
    own = {Path(source).resolve() for source in pictures if isinstance(source, str | Path)}
    if hit := next((target for target in targets if target.resolve() in own), None):
        raise InputError(f"draw={draw}: {hit} is one of the pictures and would be lost; give another name")
    if not overwrite and (hit := next((target for target in targets if target.exists()), None)):
        raise InputError(f"draw={draw}: {hit} exists; give another name, or overwrite it (--overwrite)")
    return targets


def draw_predictions(
    model: ImageModel,
    pictures: Sequence[Source],
    predictions: Sequence[Any],
    targets: Sequence[Path],
    attention: bool,
) -> None:
    """Write each picture with its boxes or its label, and beside it where the model looks.

    Raises:
        InputError: a file that cannot be written.
    """
    for source, found, target in zip(pictures, predictions, targets, strict=True):
        drawn = _drawn(model, source, found, attention)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            drawn.save(target)
        except (OSError, ValueError, KeyError) as error:  # PIL raises the last two for formats that it only reads
            reason = (error.strerror if isinstance(error, OSError) else None) or f"no {target.suffix} is written here"
            raise InputError(f"draw={target}: cannot be written: {reason}; give another place or name") from error


def _drawn(model: ImageModel, source: Source, found: Any, attention: bool) -> Image.Image:
    image = decode(source)
    if attention:
        image.thumbnail(LOOKED_AT)
    labelled = legible(image)
    if isinstance(found, list):
        boxes, labels, scores = ([row[key] for row in found] for key in ("box", "label", "score"))
        labelled = draw_boxes(image, boxes, labels, scores, names=model.labels)
    elif "label" in found:
        whole = (0, 0, labelled.width - 1, labelled.height - 1)
        labelled = draw_boxes(labelled, [whole], [found["label"]], [found["score"]], names=model.labels)
    if not attention:
        return labelled
    return side_by_side(labelled, heat(legible(model.processor.seen(image)), model.attention(image)[0].mean(0).numpy()))


def _names(pictures: Sequence[Source]) -> list[str]:
    """A name for each picture: its own, behind its number where two have the same."""
    names = [
        Path(source).stem if isinstance(source, str | Path) else f"image-{number}"
        for number, source in enumerate(pictures, 1)
    ]
    if len({name.casefold() for name in names}) == len(names):
        return names
    return [f"{number}-{name}" for number, name in enumerate(names, 1)]
