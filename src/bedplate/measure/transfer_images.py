"""What pre-training brought on pictures: the adapted network, the same from scratch, and two that train no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bedplate.data.augment import ImageAugment
from bedplate.data.image_files import LabelledImages
from bedplate.data.image_loader import ImageEvalLoader, ImageLoader
from bedplate.data.labels import sample_indices
from bedplate.data.pixel_store import PixelStore
from bedplate.hub.image_model import ImageModel
from bedplate.hub.processor import ImageProcessor
from bedplate.hub.vision_directory import encoder_of
from bedplate.measure.comparison import PRETRAINED, SCRATCH, Comparison, steps_of
from bedplate.measure.probe import features, linear_predictions
from bedplate.models.vit import ViT
from bedplate.recipe import VisionRecipe
from bedplate.tasks.classify import as_predictions
from bedplate.tasks.classify_images import ClassifyImages
from bedplate.tasks.pixels import normalize

PROBE, PIXELS = "probe", "pixels"
LEAST_STEPS = 100  # of a training: with few labels, epochs are made more
SCORED_ROWS = 256  # pictures of a batch that is not trained on
SIDE = 16  # pixels a side up to which `PIXELS` reads a picture as it is
PENALTY = 0.1  # of weights that are fitted to one picture a class, of which none can be held out to choose it
SHOWN_MISTAKES = 10


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures with their pixels; broken ones have a number, and are not used.

    Attributes:
        store: the pixels at the network's size.
        larger: those that training crops from, where they are others.
    """

    images: LabelledImages
    store: PixelStore
    larger: PixelStore | None = None

    @property
    def targets(self) -> NDArray[np.int64]:
        """Numbers of the labels of all pictures, `(N,)`."""
        targets = self.images.targets
        assert targets is not None
        return targets

    def labels(self) -> list[str]:
        """The labels of the pictures that are used."""
        assert self.images.labels is not None
        return [self.images.labels[number] for number in self.store.usable]

    def __len__(self) -> int:
        return len(self.store.usable)


class TransferImages(Comparison[NDArray[np.int64]]):
    """A comparison on one set of labelled pictures; a sample is the numbers of its pictures, `(n,)`.

    The linear probe is `probe.linear_predictions` on the states of the frozen base; logistic regression on pixels is
    the same on the pixels themselves, averaged over squares where a picture has more than 16 a side.

    Args:
        processor: what is done to pictures before the network; its size may be another than the base's.
        augment: what training shows of pictures; None shows them as they are.
    """

    def __init__(
        self,
        base: ImageModel,
        processor: ImageProcessor,
        train: Pictures,
        test: Pictures,
        recipe: VisionRecipe,
        augment: ImageAugment | None,
        seeds: int,
        say: Callable[[str], object],
    ) -> None:
        super().__init__(train.images.classes, test.targets[test.store.usable], recipe, seeds, say)
        self.processor, self.train, self.test = processor, train, test
        self.recipe, self.augment = recipe, augment
        encoder = encoder_of(base.module)
        if encoder.config.image_size != processor.size:
            encoder = encoder.with_image_size(processor.size)
        self.encoder = encoder.to(self.hardware.device)
        self.pooling = recipe.model.pooling or encoder.config.pooling
        self.arms = {
            PRETRAINED: f"Adapted from {recipe.base}",
            SCRATCH: "The same network from scratch",
            PROBE: "Linear probe of the frozen base",
            PIXELS: "Logistic regression on pixels",
        }
        self.kept: tuple[ViT, Tensor] | None = None  # adapted from the most labels with the first seed
        self._states = torch.zeros(len(train.images), encoder.config.trunk.hidden_size)  # of the frozen base
        self._is_known = np.zeros(len(train.images), bool)  # whose states have been computed
        self._unseen: dict[str, Tensor] = {}  # what an arm sees of the test pictures

    def sample(self, count: int, seed: int) -> NDArray[np.int64]:
        usable = self.train.store.usable
        return usable if count == len(usable) else usable[sample_indices(self.train.labels(), count, seed)]

    def learn(self, arm: str, sample: NDArray[np.int64], seed: int) -> np.ndarray:
        return self._linear(sample, arm, seed) if arm in (PROBE, PIXELS) else self._network(sample, arm, seed)

    def mistakes(self) -> list[dict[str, Any]]:
        """{"index" among the test pictures, "source", "label", "predicted", "score"}, the surest first."""
        assert self.kept is not None
        predictions = as_predictions(self.kept[1], self.classes)
        wrong = [n for n, prediction in enumerate(predictions) if prediction["label"] != self.classes[self.truth[n]]]
        surest = sorted(wrong, key=lambda n: -predictions[n]["score"])[:SHOWN_MISTAKES]
        return [
            {
                "index": int(self.test.store.usable[n]),
                "source": self.test.images.sources[self.test.store.usable[n]],
                "label": self.classes[self.truth[n]],
                "predicted": predictions[n]["label"],
                "score": predictions[n]["score"],
            }
            for n in surest
        ]

    def _network(self, sample: NDArray[np.int64], arm: str, seed: int) -> np.ndarray:
        """Train the network from the base's weights or from fresh ones; predict the test pictures."""
        recipe = self.recipe
        module = ViT.of(self.encoder, self.classes, pooling=self.pooling, dropout=recipe.model.dropout)
        if arm == SCRATCH:
            module.init_weights(seed)
        elif module.score.weight.any():  # a base of the same labels: few of them are to be learnt, not known
            nn.init.zeros_(module.score.weight)
            nn.init.zeros_(module.score.bias)
        store = self.train.larger or self.train.store
        loader = ImageLoader(self.train.images, recipe.train.batch_size, seed, store, among=sample)
        steps = steps_of(recipe, loader.steps_per_epoch, LEAST_STEPS)
        task = ClassifyImages(
            module,
            self.processor.mean,
            self.processor.std,
            augment=self.augment,
            label_smoothing=recipe.objective.label_smoothing,
        )
        whose = f"{len(sample):,} labels, {self.arms[arm]}"
        self.fit(task, loader, recipe.model_copy(update={"seed": seed}), steps, whose)
        with self.hardware.autocast():
            logits, _ = task.logits(ImageEvalLoader(self.test.images, SCORED_ROWS, self.test.store))
        if arm == PRETRAINED and seed == 0:
            self.kept = module, logits
        return logits.argmax(1).numpy()

    def _linear(self, sample: NDArray[np.int64], arm: str, seed: int) -> np.ndarray:
        """Fit logistic regression to what is known of the pictures; predict the test pictures."""
        read = self._states_of if arm == PROBE else pixels_of
        if arm not in self._unseen:
            self._unseen[arm] = read(self.test.store, self.test.store.usable)
        if arm == PROBE:
            new = sample[~self._is_known[sample]]
            if len(new):
                self._states[new], self._is_known[new] = self._states_of(self.train.store, new), True
            known = self._states[sample]
        else:
            known = pixels_of(self.train.store, sample)
        labels = torch.from_numpy(self.train.targets[sample])
        penalty = PENALTY if labels.bincount().max() < 2 else None
        device = self.hardware.device
        unseen, rows = self._unseen[arm].to(device), (known.to(device), labels.to(device))
        return linear_predictions(rows, unseen, seed, penalty).cpu().numpy()

    def _states_of(self, store: PixelStore, numbers: NDArray[np.int64]) -> Tensor:
        """States of the frozen base `(n, D)`."""
        mean, std = self.processor.mean, self.processor.std
        batches = (normalize(pixels, mean, std) for pixels in _batches(store, numbers))
        return features(self.encoder, batches, self.pooling)


def pixels_of(store: PixelStore, numbers: NDArray[np.int64]) -> Tensor:
    """Pictures as rows of numbers in 0..1, `(n, 3 h w)`, with at most `SIDE` pixels a side."""

    def row(pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        small = min(height, SIDE), min(width, SIDE)
        return F.adaptive_avg_pool2d(pixels.float() / 255, small).flatten(1)

    return torch.cat([row(pixels) for pixels in _batches(store, numbers)])


def _batches(store: PixelStore, numbers: NDArray[np.int64]) -> Iterator[Tensor]:
    for first in range(0, len(numbers), SCORED_ROWS):
        yield torch.from_numpy(store.pixels(numbers[first : first + SCORED_ROWS]))
