"""What recipes of all models that see pictures may say: vision, and text and pictures together."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from bedplate.recipe.schema import (
    LoopRecipe,
    OptimizerRecipe,
    ParallelRecipe,
    Paths,
    Positive,
    Rate,
    RunRecipe,
    Share,
    Strict,
)

Fit = Literal["stretch", "cover", "letterbox"]


class PictureDataRecipe(Strict):
    """Pictures: where they are, and which are held out."""

    path: Paths
    """a file or folder, a glob, a URL of a table or archive, hf:org/name, or a list of these"""
    val_path: Paths | None = None
    """pictures that choose the best epoch; without it val_fraction is held out"""
    val_fraction: Share = 0.1
    """share of pictures held out, of each class alike"""
    test_path: Paths | None = None
    """pictures that are scored once, at the end; equal ones are not trained on"""
    fit: Fit | None = None
    """how a picture comes to the model's size: stretched, cropped so that it covers, or with grey borders (default: the
    base's, else stretch; detect: letterbox)"""
    workers: Positive | None = None
    """processes of a rank that decode (default: the cores that it may use, shared by the ranks of a machine)"""
    cache: Path | None = None
    """folder of decoded pictures (default: $BEDPLATE_CACHE, else ~/.cache/bedplate)"""


class PictureTrainRecipe(LoopRecipe):
    """The loop: it ends with `steps` or with `epochs`, whichever is first."""

    steps: Positive | None = None
    """optimizer steps (default: as many as `epochs` are)"""
    epochs: Rate | None = 10.0
    """passes over the pictures"""
    batch_size: Positive = 128
    """pictures a step"""


class PictureOptimizerRecipe(OptimizerRecipe):
    """How weights follow gradients."""

    learning_rate: Rate = 2e-3
    """AdamW's peak learning rate"""
    muon_learning_rate: Rate = 0.01
    """Muon's peak learning rate"""


class PictureEvaluateRecipe(Strict):
    """What is measured on held-out pictures while training."""

    every: Positive | None = None
    """steps between evaluations (default: an epoch)"""
    metric: str | None = None
    """the metric whose best checkpoint is kept (default: the task's first)"""
    patience: Positive | None = None
    """evaluations without a better value after which training stops (null: never)"""


class PictureRecipe(RunRecipe):
    """Training a model that sees pictures. A kind of recipe adds its task, its network and its objective."""

    task: str
    base: str | None = None
    """the pre-trained model: a model directory, a run directory, zoo:NAME or hf:ORG/NAME (null: from scratch)"""
    data: PictureDataRecipe
    train: PictureTrainRecipe = Field(default_factory=PictureTrainRecipe)
    optimizer: PictureOptimizerRecipe = Field(default_factory=PictureOptimizerRecipe)
    parallel: ParallelRecipe = Field(default_factory=ParallelRecipe)
    evaluate: PictureEvaluateRecipe = Field(default_factory=PictureEvaluateRecipe)

    @model_validator(mode="after")
    def _ends_and_fits(self) -> PictureRecipe:
        if self.train.steps is None and self.train.epochs is None:
            raise ValueError("train.steps and train.epochs are both null; give one of them")
        if self.parallel.tensor > 1:
            raise ValueError(
                f"parallel.tensor={self.parallel.tensor}: tensor parallelism is for language models; use shard"
            )
        return self
