"""`finetune`: from a pre-trained model and examples to a model of a task."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bedplate.api.finetune_chat import ChatRun
from bedplate.api.finetune_classify import ClassifyRun
from bedplate.api.finetune_summarize import SummarizeRun
from bedplate.api.multimodal import run_multimodal
from bedplate.api.vision import run_vision
from bedplate.recipe import PICTURES, FinetuneRecipe, read_finetune_recipe, task_of
from bedplate.recipe.multimodal import RECIPES
from bedplate.recipe.pictures import PictureRecipe


def finetune(
    recipe: str | Path | Mapping[str, Any] | FinetuneRecipe | PictureRecipe, *overrides: str, resume: bool = False
) -> dict[str, Any]:
    """Adapt a pre-trained model to a task as a recipe says.

    Of text a classifier, a model that answers, or a summariser; of pictures a classifier or a detector. A classifier of
    text can learn from a larger one, too (`teacher`, see `TeacherRecipe`).

    Args:
        recipe: a YAML file, or the same as a mapping.
        overrides: `key.path=value` each.
        resume: go on from the newest checkpoint in `out`.

    Returns:
        {"out", "model", "steps", "parameters", "metrics", "seconds"}; with `data.test_path` also "test", metrics of it;
        with `adapter.rank` also "adapter", its directory, and "trained", a count of weights.

    Raises:
        InputError: the recipe, the base or the examples are wrong, `out` exists, or the loss is not finite.
        Interrupted: Ctrl-C or SIGTERM; everything is saved.
    """
    task = task_of(recipe, overrides)
    if task in PICTURES or task in RECIPES:
        runs = run_vision if task in PICTURES else run_multimodal
        return runs(recipe, overrides, resume=resume, verb="finetune")
    resolved = read_finetune_recipe(recipe, overrides)  # type: ignore[arg-type]  # pictures are done with
    name = recipe if isinstance(recipe, str | Path) else resolved.out / "recipe.yaml"
    kinds: dict[str, type[ClassifyRun | SummarizeRun | ChatRun]] = {
        "classify": ClassifyRun,
        "chat": ChatRun,
        "summarize": SummarizeRun,
    }
    kind = kinds[resolved.task]
    return kind(resolved, resume, shlex.join(["bedplate", "finetune", str(name), *overrides])).run()
