"""The page of a contrastive run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bedplate.api.folders import word
from bedplate.api.record import page_record, training_summary, write_page
from bedplate.data.image_refs import ImageRef
from bedplate.report.contrast import contrast_report

SEEN = (256, 256)  # pixels at which a large picture is shown


def write_contrast_report(
    out: Path,
    record: Mapping[str, Any],
    timings: Mapping[str, float],
    scored: Mapping[str, Any],
    images: Sequence[ImageRef],
) -> None:
    """Write `out/report.html`; `scored` is what the run found on `images`."""
    commands = [
        f'bedplate predict {word(out)}/model photo.jpg --labels "cat,dog,pizza"',
        f"bedplate evaluate {word(out)}/model --data YOUR_PICTURES",
    ]
    page = page_record(out, dict(record), dict(timings), training_summary(out, dict(record)), commands)
    page["data"] = record["data"][0]
    if scored:
        page |= {key: scored[key] for key in ("on", "chance")} | {"measured": scored["metrics"]}
        for kind, rows in scored["shown"].items():
            page[kind] = [{**row, "image": images[row["index"]].image(SEEN)} for row in rows]
    write_page(out, contrast_report(page))
