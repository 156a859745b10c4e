"""What a recipe of a reader may say: captions of pictures, and answers to questions about them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bedplate.recipe.pictures import PictureDataRecipe, PictureRecipe
from bedplate.recipe.schema import Count, Paths, Positive, Share, Strict, TokenizerRecipe


class ReaderVisionRecipe(Strict):
    """What reads a picture. With `vision_base` only `image_size` may be given."""

    patch_size: Positive = 8
    """side of a patch in pixels"""
    hidden_size: Positive = 160
    """width of the residual stream"""
    num_hidden_layers: Positive = 4
    """number of blocks"""
    num_attention_heads: Positive = 5
    """heads of a block"""
    stem: Literal["patch", "conv", "residual"] = "conv"
    """conv: 3x3 convolutions of stride 2; residual: a small residual network; patch: a linear product, ViT's own"""
    image_size: Positive | None = None
    """side of the square that a picture is brought to, in pixels (default: the base's, else 64)"""


class ReaderLanguageRecipe(Strict):
    """What reads the question and writes. With `text_base` its sizes may not be given."""

    preset: Literal["qwen3", "llama", "gpt2"] = "qwen3"
    """architecture"""
    hidden_size: Positive = 192
    """width of the residual stream"""
    num_hidden_layers: Positive = 4
    """number of blocks"""
    num_attention_heads: Positive = 6
    """heads of a block"""
    context: Positive = 64
    """tokens of a question and its answer at most, or of a caption"""


class ReaderModelRecipe(Strict):
    """The network."""

    vision: ReaderVisionRecipe = Field(default_factory=ReaderVisionRecipe)
    language: ReaderLanguageRecipe = Field(default_factory=ReaderLanguageRecipe)
    connector: Literal["linear", "mlp"] = "linear"
    """from the one to the other: one product, or two with a GELU between them"""
    freeze_vision: bool = False
    """whether what reads pictures stays as the base has it"""
    dropout: Share = 0.0
    """of the language model, on embeddings, attention and residual branches"""


class ReaderTokenizerRecipe(TokenizerRecipe):
    """An existing tokenizer, or one trained on questions and answers."""

    vocab_size: Positive = 1024
    """entries of the tokenizer that is trained"""


class AnswerDataRecipe(PictureDataRecipe):
    """Pictures with questions and their answers, or with captions, or both."""

    path: Paths
    """questions: csv, jsonl, parquet, easy-vqa's folder, VQA v2's JSON; captions: a WebDataset tar, COCO's captions, a
    folder with a .txt for each picture; a string or a list"""
    val_fraction: Share = 0.1
    """share of pictures held out, with all their questions"""
    image: str | None = None
    """column of the picture or its path (default: guessed)"""
    question: str | None = None
    """column of the question (default: guessed)"""
    answer: str | None = None
    """column of the answer, a string or a list of them, or of the caption (default: guessed)"""
    kind: str | None = None
    """column of the kind of question, for tables (default: guessed)"""
    questions_per_picture: Positive | None = 8
    """questions of a picture in one step, drawn anew each time (null: all)"""


class AnswerAugmentRecipe(Strict):
    """What training shows of a picture. What the texts speak of must stay true."""

    flip: bool = False
    """mirror every other picture: not where texts say left or right, or pictures show writing"""
    shift: Count = 0
    """greatest shift each way in pixels"""
    colour: Share = 0.0
    """range of the factors of brightness, contrast and saturation: not where texts say colours"""


class AnswerRecipe(PictureRecipe):
    """Training a reader."""

    task: Literal["answer"] = "answer"
    """what is learnt: answers to questions about pictures, and captions"""
    base: str | None = None
    """a reader to go on from: a model directory, a run directory, zoo:NAME or hf:ORG/NAME"""
    vision_base: str | None = None
    """a model whose part that reads pictures is the start: a ViT, MAE, CLIP, detector or reader (null: from scratch)"""
    text_base: str | None = None
    """a language model that is the start of what writes, with its tokenizer (null: from scratch)"""
    model: ReaderModelRecipe = Field(default_factory=ReaderModelRecipe)
    tokenizer: ReaderTokenizerRecipe = Field(default_factory=ReaderTokenizerRecipe)
    data: AnswerDataRecipe
    augment: AnswerAugmentRecipe = Field(default_factory=AnswerAugmentRecipe)

    @model_validator(mode="after")
    def _agrees(self) -> AnswerRecipe:
        if self.base is not None:
            for key in ("vision_base", "text_base"):
                if getattr(self, key) is not None:
                    raise ValueError(f"base={self.base} is a whole reader; leave {key} out, or base")
        for section, bases, own in (
            ("model.vision", ("base",), _changed(self.model.vision)),
            ("model.vision", ("vision_base",), _changed(self.model.vision) - {"image_size"}),
            ("model.language", ("base", "text_base"), _changed(self.model.language)),
            ("tokenizer", ("base", "text_base"), _changed(self.tokenizer)),
        ):
            base = next((name for name in bases if getattr(self, name) is not None), None)
            if base and own:
                raise ValueError(
                    f"{base}={getattr(self, base)} brings its own network; leave {section}.{sorted(own)[0]} out, or "
                    f"{base}"
                )
        if self.base is not None and self.model.connector != "linear":
            raise ValueError(f"base={self.base} brings its own network; leave model.connector out, or base")
        if self.model.freeze_vision and self.base is None and self.vision_base is None:
            raise ValueError(
                "model.freeze_vision keeps what a base has learnt; give vision_base or base, or leave it out"
            )
        if self.parallel.shard > 1:  # ranks write as many answers as each has wrong, and would wait for each other
            raise ValueError(
                f"parallel.shard={self.parallel.shard}: each rank holds the whole of a reader; leave it out"
            )
        return self


def _changed(section: Strict) -> set[str]:
    """The keys of a section that are not as by default."""
    fields = type(section).model_fields
    return {name for name in section.model_fields_set if getattr(section, name) != fields[name].default}
