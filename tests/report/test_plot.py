"""Charts: well-formed SVG for any numbers, round ticks, honest thinning."""

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.report.plot import Axis, _spread, _thin, bar_chart, compact, line_chart, log_ticks, ticks

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
