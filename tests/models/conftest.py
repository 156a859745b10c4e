from collections.abc import Callable
from typing import Any

import pytest
import torch

from bedplate.models.gpt import GPT, GPTConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {"preset": "gpt2"},
    "llama": {"preset": "llama", "tie_word_embeddings": False},
    "qwen3": {"preset": "qwen3"},
    "qwen3-gqa": {"preset": "qwen3", "num_key_value_heads": 2},
    "llama-window": {"preset": "llama", "windows": (3, None)},
}


def make_gpt(variant: str, **options: Any) -> GPT:
    """A tiny GPT whose weights hide nothing: no output is zero, no gain is one, the logits are well apart."""
    sizes = {"vocab_size": 29, "max_position_embeddings": 32, "hidden_size": 16, "num_hidden_layers": 2}
    config = GPTConfig.from_preset(**{**sizes, "num_attention_heads": 4, **VARIANTS[variant], **options})
    gpt, generator = GPT(config).eval(), torch.Generator().manual_seed(1)
    for name, parameter in gpt.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.data = 1 + 0.3 * noise
        else:
            parameter.data = noise * (
                0.5 if name.startswith(("embed", "head", "positions")) else parameter.shape[-1] ** -0.5
            )
    return gpt


@pytest.fixture(name="make_gpt", scope="session")
def _make_gpt() -> Callable[..., GPT]:
    return make_gpt


@pytest.fixture(params=VARIANTS, scope="session")
def gpt(request: pytest.FixtureRequest) -> GPT:
    """A GPT of each variant in turn; not to be changed."""
    return make_gpt(request.param)
