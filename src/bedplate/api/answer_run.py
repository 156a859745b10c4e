"""Training of a reader: captions of pictures, and answers to questions about them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bedplate.api.answer_report import write_answer_report
from bedplate.api.picture_run import PictureRun
from bedplate.api.vision_classify import said
from bedplate.api.vision_run import trunk_config
from bedplate.data.apart import keep_apart
from bedplate.data.augment import ImageAugment
from bedplate.data.question_loader import QuestionEvalLoader, QuestionLoader, answer_ids, within
from bedplate.data.questions import Asked, read_questions
from bedplate.data.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer, vocabulary_size
from bedplate.errors import InputError
from bedplate.hub.load import load
from bedplate.hub.model import Model
from bedplate.hub.processor import ImageProcessor
from bedplate.hub.reader_directory import MOST_TOKENS, reader_config_to_hf, save_reader
from bedplate.hub.reader_model import ReaderModel, vision_of
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.models.reader import Reader
from bedplate.models.vit import VisionConfig, VisionModel
from bedplate.recipe.answer import AnswerRecipe
from bedplate.recipe.read import read_as
from bedplate.tasks.answer import Answer, Answered, score
from bedplate.train.log import RunLog, write_whole
from bedplate.train.loop import Trainer

SIDE = 64  # pixels, of a network from scratch
SCORED_ROWS = 32  # pictures of a batch that is not trained on
SHOWN = 24  # answers of each kind in the report: right ones, and wrong ones


class AnswerRun(PictureRun[AnswerRecipe]):
    """A reader, from scratch, from models that see or write, or from another reader."""

    module: Reader
    task: Answer
    scored: Mapping[str, Any] = MappingProxyType({})  # what `measure` found

    def prepare(self, log: RunLog) -> None:
        recipe = self.recipe
        base = self._base()
        self.timed("data", lambda: self.ranks.main_first(lambda: self._read(log)))
        text_base = self._text_base()
        if base is not None:
            self.tokenizer = base.tokenizer
            self.processor = replace(base.processor, fit=recipe.data.fit or base.processor.fit)
        elif text_base is not None:
            self.tokenizer = text_base.need_tokenizer()
        else:
            self.tokenizer = self._tokenizer()
        reader = self._network(base, text_base, log)
        if recipe.model.freeze_vision:
            reader.vision.requires_grad_(False)
        self.context = reader.config.context
        self.timed("pictures", lambda: self.ranks.main_first(lambda: self._batches(log)))
        longest = max(len(answer_ids(self.tokenizer, q.answers[0])) for each in self.asked["train"] for q in each)
        self.max_new_tokens = min(longest, MOST_TOKENS)
        reader_config_to_hf(reader.config, self.max_new_tokens)  # what could not be written at the end is refused now
        self.module = self.placed(reader)
        scored = "val" if "val" in self.parts else "train"
        self.task = self._task(self.asked[scored])
        log.say(f"{self.parameters():,} parameters; a picture is {reader.config.picture} tokens.")

    def _base(self) -> ReaderModel | None:
        """The reader that the run goes on from."""
        if self.recipe.base is None:
            return None
        base = load(self.recipe.base, device=self.made_on, dtype="fp32")
        if not isinstance(base, ReaderModel):
            raise InputError(
                f"{self.recipe.base}: is no reader; give a model that sees as vision_base, one of text as text_base"
            )
        return base

    def _text_base(self) -> Model | None:
        if self.recipe.text_base is None:
            return None
        base = load(self.recipe.text_base, device=self.made_on, dtype="fp32")
        if not isinstance(base, Model):
            raise InputError(f"{self.recipe.text_base}: is no model of text; give a language model as text_base")
        base.merge_adapter()
        base.need_language_model()
        base.need_tokenizer()
        return base

    def _tokenizer(self) -> Tokenizer:
        """The recipe's, or one trained on what is learnt."""
        settings = self.recipe.tokenizer
        if settings.path is not None:
            return load_tokenizer(settings.path)
        texts = [text for each in self.asked["train"] for q in each for text in (q.text, q.answers[0])]
        trained = self.ranks.on_main(lambda: train_tokenizer(texts, settings.vocab_size).to_str())
        return Tokenizer.from_str(trained)

    def _network(self, base: ReaderModel | None, text_base: Model | None, log: RunLog) -> Reader:
        recipe, dropout = self.recipe, self.recipe.model.dropout
        if base is not None:
            if dropout:
                base.module.language = base.module.language.with_dropout(dropout)
            if not base.module.config.places:
                log.say(
                    "The base tells no places of a picture apart: it is given vectors for them, which begin at zero."
                )
            return base.module.with_places().train()
        vision = self._vision(log)
        language = self._language(vision.config) if text_base is None else text_base.need_language_model()
        if dropout:
            language = language.with_dropout(dropout)
        size = self.processor.size
        return Reader.of(vision, language, connector=recipe.model.connector, image_size=size, seed=recipe.seed)

    def _vision(self, log: RunLog) -> VisionModel:
        """What reads pictures, at the size that its base has; `processor` follows from it and the recipe."""
        recipe, sizes = self.recipe, self.recipe.model.vision
        side: Any = sizes.image_size
        if recipe.vision_base is not None:
            vision, its = vision_of(load(recipe.vision_base, device=self.made_on, dtype="fp32"), recipe.vision_base)
            size = its.size if side is None else (side, side)
            self.processor = ImageProcessor(size, its.mean, its.std, recipe.data.fit or its.fit)
            if its.size != size:
                log.say(f"The base reads pictures of {its.size[0]}x{its.size[1]} pixels: positions are interpolated.")
            return vision
        size = (side or SIDE, side or SIDE)
        self.processor = ImageProcessor(size, fit=recipe.data.fit or "stretch")
        if sizes.hidden_size % sizes.num_attention_heads:
            raise InputError(
                f"model.vision.hidden_size={sizes.hidden_size} is not a multiple of "
                f"model.vision.num_attention_heads={sizes.num_attention_heads}"
            )
        trunk = trunk_config(sizes.hidden_size, sizes.num_hidden_layers, sizes.num_attention_heads)
        vision = VisionModel(VisionConfig(size, sizes.patch_size, trunk, stem=sizes.stem))
        vision.init_weights(recipe.seed)
        return vision.to(self.made_on)

    def _language(self, vision: VisionConfig) -> GPT:
        sizes = self.recipe.model.language
        rows, columns = (side // vision.patch_size for side in self.processor.size)
        config = GPTConfig.from_preset(
            sizes.preset,
            vocab_size=vocabulary_size(self.tokenizer),
            max_position_embeddings=1 + rows * columns + sizes.context,
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.num_hidden_layers,
            num_attention_heads=sizes.num_attention_heads,
        )
        language = GPT(config)
        language.init_weights(self.recipe.seed)
        return language.to(self.made_on)

    def _read(self, log: RunLog) -> None:
        """Find pictures with their questions, keep what is scored apart from what is trained on, by picture."""
        data, seed = self.recipe.data, self.recipe.seed
        columns = {"image": data.image, "question": data.question, "answer": data.answer, "kind": data.kind}

        whole = train = read_questions(data.path, **columns)
        parts: dict[str, Asked] = {}
        for name, paths in (("test", data.test_path), ("val", data.val_path)):
            if paths:
                parts[name] = read_questions(paths, **columns)
        if "val" not in parts and data.val_fraction:
            train, parts["val"] = train.split(data.val_fraction, seed)
        self.parts, same = keep_apart({"train": train, **parts})
        self.asked = {name: part.questions for name, part in self.parts.items()}
        self.found: dict[str, Any] = {
            **{name: len(part) for name, part in self.parts.items()},
            "dropped": dict(whole.dropped),
            "equal_pictures": same,
        }

    def _batches(self, log: RunLog) -> None:
        """Loaders of all parts, and what was found in words."""
        recipe = self.recipe
        for name, part in self.parts.items():
            self.parts[name] = within(part, self.tokenizer, self.context)
        self.asked = {name: part.questions for name, part in self.parts.items()}
        train, size = self.parts["train"], self.processor.size
        self.loader = QuestionLoader(
            train,
            self.tokenizer,
            recipe.train.batch_size,
            recipe.seed,
            self.store("train", train, size),
            *self.shares,
            most=recipe.data.questions_per_picture,
        )
        self.loaders = {name: self._eval_loader(name, part) for name, part in self.parts.items() if name != "train"}
        counts = {f"{name}_questions": sum(map(len, questions)) for name, questions in self.asked.items()}
        self.found |= self.usable() | counts
        self.found |= {"dropped": dict(train.dropped), "broken": self.broken()}
        for line in said(self.found):
            log.say(line)
        log.say(f"Questions (captions are one each): {counts['train_questions']:,} to train on.")

    def _eval_loader(self, name: str, part: Asked) -> QuestionEvalLoader:
        rows = min(SCORED_ROWS, self.scored_rows(len(part)))
        store = self.store(name, part, self.processor.size)
        return QuestionEvalLoader(part, self.tokenizer, rows, store, None, *self.shares)

    def _task(self, questions: Sequence[Any]) -> Answer:
        a, size = self.recipe.augment, self.processor.size
        settings = ImageAugment(flip=a.flip, shift=a.shift, colour=a.colour)
        return Answer(
            self.module,
            self.tokenizer,
            questions,
            self.processor.mean,
            self.processor.std,
            augment=None if settings == ImageAugment() else partial(settings, size=size),
            max_new_tokens=self.max_new_tokens,
            collect=self.ranks.interleave,
        )

    def trainer(self, log: RunLog) -> Trainer:
        data = self.loader_data(self.loader, self.loaders.get("val"))
        return self.make_trainer(data, self.loader.steps_per_epoch, log)

    def facts(self) -> list[dict[str, Any]]:
        marks = [f"{name}:{part.fingerprint(self.cache)}" for name, part in self.parts.items()]
        marks.append(tokenizer_hash(self.tokenizer))
        return [{"fingerprint": " ".join(marks), "pictures": True, **self.found}]

    def read_recipe(self, path: Path) -> AnswerRecipe:
        return read_as(AnswerRecipe, path)

    def settled(self, recipe: AnswerRecipe) -> dict[str, Any]:
        apart = {"path", "val_path", "test_path", "workers", "cache"}
        return {
            "seed": recipe.seed,
            "base": recipe.base,
            "vision_base": recipe.vision_base,
            "text_base": recipe.text_base,
            "model": recipe.model.model_dump(mode="json"),
            "tokenizer": recipe.tokenizer.model_dump(mode="json"),
            "optimizer.name": recipe.optimizer.name,
            "train.ema": recipe.train.ema,
            "evaluate.metric": recipe.evaluate.metric,
            "train.batch_size": recipe.train.batch_size,
            "data": recipe.data.model_dump(mode="json", exclude=apart),
        }

    def measure(self) -> None:
        """Score the model once, in detail: on the test pictures where there are any, else on the held-out ones."""
        name = next((name for name in ("test", "val") if name in self.loaders), None)
        if name is None:
            return
        questions = self.asked[name]
        rows = self._task(questions).answers(self.loaders[name])
        found = score(rows, self.parts[name], self.parts["train"])
        self.scored = {"on": name, **found, "shown": shown(rows, questions)}
        if self.ranks.is_main:
            write_whole(self.out / "scored.json", json.dumps(self.scored, indent=2, ensure_ascii=False))

    def write_model(self, card: str) -> None:
        save_reader(
            self.out / "model",
            self.module,
            self.tokenizer,
            self.processor,
            card,
            max_new_tokens=self.max_new_tokens,
            overwrite=True,
        )

    def record(self) -> dict[str, Any]:
        record = super().record() | {"images": "answer", "image_size": list(self.processor.size)}
        if self.scored:
            by_kind = {f"{kind} accuracy": values["accuracy"] for kind, values in self.scored["kinds"].items()}
            blind = {f"{name} accuracy": values["accuracy"] for name, values in self.scored["baselines"].items()}
            captioned = {f"caption {name}": metric for name, metric in self.scored.get("captions", {}).items()}
            metrics = self.scored["metrics"] | captioned | (by_kind if len(by_kind) > 1 else {}) | blind
            if self.scored["on"] == "test":
                record["test"] = {"metrics": metrics}
            else:
                record["metrics"] = record["metrics"] | metrics
        return record

    def write_report(self, record: dict[str, Any]) -> None:
        images = self.parts[self.scored["on"]].images if self.scored else []
        write_answer_report(self.out, record, self.timings, self.scored, images)


def shown(rows: Sequence[Answered], questions: Sequence[Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    """Answers for the report, by chance: of wrong ones and of right ones, each kind of question in its turn."""
    found: dict[str, list[dict[str, Any]]] = {}
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    for name, is_wanted in (("wrong", False), ("right", True)):
        by_kind: dict[str, list[dict[str, Any]]] = {}
        for row in (rows[i] for i in order if rows[i].right == is_wanted):
            q = questions[row.picture][row.number]
            said_of = {"index": row.picture, "question": q.text, "text": row.text, "truth": q.answers[0]}
            by_kind.setdefault(q.kind, []).append(said_of)
        turns = [row for turn in range(SHOWN) for kind in sorted(by_kind) for row in by_kind[kind][turn : turn + 1]]
        found[name] = turns[:SHOWN]
    return found
