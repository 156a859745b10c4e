"""`transfer` on texts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bedplate.api.finetune_classify import without_duplicates
from bedplate.api.folders import cache_folder, word
from bedplate.api.transfer_study import TEST_MOST, TEST_SHARE, Asked, Study
from bedplate.data.examples import Reading
from bedplate.data.images import SUFFIXES
from bedplate.data.labelled import LabelledTexts, read_labelled, split_labelled
from bedplate.data.sources import below, content_hash
from bedplate.data.tokenizer import tokenizer_config
from bedplate.errors import InputError
from bedplate.hub.model import Model
from bedplate.measure.transfer import Transfer
from bedplate.models.classifier import Classifier
from bedplate.recipe import read_finetune_recipe


class TextStudy(Study):
    """A language model on labelled texts.

    Raises:
        InputError: a base that writes no text, or texts or settings that are wrong.
    """

    what = "texts"
    sections = ("model", "train", "optimizer", "schedule")

    def __init__(self, model: Model, asked: Asked) -> None:
        settings = {"base": asked.base, "out": str(asked.out), "data": {"path": asked.paths}}
        self.recipe = read_finetune_recipe(asked.sections(self.sections) | settings)
        model.merge_adapter()
        if isinstance(model.module, Classifier):
            model.need_language_model()  # says what a classifier is not
        model.need_tokenizer()
        try:
            train, held_out, self.facts = read_apart(asked.paths, asked.test, asked.column, asked.label)
        except InputError:
            if pictures := next((path for path in asked.paths if _holds_pictures(Path(path))), None):
                raise InputError(
                    f"{pictures}: holds pictures, and {asked.base} is a model of text; give a base that reads pictures"
                ) from None
            raise
        for line in sentences(self.facts):
            asked.say(line)
        self.counts = asked.counts(len(train), len(train.classes), self.what)
        self.base = model
        self.comparison: Transfer = Transfer(model, train, held_out, self.recipe, asked.seeds, asked.say)
        self.facts["windowed"] = windowed = self.comparison.test_rows.windowed
        if windowed:
            longest = self.comparison.length
            asked.say(f"{windowed:,} of the test texts are longer than {longest} tokens and are read in windows.")

    def commands(self, out: Path) -> list[str]:
        column, label = (f"data.{key}={self.facts[key]}" for key in ("column", "label"))
        data = [f"data.path={self.recipe.data.path[0]}", column, label]
        return [
            f'bedplate predict {word(out)}/model "A text of your own"',
            shlex.join(["bedplate", "finetune", "recipes/classify.yaml", f"base={self.recipe.base}", *data]),
        ]

    def card(self) -> dict[str, Any]:
        return {"pooling": self.module.pooling, "family": self.module.config.family}

    def save(self, directory: Path, card: str) -> None:
        of = self.base
        tokenizer, context = of.need_tokenizer(), of.config.max_position_embeddings
        config = dict(of.tokenizer_config) or tokenizer_config(tokenizer, context)
        config |= Reading(self.comparison.length).to_config()
        Model(self.module, of.tokenizer, card, of.special, config).save(directory)

    @property
    def module(self) -> Classifier:
        assert self.comparison.kept is not None
        return self.comparison.kept[0]


def read_apart(
    data: Sequence[str], test: Any, column: str | None, label: str | None
) -> tuple[LabelledTexts, LabelledTexts, dict[str, Any]]:
    """(texts to learn from, texts to score on, what was found); near-duplicates of the latter are not in the former."""
    whole = read_labelled(data, column, label)
    if test is None:
        train, held_out = split_labelled(whole, min(TEST_SHARE, TEST_MOST / len(whole)), seed=0)
    else:
        train, held_out = whole, read_labelled(test, whole.column, whole.label, classes=whole.classes)
    train, near = without_duplicates(train, held_out)
    facts = {
        "path": [Path(path).name for path in data],
        "fingerprint": content_hash(list(data), cache_folder()),
        "column": whole.column,
        "label": whole.label,
        "train": len(train),
        "test": len(held_out),
        "dropped": dict(whole.dropped),
        "near_duplicates": near,
        "doubts": whole.doubts(),
    }
    return train, held_out, facts


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """What was found in the data, for a person."""
    lines = [
        f"Texts from column {facts['column']!r}, labels from {facts['label']!r}: {facts['train']:,} to learn from, "
        f"{facts['test']:,} to score on."
    ]
    if facts["dropped"]:
        lines.append("Left out: " + ", ".join(f"{count:,} {what}" for what, count in facts["dropped"].items()) + ".")
    if facts["near_duplicates"]:
        lines.append(f"{facts['near_duplicates']:,} near-duplicates of test texts were removed from the training.")
    return [*lines, *facts["doubts"]]


def _holds_pictures(path: Path) -> bool:
    files = below(path) if path.is_dir() else [path]
    return any(file.suffix.lower() in SUFFIXES for file in files)
