"""What runs on images share: a base or a fresh network, the size and look of pictures, an end by steps or epochs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from bedplate.api.folders import cache_folder
from bedplate.api.run import Run
from bedplate.data.augment import ImageAugment
from bedplate.data.image_files import LabelledImages
from bedplate.data.image_loader import ImageEvalLoader
from bedplate.data.loader import Loader, prefetch
from bedplate.data.pixel_store import PixelStore
from bedplate.errors import InputError
from bedplate.hub.image_model import ImageModel
from bedplate.hub.load import load
from bedplate.hub.processor import ImageProcessor
from bedplate.hub.vision_directory import VisionModule, encoder_of, save_vision_directory
from bedplate.models.vit import VisionConfig, VisionModel
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS
from bedplate.recipe import VisionRecipe, read_vision_recipe
from bedplate.recipe.schema import ParallelRecipe
from bedplate.tasks import Task
from bedplate.train.hardware import available_cores
from bedplate.train.log import RunLog
from bedplate.train.loop import Data, Trainer

M = TypeVar("M", bound=nn.Module)

WHOLE = (1.0, 1.0)
LOADS = {"mae": "ViTMAEForPreTraining", "classify_images": "AutoModelForImageClassification"}
SCORED_ROWS = 256  # pictures of a batch that is not trained on


class VisionRun(Run[VisionRecipe]):
    """The parts that learning without labels, classifying and detecting share."""

    default_size: ClassVar[tuple[int, int]] = (32, 32)
    default_fit: ClassVar[str] = "stretch"
    scales = True
    module: VisionModule
    task: Task
    weights: Iterator[tuple[str, Tensor]] | None = None  # of a network that is to be sharded

    def __init__(self, recipe: VisionRecipe, resume: bool, command: str, verb: str) -> None:
        self.verb = verb  # type: ignore[misc]  # the same run is pre-training without a base, fine-tuning with one
        super().__init__(recipe, resume, command)
        self.stores: dict[str, PixelStore] = {}

    def make_encoder(self, log: RunLog) -> VisionModel:
        """What reads pictures: the base's, or a fresh one; `processor` follows from both and the recipe.

        Raises:
            InputError: a base that is no model of images, or a size that is no multiple of its patches.
        """
        recipe, model = self.recipe, self.recipe.model
        base = None if recipe.base is None else load(recipe.base, device=self.made_on, dtype="fp32")
        if base is not None and not isinstance(base, ImageModel):
            raise InputError(f"{recipe.base}: is a model of text; give a base that reads pictures, or none")
        size = model.size or (self.default_size if base is None else encoder_of(base.module).config.image_size)
        inherits = base is not None and recipe.task != "detect"  # whose boxes are placed on letterboxed pictures
        fit: Any = recipe.data.fit or (base.processor.fit if base is not None and inherits else self.default_fit)
        self.processor = ImageProcessor(size, fit=fit, flip=recipe.evaluate.flip)
        if base is not None:
            its = base.processor
            self.processor = ImageProcessor(size, its.mean, its.std, fit, recipe.evaluate.flip)
            if its.size != size:
                log.say(
                    f"The base reads pictures of {its.size[0]}x{its.size[1]} pixels, this model of "
                    f"{size[0]}x{size[1]}: its positions are interpolated."
                )
            return encoder_of(base.module)
        encoder = VisionModel(fresh_config(recipe, size))
        encoder.init_weights(recipe.seed)
        return encoder.to(self.made_on)

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

    def store(self, name: str, images: LabelledImages, size: tuple[int, int]) -> PixelStore:
        """The pixels of a part's pictures at one size; `stores` keeps it, for what is broken."""
        self.stores[name] = PixelStore(images, size, self.processor.fit, self.cache, self.workers)
        return self.stores[name]

    def eval_loader(self, name: str, images: LabelledImages) -> ImageEvalLoader:
        """This rank's batches of a part's pictures, to be scored; few pictures are shared by all ranks, too."""
        rows = min(SCORED_ROWS, -(-len(images) // self.ranks.data_size))
        store = self.store(name, images, self.processor.size)
        return ImageEvalLoader(images, rows, store, None, *self.shares)

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

    def augment(self) -> ImageAugment | None:
        """What training shows of pictures; None where nothing is changed in them."""
        return image_augment(self.recipe, self.processor.size)

    @property
    def store_size(self) -> tuple[int, int]:
        """(height, width) at which pictures are kept for training."""
        return store_size(self.recipe, self.processor.size)

    @property
    def cache(self) -> Path:
        return cache_folder(self.recipe.data.cache) / "images"

    def best_metric(self) -> tuple[str, str]:
        metric = self.recipe.evaluate.metric or next(iter(self.task.metrics))
        return metric, self.task.metrics.get(metric, "min")

    def keep_preprocessing(self) -> None:
        """Nothing: what is done to pictures follows from the recipe and the base."""

    def read_recipe(self, path: Path) -> VisionRecipe:
        return read_vision_recipe(path)

    def settled(self, recipe: VisionRecipe) -> dict[str, Any]:
        data = recipe.data.model_dump(mode="json", include={"val_fraction", "labels", "fit", "store", "image", "label"})
        return {
            "task": recipe.task,
            "seed": recipe.seed,
            "base": recipe.base,
            "model": recipe.model.model_dump(mode="json"),
            "decoder": recipe.decoder.model_dump(mode="json"),
            "detector": recipe.detector.model_dump(mode="json"),
            "optimizer.name": recipe.optimizer.name,
            "train.ema": recipe.train.ema,
            "evaluate.metric": recipe.evaluate.metric,
            "train.batch_size": recipe.train.batch_size,
            "objective": recipe.objective.model_dump(),
            "evaluate.flip": recipe.evaluate.flip,
            **{f"data.{key}": value for key, value in data.items()},
        }

    def write_model(self, card: str) -> None:
        save_vision_directory(self.out / "model", self.module, self.processor, card, overwrite=True)

    def record(self) -> dict[str, Any]:
        config: Any = self.module.config
        loads = LOADS.get(self.recipe.task) if getattr(config, "is_standard", False) else None
        return super().record() | {
            "images": self.recipe.task,
            "image_size": list(self.processor.size),
            "standard": loads,
        }


def image_augment(recipe: VisionRecipe, size: tuple[int, int]) -> ImageAugment | None:
    """What training shows of pictures to a network that reads `size`; None where nothing is changed in them."""
    a = recipe.augment
    settings = ImageAugment(
        crop_scale=WHOLE if a.crop_scale is None else (a.crop_scale[0], a.crop_scale[1]),
        flip=a.flip,
        shift=a.shift,
        randaugment=(0, 0) if a.randaugment is None else (a.randaugment[0], a.randaugment[1]),
        colour=a.colour,
        erasing=a.erasing,
        mixup=a.mixup,
        cutmix=a.cutmix,
    )
    return None if settings == ImageAugment() and store_size(recipe, size) == size else settings


def store_size(recipe: VisionRecipe, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) at which pictures are kept for training a network that reads `size`."""
    (height, width), side = size, recipe.data.store
    return (height, width) if side is None else (side, side * width // height)


def fresh_config(recipe: VisionRecipe, size: tuple[int, int]) -> VisionConfig:
    """The shape of a network that the recipe describes.

    Raises:
        InputError: sizes that do not divide one another.
    """
    m = recipe.model
    if m.hidden_size % m.num_attention_heads:
        raise InputError(
            f"model.hidden_size={m.hidden_size} is not a multiple of model.num_attention_heads={m.num_attention_heads}"
        )
    trunk = trunk_config(m.hidden_size, m.num_hidden_layers, m.num_attention_heads, m.intermediate_size, m.dropout)
    return VisionConfig(size, m.patch_size, trunk, stem=m.stem, pooling=m.pooling or "cls")


def trunk_config(width: int, layers: int, heads: int, inner: int | None = None, dropout: float = 0.0) -> TrunkConfig:
    """A ViT's trunk of these sizes."""
    options = PRESETS["vit"] | {"dropout": dropout}
    return TrunkConfig(width, layers, heads, heads, width // heads, inner or 4 * width, **options)
