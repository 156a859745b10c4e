"""What a recipe of images may say: pre-training without labels, classification and detection."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bedplate.recipe.pictures import PictureDataRecipe, PictureEvaluateRecipe, PictureRecipe
from bedplate.recipe.schema import Count, Number, Paths, Positive, Rate, Share, Strict

Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class VisionModelRecipe(Strict):
    """The network, in the names of `transformers` config files. With a base, only the last three may be given."""

    preset: Literal["vit"] = "vit"
    """architecture; plain directories of it load in `transformers` as ViT"""
    patch_size: Positive = 4
    """side of a patch in pixels"""
    hidden_size: Positive = 192
    """width of the residual stream"""
    num_hidden_layers: Positive = 6
    """number of blocks"""
    num_attention_heads: Positive = 3
    """heads of a block"""
    intermediate_size: Positive | None = None
    """inner width of the MLP (default: 4 hidden sizes)"""
    stem: Literal["patch", "conv", "residual"] = "patch"
    """patch: a linear product of each patch, ViT's own; not in `transformers`: conv, 3x3 convolutions of stride 2;
    residual, a small residual network"""
    image_size: Positive | list[Positive] | None = None
    """side of the square, or [height, width], in pixels (default: the base's, else 32)"""
    pooling: Literal["cls", "mean"] | None = None
    """classify_images: what is scored: the class token, or the mean of the patches (default: the base's, else cls)"""
    dropout: Share = 0.0
    """dropout on embeddings, attention and residual branches"""

    @field_validator("image_size")
    @classmethod
    def _two_sides(cls, value: int | list[int] | None) -> int | list[int] | None:
        if isinstance(value, list) and len(value) != 2:
            raise ValueError(f"model.image_size={value}: give one side in pixels, or [height, width]")
        return value

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width)."""
        side = self.image_size
        return None if side is None else (side, side) if isinstance(side, int) else (side[0], side[1])


class DecoderRecipe(Strict):
    """mae: the small network that draws hidden patches, and is left behind afterwards."""

    hidden_size: Positive = 96
    """its width"""
    num_hidden_layers: Positive = 2
    """its blocks"""
    num_attention_heads: Positive = 3
    """heads of a block"""

    @model_validator(mode="after")
    def _sizes_agree(self) -> DecoderRecipe:
        width, heads = self.hidden_size, self.num_attention_heads
        if width % heads:
            raise ValueError(f"decoder.hidden_size={width} is not a multiple of decoder.num_attention_heads={heads}")
        if width % 4:
            raise ValueError(f"decoder.hidden_size={width} is not a multiple of 4, {OF_POSITIONS}")
        return self


class VisionDataRecipe(PictureDataRecipe):
    """Pictures: where they are, and which are held out."""

    path: Paths
    """a folder of pictures (for classes one folder each), csv, jsonl, parquet, WebDataset tar, IDX or hf:org/name;
    detect: COCO, VOC or YOLO annotations with their pictures; a string or a list"""
    image: str | None = None
    """column of the picture or its path (default: guessed, and printed)"""
    label: str | None = None
    """classify_images: column of the label (default: guessed, and printed)"""
    labels: Positive | None = None
    """classify_images: train on so many pictures, of each class alike (default: all)"""
    store: Positive | None = None
    """side in pixels at which pictures are kept for training, not below the model's; larger where crops need room"""


class AugmentRecipe(Strict):
    """What training shows of a picture; each is done on the training device, a batch at a time."""

    flip: bool = True
    """mirror every other picture"""
    shift: Annotated[Count, Field(le=1024)] = 0
    """greatest shift each way in pixels"""
    crop_scale: Pair | None = None
    """least and greatest share of a picture's area that a crop shows"""
    colour: Share = 0.0
    """range of the factors of brightness, contrast and saturation"""
    hue: Annotated[float, Field(ge=0, le=0.5), Number] = 0.0
    """greatest turn of the hue each way, in turns of the colour circle"""
    grey: Share = 0.0
    """probability that a picture loses its colours"""
    randaugment: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    """[operations, magnitude 0..10] of RandAugment"""
    erasing: Share = 0.0
    """probability that a rectangle is filled with noise"""
    mixup: Annotated[float, Field(ge=0, le=100), Number] = 0.0
    """classify_images: parameter of mixup's Beta distribution"""
    cutmix: Annotated[float, Field(ge=0, le=100), Number] = 0.0
    """classify_images: parameter of CutMix's Beta distribution"""
    scale: Pair | None = None
    """detect: least and greatest factor on a picture's size"""

    @model_validator(mode="after")
    def _in_range(self) -> AugmentRecipe:
        for name, pair, (least, most) in (
            ("crop_scale", self.crop_scale, (0.001, 1)),
            ("scale", self.scale, (0.01, 100)),
        ):
            if pair is not None and not least <= pair[0] <= pair[1] <= most:
                raise ValueError(f"augment.{name}={pair}: give two numbers in {least}..{most}, the smaller first")
        if self.randaugment is not None and self.randaugment[1] > 10:
            raise ValueError(
                f"augment.randaugment={self.randaugment}: give a number of operations and a magnitude in 0..10"
            )
        return self


class VisionObjectiveRecipe(Strict):
    """What is learnt."""

    mask_ratio: Annotated[float, Field(gt=0, lt=1), Number] = 0.75
    """mae: share of the patches that are hidden"""
    norm_pix_loss: bool = True
    """mae: each hidden patch is drawn with its own mean and deviation taken out"""
    temperature: Rate = 0.2
    """simclr: what similarities of views are divided by; the smaller, the more the nearest others count"""
    projection_dim: Positive = 128
    """simclr: width of the space in which views are compared"""
    label_smoothing: Share = 0.0
    """classify_images: share of the target that all classes share"""


class DetectorRecipe(Strict):
    """detect: what finds objects in the trunk's map."""

    head: Literal["dense", "set"] = "dense"
    """dense: a score and a box at every place (FCOS); set: queries that name one object each (DETR)"""


class VisionEvaluateRecipe(PictureEvaluateRecipe):
    """What is measured on held-out pictures while training."""

    flip: bool = False
    """classify_images: the mean of a picture's scores and its mirror image's, here and whenever the model predicts"""


class VisionRecipe(PictureRecipe):
    """Pre-training or fine-tuning on images."""

    task: Literal["mae", "simclr", "classify_images", "detect"]
    """what is learnt: `mae`, hidden patches of pictures without labels; `simclr`, which views are of one picture, also
    without labels; `classify_images`, the label of a picture; `detect`, boxes and their labels"""
    model: VisionModelRecipe = Field(default_factory=VisionModelRecipe)
    decoder: DecoderRecipe = Field(default_factory=DecoderRecipe)
    detector: DetectorRecipe = Field(default_factory=DetectorRecipe)
    data: VisionDataRecipe
    augment: AugmentRecipe = Field(default_factory=AugmentRecipe)
    objective: VisionObjectiveRecipe = Field(default_factory=VisionObjectiveRecipe)
    evaluate: VisionEvaluateRecipe = Field(default_factory=VisionEvaluateRecipe)

    @model_validator(mode="after")
    def _agrees(self) -> VisionRecipe:
        if self.base is not None:
            own = self.model.model_fields_set & NETWORK
            if name := next((n for n in sorted(own) if getattr(self.model, n) != _default(n)), None):
                raise ValueError(f"base={self.base} brings its own network; leave model.{name} out, or base")
        for section, task in (("decoder", "mae"), ("detector", "detect")):
            if self.task != task and getattr(self, section) != type(getattr(self, section))():
                raise ValueError(f"{section} is for task: {task}, not for {self.task}")
        ignored = {
            "detect": (*OF_WHOLE_PICTURES, *OF_SIMCLR, *OF_MAE, "data.image", "data.label", "model.pooling"),
            "mae": ("augment.scale", "data.test_path", "data.label", *OF_SIMCLR),
            "simclr": ("augment.scale", "data.test_path", "data.label", *OF_MAE),
            "classify_images": ("augment.scale", *OF_SIMCLR, *OF_MAE),
        }
        for key in ignored[self.task]:
            section, name = key.split(".")
            part = getattr(self, section)
            if getattr(part, name) != type(part).model_fields[name].default:
                raise ValueError(f"{key} is not for task: {self.task}; leave it out")
        if self.task == "mae" and self.base is None and self.model.hidden_size % 4:
            raise ValueError(f"model.hidden_size={self.model.hidden_size} is not a multiple of 4, {OF_POSITIONS}")
        if self.task == "simclr" and self.parallel.shard > 1:
            raise ValueError(
                f"parallel.shard={self.parallel.shard} is not for task: simclr, which runs in one process; leave it out"
            )
        if self.task == "simclr" and self.train.batch_size < 2:
            raise ValueError("train.batch_size=1 has no other pictures to tell one from; give 2 or more")
        if self.task == "simclr" and self.train.micro_batch_size not in (None, self.train.batch_size):
            raise ValueError("train.micro_batch_size is not for task: simclr, which compares all pictures of a batch")
        if self.task == "detect" and self.data.fit not in (None, "letterbox"):
            raise ValueError(f"data.fit={self.data.fit} is not for task: detect, whose pictures are letterboxed")
        if self.task != "classify_images":
            for key in ("mixup", "cutmix"):
                if getattr(self.augment, key):
                    raise ValueError(f"augment.{key} mixes labels: it is for task: classify_images, not {self.task}")
            if self.data.labels or self.objective.label_smoothing or self.evaluate.flip:
                raise ValueError(
                    "data.labels, objective.label_smoothing and evaluate.flip are for task: classify_images, "
                    f"not {self.task}"
                )
        return self


OF_POSITIONS = "which the positions of rows and columns need"
OF_WHOLE_PICTURES = (
    *(f"augment.{name}" for name in ("hue", "grey", "shift", "crop_scale", "randaugment", "erasing")),
    "data.store",
)
OF_MAE = ("objective.mask_ratio", "objective.norm_pix_loss")
OF_SIMCLR = ("objective.temperature", "objective.projection_dim")
NETWORK = frozenset(VisionModelRecipe.model_fields) - {"preset", "image_size", "pooling", "dropout"}


def _default(name: str) -> object:
    return VisionModelRecipe.model_fields[name].default
