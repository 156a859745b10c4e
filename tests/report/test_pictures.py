"""What is drawn is looked at pixel by pixel where it can be; a page of pictures holds them all and loads nothing."""

import base64
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bedplate.report.pictures import (
    COLORS,
    Style,
    data_uri,
    draw_boxes,
    grid,
    heat,
    predictions,
    side_by_side,
    triples,
)
from bedplate.report.vision import VERDICTS, classification_report, detection_report, detection_sections

HOSTILE = '"><script>alert(1)</script>'


def plain(width: int = 640, height: int = 480, color: Any = (128, 128, 128)) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{image.format.lower()}"
    return image


# draw_boxes


def test_the_sides_of_a_box_are_drawn_where_it_is_and_the_picture_is_left_alone() -> None:
    image = plain()
    drawn = draw_boxes(image, [[100, 200, 300, 400]])
    assert drawn.size == image.size and image.getcolors() == [(640 * 480, (128, 128, 128))]
    for x, y in ((100, 300), (300, 300), (200, 200), (200, 400)):
        assert drawn.getpixel((x, y)) == rgb(COLORS[0])
    assert drawn.getpixel((200, 300)) == drawn.getpixel((50, 50)) == (128, 128, 128)


def test_a_class_has_one_color_in_all_pictures() -> None:
    names = ["a", "b", "c"]
    alone = draw_boxes(plain(), [[100, 200, 300, 400]], ["c"], names=names)
    other = draw_boxes(plain(), [[10, 20, 50, 60], [100, 200, 300, 400]], ["a", "c"], names=names)
    assert alone.getpixel((200, 400)) == other.getpixel((200, 400)) == rgb(COLORS[2])
    assert other.getpixel((30, 60)) == rgb(COLORS[0])


def test_styles_replace_the_colours_of_classes_and_tell_boxes_apart_without_them() -> None:
    solid, dashed = Style("#112233"), Style("#112233", 5, "wrong:")
    sides = []
    for style in (solid, dashed):
        drawn = draw_boxes(plain(), [[100, 200, 300, 400]], styles=[style])
        for line in ([(x, 200) for x in range(100, 301)], [(300, y) for y in range(200, 401)]):
            sides.append(np.mean([drawn.getpixel(point) == rgb("#112233") for point in line]))
    assert sides[:2] == [1, 1] and all(0.3 < share < 0.7 for share in sides[2:])
    labels = [np.asarray(draw_boxes(plain(), [[100, 200, 300, 400]], ["cat"], styles=[s])) for s in (solid, dashed)]
    wide = [np.all(each == rgb("#112233"), axis=2)[170:195].any(0).sum() for each in labels]
    assert wide[1] > 2 * wide[0], "the word stands before the label"
    with pytest.raises(ValueError, match="1 boxes with 2 styles"):
        draw_boxes(plain(), [[0, 0, 1, 1]], styles=[solid, dashed])


def test_a_label_that_would_lie_outside_is_moved_inside() -> None:
    """At each corner the label's rectangle, filled with the colour, must be whole: of the size it has in the middle."""
    color = rgb(COLORS[0])

    def filled(box: list[float]) -> int:
        with_label = np.asarray(draw_boxes(plain(), [box], ["label"], [0.5]))
        without = np.asarray(draw_boxes(plain(), [box]))
        changed = np.any(with_label != without, axis=2)
        return int((np.all(with_label == color, axis=2) & changed).sum())

    middle = filled([300, 200, 301, 201])
    for box in ([0, 0, 1, 1], [638, 0, 639, 1], [0, 478, 1, 479], [638, 478, 639, 479], [0, 0, 640, 480]):
        assert filled(box) > 0.7 * middle, box


def test_small_pictures_are_enlarged_so_that_labels_can_be_read() -> None:
    drawn = draw_boxes(plain(64, 48), [[10, 10, 30, 30]], ["cat"])
    assert drawn.size == (512, 384)
    assert drawn.getpixel((80, 160)) == drawn.getpixel((240, 160)) == rgb(COLORS[0])


@given(
    st.lists(st.tuples(*[st.floats(-300, 900)] * 4), max_size=6),
    st.sampled_from([(1, 1), (3, 700), (64, 48), (640, 480)]),
    st.text(max_size=60),
)
@settings(max_examples=40, deadline=None)
def test_any_box_and_label_can_be_drawn(boxes: list[tuple[float, ...]], size: tuple[int, int], label: str) -> None:
    drawn = draw_boxes(plain(*size), boxes, [label] * len(boxes), [0.5] * len(boxes))
    assert drawn.mode == "RGB" and drawn.width % size[0] == 0 and drawn.width * size[1] == drawn.height * size[0]


def test_boxes_labels_and_scores_must_fit() -> None:
    with pytest.raises(ValueError, match="1 boxes with 2 labels"):
        draw_boxes(plain(), [[0, 0, 1, 1]], ["a", "b"])
    with pytest.raises(ValueError, match="0 scores"):
        draw_boxes(plain(), [[0, 0, 1, 1]], ["a"], [])


# heat


def test_the_greatest_value_is_the_brightest_and_in_its_place() -> None:
    values = np.zeros((4, 4))
    values[0, 3] = 7
    shown = np.asarray(heat(plain(400, 200), values).convert("L"), np.int64)
    assert shown.shape == (200, 400)
    assert np.unravel_index(shown.argmax(), shown.shape)[0] < 50 and shown.argmax() % 400 > 300
    assert shown[199, 0] == shown[150, 50] < shown[25, 350] - 50


def test_a_map_that_is_the_same_everywhere_and_one_that_is_none() -> None:
    assert len(heat(plain(8, 8), np.full((2, 2), 3.0)).getcolors()) == 1
    for values in (np.zeros(4), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="two sides and finite"):
            heat(plain(8, 8), values)


# HTML


def test_small_pictures_stay_exact_and_large_ones_become_small() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    np.testing.assert_array_equal(np.asarray(decoded(data_uri(noise))), np.asarray(noise))
    large = decoded(data_uri(plain(4000, 3000)))
    assert large.size == (640, 480) and large.format == "JPEG"
    assert decoded(data_uri(Image.new("RGBA", (20, 20)))).size == (20, 20)


def test_data_uris_are_kept_and_addresses_are_refused() -> None:
    uri = data_uri(plain(8, 8))
    assert data_uri(uri) == uri and uri in grid([uri])
    for address in ("https://example.org/a.png", "a.png", "data:text/html,x"):
        with pytest.raises(ValueError, match="no data URI of an image"):
            grid([address])


def test_captions_are_escaped_and_must_be_as_many_as_pictures() -> None:
    html = grid([plain(8, 8)], [HOSTILE], caption=HOSTILE)
    assert "<script" not in html and html.count("&lt;script") == 2
    with pytest.raises(ValueError, match="1 pictures with 2 captions"):
        grid([plain(8, 8)], ["a", "b"])


def test_predictions_say_what_was_said_and_where_it_was_wrong() -> None:
    rows = [
        {"image": plain(8, 8), "label": "cat", "predicted": "dog", "score": 0.912},
        {"image": plain(8, 8), "label": "cat", "predicted": "cat", "score": 0.5},
        {"image": plain(8, 8), "predicted": "cow", "score": 1.0},
    ]
    spans = re.findall(r"<span>(.*?)</span>", predictions(rows), re.DOTALL)
    assert spans == ["“dog”, 91 % sure\nlabelled “cat”", "“cat”, 50 % sure", "“cow”, 100 % sure"]


def test_triples_stand_in_lines_of_three() -> None:
    shades = [plain(8, 8, (shade,) * 3) for shade in range(0, 60, 10)]
    html = triples(shades[:2], shades[2:4], shades[4:])
    assert "repeat(3, 1fr)" in html
    shown = [decoded(uri).getpixel((0, 0))[0] for uri in re.findall(r'src="(.*?)"', html)]
    assert shown == [0, 20, 40, 10, 30, 50]
    with pytest.raises(ValueError, match="1 masked"):
        triples(shades[:2], shades[:1], shades[:2])


def test_side_by_side() -> None:
    line = side_by_side(plain(10, 20, "red"), plain(30, 10, "blue"), gap=5)
    assert line.size == (45, 20)
    assert [line.getpixel((x, 5)) for x in (0, 12, 15, 44)] == [(255, 0, 0), (255,) * 3, (0, 0, 255), (0, 0, 255)]


# Pages


def metric(value: float, n: int = 87) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.03, "n": n}


@pytest.fixture
def classified() -> dict[str, Any]:
    share = {"precision": metric(0.8), "recall": metric(0.7), "f1": 0.75, "n": 40}
    wrong = [{"image": plain(32, 32), "label": "cat", "predicted": "dog", "score": score} for score in (0.4, 0.99, 0.7)]
    return {
        "name": "pets",
        "classes": ["cat", HOSTILE],
        "summary": {"parameters": 1000, "seconds": 12.0},
        "metrics": [
            {"step": s, "loss": 2 / s, "val_loss": 2.1 / s, "val_accuracy": 0.5 + s / 100} for s in (1, 10, 20)
        ],
        "validation": {"accuracy": metric(0.66)},
        "test": {"accuracy": metric(0.7), "macro_f1": metric(0.68), "loss": metric(0.9), "ece": metric(0.05)},
        "confusion": [[30, 10], [14, 33]],
        "per_class": [share, {**share, "n": 47}],
        "bins": [
            {"low": 0.4, "high": 0.5, "n": 30, "confidence": 0.45, "accuracy": 0.4},
            {"low": 0.9, "high": 1.0, "n": 57, "confidence": 0.95, "accuracy": 0.86},
        ],
        "mistakes": wrong,
        "right": [{"image": plain(32, 32), "label": "cat", "predicted": "cat", "score": 0.9}],
        "looks": [{**wrong[0], "map": [[0.1, 0.2], [0.3, 0.9]]}],
        "data": {"path": "pets", "train": 205, "dropped": {"broken pictures": 2}},
    }


@pytest.fixture
def detected() -> dict[str, Any]:
    row = {"n": 40, "ap": metric(0.4), "ap_50": metric(0.8), "precision": 0.9, "recall": 0.6, "f1": 0.72}
    curve = [(i / 100, 1 - i / 200 if i < 70 else 0.0) for i in range(101)]
    measured = {
        **{key: metric(0.5) for key in ("map", "map_75", "map_small", "mar_100")},
        "map_50": metric(0.852),
        "per_class": [{"name": "cat", "threshold": 0.31, **row}, {"name": HOSTILE, "threshold": None, **row}],
        "curves": {"cat": curve, HOSTILE: [(i / 100, 0.0) for i in range(101)]},
    }
    boxes = [{"label": "cat", "box": [100, 100, 300, 300]}, {"label": HOSTILE, "box": [400, 10, 500, 80]}]
    return {
        "name": "cells",
        "classes": ["cat", HOSTILE],
        "metrics": [{"step": s, "loss": 2 / s, "val_map_50": s / 30, "val_map": s / 60} for s in (1, 10, 20)],
        "validation": measured,
        "pictures": [
            {
                "image": plain(),
                "truth": [{**boxes[0], "verdict": "found"}, {**boxes[1], "verdict": "missed"}],
                "predicted": [
                    {**boxes[0], "score": 0.77, "verdict": "right"},
                    {"label": "cat", "box": [10, 350, 200, 450], "score": 0.4, "verdict": "wrong"},
                ],
            },
            {"image": data_uri(plain()), "predicted": []},
        ],
        "data": {"path": "cells", "train": 205, "val": 87, "dropped": {"boxes without area": 1}},
    }


class Page(HTMLParser):
    """Checks that all elements are closed, and collects what is loaded."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_of_a_classifier(classified: dict[str, Any]) -> None:
    html = classification_report(classified)
    page = Page(html)
    assert [uri[:15] for uri in page.loaded] == ["data:image/png;"] * 5 + ["data:image/jpeg"]
    assert np.asarray(decoded(page.loaded[5]).convert("L"), np.int64).argmax() // 480 > 240, "the greatest of the map"
    assert "img-src data:" in html and "default-src 'none'" in html
    for words in ("Test pictures", "70.0", "68.0 to 73.0", "Reliability", "ECE", "broken pictures", "57 pictures"):
        assert words in html, words
    assert "texts" not in html
    assert re.findall(r"“dog”, (\d+) % sure", html) == ["99", "70", "40", "40"], "the surest first"


def test_the_page_of_a_detector(detected: dict[str, Any]) -> None:
    html = detection_report(detected)
    page = Page(html)
    assert len(page.loaded) == 3, "the second picture has no true boxes to compare with"
    for words in ("mAP at IoU 0.5", "85.2", "83.2 to 88.2", "Keep from", "0.31", "true: 2", "found: 0"):
        assert words in html, words
    assert "found: 2 (right: 1, wrong: 1), missed: 1" in html
    assert all(f"“{verdict}”" in html for verdict in ("wrong", "missed")) and "uncounted" not in html
    assert "texts" not in html and "map_large" not in html and "larger boxes" not in html


def test_right_wrong_and_missed_boxes_are_drawn_each_in_its_way(detected: dict[str, Any]) -> None:
    html = detection_report(detected)
    true, found = (np.asarray(decoded(uri), np.int64) for uri in Page(html).loaded[:2])

    def has(picture: Any, verdict: str, side: tuple[slice, slice]) -> float:
        near = np.abs(picture[side] - rgb(VERDICTS[verdict].color)).sum(-1) < 120  # a JPEG
        return float(near.any(axis=int(np.argmin(near.shape))).mean())

    right, wrong, missed = np.s_[120:280, 99:103], np.s_[370:440, 9:13], np.s_[79:82, 410:490]
    assert has(found, "right", right) > 0.95
    assert 0.2 < has(found, "wrong", wrong) < 0.8 and 0.2 < has(found, "missed", missed) < 0.8
    assert not any(has(true, verdict, side) for verdict, side in (("right", right), ("wrong", wrong)))


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong(detected: dict[str, Any]) -> None:
    crowd = {"label": "cat", "box": [0, 0, 200, 200], "verdict": "uncounted"}
    inside = {"label": "cat", "box": [50, 50, 90, 90], "score": 0.5, "verdict": "uncounted"}
    detected["pictures"] = [{"image": plain(), "truth": [crowd], "predicted": [inside]}]
    html = detection_report(detected)
    assert "true: 0" in html and "found: 1 (uncounted: 1), missed: 0" in html and "neither right nor wrong" in html


@pytest.mark.parametrize("report", [classification_report, detection_report])
def test_a_page_is_whole_whatever_is_missing(report: Any, classified: dict[str, Any], detected: dict[str, Any]) -> None:
    record = classified if report is classification_report else detected
    for key in set(record) - {"name", "classes"}:
        Page(report({name: value for name, value in record.items() if name != key}))
    Page(report({"name": "x", "classes": ["a"]}))


def test_curves_end_where_no_more_is_found(detected: dict[str, Any]) -> None:
    blocks = dict(detection_sections(detected))["Class by class"]
    drawn = next(block for block in blocks if "Precision and recall" in block)
    assert "65" in re.findall(r'font-weight="600" fill="[^"]*">(.*?)</text>', drawn)[-1], "the precision at 69 % recall"
