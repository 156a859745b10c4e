import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers import ViTImageProcessorPil

from bedplate.data import images
from bedplate.data.images import BadImage, cover, decode, fit, letterbox, resize_to, to_pixels
from bedplate.errors import InputError

from .pictures import encoded, noise

ORIENTATION = 0x0112


def array(source: Any) -> np.ndarray:
    image = decode(source, "x")
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_lossless_formats_give_their_pixels(kind: str, tmp_path: Path) -> None:
    picture = noise(5, 7)
    data = encoded(picture, kind, **({"lossless": True} if kind == "WEBP" else {}))
    (tmp_path / "x").write_bytes(data)
    for source in (data, tmp_path / "x", str(tmp_path / "x"), Image.fromarray(picture), picture):
        assert np.array_equal(array(source), picture)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_turns_the_picture(kind: str, turn: int) -> None:
    upright = noise(16, 32, 3)
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(turn, turn)  # the turn that undoes it
    stored = ImageOps.exif_transpose(_marked(Image.fromarray(upright), back))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    found = array(encoded(stored, kind, exif=exif, **options))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 4


def _marked(image: Image.Image, turn: int) -> Image.Image:
    image.getexif()[ORIENTATION] = turn
    return image


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_mangled_exif_leaves_the_picture() -> None:
    data = encoded(noise(8, 8), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert array(data).shape == (8, 8, 3)


def test_transparency_is_on_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0], rgba[0, 1], rgba[1, 0] = (255, 0, 0, 255), (255, 0, 0, 128), (9, 9, 9, 0)
    expected = [[[255, 0, 0], [255, 127, 127]], [[255] * 3, [255] * 3]]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert np.abs(array(encoded(rgba, kind, **options)).astype(int) - expected).max() <= 1
    grey = np.array([[[10, 255], [10, 0]]], np.uint8)
    assert array(encoded(Image.fromarray(grey))).tolist() == [[[10] * 3, [255] * 3]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert array(encoded(palette)).tolist() == [[[255, 0, 0], [0, 255, 0]]]
    for kind in ("PNG", "GIF"):
        assert array(encoded(palette, kind, transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    assert array(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3))).tolist() == [[[255] * 3]]
    wide = Image.fromarray(np.array([[0, 1, 257]], np.uint16))  # 0 and 1 are one grey of 8 bits
    assert array(encoded(wide, transparency=0))[0, :, 0].tolist() == [255, 0, 1]


def test_greys_of_any_depth() -> None:
    values = np.array([[0, 1, 256, 32768, 65535]], np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF", "PPM"):
        assert np.array_equal(array(encoded(Image.fromarray(values), kind))[..., 1], expected), kind
    dark = np.array([[0, 300, 4000]], np.uint16)  # 12 bits in 16: neither stretched nor clipped
    assert array(encoded(Image.fromarray(dark)))[0, :, 0].tolist() == [0, 1, 16]
    wide = np.array([[0, 2**30, 2**31 - 1]], np.int32)
    assert array(encoded(Image.fromarray(wide), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    assert array(encoded(Image.fromarray(values.astype(np.int32)), "TIFF"))[0, :, 0].tolist() == expected[0].tolist()
    for top in (1.0, 255.0, 65535.0):
        floats = (np.array([[0, 0.5, 1]]) * top).astype(np.float32)
        assert array(encoded(Image.fromarray(floats), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    assert array(encoded(Image.fromarray(np.array([[7, 200]], np.uint8))))[0].tolist() == [[7] * 3, [200] * 3]
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert array(encoded(bits))[0].tolist() == [[0] * 3, [255] * 3]
    with pytest.raises(BadImage, match=r"^x: a picture of floats beyond 0\.\.65535"):
        decode(encoded(Image.fromarray(np.array([[np.nan, 1]], np.float32)), "TIFF"), "x")


def test_cmyk_has_its_colours() -> None:
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 1] = inks[..., 2] = 255  # magenta and yellow: red
    for data in (encoded(Image.fromarray(inks, "CMYK"), "JPEG"), encoded(Image.fromarray(inks, "CMYK"), "TIFF")):
        red, green, blue = array(data).reshape(-1, 3).mean(0)
        assert red > 240 and green < 15 and blue < 15
    adobe = encoded(Image.fromarray(inks, "CMYK"), "JPEG")
    assert b"Adobe" in adobe, "inverted, as Photoshop writes it"


def test_the_first_frame_of_animations() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert array(data)[0, 0].tolist() == [255, 0, 0], kind


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 3), st.sampled_from([0, 1, 2]), st.booleans())
def test_jpegs_are_as_pil_gives_them(height: int, width: int, seed: int, subsampling: int, progressive: bool) -> None:
    data = encoded(noise(height, width, seed), "JPEG", subsampling=subsampling, progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(array(data), expected)
    assert (images._plain_small_jpeg(data) is None) == progressive, "plain ones take the short way"


def test_jpegs_with_more_than_pixels_take_the_long_way() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    rest = [
        encoded(noise(8, 8), "JPEG", exif=exif),
        encoded(Image.new("L", (8, 8)), "JPEG"),
        encoded(Image.new("CMYK", (8, 8)), "JPEG"),
        encoded(noise(300, 300), "JPEG"),
    ]
    assert all(images._plain_small_jpeg(data) is None for data in rest)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_every_truncation_is_told_by_name(kind: str) -> None:
    data = encoded(noise(16, 16), kind)
    for size in range(0, len(data) // 2, max(1, len(data) // 60)):
        with pytest.raises(BadImage, match=r"^a/b\.jpg: "):
            decode(data[:size], "a/b.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(
    st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF"]), st.lists(st.tuples(st.integers(0), st.integers(0, 255)))
)
def test_damage_is_told_or_harmless(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(noise(16, 16), kind))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        assert decode(bytes(data), "x.jpg").mode == "RGB"
    except BadImage as error:
        assert str(error).startswith("x.jpg: ")


def test_what_is_no_picture(tmp_path: Path) -> None:
    for data, said in [
        (b"", "an empty file"),
        (b"hello", "no picture of a known kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "no picture of a known kind"),
    ]:
        path = tmp_path / "x.png"
        path.write_bytes(data)
        for source in (data, path):
            with pytest.raises(BadImage, match=said):
                decode(source, "x.png")
    with pytest.raises(BadImage, match=r"nowhere\.png: no such file"):
        decode(tmp_path / "nowhere.png")
    with pytest.raises(BadImage, match="cannot be read: Is a directory"):
        decode(tmp_path)


def test_huge_pictures_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    with pytest.raises(BadImage, match="x: 200 x 100 pixels, more than the 10,000 that are decoded; make it smaller"):
        decode(encoded(noise(100, 200)), "x")
    jpeg = encoded(noise(800, 800), "JPEG")
    small = decode(jpeg, "x", at_least=(20, 30))
    assert small.size == (100, 100)  # an eighth: 60 would be enough, a quarter is the next above
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    bomb = encoded(Image.new("1", (60, 60)))  # PIL itself refuses more than twice its limit
    with pytest.raises(BadImage, match="more than the 10,000 pixels"):
        decode(bomb, "x")


def test_reduced_decoding_is_close_to_the_whole() -> None:
    jpeg = encoded(noise(640, 480), "JPEG", quality=95)
    reduced = decode(jpeg, "x", at_least=(32, 32))
    assert reduced.size == (120, 160)  # a quarter: an eighth would be below twice the side
    one, other = (np.asarray(fit(image, 32, 32, "cover")).astype(int) for image in (reduced, decode(jpeg, "x")))
    assert np.abs(one - other).max() <= 3


def test_stretching_is_that_of_hugging_face() -> None:
    picture = Image.fromarray(noise(37, 53, 5))
    processor = ViTImageProcessorPil(size={"height": 24, "width": 20}, do_rescale=False, do_normalize=False)
    expected = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
    assert np.array_equal(to_pixels(resize_to(picture, 24, 20)), expected)


SIDES = st.integers(1, 60)


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["cover", "letterbox", "stretch"]))
def test_every_fit_gives_the_size(h: int, w: int, height: int, width: int, mode: str) -> None:
    image = Image.new("RGB", (w, h), (10, 20, 30))
    fitted = fit(image, height, width, mode)
    assert fitted.size == (width, height)
    assert to_pixels(fitted).shape == (3, height, width)
    if mode != "letterbox":
        assert (np.asarray(fitted) == (10, 20, 30)).all()


@given(SIDES, SIDES, SIDES, SIDES)
def test_letterbox_keeps_the_shape_and_pads_at_the_end(h: int, w: int, height: int, width: int) -> None:
    canvas, scale = letterbox(Image.new("RGB", (w, h), "red"), height, width)
    assert scale == min(height / h, width / w)
    red = (np.asarray(canvas) == [255, 0, 0]).all(-1)
    inner = max(1, round(h * scale)), max(1, round(w * scale))
    assert red[: inner[0], : inner[1]].all() and red.sum() == inner[0] * inner[1]
    assert (np.asarray(canvas)[~red] == images.GREY).all()


def test_cover_cuts_the_centre() -> None:
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, 2:6] = 255
    assert np.asarray(cover(Image.fromarray(picture), 4, 4)).min() == 255
    wide = noise(40, 80, 2)
    expected = Image.fromarray(wide).resize((20, 10), Image.Resampling.BILINEAR).crop((5, 0, 15, 10))
    assert np.abs(np.asarray(cover(Image.fromarray(wide), 10, 10)).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("size", [(80, 40), (33, 70), (10, 10), (7, 9), (3, 200)])
def test_crop_is_a_resize_and_a_cut(size: tuple[int, int]) -> None:
    picture, side = Image.fromarray(noise(size[1], size[0], 3)), 10
    shorter = min(size)
    scaled = tuple(side if each == shorter else int(side * each / shorter) for each in size)
    whole = picture.resize(scaled, Image.Resampling.BICUBIC)  # type: ignore[arg-type]
    left, top = (scaled[0] - side) // 2, (scaled[1] - side) // 2
    expected = np.asarray(whole.crop((left, top, left + side, top + side))).astype(int)
    assert np.abs(np.asarray(fit(picture, side, side, "crop")).astype(int) - expected).max() <= 1
    with pytest.raises(InputError, match="cannot be cropped; that is for squares"):
        fit(picture, side, side + 1, "crop")


def test_bad_sizes_and_modes() -> None:
    with pytest.raises(
        InputError, match="'squash' is no way to fit a picture: give one of cover, crop, letterbox, stretch"
    ):
        fit(Image.new("RGB", (2, 2)), 2, 2, "squash")
    with pytest.raises(InputError, match="give sides of 1 or more"):
        fit(Image.new("RGB", (2, 2)), 0, 2, "cover")
