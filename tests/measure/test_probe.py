"""Judges of frozen features beside scikit-learn and beside the plainest way to write them."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor

import bedplate.measure.probe as probe_module
from bedplate.errors import InputError
from bedplate.measure.probe import features, fit_logistic, knn, linear_probe
from bedplate.models.vit import VisionConfig, VisionModel
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS


def clouds(rows: int, spread: float, seed: int, classes: int = 4, width: int = 6) -> tuple[Tensor, Tensor]:
    """Features around a centre of each class, the columns of very different scale."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    x = centres[labels] + spread * torch.randn(rows, width, generator=generator)
    return x * 10.0 ** torch.arange(-2, width - 2), labels


def accuracy_of(predicted: list[int] | np.ndarray, labels: Tensor) -> float:
    return float((np.asarray(predicted) == labels.numpy()).mean())


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_features_are_final_states(pooling: str) -> None:
    module = VisionModel(VisionConfig((8, 12), 4, TrunkConfig(16, 2, 2, 2, 8, 32, **PRESETS["vit"] | {"dropout": 0.5})))
    module.init_weights(0)
    module.train()
    pixels = torch.randn(5, 3, 8, 12)
    found = features(module, pixels.split(2), pooling)  # type: ignore[arg-type]
    assert module.training and not found.requires_grad
    states = module.eval().hidden(pixels)
    torch.testing.assert_close(found, states[:, 0] if pooling == "cls" else states[:, 1:].mean(1))


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (500, 0.5)])
def test_neighbours_vote_by_their_cosine(k: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "QUERIES", 7)
    train, test = clouds(60, 1.5, 1), clouds(50, 1.5, 2)
    predicted = []
    for query in test[0].tolist():
        cosines = []
        for row, label in zip(train[0].tolist(), train[1].tolist(), strict=True):
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            cosines.append((dot / (math.hypot(*query) * math.hypot(*row)), label))
        votes: dict[int, float] = defaultdict(float)
        for cosine, label in sorted(cosines, reverse=True)[:k]:
            votes[label] += math.exp(cosine / temperature)
        predicted.append(max(votes, key=votes.__getitem__))
    scores = knn(train, test, k, temperature)["accuracy"]
    assert scores["value"] == accuracy_of(predicted, test[1]) and scores["n"] == 50
    assert scores["low"] < scores["value"] < scores["high"]


def test_neighbours_are_those_of_scikit_learn() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    train, test = clouds(400, 1.0, 1), clouds(300, 1.0, 2)
    theirs = neighbors.KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    predicted = theirs.fit(train[0].numpy(), train[1].numpy()).predict(test[0].numpy())
    assert knn(train, test)["accuracy"]["value"] == accuracy_of(predicted, test[1])


def test_classes_that_only_the_test_images_have_are_missed() -> None:
    train, test = clouds(40, 0.1, 1), clouds(40, 0.1, 2, classes=5)
    expected = float((test[1] < 4).float().mean())
    assert knn(train, test)["accuracy"]["value"] <= expected < 1
    assert linear_probe(train, test)["accuracy"]["value"] <= expected


@pytest.mark.parametrize("penalty", [1e-3, 1e-1, 10.0])
def test_the_regression_is_that_of_scikit_learn(penalty: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = clouds(200, 1.0, 1)
    x = ((x - x.mean(0)) / x.std(0)).double()
    weight, bias = fit_logistic(x, y, 4, penalty)
    theirs = linear_model.LogisticRegression(C=1 / (penalty * len(x)), max_iter=10_000, tol=1e-10)
    theirs.fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(weight.numpy(), theirs.coef_, atol=1e-4)
    np.testing.assert_allclose((bias - bias.mean()).numpy(), theirs.intercept_, atol=1e-4)


def test_the_probe_does_as_well_as_scikit_learn_at_its_best_penalty() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    # 300 rows of 150 columns, of which 6 tell something: the penalty matters.
    (x, y), (unseen, truth) = ((torch.cat([a, torch.randn(len(a), 144)], 1), b) for a, b in _hard(300, 2000))
    mean, deviation = x.mean(0), x.std(0, correction=0)
    by_penalty = []
    for penalty in probe_module.PENALTIES:
        theirs = linear_model.LogisticRegression(C=1 / (penalty * len(x)), max_iter=1000)
        theirs.fit(((x - mean) / deviation).numpy(), y.numpy())
        by_penalty.append(theirs.score(((unseen - mean) / deviation).numpy(), truth.numpy()))
    ours = linear_probe((x, y), (unseen, truth))["accuracy"]
    print(f"ours {ours['value']:.3f}, theirs by penalty {[round(a, 3) for a in by_penalty]}")
    assert max(by_penalty) - min(by_penalty) > 0.05
    assert ours["value"] > max(by_penalty) - 0.02


def _hard(train: int, test: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return [clouds(train, 1.2, 1), clouds(test, 1.2, 2)]


def test_features_that_tell_nothing_score_as_chance() -> None:
    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(count, 8, generator=generator), torch.randint(4, (count,), generator=generator)

    train, test = rows(400), rows(2000)
    train[0][:, 3] = test[0][:, 3] = 2.0  # a column without any deviation
    for scores in (knn(train, test), linear_probe(train, test)):
        assert scores["accuracy"]["value"] == pytest.approx(0.25, abs=0.04)


def test_the_held_out_part_leaves_some_of_each_class() -> None:
    y = torch.tensor([0] * 50 + [1] * 2 + [2] + [3] * 7)
    held = probe_module._held_out(y, 0)
    assert torch.bincount(y[held], minlength=4).tolist() == [10, 1, 0, 1]
    assert torch.equal(held, probe_module._held_out(y, 0)) and not torch.equal(held, probe_module._held_out(y, 1))
    with pytest.raises(InputError, match="no class has two images"):
        linear_probe((torch.randn(3, 2), torch.arange(3)), (torch.randn(3, 2), torch.arange(3)))
