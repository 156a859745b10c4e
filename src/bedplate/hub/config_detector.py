"""`config.json` of detectors, which `transformers` does not have: their vision model, and their head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from bedplate.errors import InputError
from bedplate.hub.classifier import labels_of
from bedplate.hub.config_vision import vision_config_from_hf, vision_config_to_hf
from bedplate.models.detector import DetectorConfig
from bedplate.models.set_detector import SetDetectorConfig
from bedplate.models.vit import VisionConfig

KINDS: dict[str, type[DetectorConfig | SetDetectorConfig]] = {
    "bedplate_detector": DetectorConfig,
    "bedplate_set_detector": SetDetectorConfig,
}


def detector_from_hf(
    values: Mapping[str, Any], where: str = "config.json"
) -> tuple[DetectorConfig | SetDetectorConfig, list[str]]:
    """(config, labels) of a config file's values; `where` names the file in errors.

    Raises:
        InputError: a value is missing, of the wrong type, or of no detector that there is.
    """
    kind = KINDS[values["model_type"]]
    inner = values.get("vision")
    if not isinstance(inner, Mapping):
        raise InputError(f"{where}: vision={inner!r} must be the values of the detector's vision model")
    vision = vision_config_from_hf(inner, f"{where}: vision")
    if not isinstance(vision, VisionConfig):
        raise InputError(f"{where}: vision.model_type={inner['model_type']!r} is no encoder of images")
    sizes = {}
    for field in fields(kind):
        if field.name == "vision" or field.name not in values:
            continue
        if not isinstance(values[field.name], int) or isinstance(values[field.name], bool):
            raise InputError(f"{where}: {field.name}={values[field.name]!r} must be a whole number")
        sizes[field.name] = values[field.name]
    labels = labels_of(values.get("id2label"), where)
    try:
        return kind(vision, **sizes), labels
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def detector_to_hf(config: DetectorConfig | SetDetectorConfig, labels: Sequence[str]) -> dict[str, Any]:
    """The values of the config file of a detector."""
    kind = next(name for name, one in KINDS.items() if isinstance(config, one))
    return {
        "architectures": ["".join(part.title() for part in kind.split("_"))],
        "model_type": kind,
        "vision": vision_config_to_hf(config.vision),
        **{field.name: getattr(config, field.name) for field in fields(config) if field.name != "vision"},
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
