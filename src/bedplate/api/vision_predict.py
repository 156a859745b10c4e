"""Predictions and measures of models of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bedplate.api.folders import cache_folder
from bedplate.api.vision_draw import draw_predictions, draw_targets, expanded
from bedplate.data.box_loader import BoxEvalLoader, box_store
from bedplate.data.boxes import read_boxes
from bedplate.data.image_files import LabelledImages, read_images
from bedplate.data.image_loader import ImageEvalLoader
from bedplate.data.images import Source
from bedplate.data.pixel_store import PixelStore
from bedplate.errors import InputError
from bedplate.hub.image_model import ImageModel, taken
from bedplate.hub.multimodal import MultimodalModel
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
AT_ONCE = 256  # pictures of a file that are decoded at one time


def predict_images(
    model: ImageModel,
    inputs: Sequence[Source],
    *,
    file: str | Path | None = None,
    column: str | None = None,
    draw: str | Path | None = None,
    attention: bool = False,
    progress: Callable[[str], object] = lambda line: None,
    **options: Any,
) -> list[Any]:
    """Predictions, one a picture, in order; see `ImageModel.predict`. Of an encoder {"drawn": the file}.

    Args:
        inputs: pictures, or folders of them.
        file: a folder, table or archive of pictures in place of `inputs`, see `data.image_files.read_images`.
        column: of the pictures in it.
        draw: where the picture is written with what was found in it; of several pictures a folder.
        attention: of a classifier or an encoder, draw beside the picture where the model looks.
        progress: called with a line for each label that is drawn as a number.

    Raises:
        InputError: nothing to predict, no picture, or nothing that can be drawn.
    """
    if inputs and file is not None:
        raise InputError("give either pictures or a file, not both")
    if file is not None and draw is None and not attention:
        return predict_file(model, file, column, **options)
    pictures: list[Source] = [image for each in inputs for image in expanded(each)]
    if file is not None:
        pictures = [ref.image() for ref in read_images(file, column, label="").images]
    if not pictures:
        raise InputError("nothing to predict: give a picture, a folder of them, or a file")
    if attention and draw is None:
        raise InputError("attention is drawn beside the picture: give draw as well, such as draw=found.png")
    if draw is None:
        return model.predict(pictures, **options)
    targets = draw_targets(model, pictures, Path(draw), attention)
    if model.labels is None:
        taken(options, {}, "a model that predicts nothing")
        predictions: list[Any] = [{"drawn": str(target)} for target in targets]
    else:
        predictions = model.predict(pictures, **options)
        for name, number in legend(model.labels).items():
            progress(f"No font of this machine has the characters of {name}: it is drawn as {number}.")
    draw_predictions(model, pictures, predictions, targets, attention)
    return predictions


def predict_file(
    model: ImageModel | MultimodalModel, file: str | Path, column: str | None, **options: Any
) -> list[Any]:
    """Predictions of all pictures of a folder, table or archive, in order; `AT_ONCE` are held in memory.

    Raises:
        InputError: several questions, which no one could match with the pictures of a file.
    """
    if not isinstance(options.get("question"), str | None):
        raise InputError("question is a list, and with `file` one question is asked of all pictures; give one text")
    refs = read_images(file, column, label="").images
    parts = (refs[first : first + AT_ONCE] for first in range(0, len(refs), AT_ONCE))
    return [row for part in parts for row in model.predict([ref.image() for ref in part], **options)]


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
        {"n", "metrics": {name: {"value", "low", "high", "n"}}}; of a classifier also "labels" and "confusion".

    Raises:
        InputError: labels that the model does not know, or a model that predicts nothing, without `probe`.
    """
    if probe is not None:
        return _probed(
            model, data, [str(probe)] if isinstance(probe, str | Path) else list(map(str, probe)), column, label
        )
    if isinstance(model.module, Detector | SetDetector):
        boxed = read_boxes(data, names=model.module.labels)
        size = model.processor.size
        batches = BoxEvalLoader(boxed, size, 8, box_store(boxed, size, _cache()))
        metrics = Detect(model.module, model.processor.mean, model.processor.std).report(batches)
        return {"n": len(boxed), "metrics": {name: row for name, row in metrics.items() if _is_metric(row)}, **metrics}
    if not isinstance(model.module, ViT):
        raise InputError("this model predicts nothing; give probe, labelled pictures that its features are judged with")
    images = _labelled(data, column, label, model.module.labels)
    task = ClassifyImages(model.module, model.processor.mean, model.processor.std, flip=model.processor.flip)
    logits, truth = task.logits(_batches(model, images))
    matrix = confusion_matrix(truth.numpy(), logits.argmax(1).numpy(), len(model.module.labels))
    return {
        "n": len(truth),
        "metrics": task.measure(logits, truth),
        "data": {"dropped": dict(images.dropped)},
        "labels": model.module.labels,
        "confusion": matrix.tolist(),
    }


def _probed(
    model: ImageModel, data: Sequence[str], probe: Sequence[str], column: str | None, label: str | None
) -> dict[str, Any]:
    train = _labelled(probe, column, label)
    test = _labelled(data, column, label, train.classes)
    encoder, rows = encoder_of(model.module), []
    for part in (train, test):
        batches = _batches(model, part)
        labels = torch.cat([batch["labels"] for batch in batches])
        pixels = (model.processor.normalize(batch["pixels"].to(encoder.device)) for batch in batches)
        rows.append((features(encoder, pixels, encoder.config.pooling), labels))
    return {
        "n": len(test),
        "metrics": {
            "knn_accuracy": knn(rows[0], rows[1])["accuracy"],
            "linear_accuracy": linear_probe(rows[0], rows[1])["accuracy"],
        },
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


def _batches(model: ImageModel, images: LabelledImages) -> ImageEvalLoader:
    store = PixelStore(images, model.processor.size, model.processor.fit, _cache())
    return ImageEvalLoader(images, ROWS, store)


def _cache() -> Path:
    return cache_folder() / "images"


def _is_metric(value: Any) -> bool:
    return isinstance(value, dict) and "value" in value
