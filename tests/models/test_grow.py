"""Grown networks compute what the smaller ones did, and can learn in every new block."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bedplate.errors import InputError
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.models.grow import grown_config, grown_weights, sources


def grow(gpt: GPT, layers: int) -> GPT:
    grown = GPT(grown_config(gpt.config, layers)).eval()
    weights = list(grown_weights(gpt.named_parameters(), gpt.config.trunk.num_hidden_layers, layers))
    assert [name for name, _ in weights] == [name for name, _ in grown.named_parameters()], "sharding fills in order"
    with torch.no_grad():
        for (_, own), (_, value) in zip(grown.named_parameters(), weights, strict=True):
            own.copy_(value)
    return grown


@pytest.mark.parametrize("layers", [3, 4, 7])
def test_it_computes_the_same_to_the_bit(gpt: GPT, layers: int) -> None:
    ids = torch.randint(0, 29, (3, 12), generator=torch.Generator().manual_seed(0))
    grown = grow(gpt, layers)
    assert len(grown.trunk.blocks) == layers
    with torch.no_grad():
        assert torch.equal(grown(ids), gpt(ids))


def test_every_new_block_learns(make_gpt: Callable[..., GPT]) -> None:
    grown, ids = grow(make_gpt("qwen3"), 4), torch.arange(12)[None]
    for step in range(2):  # at first only a copy's outputs have a gradient; once they are not zero, all of it has
        grown.zero_grad()
        total, weight = grown.loss(ids[:, :-1], ids[:, 1:])
        (total / weight).backward()
        if step == 0:
            with torch.no_grad():
                for parameter in grown.parameters():
                    parameter -= 0.1 * parameter.grad
    for name, parameter in grown.trunk.blocks.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@given(st.integers(1, 40), st.integers(0, 60))
def test_copies_stand_evenly_behind_their_blocks(before: int, more: int) -> None:
    origin = sources(before, before + more)
    counts = [origin.count(block) for block in range(before)]
    assert origin == sorted(origin) and min(counts) >= 1 and max(counts) - min(counts) <= 1


def test_windows_go_with_their_blocks(make_gpt: Callable[..., GPT]) -> None:
    config = grown_config(make_gpt("llama-window").config, 4)
    assert config.trunk.windows == (3, 3, None, None)


def test_what_cannot_grow_is_refused(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt("qwen3")
    with pytest.raises(InputError, match="grow_layers=2: the base has 2 blocks; give more"):
        grown_config(gpt.config, 2)
    encoder = GPTConfig.from_preset(
        "bert", vocab_size=9, max_position_embeddings=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(InputError, match="for models that write, not for bert"):
        grown_config(encoder, 2)
