"""LoRA: nothing changes until it is trained, only it is trained, and merged it computes the same."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bedplate.models.classifier import Classifier
from bedplate.models.decoder import decodable
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.models.sampling import generate
from bedplate.nn.heads import linear_cross_entropy
from bedplate.nn.lora import (
    LoRALinear,
    adapted_layers,
    add_adapter,
    merged_copy,
    scale_of,
    sharing_copy,
    train_adapter_only,
)
from bedplate.recipe.schema import OptimizerRecipe
from bedplate.train.optim import make_optimizers, state_tensors

FAMILIES = ("qwen3", "llama", "gpt2")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
IDS = torch.randint(0, 64, (3, 12), generator=torch.Generator().manual_seed(0))


def gpt(family: str = "qwen3") -> GPT:
    sizes = SIZES | ({"num_key_value_heads": 4} if family == "gpt2" else {})
    module = GPT(GPTConfig.from_preset(family, vocab_size=64, max_position_embeddings=64, **sizes)).eval()
    randomize(module, 1)
    return module


@torch.no_grad()
def randomize(module: nn.Module, seed: int, only: str = "") -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if only in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.2 * noise)


def linears(module: nn.Module) -> list[list[str]]:
    return [[name] for name, m in module.named_modules() if type(m) is nn.Linear and ".blocks." in name]


def adapted(module: Any, seed: int = 2, **options: Any) -> Any:
    """A copy with an adapter that changes something."""
    copied = sharing_copy(module)
    add_adapter(copied, linears(copied), 4, 2.0, **options)
    randomize(copied, seed, ".lora_")
    return copied


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_adapter_changes_no_bit(family: str) -> None:
    base = gpt(family)
    fresh = sharing_copy(base)
    add_adapter(fresh, linears(fresh), 4, 2.0, dropout=0.5)
    layers = 7 if family != "gpt2" else 6
    assert len(adapted_layers(fresh)) == 2 * layers
    assert torch.equal(base(IDS), fresh.eval()(IDS))


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.floats(0.1, 64), st.booleans(), st.integers(0, 2**20)
)
def test_merged_it_computes_the_same(inputs: int, outputs: int, rank: int, alpha: float, bias: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias)
    layer = LoRALinear(linear, rank, scale_of(rank, alpha), dropout=0.3).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1])
        x = torch.randn(2, 5, inputs, generator=generator) / inputs**0.5
        got, merged = layer(x), layer.merged()(x)
        expected = F.linear(x, layer.weight + alpha / rank * layer.lora_B @ layer.lora_A, layer.bias)
    assert type(layer.merged()) is nn.Linear
    scale = 1e-5 * max(1.0, expected.abs().max().item())
    assert (got - merged).abs().max() <= scale and (got - expected).abs().max() <= scale


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_computes_the_same_and_shares_the_rest(family: str) -> None:
    base = gpt(family)
    before = {name: p.clone() for name, p in base.named_parameters()}
    layered = adapted(base)
    merged = merged_copy(layered)
    assert (layered(IDS) - base(IDS)).abs().max() > 0.1, "the adapter does something"
    torch.testing.assert_close(merged(IDS), layered(IDS), atol=1e-5, rtol=0)
    assert not adapted_layers(merged) and merged.state_dict().keys() == base.state_dict().keys()
    assert merged.embed.weight is base.embed.weight and merged.head.weight is merged.embed.weight
    assert base.state_dict().keys() == merged.state_dict().keys() and adapted_layers(layered)
    assert all(torch.equal(before[name], p) for name, p in base.named_parameters())


def test_merging_in_bf16_rounds_the_sum_once() -> None:
    layer = LoRALinear(nn.Linear(16, 8, dtype=torch.bfloat16), 4, 0.5)
    randomize(layer, 3)
    exact = layer.weight.double() + 0.5 * layer.lora_B.double() @ layer.lora_A.double()
    merged = layer.merged().weight
    assert merged.dtype == torch.bfloat16 and torch.equal(merged, exact.to(torch.bfloat16))


def test_the_scale_of_both_rules() -> None:
    assert scale_of(16, 8) == 0.5 and scale_of(16, 8, rank_stabilized=True) == 2


def test_a_is_kaiming_uniform_and_follows_from_the_seed() -> None:
    first, second, third = (sharing_copy(gpt()) for _ in range(3))
    for module, seed in ((first, 5), (second, 5), (third, 6)):
        add_adapter(module, linears(module), 4, 1.0, seed=seed)
    a, b, c = (torch.cat([x.lora_A.flatten() for x in adapted_layers(m).values()]) for m in (first, second, third))
    assert torch.equal(a, b) and not torch.equal(a, c)
    for layer in adapted_layers(first).values():
        bound = 1 / math.sqrt(layer.in_features)
        assert layer.lora_A.abs().max() <= bound and layer.lora_A.std().item() == pytest.approx(bound / 3**0.5, rel=0.3)
        assert not layer.lora_B.any()


def test_layers_of_a_group_share_one_a() -> None:
    module = gpt("gpt2")
    names = [f"trunk.blocks.0.attn.{part}_proj" for part in "qkv"]
    add_adapter(module, [names], 3, 1.0)
    own = [name for name, _ in module.named_parameters() if ".lora_" in name]
    assert own == [f"{names[0]}.lora_A", *(f"{name}.lora_B" for name in names)]


def test_dropout_acts_on_the_adapter_in_training_only() -> None:
    layer = adapted(gpt(), dropout=0.5).trunk.blocks[0].attn.q_proj
    x = torch.randn(4, 32)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    torch.manual_seed(0)
    low = F.linear(F.dropout(x, 0.5), layer.lora_A)
    torch.manual_seed(0)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight) + 2.0 * F.linear(low, layer.lora_B))
    assert not torch.equal(layer(x), layer(x))


# Training.


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_the_adapter_and_the_score_are_trained(optimizer: str) -> None:
    classifier = Classifier.of(gpt(), ["a", "b", "c"])
    add_adapter(classifier, linears(classifier), 4, 2.0)
    train_adapter_only(classifier, besides=["score."])
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    recipe = OptimizerRecipe(name=optimizer, learning_rate=0.1, muon_learning_rate=0.1)
    optimizers = make_optimizers(classifier.train(), recipe, torch.float32)
    for _ in range(3):  # B is zero at first, and so is the score: the gradient needs steps to reach A
        F.cross_entropy(classifier(IDS), torch.tensor([0, 1, 2])).backward()
        for each in optimizers:
            each.step()
    trained = {name for name, p in classifier.named_parameters() if not torch.equal(p, before[name])}
    assert trained == {name for name in before if ".lora_" in name or name.startswith("score.")}
    assert {name for name, p in classifier.named_parameters() if p.grad is not None} == trained
    assert {key.rpartition("/")[0] for key in state_tensors(optimizers, classifier)} == trained


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_the_same() -> None:
    def gradients(frozen: bool) -> tuple[Tensor, Tensor | None]:
        hidden, weight = torch.randn(9, 8, generator=torch.Generator().manual_seed(1)), torch.ones(5, 8) / 3
        hidden.requires_grad_()
        weight.requires_grad_(not frozen)
        linear_cross_entropy(hidden, weight, torch.arange(9) % 5, rows=4)[0].backward()
        assert hidden.grad is not None
        return hidden.grad, weight.grad

    (trained, own), (frozen, none) = gradients(False), gradients(True)
    assert torch.equal(trained, frozen) and own is not None and none is None


def test_frozen_weights_cost_two_thirds() -> None:
    module = gpt()
    attention = 12 * 16 * 4 * 8 * 2
    matrices = module.flops_per_token(16) - attention
    add_adapter(module, linears(module), 4, 1.0)
    train_adapter_only(module)
    own = sum(p.numel() for name, p in module.named_parameters() if ".lora_" in name)
    assert module.flops_per_token(16) - attention == matrices * 4 // 6 + 6 * own


# Generation.


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_an_adapter_is_that_of_the_merged_model(family: str) -> None:
    layered = adapted(gpt(family))
    merged = merged_copy(layered)
    assert decodable(merged) and not decodable(layered)
    prompts = [[1, 2, 3], [5], [7, 8, 9, 10, 11]]
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 0}
    got = generate(layered, prompts, **options)
    assert got == generate(merged, prompts, **options) != generate(gpt(family), prompts, **options)
