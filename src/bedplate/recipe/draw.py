"""What a recipe of a model that draws may say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bedplate.recipe.pictures import PictureDataRecipe, PictureRecipe
from bedplate.recipe.schema import Count, Paths, Positive, Share, Strict


class DrawModelRecipe(Strict):
    """The network: blocks in the shape of Qwen3. A base brings its own."""

    hidden_size: Positive = 256
    """width of the residual stream"""
    num_hidden_layers: Positive = 6
    """number of blocks"""
    num_attention_heads: Positive = 4
    """heads of a block"""
    intermediate_size: Positive | None = None
    """inner width of the MLP (default: 8/3 hidden sizes)"""
    text_length: Annotated[int, Field(ge=2)] = 24
    """tokens of a text, its end token included; what is longer loses its end in training, and is refused in drawing"""
    vocab_size: Positive = 2048
    """tokens of the tokenizer, which is trained on the texts; fewer where they hold fewer"""
    text_base: str | None = None
    """a language model of the same hidden_size whose tokenizer and token embeddings the text begins with"""
    dropout: Share = 0.1
    """dropout on embeddings, attention and residual branches"""


class DrawDataRecipe(PictureDataRecipe):
    """Pictures with texts: where they are, and which are held out."""

    path: Paths
    """WebDataset tar, csv, jsonl, parquet, COCO captions, a folder of pictures with .txt beside them, hf:org/name"""
    val_fraction: Share = 0.0
    """share of pictures held out, all pictures of a group together"""
    image: str | None = None
    """column of the picture or its path (default: guessed)"""
    text: list[str] | None = None
    """columns or keys of the texts, as name,keywords: the first is a name or caption (default: guessed)"""
    group: str | None = None
    """column or key by whose equal values pictures mean the same (default: the first text)"""
    hold_out: Count = 0
    """names of two parts, such as "woman judge: dark skin tone", that are held out; each part is seen in others"""

    @field_validator("text", mode="before")
    @classmethod
    def _commas_make_a_list(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class DrawObjectiveRecipe(Strict):
    """What is learnt."""

    text_drop: Share = 0.1
    """probability that a text is hidden, which guidance needs when the model draws"""
    templates: list[str] = Field(default_factory=lambda: ["{}"], min_length=1)
    """sentences with {} where the text belongs, one of which is drawn for each; held-out texts stand in the first"""

    @field_validator("templates")
    @classmethod
    def _one_place_each(cls, value: list[str]) -> list[str]:
        for template in value:
            if template.count("{}") != 1:
                raise ValueError(f"objective.templates: {template!r} must have one {{}}, where the text belongs")
        return value


class DrawRecipe(PictureRecipe):
    """Learning to draw pictures from texts, by the codes of an image tokenizer."""

    task: Literal["draw"]
    """what is learnt: `draw`, the codes of a picture from its text"""
    tokenizer_base: str | None = None
    """the image tokenizer (task: image_tokens), or a model that draws, for its own: a model or run directory, zoo:NAME
    or hf:ORG/NAME; a base has its own"""
    model: DrawModelRecipe = Field(default_factory=DrawModelRecipe)
    data: DrawDataRecipe
    objective: DrawObjectiveRecipe = Field(default_factory=DrawObjectiveRecipe)

    @model_validator(mode="after")
    def _agrees(self) -> DrawRecipe:
        if (self.base is None) == (self.tokenizer_base is None):
            raise ValueError(
                "give either tokenizer_base, an image tokenizer that is learnt first (task: image_tokens), or base, a "
                "model that draws"
            )
        if self.base is not None and self.model != DrawModelRecipe():
            raise ValueError(f"base={self.base} brings its own network; leave `model` out, or base")
        if self.model.hidden_size % self.model.num_attention_heads:
            raise ValueError(
                f"model.hidden_size={self.model.hidden_size} is not a multiple of "
                f"model.num_attention_heads={self.model.num_attention_heads}"
            )
        if self.data.test_path is not None or self.data.fit is not None:
            raise ValueError("data.test_path and data.fit are not for task: draw; leave them out")
        if self.data.val_path is not None and (self.data.hold_out or self.data.val_fraction):
            raise ValueError("data.val_path holds out by itself; leave data.hold_out and data.val_fraction out")
        if self.parallel.shard > 1:
            raise ValueError(f"parallel.shard={self.parallel.shard}: a model that draws is small; leave it out")
        return self
