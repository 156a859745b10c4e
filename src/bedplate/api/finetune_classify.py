"""Fine-tuning of a text classifier."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from bedplate.api.finetune_run import FinetuneRun
from bedplate.api.folders import cache_folder
from bedplate.api.record import write_finetune_report
from bedplate.compression.distil import Teacher, read_unlabelled, with_labels
from bedplate.data.apart import USES
from bedplate.data.duplicates import near_duplicates
from bedplate.data.examples import Reading, Rows, SortedEvalLoader, SortedLoader
from bedplate.data.labelled import LabelledTexts, read_labelled, split_labelled
from bedplate.data.loader import prefetch
from bedplate.data.sources import shown
from bedplate.data.tokenizer import save_tokenizer, tokenizer_config
from bedplate.errors import InputError
from bedplate.metrics.classification import confusion_matrix
from bedplate.models.classifier import Classifier
from bedplate.tasks.classify import Classify, as_predictions, mistakes
from bedplate.train.log import RunLog, write_whole
from bedplate.train.loop import Data, Trainer


class ClassifyRun(FinetuneRun):
    """A classifier from a base model and labelled texts."""

    module: Classifier
    task: Classify
    scored: Mapping[str, Any] = MappingProxyType({})  # what `score` found
    teacher_fingerprint: str | None = None

    def prepare(self, log: RunLog) -> None:
        self.base = base = self.load_base()
        config = dict(base.tokenizer_config) or tokenizer_config(self.tokenizer, self.context)
        self.reading = Reading(self.length, self.recipe.data.max_tokens)
        base.tokenizer_config = config | self.reading.to_config()
        self.timed("data", lambda: self._read(log))
        if self.recipe.teacher.model is not None:
            self.timed("teacher", lambda: self._ask_teacher(log))
        recipe = self.recipe.model
        is_causal = None if recipe.attention == "base" else recipe.attention == "causal"
        module = Classifier.of(base.module, self.classes, recipe.pooling, dropout=recipe.dropout, is_causal=is_causal)
        if module.score.weight.any():
            log.say("The base is a classifier of the same labels: its scores go on from where they were.")
        self.adapt(module, log)
        self.task = Classify(self.module)

    def _read(self, log: RunLog) -> None:
        """Read the examples, keep what is scored apart from what is trained on, and say what was found."""
        data = self.recipe.data
        whole = read_labelled(data.path, data.column, data.label)
        self.classes = whole.classes
        other = partial(read_labelled, column=whole.column, label=whole.label, classes=self.classes)
        test = other(data.test_path) if data.test_path else None
        train, near = (whole, 0) if test is None else without_duplicates(whole, test)
        val: LabelledTexts | None = None
        if data.val_path:
            val = other(data.val_path)
            if test is not None:  # what chooses the epoch must not be what is scored at the end
                found = set(near_duplicates(val.texts, test.texts).tolist())
                if len(found) == len(val):
                    raise InputError(
                        "data.val_path: all its texts are near-duplicates of those in data.test_path; give others"
                    )
                val, near = val.select([i for i in range(len(val)) if i not in found]), near + len(found)
        elif data.val_fraction:
            train, val = split_labelled(train, data.val_fraction, self.recipe.seed)
        if val is not None:
            train, more = without_duplicates(train, val)
            near += more
        self.parts = {"train": train} | ({"val": val} if val else {}) | ({"test": test} if test else {})
        self.rows = {name: self.encode(part.texts, part.labels) for name, part in self.parts.items()}
        self.found = {
            "column": whole.column,
            "label": whole.label,
            "classes": self.classes,
            **{name: len(part) for name, part in self.parts.items()},
            "dropped": dict(whole.dropped),
            "near_duplicates": near,
            "windowed": sum(rows.windowed for rows in self.rows.values()),
            "truncated": sum(rows.truncated for rows in self.rows.values()),
        }
        for line in [*said(self.found, self.length), *whole.doubts()]:
            log.say(line)

    def encode(self, texts: Sequence[str], labels: Sequence[str]) -> Rows:
        """Texts as rows; those beyond the labels have none."""
        index = {label: number for number, label in enumerate(self.classes)}
        numbers = [index[label] for label in labels] + [-1] * (len(texts) - len(labels))
        return self.reading.rows(self.tokenizer, texts, numbers)

    def _ask_teacher(self, log: RunLog) -> None:
        """Put the teacher's word on what is trained on, and add its texts without labels to that."""
        recipe, train = self.recipe.teacher, self.parts["train"]
        teacher = Teacher(recipe, self.classes, self.hardware, cache_folder() / "teacher")  # not kept: it may be large
        more = read_unlabelled(recipe, train.column)
        known = {text for part in self.parts.values() for text in part.texts}
        scored = [text for name, part in self.parts.items() if name != "train" for text in part.texts]
        near = set(near_duplicates(more, scored).tolist())
        kept = [i for i, text in enumerate(more) if i not in near and text not in known]
        if recipe.path and not kept:
            raise InputError(
                f"{shown(recipe.path)}: no text is left to learn from the teacher alone, for all have labels or nearly "
                "repeat what is scored; give others, or leave teacher.path out"
            )
        log.say(f"The teacher, {recipe.model}, reads {len(train) + len(more):,} texts, or has read them.")
        told = np.concatenate([teacher.probabilities(train.texts, log.say), teacher.probabilities(more, log.say)[kept]])
        self.teacher_fingerprint = teacher.fingerprint
        rows = self.encode([*train.texts, *(more[i] for i in kept)], train.labels)
        self.rows["train"] = replace(rows, targets=with_labels(told, rows.labels, recipe.weight))
        self.found |= {"unlabelled": len(kept), "near_duplicates": self.found["near_duplicates"] + len(near)}
        agree = np.mean(told[: len(train)].argmax(1) == rows.labels[: len(train)])
        log.say(f"It is of the label's opinion on {agree:.1%} of the {len(train):,} texts with labels.")
        if recipe.path:
            left = f"; {len(near):,} that nearly repeat scored ones are left out" if near else ""
            log.say(f"{len(kept):,} texts without labels are learnt by its word alone{left}.")

    def trainer(self, log: RunLog) -> Trainer:
        loader = SortedLoader(self.rows["train"], self.recipe.train.batch_size, self.recipe.seed)
        most = self.recipe.train.micro_batch_size
        val = SortedEvalLoader(self.rows["val"], most=most) if "val" in self.rows else None
        data = Data(
            partial(prefetch, loader, pin=self.hardware.device.type == "cuda"), None if val is None else val.__iter__
        )
        return self.make_trainer(self.task, data, loader.steps_per_epoch, log)

    def best_metric(self) -> tuple[str, str]:
        metric = self.recipe.evaluate.metric or "accuracy"
        return metric, self.task.metrics.get(metric, "min")

    def facts(self) -> list[dict[str, Any]]:
        return [{"fingerprint": self.fingerprint(), **self.foreign_facts(), **self.found}]

    def foreign_facts(self) -> dict[str, str]:
        taught = self.teacher_fingerprint
        return super().foreign_facts() | ({} if taught is None else {"teacher_fingerprint": taught})

    def save_tokenizer(self, directory: Path) -> None:
        save_tokenizer(self.tokenizer, directory, self.context, self.base.tokenizer_config)

    def score(self) -> None:
        """Score the model once: on the test texts where there are any, else in detail on the held-out ones."""
        name = "test" if "test" in self.rows else "val"
        if name not in self.rows:
            return
        logits, labels = self.task.logits(SortedEvalLoader(self.rows[name]))
        predictions = as_predictions(logits, self.classes)
        matrix = confusion_matrix(labels.numpy(), logits.argmax(1).numpy(), len(self.classes))
        self.scored = {
            "on": name,
            "metrics": self.task.measure(logits, labels),
            "confusion": matrix.tolist(),
            "mistakes": mistakes(self.parts[name].texts, self.parts[name].labels, predictions),
        }
        write_whole(self.out / "scored.json", json.dumps(self.scored, indent=2, ensure_ascii=False))

    def record(self) -> dict[str, Any]:
        record = super().record() | {
            "classes": self.classes,
            "pooling": self.module.pooling,
            "family": self.module.config.family,
        }
        if self.scored:  # not before the model is trained: what is on the disk may be of an earlier one
            record |= {key: self.scored[key] for key in ("confusion", "mistakes")}
            if self.scored["on"] == "test":
                record["test"] = {"metrics": self.scored["metrics"], "n": len(self.parts["test"])}
        return record

    def write_report(self, record: dict[str, Any]) -> None:
        write_finetune_report(self.out, record, self.timings)


def without_duplicates(train: LabelledTexts, scored: LabelledTexts) -> tuple[LabelledTexts, int]:
    """`train` without its near-duplicates of texts that are scored, and their number.

    Raises:
        InputError: a label has no other texts.
    """
    found = near_duplicates(train.texts, scored.texts)
    kept = train.select(np.setdiff1d(np.arange(len(train)), found))
    left = set(kept.labels)
    if lost := next((label for label in train.classes if label not in left), None):
        raise InputError(
            f"no example of the label {lost!r} is left to train on once near-duplicates of scored texts are removed; "
            "give more examples of it"
        )
    return kept, len(found)


def said(found: dict[str, Any], length: int) -> list[str]:
    """What was found in the examples, as sentences."""
    counts = ", ".join(f"{found[name]:,} {use}" for name, use in USES.items() if name in found)
    classes = ", ".join(found["classes"][:12]) + (", ..." if len(found["classes"]) > 12 else "")
    lines = [f"Texts from column {found['column']!r}, labels from {found['label']!r} ({classes}): {counts}."]
    if found["dropped"]:
        left_out = ", ".join(f"{count:,} {what}" for what, count in found["dropped"].items())
        lines.append(f"Left out: {left_out}.")
    if found["near_duplicates"]:
        near = found["near_duplicates"]
        lines.append(f"{near:,} near-duplicates of texts that are scored were removed.")
    if found["windowed"]:
        lines.append(
            f"{found['windowed']:,} texts are longer than {length} tokens: each is read in windows, whose mean decides."
        )
    if found["truncated"]:
        lines.append(f"{found['truncated']:,} texts are cut after data.max_tokens.")
    return lines
