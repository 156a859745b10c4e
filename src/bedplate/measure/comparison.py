"""Ways of learning the same labels, compared: what texts and pictures share."""

from __future__ import annotations

import io
import math
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from rich.console import Console

from bedplate.data.loader import Loader, prefetch
from bedplate.errors import InputError, Interrupted
from bedplate.metrics.classification import confusion_matrix, macro_f1
from bedplate.metrics.intervals import grid_difference, grid_interval
from bedplate.recipe import FinetuneRecipe, VisionRecipe
from bedplate.tasks import Task
from bedplate.train.hardware import choose_hardware
from bedplate.train.log import RunLog
from bedplate.train.loop import Data, Trainer

PRETRAINED, SCRATCH = "pretrained", "scratch"

Sample = TypeVar("Sample")  # what one fit learns from


@dataclass
class Arm:
    """What one way of learning did with one number of labels."""

    predicted: list[np.ndarray] = field(default_factory=list)  # of each seed, (N,) label numbers
    seconds: list[float] = field(default_factory=list)


class Comparison(ABC, Generic[Sample]):
    """A comparison on one set of labelled examples.

    For each number of labels and each seed, all arms learn from the same sample (samples of one seed are nested) and
    are scored on the same test examples. No arm sees other labels: there is no validation set, so the number of epochs
    is fixed ahead. Intervals of accuracy resample test examples and, with several seeds, seeds; those of macro-F1 are
    the mean of the seeds' intervals over test examples.

    Args:
        classes: the labels, in the order of their numbers.
        truth: of each test example, `(N,)` label numbers.
        seeds: how often each number of labels is repeated.
        say: gets messages for a person.

    Attributes:
        arms: {arm: its name for a person}; `PRETRAINED`, the one that the others are compared with, is among them.
        cells: {(number of labels, arm): what it did}.
    """

    arms: dict[str, str]

    def __init__(
        self,
        classes: Sequence[str],
        truth: np.ndarray,
        recipe: FinetuneRecipe | VisionRecipe,
        seeds: int,
        say: Callable[[str], object],
    ) -> None:
        self.classes, self.truth, self.seeds, self.say = list(classes), truth, seeds, say
        self.hardware = choose_hardware(recipe.train)
        self.cells: dict[tuple[int, str], Arm] = {}

    @abstractmethod
    def sample(self, count: int, seed: int) -> Sample:
        """`count` labelled examples to learn from, in the proportions of the classes."""

    @abstractmethod
    def learn(self, arm: str, sample: Sample, seed: int) -> np.ndarray:
        """Learn from the sample, and predict the label numbers of the test examples, `(N,)`."""

    @abstractmethod
    def mistakes(self) -> list[dict[str, Any]]:
        """The surest mistakes of the model adapted from the most labels with the first seed."""

    def run(self, counts: Sequence[int]) -> None:
        """Fill the cells of all arms for these numbers of labels."""
        for count in counts:
            for seed in range(self.seeds):
                sample = self.sample(count, seed)
                for arm in self.arms:
                    started = time.perf_counter()
                    predicted = self.learn(arm, sample, seed)
                    cell = self.cells.setdefault((count, arm), Arm())
                    cell.predicted.append(predicted)
                    cell.seconds.append(time.perf_counter() - started)
                scores = ", ".join(
                    f"{arm} {np.mean(self.cells[count, arm].predicted[-1] == self.truth):.1%}" for arm in self.arms
                )
                self.say(f"{count:>6,} labels, seed {seed}: {scores}")

    def result(self) -> dict[str, Any]:
        """The figures as plain data: see `report.adapt.transfer_sections`."""
        correct = {key: np.stack(cell.predicted) == self.truth for key, cell in self.cells.items()}
        counts = list(dict.fromkeys(count for count, _ in self.cells))
        rows = [
            {
                "labels": count,
                "arm": arm,
                "accuracy": grid_interval(correct[count, arm]),
                "macro_f1": self._macro_f1(cell),
                "by_seed": correct[count, arm].mean(1).tolist(),
                "seconds": float(np.mean(cell.seconds)),
            }
            for (count, arm), cell in self.cells.items()
        ]
        differences = [
            {
                "labels": count,
                "arm": PRETRAINED,
                "over": arm,
                "accuracy": grid_difference(correct[count, PRETRAINED], correct[count, arm]),
            }
            for count in counts
            for arm in self.arms
            if arm != PRETRAINED
        ]
        shown = self.cells[counts[-1], PRETRAINED].predicted[0]
        matrix = confusion_matrix(self.truth, shown, len(self.classes))
        return {
            "classes": self.classes,
            "seeds": self.seeds,
            "arms": self.arms,
            "rows": rows,
            "differences": differences,
            "majority": float(np.bincount(self.truth).max() / len(self.truth)),
            "confusion": {"labels": counts[-1], "arm": PRETRAINED, "matrix": matrix.tolist()},
            "mistakes": self.mistakes(),
        }

    def fit(self, task: Task, loader: Loader, recipe: FinetuneRecipe | VisionRecipe, steps: int, whose: str) -> None:
        """Train the task's module for so many steps, in memory alone; `whose` names the fit in errors.

        Raises:
            InputError: the loss is not finite, or the memory is too small.
            Interrupted: told to stop.
        """
        with tempfile.TemporaryDirectory() as folder:
            log = RunLog(Path(folder), recipe.log, Console(file=io.StringIO()))
            trainer = Trainer(
                recipe,
                task,
                Data(partial(prefetch, loader), None),
                self.hardware,
                None,
                lambda: None,
                log,
                steps=steps,
                evaluate_every=steps,
                metric="accuracy",
            )
            try:
                trainer.run()
            except Interrupted:
                raise Interrupted("Stopped before the comparison was whole; nothing of it is kept.") from None
            except torch.OutOfMemoryError as error:
                remedy = 'give less at one time: transfer(..., settings={"train": {"micro_batch_size": ...}})'
                raise InputError(f"out of memory on {self.hardware.device}; {remedy}") from error
            except InputError as error:  # the loss is not finite, and there is no checkpoint to speak of
                reason = str(error).partition(";")[0]
                raise InputError(f"{whose}: {reason}; lower the learning rate") from None

    def _macro_f1(self, cell: Arm) -> dict[str, float]:
        """The mean over seeds of F1 and of both ends of its interval over test examples."""
        seeds = [macro_f1(self.truth, predicted, len(self.classes)) for predicted in cell.predicted]
        return {key: float(np.mean([seed[key] for seed in seeds])) for key in ("value", "low", "high", "n")}


def steps_of(recipe: FinetuneRecipe | VisionRecipe, steps_per_epoch: int, least: int) -> int:
    """Steps of a fit: of the recipe's epochs, but at least so many, and no more than its steps."""
    epochs = math.inf if recipe.train.epochs is None else recipe.train.epochs
    return int(min(recipe.train.steps or math.inf, max(least, epochs * steps_per_epoch)))
