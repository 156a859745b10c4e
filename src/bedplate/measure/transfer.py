"""What pre-training brought: the same labels to the adapted model, to its network from scratch, and to a classic."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from torch import Tensor

from bedplate.data.examples import Reading, SortedEvalLoader, SortedLoader
from bedplate.data.labelled import LabelledTexts, sample_labelled
from bedplate.hub.model import Model
from bedplate.measure.comparison import PRETRAINED, SCRATCH, Comparison, steps_of
from bedplate.models.classifier import Classifier
from bedplate.recipe import FinetuneRecipe
from bedplate.tasks.classify import Classify, as_predictions, mistakes

TFIDF = "tfidf"
LONGEST = 256  # tokens of a row, as in fine-tuning: longer texts are read in windows
LEAST_STEPS = 100  # of a fine-tuning: with few labels, epochs are made more


class Transfer(Comparison[LabelledTexts]):
    """A comparison on one set of labelled texts."""

    def __init__(
        self,
        base: Model,
        train: LabelledTexts,
        test: LabelledTexts,
        recipe: FinetuneRecipe,
        seeds: int,
        say: Callable[[str], object],
    ) -> None:
        self.base, self.train, self.test, self.recipe = base, train, test, recipe
        self.number = {label: number for number, label in enumerate(train.classes)}
        truth = np.array([self.number[label] for label in test.labels])
        super().__init__(train.classes, truth, recipe, seeds, say)
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
        self.kept: tuple[Classifier, Tensor] | None = None  # adapted from the most labels with the first seed

    def sample(self, count: int, seed: int) -> LabelledTexts:
        return self.train if count == len(self.train) else sample_labelled(self.train, count, seed)

    def learn(self, arm: str, sample: LabelledTexts, seed: int) -> np.ndarray:
        return self._tfidf(sample) if arm == TFIDF else self._network(sample, arm, seed)

    def mistakes(self) -> list[dict[str, Any]]:
        assert self.kept is not None
        predictions = as_predictions(self.kept[1], self.classes)
        return mistakes(self.test.texts, self.test.labels, predictions)

    def _rows(self, part: LabelledTexts) -> Any:
        assert self.base.tokenizer is not None
        labels = [self.number[label] for label in part.labels]
        return Reading(self.length).rows(self.base.tokenizer, part.texts, labels)

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
        loader = SortedLoader(self._rows(sample), recipe.train.batch_size, seed)
        steps = steps_of(recipe, loader.steps_per_epoch, LEAST_STEPS)
        task = Classify(module)
        whose = f"{len(sample):,} labels, {self.arms[arm]}"
        self.fit(task, loader, recipe.model_copy(update={"seed": seed}), steps, whose)
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
