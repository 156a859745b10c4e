"""What `evaluate` measures of models that draw, and of image tokenizers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bedplate.api.draw import clip_of
from bedplate.api.vision_predict import check_parts, left_out
from bedplate.data.image_files import read_images
from bedplate.data.image_loader import ImageEvalLoader
from bedplate.data.pairs import read_pairs
from bedplate.data.pixel_store import PixelStore
from bedplate.errors import InputError
from bedplate.hub.clip_model import ClipModel
from bedplate.hub.draw_model import DrawModel
from bedplate.hub.image_tokens_model import ImageTokensModel
from bedplate.hub.locate import locate
from bedplate.measure.drawings import measure_drawings
from bedplate.tasks.image_tokens import ImageTokens


def evaluate_drawings(
    model: DrawModel,
    data: Sequence[str],
    *,
    column: str | None,
    label: str | None,
    judge: ClipModel | str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Drawings of the names in `data`, judged by a CLIP; see `measure.drawings.measure_drawings`.

    Args:
        column: of the names (default: guessed).
        label: none: names stand in `column`, as a CLIP's texts do.
        judge: the CLIP, or what `load` takes.
        options: names and each of `measure_drawings`, and those of `DrawModel.draw`; `best_of` with `ranker`,
            a CLIP that was trained apart from the judge, which has no default here.

    Raises:
        InputError: no judge, an option that it does not have, or data without names.
    """
    if judge is None:
        raise InputError("drawings are judged by a model that knows texts and pictures: give a CLIP as judge (--judge)")
    known = {"names", "each", "seed", "guidance", "temperature", "top_k", "best_of", "ranker"}
    if name := next((name for name in options if name not in known), None):
        raise InputError(f"{name} is no option of drawings; they have {', '.join(sorted(known))}")
    if label is not None:
        raise InputError(f"label={label!r} is of labelled pictures; give the column of the drawings' names as column")
    if ("ranker" in options) != ("best_of" in options):
        raise InputError("a ranker chooses between best_of drawings: give both, or neither")
    judging = clip_of(judge, model.module.device, "judge")
    if (ranker := options.get("ranker")) is not None:
        options["ranker"] = clip_of(ranker, model.module.device, "ranker")
        if _same(ranker, judge):
            raise InputError(
                f"ranker={ranker}: what chose the drawings does not judge them; give another CLIP as judge"
            )
    pairs = read_pairs(list(data), text=column, key="--column")
    with tempfile.TemporaryDirectory() as scratch:  # what cannot be decoded is found before the drawing
        store = PixelStore(pairs, model.processor.size, model.processor.fit, scratch, workers=1)
    found = measure_drawings(model, pairs.select(store.usable), judging, **options)
    return found | {"data": left_out(pairs.dropped, store)}


def _same(one: ClipModel | str | Path, other: ClipModel | str | Path) -> bool:
    if isinstance(one, ClipModel) or isinstance(other, ClipModel):
        return one is other
    return locate(one).resolve() == locate(other).resolve()


def evaluate_image_tokens(
    model: ImageTokensModel, data: Sequence[str], *, column: str | None, label: str | None, **options: Any
) -> dict[str, Any]:
    """How pictures come back from their codes; see `tasks.image_tokens.ImageTokens.evaluate`.

    Raises:
        InputError: an option that it does not have, or no pictures.
    """
    if label is not None or options:
        name = next(iter(options), "label")
        raise InputError(f"{name} is no option of an image tokenizer: pictures come back from their codes, or do not")
    images = read_images(list(data), column, label="")
    check_parts(images.dropped, data)
    with tempfile.TemporaryDirectory() as scratch:
        store = PixelStore(images, model.processor.size, model.processor.fit, scratch, workers=1)
        task = ImageTokens(model.module, model.processor.mean, model.processor.std)
        metrics = task.evaluate(ImageEvalLoader(images, 64, store))
    return {"n": len(store.usable), "metrics": metrics, "data": left_out(images.dropped, store)}
