"""What runs on images share: a base or a fresh network, the size and look of pictures, an end by steps or epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from bedplate.api.picture_run import PictureRun
from bedplate.data.augment import ImageAugment
from bedplate.data.image_files import LabelledImages
from bedplate.data.image_loader import ImageEvalLoader
from bedplate.errors import InputError
from bedplate.hub.image_model import ImageModel
from bedplate.hub.load import load
from bedplate.hub.processor import ImageProcessor
from bedplate.hub.vision_directory import VisionModule, encoder_of, save_vision_directory
from bedplate.models.simclr import SimCLR
from bedplate.models.vit import VisionConfig, VisionModel
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS
from bedplate.recipe import VisionRecipe, read_vision_recipe
from bedplate.train.log import RunLog

WHOLE = (1.0, 1.0)
LOADS = {"mae": "ViTMAEForPreTraining", "classify_images": "AutoModelForImageClassification"}


class VisionRun(PictureRun[VisionRecipe]):
    """The parts that learning without labels, classifying and detecting share."""

    default_size: ClassVar[tuple[int, int]] = (32, 32)
    default_fit: ClassVar[str] = "stretch"
    module: VisionModule | SimCLR
    base: VisionModule | None = None  # what a detector begins with, where that is one itself

    def make_encoder(self, log: RunLog) -> VisionModel:
        """What reads pictures: the base's, or a fresh one; `processor` follows from both and the recipe.

        Raises:
            InputError: a base that is no model of images, or a size that is no multiple of its patches or above
                `data.store`.
        """
        recipe, model = self.recipe, self.recipe.model
        base = None if recipe.base is None else load(recipe.base, device=self.made_on, dtype="fp32")
        if base is not None and not isinstance(base, ImageModel):
            raise InputError(f"{recipe.base}: is a model of text; give a base that reads pictures, or none")
        size = model.size or (self.default_size if base is None else encoder_of(base.module).config.image_size)
        patch = model.patch_size if base is None else encoder_of(base.module).config.patch_size
        if size[0] % patch or size[1] % patch:
            whose = "model.patch_size" if base is None else "the base's patch_size"
            raise InputError(f"model.image_size={size[0]}x{size[1]} is not a multiple of {whose}={patch}; change one")
        store_size(recipe, size)  # refuses one that is too small, before pictures are read
        inherits = base is not None and recipe.task != "detect"  # whose boxes are placed on letterboxed pictures
        fit: Any = recipe.data.fit or (base.processor.fit if base is not None and inherits else self.default_fit)
        self.processor = ImageProcessor(size, fit=fit, flip=recipe.evaluate.flip)
        if base is not None:
            self.base, its = base.module if recipe.task == "detect" else None, base.processor
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

    def eval_loader(self, name: str, images: LabelledImages) -> ImageEvalLoader:
        """This rank's batches of a part's pictures, to be scored; few pictures are shared by all ranks, too."""
        rows = self.scored_rows(len(images))
        store = self.store(name, images, self.processor.size)
        return ImageEvalLoader(images, rows, store, None, *self.shares)

    def augment(self) -> ImageAugment | None:
        """What training shows of pictures; None where nothing is changed in them."""
        return image_augment(self.recipe, self.processor.size)

    @property
    def store_size(self) -> tuple[int, int]:
        """(height, width) at which pictures are kept for training."""
        return store_size(self.recipe, self.processor.size)

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
        assert not isinstance(self.module, SimCLR)  # whose encoder alone is kept
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
        hue=a.hue,
        grey=a.grey,
        erasing=a.erasing,
        mixup=a.mixup,
        cutmix=a.cutmix,
    )
    return None if settings == ImageAugment() and store_size(recipe, size) == size else settings


def store_size(recipe: VisionRecipe, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) at which pictures are kept for training a network that reads `size`.

    Raises:
        InputError: `data.store` is below the network's height: what it would learn from was never seen.
    """
    (height, width), side = size, recipe.data.store
    if side is not None and side < height:
        raise InputError(
            f"data.store={side} is below the {height} pixels that the model reads; give {height} or more, or leave it "
            "out"
        )
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
