"""Detection as the loop sees it: what is learnt from a batch, and what is measured."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bedplate.errors import InputError
from bedplate.metrics.detection import detection_metrics
from bedplate.models.detector import Detector, DetectorConfig
from bedplate.models.set_detector import SetDetector, SetDetectorConfig
from bedplate.models.vit import VisionConfig
from bedplate.nn.config import TrunkConfig
from bedplate.tasks.detect import Detect

MEAN, STD, LABELS = [0.2, 0.3, 0.4], [0.3, 0.2, 0.1], ["light", "dark"]
SIZE = 32, 48


def module(kind: str, seed: int = 0) -> Detector | SetDetector:
    trunk = TrunkConfig(16, 1, 2, 2, 8, 32, norm="layer", activation="gelu", gated=False, qk_norm=False, rope=None)
    vision = VisionConfig(SIZE, 8, trunk)
    network: Detector | SetDetector
    if kind == "dense":
        network = Detector(DetectorConfig(vision), LABELS)
    else:
        network = SetDetector(SetDetectorConfig(vision, 6, 2, 2), LABELS)
    network.init_weights(seed)
    return network


@pytest.fixture(params=["dense", "set"])
def network(request: pytest.FixtureRequest) -> Detector | SetDetector:
    return module(request.param)


def batch(first: int = 0, count: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """The first picture has two boxes, the others one."""
    g = torch.Generator().manual_seed(seed + first)
    corner = torch.rand(count, 2, 2, generator=g) * torch.tensor([20.0, 12.0])
    classes = torch.randint(0, 2, (count, 2), generator=g)
    classes[1:, 1] = -1
    return {
        "pixels": torch.randint(0, 256, (count, 3, *SIZE), generator=g, dtype=torch.uint8),
        "boxes": torch.cat([corner, corner + 14], -1),
        "classes": classes,
        "index": torch.arange(first, first + count),
    }


def test_the_loss_is_the_modules_on_normalised_pixels(network: Detector | SetDetector) -> None:
    one = batch()
    pixels = one["pixels"].float() / 255
    normalised = torch.stack([(pixels[:, c] - MEAN[c]) / STD[c] for c in range(3)], 1)
    torch.manual_seed(0)
    ours = Detect(network, MEAN, STD).loss(one)
    torch.manual_seed(0)
    expected = network.losses(normalised, one["boxes"], one["classes"])
    assert ours.keys() == expected.keys()
    assert "loss" in ours
    torch.testing.assert_close(ours, expected)


def test_augmentation_is_of_training_alone() -> None:
    """What it returns is learnt from; evaluation never calls it."""
    network, seen = module("dense"), []

    def turn(pixels: Tensor, boxes: Tensor, classes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        seen.append((pixels.dtype, size))
        return torch.full((len(pixels), 3, *size), 0.5), boxes[:, :1], classes[:, :1]

    task, one = Detect(network, MEAN, STD, augment=turn), batch()
    normalised = ((0.5 - torch.tensor(MEAN)) / torch.tensor(STD)).view(1, 3, 1, 1).expand(3, -1, *SIZE)
    expected = network.losses(normalised, one["boxes"][:, :1], one["classes"][:, :1])
    torch.testing.assert_close(task.loss(one), expected)
    task.evaluate([one])
    assert seen == [(torch.uint8, SIZE)]


def test_evaluation_is_the_judge_over_all_batches(network: Detector | SetDetector) -> None:
    batches = [batch(0), batch(3)]
    task = Detect(network.train(), MEAN, STD)
    truth, found, _, _ = task.judged(batches)
    assert network.training
    assert [len(row["boxes"]) for row in truth] == [2, 1, 1, 2, 1, 1]
    assert all(len(row["scores"]) for row in found)
    measured = task.evaluate(batches)
    assert measured["map_50"] == detection_metrics(truth, found, LABELS)["map_50"]
    assert set(task.metrics) <= set(measured)
    for metric in measured.values():
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert metric["n"] == 6
    more = task.report(batches)
    assert measured == {name: more[name] for name in measured}
    assert {row["name"] for row in more["per_class"]} == set(more["curves"]) == set(LABELS)


class Seer(torch.nn.Module):
    """Answers with the truth; a stand-in for a network that has learnt."""

    def __init__(self, truth: dict[str, Tensor]) -> None:
        super().__init__()
        self.labels, self.device, self.truth = LABELS, torch.device("cpu"), truth
        self.config = module("dense").config

    def forward(self, pixels: Tensor) -> None:
        return None

    def losses_of(self, output: None, boxes: Tensor, classes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {"loss": torch.full((len(boxes),), 0.5)}, (classes >= 0).sum(1).float()

    def found_in(self, output: None, threshold: float) -> list[dict[str, Any]]:
        return [
            {"boxes": b[c >= 0], "scores": torch.ones(int((c >= 0).sum())), "classes": c[c >= 0]}
            for b, c in zip(self.truth["boxes"], self.truth["classes"], strict=True)
        ]


def test_the_truth_scores_one() -> None:
    one = batch()
    measured = Detect(Seer(one), MEAN, STD).evaluate([one])  # type: ignore[arg-type]
    assert measured["map"]["value"] == measured["map_50"]["value"] == pytest.approx(1.0)
    assert measured["loss"]["value"] == pytest.approx(3 * 0.5 / 4)  # by object


def test_crowds_are_not_trained_on_and_take_no_detection_for_wrong() -> None:
    one = batch()
    crowd = torch.zeros_like(one["classes"], dtype=torch.bool)
    crowd[0, 1] = True
    task = Detect(Seer(one), MEAN, STD)  # type: ignore[arg-type]
    assert task.evaluate([one | {"crowd": crowd}])["map"]["value"] == pytest.approx(1.0)
    network = module("dense")
    without = one["classes"].masked_fill(crowd, -1)
    expected = network.losses(torch.zeros(3, 3, *SIZE), one["boxes"], without)
    black = {"pixels": torch.zeros(3, 3, *SIZE, dtype=torch.uint8), "crowd": crowd}
    ours = Detect(network, [0.0] * 3, [1.0] * 3).loss(one | black)
    torch.testing.assert_close(ours, expected)


def test_a_picture_that_comes_twice_counts_once(network: Detector | SetDetector) -> None:
    task, one = Detect(network, MEAN, STD), batch()
    again = {name: value[:1] for name, value in one.items()}
    assert task.evaluate([one, again]) == task.evaluate([one])


def test_pictures_without_objects_are_judged_beside_others(network: Detector | SetDetector) -> None:
    empty = batch(3)
    empty["classes"] = torch.full_like(empty["classes"], -1)
    measured = Detect(network, MEAN, STD).evaluate([batch(0), empty])
    assert all(np.isfinite(list(metric.values())).all() for metric in measured.values())


def test_nothing_to_score_by_is_said() -> None:
    empty = batch()
    empty["classes"] = torch.full_like(empty["classes"], -1)
    with pytest.raises(InputError, match="none of the 3 held-out pictures holds a box"):
        Detect(module("dense"), MEAN, STD).evaluate([empty])


def test_a_missing_judge_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("install it: pip install 'bedplate[eval]'")

    monkeypatch.setattr("bedplate.metrics.detection.need_pycocotools", missing)
    with pytest.raises(InputError, match="bedplate"):
        Detect(module("dense"), MEAN, STD).evaluate([batch()])


def test_batches_are_read_one_by_one(network: Detector | SetDetector) -> None:
    """A loader is an iterator: nothing asks for its length or goes through it twice."""

    def loader() -> Iterator[dict[str, Tensor]]:
        yield batch(0)
        yield batch(3)

    assert Detect(network, MEAN, STD).evaluate(loader())["map"]["n"] == 6


def test_a_picture_counts_once(network: Detector | SetDetector) -> None:
    """Ranks fill their batches up with pictures that others have."""

    def collect(parts: list[Any]) -> list[Any]:
        return [*parts, *parts[-1:]]

    seen = [batch(0), batch(3)]
    measured = Detect(network, MEAN, STD, collect=collect).evaluate(seen)
    assert measured == Detect(network, MEAN, STD).evaluate(seen)


def test_flops_count_pictures_and_noised_objects() -> None:
    one, two = batch(), batch(count=6)
    for kind in ("dense", "set"):
        task = Detect(module(kind), MEAN, STD)
        assert task.flops(two) == 2 * task.flops(one) > 0
    wider = one | {"classes": torch.full((3, 8), -1)}
    assert task.flops(wider) > task.flops(one)
    assert task.samples(0) == []
