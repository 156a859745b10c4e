"""The pages of models that see: a classifier of pictures (`classification_report`) and a detector (`detection_report`).

Each is `page.run_report` with sections of its own. A metric is {"value", "low", "high", "n"} as `bedplate.metrics`
returns it, between 0 and 1. Pictures are PIL images or data URIs.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from bedplate.report import pictures
from bedplate.report.adapt import (
    INTERVAL,
    SHOWN_MISTAKES,
    Sections,
    classes_blocks,
    confusion_blocks,
    curves,
    data_section,
    with_interval,
)
from bedplate.report.page import chart, run_report, table, text
from bedplate.report.plot import COLORS, bar_chart, compact, line_chart

SHOWN_RIGHT = 10
SHOWN_DETECTIONS = 8
SHOWN_CURVES = len(COLORS)  # precision and recall of the classes with the most boxes
EVERY = {"Validation": "validation", "Test": "test"}
INTERVALS = INTERVAL.format(others="other pictures of the same kind")
CALIBRATION = (
    "A model that says “80 % sure” should be right in 80 of 100 such pictures: on the diagonal it is exactly as "
    "right as it is sure, and below it is too sure of itself. The expected calibration error (ECE) is the mean "
    "distance from the diagonal, each picture counting the same."
)
LOOKS = (
    "Beside each picture is the attention of the last layer, its mean over the heads: how much the state that is "
    "scored takes from each part of the picture, yellow the most. It says where the model reads, not why it decides."
)
AP = {
    "map": "mAP (mean over IoU 0.5 to 0.95)",
    "map_50": "mAP at IoU 0.5",
    "map_75": "mAP at IoU 0.75",
    "map_small": "mAP, boxes up to 32 × 32 pixels",
    "map_medium": "mAP, boxes up to 96 × 96 pixels",
    "map_large": "mAP, larger boxes",
    "mar_100": "Mean recall (mean over IoU 0.5 to 0.95)",
}
AP_EXPLAINED = (
    "IoU is the overlap of a found and a true box: the area that they share by the area of both together. A found box "
    "is right if it overlaps a true one of its class by so much. AP is the mean precision over all levels of recall, "
    "and mAP its mean over the classes. These are COCO's metrics, by pycocotools."
)
THRESHOLD = (
    "The last four columns say from which score on keeping boxes gives the best F1 at IoU 0.5, and how many of the "
    "boxes that are kept are then right (precision) and of the true ones found (recall)."
)
# Colours of Okabe and Ito; lines and words tell them apart where colours do not.
TRUE = pictures.Style("#ffffff")
VERDICTS = {
    "right": pictures.Style("#0072b2"),
    "wrong": pictures.Style("#e69f00", 4, "wrong:"),
    "missed": pictures.Style("#f0e442", 1, "missed:"),
    "uncounted": pictures.Style("#bbbbbb", 4, "uncounted:"),
}
VERDICTS_EXPLAINED = (
    "On the left are the true boxes, on the right what the model finds. Blue with a solid line is right: a box that "
    "overlaps a true one of its class, which no surer box took, by an IoU of at least 0.5. Orange with dashes and the "
    "word “wrong” is any other. Yellow with dots and the word “missed” is a true box that nothing found."
)
UNCOUNTED = (
    "Grey with dashes and the word “uncounted” is a crowd or an object marked as difficult, and what is found "
    "there: neither right nor wrong."
)
CURVE_EXPLAINED = (
    "From left to right the model lets less sure boxes count: more of the true boxes are found (recall), and fewer of "
    "the found ones are right (precision). The area below a curve is its AP at IoU 0.5."
)


def classification_report(record: Mapping[str, Any]) -> str:
    """The page of a run that taught a model to classify pictures: `run_report` with `classification_sections`."""
    headlines = {"test_accuracy": ("Test pictures", "labelled right")}
    headlines["val_accuracy"] = ("Validation pictures", "labelled right")
    return _report(record, classification_sections(record), "accuracy", headlines)


def classification_sections(record: Mapping[str, Any]) -> Sections:
    """How a classifier learned, how good it is, class by class, how sure, and pictures that it took right and wrong.

    `record` holds "classes" and, each optional: "metrics" (the rows of metrics.jsonl), "validation" and "test"
    ({"accuracy", "macro_f1", "loss", "ece"}), and of the test pictures where "test" is given, else of the validation
    ones: "confusion" (the matrix), "per_class" (of `metrics.classification.per_class` or `per_class_intervals`), "bins"
    (of `metrics.calibration.reliability`), "mistakes" and "right" ({"image", "label", "predicted", "score"}),
    "looks" (the same with a PIL image and "map", (h, w)); and "data" (facts, see `adapt.data_section`).
    """
    classes, sections = record["classes"], _learning(record, {"val_accuracy": "accuracy", "val_macro_f1": "macro F1"})
    whose = f"On the {'test' if record.get('test') else 'validation'} pictures."
    keys = {"accuracy": "Accuracy", "macro_f1": "Macro F1", "loss": "Loss", "ece": "ECE"}
    measured = {name: record[key] for name, key in EVERY.items() if record.get(key)}
    if measured:
        rows = [
            [name, f"{metrics['accuracy']['n']:,}", *(with_interval(metrics, key) for key in keys)]
            for name, metrics in measured.items()
        ]
        head = ["Pictures", "Number", *keys.values()]
        sections.append(("How good it is", [table(rows, head), text(INTERVALS, muted=True)]))
    if "confusion" in record:
        blocks = confusion_blocks(record["confusion"], classes, whose, "pictures")
        sections.append(("Where it is right and wrong", blocks))
    if "per_class" in record:
        sections.append(("Class by class", classes_blocks(record["per_class"], classes, "pictures")))
    if record.get("bins"):
        sections.append(("How sure it is", [reliability_chart(record["bins"]), text(whose, CALIBRATION, muted=True)]))
    for heading, key, most, explained in (
        (
            "Its surest mistakes",
            "mistakes",
            SHOWN_MISTAKES,
            "Some may be mistakes in the data rather than of the model.",
        ),
        ("Some that it took right", "right", SHOWN_RIGHT, ""),
    ):
        if rows_of := record.get(key):
            shown = sorted(rows_of, key=lambda row: -row["score"])[:most] if key == "mistakes" else rows_of[:most]
            sections.append((heading, [pictures.predictions(shown, caption=explained)]))
    if record.get("looks"):
        sections.append(("Where it looks", [pictures.looks(record["looks"]), text(LOOKS, muted=True)]))
    return [*sections, *data_section(record.get("data", {}), "pictures")]


def reliability_chart(bins: Sequence[Mapping[str, float]]) -> str:
    """The reliability diagram of `metrics.calibration.reliability`, and below it how many pictures each bin holds."""
    diagram = line_chart(
        {
            "this model": [(100 * row["confidence"], 100 * row["accuracy"]) for row in bins],
            "as right as it is sure": [(100 * bins[0]["confidence"],) * 2, (100 * bins[-1]["confidence"],) * 2],
        },
        title="Reliability",
        x_label="how sure the model is, %",
        y_label="% of pictures labelled right",
    )
    counts = {f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %": row["n"] for row in bins}
    return chart(diagram) + chart(bar_chart(counts, title="How often it is so sure", unit="pictures"))


def detection_report(record: Mapping[str, Any]) -> str:
    """The page of a run that taught a model to find objects: `run_report` with `detection_sections`."""
    headlines = {
        "test_map_50": ("Test pictures", "mAP at IoU 0.5"),
        "val_map_50": ("Validation pictures", "mAP at IoU 0.5"),
    }
    return _report(record, detection_sections(record), "map_50", headlines)


def detection_sections(record: Mapping[str, Any]) -> Sections:
    """How a detector learned, how well it finds each class, and pictures with the true and the found boxes.

    `record` holds "classes" and, each optional: "metrics" (the rows of metrics.jsonl), "validation" and "test" (of
    `metrics.detection.detection_metrics`), "pictures" ({"image", "predicted": [{"label", "score", "box"}], and, where
    it is known, "truth": [{"label", "box"}]}, boxes x1 y1 x2 y2 in pixels of the image; with the truth all have a
    "verdict": "right" or "wrong" of what is predicted, "found" or "missed" of what is true, "uncounted" of both) and
    "data" (facts, see `adapt.data_section`).
    """
    sections = _learning(record, {"val_map_50": "mAP at IoU 0.5", "val_map": "mAP"})
    measured = {name: record[key] for name, key in EVERY.items() if record.get(key)}
    if measured:
        rows = [
            [label, *(with_interval(metrics, key) for metrics in measured.values())]
            for key, label in AP.items()
            if any(key in metrics for metrics in measured.values())
        ]
        head = ["", *(f"{name}, {metrics['map']['n']:,} pictures" for name, metrics in measured.items())]
        sections.append(("How good it is", [table(rows, head), text(AP_EXPLAINED, INTERVALS, muted=True)]))
        last = list(measured.values())[-1]
        sections.append(("Class by class", _found_by_class(last)))
    if shown := record.get("pictures"):
        shown = shown[:SHOWN_DETECTIONS]
        blocks = [_compared(row, record["classes"]) for row in shown]
        seen = {box["verdict"] for row in shown if "truth" in row for box in (*row["predicted"], *row["truth"])}
        if seen:
            blocks.append(text(VERDICTS_EXPLAINED, *([UNCOUNTED] if "uncounted" in seen else []), muted=True))
        if numbers := pictures.legend(record["classes"]):
            blocks.append(text("; ".join(f"{number} is {name}" for name, number in numbers.items()), muted=True))
        sections.append(("What it finds", blocks))
    return [*sections, *data_section(record.get("data", {}), "pictures")]


def precision_recall_chart(curves_of: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """The curves {class: [(recall, precision)]} as one chart; a curve ends with the last recall that was reached."""
    lines = {
        name: [(100 * recall, 100 * precision) for recall, precision in points if precision > 0]
        for name, points in curves_of.items()
    }
    drawn = line_chart(
        lines, title="Precision and recall at IoU 0.5", x_label="recall, %", y_label="precision, % of the found boxes"
    )
    return chart(drawn)


def _found_by_class(measured: Mapping[str, Any]) -> list[str]:
    classes = measured["per_class"]
    rows = [
        [
            row["name"],
            f"{row['n']:,}",
            with_interval(row, "ap_50"),
            with_interval(row, "ap"),
            "–" if row["threshold"] is None else f"{row['threshold']:.2f}",
            *(f"{100 * row[key]:.1f} %" for key in ("precision", "recall", "f1")),
        ]
        for row in classes
    ]
    head = ["Class", "Boxes", "AP at IoU 0.5", "AP", "Keep from", "Precision", "Recall", "F1"]
    frequent = sorted(classes, key=lambda row: -row["n"])[:SHOWN_CURVES]
    names = [row["name"] for row in classes if row in frequent]
    curve = precision_recall_chart({name: measured["curves"][name] for name in names})
    return [table(rows, head), text(THRESHOLD, muted=True), curve, text(CURVE_EXPLAINED, muted=True)]


def _compared(row: Mapping[str, Any], classes: Sequence[str]) -> str:
    """One picture with its true boxes beside the same one with those that were found, and those that were not."""
    image, found = _opened(row["image"]), row["predicted"]
    if "truth" not in row:
        return pictures.grid([_drawn(image, found, classes)], [f"found: {compact(len(found))}"], columns=2)
    true, missed = row["truth"], [box for box in row["truth"] if box["verdict"] == "missed"]
    number = Counter(box["verdict"] for box in found)
    counts = ", ".join(f"{verdict}: {compact(number[verdict])}" for verdict in VERDICTS if number[verdict])
    shown = [
        _drawn(image, true, classes, [VERDICTS["uncounted"] if _is_crowd(box) else TRUE for box in true]),
        _drawn(image, [*found, *missed], classes, [VERDICTS[box["verdict"]] for box in (*found, *missed)]),
    ]
    captions = [f"true: {compact(sum(not _is_crowd(box) for box in true))}"]
    captions.append(f"found: {compact(len(found))}{f' ({counts})' if counts else ''}, missed: {compact(len(missed))}")
    return pictures.grid(shown, captions, columns=2)


def _is_crowd(box: Mapping[str, Any]) -> bool:
    return bool(box["verdict"] == "uncounted")


def _drawn(
    image: Image.Image,
    rows: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    styles: Sequence[pictures.Style] = (),
) -> Image.Image:
    boxes, labels = [row["box"] for row in rows], [row["label"] for row in rows]
    return pictures.draw_boxes(image, boxes, labels, [row.get("score") for row in rows], names=classes, styles=styles)


def _opened(picture: pictures.Picture) -> Image.Image:
    if isinstance(picture, str):
        return Image.open(io.BytesIO(base64.b64decode(pictures.data_uri(picture).partition(",")[2])))
    return picture


def _learning(record: Mapping[str, Any], shares: Mapping[str, str]) -> Sections:
    rows = record.get("metrics")
    return [("How it learned", curves(rows, shares, "pictures"))] if rows else []


def _report(record: Mapping[str, Any], sections: Sections, key: str, headlines: Mapping[str, tuple[str, str]]) -> str:
    summary = dict(record.get("summary", {}))
    for prefix, name in (("val", "validation"), ("test", "test")):
        if metric := (record.get(name) or {}).get(key):
            summary |= {f"{prefix}_{key}": metric["value"]}
            summary |= {f"{prefix}_{key}_{end}": metric[end] for end in ("low", "high") if end in metric}
    return run_report({**record, "summary": summary, "metrics": [], "sections": sections, "headlines": headlines})
