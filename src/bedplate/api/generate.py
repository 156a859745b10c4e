"""`generate`: continue texts, or hold a conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bedplate.errors import InputError
from bedplate.hub.chat import Conversation
from bedplate.hub.image_model import ImageModel
from bedplate.hub.load import load
from bedplate.hub.model import Model
from bedplate.hub.multimodal import MultimodalModel
from bedplate.hub.text import strings
from bedplate.models.beam import EarlyStopping
from bedplate.train.hardware import choose_device


def generate(
    model: Model | str | Path,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float | None = None,
    top_k: int | None = 50,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    no_repeat_ngram_size: int = 0,
    min_new_tokens: int = 0,
    stop: Sequence[str] = (),
    seed: int | None = None,
    device: str = "auto",
    dtype: str | None = None,
    adapter: str | Path | None = None,
    stream: Callable[[int, str], object] | None = None,
) -> list[dict[str, str]]:
    """Continue one text or several at once.

    Args:
        model: a model, or what `load` takes.
        temperature: 0 takes the likeliest token each time (default: 0.8).
        num_beams, length_penalty, early_stopping: more than one beam searches for the likeliest text, see
            `models.beam.beam_search`; it does not sample, so `top_k`, `top_p` and `seed` mean nothing to it.
        no_repeat_ngram_size, min_new_tokens: see `models.rules.Rules`.
        stop: strings that end a text.
        device: auto (the first GPU, else the CPU), cpu, cuda or mps, for a model that is loaded here.
        dtype: fp32, bf16 or fp16, that of its file by default, for a model that is loaded here.
        adapter: a LoRA adapter to put on it, for a model that is loaded here.
        stream: called with (row, new text) while it is written.

    Returns:
        [{"prompt", "text"}], one a prompt.
    """
    texts = strings(prompts, "prompt")
    loaded = _language_model(model, device, dtype, adapter)
    options: dict[str, Any] = {"num_beams": num_beams, "length_penalty": length_penalty}
    options |= {"early_stopping": early_stopping}
    if num_beams <= 1:
        options |= {"temperature": 0.8 if temperature is None else temperature}
        options |= {"top_k": top_k, "top_p": top_p, "seed": seed}
    elif temperature is not None:
        raise InputError(f"temperature is of sampling, and num_beams={num_beams} searches; leave one of them out")
    continued = loaded.generate(
        texts,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
        stop=stop,
        stream=stream,
        **options,
    )
    return [{"prompt": prompt, "text": text} for prompt, text in zip(texts, continued, strict=True)]


def converse(
    model: Model | str | Path,
    *,
    system: str | None = None,
    device: str = "auto",
    dtype: str | None = None,
    adapter: str | Path | None = None,
    **options: Any,
) -> Conversation:
    """A conversation with a model that has a chat template, as `bedplate generate MODEL --chat` holds it.

    Args:
        model: a model, or what `load` takes.
        system: what the model is told before the first turn.
        device, dtype, adapter: as for `generate`.
        options: of every answer: those of `generate` but `stream`, which `Conversation.ask` takes.

    Raises:
        InputError: the model cannot be loaded, or has no chat template.
    """
    loaded = _language_model(model, device, dtype, adapter)
    return Conversation(loaded, system, **options)


def _language_model(model: Any, device: str, dtype: str | None, adapter: str | Path | None) -> Model:
    """The model itself, or what `load` makes of a path.

    Raises:
        InputError: it is a model of another kind, or nothing that can be loaded.
    """
    name, loaded = "this model", model
    if isinstance(model, str | Path):
        name, loaded = str(model), load(model, choose_device(device), dtype, adapter)
    if isinstance(loaded, Model):
        return loaded
    if isinstance(loaded, ImageModel | MultimodalModel):
        raise InputError(f"{name} {loaded.instead_of_text}")
    raise InputError(f"{type(loaded).__name__} writes no texts; give a language model, or the path of one")
