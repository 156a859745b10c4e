"""Encoders: hidden states at some places, the loss of masked tokens, packing, fresh weights, classifiers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.errors import InputError
from bedplate.models.bert import Encoder, MaskedLM
from bedplate.models.classifier import Classifier
from bedplate.models.gpt import GPTConfig
from bedplate.nn.heads import IGNORE

V, N, K = 61, 24, 5
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "max_position_embeddings": 32,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "bert": {"preset": "bert"},
    "bert-untied": {"preset": "bert", "tie_word_embeddings": False},
    "modernbert": {"preset": "modernbert", "windows": (None, 3, 3, None)},
}


@pytest.fixture(params=VARIANTS)
def module(request: pytest.FixtureRequest) -> MaskedLM:
    return make(request.param)


def make(variant: str) -> MaskedLM:
    """Weights hide nothing: biases are there, gains are not one, blocks do not start as the identity."""
    module, generator = (
        MaskedLM(GPTConfig.from_preset(**SIZES | VARIANTS[variant])).eval(),
        torch.Generator().manual_seed(1),
    )
    for name, parameter in module.named_parameters():
        is_gain = "norm" in name and name.endswith("weight")
        parameter.data = float(is_gain) + 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def some(high: int, *shape: int, seed: int = 2) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def places() -> Tensor:
    return torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(row))[:K] for row in range(3)])


@pytest.mark.parametrize("packed", [False, True])
def test_states_at_some_places_are_those_of_all(module: MaskedLM, packed: bool) -> None:
    ids, at = some(V, 3, N), places()
    options = {}
    if packed:
        doc = torch.where(torch.arange(N) < torch.tensor([[7], [20], [N]]), 1, 2)
        options = {
            "doc": doc,
            "pos": torch.where(doc == 1, torch.arange(N), torch.arange(N) - (doc == 1).sum(1, keepdim=True)),
        }
    whole = module.hidden(ids, **options)
    torch.testing.assert_close(module.hidden(ids, at=at, **options), whole.gather(1, at[..., None].expand(-1, -1, 16)))
    torch.testing.assert_close(module.hidden(ids, at=at[:, 0], **options), module.hidden(ids, at=at[:, :1], **options))


def test_the_loss_is_the_cross_entropy_of_the_logits_there(module: MaskedLM) -> None:
    ids, at, targets = some(V, 3, N), places(), some(V, 3, K, seed=3)
    targets[0, 1] = targets[2, 0] = IGNORE
    total, count = module.loss(ids, at, targets)
    (total / count).backward()
    found = {
        name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None
    }
    module.zero_grad()
    logits = module(ids).gather(1, at[..., None].expand(-1, -1, V))
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    expected.backward()
    assert count == 3 * K - 2
    torch.testing.assert_close(total / count, expected)
    assert "head.bias" in found and found["head.bias"].abs().max() > 0
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_packed_texts_are_as_alone(module: MaskedLM) -> None:
    first, second = some(V, 1, 9), some(V, 1, 14, seed=5)
    doc = torch.tensor([[1] * 9 + [2] * 14])
    pos = torch.cat((torch.arange(9), torch.arange(14)))[None]
    packed = module(torch.cat((first, second), 1), doc=doc, pos=pos)
    torch.testing.assert_close(packed[:, :9], module(first), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(packed[:, 9:], module(second), atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing(module: MaskedLM) -> None:
    ids, lengths = some(V, 3, N), torch.tensor([N, 11, 1])
    valid = torch.arange(N) < lengths[:, None]
    padded = module.hidden(ids, valid=valid)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(
            padded[row, :length], module.hidden(ids[row : row + 1, :length])[0], atol=1e-5, rtol=1e-4
        )


def test_each_token_sees_what_follows_and_within_its_window(module: MaskedLM) -> None:
    """Only a modernbert layer has a window; with the two global layers all see all."""
    ids = some(V, 1, N)
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % V
    changed = (module.hidden(ids) - module.hidden(other)).abs().amax(2)[0]
    assert (changed > 1e-6).all()
    local = MaskedLM(GPTConfig.from_preset(**SIZES | {"preset": "modernbert", "windows": (2, 2, 2, 2)}))
    local.load_state_dict(make("modernbert").state_dict())
    reach = (local.hidden(ids) - local.hidden(other)).abs().amax(2)[0]
    assert (reach[: N - 1 - 8] == 0).all() and (reach[N - 1 - 8 :] > 0).all()


@pytest.mark.parametrize("preset", ["bert", "modernbert"])
def test_fresh_weights_follow_from_the_seed_and_favour_no_token(preset: str) -> None:
    config = GPTConfig.from_preset(preset, **SIZES)
    first, again, other = (MaskedLM(config) for _ in range(3))
    first.init_weights(1), again.init_weights(1), other.init_weights(2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embed.weight, other.embed.weight)
    total, count = first.loss(some(V, 3, N), places(), some(V, 3, K, seed=3))
    assert abs(total / count - torch.tensor(float(V)).log()) < 0.1


def test_a_classifier_starts_from_the_base() -> None:
    base = make("modernbert")
    classifier = Classifier.of(base, ["a", "b"])
    assert classifier.pooling == "cls"
    ids = some(V, 3, N)
    torch.testing.assert_close(classifier.transform(classifier.hidden(ids)), base.transform(base.hidden(ids)))
    assert (classifier(ids) == 0).all()

    encoder = Encoder(make("bert").config, pooler=True)
    encoder.load_state_dict(make("bert").state_dict() | encoder.pooler.state_dict(prefix="pooler."), strict=False)
    with_pooler = Classifier.of(encoder, ["a", "b"])
    torch.testing.assert_close(with_pooler.pooler.dense.weight, encoder.pooler.dense.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "last"}, "pooling='last' is not for a bert model; choose cls or mean"),
        ({"is_causal": True}, "attention=causal is not for a bert model"),
    ],
)
def test_refuses_what_an_encoder_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Classifier.of(make("bert"), ["a", "b"], **options)
