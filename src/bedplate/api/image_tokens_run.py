"""Learning an image tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bedplate.api.folders import word
from bedplate.api.picture_run import PictureRun
from bedplate.api.record import page_record, training_summary, write_page
from bedplate.api.vision_classify import said
from bedplate.api.vision_unlabelled import unlabelled
from bedplate.data.augment import ImageAugment
from bedplate.data.image_files import fingerprint
from bedplate.data.image_loader import ImageEvalLoader, ImageLoader
from bedplate.errors import InputError
from bedplate.hub.image_tokens_model import ImageTokensModel, pictures_of
from bedplate.hub.load import load
from bedplate.hub.processor import ImageProcessor
from bedplate.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from bedplate.recipe.image_tokens import ImageTokensRecipe
from bedplate.recipe.read import read_as
from bedplate.report.drawing import image_tokens_report
from bedplate.tasks.image_tokens import ImageTokens
from bedplate.train.log import RunLog
from bedplate.train.loop import Trainer

SHOWN = 18  # reconstructions in the report


class ImageTokensRun(PictureRun[ImageTokensRecipe]):
    """An image tokenizer, from scratch or from where a base stands."""

    module: ImageTokenizer
    task: ImageTokens
    shown: Sequence[tuple[Image.Image, Image.Image]] = ()  # reconstructions, which `measure` draws

    def prepare(self, log: RunLog) -> None:
        recipe = self.recipe
        self.module = self.placed(self._network())
        self.timed("data", lambda: self.ranks.main_first(lambda: self._read(log)))
        size = self.processor.size
        self.task = ImageTokens(
            self.module,
            self.processor.mean,
            self.processor.std,
            l1_weight=recipe.objective.l1_weight,
            edge_weight=recipe.objective.edge_weight,
            augment=partial(ImageAugment(flip=recipe.augment.flip), size=size),
            collect=self.ranks.interleave,
        )
        rows, columns = self.module.config.grid
        log.say(f"{self.parameters():,} parameters; {rows}x{columns} of {self.module.codebook_size:,} codes a picture.")

    def _network(self) -> ImageTokenizer:
        recipe, model = self.recipe, self.recipe.model
        if recipe.base is not None:
            base = load(recipe.base, dtype="fp32")
            if not isinstance(base, ImageTokensModel):
                raise InputError(f"{recipe.base}: is no image tokenizer; give one as base, or none")
            self.processor = replace(base.processor, fit=recipe.data.fit or base.processor.fit)
            return base.module
        try:
            config = ImageTokenizerConfig(model.size, model.patch_size, tuple(model.levels), model.width, model.blocks)
        except InputError as error:
            raise InputError(f"model: {error}") from None
        self.processor = ImageProcessor(model.size, fit=recipe.data.fit or "stretch")
        module = ImageTokenizer(config)
        module.init_weights(recipe.seed)
        return module

    def _read(self, log: RunLog) -> None:
        train, val, same = unlabelled(self.recipe.data, self.recipe.data.image, self.recipe.seed)
        self.parts = {"train": train} | ({} if val is None else {"val": val})
        size, rows, seed = self.processor.size, self.recipe.train.batch_size, self.recipe.seed
        self.loader = ImageLoader(train, rows, seed, self.store("train", train, size), *self.shares)
        self.val = None
        if val is not None:
            scored = self.scored_rows(len(val))
            self.val = ImageEvalLoader(val, scored, self.store("val", val, size), None, *self.shares)
        self.found = {
            **self.usable(),
            "dropped": dict(train.dropped),
            "equal_pictures": same,
            "broken": self.broken(),
        }
        for line in said(self.found):
            log.say(line)

    def trainer(self, log: RunLog) -> Trainer:
        return self.make_trainer(self.loader_data(self.loader, self.val), self.loader.steps_per_epoch, log)

    def facts(self) -> list[dict[str, Any]]:
        marks = [f"{name}:{fingerprint(part, self.cache)}" for name, part in self.parts.items()]
        return [{"fingerprint": " ".join(marks), "pictures": True, **self.found}]

    def read_recipe(self, path: Path) -> ImageTokensRecipe:
        return read_as(ImageTokensRecipe, path)

    def settled(self, recipe: ImageTokensRecipe) -> dict[str, Any]:
        data = recipe.data.model_dump(mode="json", include={"val_fraction", "fit", "image"})
        return {
            "task": recipe.task,
            "seed": recipe.seed,
            "base": recipe.base,
            "model": recipe.model.model_dump(mode="json"),
            "train.ema": recipe.train.ema,
            "evaluate.metric": recipe.evaluate.metric,
            "train.batch_size": recipe.train.batch_size,
            "objective": recipe.objective.model_dump(),
            **{f"data.{key}": value for key, value in data.items()},
        }

    def measure(self) -> None:
        """Held-out pictures (or those of training, where none are held out) and what their codes give."""
        store = self.stores["train" if self.val is None else "val"]
        pixels = torch.from_numpy(store.pixels(store.usable[:SHOWN]))
        rebuilt = self.task.reconstructed(pixels)
        self.shown = list(zip(pictures_of([pixels]), pictures_of([rebuilt]), strict=True))

    def write_model(self, card: str) -> None:
        ImageTokensModel(self.module, self.processor, card).save(self.out / "model", overwrite=True)

    def record(self) -> dict[str, Any]:
        return super().record() | {"images": self.recipe.task, "image_size": list(self.processor.size)}

    def write_report(self, record: dict[str, Any]) -> None:
        out = self.out
        commands = [f"bedplate pretrain recipes/draw.yaml tokenizer_base={word(out)}/model data.path=YOUR_PAIRS"]
        page = page_record(out, record, self.timings, training_summary(out, record), commands)
        page |= {"validation": record["metrics"], "pictures": self.shown}
        write_page(out, image_tokens_report(page))
