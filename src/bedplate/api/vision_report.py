"""What runs on images leave on paper: their reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from bedplate.api.folders import word
from bedplate.api.record import page_record, training_summary, write_page
from bedplate.data.image_refs import ImageRef
from bedplate.metrics.calibration import reliability
from bedplate.metrics.classification import per_class_intervals
from bedplate.report.adapt import Sections
from bedplate.report.page import run_report
from bedplate.report.pictures import triples
from bedplate.report.vision import classification_report, detection_report

SEEN = (256, 256)  # pixels at which a large picture is shown


def write_classification_report(
    out: Path,
    record: Mapping[str, Any],
    timings: Mapping[str, float],
    scored: Mapping[str, Any],
    images: Sequence[ImageRef],
    seen: Callable[[Image.Image], Image.Image],
) -> None:
    """Write `out/report.html` of a classifier of pictures.

    Args:
        scored: What its run found on `images`.
        seen: What of a picture the model reads, which its maps of attention cover.
    """
    page = _page(out, record, timings, ["photo.jpg", "folder/"])
    page |= {"classes": record["classes"], "validation": record["metrics"], "data": record["data"][0]}
    if "test" in record:
        page["test"] = record["test"]["metrics"]
    if scored:
        page |= {
            "confusion": scored["confusion"],
            "per_class": per_class_intervals(np.array(scored["confusion"])),
            "bins": reliability(scored["confidence"], scored["correct"]),
            **{kind: [_with_image(row, images) for row in rows] for kind, rows in scored["shown"].items()},
            "looks": [{**row, "image": seen(images[row["index"]].image(SEEN))} for row in scored["looks"]],
        }
    write_page(out, classification_report(page))


def write_detection_report(
    out: Path, record: Mapping[str, Any], timings: Mapping[str, float], pictures: Sequence[Mapping[str, Any]]
) -> None:
    """Write `out/report.html` of a detector; `pictures` have "image", "truth" and "predicted"."""
    page = _page(out, record, timings, ["photo.jpg --draw found.png"])
    page |= {"classes": record["classes"], "data": record["data"][0], "pictures": pictures}
    if record.get("validation"):
        page["validation"] = record["validation"]
    if record.get("test"):
        page["test"] = record["test"]["detail"]
    write_page(out, detection_report(page))


def write_mae_report(
    out: Path, record: Mapping[str, Any], timings: Mapping[str, float], shown: Mapping[str, Tensor]
) -> None:
    """Write `out/report.html` of a masked autoencoder; `shown` are images `(B, 3, H, W)` uint8 of each kind, if any."""
    sections: Sections = []
    if shown:
        kinds = [
            [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in shown[kind]]
            for kind in ("original", "masked", "reconstructed")
        ]
        sections = [("What it draws", [triples(*kinds)])]
    write_encoder_report(out, record, timings, sections)


def write_encoder_report(
    out: Path, record: Mapping[str, Any], timings: Mapping[str, float], sections: Sections | None = None
) -> None:
    """Write `out/report.html` of a model that learnt without labels, with `sections` of its own."""
    page = _page(out, record, timings, [])
    page["next"] = [f"bedplate finetune recipes/classify-images.yaml base={word(out)}/model data.path=YOUR_FOLDER"]
    write_page(out, run_report(page | {"sections": sections or []}))


def _page(out: Path, record: Mapping[str, Any], timings: Mapping[str, float], inputs: Sequence[str]) -> dict[str, Any]:
    commands = [f"bedplate predict {word(out)}/model {each}" for each in inputs]
    commands += [f"bedplate evaluate {word(out)}/model --data YOUR_PICTURES"] if inputs else []
    return page_record(out, dict(record), dict(timings), training_summary(out, dict(record)), commands)


def _with_image(row: Mapping[str, Any], images: Sequence[ImageRef]) -> dict[str, Any]:
    return {**row, "image": images[row["index"]].image(SEEN)}
