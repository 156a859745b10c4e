"""What runs on pictures share, also where texts stand beside them: decoded pixels, an end by steps or epochs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bedplate.api.folders import cache_folder
from bedplate.api.run import Run
from bedplate.data.cores import available_cores
from bedplate.data.image_refs import Pictures
from bedplate.data.loader import Loader, prefetch
from bedplate.data.pixel_store import PixelStore
from bedplate.errors import InputError
from bedplate.hub.processor import ImageProcessor
from bedplate.recipe.pictures import PictureRecipe
from bedplate.recipe.schema import ParallelRecipe
from bedplate.tasks import Task
from bedplate.train.log import RunLog
from bedplate.train.loop import Data, Trainer

M = TypeVar("M", bound=nn.Module)
P = TypeVar("P", bound=PictureRecipe)

NAMED = 10  # broken pictures that are named while a run begins
SCORED_ROWS = 256  # pictures of a batch that is not trained on


class PictureRun(Run[P]):
    """A run whose data is pictures; `processor` is set by `prepare`."""

    scales = True
    task: Task
    processor: ImageProcessor
    weights: Iterator[tuple[str, Tensor]] | None = None  # of a network that is to be sharded

    def __init__(self, recipe: P, resume: bool, command: str, verb: str) -> None:
        self.verb = verb  # type: ignore[misc]  # the same run is pre-training without a base, fine-tuning with one
        super().__init__(recipe, resume, command)
        self.stores: dict[str, PixelStore] = {}

    @property
    def made_on(self) -> torch.device:
        """Where the network is made: one that is to be sharded never is on the device as a whole."""
        return self.hardware.device if self.parallel.shard == 1 else torch.device("cpu")

    def placed(self, module: M) -> M:
        """A whole network as the trainer takes it. What is to be sharded leaves its weights here, see `weights`."""
        if self.parallel.shard == 1:
            return module.to(self.hardware.device)
        self.weights = iter(list(module.named_parameters()))
        return module.to("meta")

    def store(self, name: str, images: Pictures, size: tuple[int, int]) -> PixelStore:
        """The pixels of a part's pictures at one size; `stores` keeps it, for what is broken."""
        self.stores[name] = PixelStore(images, size, self.processor.fit, self.cache, self.workers)
        return self.stores[name]

    def scored_rows(self, pictures: int) -> int:
        """Of so many pictures that are scored those of a batch on this rank: as many as fit in training fit here."""
        most = self.recipe.train.micro_batch_size or SCORED_ROWS
        return min(most, SCORED_ROWS, max(1, -(-pictures // self.ranks.data_size)))

    @property
    def shares(self) -> tuple[int, int]:
        """(this rank, all) among those that share batches."""
        return self.ranks.data_rank, self.ranks.data_size

    @property
    def parallel(self) -> ParallelRecipe:
        return self.recipe.parallel

    @property
    def workers(self) -> int | None:
        """Processes of this rank that decode; None is as many as it may use cores."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if here == 1:
            return self.recipe.data.workers
        return self.recipe.data.workers or max(1, available_cores() // here)

    def usable(self) -> dict[str, int]:
        """How many pictures of each part can be decoded."""
        return {name: len(store.usable) for name, store in self.stores.items()}

    def broken(self) -> list[str]:
        """What is wrong with each picture that cannot be decoded."""
        return [each for store in self.stores.values() for each in store.broken]

    def loader_data(self, loader: Loader, val: Any) -> Data:
        pin = self.hardware.device.type == "cuda"
        return Data(partial(prefetch, loader, pin=pin), None if val is None else val.__iter__)

    def make_trainer(self, data: Data, steps_per_epoch: int, log: RunLog) -> Trainer:
        recipe, train = self.recipe, self.recipe.train
        by_epochs = math.inf if train.epochs is None else max(1, round(train.epochs * steps_per_epoch))
        steps = int(min(train.steps or math.inf, by_epochs))
        self.check_reached(steps)
        metric, _ = self.best_metric()
        if metric not in self.task.metrics:
            raise InputError(
                f"evaluate.metric={metric!r} is not measured; choose one of {', '.join(self.task.metrics)}"
            )
        return Trainer(
            recipe,
            self.task,
            data,
            self.hardware,
            self.out,
            self.save_model,
            log,
            steps=steps,
            evaluate_every=recipe.evaluate.every or steps_per_epoch,
            metric=metric,
            patience=recipe.evaluate.patience,
            ranks=self.ranks,
            parallel=recipe.parallel,
            weights=self.weights,
            measure=self.measure,
        )

    def measure(self) -> None:  # some runs have nothing to add
        """What all ranks measure and draw of the final weights, averaged ones included, before the model is written."""

    @property
    def cache(self) -> Path:
        return cache_folder(self.recipe.data.cache) / "images"

    def best_metric(self) -> tuple[str, str]:
        metric = self.recipe.evaluate.metric or next(iter(self.task.metrics))
        return metric, self.task.metrics.get(metric, "min")

    def keep_preprocessing(self) -> None:
        """Nothing: what is done to pictures follows from the recipe and the base."""


def said_broken(broken: Sequence[str], record: str = "environment.json") -> list[str]:
    """Which pictures are broken, as sentences: the first `NAMED` by name."""
    lines = [f"Left out as broken: {each}" for each in broken[:NAMED]]
    if len(broken) > NAMED:
        lines.append(f"{len(broken):,} pictures are broken and left out in all; {record} names each.")
    return lines
