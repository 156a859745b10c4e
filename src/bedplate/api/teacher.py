"""Distillation: what a larger classifier says of texts, as targets of a smaller one (arXiv 1503.02531)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.api.folders import cache_folder, make_folder
from bedplate.data.examples import Reading, SortedEvalLoader, encode_rows
from bedplate.data.sources import documents
from bedplate.errors import InputError
from bedplate.hub.folder import write_atomic
from bedplate.hub.model import load
from bedplate.models.classifier import Classifier
from bedplate.recipe.finetune import TeacherRecipe
from bedplate.tasks.classify import Classify
from bedplate.train.hardware import Hardware

Probabilities = NDArray[np.float32]


class Teacher:
    """A classifier that reads texts for another, which may be of any family and tokenizer.

    Args:
        classes: the student's labels, in the order of its scores.

    Raises:
        InputError: what `load` raises, a model that is no classifier, or one of other labels.
    """

    def __init__(self, recipe: TeacherRecipe, classes: Sequence[str], hardware: Hardware) -> None:
        assert recipe.model is not None
        self.name, self.hardware = recipe.model, hardware
        model = load(recipe.model, device=hardware.device, dtype="fp32")
        model.merge_adapter()
        if not isinstance(model.module, Classifier):
            raise InputError(f"teacher.model={self.name} is no classifier; fine-tune it on the same labels first")
        if set(model.module.labels) != set(classes):
            raise InputError(
                f"teacher.model={self.name} knows the labels {', '.join(model.module.labels[:12])}, and the data has "
                f"{', '.join(classes[:12])}; give a teacher of the same ones"
            )
        self.module, self.tokenizer = model.module, model.need_tokenizer()
        self.reading = Reading.of(model.tokenizer_config, model.config.max_position_embeddings)
        self.order = [model.module.labels.index(label) for label in classes]

    def probabilities(self, texts: Sequence[str]) -> Probabilities:
        """`(T, C)` of texts, of a long one by the mean logits of its windows; kept in the cache for the next run."""
        file = cache_folder() / "teacher" / f"{self.key(texts)}.npy"
        if (kept := _kept(file, (len(texts), len(self.order)))) is not None:
            return kept
        lengths = self.reading.sequence_length, self.reading.max_tokens
        rows = encode_rows(self.tokenizer, texts, None, *lengths, framed=self.module.config.is_encoder)
        with self.hardware.autocast():
            logits, _ = Classify(self.module).logits(SortedEvalLoader(rows))
        told: Probabilities = logits.softmax(1).numpy()[:, self.order]
        make_folder(file.parent)
        write_atomic(file, lambda path: _write(path, told))
        return told

    def key(self, texts: Sequence[str]) -> str:
        """A hash of all that the probabilities follow from."""
        settings = self.module.config, self.module.pooling, self.reading, self.order, self.hardware.dtype
        digest = hashlib.blake2b(f"{settings} {self.tokenizer.to_str()}".encode(), digest_size=16)
        for name, parameter in self.module.named_parameters():
            digest.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
        for text in texts:
            digest.update(f"{len(text)} {text}".encode())
        return digest.hexdigest()


def read_unlabelled(recipe: TeacherRecipe, column: str, known: Sequence[str]) -> list[str]:
    """The distinct texts of `teacher.path` that are not among the `known` ones, in order."""
    if recipe.path is None:
        return []
    texts = ("".join(document.pieces).strip() for document in documents(recipe.path, recipe.column or column))
    seen = set(known)
    return [text for text in dict.fromkeys(texts) if text and text not in seen]


def with_labels(told: Probabilities, labels: NDArray[np.int64], weight: float) -> Probabilities:
    """Targets `(T, C)`: a teacher's word with `weight`, the label with the rest; for -1, no label, the word alone.

    The cross-entropy of such a target is the so weighted sum of both cross-entropies.
    """
    known = labels >= 0
    targets = told.copy()
    targets[known] *= weight
    targets[known, labels[known]] += 1 - weight
    return targets


def _write(path: Path, values: Any) -> None:
    with path.open("wb") as file:  # np.save would add a suffix to the name
        np.save(file, values)


def _kept(file: Path, shape: tuple[int, int]) -> Probabilities | None:
    """What an earlier run has found, if it is whole."""
    try:
        values = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return values if values.shape == shape and values.dtype == np.float32 else None
