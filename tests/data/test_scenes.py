"""Composed scenes: exact boxes, one function of the seed, and a COCO folder that reads back."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from bedplate.data.boxes import read_boxes
from bedplate.data.images import BadImage
from bedplate.data.scenes import Scene, compose, write_scenes
from bedplate.data.stickers import Sticker, read_stickers, sticker
from bedplate.data.textures import PATTERNS, texture
from bedplate.errors import InputError

COLOURS = {"disc": (255, 0, 0), "star": (0, 255, 0), "bar": (0, 0, 255)}
STAR = [(32, 2), (40, 24), (62, 24), (44, 38), (52, 60), (32, 46), (12, 60), (20, 38), (2, 24), (24, 24)]


def drawn(name: str) -> Image.Image:
    """A shape of one pure colour, away from the edges of a transparent picture."""
    image = Image.new("RGBA", (80, 80))
    draw = ImageDraw.Draw(image)
    if name == "disc":
        draw.ellipse((10, 10, 60, 60), (*COLOURS[name], 255))
    elif name == "star":
        draw.polygon([(x + 8, y + 8) for x, y in STAR], (*COLOURS[name], 255))
    else:
        draw.rectangle((10, 30, 70, 45), (*COLOURS[name], 255))
    return image


STICKERS = [sticker(drawn(name), name) for name in COLOURS]


def fingerprint(scenes: list[Scene]) -> str:
    """Of all pixels, boxes and classes."""
    digest = hashlib.sha256()
    for scene in scenes:
        for array in (np.asarray(scene["image"]), scene["boxes"], scene["classes"], scene["areas"]):
            digest.update(array.tobytes())
    return digest.hexdigest()


def of_colour(scene: Scene, name: str) -> np.ndarray:
    return (np.abs(np.asarray(scene["image"]).astype(int) - COLOURS[name]) < 80).all(2)


@pytest.fixture
def grey_ground(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bedplate.data.scenes.texture", lambda _, height, width: np.full((height, width, 3), 128, np.uint8)
    )


# Boxes


@pytest.mark.usefixtures("grey_ground")
@pytest.mark.parametrize("rotation", [0.0, 180.0])
def test_boxes_are_the_extent_of_the_coloured_pixels(rotation: float) -> None:
    count = 0
    for scene in compose(STICKERS, 60, 3, objects=(1, 1), size=(120, 160), rotation=rotation):
        (box,), (kind,) = scene["boxes"], scene["classes"]
        rows, columns = np.nonzero(of_colour(scene, scene["names"][kind]))
        extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(box - extent).max() <= 1.01
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= 160 and box[3] <= 120
        assert abs(len(rows) - scene["areas"][0]) <= 0.12 * scene["areas"][0] + 12
        count += 1
    assert count == 60


@pytest.mark.usefixtures("grey_ground")
def test_boxes_are_around_what_is_seen_and_no_more_is_hidden_than_may_be() -> None:
    """Three objects of three colours: the pixels of each colour are what is left of its object."""
    one_each, covered = 0, 0
    for scene in compose(STICKERS, 150, 0, objects=(3, 3), scale=(0.3, 0.6), overlap=0.4, rotation=0):
        kinds = scene["classes"].tolist()
        if len(set(kinds)) != 3:
            continue
        one_each += 1
        for box, kind, area in zip(scene["boxes"], kinds, scene["areas"], strict=True):
            name = scene["names"][kind]
            rows, columns = np.nonzero(of_colour(scene, name))
            assert (
                np.abs(box - [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).max() <= 3
            )  # soft edges over soft edges
            # All of a bar is 61 x 16 of its own pixels; its box is as wide as it is long where nothing hides it.
            if name == "bar" and box[2] < 256 and box[0] > 0:
                whole = (box[2] - box[0]) ** 2 * 16 / 61
                covered += area < 0.95 * whole
                assert area >= 0.55 * (box[2] - box[0]) * (box[3] - box[1])
    assert one_each >= 20 and covered >= 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.9))
def test_every_object_keeps_its_share(seed: int, overlap: float) -> None:
    """Discs of any scale: seen area against pi/4 of the square that the drawn side spans, when both sides are seen."""
    discs = [each for each in STICKERS if each.name == "disc"]
    for scene in compose(discs, 3, seed, size=(64, 64), objects=(0, 12), scale=(0.3, 0.3), overlap=overlap):
        whole = np.pi / 4 * (0.3 * 64) ** 2
        assert (scene["areas"] >= (1 - overlap) * whole * 0.85).all()
        assert (scene["areas"] <= whole * 1.15).all()
        assert scene["areas"].sum() <= 64 * 64
        sides = scene["boxes"][:, 2:] - scene["boxes"][:, :2]
        assert (sides >= 1).all() and (sides.prod(1) >= scene["areas"]).all()


def test_no_overlap_means_none() -> None:
    for scene in compose(STICKERS, 20, 1, objects=(10, 20), scale=(0.1, 0.3), overlap=0.0, rotation=0):
        assert len(scene["boxes"]) >= 3
        for box in scene["boxes"]:
            assert 0 <= box[0] < box[2] <= 256 and 0 <= box[1] < box[3] <= 256
        discs = scene["boxes"][scene["classes"] == scene["names"].index("disc")]
        sides = discs[:, 2:] - discs[:, :2]
        assert (np.abs(sides[:, 0] - sides[:, 1]) <= 1).all()  # whole circles


def test_empty_tiny_and_crowded_scenes_occur_and_classes_are_alike_frequent() -> None:
    many = [*STICKERS, *[sticker(drawn("disc"), "disc")] * 20]
    scenes = list(compose(many, 300, 5, size=(96, 96), objects=(0, 12), scale=(0.05, 0.5)))
    counts = np.array([len(scene["boxes"]) for scene in scenes])
    assert (counts == 0).sum() >= 10 and (counts >= 9).sum() >= 10
    boxes = np.concatenate([scene["boxes"] for scene in scenes])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert (sides <= 8).sum() >= 50 and sides.min() >= 2 and (sides >= 40).sum() >= 20
    overlapping = 0
    for scene in scenes:
        b = scene["boxes"]
        low, high = np.maximum(b[:, None, :2], b[None, :, :2]), np.minimum(b[:, None, 2:], b[None, :, 2:])
        overlapping += (high > low).all(2).sum() > len(b)
    assert overlapping >= 50
    share = np.bincount(np.concatenate([scene["classes"] for scene in scenes])) / len(boxes)
    assert np.abs(share - 1 / 3).max() < 0.06
    assert all(scene["names"] == ["bar", "disc", "star"] for scene in scenes)


# One function of the seed


def test_a_scene_depends_on_the_seed_and_its_number_only() -> None:
    def made(count: int, seed: int, start: int = 0) -> list[Scene]:
        return list(compose(STICKERS, count, seed, start, size=(64, 80)))

    whole = made(12, 7)
    assert fingerprint(whole) == fingerprint(made(5, 7) + made(4, 7, 5) + made(3, 7, 9))
    assert [scene["index"] for scene in made(3, 7, 9)] == [9, 10, 11]
    assert fingerprint(whole) != fingerprint(made(12, 8))
    assert len({fingerprint([scene]) for scene in whole}) == 12
    assert fingerprint(list(compose(STICKERS[::-1], 12, 7, size=(64, 80)))) == fingerprint(whole)  # nor on their order


def test_another_process_makes_the_same() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_scenes as t;"
        "print(t.fingerprint(list(t.compose(t.STICKERS, 6, 7))))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == fingerprint(list(compose(STICKERS, 6, 7)))


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda each: each.__name__)
def test_patterns_are_shares_of_two_colours(pattern: Any) -> None:
    for seed, (height, width) in enumerate([(16, 16), (33, 70), (128, 90)]):
        field = pattern(np.random.default_rng(seed), height, width)
        assert field.shape == (height, width) and field.min() >= 0 and field.max() <= 1


def test_textures_are_many() -> None:
    made = [texture(np.random.default_rng(seed), 32, 48) for seed in range(40)]
    assert all(each.shape == (32, 48, 3) and each.dtype == np.uint8 for each in made)
    assert len({each.tobytes() for each in made}) == 40


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"size": (8, 64)}, "size is (8, 64)"),
        ({"objects": (5, 2)}, "objects is (5, 2)"),
        ({"scale": (0.0, 0.5)}, "scale is"),
        ({"rotation": -1.0}, "rotation is"),
        ({"overlap": 1.0}, "overlap is"),
        ({"seed": -1}, "seed is -1"),
        ({"stickers": []}, "no stickers"),
    ],
)
def test_numbers_out_of_range_are_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as raised:
        compose(**{"stickers": STICKERS, "count": 1, "seed": 0, **wrong})
    assert named in str(raised.value)


# Folders


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_written_folder_reads_back(tmp_path: Path, suffix: str) -> None:
    scenes = list(compose(STICKERS, 12, 2, start=3, size=(64, 96), objects=(0, 4)))
    file = write_scenes(tmp_path / "made", iter(scenes), suffix)
    data = json.loads(file.read_text())
    assert [each["name"] for each in data["categories"]] == ["bar", "disc", "star"]
    assert {"id", "image_id", "category_id", "bbox", "area", "iscrowd"} <= set(data["annotations"][0])
    read = read_boxes(tmp_path / "made")
    assert read.names == ["bar", "disc", "star"] and read.ids == [1, 2, 3] and not read.dropped and not read.clipped
    assert len(read.images) == 12 and (read.sizes == (64, 96)).all()
    for i, scene in enumerate(scenes):
        assert np.array_equal(read.boxes[i], scene["boxes"]) and np.array_equal(read.classes[i], scene["classes"])
        stored = np.asarray(Image.open(file.parent / "images" / f"{i + 3:06}{suffix}").convert("RGB")).astype(int)
        assert np.abs(stored - np.asarray(scene["image"])).mean() <= (0 if suffix == ".png" else 25)


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    write_scenes(tmp_path, compose(STICKERS, 1, 0, size=(32, 32)))
    with pytest.raises(InputError, match="is there already"):
        write_scenes(tmp_path, compose(STICKERS, 1, 0, size=(32, 32)))
    with pytest.raises(InputError, match=r"suffix is '.gif'"):
        write_scenes(tmp_path / "other", [], ".gif")


# Stickers


def test_stickers_are_cut_to_what_is_seen() -> None:
    made = sticker(drawn("bar"), "bar")
    assert made.image.size == (61, 16) and made.name == "bar"
    faint = Image.new("RGBA", (30, 30), (255, 255, 255, 60))
    faint.paste((0, 0, 0, 255), (3, 4, 10, 20))
    assert sticker(faint, "x").image.size == (7, 16)
    assert max(sticker(Image.new("RGB", (2000, 500)), "x").image.size) == 512
    with pytest.raises(InputError, match="'nothing' is transparent all over"):
        sticker(Image.new("RGBA", (9, 9)), "nothing")


def as_png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def test_folders_name_stickers_by_folder_or_file(tmp_path: Path) -> None:
    (tmp_path / "round").mkdir()
    (tmp_path / "round" / "a.png").write_bytes(as_png(drawn("disc")))
    (tmp_path / "round" / "notes.txt").write_text("no picture")
    (tmp_path / "bar.png").write_bytes(as_png(drawn("bar")))
    assert sorted(each.name for each in read_stickers(tmp_path)) == ["bar", "round"]
    assert [each.name for each in read_stickers(tmp_path, names=["round"])] == ["round"]
    with pytest.raises(InputError, match="no sticker is named 'rounds'; did you mean 'round'"):
        read_stickers(tmp_path, names=["rounds"])
    (tmp_path / "bar.png").write_bytes(as_png(drawn("bar"))[:50])
    with pytest.raises(BadImage, match=r"bar\.png: this picture cannot be read"):
        read_stickers(tmp_path)
    (tmp_path / "bar.png").write_bytes(as_png(Image.new("RGBA", (5, 5))))
    with pytest.raises(InputError, match=r"bar\.png: .*transparent all over"):
        read_stickers(tmp_path)


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_archives_name_stickers_by_a_label(tmp_path: Path) -> None:
    members = {
        "k1.png": as_png(drawn("disc")),
        "k1.json": b'{"name": "red disc", "group": "round", "tone": null}',
        "k2.json": b'{"name": "green star", "group": "sharp"}',
        "k2.png": as_png(drawn("star")),
        "k3.png": as_png(drawn("bar")),
    }
    path = archive(tmp_path / "x.tar", members)
    made: list[Sticker] = read_stickers(path)
    assert [each.name for each in made] == ["red disc", "green star", "k3"]
    assert [each.name for each in read_stickers(path, "group")] == ["round", "sharp", "k3"]
    assert made[2].image.size == (61, 16)
    with pytest.raises(InputError, match=r"x\.tar::k1\.json: .*'tone'.*name, group, tone"):
        read_stickers(path, "tone")


def test_what_is_no_source_of_stickers_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        read_stickers(tmp_path / "none")
    with pytest.raises(InputError, match="no picture in it"):
        read_stickers(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"nonsense" * 100)
    with pytest.raises(InputError, match=r"x\.tar: truncated or corrupt"):
        read_stickers(tmp_path / "x.tar")
