"""`Model`, what `load` returns: a module, its tokenizer and its card, used on what a person has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch
from tokenizers import Tokenizer

from bedplate.data.examples import Reading
from bedplate.data.summaries import SummaryForm
from bedplate.data.tokenizer import load_tokenizer, load_tokenizer_config
from bedplate.errors import InputError
from bedplate.hub import adapter as adapters
from bedplate.hub.directory import (
    SpecialTokens,
    load_module,
    read_config_values,
    read_special_tokens,
    save_directory,
)
from bedplate.hub.embedding import (
    Embedder,
    EmbeddingSettings,
    Pooling,
    read_embedding_settings,
    write_embedding_settings,
)
from bedplate.hub.locate import locate
from bedplate.hub.options import taken
from bedplate.hub.peft import CONFIG as ADAPTER
from bedplate.hub.peft import is_adapter
from bedplate.hub.text import TextStream, strings
from bedplate.hub.vision_directory import is_vision
from bedplate.hub.zeroshot import OPTIONS, ZeroShot
from bedplate.models.beam import generate
from bedplate.models.bert import Encoder, MaskedLM
from bedplate.models.classifier import Classifier
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.tasks.classify import predict_labels
from bedplate.tasks.masked import CANDIDATES, fill_blanks
from bedplate.tasks.summarize import Summarizer


@dataclass
class Model:
    """A language model, an encoder or a classifier; `tokenizer` is None where the directory has none.

    `module(ids)` gives logits: (B, N, V) of a language model, causal or masked, (B, C) of a classifier; hidden states
    (B, N, D) of an encoder without a head.
    """

    module: GPT | Encoder | Classifier
    tokenizer: Tokenizer | None = None
    card: str = ""
    special: SpecialTokens = field(default_factory=SpecialTokens)
    tokenizer_config: dict[str, Any] = field(default_factory=dict)  # as the directory has it, chat template included
    plain: Model | None = field(default=None, repr=False)  # what it is without the adapter that is on it
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
            options: max_new_tokens, min_new_tokens, repetition_penalty, no_repeat_ngram_size; temperature, top_k, top_p
                and seed of sampling, or num_beams, length_penalty and early_stopping of beam search: see
                `sampling.generate` and `beam.beam_search`. The model's end-of-text ids end a row, or else `stop_ids`.

        Raises:
            InputError: text without a tokenizer, or a prompt or setting that `sampling.generate` refuses.
        """
        module = self.need_language_model()
        options.setdefault("stop_ids", self.special.eos)
        given: Sequence[str | Sequence[int]] = [prompts] if isinstance(prompts, str) else list(prompts)
        for number, prompt in enumerate(given, 1):
            if not isinstance(prompt, Iterable):
                raise InputError(f"prompt {number}: must be a string or token ids, not {type(prompt).__name__}")
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
        tokens (an option; default: as in training, else the context, at most 512) is read in windows. A masked language
        model gives `{"text": with its blanks filled, "token", "score", "blanks"}`, see `tasks.masked.fill_blanks`;
        `candidates` (an option) says how many tokens it names for each. A summariser gives `{"text": summary}`; options
        are those of `Summarizer.summarize`. Another language model gives `{"text": continuation}`; options are those of
        `generate`.
        With `labels`, a model that has not learnt them chooses between them and gives what a classifier does; options
        are those of `hub.zeroshot.ZeroShot`.
        """
        texts = strings(inputs, "text")
        if (labels := options.pop("labels", None)) is not None:
            return ZeroShot(self, labels, **taken(options, OPTIONS, "a choice between labels")).predict(texts)
        if isinstance(self.module, MaskedLM):
            candidates = options.pop("candidates", CANDIDATES)
            if options:
                raise InputError(f"{next(iter(options))} is no option of a masked language model; it has candidates")
            return fill_blanks(self.module, self.need_tokenizer(), texts, candidates)
        if not isinstance(self.module, Classifier):
            writer = self.summarizer()
            if writer is None and "long" in options:
                raise InputError("long is for summarisers, and this language model continues texts; leave it out")
            written = self.generate(texts, **options) if writer is None else writer.summarize(texts, **options)
            return [{"text": text} for text in written]
        context = self.config.max_position_embeddings
        reading = Reading.of(self.tokenizer_config, context, self.config.is_encoder)
        reading = replace(reading, sequence_length=options.pop("sequence_length", reading.sequence_length))
        if options:
            raise InputError(f"{next(iter(options))} is no option of a classifier; it has sequence_length")
        if not 0 < (length := reading.sequence_length) <= context:
            raise InputError(f"sequence_length={length} is not between 1 and the model's context, {context} tokens")
        return predict_labels(self.module, self.need_tokenizer(), texts, reading)

    def load_adapter(self, source: str | Path) -> None:
        """Put a LoRA adapter on the model, in place of the one that is on it.

        The weights stay as they are: `unload_adapter` gives back the model to the bit. A classifier's adapter makes a
        language model that classifier.

        Args:
            source: an adapter directory, of `finetune` or of PEFT; a run directory; `hf:ORG/NAME`.

        Raises:
            InputError: there is none, it is of another base (by its fingerprint or by shapes), or it needs what is not
                supported. The model is as before then.
        """
        adapters.attach(self, source)

    def unload_adapter(self) -> None:
        """Take the adapter off; without one nothing changes."""
        adapters.detach(self)

    def merge_adapter(self) -> None:
        """Add the adapter to the weights, for generation at full speed and for `save`; without one nothing changes."""
        adapters.merge(self)

    def summarizer(self) -> Summarizer | None:
        """What writes summaries, where the model was taught that."""
        form = SummaryForm.of(self.tokenizer_config)
        if form is None or not isinstance(self.module, GPT):
            return None
        return Summarizer(self.module, self.need_tokenizer(), form, self.special.eos)

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        batch_size: int = 64,
    ) -> torch.Tensor:
        """A vector of each text, `(N, D)` fp32 on the CPU, in order; see `hub.embedding.Embedder`."""
        key = pooling, normalize  # what is found out of a module serves the next texts
        if key not in self._embedders or self._embedders[key].module is not self.module:
            self._embedders[key] = Embedder(self.module, self.need_tokenizer(), self.embedding, pooling, normalize)
        return self._embedders[key]([texts] if isinstance(texts, str) else list(texts), batch_size)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write a model directory; see `save_directory`."""
        if self.plain is not None:
            raise InputError("an adapter is on this model; merge_adapter() or unload_adapter() before saving it")
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
            InputError: it is a classifier or an encoder.
        """
        if isinstance(self.module, MaskedLM):
            raise InputError("this model fills blanks (`predict`) and writes no text; use a GPT for that")
        if isinstance(self.module, Encoder):
            raise InputError(
                "this model is an encoder with no head and predicts nothing; fine-tune it (bedplate finetune), or read "
                "its hidden states (module.hidden)"
            )
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
        if (own := self.tokenizer.get_vocab_size(with_added_tokens=False)) > self.config.vocab_size:
            raise InputError(
                f"the tokenizer has {own:,} tokens and the model a vocabulary of {self.config.vocab_size:,}; put the "
                "model's own tokenizer.json into the directory"
            )
        return self.tokenizer


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    adapter: str | Path | None = None,
) -> Model:
    """A model from a model directory, a run directory, an adapter directory, `zoo:NAME` or `hf:ORG/NAME[@REVISION]`.

    Args:
        device: where the weights go, the CPU by default.
        dtype: fp32, bf16 or fp16; by default as the checkpoint has it, the zoo (stored in bf16, to be small) in fp32.
        adapter: a LoRA adapter to put on it, see `Model.load_adapter`. An adapter directory in place of a model brings
            the base that it names.

    Raises:
        InputError: nothing is there, or what is there is not a model that bedplate has.
    """
    directory = locate(path)
    if dtype is None and str(path).startswith("zoo:"):
        dtype = "fp32"  # many CPUs multiply no bf16
    if is_adapter(directory):
        model = load(adapters.base_of(directory), device, dtype)
        model.merge_adapter()  # where an adapter was trained on the base with another
        model.load_adapter(directory)
    elif adapter is None and (directory / ADAPTER).is_file():
        raise InputError(
            f"{directory}: holds an adapter ({ADAPTER}) beside a model; give adapter={str(directory)!r} to put it on "
            "that model, or move it into a folder of its own"
        )
    else:
        model = _load_directory(directory, device, dtype)
    if adapter is not None:
        model.merge_adapter()
        model.load_adapter(adapter)
    return model


def _load_directory(directory: Path, device: str | torch.device | None, dtype: str | torch.dtype | None) -> Model:
    if is_vision(read_config_values(directory)[0]):
        raise InputError(f"{directory}: is a model of images, and a model of text is needed here; give one of text")
    module = load_module(directory, dtype, device)
    tokenizer = load_tokenizer(directory) if (directory / "tokenizer.json").is_file() else None
    card = directory / "README.md"
    text = card.read_text("utf-8", errors="replace") if card.is_file() else ""
    special, settings = read_special_tokens(directory), read_embedding_settings(directory)
    return Model(module, tokenizer, text, special, load_tokenizer_config(directory), embedding=settings)
