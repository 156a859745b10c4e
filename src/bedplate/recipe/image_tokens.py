"""What a recipe of a discrete image tokenizer may say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bedplate.recipe.pictures import PictureDataRecipe, PictureOptimizerRecipe, PictureRecipe
from bedplate.recipe.schema import Number, Positive, Rate, Strict

Weight = Annotated[float, Field(ge=0), Number]
Level = Annotated[int, Field(ge=3, le=256), Number]


class ImageTokensModelRecipe(Strict):
    """The encoder, the codes and the decoder; see `models.image_tokenizer`. A base brings its own."""

    image_size: Positive | list[Positive] = 64
    """side of the square, or [height, width], in pixels"""
    patch_size: Positive = 8
    """side in pixels of what one code stands for, a power of two"""
    levels: list[Level] = Field(default_factory=lambda: [8, 5, 5, 5], min_length=1)
    """values of each dimension of a code; their product is the number of codes"""
    width: Positive = 96
    """channels of the map of codes; a map of twice the resolution has half of them"""
    blocks: Positive = 1
    """residual blocks at each resolution"""

    @field_validator("image_size")
    @classmethod
    def _two_sides(cls, value: int | list[int]) -> int | list[int]:
        if isinstance(value, list) and len(value) != 2:
            raise ValueError(f"model.image_size={value}: give one side in pixels, or [height, width]")
        return value

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        side = self.image_size
        return (side, side) if isinstance(side, int) else (side[0], side[1])


class ImageTokensDataRecipe(PictureDataRecipe):
    """Pictures without labels: a folder, a table, a WebDataset tar, IDX files or hf:org/name."""

    image: str | None = None
    """column of the picture or its path (default: guessed)"""


class ImageTokensAugmentRecipe(Strict):
    """What training shows of a picture."""

    flip: bool = True
    """mirror every other picture"""


class ImageTokensObjectiveRecipe(Strict):
    """How far a picture is from what its codes give, beside the mean squared error."""

    l1_weight: Weight = 1.0
    """weight of the mean absolute error"""
    edge_weight: Weight = 1.0
    """weight of the mean absolute error of differences between neighbours, at three scales"""


class ImageTokensOptimizerRecipe(PictureOptimizerRecipe):
    """How weights follow gradients: AdamW, which is what was measured for encoders and decoders of convolutions."""

    name: Literal["adamw"] = "adamw"
    """AdamW on everything"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """decoupled weight decay of convolutions; vectors have none"""
    learning_rate: Rate = 2e-3
    """AdamW's peak learning rate"""


class ImageTokensRecipe(PictureRecipe):
    """Learning discrete codes of pictures, from scratch or from where a base stands."""

    task: Literal["image_tokens"] = "image_tokens"
    """what is learnt: `image_tokens`, a grid of codes from which a picture can be drawn again"""
    model: ImageTokensModelRecipe = Field(default_factory=ImageTokensModelRecipe)
    data: ImageTokensDataRecipe
    augment: ImageTokensAugmentRecipe = Field(default_factory=ImageTokensAugmentRecipe)
    objective: ImageTokensObjectiveRecipe = Field(default_factory=ImageTokensObjectiveRecipe)
    optimizer: ImageTokensOptimizerRecipe = Field(default_factory=ImageTokensOptimizerRecipe)

    @model_validator(mode="after")
    def _agrees(self) -> ImageTokensRecipe:
        if self.base is not None and self.model != ImageTokensModelRecipe():
            raise ValueError(f"base={self.base} brings its own network; leave `model` out, or base")
        if self.data.test_path is not None:
            raise ValueError("data.test_path is not for task: image_tokens; leave it out")
        if self.parallel.shard > 1:
            raise ValueError(f"parallel.shard={self.parallel.shard}: an image tokenizer is small; leave it out")
        return self
