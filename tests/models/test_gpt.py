"""GPT: positions, loss, fresh weights and the count of FLOPs."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bedplate.errors import InputError
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.nn.heads import IGNORE


def gpt2_small() -> GPT:
    with torch.device("meta"):
        return GPT(
            GPTConfig.from_preset(
                "gpt2",
                vocab_size=50257,
                max_position_embeddings=1024,
                hidden_size=768,
                num_hidden_layers=12,
                num_attention_heads=12,
            )
        )


def test_gpt2_small_has_its_published_size_and_flops() -> None:
    gpt = gpt2_small()
    assert sum(p.numel() for p in gpt.parameters()) == 124_439_808
    matrices = 12 * (4 * 768 * 768 + 2 * 768 * 3072) + 50257 * 768
    assert gpt.flops_per_token(1024) == 6 * matrices + 12 * 12 * 768 * 1024


def test_loss_is_the_cross_entropy_of_the_logits(gpt: GPT) -> None:
    generator = torch.Generator().manual_seed(0)
    ids, targets = torch.randint(0, 29, (2, 2, 7), generator=generator)
    targets[0, 3:] = IGNORE
    total, count = gpt.loss(ids, targets)
    expected = F.cross_entropy(gpt(ids).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    assert count == 3 + 7
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    # A tied head is one of them, with the gradients of both its uses.
    names, parameters = zip(*gpt.named_parameters(), strict=True)
    ours = torch.autograd.grad(total, parameters)
    theirs = torch.autograd.grad(expected, parameters)
    for name, one, other in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=f"the gradient of {name} differs")


def test_packed_documents_equal_separate_rows(gpt: GPT) -> None:
    texts = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
    ids = torch.tensor([[*texts[0], *texts[1], *texts[2]]])
    doc = torch.tensor([[1] * 5 + [2] * 2 + [3] * 3])
    pos = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 0, 1, 2]])
    alone = torch.cat([gpt(torch.tensor([text])) for text in texts], 1)
    torch.testing.assert_close(gpt(ids, pos=pos, doc=doc), alone, rtol=0, atol=3e-5)
    assert (gpt(ids)[:, 5:] - alone[:, 5:]).abs().max() > 0.1


def test_positions_go_on_from_the_cache(gpt: GPT) -> None:
    ids, cache = torch.tensor([[3, 1, 4, 1, 5, 9, 2]]), gpt.trunk.make_cache(1, 7)
    parts = [gpt(part, cache=cache) for part in ids.split([3, 1, 2, 1], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), gpt(ids), rtol=0, atol=3e-5)


def test_learned_positions_are_limited_but_rows_of_packed_documents_are_not(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt("gpt2", max_position_embeddings=8)
    with pytest.raises(InputError, match="9 tokens do not fit into this model's 8 learned positions"):
        gpt(torch.zeros(1, 9, dtype=torch.long))
    cache = gpt.trunk.make_cache(1, 9)
    gpt(torch.zeros(1, 8, dtype=torch.long), cache=cache)
    with pytest.raises(InputError, match="9 tokens"):
        gpt(torch.zeros(1, 1, dtype=torch.long), cache=cache)
    ids, doc = torch.arange(12)[None], torch.arange(12)[None] // 6 + 1
    packed = gpt(ids, pos=torch.arange(12)[None] % 6, doc=doc)
    torch.testing.assert_close(packed[:, 6:], gpt(ids[:, 6:]), rtol=0, atol=3e-5)


def test_bf16_autocast_is_near_fp32(gpt: GPT) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.autocast("cpu", torch.bfloat16):
        logits = gpt(ids)
        total, _ = gpt.loss(ids, ids)
    assert logits.dtype == torch.bfloat16 and total.dtype == torch.float32
    exact = gpt(ids)
    assert (logits - exact).norm() < 0.05 * exact.norm()
    gradients = torch.autograd.grad(total, list(gpt.parameters()))
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in gradients)


@pytest.mark.parametrize("preset", ["gpt2", "llama", "qwen3"])
def test_fresh_weights_are_a_function_of_the_seed(preset: str, make_gpt: Callable[..., GPT]) -> None:
    one, two, other = (make_gpt(preset) for _ in range(3))
    torch.manual_seed(7)
    one.init_weights(0)
    torch.manual_seed(8)
    two.init_weights(0)
    other.init_weights(1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.embed.weight, other.embed.weight)


def test_fresh_gpt2_has_the_published_scales(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt("gpt2", hidden_size=64, num_hidden_layers=3, vocab_size=200, max_position_embeddings=200)
    gpt.init_weights(0)
    assert gpt.head.weight is gpt.embed.weight
    for name, parameter in gpt.named_parameters():
        if parameter.dim() < 2:
            assert parameter.eq(1 if "norm" in name and name.endswith("weight") else 0).all(), name
        else:
            std = 0.02 / 6**0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            assert abs(parameter.std() / std - 1) < 0.05 and abs(parameter.mean()) < std / 10, name


@pytest.mark.parametrize("preset", ["llama", "qwen3"])
def test_other_fresh_blocks_are_no_ops(preset: str, make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt(preset, hidden_size=64, num_hidden_layers=3, vocab_size=200)
    gpt.init_weights(0)
    for name, parameter in gpt.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert parameter.eq(0).all(), name
        elif parameter.dim() == 2:
            std = 0.02 if name.startswith(("embed", "head")) else 64**-0.5
            assert abs(parameter.std() / std - 1) < 0.05, name
        else:
            assert parameter.eq(1).all(), name
    ids = torch.tensor([[3, 1, 4]])
    torch.testing.assert_close(gpt.hidden(ids), gpt.trunk.norm(gpt.embed(ids)))


def test_sizes_that_do_not_fit_each_other(make_gpt: Callable[..., GPT]) -> None:
    with pytest.raises(InputError, match=r"hidden_size=18 is not a multiple of model\.num_attention_heads=4"):
        make_gpt("gpt2", hidden_size=18)
    with pytest.raises(InputError, match="num_attention_heads=4 must be a multiple of num_key_value_heads=3"):
        make_gpt("llama", num_key_value_heads=3)
    with pytest.raises(InputError, match="head_dim=5 must be even"):
        make_gpt("llama", head_dim=5)


def narrow(preset: str, vocab_size: int, seed: int) -> GPT:
    """One layer of 16, for 8 tokens."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8}
    module = GPT(GPTConfig.from_preset(preset, vocab_size=vocab_size, **sizes))
    module.init_weights(seed)
    return module


def test_the_document_objective_learns_which_words_keep_company() -> None:
    """Words 1-4 and 5-8 are never in one document: after training, some of a group foretell the rest of it."""
    module = narrow("qwen3", 9, seed=0)
    weight, log_prior = torch.tensor([0.0] + [1.0] * 8), torch.tensor([-20.0] + [math.log(1 / 8)] * 8)
    given = torch.tensor([[1, 2, -1], [5, 6, 7], [-1, -1, -1]])
    asked = torch.tensor([[3, 4, -1], [8, -1, -1], [1, 2, 3]])
    total, counted = module.document_loss(given, asked, weight, log_prior)
    assert counted == 2  # a document of which nothing is given teaches nothing
    assert total.item() / 2 == pytest.approx(math.log(8), rel=0.05)  # at first no more is known than the prior
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(60):
        total, counted = module.document_loss(given, asked, weight, log_prior)
        (total / counted).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert total.item() / 2 < math.log(3)
    assert module.trunk.blocks[0].attn.q_proj.weight.grad is None  # the trunk takes no part


def test_the_document_objective_does_not_depend_on_padding_or_order() -> None:
    module = narrow("llama", 20, seed=1)
    weight, log_prior = torch.rand(20), torch.full((20,), -3.0)
    one = module.document_loss(torch.tensor([[3, 4, 5]]), torch.tensor([[6, 7]]), weight, log_prior)[0]
    other = module.document_loss(torch.tensor([[5, 4, 3, -1]]), torch.tensor([[7, -1, 6]]), weight, log_prior)[0]
    assert torch.allclose(one, other)


def test_the_passage_objective_puts_what_order_says_into_the_last_state() -> None:
    """The word foretold depends on which of two words comes first: no bag of words can know it."""
    module = narrow("qwen3", 9, seed=0)
    weight, log_prior = torch.ones(9), torch.full((9,), math.log(1 / 9))
    passages, others = torch.tensor([[1, 2], [2, 1], [-1, -1]]), torch.tensor([[5], [6], [5]])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(80):
        total, counted = module.passage_loss(passages, others, weight, log_prior)
        (total / counted).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert counted == 2  # an empty passage teaches nothing
    assert total.item() / 2 < math.log(1.5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_passage_reads_nothing_but_itself(make_gpt: Callable[..., GPT], family: str) -> None:
    module = make_gpt(family)
    weight, log_prior = torch.rand(module.config.vocab_size), torch.zeros(module.config.vocab_size)
    passages = torch.tensor([[3, 1, 4, -1], [2, 5, -1, -1], [6, 2, 5, 3]])
    others = torch.tensor([[7, 8], [9, -1], [1, 7]])
    alone = [
        module.passage_loss(row[row >= 0][None], rest[None], weight, log_prior)[0]
        for row, rest in zip(passages, others, strict=True)
    ]
    torch.testing.assert_close(module.passage_loss(passages, others, weight, log_prior)[0], sum(alone))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("windows", [None, (3, 3)])
def test_one_token_of_each_row_is_what_it_is_among_all(family: str, is_causal: bool, windows: object) -> None:
    config = GPTConfig.from_preset(
        family,
        vocab_size=50,
        max_position_embeddings=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        windows=windows,
    )
    module = GPT(replace(config, is_causal=is_causal)).double().eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids, lengths = torch.randint(0, 50, (5, 11)), torch.tensor([11, 3, 1, 7, 10])
    valid = torch.arange(11) < lengths[:, None]
    every = module.hidden(ids, valid=valid, right_padded=True)
    one = module.hidden(ids, valid=valid, right_padded=True, at=lengths - 1)
    assert torch.allclose(one[:, 0], every[torch.arange(5), lengths - 1], atol=1e-12)
    pos = torch.arange(11).expand(5, -1) + torch.arange(5)[:, None]  # rows may have positions of their own
    every, at = module.hidden(ids, pos=pos), torch.tensor([0, 4, 2, 10, 7])
    assert torch.allclose(module.hidden(ids, pos=pos, at=at)[:, 0], every[torch.arange(5), at], atol=1e-12)
