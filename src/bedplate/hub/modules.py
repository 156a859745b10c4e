"""Which of our modules a model directory holds."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from tokenizers import Tokenizer

from bedplate.hub.classifier import ClassifierHead
from bedplate.hub.weights import POOLER, TRANSFORM, their_name
from bedplate.models.bert import Encoder, MaskedLM
from bedplate.models.classifier import Classifier
from bedplate.models.gpt import GPT, GPTConfig, TextModel

SPECIAL = {
    "pad_token_id": ("[PAD]", "<pad>", "<|endoftext|>"),
    "cls_token_id": ("[CLS]", "<s>", "<|endoftext|>"),
    "sep_token_id": ("[SEP]", "</s>", "<|endoftext|>"),
}


def make_module(config: GPTConfig, head: ClassifierHead | None, names: Container[str]) -> GPT | Encoder | Classifier:
    """The module of a config file and the tensors beside it; an encoder whose checkpoint has no head has none here."""
    if head is not None:
        return Classifier(config, head.labels, head.pooling)
    if not config.is_encoder:
        return GPT(config)
    kind = MaskedLM if their_name(config.family, TRANSFORM) in names else Encoder
    return kind(config, pooler=config.family == "bert" and their_name("bert", POOLER) in names)


def is_bare(module: TextModel) -> bool:
    """Whether it is a family's model without a head, whose checkpoints have no prefix."""
    return isinstance(module, Encoder) and not isinstance(module, MaskedLM)


def encoder_to_hf(module: TextModel, architecture: str, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What a config file of an encoder says beside its network.

    Its `transformers` classes have special ids as defaults, which another vocabulary may not even hold: each is named.
    """
    ids = {key: _first(tokenizer, names) for key, names in SPECIAL.items()}
    return ids | ({"architectures": [architecture.replace("ForMaskedLM", "Model")]} if is_bare(module) else {})


def _first(tokenizer: Tokenizer | None, names: Sequence[str]) -> int | None:
    found = (tokenizer.token_to_id(name) for name in names) if tokenizer is not None else ()
    return next((index for index in found if index is not None), None)
