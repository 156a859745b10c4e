"""What pre-training brought: the same labels to the adapted model, to its network from scratch, and to a classic."""

from __future__ import annotations

import io
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from bedplate.data.examples import SortedEvalLoader, SortedLoader, encode_rows
from bedplate.data.labelled import LabelledTexts, sample_labelled
from bedplate.data.loader import prefetch
from bedplate.errors import InputError, Interrupted
from bedplate.hub.model import Model
from bedplate.metrics.classification import confusion_matrix, macro_f1
from bedplate.metrics.intervals import grid_difference, grid_interval
from bedplate.models.classifier import Classifier
from bedplate.recipe import FinetuneRecipe
from bedplate.tasks.classify import Classify, as_predictions, mistakes
from bedplate.train.hardware import choose_hardware
from bedplate.train.log import RunLog
from bedplate.train.loop import Data, Trainer

PRETRAINED, SCRATCH, TFIDF = "pretrained", "scratch", "tfidf"
LONGEST = 256  # tokens of a row, as in fine-tuning: longer texts are read in windows
LEAST_STEPS = 100  # of a fine-tuning: with few labels, epochs are made more


@dataclass
class Arm:
    """What one way of learning did with one number of labels."""

    predicted: list[np.ndarray] = field(default_factory=list)  # of each seed, (N,) label numbers
    seconds: list[float] = field(default_factory=list)


class Transfer:
    """A comparison on one set of labelled texts.

    For each number of labels and each seed, all arms learn from the same sample (samples of one seed are nested) and
    are scored on the same test texts. No arm sees other labels: there is no validation set, so the number of epochs is
    fixed ahead. Intervals of accuracy resample test texts and, with several seeds, seeds; those of macro-F1 are the
    mean of the seeds' intervals over test texts.
    """

    def __init__(
        self,
        base: Model,
        train: LabelledTexts,
        test: LabelledTexts,
        recipe: FinetuneRecipe,
        seeds: int,
        say: Callable[[str], object],
    ) -> None:
        self.base, self.train, self.test, self.recipe, self.seeds, self.say = base, train, test, recipe, seeds, say
        self.classes = train.classes
        self.number = {label: number for number, label in enumerate(self.classes)}
        self.truth = np.array([self.number[label] for label in test.labels])
        self.hardware = choose_hardware(recipe.train)
        self.length = min(recipe.train.sequence_length or LONGEST, base.config.max_position_embeddings)
        self.test_rows = self._rows(test)
        self.arms = {
            PRETRAINED: f"Adapted from {recipe.base}",
            SCRATCH: "The same network from scratch",
            TFIDF: "TF-IDF + logistic regression",
        }
        if find_spec("sklearn") is None:
            del self.arms[TFIDF]
            say('TF-IDF is left out: it needs scikit-learn (pip install "bedplate[quickstart]").')
        self.cells: dict[tuple[int, str], Arm] = {}
        self.kept: tuple[Classifier, Tensor] | None = None  # adapted from the most labels with the first seed

    def run(self, counts: Sequence[int]) -> None:
        """Fill the cells of all arms for these numbers of labels."""
        for count in counts:
            for seed in range(self.seeds):
                sample = self.train if count == len(self.train) else sample_labelled(self.train, count, seed)
                for arm in self.arms:
                    started = time.perf_counter()
                    predicted = self._tfidf(sample) if arm == TFIDF else self._network(sample, arm, seed)
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
            "base": self.recipe.base,
            "classes": self.classes,
            "seeds": self.seeds,
            "arms": self.arms,
            "rows": rows,
            "differences": differences,
            "majority": float(np.bincount(self.truth).max() / len(self.truth)),
            "confusion": {"labels": counts[-1], "arm": PRETRAINED, "matrix": matrix.tolist()},
            "mistakes": self._mistakes(),
        }

    def _rows(self, part: LabelledTexts) -> Any:
        assert self.base.tokenizer is not None
        labels = [self.number[label] for label in part.labels]
        return encode_rows(self.base.tokenizer, part.texts, labels, self.length, framed=self.base.config.is_encoder)

    def _network(self, sample: LabelledTexts, arm: str, seed: int) -> np.ndarray:
        """Fine-tune the network from the base's weights or from fresh ones; predict the test texts."""
        recipe = self.recipe
        model = recipe.model
        is_causal = None if model.attention == "base" else model.attention == "causal"
        module = Classifier.of(
            self.base.module, self.classes, model.pooling, dropout=model.dropout, is_causal=is_causal
        )
        if arm == SCRATCH:
            module.init_weights(seed)
        count = len(sample)
        loader = SortedLoader(self._rows(sample), recipe.train.batch_size, seed)
        epochs = math.inf if recipe.train.epochs is None else recipe.train.epochs
        steps = int(min(recipe.train.steps or math.inf, max(LEAST_STEPS, epochs * loader.steps_per_epoch)))
        task = Classify(module)
        with tempfile.TemporaryDirectory() as folder:
            log = RunLog(Path(folder), recipe.log, Console(file=io.StringIO()))
            trainer = Trainer(
                recipe.model_copy(update={"seed": seed}),
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
                raise InputError(f"{count:,} labels, {self.arms[arm]}: {reason}; lower the learning rate") from None
        with self.hardware.autocast():
            logits, _ = task.logits(SortedEvalLoader(self.test_rows))
        if arm == PRETRAINED and seed == 0:
            self.kept = module, logits
        return logits.argmax(1).numpy()

    def _tfidf(self, sample: LabelledTexts) -> np.ndarray:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        # One and two words, as good as or better than one alone on the sentences that this was tried on.
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        classic = make_pipeline(words, LogisticRegression(C=10, max_iter=1000))
        try:
            classic.fit(sample.texts, sample.labels)
        except ValueError as error:
            if "empty vocabulary" not in str(error):
                raise
            self.say("TF-IDF found no word of two letters in the texts; it says the most frequent label.")
            most = max(self.classes, key=sample.labels.count)
            return np.full(len(self.truth), self.number[most])
        return np.array([self.number[label] for label in classic.predict(self.test.texts)])

    def _macro_f1(self, cell: Arm) -> dict[str, float]:
        """The mean over seeds of F1 and of both ends of its interval over test texts."""
        seeds = [macro_f1(self.truth, predicted, len(self.classes)) for predicted in cell.predicted]
        return {key: float(np.mean([seed[key] for seed in seeds])) for key in ("value", "low", "high", "n")}

    def _mistakes(self) -> list[dict[str, Any]]:
        assert self.kept is not None
        predictions = as_predictions(self.kept[1], self.classes)
        return mistakes(self.test.texts, self.test.labels, predictions)
