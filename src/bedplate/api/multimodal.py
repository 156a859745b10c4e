"""Runs, predictions and measures of models of texts and pictures: which part of the package does each."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bedplate.api.vision_draw import expanded
from bedplate.api.vision_predict import predict_file, predict_pictures
from bedplate.data.images import Source
from bedplate.errors import InputError
from bedplate.hub.multimodal import MultimodalModel
from bedplate.recipe.multimodal import RECIPES
from bedplate.recipe.read import read_as, task_of

RUNS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "contrast": ("bedplate.api.contrast_run", "ContrastRun"),
        "answer": ("bedplate.api.answer_run", "AnswerRun"),
        "image_tokens": ("bedplate.api.image_tokens_run", "ImageTokensRun"),
        "draw": ("bedplate.api.draw_run", "DrawRun"),
    }
)
"""`task` of a recipe -> (module, class of `PictureRun` in it)."""

MEASURES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "ClipModel": ("bedplate.api.contrast_measure", "measure_clip"),
        "ReaderModel": ("bedplate.api.answer_measure", "measure_reader"),
        "ImageTokensModel": ("bedplate.api.drawings", "evaluate_image_tokens"),
        "DrawModel": ("bedplate.api.drawings", "evaluate_drawings"),
    }
)
"""Class of `MultimodalModel` -> (module, function of (model, data, column, label, ...) in it) that measures it."""


def run_multimodal(recipe: Any, overrides: Sequence[str], *, resume: bool, verb: str) -> dict[str, Any]:
    """Run a recipe of texts and pictures; both verbs take it, `finetune` needs a base.

    Returns:
        {"out", "model", "steps", "parameters", "metrics", "seconds"}.

    Raises:
        InputError: the recipe, the base or the data are wrong, `out` exists, or the loss is not finite.
        Interrupted: Ctrl-C or SIGTERM; everything is saved.
    """
    task = task_of(recipe, overrides) or ""
    resolved = read_as(RECIPES[task], recipe, overrides)
    if verb == "finetune" and resolved.base is None:
        raise InputError(f"finetune needs a `base`; to train {task} from scratch use bedplate pretrain")
    name = recipe if isinstance(recipe, str | Path) else resolved.out / "recipe.yaml"
    run = _named(*RUNS[task])
    result: dict[str, Any] = run(resolved, resume, shlex.join(["bedplate", verb, str(name), *overrides]), verb).run()
    return result


def predict_multimodal(
    model: MultimodalModel,
    inputs: Sequence[Source],
    *,
    file: str | Path | None = None,
    column: str | None = None,
    others: Mapping[str, Any],
    progress: Callable[[str], object] = lambda line: None,
    **options: Any,
) -> list[Any]:
    """Predictions, one a picture, in order; see the model's own `predict` for `options` (None: not given).

    In the place of a picture of a folder or of `file` that cannot be decoded is None.

    Args:
        inputs: pictures, or folders of them.
        file: a folder, table or archive of pictures in place of `inputs`, see `data.image_files.read_images`.
        column: of the pictures in it.
        others: options of other kinds of models, refused where they are given.
        progress: called with a line for each picture that is left out.

    Raises:
        InputError: nothing to predict, no picture, or an option that the model does not have.
    """
    if name := next((name for name, value in others.items() if value is not None), None):
        raise InputError(f"{name} is no option of a model of texts and pictures")
    if inputs and file is not None:
        raise InputError("give either pictures or a file, not both")
    given = {name: value for name, value in options.items() if value is not None}
    if file is not None:
        return predict_file(model, file, column, progress=progress, **given)
    if not inputs:
        raise InputError("nothing to predict: give a picture, a folder of them, or a file")
    if not isinstance(given.get("question"), str | None):  # one a picture, which none may miss
        return model.predict([image for each in inputs for image in expanded(each)], **given)
    return predict_pictures(model, inputs, progress=progress, **given)


def evaluate_multimodal(
    model: MultimodalModel, data: Sequence[str], *, column: str | None, label: str | None, **options: Any
) -> dict[str, Any]:
    """Measure a model of texts and pictures; what of it and by which options (None: not given) its kind decides.

    Returns:
        {"n", "metrics": {name: {"value", "low", "high", "n"}}}, and more by kind.

    Raises:
        InputError: a kind that nothing is measured of, an option that its kind does not have, or wrong data.
    """
    kind = type(model).__name__
    if kind not in MEASURES:
        raise InputError(
            f"nothing is measured of a {type(model.module).__name__.lower()}; bedplate info says what it is"
        )
    given = {name: value for name, value in options.items() if value is not None}
    result: dict[str, Any] = _named(*MEASURES[kind])(model, data, column=column, label=label, **given)
    return result


def _named(module: str, name: str) -> Any:
    return getattr(import_module(module), name)
