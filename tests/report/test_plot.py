"""Charts: well-formed SVG for any numbers, round ticks, honest thinning."""

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.report.plot import (
    Axis,
    _spread,
    _thin,
    bar_chart,
    clip,
    compact,
    interval_chart,
    line_chart,
    log_ticks,
    matrix_chart,
    ticks,
)

numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)


def chart(points: list[tuple[float, float]], **options: bool) -> str:
    return line_chart({"loss": points}, title="Loss", x_label="step", y_label="nats", **options)


@given(st.lists(st.tuples(st.integers(0, 10**9), numbers), max_size=40), st.booleans())
def test_any_numbers_make_well_formed_finite_svg(points: list[tuple[float, float]], y_log: bool) -> None:
    svg = chart(points, y_log=y_log)
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "nan" not in svg and "inf" not in svg


@pytest.mark.parametrize("points", [[(0, 1.5)], [(3, 2.0), (9, 2.0)], [(0, 0.0), (1, 0.0)], [(0, -1.0), (5, 1e-9)]])
def test_one_point_and_constant_values(points: list[tuple[float, float]]) -> None:
    assert "<path" in chart(points)


def test_nothing_to_draw_is_said() -> None:
    assert "nothing was recorded" in chart([]) and "nothing was recorded" in chart([(0, math.nan)])
    assert "nothing was recorded" in chart([(0, 0.0)], y_log=True)


def test_a_nan_interrupts_the_line() -> None:
    path = re.search(r'<path d="([^"]*)" fill="none"', chart([(0, 1), (1, 2), (2, math.nan), (3, 1), (4, 2)]))
    assert path and path.group(1).count("M") == 2


def test_names_are_escaped_and_the_title_is_accessible() -> None:
    svg = line_chart({"<a>": [(0, 1)], "b": [(0, 2)]}, title="<&>", x_label="x", y_label="y")
    assert "<a>" not in svg and "<title>&lt;&amp;&gt;</title>" in svg and 'role="img"' in svg
    ElementTree.fromstring(svg)


def test_the_last_value_is_written_at_the_end() -> None:
    assert ">1.83<" in chart([(0, 5.0), (10, 1.8312)])


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_cover_the_range_evenly(low: float, width: float) -> None:
    values = ticks(low, low + width)
    assert values[0] <= low + 1e-6 * width and values[-1] >= low + width * (1 - 1e-6)
    assert 2 <= len(values) <= 12


def test_log_ticks() -> None:
    assert log_ticks(0.5, 2000) == pytest.approx([1, 10, 100, 1000])
    assert log_ticks(1.7, 9) == pytest.approx([2, 3, 5, 7])
    assert len(log_ticks(2.01, 2.05)) >= 2


def test_tick_labels_share_unit_and_decimals() -> None:
    assert Axis(0, 1, 0, 1, [0, 0.25, 0.5]).labels() == ["0.00", "0.25", "0.50"]
    assert Axis(0, 1, 0, 1, [0, 5000, 10000]).labels() == ["0", "5k", "10k"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (2400, "2,400"),
        (1.8312, "1.83"),
        (999_999, "1M"),
        (13_770_000, "13.8M"),
        (0.0003, "0.0003"),
        (2e-7, "2e-7"),
        (-14_130, "-14.1k"),
        (math.nan, "–"),
    ],
)
def test_compact(value: float, text: str) -> None:
    assert compact(value) == text


def test_thinning_keeps_a_spike() -> None:
    points = [(float(i), 1.0) for i in range(5000)]
    points[3217] = (3217.0, 9.0)
    thinned = _thin(points)
    assert len(thinned) < 700 and (3217.0, 9.0) in thinned and thinned[-1] == points[-1]
    assert thinned == sorted(thinned)


def test_labels_are_moved_apart() -> None:
    heights = sorted(_spread([200, 201, 199]))
    assert all(b - a >= 15 for a, b in itertools.pairwise(heights))


def test_bar_chart() -> None:
    svg = bar_chart({"ours": 14130.0, "peer <b>": 8000.0, "failed": math.nan}, title="Speed", unit="tokens/s")
    ElementTree.fromstring(svg)
    assert svg.count("<rect") == 2 and "14.1k tokens/s" in svg and "peer &lt;b&gt;" in svg
    ElementTree.fromstring(bar_chart({}, title="Nothing"))


Marks = dict[str, list[tuple[str, float, float, float]]]
LABELS = {"title": "Accuracy", "x_label": "labels", "y_label": "%"}
THREE: Marks = {
    "a <b>": [("100", 61.0, 58.5, 63.0), ("1,000", 70.0, 69.0, 71.5)],
    "b": [("100", 55.0, 52.0, 58.0), ("1,000", 66.04, 65.0, 67.0)],
    "c": [("1,000", 64.0, 63.0, 65.0), ("all", 80.0, 79.0, 81.0)],
}


def circles(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([^"]*)" cy="([^"]*)"', svg)]


def test_every_interval_is_drawn_beside_the_others_at_its_height() -> None:
    svg = interval_chart(THREE, **LABELS, baseline=("majority", 50.0))
    ElementTree.fromstring(svg)
    marks = circles(svg)
    values = [point[1] for points in THREE.values() for point in points]
    heights = dict(zip(values, (y for _, y in marks), strict=True))
    assert sorted(values) == sorted(values, key=lambda value: -heights[value])
    places = sorted(x for x, _ in marks)
    assert all(b - a >= 40 for a, b in itertools.pairwise(places))  # a value is some 26 pixels wide
    bars = re.findall(r'd="M([\d.]+),([\d.]+) V([\d.]+)', svg)
    assert [float(x) for x, *_ in bars] == [x for x, _ in marks]
    assert all(float(high) < y < float(low) for (_, low, high), (_, y) in zip(bars, marks, strict=True))


def test_an_interval_chart_names_its_series_values_and_baseline() -> None:
    svg = interval_chart(THREE, **LABELS, baseline=("majority & co", 50.0))
    words = re.findall(r"<text[^>]*>([^<]*)<", svg)
    assert {"a &lt;b&gt;", "b", "c", "61.0", "66.0", "100", "1,000", "all", "majority &amp; co: 50"} <= set(words)
    dashed = re.search(r'<path d="M48,([\d.]+) H716" stroke="currentColor" stroke-dasharray', svg)
    assert dashed and float(dashed.group(1)) > max(y for _, y in circles(svg))
    assert 'stroke-dasharray="5' not in interval_chart(THREE, **LABELS)


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c" * 200]),
        st.lists(st.tuples(st.sampled_from(["100", "all", "x" * 99]), numbers, numbers, numbers), max_size=3),
    )
)
def test_any_intervals_make_well_formed_finite_svg(series: Marks) -> None:
    svg = interval_chart(series, **LABELS, baseline=("majority", 0.5))
    ElementTree.fromstring(svg)
    assert "nan" not in svg and "inf" not in svg
    finite = sum(all(map(math.isfinite, point[1:])) for points in series.values() for point in points)
    assert len(circles(svg)) == finite and ("nothing was recorded" in svg) == (finite == 0)


def test_a_legend_of_long_names_stays_inside() -> None:
    series = {f"{letter * 70} {letter * 60}": THREE["b"] for letter in "abc"}
    svg = interval_chart(series, **LABELS)
    names = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" >(\w+ \w+…)<', svg)
    assert len({y for _, y, _ in names}) == 3 and all(float(x) + 6.6 * len(name) <= 720 for x, _, name in names)
    assert max(float(y) for _, y, _ in names) < float(svg.split('viewBox="0 0 720 ')[1].split('"')[0])


def cells(svg: str) -> list[tuple[float, float]]:
    """(left edge, opacity) of each cell."""
    found = re.findall(r'<rect x="([\d.]+)"[^>]* fill-opacity="([\d.]+)"', svg)
    return [(float(x), float(shade)) for x, shade in found]


def test_a_confusion_matrix_shades_the_share_of_the_row() -> None:
    svg = matrix_chart([[90, 10], [2, 2]], ["ham <b>", "spam"], title="Confusion")
    ElementTree.fromstring(svg)
    shades = [shade for _, shade in cells(svg)]
    assert shades[0] == pytest.approx(9 * shades[1], rel=0.02) and shades[2] == shades[3] == pytest.approx(
        shades[0] * 5 / 9, rel=0.01
    )
    for words in ("90 · 90 %", "10 · 10 %", "2 · 50 %", "ham &lt;b&gt;"):
        assert f">{words}<" in svg
    assert "not shown" not in svg


@pytest.mark.parametrize("classes", [2, 3, 7, 12, 20])
@pytest.mark.parametrize("length", [1, 60])
def test_a_matrix_of_any_size_fits_its_page(classes: int, length: int) -> None:
    labels = [f"{i:02d}{'x' * length}" for i in range(classes)]
    svg = matrix_chart([[1234] * classes] * classes, labels, title="Confusion")
    ElementTree.fromstring(svg)
    height = float(svg.split('viewBox="0 0 720 ')[1].split('"')[0])
    assert svg.count(">1,234") == classes**2
    for x, y, wide, high in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg):
        assert float(x) + float(wide) <= 720 and float(y) + float(high) <= height
        assert float(wide) >= 20 and float(high) >= 20
    slanted = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" transform[^>]*>([^<]*)<', svg)
    for x, y, name in slanted:  # about 6.6 pixels a letter, at 40 degrees
        assert float(x) + 6.6 * len(name) * 0.77 <= 721 and float(y) - 6.6 * len(name) * 0.64 >= 38
    assert len(slanted) in (0, classes)


def test_of_many_classes_the_most_frequent_are_shown_and_the_rest_is_counted() -> None:
    counts = [[0] * 30 for _ in range(30)]
    for c in range(30):
        counts[c][c], counts[c][0] = 10 + c, 1
    counts[0][0] = 99
    svg = matrix_chart(counts, [f"class {c}" for c in range(30)], title="Confusion")
    assert len(cells(svg)) == 400
    assert "class 0<" in svg and "class 29<" in svg and "class 11<" in svg and "class 10<" not in svg
    everything = sum(map(sum, counts))
    left_out = sum(counts[c][c] + 1 for c in range(1, 11))
    assert f"the 20 most frequent of 30 classes: {left_out} of {everything} texts are not shown" in svg


def test_an_empty_row_of_a_matrix_has_no_shade() -> None:
    assert [shade for _, shade in cells(matrix_chart([[0, 0], [1, 3]], ["a", "b"], title=""))][:2] == [0, 0]


def test_clip() -> None:
    assert clip("  two\n words ", 9) == "two words" and clip("two words", 5) == "two…" and clip("abcdef", 5) == "abcd…"
