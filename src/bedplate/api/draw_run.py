"""Learning to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image

from bedplate.api.folders import word
from bedplate.api.picture_run import PictureRun
from bedplate.api.record import page_record, training_summary, write_page
from bedplate.data.apart import keep_apart
from bedplate.data.code_loader import CodeEvalLoader, CodeLoader, Codes
from bedplate.data.combinations import held_out_combinations
from bedplate.data.pair_loader import TextEncoder
from bedplate.data.pairs import Pairs, read_pairs, split_pairs
from bedplate.data.pixel_store import PixelStore
from bedplate.data.tokenizer import end_of_text_id, train_tokenizer, vocabulary_size
from bedplate.errors import InputError
from bedplate.hub.draw_model import DrawModel, draw_trunk
from bedplate.hub.image_tokens_model import ImageTokensModel
from bedplate.hub.load import load
from bedplate.hub.model import Model
from bedplate.models.dalle import Dalle, DalleConfig, Painter
from bedplate.models.image_tokenizer import ImageTokenizer
from bedplate.recipe.draw import DrawRecipe
from bedplate.recipe.read import read_as
from bedplate.report.drawing import draw_report
from bedplate.tasks.draw import Draw
from bedplate.train.log import RunLog
from bedplate.train.loop import Trainer

PROMPTS, EACH = 6, 4  # names of each kind in the report, and drawings of each


class DrawRun(PictureRun[DrawRecipe]):
    """A model that draws, from scratch beside an image tokenizer, or from where a base stands."""

    module: Dalle
    task: Draw
    image_tokens: ImageTokenizer
    shown: Mapping[str, Mapping[str, Sequence[Image.Image]]] = MappingProxyType({})  # what `measure` draws

    def prepare(self, log: RunLog) -> None:
        recipe = self.recipe
        base = self._load_base()
        self.timed("data", lambda: self.ranks.main_first(lambda: self._read(log)))
        if isinstance(base, DrawModel):
            self.tokenizer, module = base.tokenizer, base.module.dalle
        else:
            module = self._network()
        self.module = self.placed(module)
        c = self.module.config
        self.encoder = TextEncoder(self.tokenizer, c.text_length, c.end_token_id)
        self.codes = {name: self.timed(f"codes of {name}", lambda n=name: self._codes(n)) for name in self.parts}
        self.task = Draw(self.module, recipe.objective.text_drop, self.ranks.interleave)
        for line in self.encoder.shortened(chain(*self.parts["train"].texts), "model.text_length"):
            log.say(line)
        log.say(f"{self.parameters():,} parameters, beside those of the image tokenizer.")

    def _load_base(self) -> DrawModel | ImageTokensModel:
        """Where the network begins, or the image tokenizer; both bring how pictures are prepared."""
        name = self.recipe.base or self.recipe.tokenizer_base
        assert name is not None, "the recipe has one of both"
        base = load(name, dtype="fp32")
        if self.recipe.base is not None and not isinstance(base, DrawModel):
            raise InputError(f"base={name}: is no model that draws; give one, or tokenizer_base")
        if self.recipe.base is None and isinstance(base, DrawModel):
            base = base.image_tokens
        if self.recipe.base is None and not isinstance(base, ImageTokensModel):
            raise InputError(f"tokenizer_base={name}: is no image tokenizer; learn one first (task: image_tokens)")
        assert isinstance(base, DrawModel | ImageTokensModel)
        tokens = base.module.image_tokens if isinstance(base, DrawModel) else base.module
        self.image_tokens, self.processor = tokens.to(self.hardware.device), base.processor
        return base

    def _network(self) -> Dalle:
        """A fresh network, and the tokenizer of its texts."""
        m, tokens = self.recipe.model, self.image_tokens.config
        base = None if m.text_base is None else load(m.text_base, dtype="fp32")
        if base is None:
            texts = (text for row in self.parts["train"].texts for text in row)
            self.tokenizer = train_tokenizer([*texts, *self.recipe.objective.templates], m.vocab_size, lowercase=True)
        elif not isinstance(base, Model):
            raise InputError(f"model.text_base={m.text_base}: is no model of text")
        elif (width := base.config.trunk.hidden_size) != m.hidden_size:
            raise InputError(f"model.text_base={m.text_base}: its width is {width}; give model.hidden_size={width}")
        else:
            self.tokenizer = base.need_tokenizer()
        size = vocabulary_size(self.tokenizer) if base is None else base.module.embed.num_embeddings
        trunk = draw_trunk(
            m.hidden_size, m.num_hidden_layers, m.num_attention_heads, m.intermediate_size, dropout=m.dropout
        )
        end = end_of_text_id(self.tokenizer)
        module = Dalle(DalleConfig(size, m.text_length, end, tokens.grid, tokens.codebook_size, trunk))
        module.init_weights(self.recipe.seed)
        if base is not None:
            module.embed.load_state_dict(base.module.embed.state_dict())
        return module

    def _read(self, log: RunLog) -> None:
        data, seed = self.recipe.data, self.recipe.seed
        whole = train = read_pairs(data.path, data.image, data.text, data.group)
        held: list[Pairs] = []
        self.held_out: list[str] = []
        if data.val_path:
            held.append(read_pairs(data.val_path, data.image, data.text, data.group, strict=False))
        if data.hold_out:
            names = [texts[0].lower() for texts in train.texts]
            self.held_out = held_out_combinations(names, data.hold_out, seed)
            apart = np.isin(np.array(names), self.held_out)
            held.append(train.select(np.flatnonzero(apart)))
            train = train.select(np.flatnonzero(~apart))
        if data.val_fraction:
            train, part = split_pairs(train, data.val_fraction, seed)
            held.append(part)
        self.parts, same = keep_apart({"train": train} | ({"val": _joined(held)} if held else {}))
        if same:
            log.say(f"{same:,} pictures that are held out as well were left out of the training.")
        for name, part in self.parts.items():
            self.store(name, part, self.processor.size)
        self.found = {
            **self.usable(),
            "dropped": dict(whole.dropped),
            "broken": self.broken(),
        }
        log.say(", ".join(f"{count:,} pictures with texts to {name}" for name, count in self.usable().items()) + ".")
        if self.held_out:
            count, first = len(self.held_out), self.held_out[0]
            log.say(f"Held out: {count} names whose parts are seen in others, such as {first!r}.")

    def _codes(self, name: str) -> Codes:
        """The codes of a part's pictures (N, rows x columns)."""
        store: PixelStore = self.stores[name]
        codes = np.zeros((len(store), self.module.config.codes), np.int32)
        with torch.inference_mode():
            for index in np.array_split(store.usable, max(1, len(store.usable) // 64)):
                pixels = torch.from_numpy(store.pixels(index)).to(self.hardware.device)
                found = self.image_tokens.encode(self.processor.normalize(pixels)).flatten(1)
                codes[index] = found.cpu().numpy()
        return codes

    def trainer(self, log: RunLog) -> Trainer:
        recipe, usable = self.recipe, {name: self.stores[name].usable for name in self.parts}
        templates = recipe.objective.templates
        loader = CodeLoader(
            self.parts["train"],
            self.codes["train"],
            usable["train"],
            self.encoder,
            recipe.train.batch_size,
            recipe.seed,
            *self.shares,
            templates=templates,
        )
        val = None
        if "val" in self.parts:
            rows = self.scored_rows(len(usable["val"]))
            val = CodeEvalLoader(
                self.parts["val"],
                self.codes["val"],
                usable["val"],
                self.encoder,
                rows,
                *self.shares,
                templates=templates,
            )
        return self.make_trainer(self.loader_data(loader, val), loader.steps_per_epoch, log)

    def facts(self) -> list[dict[str, Any]]:
        marks = [f"{name}:{part.fingerprint(self.cache)}" for name, part in self.parts.items()]
        return [{"fingerprint": " ".join(marks), "pictures": True, **self.found}]

    def read_recipe(self, path: Path) -> DrawRecipe:
        return read_as(DrawRecipe, path)

    def settled(self, recipe: DrawRecipe) -> dict[str, Any]:
        data = recipe.data.model_dump(mode="json", include={"val_fraction", "hold_out", "image", "text", "group"})
        return {
            "task": recipe.task,
            "seed": recipe.seed,
            "base": recipe.base,
            "tokenizer_base": recipe.tokenizer_base,
            "model": recipe.model.model_dump(mode="json"),
            "optimizer.name": recipe.optimizer.name,
            "train.ema": recipe.train.ema,
            "evaluate.metric": recipe.evaluate.metric,
            "train.batch_size": recipe.train.batch_size,
            "objective": recipe.objective.model_dump(),
            **{f"data.{key}": value for key, value in data.items()},
        }

    def model(self, card: str = "") -> DrawModel:
        """What the run has learnt."""
        painter = Painter(self.module, self.image_tokens)
        return DrawModel(painter, self.processor, self.tokenizer, card, self.held_out)

    def measure(self) -> None:
        """Drawings of a few names that training has seen, and of a few that it has not; the seed chooses the names."""
        self.module.eval()
        model, draw = self.model(), np.random.default_rng(self.recipe.seed)
        shown = {}
        template, room = self.recipe.objective.templates[0], self.module.config.text_length
        written = {
            part: sorted({template.replace("{}", texts[0]) for texts in pairs.texts})
            for part, pairs in self.parts.items()
        }
        learnt = {name.lower() for name in written["train"]}
        written["val"] = [name for name in written.get("val", []) if name.lower() not in learnt]
        for heading, part in (("Names that training saw", "train"), ("Names that it never saw", "val")):
            names = [name for name in written[part] if len(self.tokenizer.encode(name).ids) < room]
            if names:
                chosen = [names[i] for i in draw.permutation(len(names))[:PROMPTS]]
                images = iter(model.draw(chosen, n=EACH, seed=self.recipe.seed))
                shown[heading] = {name: [next(images) for _ in range(EACH)] for name in chosen}
        self.shown = shown

    def write_model(self, card: str) -> None:
        self.model(card).save(self.out / "model", overwrite=True)

    def record(self) -> dict[str, Any]:
        return super().record() | {"images": self.recipe.task, "image_size": list(self.processor.size)}

    def write_report(self, record: dict[str, Any]) -> None:
        out = self.out
        commands = [f'bedplate draw "YOUR WORDS" --model {word(out)}/model --out drawn.png --n 4']
        page = page_record(out, record, self.timings, training_summary(out, record), commands)
        write_page(out, draw_report(page | {"drawings": self.shown, "each": EACH}))


def _joined(parts: Sequence[Pairs]) -> Pairs:
    """Several parts of the data as one."""
    first, *others = parts
    for each in others:
        whole = [*first.whole, *each.whole] if first.whole and each.whole else []
        first = Pairs(
            [*first.images, *each.images],
            [*first.texts, *each.texts],
            [*first.groups, *each.groups],
            first.dropped,
            whole,
            first.textless,
        )
    return first
