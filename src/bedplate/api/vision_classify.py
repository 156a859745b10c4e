"""Learning the labels of pictures, from scratch or from a base."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from bedplate.api.picture_run import said_broken
from bedplate.api.vision_report import write_classification_report
from bedplate.api.vision_run import VisionRun
from bedplate.data.apart import USES, keep_apart
from bedplate.data.image_files import (
    LabelledImages,
    fingerprint,
    read_images,
    sample_images,
    split_images,
)
from bedplate.data.image_loader import ImageLoader
from bedplate.data.image_refs import ImageRef
from bedplate.errors import InputError
from bedplate.hub.image_model import ImageModel
from bedplate.metrics.classification import confusion_matrix
from bedplate.models.vit import ViT
from bedplate.tasks.classify import as_predictions
from bedplate.tasks.classify_images import ClassifyImages
from bedplate.train.log import RunLog, write_whole
from bedplate.train.loop import Trainer

SHOWN = 24  # pictures of each kind in the report
LOOKS = 4  # of these are shown with the model's attention


class ClassifyImagesRun(VisionRun):
    """A classifier of pictures."""

    module: ViT
    task: ClassifyImages
    scored: Mapping[str, Any] = MappingProxyType({})  # what `measure` found

    def prepare(self, log: RunLog) -> None:
        recipe = self.recipe
        encoder = self.make_encoder(log)
        self.timed("data", lambda: self.ranks.main_first(lambda: self._read(log)))
        module = ViT.of(
            encoder,
            self.classes,
            pooling=recipe.model.pooling,
            dropout=recipe.model.dropout,
            image_size=self.processor.size,
        )
        if recipe.base is not None and module.score.weight.any():
            log.say("The base is a classifier of the same labels: its scores go on from where they were.")
        self.module = self.placed(module)
        self.task = ClassifyImages(
            self.module,
            self.processor.mean,
            self.processor.std,
            augment=self.augment(),
            label_smoothing=recipe.objective.label_smoothing,
            flip=recipe.evaluate.flip,
            collect=self.ranks.interleave,
        )
        log.say(f"{self.parameters():,} parameters.")

    def _read(self, log: RunLog) -> None:
        """Find the pictures, keep what is scored apart from what is trained on, and say what was found."""
        data, seed = self.recipe.data, self.recipe.seed
        train = read_images(data.path, data.image, data.label)
        if train.labels is None:
            raise InputError(
                f"{data.path[0]}: the pictures have no labels; give a folder for each class, or a table with data.label"
            )
        whole, self.classes = train, train.classes
        parts: dict[str, LabelledImages] = {}
        for name, paths in (("test", data.test_path), ("val", data.val_path)):
            if paths:
                parts[name] = read_images(paths, data.image, data.label, classes=self.classes)
        if "val" not in parts and data.val_fraction:
            train, parts["val"] = split_images(train, data.val_fraction, seed)
        self.parts, same = keep_apart({"train": train, **parts})
        if data.labels is not None:
            self.parts["train"] = sample_images(self.parts["train"], data.labels, seed)
        train = self.parts["train"]
        self.loaders = {name: self.eval_loader(name, self.parts[name]) for name in parts}
        store = self.store("train", train, self.store_size)
        self.loader = ImageLoader(train, self.recipe.train.batch_size, seed, store, *self.shares)
        self.found = {
            "classes": self.classes,
            **self.usable(),
            "dropped": dict(whole.dropped),
            "equal_pictures": same,
            "broken": self.broken(),
        }
        for line in [*said(self.found), *whole.doubts()]:
            log.say(line)

    def trainer(self, log: RunLog) -> Trainer:
        data = self.loader_data(self.loader, self.loaders.get("val"))
        return self.make_trainer(data, self.loader.steps_per_epoch, log)

    def facts(self) -> list[dict[str, Any]]:
        marks = [f"{name}:{fingerprint(part, self.cache)}" for name, part in self.parts.items()]
        return [{"fingerprint": " ".join(marks), **self.found}]

    def measure(self) -> None:
        """Score the model once: on the test pictures where there are any, else in detail on the held-out ones."""
        name = "test" if "test" in self.loaders else "val"
        if name not in self.loaders:
            return
        loader = self.loaders[name]
        logits, labels = self.task.logits(loader)
        probabilities = logits.softmax(1)
        confidence, predicted = (values.numpy() for values in probabilities.max(1))
        truth = labels.numpy()
        shown = self._shown(as_predictions(logits, self.classes), truth, predicted, loader.index)
        self.scored = {
            "on": name,
            "metrics": self.task.measure(logits, labels),
            "confusion": confusion_matrix(truth, predicted, len(self.classes)).tolist(),
            "confidence": confidence.tolist(),
            "correct": (truth == predicted).tolist(),
            "shown": shown,
            "looks": self._looks([row for rows in shown.values() for row in rows[:LOOKS]], self.parts[name].images),
        }
        if self.ranks.is_main:
            write_whole(self.out / "scored.json", json.dumps(self.scored, ensure_ascii=False))

    def _shown(self, predictions: Any, truth: Any, predicted: Any, index: Any) -> dict[str, list[dict[str, Any]]]:
        """Pictures for the report: the surest mistakes, and right ones by chance."""
        wrong = np.flatnonzero(truth != predicted)
        surest = sorted(wrong.tolist(), key=lambda row: -predictions[row]["score"])[:SHOWN]
        right = np.random.default_rng(0).permutation(np.flatnonzero(truth == predicted))[:SHOWN].tolist()
        return {
            kind: [
                {
                    "index": int(index[row]),
                    "label": self.classes[truth[row]],
                    "predicted": predictions[row]["label"],
                    "score": predictions[row]["score"],
                }
                for row in rows
            ]
            for kind, rows in (("mistakes", surest), ("right", right))
        }

    def _looks(self, rows: list[dict[str, Any]], images: Sequence[ImageRef]) -> list[dict[str, Any]]:
        """The rows with the attention of the last layer, its mean over the heads."""
        was_training = self.module.training
        model = ImageModel(self.module.eval(), self.processor)
        maps = model.attention([images[row["index"]].image(self.processor.size) for row in rows]).mean(1)
        self.module.train(was_training)
        return [{**row, "map": each} for row, each in zip(rows, maps.tolist(), strict=True)]

    def record(self) -> dict[str, Any]:
        record = super().record() | {"classes": self.classes}
        if self.scored.get("on") == "test":
            record["test"] = {"metrics": self.scored["metrics"], "n": self.scored["metrics"]["accuracy"]["n"]}
        return record

    def write_report(self, record: dict[str, Any]) -> None:
        images = self.parts[self.scored["on"]].images if self.scored else []
        write_classification_report(self.out, record, self.timings, self.scored, images, self.processor.seen)


def said(found: Mapping[str, Any], record: str = "environment.json") -> list[str]:
    """What was found in the pictures, as sentences; `record` is the file of the run directory that has it, too."""
    counts = ", ".join(f"{found[name]:,} {use}" for name, use in USES.items() if name in found)
    lines = [f"Pictures: {counts}."]
    if classes := found.get("classes"):
        named = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
        lines[0] = f"Pictures of {len(classes)} classes ({named}): {counts}."
    if found["dropped"]:
        lines.append("Left out: " + ", ".join(f"{count:,} {what}" for what, count in found["dropped"].items()) + ".")
    if found.get("equal_pictures"):
        lines.append(f"{found['equal_pictures']:,} pictures that are scored in another part were left out.")
    return lines + said_broken(found.get("broken", ()), record)
