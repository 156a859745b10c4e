"""`transfer` on pictures."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bedplate.api.folders import cache_folder, word
from bedplate.api.transfer_study import TEST_MOST, TEST_SHARE, Asked, Study
from bedplate.api.vision_classify import said
from bedplate.api.vision_predict import check_parts
from bedplate.api.vision_report import SEEN
from bedplate.api.vision_run import LOADS, image_augment, store_size
from bedplate.data.apart import keep_apart
from bedplate.data.image_files import LabelledImages, read_images, split_images
from bedplate.data.pixel_store import PixelStore
from bedplate.errors import InputError
from bedplate.hub.image_model import ImageModel
from bedplate.measure.transfer_images import Pictures, TransferImages
from bedplate.models.vit import ViT
from bedplate.recipe import VisionRecipe, read_vision_recipe

DATA = ("fit", "store", "workers", "cache")  # what the settings may say of the data; the rest is asked for elsewhere


class ImageStudy(Study):
    """A model of images on labelled pictures; what stands behind its encoder is left behind.

    Raises:
        InputError: pictures without labels, or pictures or settings that are wrong.
    """

    what = "pictures"
    sections = ("model", "data", "augment", "objective", "train", "optimizer", "schedule")

    def __init__(self, model: ImageModel, asked: Asked) -> None:
        self.recipe: VisionRecipe = _recipe(asked, self.sections)
        self.asked = asked
        train, test, whole, same = read_apart(asked)
        size, own = self.recipe.model.size or model.processor.size, model.processor.size
        fit = self.recipe.data.fit or model.processor.fit
        self.processor = replace(model.processor, size=size, fit=fit, flip=False)
        if size != own:
            asked.say(
                f"The base reads pictures of {own[0]}x{own[1]} pixels, this comparison gives it {size[0]}x{size[1]}: "
                "its positions are interpolated."
            )
        larger, training, scored = store_size(self.recipe, size), self._stored(train, size), self._stored(test, size)
        if larger != size:
            training = replace(training, larger=self._stored(train, larger).store)
        self.facts = {
            "path": [Path(path).name for path in asked.paths],
            "fingerprint": f"train:{training.store.fingerprint} test:{scored.store.fingerprint}",
            "column": asked.column,
            "label": asked.label,
            "train": len(training),
            "test": len(scored),
            "dropped": dict(whole.dropped),
            "equal_pictures": same,
            "broken": [*training.store.broken, *scored.store.broken],
            "doubts": whole.doubts(),
        }
        for line in [*said(self.facts | {"classes": whole.classes}, "transfer.json"), *self.facts["doubts"]]:
            asked.say(line)
        self.counts = asked.counts(len(training), len(set(training.labels())), self.what)
        augment = image_augment(self.recipe, size)
        self.comparison: TransferImages = TransferImages(
            model, self.processor, training, scored, self.recipe, augment, asked.seeds, asked.say
        )

    def _stored(self, images: LabelledImages, size: tuple[int, int]) -> Pictures:
        data = self.recipe.data
        store = PixelStore(images, size, self.processor.fit, cache_folder(data.cache) / "images", data.workers)
        return Pictures(images, store)

    def commands(self, out: Path) -> list[str]:
        named = {"image": self.asked.column, "label": self.asked.label}
        data = [f"data.path={self.asked.paths[0]}", *(f"data.{key}={name}" for key, name in named.items() if name)]
        return [
            f"bedplate predict {word(out)}/model photo.jpg",
            shlex.join(["bedplate", "finetune", "recipes/classify-images.yaml", f"base={self.asked.base}", *data]),
        ]

    def card(self) -> dict[str, Any]:
        task = self.recipe.task
        loads = LOADS[task] if self.module.config.is_standard else None
        return {"images": task, "image_size": list(self.processor.size), "standard": loads}

    def save(self, directory: Path, card: str) -> None:
        ImageModel(self.module, self.processor, card).save(directory)

    def shown(self, mistakes: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        images = self.comparison.test.images.images
        return [{**row, "image": images[row["index"]].image(SEEN)} for row in mistakes]

    @property
    def module(self) -> ViT:
        assert self.comparison.kept is not None
        return self.comparison.kept[0]


def read_apart(asked: Asked) -> tuple[LabelledImages, LabelledImages, LabelledImages, int]:
    """(pictures to learn from, pictures to score on, all of `data`, how many of it are scored and not learnt from)."""
    whole = _labelled(asked.paths, asked)
    if asked.test is None:
        train, test = split_images(whole, min(TEST_SHARE, TEST_MOST / len(whole)), seed=0)
    else:
        train, test = whole, _labelled(asked.test, asked, whole.classes)
        check_parts(test.dropped, [str(asked.test)] if isinstance(asked.test, str | Path) else [*map(str, asked.test)])
    parts, same = keep_apart({"train": train, "test": test})
    return parts["train"], test, whole, same


def _labelled(
    paths: str | Path | Sequence[str | Path], asked: Asked, classes: Sequence[str] | None = None
) -> LabelledImages:
    images = read_images(paths, asked.column, asked.label, classes)
    if images.labels is None:
        first = paths if isinstance(paths, str | Path) else paths[0]
        raise InputError(f"{first}: the pictures have no labels; give a folder for each class, or a table with --label")
    return images


def _recipe(asked: Asked, sections: Sequence[str]) -> VisionRecipe:
    settings = asked.sections(sections)
    data = dict(settings.get("data", {}))
    if wrong := sorted(data.keys() - set(DATA)):
        raise InputError(f"settings: data.{wrong[0]} is no part of a comparison; data has {', '.join(DATA)}")
    data |= {"path": asked.paths, "image": asked.column, "label": asked.label}
    fixed = {"task": "classify_images", "base": asked.base, "out": str(asked.out), "data": data}
    return read_vision_recipe(settings | fixed)
