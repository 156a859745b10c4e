"""Predictions and measures of models of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bedplate.api.folders import cache_folder
from bedplate.api.vision_draw import draw_predictions, draw_targets, expanded, is_folder
from bedplate.data.apart import keep_apart
from bedplate.data.box_loader import BoxEvalLoader, box_store
from bedplate.data.boxes import read_boxes
from bedplate.data.image_files import OTHER_SPLITS, LabelledImages, read_images
from bedplate.data.image_loader import ImageEvalLoader
from bedplate.data.images import BadImage, Source, decode
from bedplate.data.pixel_store import PixelStore
from bedplate.errors import InputError
from bedplate.hub.image_model import ImageModel
from bedplate.hub.multimodal import MultimodalModel
from bedplate.hub.options import taken
from bedplate.hub.vision_directory import encoder_of
from bedplate.measure.probe import features, knn, linear_probe
from bedplate.metrics.classification import confusion_matrix
from bedplate.models.detector import Detector
from bedplate.models.set_detector import SetDetector
from bedplate.models.vit import ViT
from bedplate.report.pictures import legend
from bedplate.tasks.classify_images import ClassifyImages
from bedplate.tasks.detect import Detect

ROWS = 64  # pictures at one time
AT_ONCE = 256  # pictures of a file or folder that are decoded at one time


def predict_images(
    model: ImageModel,
    inputs: Sequence[Source],
    *,
    file: str | Path | None = None,
    column: str | None = None,
    draw: str | Path | None = None,
    attention: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], object] = lambda line: None,
    **options: Any,
) -> list[Any]:
    """Predictions, one a picture, in order; see `ImageModel.predict`. Of an encoder {"drawn": the file}.

    In the place of a picture of a folder or of `file` that cannot be decoded is None.

    Args:
        inputs: pictures, or folders of them.
        file: a folder, table or archive of pictures in place of `inputs`, see `data.image_files.read_images`.
        column: of the pictures in it.
        draw: where the picture is written with what was found in it; of several pictures a folder.
        attention: of a classifier or an encoder, draw beside the picture where the model looks.
        overwrite: replace files that are there.
        progress: called with a line for each picture that is left out, and for each label that is drawn as a number.

    Raises:
        InputError: nothing to predict, a picture that is none, nothing that can be drawn, or a threshold that is no
            score.
    """
    if inputs and file is not None:
        raise InputError("give either pictures or a file, not both")
    if (threshold := options.get("threshold")) is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold={threshold} is no score; give one in 0..1")
    if not inputs and file is None:
        raise InputError("nothing to predict: give a picture, a folder of them, or a file")
    if attention and draw is None:
        raise InputError("attention is drawn beside the picture: give draw as well, such as draw=found.png")
    if draw is None and file is not None:
        return predict_file(model, file, column, progress=progress, **options)
    if draw is None:
        return predict_pictures(model, inputs, progress=progress, **options)
    broken: list[str] = []
    if file is not None:
        pictures: list[Source | None] = [
            _opened(ref.image, broken) for ref in read_images(file, column, label="").images
        ]
        names: list[Source] = [b""] * len(pictures)  # they are numbered
    else:
        found = _found(inputs)
        pictures, names = _readable(found, broken), [image for image, _ in found]
    targets = draw_targets(model, names, Path(draw).expanduser(), attention, overwrite=overwrite)
    whole = [(image, target) for image, target in zip(pictures, targets, strict=True) if image is not None]
    shown = [image for image, _ in whole]
    if model.labels is None:
        taken(options, {}, "a model that predicts nothing")
        predictions: list[Any] = [{"drawn": str(target)} for _, target in whole]
    else:
        predictions = model.predict(shown, **options)
        for name, number in legend(model.labels).items():
            progress(f"No font of this machine has the characters of {name}: it is drawn as {number}.")
    draw_predictions(model, shown, predictions, [target for _, target in whole], attention)
    return _told(_placed(predictions, pictures), broken, progress)


def predict_pictures(
    model: ImageModel | MultimodalModel,
    inputs: Sequence[Source],
    *,
    progress: Callable[[str], object] = lambda line: None,
    **options: Any,
) -> list[Any]:
    """Predictions of pictures and of all pictures of folders, in order.

    In the place of a picture of a folder that cannot be decoded is None, and `progress` is told.

    Raises:
        InputError: a picture that is named, or every one of a folder, cannot be decoded.
    """
    found = _found(inputs)
    if not any(of_folder for _, of_folder in found):
        return model.predict([image for image, _ in found], **options)
    rows: list[Any] = []
    broken: list[str] = []
    for first in range(0, len(found), AT_ONCE):
        part = found[first : first + AT_ONCE]
        try:
            rows += model.predict([image for image, _ in part], **options)
        except BadImage:  # only now is it worth decoding them twice
            rows += _predicted(model, _readable(part, broken), options)
    return _told(rows, broken, progress)


def predict_file(
    model: ImageModel | MultimodalModel,
    file: str | Path,
    column: str | None,
    *,
    progress: Callable[[str], object] = lambda line: None,
    **options: Any,
) -> list[Any]:
    """Predictions of all pictures of a folder, table or archive, in order; `AT_ONCE` are held in memory.

    In the place of one that cannot be decoded is None, and `progress` is told.

    Raises:
        InputError: no picture can be decoded, or several questions, which no one could match with the pictures.
    """
    if not isinstance(options.get("question"), str | None):
        raise InputError("question is a list, and with `file` one question is asked of all pictures; give one text")
    refs = read_images(file, column, label="").images
    rows: list[Any] = []
    broken: list[str] = []
    for first in range(0, len(refs), AT_ONCE):
        pictures: list[Source | None] = [_opened(ref.image, broken) for ref in refs[first : first + AT_ONCE]]
        rows += _predicted(model, pictures, options)
    return _told(rows, broken, progress)


def _found(inputs: Sequence[Source]) -> list[tuple[Source, bool]]:
    """The pictures that are meant, and whether a folder holds each, which no one has named then."""
    return [(image, is_folder(each)) for each in inputs for image in expanded(each)]


def _readable(found: Sequence[tuple[Source, bool]], broken: list[str]) -> list[Source | None]:
    """The pictures; None for those of folders that cannot be decoded."""
    return [
        None if of_folder and _opened(partial(decode, image), broken) is None else image for image, of_folder in found
    ]


def _opened(read: Callable[[], Image.Image], broken: list[str]) -> Image.Image | None:
    """A picture; None where it cannot be decoded, which is noted."""
    try:
        return read()
    except BadImage as error:
        broken.append(str(error))
        return None


def _predicted(
    model: ImageModel | MultimodalModel, pictures: Sequence[Source | None], options: Mapping[str, Any]
) -> list[Any]:
    there = [image for image in pictures if image is not None]
    return _placed(model.predict(there, **options) if there else [], pictures)


def _placed(predictions: Sequence[Any], pictures: Sequence[Source | None]) -> list[Any]:
    """The predictions in the places of their pictures, None in those of the others."""
    following = iter(predictions)
    return [None if image is None else next(following) for image in pictures]


def _told(rows: list[Any], broken: Sequence[str], progress: Callable[[str], object]) -> list[Any]:
    """The predictions, having said which pictures have none.

    Raises:
        InputError: none has one.
    """
    if len(broken) == len(rows):
        raise InputError(
            broken[0]
            if len(rows) == 1
            else f"none of the {len(rows):,} pictures can be decoded; the first: {broken[0]}"
        )
    for complaint in broken:
        progress(f"Left out: {complaint}")
    if broken:
        progress(f"{len(broken):,} of {len(rows):,} pictures cannot be decoded and are left out.")
    return rows


def evaluate_images(
    model: ImageModel,
    data: Sequence[str],
    *,
    column: str | None = None,
    label: str | None = None,
    probe: str | Path | Sequence[str | Path] | None = None,
) -> dict[str, Any]:
    """Measure a model of images on pictures.

    Of a classifier accuracy, macro-averaged F1, expected calibration error and loss; of a detector COCO's metrics. Of
    any, with `probe`, what its frozen features are worth: k-NN and a linear probe, as in DINO (arXiv 2104.14294).

    Args:
        data: labelled pictures, or those with boxes.
        column, label: columns of the picture and the label in a table (default: guessed).
        probe: labelled pictures that k-NN and the linear probe learn from.

    Returns:
        {"n", "metrics": {name: {"value", "low", "high", "n"}}, "data": {"dropped", "broken"}}, where `n` counts the
        pictures that can be decoded and `broken` says what is wrong with each other; of a classifier also "labels" and
        "confusion"; with `probe` also "probe", {"n", "equal_pictures", "dropped", "broken"} of these.

    Raises:
        InputError: labels that the model does not know, or a model that predicts nothing, without `probe`.
    """
    if probe is not None:
        return _probed(
            model, data, [str(probe)] if isinstance(probe, str | Path) else list(map(str, probe)), column, label
        )
    if isinstance(model.module, Detector | SetDetector):
        boxed = read_boxes(data, names=model.module.labels)
        check_parts(boxed.dropped, data)
        size = model.processor.size
        store = box_store(boxed, size, _cache())
        batches = BoxEvalLoader(boxed, size, 8, store)
        metrics = Detect(model.module, model.processor.mean, model.processor.std).report(batches)
        return {
            "n": len(store.usable),
            "metrics": {name: row for name, row in metrics.items() if _is_metric(row)},
            "data": left_out(boxed.dropped, store),
            **metrics,
        }
    if not isinstance(model.module, ViT):
        raise InputError("this model predicts nothing; give probe, labelled pictures that its features are judged with")
    images = _labelled(data, column, label, model.module.labels)
    check_parts(images.dropped, data)
    task = ClassifyImages(model.module, model.processor.mean, model.processor.std, flip=model.processor.flip)
    store = _store(model, images)
    logits, truth = task.logits(ImageEvalLoader(images, ROWS, store))
    matrix = confusion_matrix(truth.numpy(), logits.argmax(1).numpy(), len(model.module.labels))
    return {
        "n": len(truth),
        "metrics": task.measure(logits, truth),
        "data": left_out(images.dropped, store),
        "labels": model.module.labels,
        "confusion": matrix.tolist(),
    }


def _probed(
    model: ImageModel, data: Sequence[str], probe: Sequence[str], column: str | None, label: str | None
) -> dict[str, Any]:
    train = _labelled(probe, column, label)
    test = _labelled(data, column, label, train.classes)
    check_parts(test.dropped, data)
    parts, same = keep_apart({"train": train, "test": test})
    train = parts["train"]
    encoder, rows = encoder_of(model.module), []
    stores = [_store(model, part) for part in (train, test)]
    for part, store in zip((train, test), stores, strict=True):
        batches = ImageEvalLoader(part, ROWS, store)
        labels = torch.cat([batch["labels"] for batch in batches])
        pixels = (model.processor.normalize(batch["pixels"].to(encoder.device)) for batch in batches)
        rows.append((features(encoder, pixels, encoder.config.pooling), labels))
    return {
        "n": len(stores[1].usable),
        "metrics": {
            "knn_accuracy": knn(rows[0], rows[1])["accuracy"],
            "linear_accuracy": linear_probe(rows[0], rows[1])["accuracy"],
        },
        "data": left_out(test.dropped, stores[1]),
        "probe": {"n": len(stores[0].usable), "equal_pictures": same, **left_out(train.dropped, stores[0])},
    }


def _labelled(
    paths: Sequence[str], column: str | None, label: str | None, classes: Sequence[str] | None = None
) -> LabelledImages:
    images = read_images(paths, column, label, classes=classes)
    if images.labels is None:
        raise InputError(
            f"{paths[0]}: the pictures have no labels to measure by; give a folder for each class, or a table with them"
        )
    return images


def _store(model: ImageModel, images: LabelledImages) -> PixelStore:
    return PixelStore(images, model.processor.size, model.processor.fit, _cache())


def check_parts(dropped: Mapping[str, int], data: Sequence[str]) -> None:
    """Refuse to score the part for training of data that has others: what was learnt from says nothing.

    Raises:
        InputError: it has.
    """
    if count := dropped.get(OTHER_SPLITS):
        raise InputError(
            f"{data[0]}: has a part for training beside others ({count:,} files), and that alone would be scored; name "
            f"the part to score, such as {Path(data[0]) / 'test'}"
        )


def left_out(dropped: Mapping[str, int], store: PixelStore) -> dict[str, Any]:
    """What was not scored: how many rows or files by reason, and what is wrong with each broken picture."""
    return {"dropped": dict(dropped), "broken": store.broken}


def _cache() -> Path:
    return cache_folder() / "images"


def _is_metric(value: Any) -> bool:
    return isinstance(value, dict) and "value" in value
