"""The switches that are wrapped around a module reach its blocks."""

import pytest
import torch

from bedplate.models.gpt import GPT, GPTConfig
from bedplate.recipe.schema import TrainRecipe
from bedplate.train import parallel
from bedplate.train.parallel import blocks, wrap


@pytest.fixture
def module() -> GPT:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    return GPT(GPTConfig.from_preset("qwen3", vocab_size=32, max_position_embeddings=8, **sizes))


def test_activation_checkpointing_runs_each_block_again(module: GPT) -> None:
    norms = []
    for block in blocks(module):
        block.attn_norm.register_forward_hook(lambda *_: norms.append(1))
    names = [name for name, _ in module.named_parameters()]
    wrap(module, TrainRecipe(steps=1, activation_checkpointing=True))
    ids = torch.zeros(1, 4, dtype=torch.long)
    module.loss(ids, ids)[0].backward()
    assert len(norms) == 2 * 3
    assert [name for name, _ in module.named_parameters()] == names


def test_compile_reaches_each_block(module: GPT) -> None:
    wrap(module, TrainRecipe(steps=1, compile=True))
    assert all(block._compiled_call_impl is not None for block in blocks(module))


def test_nothing_is_wrapped_unasked(module: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "checkpoint", None)
    wrap(module, TrainRecipe(steps=1))
    assert all(block._compiled_call_impl is None for block in blocks(module))
