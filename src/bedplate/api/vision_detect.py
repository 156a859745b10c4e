"""Learning to find objects in pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from bedplate.api.picture_run import said_broken
from bedplate.api.vision_report import write_detection_report
from bedplate.api.vision_run import VisionRun
from bedplate.data.apart import USES, keep_apart
from bedplate.data.augment import BoxAugment
from bedplate.data.box_loader import BoxEvalLoader, BoxLoader, box_store, fingerprint
from bedplate.data.boxes import read_boxes
from bedplate.errors import InputError
from bedplate.models.detector import Detector
from bedplate.models.set_detector import SetDetector
from bedplate.tasks.detect import Detect, need_judge, of_all_classes
from bedplate.train.log import RunLog, write_whole
from bedplate.train.loop import Trainer

SHOWN = 8  # pictures with boxes in the report
SURE = 0.3  # the least score of a box that is drawn


class DetectRun(VisionRun):
    """A detector."""

    default_size = (320, 320)
    default_fit = "letterbox"
    module: Detector | SetDetector
    task: Detect
    scored: Mapping[str, Any] = MappingProxyType({})  # what `measure` found
    shown: Sequence[Mapping[str, Any]] = ()  # some scored pictures, with what is found in them

    def prepare(self, log: RunLog) -> None:
        recipe = self.recipe
        encoder = self.make_encoder(log)
        self.timed("data", lambda: self.ranks.main_first(lambda: self._read(log)))
        kind = Detector if recipe.detector.head == "dense" else SetDetector
        size, dropout = self.processor.size, recipe.model.dropout
        base: Any = encoder
        if isinstance(self.base, kind):
            base = self.base
            what = "boxes and scores" if base.labels == self.classes else "boxes, not its scores of other labels,"
            log.say(f"The base is a detector: its {what} go on from where they were.")
        self.base = None  # its weights are copied
        self.module = self.placed(kind.of(base, self.classes, image_size=size, dropout=dropout, seed=recipe.seed))
        self.task = Detect(
            self.module,
            self.processor.mean,
            self.processor.std,
            augment=self.box_augment(),
            collect=self.ranks.interleave,
        )
        log.say(f"{self.parameters():,} parameters.")

    def box_augment(self) -> BoxAugment:
        a = self.recipe.augment
        scale = (1.0, 1.0) if a.scale is None else (a.scale[0], a.scale[1])
        return BoxAugment(flip=a.flip, scale=scale, colour=a.colour)

    def _read(self, log: RunLog) -> None:
        data = self.recipe.data
        train = read_boxes(data.path)
        self.classes = train.names
        parts = {
            name: read_boxes(paths, self.classes)
            for name, paths in (("val", data.val_path), ("test", data.test_path))
            if paths
        }
        if "val" not in parts and data.val_fraction:
            train, parts["val"] = train.split(data.val_fraction, self.recipe.seed)
        for name, part in parts.items():  # now, not after hours of training
            need_judge()
            if not any((~crowd).any() for crowd in part.crowd):
                raise InputError(f"none of the {len(part)} pictures {USES[name]} holds a box: add some that do")
        self.parts, same = keep_apart({"train": train, **parts})
        if same:
            log.say(f"{same:,} pictures that are scored in another part were left out.")
        rows, size = self.recipe.train.batch_size, self.processor.size
        self.stores = {name: box_store(part, size, self.cache, self.workers) for name, part in self.parts.items()}
        self.loader = BoxLoader(self.parts["train"], size, rows, self.recipe.seed, self.stores["train"], *self.shares)
        rows = min(self.recipe.train.micro_batch_size or rows, rows // self.ranks.data_size)
        self.loaders = {
            name: BoxEvalLoader(self.parts[name], size, rows, self.stores[name], None, *self.shares) for name in parts
        }
        boxes = {
            name: sum(len(part.boxes[row]) for row in self.stores[name].usable) for name, part in self.parts.items()
        }
        self.found: dict[str, Any] = {
            "classes": self.classes,
            **self.usable(),
            "boxes": boxes,
            "dropped": dict(train.dropped),
            "cut_boxes": train.clipped,
            "broken": self.broken(),
        }
        counts = ", ".join(f"{self.found[name]:,} with {boxes[name]:,} boxes {USES[name]}" for name in self.parts)
        log.say(f"Pictures with objects of {len(self.classes)} classes ({', '.join(self.classes[:12])}): {counts}.")
        for line in said_broken(self.found["broken"]):
            log.say(line)
        if train.dropped:
            log.say("Left out: " + ", ".join(f"{count:,} {what}" for what, count in train.dropped.items()) + ".")
        if train.clipped:
            log.say(f"{train.clipped:,} boxes reach over the edge of their picture and were cut there.")

    def trainer(self, log: RunLog) -> Trainer:
        return self.make_trainer(
            self.loader_data(self.loader, self.loaders.get("val")), self.loader.steps_per_epoch, log
        )

    def facts(self) -> list[dict[str, Any]]:
        marks = [f"{name}:{fingerprint(part, self.stores[name])}" for name, part in self.parts.items()]
        return [{"fingerprint": " ".join(marks), **self.found}]

    def measure(self) -> None:
        """Score the model once: on the test pictures where there are any, else in detail on the held-out ones."""
        name = "test" if "test" in self.loaders else "val"
        if name not in self.loaders:
            return
        metrics = self.task.report(self.loaders[name])
        self.scored = {"on": name, "metrics": metrics}
        self.shown = self._pictures()
        if self.ranks.is_main:
            write_whole(self.out / "scored.json", json.dumps(self.scored, ensure_ascii=False))

    def record(self) -> dict[str, Any]:
        record = super().record() | {"classes": self.classes}
        if self.scored.get("on") == "test":
            measured = self.scored["metrics"]
            record["test"] = {"metrics": of_all_classes(measured), "detail": measured, "n": self.found["test"]}
        elif self.scored:
            record["validation"] = self.scored["metrics"]
        return record

    def write_report(self, record: dict[str, Any]) -> None:
        write_detection_report(self.out, record, self.timings, self.shown)

    def _pictures(self) -> list[dict[str, Any]]:
        """Scored pictures, drawn by chance, with their true boxes, those that are found, and what is right of these."""
        from bedplate.hub.image_model import ImageModel

        part = self.parts[self.scored["on"]]
        usable = self.stores[self.scored["on"]].usable
        rows = np.random.default_rng(0).permutation(usable)[:SHOWN].tolist()
        images = [part.images[row].image() for row in rows]
        was_training = self.module.training
        found = ImageModel(self.module.eval(), self.processor).predict(images, threshold=SURE)
        self.module.train(was_training)
        truth = part.select(rows).truth()
        judged = _with_verdicts(truth, found, self.classes)
        return [{"image": image, **each} for image, each in zip(images, judged, strict=True)]


def _with_verdicts(
    truth: Sequence[Mapping[str, Any]], found: Sequence[Sequence[Mapping[str, Any]]], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """{"truth", "predicted"} of each picture, see `report.vision.detection_sections`.

    Args:
        truth: Of each picture, as of `BoxedImages.truth`.
        found: {"label", "score", "box"} of each picture, as `ImageModel.predict` gives them.
    """
    from bedplate.metrics.detection import verdicts

    place = {name: number for number, name in enumerate(classes)}
    said = [
        {
            "boxes": [row["box"] for row in rows],
            "scores": [row["score"] for row in rows],
            "classes": [place[row["label"]] for row in rows],
        }
        for rows in found
    ]
    shown = []
    for true, rows, verdict in zip(truth, found, verdicts(truth, said, len(classes)), strict=True):
        of_found = np.select([verdict.right, verdict.wrong], ["right", "wrong"], "uncounted").tolist()
        of_true = np.select([true["crowd"], verdict.missed], ["uncounted", "missed"], "found").tolist()
        corners, kinds = true["boxes"].tolist(), true["classes"].tolist()
        shown.append(
            {
                "predicted": [{**row, "verdict": word} for row, word in zip(rows, of_found, strict=True)],
                "truth": [
                    {"label": classes[kind], "box": box, "verdict": word}
                    for kind, box, word in zip(kinds, corners, of_true, strict=True)
                ],
            }
        )
    return shown
