"""Fine-tuning of a model that answers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bedplate.api.finetune_run import FinetuneRun
from bedplate.api.folders import word
from bedplate.api.record import write_report
from bedplate.data.chat import Chat, Example, encode_chats, read_chats
from bedplate.data.loader import prefetch
from bedplate.data.pack import PackedEvalLoader, PackedLoader
from bedplate.data.template import ChatTemplate
from bedplate.data.tokenizer import save_tokenizer
from bedplate.errors import InputError
from bedplate.hub.chat import chat_encoder, give_template
from bedplate.models.gpt import GPT
from bedplate.tasks.language import Language
from bedplate.train.log import RunLog
from bedplate.train.loop import Data, Trainer

T = TypeVar("T")


class ChatRun(FinetuneRun):
    """A model that answers, from a base model and conversations; only the responses are learnt."""

    module: GPT
    task: Language

    def prepare(self, log: RunLog) -> None:
        base = self.load_base()
        give_template(base)
        self.base, self.encoder = base, chat_encoder(base)
        self.adapt(base.need_language_model().with_dropout(self.recipe.model.dropout), log)
        self.timed("data", lambda: self._read(log))
        prompts = self._prompts()
        self.task = Language(
            self.module,
            self.tokenizer,
            prompts,
            self.recipe.evaluate.sample_tokens,
            encode_prompt=self._encode_prompt,
            stop_ids=base.special.eos,
        )

    def trainer(self, log: RunLog) -> Trainer:
        batch_size = self.recipe.train.batch_size
        loader = PackedLoader(self.examples["train"], self.length, batch_size, self.recipe.seed)
        rows = self.recipe.train.micro_batch_size or batch_size  # what fits in training fits in evaluation
        val = PackedEvalLoader(self.examples["val"], self.length, rows) if "val" in self.examples else None
        data = Data(
            partial(prefetch, loader, pin=self.hardware.device.type == "cuda"), None if val is None else val.__iter__
        )
        return self.make_trainer(self.task, data, loader.steps_per_epoch, log)

    def best_metric(self) -> tuple[str, str]:
        metric = self.recipe.evaluate.metric or "bits_per_byte"
        if metric not in (measured := ("bits_per_byte", "loss")):
            raise InputError(f"evaluate.metric={metric!r} is not measured; choose one of {', '.join(measured)}")
        return metric, "min"

    def facts(self) -> list[dict[str, Any]]:
        return [{"fingerprint": self.fingerprint(), **self.foreign_facts(), **self.found}]

    def save_tokenizer(self, directory: Path) -> None:
        save_tokenizer(self.tokenizer, directory, self.context, self.base.tokenizer_config)

    def write_report(self, record: dict[str, Any]) -> None:
        commands = [
            f"bedplate generate {word(self.out)}/model --chat",
            f"bedplate info {word(self.out)}/model",
        ]
        write_report(self.out, record, self.timings, commands=commands)

    def record(self) -> dict[str, Any]:
        return super().record() | {"chat": True}

    def _encode_prompt(self, text: str) -> list[int]:
        return self.encoder.prompt([{"role": "user", "content": text}])

    def _prompts(self) -> list[str]:
        """What is answered while training: the recipe's prompts, else the first held-out one that leaves room."""
        tokens = self.recipe.evaluate.sample_tokens
        room = self.context - tokens
        for prompt in self.recipe.evaluate.prompts:
            if len(self._encode_prompt(prompt)) > room:
                raise InputError(
                    f"evaluate.prompts: {prompt[:40]!r} and evaluate.sample_tokens={tokens} do not fit into "
                    f"the context of {self.context}; shorten the one or lower the other"
                )
        if self.recipe.evaluate.prompts:
            return self.recipe.evaluate.prompts
        chats = self.chats.get("val", self.chats["train"])
        said = (m["content"] for chat in chats[:100] for m in chat.messages if m["role"] == "user")
        return [prompt for prompt in said if len(self._encode_prompt(prompt)) <= room][:1]

    def _read(self, log: RunLog) -> None:
        """Read the conversations, hold some out, tokenise them, and say what was found."""
        data = self.recipe.data
        read = partial(read_chats, prompt=data.prompt, response=data.response)
        whole = read(data.path)
        if data.val_path:
            train, val = whole, read(data.val_path)
        else:
            train, val = hold_out(whole, data.val_fraction, self.recipe.seed)
        train, same = without_same(train, val)
        self.chats = {"train": train} | ({"val": val} if val else {})
        self.examples: dict[str, list[Example]] = {}
        template = ChatTemplate.of(self.base.tokenizer_config)
        assert template is not None, "give_template has seen to it"
        truncated = 0
        for name, chats in self.chats.items():
            encoded = encode_chats(self.tokenizer, template, chats, self.length)
            self.examples[name] = encoded.examples
            truncated += encoded.truncated
        self.found = {
            **{name: len(chats) for name, chats in self.chats.items()},
            "removed from the training because they are held out too": same,
            "truncated": truncated,
        }
        learnt = sum(int((targets >= 0).sum()) for _, targets in self.examples["train"])
        log.say(
            f"{len(train):,} conversations to train on, with {learnt:,} tokens of responses; {len(val):,} held out."
        )
        if same:
            log.say(f"{same:,} conversations were removed from the training because they are held out as well.")
        if truncated:
            log.say(f"{truncated:,} conversations are longer than {self.length} tokens and were cut.")


def hold_out(chats: list[T], fraction: float, seed: int, what: str = "conversations") -> tuple[list[T], list[T]]:
    """(rest, held out), at random."""
    count = round(fraction * len(chats))
    if fraction and not 0 < count < len(chats):
        raise InputError(
            f"{len(chats)} {what} are too few to hold out data.val_fraction={fraction}; give more, "
            "data.val_path, or data.val_fraction=0"
        )
    chosen = set(np.random.default_rng(seed).permutation(len(chats))[:count].tolist())
    return [c for i, c in enumerate(chats) if i not in chosen], [c for i, c in enumerate(chats) if i in chosen]


def without_same(train: list[Chat], scored: list[Chat]) -> tuple[list[Chat], int]:
    """`train` without the conversations that are among the scored ones, and their number."""
    known = {repr(chat.messages) for chat in scored}
    kept = [chat for chat in train if repr(chat.messages) not in known]
    if not kept:
        raise InputError("every conversation to train on is held out as well; give others in data.val_path")
    return kept, len(train) - len(kept)
