"""The detector of queries: who sees whom, what is learnt, and what it must not depend on."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from bedplate.errors import InputError
from bedplate.models.set_detector import SetDetector, SetDetectorConfig, _tent
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

QUERIES = 5


def make(groups: int = 3, denoising: int = 2, seed: int = 0) -> SetDetector:
    """Weights that hide nothing: blocks are no identities, outputs move the boxes."""
    module = SetDetector(SetDetectorConfig(tiny_config(), QUERIES, groups, denoising), LABELS)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.3 * noise if "norm" in name and name.endswith("weight") else noise * 0.2
    return module


PIXELS = normalised(pictures(2)[0])


def answers(module: SetDetector, groups: int = 3, pixels: Tensor = PIXELS) -> Tensor:
    """States `(B, groups, Q, D)` of all groups' queries."""
    states, _ = module._answer(pixels, *module._queries(len(pixels), groups))
    return states.unflatten(1, (groups, QUERIES))


@torch.no_grad()
def test_groups_know_nothing_of_each_other() -> None:
    module = make()
    before = answers(module)
    module.queries[QUERIES : 2 * QUERIES] += 1.0
    module.references[QUERIES : 2 * QUERIES] -= 1.0
    after = answers(module)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1])
    torch.testing.assert_close(answers(module, groups=1)[:, 0], after[:, 0])


@torch.no_grad()
def test_queries_of_a_group_know_each_other_and_the_image() -> None:
    module = make()
    before = answers(module)
    module.queries[0] += 1.0
    assert not torch.allclose(before[:, 0, 1:], answers(module)[:, 0, 1:])
    assert not torch.allclose(before[0], answers(module, pixels=PIXELS.flip(0))[0])


@torch.no_grad()
def test_the_image_does_not_know_the_queries() -> None:
    """What the image's tokens become is what they become without any query."""
    module = make()
    seen: list[Tensor] = []
    handle = module.encoder.trunk.blocks[0].register_forward_hook(lambda *call: seen.append(call[2]))
    answers(module)
    module.encoder(PIXELS)
    handle.remove()
    beside, alone = seen
    assert beside.shape[1] > alone.shape[1]
    torch.testing.assert_close(beside[:, : alone.shape[1]], alone)


@torch.no_grad()
def test_noised_objects_are_documents_of_their_own() -> None:
    """Each copy alone answers as it does beside the queries, the other copy and padding."""
    module = make()
    contents, references, doc = module._queries(2, 3)
    g = torch.Generator().manual_seed(0)
    noised, near = torch.randn(2, 6, 32, generator=g), torch.randn(2, 6, 4, generator=g)
    copies, real = torch.tensor([4, 4, 4, 5, 5, 5]).expand(2, -1), torch.tensor([[True, True, False]]).repeat(2, 2)
    together, _ = module._answer(
        PIXELS,
        torch.cat([contents, noised], 1),
        torch.cat([references, near], 1),
        torch.cat([doc, copies], 1),
        torch.cat([torch.ones_like(doc, dtype=torch.bool), real], 1),
    )
    torch.testing.assert_close(together[:, : 3 * QUERIES].unflatten(1, (3, QUERIES)), answers(module))
    for start in (0, 3):
        own = slice(start, start + 2)
        alone, _ = module._answer(PIXELS, noised[:, own], near[:, own], torch.ones(2, 2, dtype=torch.long))
        torch.testing.assert_close(together[:, 3 * QUERIES :][:, own], alone)


def test_a_query_has_the_position_of_the_patch_where_it_stands() -> None:
    """In the middle of a patch it is that patch's alone; between two, half of each; beyond the last, the last's."""
    assert _tent(torch.tensor([0.125, 0.5, 1.0]), 4).tolist() == [[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]
    module = make()
    nn.init.zeros_(module.place.weight)
    nn.init.zeros_(module.place.bias)
    box = torch.tensor([3.5 / 12, 2.5 / 8, 0.1, 0.1])  # column 3, row 2 of a grid of 8 x 12
    torch.testing.assert_close(module._at_place(box), module.encoder.positions[0, 1 + 2 * 12 + 3])


def loss_of(module: SetDetector, pixels: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
    torch.manual_seed(0)
    value, weight = module.losses(pixels, boxes, classes)["loss"]
    return value / weight.clamp(min=1)  # as the loop divides


def test_a_batch_weighs_what_its_parts_weigh() -> None:
    check_that_parts_weigh_what_the_batch_weighs(make().eval().losses)


def test_the_loss_does_not_depend_on_the_order_of_boxes_nor_on_padding() -> None:
    module, (pixels, boxes, classes) = make().eval(), pictures(3)
    pixels, order = normalised(pixels), torch.tensor([2, 0, 3, 1])
    loss = loss_of(module, pixels, boxes, classes)
    torch.testing.assert_close(loss_of(module, pixels, boxes[:, order], classes[:, order]), loss)
    more = torch.cat([boxes, torch.rand(3, 2, 4) * 60], 1), torch.cat([classes, torch.full((3, 2), -1)], 1)
    torch.testing.assert_close(loss_of(module, pixels, *more), loss)


def test_noised_objects_do_not_know_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, too: without noise, the loss is the same with more padding."""
    monkeypatch.setattr("bedplate.models.set_detector.SHIFT", 0.0)
    monkeypatch.setattr("bedplate.models.set_detector.STRETCH", 0.0)
    monkeypatch.setattr("bedplate.models.set_detector.FLIP", 0.0)
    module, (pixels, boxes, classes) = make(), pictures(3)
    more = torch.cat([boxes, torch.rand(3, 2, 4) * 60], 1), torch.cat([classes, torch.full((3, 2), -1)], 1)
    loss = loss_of(module, normalised(pixels), boxes, classes)
    torch.testing.assert_close(loss_of(module, normalised(pixels), *more), loss)
    without = make(denoising=0)
    assert loss > loss_of(without, normalised(pixels), boxes, classes)


def test_noise_stays_within_its_bounds() -> None:
    module = make()
    targets, classes = torch.tensor([[[0.5, 0.5, 0.2, 0.4]]]).expand(200, 1, 4), torch.zeros(200, 1).long()
    torch.manual_seed(0)
    contents, near, doc = module._noised_queries(targets, classes, 2, first_doc=7)
    boxes = near.sigmoid()
    assert doc[0].tolist() == [7, 8]
    assert ((boxes[..., :2] - 0.5).abs() <= torch.tensor([0.04, 0.08]) + 1e-4).all()
    assert ((boxes[..., 2:] / torch.tensor([0.2, 0.4]) - 1).abs() <= 0.4 + 1e-4).all()
    assert boxes.std((0, 1)).min() > 0.01
    kept = (contents == module.noised.weight[0]).all(-1).float().mean()
    assert 0.8 < kept < 0.93  # one in five is drawn anew, of three labels


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("is_training", [True, False])
def test_gradients_are_finite_without_objects(padding: int, is_training: bool) -> None:
    module = make().train(is_training)
    loss_of(module, PIXELS, torch.zeros(2, padding, 4), torch.full((2, padding), -1)).backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
    assert module.score.weight.grad is not None
    assert module.score.weight.grad.abs().sum() > 0


def test_more_objects_than_queries_are_learnt_from() -> None:
    module = make()
    corner = torch.rand(2, 9, 2) * 40
    loss_of(module, PIXELS, torch.cat([corner, corner + 10], -1), torch.zeros(2, 9).long()).backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_losses_are_those_of_the_matched_pair() -> None:
    """One query, one object, by hand: distances in parts of the image, a class target of the IoU."""
    module = SetDetector(SetDetectorConfig(tiny_config(), 1, 1, 0), LABELS).eval()
    module.init_weights(0)
    with torch.no_grad():
        module.references[:] = torch.tensor([0.5, 0.5, 0.25, 0.5]).logit()  # x 36 .. 60, y 16 .. 48
    box = torch.tensor([[[36.0, 16.0, 60.0, 32.0]]])  # its upper half
    losses = module.losses(PIXELS[:1], box, torch.tensor([[1]]))
    assert float(losses["l1"][0].detach()) == pytest.approx(0.125 + 0.25, abs=1e-5)
    assert float(losses["giou"][0].detach()) == pytest.approx(0.5, abs=1e-5)
    p = module(PIXELS[:1])[0].sigmoid().detach()[0, 0]
    own = 0.5 * -(0.5 * p[1].log() + 0.5 * (1 - p[1]).log())
    others = sum(0.75 * p[i] ** 2 * -(1 - p[i]).log() for i in (0, 2))
    torch.testing.assert_close(losses["class"][0].detach(), own + others)
    total = losses["class"][0] + 5 * losses["l1"][0] + 2 * losses["giou"][0]
    torch.testing.assert_close(losses["loss"][0], total)
    assert losses["loss"][1] == 1


def test_fresh_boxes_stand_at_their_references() -> None:
    module = SetDetector(SetDetectorConfig(tiny_config(), QUERIES), LABELS)
    module.init_weights(0)
    logits, boxes = module(PIXELS)
    assert logits.shape == (2, QUERIES, 3)
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    expected = module.references[:QUERIES, :2].sigmoid() * torch.tensor([96.0, 64.0])
    torch.testing.assert_close(middle, expected.expand(2, -1, -1))
    first = {name: p.clone() for name, p in module.named_parameters()}
    module.init_weights(1)
    assert not torch.equal(first["references"], module.references)
    module.init_weights(0)
    assert all(torch.equal(first[name], p) for name, p in module.named_parameters())
    assert [name for name, _ in module.initial_weights(0)] == list(first)


def test_of_keeps_the_base() -> None:
    base = ViT(tiny_config(), ["x", "y"])
    base.init_weights(3)
    module = SetDetector.of(base, LABELS, image_size=(32, 48), num_queries=7)
    torch.testing.assert_close(module.encoder.positions, base.with_image_size((32, 48)).positions)
    assert len(module.detect(torch.rand(1, 3, 32, 48), threshold=0.0)[0]["scores"]) <= 7 * len(LABELS)


def learn(steps: int, queries: int = 12) -> tuple[SetDetector, tuple[Tensor, Tensor, Tensor], Tensor]:
    torch.manual_seed(0)
    pixels, boxes, classes = pictures(4)
    module = SetDetector.of(tiny_encoder(), LABELS, num_queries=queries)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 20, 4 * (1 - step / steps))
        optimizer.zero_grad()
        value, weight = module.losses(normalised(pixels), boxes, classes)["loss"]
        (value / weight).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return module.eval(), (normalised(pixels), boxes, classes), value / weight


def test_it_learns_within_seconds() -> None:
    torch.manual_seed(0)
    pixels, boxes, classes = pictures(4)
    fresh = SetDetector.of(tiny_encoder(), LABELS, num_queries=12).eval()
    module, _, _ = learn(40)
    before = loss_of(fresh, normalised(pixels), boxes, classes)
    assert loss_of(module, normalised(pixels), boxes, classes) < 0.75 * before


@pytest.mark.slow
def test_it_learns_four_pictures_by_heart() -> None:
    module, (pixels, boxes, classes), _ = learn(500)
    found = module.detect(pixels)
    assert average_precision(found, boxes, classes) > 0.9
    assert average_precision(found, boxes, classes, threshold=0.75) > 0.7


def test_what_cannot_be_is_refused() -> None:
    config = SetDetectorConfig(tiny_config())
    with pytest.raises(InputError, match="at least one label"):
        SetDetector(config, [])
    for name, value in (("num_queries", 0), ("groups", 0), ("denoising", -1)):
        with pytest.raises(InputError, match=f"{name}={value}"):
            dataclasses.replace(config, **{name: value})
    trunk = dataclasses.replace(tiny_config().trunk, hidden_size=36)
    with pytest.raises(InputError, match="hidden_size=36"):
        SetDetectorConfig(dataclasses.replace(tiny_config(), trunk=trunk))


def test_it_finds_in_16_bits() -> None:
    module = SetDetector.of(tiny_encoder(), LABELS, num_queries=5).eval().to(torch.bfloat16)
    logits, boxes = module(torch.rand(1, 3, *module.config.vision.image_size, dtype=torch.bfloat16))
    assert logits.isfinite().all() and boxes.isfinite().all()
