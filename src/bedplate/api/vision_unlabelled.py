"""What runs on pictures without labels share: their data."""

from __future__ import annotations

from typing import Any

from bedplate.api.vision_classify import said
from bedplate.api.vision_run import VisionRun
from bedplate.data.apart import keep_apart
from bedplate.data.image_files import LabelledImages, fingerprint, read_images, split_images
from bedplate.data.image_loader import ImageLoader
from bedplate.recipe.pictures import PictureDataRecipe
from bedplate.train.log import RunLog
from bedplate.train.loop import Trainer


class UnlabelledRun(VisionRun):
    """A run that learns from pictures alone."""

    def read(self, log: RunLog) -> None:
        train, val, same = unlabelled(self.recipe.data, self.recipe.data.image, self.recipe.seed)
        self.parts = {"train": train} | ({} if val is None else {"val": val})
        rows, seed = self.recipe.train.batch_size, self.recipe.seed
        self.loader = ImageLoader(train, rows, seed, self.store("train", train, self.store_size), *self.shares)
        self.val = None if val is None else self.eval_loader("val", val)
        self.found: dict[str, Any] = {
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
        return [{"fingerprint": " ".join(marks), **self.found}]


def unlabelled(
    data: PictureDataRecipe, image: str | None, seed: int
) -> tuple[LabelledImages, LabelledImages | None, int]:
    """(pictures to train on, those held out if any, how many of the first were also scored and left)."""
    train = read_images(data.path, image, label="")
    if data.val_path:
        val = read_images(data.val_path, image, label="")
    elif data.val_fraction:
        train, val = split_images(train, data.val_fraction, seed)
    else:
        return train, None, 0
    parts, same = keep_apart({"train": train, "val": val})
    return parts["train"], val, same
