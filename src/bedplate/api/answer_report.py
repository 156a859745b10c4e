"""What the training of a reader leaves on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bedplate.api.folders import word
from bedplate.api.record import page_record, training_summary, write_page
from bedplate.api.vision_report import SEEN
from bedplate.data.image_refs import ImageRef
from bedplate.report.answers import answer_report


def write_answer_report(
    out: Path,
    record: Mapping[str, Any],
    timings: Mapping[str, float],
    scored: Mapping[str, Any],
    images: Sequence[ImageRef],
) -> None:
    """Write `out/report.html`; `scored` is what the run found on `images`."""
    commands = [
        f"bedplate caption photo.png --model {word(out)}/model",
        f'bedplate ask photo.png "what is it?" --model {word(out)}/model',
        f"bedplate evaluate {word(out)}/model --data YOUR_QUESTIONS",
    ]
    page = page_record(out, dict(record), dict(timings), training_summary(out, dict(record)), commands)
    page |= {"validation": record["metrics"], "data": record["data"][0]}
    if "test" in record:
        page["test"] = record["test"]["metrics"]
    if scored:
        page["scored"] = scored
        for kind, rows in scored["shown"].items():
            page[kind] = [{**row, "image": images[row["index"]].image(SEEN)} for row in rows]
    write_page(out, answer_report(page))
