"""Text classification: what a text is given follows from the text alone, and what is measured from the logits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.data.examples import Rows, SortedEvalLoader
from bedplate.models.classifier import Classifier
from bedplate.models.gpt import GPTConfig
from bedplate.tasks.classify import Classify, as_predictions, mistakes

LABELS = ["a", "b", "c"]
V, LONGEST = 40, 16


def classifier(pooling: str, is_causal: bool) -> Classifier:
    base = GPTConfig.from_preset(
        "qwen3",
        vocab_size=V,
        max_position_embeddings=LONGEST,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    config = GPTConfig("qwen3", V, LONGEST, True, base.trunk, is_causal)
    module = Classifier(config, LABELS, pooling).eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def rows(texts: list[list[list[int]]]) -> Rows:
    """Rows of texts of windows of ids."""
    ids = [window for windows in texts for window in windows]
    numbers = [number for number, windows in enumerate(texts) for _ in windows]
    return Rows(ids, np.array(numbers), np.arange(len(texts)) % 3, 0, 0)


WINDOW = st.lists(st.integers(0, V - 1), min_size=1, max_size=LONGEST)
TEXTS = st.lists(st.lists(WINDOW, min_size=1, max_size=3), min_size=1, max_size=8)


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@settings(max_examples=25)
@given(texts=TEXTS, tokens=st.integers(1, 100))
def test_logits_do_not_depend_on_the_company(
    pooling: str, is_causal: bool, texts: list[list[list[int]]], tokens: int
) -> None:
    """Padded in any batch, a text has the mean of what its windows have alone; the token 0 is a token."""
    module = classifier(pooling, is_causal)
    logits, labels = Classify(module).logits(SortedEvalLoader(rows(texts), tokens))
    with torch.inference_mode():
        alone = [torch.cat([module(torch.tensor([window])) for window in windows]).mean(0) for windows in texts]
    assert (logits - torch.stack(alone)).abs().max() < 1e-5
    assert labels.tolist() == [number % 3 for number in range(len(texts))]


def test_the_loss_is_that_of_the_rows() -> None:
    module, (batch, *_) = classifier("mean", True), list(SortedEvalLoader(rows([[[1, 2]], [[3]], [[4, 5, 6]]])))
    total, count = Classify(module).loss(batch)["loss"]
    with torch.no_grad():
        shares = module(batch["ids"], batch["lengths"]).softmax(1)
    expected = -sum(math.log(share[label]) for share, label in zip(shares.tolist(), batch["labels"], strict=True))
    assert total.item() == pytest.approx(expected, rel=1e-5) and count == 3


def test_measures_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(50, 3, generator=generator), torch.randint(3, (50,), generator=generator)
    measured = Classify(classifier("last", True)).measure(logits, labels)
    assert set(measured) == set(Classify.metrics)
    predicted = logits.argmax(1)
    assert measured["accuracy"]["value"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert measured["macro_f1"]["value"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert measured["loss"]["value"] == pytest.approx(metrics.log_loss(labels, logits.double().softmax(1)), rel=1e-5)


def test_evaluating_leaves_the_mode_as_it_was() -> None:
    module = classifier("mean", True).train()
    Classify(module).evaluate(SortedEvalLoader(rows([[[1, 2]], [[3]]])))
    assert module.training


def test_predictions_and_mistakes_are_what_a_person_reads() -> None:
    predictions = as_predictions(torch.tensor([[0.0, 0, 5], [9, 0, 0], [0, 1, 0]]), LABELS)
    assert [row["label"] for row in predictions] == ["c", "a", "b"]
    assert all(row["score"] == row["scores"][row["label"]] == max(row["scores"].values()) for row in predictions)
    wrong = mistakes(["x", "y", "z"], ["a", "b", "b"], predictions)
    assert [(row["text"], row["label"], row["predicted"]) for row in wrong] == [("y", "b", "a"), ("x", "a", "c")]
    assert mistakes(["x", "y", "z"], ["a", "b", "b"], predictions, count=1) == wrong[:1]
