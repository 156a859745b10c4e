from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from bedplate.data.tokenizer import train_tokenizer
from bedplate.hub.directory import SpecialTokens
from bedplate.hub.model import Model
from bedplate.models.gpt import GPT, GPTConfig

TEXTS = ["the cat sees a dog in the garden", "her sister likes the old house", "who finds the small bird tonight?"]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level, of 300 tokens and `<|mask|>`."""
    tokenizer = train_tokenizer(TEXTS * 4, 300)
    if tokenizer.token_to_id("<|mask|>") is None:
        tokenizer.add_special_tokens(["<|mask|>"])
    return tokenizer


@pytest.fixture(scope="session")
def random_model(tokenizer: Tokenizer) -> Callable[..., Model]:
    """`random_model(preset, **sizes)`: a tiny language model whose logits are well apart."""

    def make(preset: str = "qwen3", **options: Any) -> Model:
        sizes = {"max_position_embeddings": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = GPTConfig.from_preset(preset, vocab_size=tokenizer.get_vocab_size(), **{**sizes, **options})
        module, generator = GPT(config).eval(), torch.Generator().manual_seed(1)
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = 1 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.4 * noise
        return Model(module, tokenizer, special=SpecialTokens.of(tokenizer))

    return make
