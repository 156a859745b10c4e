"""`Model`, what `load` returns: a module, its tokenizer and its card, used on what a person has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from tokenizers import Tokenizer

from bedplate.data.tokenizer import load_tokenizer, load_tokenizer_config
from bedplate.errors import InputError
from bedplate.hub.directory import SpecialTokens, load_module, read_special_tokens, save_directory
from bedplate.hub.embedding import (
    Embedder,
    EmbeddingSettings,
    Pooling,
    read_embedding_settings,
    write_embedding_settings,
)
from bedplate.hub.locate import locate
from bedplate.hub.text import TextStream
from bedplate.hub.zeroshot import ZeroShot
from bedplate.models.classifier import Classifier
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.models.sampling import generate
from bedplate.tasks.classify import predict_labels


@dataclass
class Model:
    """A language model or a classifier; `tokenizer` is None where the directory has none.

    `module(ids)` gives logits: (B, N, V) of a language model, (B, C) of a classifier.
    """

    module: GPT | Classifier
    tokenizer: Tokenizer | None = None
    card: str = ""
    special: SpecialTokens = field(default_factory=SpecialTokens)
    tokenizer_config: dict[str, Any] = field(default_factory=dict)  # as the directory has it, chat template included
    embedding: EmbeddingSettings | None = None  # of a directory in the form of sentence-transformers
    _embedders: dict[Any, Embedder] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def config(self) -> GPTConfig:
        return self.module.config

    @property
    def labels(self) -> list[str] | None:
        """A classifier's labels, in the order of its logits; None for a language model."""
        return self.module.labels if isinstance(self.module, Classifier) else None

    @overload
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        stop: str | Sequence[str] = (),
        stream: Callable[[int, str], object] | None = None,
        **options: Any,
    ) -> list[str]: ...

    @overload
    def generate(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]: ...

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        *,
        stop: str | Sequence[str] = (),
        stream: Callable[[int, str], object] | None = None,
        **options: Any,
    ) -> list[str] | list[list[int]]:
        """Continuations, one a prompt, without the prompts: text for text, token ids for token ids.

        Args:
            prompts: one text or several, or rows of token ids.
            stop: strings that end a text; it is cut before the first.
            stream: called with (row, new text) as text becomes certain.
            options: max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed: see `sampling.generate`.
                The model's end-of-text ids end a row; `stop_ids` gives others.

        Raises:
            InputError: text without a tokenizer, or a prompt or setting that `sampling.generate` refuses.
        """
        module = self.need_language_model()
        options.setdefault("stop_ids", self.special.eos)
        given: Sequence[str | Sequence[int]] = [prompts] if isinstance(prompts, str) else list(prompts)
        texts = [prompt for prompt in given if isinstance(prompt, str)]
        rows = [list(prompt) for prompt in given if not isinstance(prompt, str)]
        if texts and rows:
            raise InputError("prompts mix strings and token ids; give one kind at a time")
        if texts:
            return self._generate_text(texts, [stop] if isinstance(stop, str) else list(stop), stream, options)
        if stop or stream:
            raise InputError("stop and stream work on text; give prompts as strings")
        return generate(module, rows, **options)

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> dict[str, str]:
        """The next message, {"role": "assistant", "content"}; options as those of `generate`, see `hub.chat.chat`."""
        from bedplate.hub.chat import chat  # Jinja is loaded by those who chat

        return chat(self, messages, **options)

    def predict(self, inputs: str | Sequence[str], **options: Any) -> list[dict[str, Any]]:
        """One prediction an input, in order.

        A classifier gives `{"label", "score", "scores": {label: probability}}`; a text longer than `sequence_length`
        tokens (an option; default: the model's context, at most 512) is read in windows. A language model gives
        `{"text": continuation}`; options are those of `generate`. With `labels`, a model that has not learnt them
        chooses between them and gives what a classifier does; options are those of `hub.zeroshot.ZeroShot`.
        """
        if (labels := options.pop("labels", None)) is not None:
            return ZeroShot(self, labels, **options).predict([inputs] if isinstance(inputs, str) else list(inputs))
        if not isinstance(self.module, Classifier):
            return [{"text": text} for text in self.generate(inputs, **options)]
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        context = self.config.max_position_embeddings
        length = options.pop("sequence_length", min(context, 512))
        if options:
            raise InputError(f"{next(iter(options))} is no option of a classifier; it has sequence_length")
        if not 0 < length <= context:
            raise InputError(f"sequence_length={length} is not between 1 and the model's context, {context} tokens")
        return predict_labels(self.module, self.need_tokenizer(), texts, length)

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        batch_size: int = 64,
    ) -> torch.Tensor:
        """A vector of each text, `(N, D)` fp32 on the CPU, in order; see `hub.embedding.Embedder`."""
        if (key := (pooling, normalize)) not in self._embedders:  # what it finds out of the model serves the next texts
            self._embedders[key] = Embedder(self.module, self.need_tokenizer(), self.embedding, pooling, normalize)
        return self._embedders[key]([texts] if isinstance(texts, str) else list(texts), batch_size)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write a model directory; see `save_directory`."""
        save_directory(
            directory,
            self.module,
            self.tokenizer,
            self.card,
            special=self.special,
            tokenizer_config=self.tokenizer_config,
            overwrite=overwrite,
        )
        if self.embedding is not None:
            write_embedding_settings(directory, self.embedding)

    def _generate_text(
        self, prompts: list[str], stop: list[str], stream: Callable[[int, str], object] | None, options: dict[str, Any]
    ) -> list[str]:
        if "" in stop:
            raise InputError("an empty stop string would end every text at once; leave it out")
        tokenizer = self.need_tokenizer()
        rows = [self._encode(tokenizer, prompt) for prompt in prompts]
        texts = [TextStream(tokenizer, row, stop) for row in rows]

        def give(row: int, piece: str) -> None:
            if stream and piece:
                stream(row, piece)

        def on_token(row: int, token: int) -> bool:
            give(row, texts[row].add(token))
            return texts[row].stopped

        # Where nobody waits for a token, generation need not stop at each.
        watched = on_token if stop or stream else None
        continued = generate(self.need_language_model(), rows, on_token=watched, **options)
        for row, text in enumerate(texts):
            for token in continued[row] if watched is None else ():
                text.add(token)
            give(row, text.finish())
        return [text.text for text in texts]

    def _encode(self, tokenizer: Tokenizer, prompt: str) -> list[int]:
        """An empty prompt starts where a document does."""
        start = self.special.bos if self.special.bos is not None else next(iter(self.special.eos), None)
        return list(tokenizer.encode(prompt).ids) or ([] if start is None else [start])

    def need_language_model(self) -> GPT:
        """The module, where it can write text.

        Raises:
            InputError: it is a classifier.
        """
        if not isinstance(self.module, GPT):
            labels = ", ".join(self.module.labels[:8])
            raise InputError(f"this model is a classifier (of {labels}) and writes no text; use `predict` with it")
        return self.module

    def need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InputError(
                "this model has no tokenizer: put its tokenizer.json into the directory and load it again, "
                "or give token ids"
            )
        return self.tokenizer


def load(path: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Model:
    """A model from a model directory, a run directory, `zoo:NAME` or `hf:ORG/NAME[@REVISION]`.

    Args:
        device: where the weights go, the CPU by default.
        dtype: fp32, bf16 or fp16, the checkpoint's by default.

    Raises:
        InputError: nothing is there, or what is there is not a model that bedplate has.
    """
    directory = locate(path)
    module = load_module(directory, dtype, device)
    tokenizer = load_tokenizer(directory) if (directory / "tokenizer.json").is_file() else None
    card = directory / "README.md"
    text = card.read_text("utf-8", errors="replace") if card.is_file() else ""
    special, settings = read_special_tokens(directory), read_embedding_settings(directory)
    return Model(module, tokenizer, text, special, load_tokenizer_config(directory), settings)
