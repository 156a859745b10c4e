"""What a recipe of contrastive learning may say: pictures beside the texts that belong to them (CLIP, SigLIP)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bedplate.recipe.pictures import PictureDataRecipe, PictureRecipe
from bedplate.recipe.schema import Number, Paths, Positive, Share, Strict
from bedplate.recipe.vision import Pair


class TextTowerRecipe(Strict):
    """The tower of texts. With model.text_base, only context and pooling may be given."""

    hidden_size: Positive = 192
    """width of the residual stream"""
    num_hidden_layers: Positive = 4
    """number of blocks"""
    num_attention_heads: Positive = 3
    """heads of a block"""
    intermediate_size: Positive | None = None
    """inner width of the MLP (default: 4 hidden sizes)"""
    vocab_size: Positive = 4096
    """tokens of the tokenizer, which is trained on the texts; fewer where they hold fewer"""
    context: Annotated[int, Field(ge=2)] | None = None
    """most tokens of a text, its end token included; what is longer loses its end (default: the base's, else 32)"""
    pooling: Literal["eos", "mean"] | None = None
    """what stands for a text: the state of its end token, or the mean of all (default: eos; of a text_base mean)"""


class ImageTowerRecipe(Strict):
    """The tower of pictures. With model.image_base, only image_size may be given."""

    patch_size: Positive = 8
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
    """patch: a linear product of each patch; not in `transformers`: conv, 3x3 convolutions of stride 2; residual, a
    small residual network"""
    pooling: Literal["cls", "mean"] = "cls"
    """what stands for a picture: the class token, or the mean of the patches (not in `transformers`)"""
    image_size: Positive | None = None
    """side of the square in pixels (default: the image_base's, else 64)"""


class ContrastModelRecipe(Strict):
    """The network. As it is by default, `transformers` loads it as CLIP."""

    text: TextTowerRecipe = Field(default_factory=TextTowerRecipe)
    image: ImageTowerRecipe = Field(default_factory=ImageTowerRecipe)
    projection_dim: Positive = 192
    """numbers of a vector in the space that pictures and texts share"""
    text_base: str | None = None
    """a pre-trained model of text that the tower begins as, with its tokenizer: a directory, zoo:NAME, hf:ORG/NAME"""
    image_base: str | None = None
    """a pre-trained model of pictures that the tower begins as"""
    dropout: Share = 0.0
    """dropout on embeddings, attention and residual branches of towers without a base"""


class ContrastDataRecipe(PictureDataRecipe):
    """Pictures with texts: where they are, and which are held out."""

    path: Paths
    """WebDataset tar, csv, jsonl, parquet, COCO captions, a folder of pictures with .txt beside them, hf:org/name"""
    val_fraction: Share = 0.1
    """share of pictures held out, all pictures of a concept together"""
    image: str | None = None
    """column of the picture or its path (default: guessed)"""
    text: list[str] | None = None
    """columns or keys of the texts, as name,keywords: the first is a name or caption (default: guessed)"""
    group: str | None = None
    """column or key by whose equal values pictures mean the same (default: the first text)"""
    concept: str | None = None
    """column or key of what is held out together (default: the group)"""

    @field_validator("text", mode="before")
    @classmethod
    def _commas_make_a_list(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class ContrastAugmentRecipe(Strict):
    """What training shows of a picture; each is done on the training device, a batch at a time."""

    flip: bool = False
    """mirror every other picture: not where texts say left or right"""
    shift: Annotated[int, Field(ge=0)] = 0
    """greatest shift each way in pixels"""
    crop_scale: Pair | None = None
    """least and greatest share of a picture's area that a crop shows"""
    zoom_out: Annotated[float, Field(ge=1, le=2), Number] = 1.0
    """greatest factor by which what a crop shows is widened; outside of a picture its edge goes on"""
    colour: Share = 0.0
    """range of the factors of brightness, contrast and saturation"""
    randaugment: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """[operations, magnitude 0..10] of RandAugment"""
    erasing: Share = 0.0
    """probability that a rectangle is filled with noise"""


class ContrastObjectiveRecipe(Strict):
    """What is learnt."""

    loss: Literal["infonce", "siglip"] = "infonce"
    """infonce: which text of the batch is a picture's, and the reverse (CLIP); siglip: whether each pair is one"""
    image_weight: Annotated[float, Field(ge=0), Number] = 0.0
    """weight of telling, among all pictures of the batch, another of the same group, or the same picture seen once more
    where it is the only one; half of each batch are then such mates (SupCon, arXiv 2004.11362)"""
    templates: list[str] = Field(default_factory=lambda: ["{}"], min_length=1)
    """sentences with {} where the text belongs, one of which is drawn for each; held-out texts stand in the first"""

    @field_validator("templates")
    @classmethod
    def _one_place_each(cls, value: list[str]) -> list[str]:
        for template in value:
            if template.count("{}") != 1:
                raise ValueError(f"objective.templates: {template!r} must have one {{}}, where the text belongs")
        return value


class ContrastRecipe(PictureRecipe):
    """Learning a space that pictures and texts share."""

    task: Literal["contrast"]
    model: ContrastModelRecipe = Field(default_factory=ContrastModelRecipe)
    data: ContrastDataRecipe
    augment: ContrastAugmentRecipe = Field(default_factory=ContrastAugmentRecipe)
    objective: ContrastObjectiveRecipe = Field(default_factory=ContrastObjectiveRecipe)

    @model_validator(mode="after")
    def _others_to_tell_from(self) -> ContrastRecipe:
        if self.train.batch_size < 2:
            raise ValueError("train.batch_size=1 has no other pairs to tell one from; give 2 or more")
        if self.objective.image_weight and self.train.batch_size % 2:
            raise ValueError(
                f"train.batch_size={self.train.batch_size}: with objective.image_weight each picture has a mate in the "
                f"batch; give an even number"
            )
        return self

    @model_validator(mode="after")
    def _bases_bring_their_own(self) -> ContrastRecipe:
        m = self.model
        if self.base is not None:
            if name := next(iter(_given(m, ("text", "image"))), None) or _first_given(m):
                raise ValueError(f"base={self.base} brings its own network; leave model.{name} out, or base")
            return self
        for part, base, free in (
            ("text", m.text_base, ("context", "pooling")),
            ("image", m.image_base, ("image_size",)),
        ):
            if base is not None and (name := next(iter(_given(getattr(m, part), free)), None)):
                raise ValueError(
                    f"model.{part}_base={base} brings its own tower; leave model.{part}.{name} out, or that base"
                )
        if m.dropout and m.text_base and m.image_base:
            raise ValueError("model.dropout is for towers without a base; leave it out")
        for part in ("text", "image"):
            tower = getattr(m, part)
            if tower.hidden_size % tower.num_attention_heads:
                raise ValueError(
                    f"model.{part}.hidden_size={tower.hidden_size} is not a multiple of "
                    f"model.{part}.num_attention_heads={tower.num_attention_heads}"
                )
        return self

    @model_validator(mode="after")
    def _ranks_hold_the_whole(self) -> ContrastRecipe:
        if self.parallel.shard > 1:
            raise ValueError(
                f"parallel.shard={self.parallel.shard}: each rank holds the whole of a contrastive model; leave it out"
            )
        return self


def _given(part: Strict, free: tuple[str, ...]) -> list[str]:
    """The keys that have another value than their default, without those that are free."""
    default = type(part)()
    return [
        name for name in type(part).model_fields if name not in free and getattr(part, name) != getattr(default, name)
    ]


def _first_given(model: ContrastModelRecipe) -> str | None:
    """The first key of a tower that has another value than its default, of those that a base brings."""
    free = {"text": ("context",), "image": ("image_size",)}
    return next((f"{part}.{name}" for part in free for name in _given(getattr(model, part), free[part])), None)
