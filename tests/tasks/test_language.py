"""The loss of causal and masked rows against what it is made of."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bedplate
from bedplate.data.loader import Batch
from bedplate.data.masking import Masking
from bedplate.hub.model import Model
from bedplate.tasks.language import Language


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return bedplate.load(tiny_run)


def make_batch(model: Model, rows: int = 4, length: int = 24) -> Batch:
    assert model.tokenizer is not None
    tokens = np.random.default_rng(0).integers(4, model.config.vocab_size, (rows, length + 1))
    batch = {"ids": torch.from_numpy(tokens[:, :-1].copy()), "targets": torch.from_numpy(tokens[:, 1:].copy())}
    return Masking.of(model.tokenizer, 0.25, shift=1, seed=0)(batch)


@torch.no_grad()
def test_a_masked_row_weighs_as_much_as_a_causal_one(model: Model) -> None:
    assert model.tokenizer is not None
    batch = make_batch(model)
    logits = model.module(batch["ids"][1:])
    causal = F.cross_entropy(logits.flatten(0, 1), batch["targets"][1:].flatten())
    states = model.module.hidden(batch["masked_ids"][:1], is_causal=False)[0, batch["masked_at"][0]]
    masked = F.cross_entropy(model.module.head(states), batch["masked_targets"][0])
    total, weight = Language(model.module, model.tokenizer, masked_share=0.25).loss(batch)["loss"]
    torch.testing.assert_close(total / weight, 0.75 * causal + 0.25 * masked)


@torch.no_grad()
def test_the_state_before_a_hidden_token_sees_what_follows_it_but_not_the_token(model: Model) -> None:
    batch = make_batch(model, rows=1)
    ids, at = batch["masked_ids"], batch["masked_at"]

    def states(ids: torch.Tensor) -> torch.Tensor:
        return model.module.hidden(ids, is_causal=False)[0, at[0]]

    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % model.config.vocab_size
    assert not torch.allclose(states(ids), states(changed))
    causal = model.module.hidden(ids)
    assert torch.equal(causal[0, :-1], model.module.hidden(changed)[0, :-1])


def test_masked_rows_alone_are_learnt_and_measured(model: Model) -> None:
    assert model.tokenizer is not None
    batch, task = make_batch(model), Language(model.module, model.tokenizer, masked_share=1.0)
    losses = task.loss(batch)
    assert "next_token" not in losses
    nats, hidden = losses["masked"]
    total, weight = losses["loss"]
    torch.testing.assert_close(total / weight, nats / hidden)
    metrics = task.evaluate([batch])
    assert metrics["masked_loss"]["value"] == pytest.approx((nats / hidden).item(), rel=1e-5)
    assert 0 <= metrics["masked_accuracy"]["value"] <= 1
