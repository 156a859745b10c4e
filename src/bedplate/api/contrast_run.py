"""Learning a space that pictures and texts share, from scratch, from towers that were trained before, or further."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.api.contrast_report import write_contrast_report
from bedplate.api.contrast_towers import CONTEXT, Towers, make_clip, make_towers
from bedplate.api.picture_run import PictureRun, said_broken
from bedplate.api.run import Run
from bedplate.data.apart import USES, keep_apart
from bedplate.data.augment import ImageAugment
from bedplate.data.pair_loader import PairEvalLoader, PairLoader, TextEncoder
from bedplate.data.pairs import Pairs, read_pairs, split_pairs
from bedplate.data.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from bedplate.errors import InputError
from bedplate.hub.clip_model import ClipModel
from bedplate.hub.processor import ImageProcessor
from bedplate.metrics.retrieval import retrieval
from bedplate.models.clip import Clip
from bedplate.recipe.contrast import ContrastRecipe
from bedplate.recipe.read import read_as
from bedplate.tasks.contrast import Contrast
from bedplate.train.log import RunLog, write_whole
from bedplate.train.loop import Trainer

PRODUCTS = 2**22  # similarities that are held at one time
SHOWN = 24  # pictures of each kind in the report


class ContrastRun(PictureRun[ContrastRecipe]):
    """A CLIP."""

    module: Clip
    task: Contrast
    scored: Mapping[str, Any] = MappingProxyType({})  # what `measure` found

    def prepare(self, log: RunLog) -> None:
        recipe = self.recipe
        towers = make_towers(recipe, self.made_on)
        side = recipe.model.image.image_size or towers.size
        its = towers.processor or ImageProcessor((side, side))
        self.processor = replace(its, size=(side, side), fit=recipe.data.fit or its.fit, flip=False)
        if towers.processor is not None and its.size != self.processor.size:
            log.say(f"The base reads pictures of {its.size[0]}x{its.size[1]} pixels: its positions are interpolated.")
        self.timed("data", lambda: self.ranks.main_first(lambda: self._read(towers, log)))
        self.module = self.placed(make_clip(recipe, towers, self.tokenizer, side))
        self.task = Contrast(
            self.module,
            self.processor.mean,
            self.processor.std,
            augment=self.augment(),
            objective=recipe.objective.loss,
            image_weight=recipe.objective.image_weight,
            gather=self.ranks.gather,
            collect=self.ranks.interleave,
        )
        log.say(f"{self.parameters():,} parameters, a vocabulary of {self.module.config.text.vocab_size:,} tokens.")

    def _read(self, towers: Towers, log: RunLog) -> None:
        """Find the pairs, keep what is scored apart from what is trained on, and say what was found."""
        data, recipe = self.recipe.data, self.recipe
        train = whole = read_pairs(data.path, data.image, data.text, data.group)
        parts: dict[str, Pairs] = {}
        for name, paths in (("test", data.test_path), ("val", data.val_path)):
            if paths:
                parts[name] = read_pairs(paths, data.image, data.text, data.group, strict=False)
        if "val" not in parts and data.val_fraction:
            concepts = read_pairs(data.path, data.image, data.text, data.concept).groups if data.concept else None
            train, parts["val"] = split_pairs(train, data.val_fraction, recipe.seed, concepts)
        self.parts, same = keep_apart({"train": train, **parts})
        train = self.parts["train"]
        if len(set(train.groups)) < 2:
            raise InputError(
                f"data.path: {len(train)} pictures of one meaning are left to train on ({same} are also scored); "
                "a contrast needs two or more: give other pictures, or a smaller data.val_fraction"
            )
        self.tokenizer = self._tokenizer(towers, train)
        self.encoder = TextEncoder(self.tokenizer, self._context(towers), towers.end)
        templates, size = recipe.objective.templates, self.processor.size
        self.loaders = {
            name: PairEvalLoader(
                part,
                self.encoder,
                self.scored_rows(len(part)),
                self.store(name, part, size),
                None,
                *self.shares,
                templates=templates,
            )
            for name, part in self.parts.items()
            if name != "train"
        }
        store = self.store("train", train, size)
        rows, mates = recipe.train.batch_size, recipe.objective.image_weight > 0
        self.loader = PairLoader(
            train, self.encoder, rows, recipe.seed, store, *self.shares, templates=templates, mates=mates
        )
        self.found = {
            "texts": sum(map(len, whole.texts)),
            "groups": len(set(whole.groups)),
            **self.usable(),
            "dropped": dict(whole.dropped),
            "equal_pictures": same,
            "broken": self.broken(),
        }
        for line in (*said(self.found, whole), *self.encoder.shortened(_texts(train), "model.text.context")):
            log.say(line)

    def _tokenizer(self, towers: Towers, train: Pairs) -> Any:
        """The run's own, where it is resumed; else the base's, or one that is trained on the texts."""
        kept = self.out / "tokenizer"
        if self.resume and kept.is_dir():
            return load_tokenizer(kept)
        if towers.tokenizer is not None:
            return towers.tokenizer
        frames = (template.replace("{}", "") for template in self.recipe.objective.templates)
        # As CLIP's own reads them: who asks for a "red heart" means the Red Heart, too.
        return train_tokenizer(chain(frames, _texts(train)), self.recipe.model.text.vocab_size, lowercase=True)

    def _context(self, towers: Towers) -> int:
        wanted, own = self.recipe.model.text.context, towers.positions
        self.context = min(wanted or own or CONTEXT, own or wanted or CONTEXT)
        return self.context

    def augment(self) -> ImageAugment | None:
        """What training shows of pictures; None where nothing is changed in them."""
        a = self.recipe.augment
        settings = ImageAugment(
            crop_scale=(1.0, 1.0) if a.crop_scale is None else (a.crop_scale[0], a.crop_scale[1]),
            zoom_out=a.zoom_out,
            flip=a.flip,
            shift=a.shift,
            randaugment=(0, 0) if a.randaugment is None else (a.randaugment[0], a.randaugment[1]),
            colour=a.colour,
            erasing=a.erasing,
        )
        return None if settings == ImageAugment() else settings

    def trainer(self, log: RunLog) -> Trainer:
        data = self.loader_data(self.loader, self.loaders.get("val"))
        return self.make_trainer(data, self.loader.steps_per_epoch, log)

    def facts(self) -> list[dict[str, Any]]:
        marks = [f"{name}:{part.fingerprint(self.cache)}" for name, part in self.parts.items()]
        return [{"fingerprint": " ".join([*marks, tokenizer_hash(self.tokenizer)]), **self.found}]

    def keep_preprocessing(self) -> None:
        """The tokenizer, so that a resumed run has the same."""
        Run.keep_preprocessing(self)

    def measure(self) -> None:
        """Score the model once: on the test pairs where there are any, else in detail on the held-out ones."""
        name = "test" if "test" in self.loaders else "val"
        if name not in self.loaders:
            return
        images, texts, group, text, index = (each.numpy() for each in self.task.features(self.loaders[name]))
        part = self.parts[name]
        most = max(1, PRODUCTS // len(texts))
        starts = range(0, len(images), most)
        nearest = np.concatenate([(images[first : first + most] @ texts.T).argmax(1) for first in starts])
        cosine = (images * texts[nearest]).sum(1)
        rows = [
            {
                "index": int(index[row]),
                "label": part.texts[int(index[row])][0],
                "predicted": part.texts[int(index[nearest[row]])][0],
                "score": float(cosine[row]),
            }
            for row in range(len(index))
        ]
        right = (group == group[nearest]) | (text == text[nearest])
        self.scored = {
            "on": name,
            "metrics": retrieval(images, texts, group, group, marks=(text, text)),
            "chance": _chance(group, text),
            "shown": {
                kind: [rows[i] for i in np.random.default_rng(0).permutation(np.flatnonzero(hits))[:SHOWN]]
                for kind, hits in (("right", right), ("wrong", ~right))
            },
        }
        if self.ranks.is_main:
            write_whole(self.out / "scored.json", json.dumps(self.scored, ensure_ascii=False))

    def read_recipe(self, path: Path) -> ContrastRecipe:
        return read_as(ContrastRecipe, path)

    def settled(self, recipe: ContrastRecipe) -> dict[str, Any]:
        data = recipe.data.model_dump(mode="json", include={"val_fraction", "fit", "image", "text", "group", "concept"})
        return {
            "task": recipe.task,
            "seed": recipe.seed,
            "base": recipe.base,
            "model": recipe.model.model_dump(mode="json"),
            "optimizer.name": recipe.optimizer.name,
            "train.ema": recipe.train.ema,
            "evaluate.metric": recipe.evaluate.metric,
            "train.batch_size": recipe.train.batch_size,
            "objective": recipe.objective.model_dump(),
            **{f"data.{key}": value for key, value in data.items()},
        }

    def write_model(self, card: str) -> None:
        templates = tuple(template.replace("{}", "{label}") for template in self.recipe.objective.templates)
        model = ClipModel(self.module, self.processor, self.tokenizer, card, templates)
        model.save(self.out / "model", overwrite=True)

    def record(self) -> dict[str, Any]:
        record = super().record() | {
            "images": self.recipe.task,
            "image_size": list(self.processor.size),
            "standard": "CLIPModel" if self.module.config.is_standard else None,
        }
        if self.scored:
            if self.scored["on"] == "test":
                record["test"] = {"metrics": self.scored["metrics"]}
            else:
                record["metrics"] = record["metrics"] | self.scored["metrics"]
        return record

    def write_report(self, record: dict[str, Any]) -> None:
        images = self.parts[self.scored["on"]].images if self.scored else []
        write_contrast_report(self.out, record, self.timings, self.scored, images)


def _texts(pairs: Pairs) -> list[str]:
    return [text for texts in pairs.texts for text in texts]


def said(found: Mapping[str, Any], pairs: Pairs) -> list[str]:
    """What was found in the pairs, as sentences."""
    counts = ", ".join(f"{found[name]:,} {use}" for name, use in USES.items() if name in found)
    lines = [f"Pictures with {found['texts']:,} texts, of {found['groups']:,} groups: {counts}."]
    if found["dropped"]:
        lines.append("Left out: " + ", ".join(f"{count:,} {what}" for what, count in found["dropped"].items()) + ".")
    if pairs.textless:
        lines.append(f"The first picture without a text is {pairs.textless[0]}")
    if found["equal_pictures"]:
        lines.append(f"{found['equal_pictures']:,} pictures that are scored in another part were left out.")
    return lines + said_broken(found["broken"])


def _chance(group: NDArray[np.int64], text: NDArray[np.int64]) -> float:
    """The share of pairs of rows `(N,)` that belong together: of one group or of one text."""
    both = np.stack([group, text], 1)
    of_group, of_text, of_both = (
        (np.unique(each, axis=0, return_counts=True)[1] ** 2).sum() for each in (group, text, both)
    )
    return float((of_group + of_text - of_both) / len(group) ** 2)
