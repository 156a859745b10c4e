"""Augmentation against Pillow, plain loops and the properties that it states."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from bedplate.data import geometry, mixing
from bedplate.data.augment import BoxAugment, ImageAugment
from bedplate.data.colour import change_colours
from bedplate.data.randaugment import OPERATIONS, apply, randaugment
from bedplate.errors import InputError

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
EVERYTHING = ImageAugment((0.3, 1.0), (0.5, 2.0), 1.3, True, 3, (2, 9), 0.4, 0.1, 0.5, 0.2, 1.0)


def photos(count: int = 4, height: int = 40, width: int = 50, seed: int = 0) -> Tensor:
    """uint8 (B, 3, H, W) with smooth parts, edges and all values."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, height // 4 + 1, width // 4 + 1, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    smooth[:, :, height // 3 : height // 2] = torch.rand(count, 3, 1, width, generator=generator) * 255
    return smooth.round().to(torch.uint8)


def as_pil(pixels: Tensor) -> list[Image.Image]:
    return [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in pixels]


def levels(pixels: Tensor) -> np.ndarray:
    """Floats in 0..1 (B, 3, H, W) as (B, H, W, 3) in 0..255."""
    return pixels.permute(0, 2, 3, 1).numpy() * 255


def stacked(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image).astype(np.float64) for image in images])


# Windows


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.floats(0, 0.8), st.floats(0, 0.8), st.floats(0.1, 1), st.floats(0.1, 1)),
    st.tuples(st.integers(3, 70), st.integers(3, 70)),
)
def test_windows_are_resized_as_pillow_does(place: tuple[float, ...], size: tuple[int, int]) -> None:
    pixels = photos(2)
    x1, y1 = place[0] * 50, place[1] * 40
    window = (x1, y1, x1 + place[2] * (50 - x1), y1 + place[3] * (40 - y1))
    shown, covered = geometry.resample(pixels, torch.tensor([window] * 2), size)
    expected = stacked([image.resize(size[::-1], Image.Resampling.BILINEAR, box=window) for image in as_pil(pixels)])
    assert np.abs(levels(shown) - expected).max() <= 1.01  # Pillow rounds twice, along each axis
    assert covered.all()


def test_outside_of_the_picture_is_black_and_mirrored_windows_are_flipped() -> None:
    pixels = photos(1, 8, 8) | 1
    shown, covered = geometry.resample(pixels, torch.tensor([[-2.0, -3.0, 10.0, 9.0]]), (12, 12))
    expected = torch.zeros(12, 12)
    expected[3:11, 2:10] = 1
    assert torch.equal(covered[0, 0], expected)
    assert torch.allclose(shown[0, :, 3:11, 2:10] * 255, pixels[0].float(), atol=1e-3)
    assert not shown[0, :, expected == 0].any()
    flipped, _ = geometry.resample(pixels, torch.tensor([[8.0, 0.0, 0.0, 8.0]]), (8, 8))
    assert torch.allclose(flipped * 255, pixels.flip(3).float(), atol=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (40, 90)])
def test_random_crops_have_the_drawn_area_a_fitting_shape_and_any_place(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    windows = geometry.random_crops(4000, size, (0.2, 0.9), (3 / 4, 4 / 3), torch.device("cpu"))
    x1, y1, x2, y2 = windows.unbind(1)
    share = (x2 - x1) * (y2 - y1) / (size[0] * size[1])
    assert 0.2 - 1e-4 <= share.min() < 0.21 and 0.89 < share.max() <= 0.9 + 1e-4
    assert share.mean() == pytest.approx(0.55, abs=0.02)
    assert min(x1.min(), y1.min()) >= 0 and x2.max() <= size[1] + 1e-3 and y2.max() <= size[0] + 1e-3
    ratio = (x2 - x1) / (y2 - y1)
    fits = (share * size[0] / size[1] * 16 / 9 <= 1) & (share * size[1] / size[0] * 16 / 9 <= 1)
    if size[0] == size[1]:
        assert ratio.min() >= 3 / 4 - 1e-4 and ratio.max() <= 4 / 3 + 1e-4
        assert ratio[fits].log().mean() == pytest.approx(0, abs=0.02)
    assert (x1 / (size[1] - (x2 - x1))).mean() == pytest.approx(0.5, abs=0.03)


@settings(max_examples=20, deadline=None)
@given(st.floats(1.01, 2), st.integers(0, 2**31))
def test_zoomed_out_windows_hold_the_old_ones_and_edges_go_on(most: float, seed: int) -> None:
    pixels = photos(3)
    torch.manual_seed(seed)
    old = geometry.random_crops(3, (40, 50), (0.2, 1.0), (0.75, 1.33), pixels.device)
    padded, windows = geometry.zoomed_out(pixels, old, most)
    edge = (padded.shape[-1] - 50) // 2
    wide = np.pad(pixels.numpy(), ((0, 0), (0, 0), (edge, edge), (edge, edge)), mode="edge")
    assert torch.equal(padded, torch.from_numpy(wide).float() / 255)
    new, sides = windows - edge, old[:, 2:] - old[:, :2]
    assert (new[:, :2] <= old[:, :2] + 1e-3).all() and (new[:, 2:] >= old[:, 2:] - 1e-3).all()
    factors = (new[:, 2:] - new[:, :2]) / sides
    torch.testing.assert_close(factors[:, 0], factors[:, 1], rtol=0, atol=1e-3)
    assert (factors > 1 - 1e-3).all() and (factors < most + 1e-3).all()
    shown = geometry.resample(padded, windows, (20, 24))[0]
    boxes = [tuple(window) for window in windows.double().tolist()]
    cut = [
        each.resize((24, 20), Image.Resampling.BILINEAR, box=box)
        for each, box in zip(as_pil(torch.from_numpy(wide)), boxes, strict=True)
    ]
    assert np.abs(levels(shown) - stacked(cut)).max() < 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.booleans(), st.integers(0, 2**32 - 1))
def test_shift_and_flip_is_the_padded_crop_of_some_place(reach: int, flip: bool, seed: int) -> None:
    torch.manual_seed(seed)
    pixels = photos(6, 9, 7, seed=seed % 100)
    moved = geometry.shift_and_flip(pixels, reach, flip).numpy()
    assert moved.dtype == np.uint8
    for before, after in zip(pixels.numpy(), moved, strict=True):
        padded = np.pad(before, ((0, 0), (reach, reach), (reach, reach)))
        padded = [padded, padded[:, :, ::-1]] if flip else [padded]
        places = [(y, x) for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
        assert any((each[:, y : y + 9, x : x + 7] == after).all() for each in padded for y, x in places)


def test_shifts_and_flips_take_all_their_values() -> None:
    torch.manual_seed(0)
    pixels = torch.zeros(3000, 1, 5, 5, dtype=torch.uint8)
    pixels[:, :, 2, 1] = 1
    moved = geometry.shift_and_flip(pixels, 1, True).sum(0)[0]
    assert (moved[1:4] > 0).all() and moved[1:4].sum() == 3000 and not moved[0].any() and not moved[4].any()
    assert moved[:, 2].sum() == pytest.approx(1000, abs=120)


# The settings as a whole


def test_nothing_on_only_resizes() -> None:
    pixels = photos(2)
    assert torch.equal(ImageAugment()(pixels, (40, 50)), pixels / 255)
    small = stacked([image.resize((16, 16), Image.Resampling.BILINEAR) for image in as_pil(pixels)])
    assert np.abs(levels(ImageAugment()(pixels, 16)) - small).max() <= 1.01


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("augment", [EVERYTHING, ImageAugment(flip=True, shift=4), ImageAugment((0.6, 1.0), flip=True)])
def test_a_step_is_a_function_of_its_seed(augment: ImageAugment, device: str) -> None:
    pixels, labels = photos(8).to(device), torch.arange(8, device=device) % 3

    def step(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        return augment.mix(augment(pixels, (40, 50)), labels, 3)

    one, again, other = step(1), step(1), step(2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    assert one[0].shape == (8, 3, 40, 50) and one[0].dtype == torch.float32
    assert one[0].min() >= 0 and one[0].max() <= 1 + 1e-5


def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the "meta" device have no values: whatever asks for one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know that device
    pixels, labels = photos(8).to("meta"), torch.zeros(8, dtype=torch.long, device="meta")
    with pytest.raises(RuntimeError):
        pixels.float().sum().item()
    out, targets = EVERYTHING.mix(EVERYTHING(pixels, 24), labels, 10)
    assert out.shape == (8, 3, 24, 24) and targets.shape == (8, 10)
    assert ImageAugment(flip=True, shift=4)(pixels, (40, 50)).shape == (8, 3, 40, 50)
    boxes, classes = torch.zeros(8, 5, 4, device="meta"), labels.unsqueeze(1).expand(8, 5)
    shown, moved, kept = BoxAugment((0.1, 2.0), True, 0.5, colour=0.3, hue=0.1)(pixels, boxes, classes, 64)
    assert shown.shape == (8, 3, 64, 64) and moved.shape == (8, 20, 4) and kept.shape == (8, 20)


@pytest.mark.parametrize("name", OPERATIONS)
def test_autocast_moves_nothing_of_randaugment(name: str) -> None:
    """Half precision would misplace what is moved, by up to 0.65 pixels of 224."""
    pixels, which = photos(5).float() / 255, torch.full((5,), list(OPERATIONS).index(name))
    strength = torch.linspace(-1, 1, 5)
    exact = apply(pixels.clone(), which, strength)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(apply(pixels.clone(), which, strength), exact)


def test_floats_are_taken_as_bytes_are_and_autocast_changes_nothing() -> None:
    pixels, outs = photos(8), []
    for given_, half in ((pixels, False), (pixels / 255, False), (pixels, True)):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outs.append(ImageAugment((0.5, 1.0), flip=True, colour=0.4, hue=0.1)(given_, 32))
    assert torch.allclose(outs[0], outs[1], atol=1e-5)
    assert torch.equal(outs[0], outs[2])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"crop_scale": (0.9, 0.5)}, "crop_scale is (0.9, 0.5)"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale"),
        ({"crop_ratio": (1.0,)}, "crop_ratio"),
        ({"shift": -1}, "shift is -1"),
        ({"randaugment": (2, 11)}, "randaugment is (2, 11)"),
        ({"colour": 1.2}, "colour is 1.2; give a number in 0..1"),
        ({"hue": 0.6}, "hue"),
        ({"erasing": math.nan}, "erasing"),
        ({"mixup": -0.1}, "mixup"),
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as raised:
        ImageAugment(**wrong)
    assert named in str(raised.value) and "give" in str(raised.value)


def test_box_settings_out_of_range_are_named() -> None:
    for wrong in ({"scale": (2.0, 1.0)}, {"mosaic": 1.5}, {"keep": -1.0}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
            BoxAugment(**wrong)  # type: ignore[arg-type]


# Colours

FLAT = st.floats(0.3, 1.7)


@settings(max_examples=20, deadline=None)
@given(FLAT)
def test_each_colour_change_is_pillows(factor: float) -> None:
    pixels, factors, ones = photos(3), torch.full((3,), factor), torch.ones(3)
    changes: list[tuple[Any, tuple[Tensor, ...]]] = [
        (ImageEnhance.Brightness, (factors, ones, ones)),
        (ImageEnhance.Contrast, (ones, factors, ones)),
        (ImageEnhance.Color, (ones, ones, factors)),
    ]
    for enhancer, arguments in changes:
        expected = stacked([enhancer(image).enhance(factor) for image in as_pil(pixels)])
        out = levels(change_colours(pixels / 255, *arguments, torch.zeros(3)))
        assert np.abs(out - expected).max() <= 1.8, enhancer  # Pillow rounds the greys, and cuts what it blends


def test_colour_changes_follow_each_other() -> None:
    pixels = photos(3) / 255 * 0.4 + 0.3  # far from 0 and 1, where each step would clip
    factors = (torch.tensor([0.9, 1.1, 1.0]), torch.tensor([1.2, 0.7, 1.1]), torch.tensor([0.6, 1.3, 0.9]))
    turn, ones, none = torch.tensor([0.1, -0.2, 0.5]), torch.ones(3), torch.zeros(3)
    expected = change_colours(pixels, factors[0], ones, ones, none)
    expected = change_colours(expected, ones, factors[1], ones, none)
    expected = change_colours(expected, ones, ones, factors[2], none)
    expected = change_colours(expected, ones, ones, ones, turn)
    assert torch.allclose(change_colours(pixels, *factors, turn), expected, atol=2e-6)


def test_hue_turns_about_the_greys() -> None:
    pixels, ones = photos(4) / 255 * 0.3 + 0.35, torch.ones(4)
    turn = torch.tensor([0.0, 1.0, 0.3, -0.45])
    turned = change_colours(pixels, ones, ones, ones, turn)
    assert torch.allclose(turned[:2], pixels[:2], atol=2e-6)
    yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    before, after = (np.einsum("ij,bjhw->bihw", yiq, each.double().numpy()) for each in (pixels, turned))
    angle = np.exp(2j * np.pi * turn.double().numpy()).reshape(-1, 1, 1)
    assert np.allclose(after[:, 0], before[:, 0], atol=1e-5)  # the grey stays
    assert np.allclose(after[:, 1] + 1j * after[:, 2], (before[:, 1] + 1j * before[:, 2]) * angle, atol=1e-5)


# RandAugment


def pillow_operation(name: str, strength: float, width: int, height: int) -> Callable[[Image.Image], Image.Image]:
    factor, grey = 1 + 0.9 * strength, (128, 128, 128)
    bilinear = Image.Resampling.BILINEAR

    def affine(*coefficients: float) -> Callable[[Image.Image], Image.Image]:
        return lambda image: image.transform(image.size, Image.Transform.AFFINE, coefficients, bilinear, fillcolor=grey)

    shear = 0.3 * strength
    return {
        "identity": lambda image: image,
        "brightness": lambda image: ImageEnhance.Brightness(image).enhance(factor),
        "contrast": lambda image: ImageEnhance.Contrast(image).enhance(factor),
        "posterize": lambda image: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
        "solarize": lambda image: ImageOps.solarize(image, math.ceil(256 * (1 - abs(strength)))),
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "color": lambda image: ImageEnhance.Color(image).enhance(factor),
        "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(factor),
        "rotate": lambda image: image.rotate(30 * strength, bilinear, fillcolor=grey),
        "shear-x": affine(1, shear, -shear * height / 2, 0, 1, 0),
        "shear-y": affine(1, 0, 0, shear, 1, -shear * width / 2),
        "translate-x": affine(1, 0, 0.45 * strength * width, 0, 1, 0),
        "translate-y": affine(1, 0, 0, 0, 1, 0.45 * strength * height),
    }[name]


@pytest.mark.parametrize("strength", [0.9, 0.3, -0.7])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_pillows(name: str, strength: float) -> None:
    pixels = photos(3)
    pixels[2] = 90  # one value only: nothing to stretch
    number = torch.full((3,), OPERATIONS.index(name))
    out = levels(apply(pixels / 255, number, torch.full((3,), strength)))
    expected = stacked([pillow_operation(name, strength, 50, 40)(image) for image in as_pil(pixels)])
    differs = (np.abs(out - expected) > 1.8).any((0, 3))
    # At the edge of what is moved in Pillow does not blend with what is around; the border it does not sharpen.
    if OPERATIONS.index(name) >= OPERATIONS.index("rotate"):
        shown = np.asarray(pillow_operation(name, strength, 50, 40)(Image.new("RGB", (50, 40))))[..., 0]
        padded = np.pad(shown == 0, 1)
        inside = np.all([np.roll(padded, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)], 0)[1:-1, 1:-1]
        outside = np.all([np.roll(~padded, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)], 0)[1:-1, 1:-1]
        assert inside.mean() > 0.4 and not differs[inside | outside].any()
    elif name == "sharpness":
        assert not differs[1:-1, 1:-1].any()
    else:
        assert not differs.any()


def test_each_picture_has_its_own_operation() -> None:
    pixels = photos(14) / 255
    which, strength = torch.arange(14).flip(0), torch.linspace(-1, 1, 14)
    together = apply(pixels, which, strength)
    for i in range(14):
        alone = apply(pixels[i : i + 1], which[i : i + 1], strength[i : i + 1])
        assert torch.allclose(together[i], alone[0], atol=1e-6)
    assert torch.equal(together[13], pixels[13]) or torch.allclose(together[13], pixels[13], atol=1e-6)  # the identity


def test_operations_are_drawn_alike() -> None:
    torch.manual_seed(0)
    pixels = photos(1, 32, 32).expand(1400, 3, 32, 32) / 255 * 0.5 + 0.2
    out = randaugment(pixels, 1, 9)
    found = torch.unique(out.mul(255).round().flatten(1), dim=0, return_counts=True)[1]
    # The sign tells two of each of 9 operations; identity, posterize, solarize, autocontrast and equalize know none.
    assert len(found) == 23 and found.sum() == 1400
    assert found.min() >= 25 and found.max() <= 140
    assert randaugment(pixels, 0, 9) is pixels


# Mixing


def constant_pictures(count: int) -> Tensor:
    return (torch.arange(count) / count).view(-1, 1, 1, 1).expand(count, 3, 20, 30).contiguous()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([(0.2, 0.0), (0.0, 1.0), (0.8, 0.5)]), st.integers(0, 2**32 - 1))
def test_targets_are_the_shares_of_what_is_seen(betas: tuple[float, float], seed: int) -> None:
    torch.manual_seed(seed)
    pixels, labels = constant_pictures(8), torch.arange(8)
    mixed, targets = mixing.mix(pixels, labels, 10, *betas)
    assert torch.allclose(targets.sum(1), torch.ones(8)) and (targets >= 0).all()
    values = pixels[:, 0, 0, 0]
    assert torch.allclose(mixed.mean((1, 2, 3)), targets[:, :8] @ values, atol=1e-5)
    for i in range(8):
        assert targets[i, [i, (i - 1) % 8]].sum() == pytest.approx(1)
        seen = mixed[i].unique()
        if betas == (0.0, 1.0):  # CutMix: pixels are of one or the other, in one rectangle
            assert all(min(abs(v - values[i]), abs(v - values[i - 1])) < 1e-6 for v in seen)
            cut = mixed[i, 0] != values[i]
            assert cut.float().mean() == pytest.approx(targets[i, (i - 1) % 8].item(), abs=1e-5)
            rows, columns = cut.any(1).nonzero(), cut.any(0).nonzero()
            if len(rows):
                inside = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
                assert inside == cut.sum()
        elif betas == (0.2, 0.0):
            assert torch.allclose(
                mixed[i], values[i] * targets[i, i] + values[i - 1] * targets[i, (i - 1) % 8], atol=1e-6
            )


def test_weights_are_of_the_beta_distribution_and_both_kinds_occur() -> None:
    torch.manual_seed(0)
    labels = torch.arange(2).repeat(2000)
    for a in (0.2, 1.0):
        own = mixing.mix(torch.zeros(4000, 1, 1, 1), labels, 2, mixup=a)[1].gather(1, labels.unsqueeze(1))
        assert own.mean() == pytest.approx(0.5, abs=0.03)
        assert own.var() == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.1)
    pixels = labels.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).float()
    mixed = mixing.mix(pixels, labels, 2, mixup=1.0, cutmix=1.0)[0]
    blended = ((mixed > 1e-3) & (mixed < 1 - 1e-3)).flatten(1).any(1)
    assert blended.float().mean() == pytest.approx(0.5, abs=0.04)


def test_without_mixing_targets_are_the_labels() -> None:
    pixels, labels = torch.rand(5, 3, 4, 4), torch.tensor([0, 3, 1, 1, 2])
    mixed, targets = ImageAugment().mix(pixels, labels, 4)
    assert mixed is pixels and torch.equal(targets.argmax(1), labels) and targets.sum() == 5


def test_erased_rectangles_have_the_papers_sizes_and_hold_noise() -> None:
    torch.manual_seed(0)
    pixels = torch.full((2000, 3, 32, 32), 2.0)  # outside of 0..1, so noise is told from what was there
    out = mixing.erase(pixels, 0.3)
    erased = (out != 2).all(1)
    touched = erased.flatten(1).any(1)
    assert touched.float().mean() == pytest.approx(0.3, abs=0.04)
    erased = erased[touched]
    rows, columns = erased.any(2).sum(1), erased.any(1).sum(1)
    assert torch.equal(rows * columns, erased.sum((1, 2)))  # a rectangle
    share = erased.float().mean((1, 2))
    assert share.min() >= 0.01 and share.max() <= 0.43 and share.mean() == pytest.approx(0.2, abs=0.03)
    assert (rows / columns).log().mean() == pytest.approx(0, abs=0.1)
    noise = out[touched][erased.unsqueeze(1).expand(-1, 3, -1, -1)]
    assert noise.min() >= 0 and noise.max() <= 1 and noise.mean() == pytest.approx(0.5, abs=0.01)
    assert noise.std() == pytest.approx(math.sqrt(1 / 12), abs=0.01)


# Boxes

CANVAS = (60, 80)


def scene(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Black pictures with a red rectangle each, their boxes (and one of padding), and classes."""
    draw = np.random.default_rng(seed)
    pixels = torch.zeros(count, 3, *CANVAS, dtype=torch.uint8)
    boxes, classes = torch.zeros(count, 2, 4), torch.full((count, 2), -1)
    for i in range(count):
        x, y = draw.integers(0, CANVAS[1] - 12), draw.integers(0, CANVAS[0] - 12)
        x2, y2 = draw.integers(x + 8, CANVAS[1]) + 1, draw.integers(y + 8, CANVAS[0]) + 1
        pixels[i, 0, y:y2, x:x2] = 255
        boxes[i, 0], classes[i, 0] = torch.tensor([x, y, x2, y2]), i
    return pixels, boxes, classes


def red_extent(picture: Tensor, within: Tensor | None = None) -> list[int] | None:
    """x1 y1 x2 y2 of what is red in (3, H, W), inside a box if given."""
    red = picture[0] - picture[1] > 0.5
    if within is not None:
        x1, y1, x2, y2 = within.round().int().tolist()
        mask = torch.zeros_like(red)
        mask[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = True
        red = red & mask
    rows, columns = red.any(1).nonzero(), red.any(0).nonzero()
    if not len(rows):
        return None
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from([(1.0, 1.0), (0.3, 1.0), (0.8, 2.0)]),
    st.sampled_from([CANVAS, (96, 64), (48, 48)]),
)
def test_boxes_are_where_the_rectangles_are(
    seed: int, flip: bool, scale: tuple[float, float], size: tuple[int, int]
) -> None:
    pixels, boxes, classes = scene(6, seed)
    torch.manual_seed(seed)
    shown, moved, kept = BoxAugment(scale=scale, flip=flip, keep=0.3)(pixels, boxes, classes, size)
    assert (kept[:, 1] == -1).all() and not moved[:, 1].any()
    for i in range(6):
        extent = red_extent(shown[i])
        if kept[i, 0] == -1:
            continue
        assert kept[i, 0] == i and extent is not None
        assert np.abs(np.array(extent) - moved[i, 0].numpy()).max() <= 1.01, (extent, moved[i, 0])
        assert moved[i, 0].min() >= 0 and moved[i, 0, 2] <= size[1] and moved[i, 0, 3] <= size[0]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_mosaics_join_four_pictures_with_their_boxes(seed: int) -> None:
    pixels, boxes, classes = scene(6, seed)
    torch.manual_seed(seed)
    shown, moved, kept = BoxAugment(mosaic=1.0, flip=True, scale=(0.8, 1.2))(pixels, boxes, classes, CANVAS)
    assert moved.shape == (6, 8, 4)
    for i in range(6):
        assert set(kept[i].tolist()) <= {-1, i, (i - 1) % 6, (i - 2) % 6, (i - 3) % 6}
        for box, kind in zip(moved[i], kept[i], strict=True):
            inner = (slice(None), slice(*_inner(box[1], box[3])), slice(*_inner(box[0], box[2])))
            if kind >= 0 and shown[i][inner].numel():
                assert shown[i][inner][0].min() > 0.5  # red all over
    plain = BoxAugment(mosaic=0.0)(pixels, boxes, classes, CANVAS)
    torch.manual_seed(seed)
    some = BoxAugment(mosaic=0.5)(pixels, boxes, classes, CANVAS)
    single = torch.tensor([torch.allclose(some[0][i], plain[0][i], atol=1e-5) for i in range(6)])
    assert torch.equal(some[1][single][:, :2], plain[1][single]) and (some[2][single][:, 2:] == -1).all()


def _inner(low: Tensor, high: Tensor) -> tuple[int, int]:
    return math.ceil(low) + 1, math.floor(high) - 1


def test_nothing_on_leaves_pictures_and_boxes() -> None:
    pixels, boxes, classes = scene(4, 0)
    shown, moved, kept = BoxAugment()(pixels, boxes, classes, CANVAS)
    assert torch.allclose(shown, pixels / 255, atol=1e-6)
    assert torch.allclose(moved, boxes, atol=1e-4) and torch.equal(kept, classes)


def test_two_flips_are_none() -> None:
    pixels, boxes, classes = scene(5, 1)
    windows = geometry.mirrored(geometry.whole_windows(5, CANVAS, pixels.device), torch.ones(5, dtype=torch.bool))
    once, _ = geometry.resample(pixels, windows, CANVAS)
    boxes_once, kept = geometry.move_boxes(boxes, classes, windows, CANVAS, 0.5)
    assert torch.allclose(once, pixels.flip(3) / 255, atol=1e-6)
    twice, _ = geometry.resample(once, windows, CANVAS)
    boxes_twice, kept = geometry.move_boxes(boxes_once, kept, windows, CANVAS, 0.5)
    assert torch.allclose(twice, pixels / 255, atol=1e-6)
    assert torch.allclose(boxes_twice, boxes, atol=1e-4) and torch.equal(kept, classes)


def test_boxes_that_keep_too_little_become_padding() -> None:
    boxes = torch.tensor(
        [[[0.0, 0, 10, 10], [7, 0, 17, 10], [9, 0, 11, 1], [2, 2, 2.5, 8], [30, 0, 40, 9], [5, 5, 5, 9]]]
    )
    classes = torch.arange(6).unsqueeze(0)
    window = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    moved, kept = geometry.move_boxes(boxes, classes, window, (10, 10), 0.25)
    assert kept.tolist() == [[0, 1, 2, -1, -1, -1]]  # the rest: thinner than a pixel, outside, without area
    assert moved[0, 1].tolist() == [7, 0, 10, 10] and not moved[0, 3:].any()
    assert geometry.move_boxes(boxes, classes, window, (10, 10), 0.35)[1].tolist() == [[0, -1, 2, -1, -1, -1]]


def test_around_the_picture_is_the_letterbox_grey() -> None:
    pixels, boxes, classes = scene(3, 2)
    torch.manual_seed(0)
    shown, _, _ = BoxAugment(scale=(0.5, 0.5))(pixels, boxes, classes, CANVAS)
    grey = (shown - 127 / 255).abs().amax(1) < 1e-6
    assert torch.allclose(grey.float().mean((1, 2)), torch.tensor(0.75), atol=0.03)
