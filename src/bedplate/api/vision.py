"""Runs on images, whichever verb starts them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bedplate.errors import InputError
from bedplate.recipe import VisionRecipe, read_vision_recipe


def run_vision(recipe: Any, overrides: Sequence[str], *, resume: bool, verb: str) -> dict[str, Any]:
    """Run a recipe of images: `pretrain` begins from scratch or a base, `finetune` needs a base.

    Returns:
        {"out", "model", "steps", "parameters", "metrics", "seconds"}; with labels also "data" and, with
        `data.test_path`, "test", metrics of it.

    Raises:
        InputError: the recipe, the base or the pictures are wrong, `out` exists, or the loss is not finite.
        Interrupted: Ctrl-C or SIGTERM; everything is saved.
    """
    from bedplate.api.vision_classify import ClassifyImagesRun
    from bedplate.api.vision_detect import DetectRun
    from bedplate.api.vision_mae import MAERun
    from bedplate.api.vision_run import VisionRun
    from bedplate.api.vision_simclr import SimCLRRun

    resolved: VisionRecipe = read_vision_recipe(recipe, overrides)
    if verb == "finetune" and resolved.base is None:
        raise InputError(f"finetune needs a `base`; to train {resolved.task} from scratch use bedplate pretrain")
    if verb == "finetune" and resolved.task in ("mae", "simclr"):
        raise InputError(
            f"task: {resolved.task} learns without labels: use bedplate pretrain (a `base` may be given there)"
        )
    name = recipe if isinstance(recipe, str | Path) else resolved.out / "recipe.yaml"
    runs: Mapping[str, type[VisionRun]] = {
        "mae": MAERun,
        "simclr": SimCLRRun,
        "classify_images": ClassifyImagesRun,
        "detect": DetectRun,
    }
    command = shlex.join(["bedplate", verb, str(name), *overrides])
    return runs[resolved.task](resolved, resume, command, verb).run()
