"""The dense detector: what it learns, what it must not depend on, and what it refuses."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bedplate.errors import InputError
from bedplate.models.detector import Detector, DetectorConfig, Pyramid, varifocal
from bedplate.models.set_detector import SetDetector
from bedplate.models.vit import ViT

from .pictures import (
    LABELS,
    average_precision,
    check_that_parts_weigh_what_the_batch_weighs,
    normalised,
    pictures,
    tiny_config,
    tiny_encoder,
)


@pytest.fixture(scope="module")
def detector() -> Detector:
    """Fresh weights; not to be changed."""
    return Detector.of(tiny_encoder(), LABELS).eval()


def total(module: Detector, pixels: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
    value, weight = module.losses(normalised(pixels), boxes, classes)["loss"]
    return value / weight.clamp(min=1)  # as the loop divides


def train(module: Detector, data: tuple[Tensor, Tensor, Tensor], steps: int) -> Detector:
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        total(module, *data).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return module.eval()


def test_it_learns_four_pictures_by_heart() -> None:
    pixels, boxes, classes = data = pictures(4)
    module = Detector.of(tiny_encoder(), LABELS)
    fresh = average_precision(module.detect(normalised(pixels)), boxes, classes)
    found = train(module, data, 60).detect(normalised(pixels))
    assert fresh < 0.3
    assert average_precision(found, boxes, classes) > 0.9
    assert average_precision(found, boxes, classes, threshold=0.75) > 0.7


def test_it_learns_tiny_and_crowded_objects() -> None:
    """Squares of 4 pixels between the places of all strides, and two large boxes that share most of their area."""
    pixels, classes = torch.full((1, 3, 64, 96), 0.2), torch.tensor([[0, 0, 0, 1, 2]])
    boxes = torch.tensor([[[6.0, 6, 10, 10], [30, 14, 34, 18], [6, 46, 10, 50], [44, 8, 84, 48], [52, 16, 92, 56]]])
    for (x1, y1, x2, y2), label in zip(boxes[0].long().tolist(), classes[0].tolist(), strict=True):
        pixels[0, label, y1:y2, x1:x2] = 1.0
    found = train(Detector.of(tiny_encoder(), LABELS), (pixels, boxes, classes), 150).detect(normalised(pixels))
    assert average_precision(found, boxes, classes) == pytest.approx(1.0)


def test_it_learns_that_there_is_nothing() -> None:
    data = torch.rand(2, 3, 64, 96), torch.zeros(2, 3, 4), torch.full((2, 3), -1)
    module = Detector.of(tiny_encoder(), LABELS)
    with torch.no_grad():
        module.head.score.bias.fill_(0.0)
    before = total(module, *data).item()
    train(module, data, 20)
    assert total(module, *data).item() < before / 10
    assert all(len(found["scores"]) == 0 for found in module.detect(normalised(data[0]), threshold=0.3))


@pytest.mark.parametrize("padding", [0, 2])
def test_gradients_are_finite_without_objects(padding: int) -> None:
    module = Detector.of(tiny_encoder(), LABELS)
    total(module, torch.rand(2, 3, 64, 96), torch.zeros(2, padding, 4), torch.full((2, padding), -1)).backward()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)
    assert module.head.score.weight.grad is not None
    assert module.head.score.weight.grad.abs().sum() > 0


def test_gradients_are_finite_for_boxes_without_area() -> None:
    module = Detector.of(tiny_encoder(), LABELS)
    total(module, torch.rand(1, 3, 64, 96), torch.tensor([[[5.0, 5, 5, 9]]]), torch.tensor([[1]])).backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_the_loss_does_not_depend_on_the_order_of_boxes_nor_on_padding(detector: Detector) -> None:
    pixels, boxes, classes = pictures(4)
    order = torch.tensor([2, 0, 3, 1])
    loss = total(detector, pixels, boxes, classes)
    torch.testing.assert_close(total(detector, pixels, boxes[:, order], classes[:, order]), loss)
    more = torch.cat([boxes, torch.rand(4, 2, 4) * 60], 1), torch.cat([classes, torch.full((4, 2), -1)], 1)
    torch.testing.assert_close(total(detector, pixels, *more), loss)


def test_images_are_independent_of_their_company(detector: Detector) -> None:
    pixels, boxes, classes = pictures(3)
    parts, weight = detector.image_losses(normalised(pixels), boxes, classes)
    for n in range(3):
        one = slice(n, n + 1)
        alone, its_weight = detector.image_losses(normalised(pixels[one]), boxes[one], classes[one])
        torch.testing.assert_close(alone["loss"][0], parts["loss"][n])
        torch.testing.assert_close(its_weight[0], weight[n])


def test_two_runs_are_the_same_to_the_last_bit() -> None:
    data = pictures(2)
    first, second = (train(Detector.of(tiny_encoder(), LABELS), data, 3) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_places_stand_in_the_middle_of_what_they_see(detector: Detector) -> None:
    """Strides 4, 8 and 16 of a patch of 8; a fresh box stands at its place with sides of four strides."""
    logits, boxes, places = detector(torch.zeros(1, 3, 64, 96))
    assert detector.strides == (4, 8, 16)
    assert logits.shape == (1, 16 * 24 + 8 * 12 + 4 * 6, 3)
    assert places[0].tolist() == [2, 2]
    assert places[16 * 24 + 1].tolist() == [12, 4]
    assert places[-1].tolist() == [88, 56]
    middle, sides = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2, boxes[0, :, 2:] - boxes[0, :, :2]
    strides = torch.tensor([4.0] * 384 + [8.0] * 96 + [16.0] * 24)
    assert (((middle - places) / strides[:, None]).abs() < 0.2).all()
    assert ((sides / strides[:, None] / 4).log().abs() < 0.2).all()


def test_the_finer_map_puts_each_quarter_of_a_patch_where_it_is() -> None:
    pyramid = Pyramid(4, 16)
    x = torch.randn(1, 4, 2, 3)
    finer = pyramid.finer(x.permute(0, 2, 3, 1))  # (1, 2, 3, 4 * 16): (row, column) of the quarter, then channels
    expected = torch.zeros(1, 16, 4, 6)
    for row in range(4):
        for column in range(6):
            quarter = row % 2 * 2 + column % 2
            expected[0, :, row, column] = finer[0, row // 2, column // 2, quarter * 16 : quarter * 16 + 16]
    expected = nn.functional.silu(pyramid.norms[0](expected))
    torch.testing.assert_close(pyramid(x)[0], expected)


def test_an_odd_grid_has_all_levels() -> None:
    module = Detector.of(tiny_encoder(image_size=(40, 56)), LABELS)
    logits, _, _ = module(torch.rand(1, 3, 40, 56))
    assert logits.shape[1] == 10 * 14 + 5 * 7 + 3 * 4


def test_varifocal_is_its_equation() -> None:
    logits, targets = torch.randn(2, 5, 3), torch.rand(2, 5, 3).round(decimals=1).clamp(min=0.5) - 0.5
    p = logits.sigmoid()
    cross = -(targets * p.log() + (1 - targets) * (1 - p).log())
    expected = torch.where(targets > 0, targets * cross, 0.75 * p**2 * -(1 - p).log()).sum((1, 2))
    torch.testing.assert_close(varifocal(logits, targets), expected)


def test_a_loss_is_the_sum_of_its_parts(detector: Detector) -> None:
    pixels, boxes, classes = pictures(2)
    losses = detector.losses(normalised(pixels), boxes, classes)
    value = losses["class"][0] + 2 * losses["box"][0]
    torch.testing.assert_close(losses["loss"][0], value)
    assert losses["loss"][1] >= 1


def test_a_batch_weighs_what_its_parts_weigh(detector: Detector) -> None:
    check_that_parts_weigh_what_the_batch_weighs(detector.losses)


def test_of_keeps_the_base_and_interpolates_its_positions() -> None:
    base = ViT(tiny_config(), ["x", "y"])
    base.init_weights(3)
    module = Detector.of(base, LABELS, image_size=(32, 48), dropout=0.1)
    assert module.labels == LABELS
    assert module.config.vision.image_size == (32, 48)
    assert module.config.vision.trunk.dropout == 0.1
    torch.testing.assert_close(module.encoder.positions, base.with_image_size((32, 48)).positions)
    torch.testing.assert_close(
        module.encoder.trunk.blocks[1].attn.q_proj.weight, base.trunk.blocks[1].attn.q_proj.weight
    )
    same = Detector.of(base, LABELS)
    pixels = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(same.eval().encoder.features(pixels), base.eval().features(pixels))


@pytest.mark.parametrize("kind", [Detector, SetDetector])
def test_a_detector_goes_on_as_a_base(kind: Any) -> None:
    base = kind.of(tiny_encoder(), LABELS)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    pixels = torch.rand(1, 3, *base.config.vision.image_size)
    again, other = kind.of(base.eval(), LABELS).eval(), kind.of(base, [*LABELS, "more"]).eval()
    for found, expected in zip(again(pixels), base(pixels), strict=True):
        torch.testing.assert_close(found, expected)
    logits, boxes, *_ = other(pixels)
    torch.testing.assert_close(boxes, base(pixels)[1])
    assert logits.shape[-1] == len(LABELS) + 1
    assert (logits.sigmoid() - 0.01).abs().max() < 0.01  # of labels that it does not know it believes nothing yet


def test_fresh_weights_follow_from_the_seed() -> None:
    module = Detector(DetectorConfig(tiny_config()), LABELS)
    module.init_weights(1)
    first = {name: p.clone() for name, p in module.named_parameters()}
    module.init_weights(2)
    assert not torch.equal(first["head.score.weight"], module.head.score.weight)
    module.init_weights(1)
    assert all(torch.equal(first[name], p) for name, p in module.named_parameters())
    assert [name for name, _ in module.initial_weights(1)] == list(first)
    believed = module(torch.rand(1, 3, 64, 96))[0].sigmoid()
    assert believed.mean().item() == pytest.approx(0.01, rel=0.2)


def test_weights_go_to_a_file_and_back(detector: Detector) -> None:
    copy = Detector(detector.config, LABELS).eval()
    copy.load_state_dict(detector.state_dict())
    pixels = torch.rand(1, 3, 64, 96)
    assert torch.equal(copy(pixels)[1], detector(pixels)[1])


def test_it_counts_the_products_that_it_does(detector: Detector) -> None:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it knows no fused kernel of the CPU
        detector(torch.rand(1, 3, 64, 96))
    assert detector.flops_per_image() == pytest.approx(3 * counter.get_total_flops(), rel=0.02)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="at least one label"):
        Detector(DetectorConfig(tiny_config()), [])
    with pytest.raises(InputError, match="head_size=40"):
        dataclasses.replace(DetectorConfig(tiny_config()), head_size=40)
    with pytest.raises(InputError, match="patch_size=9"):
        DetectorConfig(dataclasses.replace(tiny_config(), image_size=(63, 90), patch_size=9))
    with pytest.raises(InputError, match="positions are for 64x96"):
        Detector.of(tiny_encoder(), LABELS)(torch.rand(1, 3, 32, 32))
