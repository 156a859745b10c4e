"""Distillation: what a larger classifier says of texts, as targets of a smaller one (arXiv 1503.02531)."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bedplate.data.examples import Reading, SortedEvalLoader
from bedplate.data.labels import listed
from bedplate.data.sources import checked_text, rows
from bedplate.errors import InputError
from bedplate.hub.model import load
from bedplate.models.classifier import Classifier
from bedplate.recipe.finetune import TeacherRecipe
from bedplate.tasks.classify import Classify
from bedplate.train.hardware import Hardware

Probabilities = NDArray[np.float32]

BLOCK = 2**13
"""Texts that are read and kept at one time: what a stopped reading loses at most."""
PATIENCE = 30.0
"""Seconds of reading after which a person wants to hear of it."""


class Teacher:
    """A classifier that reads texts for another, which may be of any family and tokenizer.

    Args:
        classes: the student's labels, in the order of its scores.
        cache: a folder that keeps what it has said.

    Raises:
        InputError: what `load` raises, a model that is no classifier, or one of other labels.
    """

    def __init__(self, recipe: TeacherRecipe, classes: Sequence[str], hardware: Hardware, cache: Path) -> None:
        assert recipe.model is not None
        self.name, self.hardware, self.cache = recipe.model, hardware, cache
        model = load(recipe.model, device=hardware.device, dtype="fp32")
        model.merge_adapter()
        if not isinstance(model.module, Classifier):
            raise InputError(f"teacher.model={self.name} is no classifier; fine-tune it on the same labels first")
        if others := sorted({*model.module.labels} ^ {*classes}):
            raise InputError(
                f"teacher.model={self.name} and the data have other labels: only one of them has {listed(others)}; "
                "give a teacher of the same ones"
            )
        self.module, self.tokenizer = model.module, model.need_tokenizer()
        config = model.config
        self.reading = Reading.of(model.tokenizer_config, config.max_position_embeddings, config.is_encoder)
        self.order = [model.module.labels.index(label) for label in classes]
        self.fingerprint = self._fingerprint()

    def _fingerprint(self) -> str:
        """A hash of all that its word on a text follows from, but for the precision."""
        settings = self.module.config, self.module.pooling, self.reading, self.order
        digest = hashlib.blake2b(f"{settings} {self.tokenizer.to_str()}".encode(), digest_size=16)
        for name, parameter in self.module.named_parameters():
            digest.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def probabilities(self, texts: Sequence[str], say: Callable[[str], object] = lambda line: None) -> Probabilities:
        """`(T, C)` of texts, of a long one by the mean logits of its windows; the cache keeps them for other runs.

        Where it takes long, `say` is told now and then how far it is.

        Raises:
            InputError: scores that are not finite.
        """
        parts, last = [np.empty((0, len(self.order)), np.float32)], time.monotonic()
        for start in range(0, len(texts), BLOCK):
            if time.monotonic() - last > PATIENCE:
                last = time.monotonic()
                say(f"The teacher has read {start:,} of {len(texts):,} texts.")
            parts.append(self._block(texts[start : start + BLOCK]))
        return np.concatenate(parts)

    def _block(self, texts: Sequence[str]) -> Probabilities:
        """Of some texts, from the cache or read."""
        digest = hashlib.blake2b(f"{self.fingerprint} {self.hardware.dtype}".encode(), digest_size=16)
        for text in texts:
            digest.update(f"{len(text)} {text}".encode())
        file = self.cache / f"{digest.hexdigest()}.npy"
        if (kept := _kept(file, (len(texts), len(self.order)))) is not None:
            return kept
        encoded = self.reading.rows(self.tokenizer, texts)
        with self.hardware.autocast():
            logits, _ = Classify(self.module).logits(SortedEvalLoader(encoded))
        told: Probabilities = logits.softmax(1).numpy()[:, self.order]
        if not np.isfinite(told).all():
            raise InputError(f"teacher.model={self.name} gives scores that are no numbers; train it again, more gently")
        _keep(file, told)
        return told


def read_unlabelled(recipe: TeacherRecipe, column: str) -> list[str]:
    """The distinct texts of `teacher.path`, in order; rows without one are left out.

    Raises:
        InputError: what `rows` raises, or a column that is not there.
    """
    if recipe.path is None:
        return []
    column, texts = recipe.column or column, dict[str, None]()
    for source, values in rows(recipe.path):
        if column not in values:
            there = listed([*values])
            raise InputError(f"{source}: no column '{column}' among {there}; name that of the texts by teacher.column")
        if values[column] is not None and (text := checked_text(source, column, values[column]).strip()):
            texts[text] = None
    return list(texts)


def with_labels(told: Probabilities, labels: NDArray[np.int64], weight: float) -> Probabilities:
    """Targets `(T, C)`: a teacher's word with `weight`, the label with the rest; for -1, no label, the word alone.

    The cross-entropy of such a target is the so weighted sum of both cross-entropies.
    """
    known = labels >= 0
    targets = told.copy()
    targets[known] *= weight
    targets[known, labels[known]] += 1 - weight
    return targets


def _keep(file: Path, told: Probabilities) -> None:
    partial = file.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):  # a folder that cannot be written to costs reading the texts again
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as opened:
                np.save(opened, told)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)  # half of it, on a full disk


def _kept(file: Path, shape: tuple[int, int]) -> Probabilities | None:
    """What an earlier run has found, if it is whole."""
    try:
        values = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return values if values.shape == shape and values.dtype == np.float32 else None
