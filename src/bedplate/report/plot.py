"""Charts as inline SVG, with no library and no script.

Ink is `currentColor` and the colours of series are the CSS variables `--series-1` to `--series-6` of the page (with
fallbacks), so a chart follows the light and the dark theme, prints well, and its text can be selected.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise

Point = tuple[float, float]

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 60, 56, 44  # the right margin holds the value at the end of each line
MAX_POINTS = 600  # more than one a pixel or so only makes the page heavier
MARKED_POINTS = 30  # a line of so few points shows each of them
# After Okabe and Ito: colour-blind readers tell them apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#666666")
MATRIX_CLASSES = 20  # what a confusion matrix can show with counts that can be read
SHADE = 0.55  # of the darkest cell: ink stays legible on it in the light and in the dark theme
SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def compact(value: float) -> str:
    """A number as a reader wants it: `1.93`, `0.0003`, `2,400`, `13.8M`."""
    if not math.isfinite(value):
        return "–"
    if abs(value) < 10_000 and value == int(value):
        return f"{int(value):,}"
    value = float(f"{value:.3g}")  # round first: 999,999 is 1M and not 1000k
    scale, suffix = next(((s, x) for s, x in SCALES if abs(value) >= s), (1.0, ""))
    return f"{value / scale:.3g}{suffix}".replace("e-0", "e-")


def clip(text: str, length: int) -> str:
    """The text on one line, cut to `length` characters with `…` as the last."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (multiples of 1, 2 or 5 times a power of ten) from at or below `low` to at or above `high`."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], with values between them where these are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        values = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(values) >= 3:
            return values
    return [tick for tick in ticks(low, high) if low <= tick <= high]


@dataclass(frozen=True)
class Axis:
    """Maps values of [low, high] to pixels, and knows where its ticks are and the names of ticks that have some."""

    low: float
    high: float
    pixel_low: float
    pixel_high: float
    ticks: list[float]
    log: bool = False
    names: Sequence[str] = ()

    def __call__(self, value: float) -> float:
        f: Callable[[float], float] = math.log10 if self.log else float
        share = (f(value) - f(self.low)) / (f(self.high) - f(self.low))
        return self.pixel_low + share * (self.pixel_high - self.pixel_low)

    def labels(self) -> list[str]:
        """One text a tick, all in the same unit and, on a linear axis, with the same number of decimals."""
        if self.names:
            return list(self.names)
        if self.log:
            return [compact(tick) for tick in self.ticks]
        largest = max(abs(tick) for tick in self.ticks)
        scale, suffix = next(((s, x) for s, x in SCALES if largest >= 10 * s), (1.0, ""))
        texts = [f"{tick / scale:.6g}" for tick in self.ticks]
        if any("e" in text for text in texts):
            return [text.replace("e-0", "e-") for text in texts]
        decimals = max(len(text.partition(".")[2]) for text in texts)
        return [f"{tick / scale:,.{decimals}f}{suffix if tick else ''}" for tick in self.ticks]


def _x_axis(values: Sequence[float], width: float) -> Axis:
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    inside = [tick for tick in ticks(low, high, round(width / 90)) if low <= tick <= high]
    return Axis(low, high, LEFT, width - RIGHT, inside)


def _y_axis(values: Sequence[float], log: bool) -> Axis:
    low, high = min(values), max(values)
    bottom, top = HEIGHT - BOTTOM, TOP
    if log:
        low, high = low / 1.08, high * 1.08
        return Axis(low, high, bottom, top, log_ticks(low, high), log=True)
    if math.isclose(low, high, rel_tol=1e-9):
        margin = abs(low) / 2 or 1.0
        low, high = low - margin, high + margin
    marks = ticks(low, high)
    return Axis(marks[0], marks[-1], bottom, top, marks)


def _thin(points: list[Point]) -> list[Point]:
    """At most about `MAX_POINTS` points: the lowest and the highest of each stretch, so that a spike stays visible."""
    stride = math.ceil(2 * len(points) / MAX_POINTS)
    if stride <= 2:
        return points
    kept: list[Point] = []
    for start in range(0, len(points), stride):
        stretch = points[start : start + stride]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return [points[0], *kept, points[-1]]


def _spread(heights: Sequence[float], gap: float = 15) -> list[float]:
    """The heights moved as little as needed for labels at least `gap` apart, in the order given."""
    placed = list(heights)
    order = sorted(range(len(placed)), key=placed.__getitem__)
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + gap)
    overflow = max(0.0, placed[order[-1]] - (HEIGHT - BOTTOM))
    return [height - overflow for height in placed]


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'


def _color(index: int) -> str:
    index %= len(COLORS)
    return f"var(--series-{index + 1}, {COLORS[index]})"


def _frame(title: str, body: Sequence[str], width: float = WIDTH, height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" xmlns="http://www.w3.org/2000/svg" '
        f'fill="currentColor" font-family="system-ui, sans-serif" font-size="12"><title>{escape(title)}</title>\n'
        + _text(0, 15, title, 'font-size="15" font-weight="600"')
        + "\n".join(body)
        + "</svg>"
    )


def _nothing(title: str, width: float = WIDTH) -> str:
    words = _text(width / 2, 70, "nothing was recorded", 'text-anchor="middle" opacity=".65"')
    return _frame(title, [words], width, 110)


def _grid(x: Axis, y: Axis, x_label: str, y_label: str) -> list[str]:
    parts = [_text(0, 36, y_label, 'opacity=".65"')]
    for tick, label in zip(y.ticks, y.labels(), strict=True):
        parts.append(f'<path d="M{LEFT},{y(tick):.1f} H{x.pixel_high}" stroke="currentColor" opacity=".13"/>')
        parts.append(_text(LEFT - 8, y(tick) + 4, label, 'text-anchor="end" opacity=".65"'))
    for tick, label in zip(x.ticks, x.labels(), strict=True):
        parts.append(_text(x(tick), HEIGHT - BOTTOM + 18, label, 'text-anchor="middle" opacity=".65"'))
    parts.append(_text((LEFT + x.pixel_high) / 2, HEIGHT - 8, x_label, 'text-anchor="middle" opacity=".65"'))
    return parts


def _legend(names: Sequence[str], width: float) -> list[str]:
    parts, right = [], width
    for index, name in reversed(list(enumerate(names))):
        right -= 6.6 * len(name)  # about the width of the text at 12 pixels: SVG without a script cannot measure it
        parts.append(_text(right, 15, name))
        parts.append(f'<rect x="{right - 18:.1f}" y="9" width="12" height="4" rx="2" fill="{_color(index)}"/>')
        right -= 34
    return parts


def _legend_below(entries: Sequence[tuple[str, str, str]], top: float) -> tuple[list[str], float]:
    """Entries (name, colour, dashes), too long to stand beside a title, in the lines that they need; and the bottom."""
    parts, x = [], float(LEFT)
    for name, color, dashes in entries:
        shown = clip(name, 90)
        width = 22 + 6.6 * len(shown)
        if x > LEFT and x + width > WIDTH:
            x, top = LEFT, top + 20
        stroke = f'stroke="{color}" stroke-width="3" stroke-dasharray="{dashes}"'
        parts.append(f'<path d="M{x:.1f},{top - 4} h14" {stroke}/>')
        parts.append(_text(x + 22, top, shown))
        x += width + 24
    return parts, top


def _line(segments: Sequence[list[Point]], x: Axis, y: Axis, color: str, width: float) -> list[str]:
    drawn = [[(x(a), y(b)) for a, b in segment] for segment in segments]
    path = " ".join("M" + " L".join(f"{a:.1f},{b:.1f}" for a, b in _thin(segment)) for segment in drawn)
    parts = [f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width}" stroke-linejoin="round"/>']
    every = [point for segment in drawn for point in segment]
    marked = every if len(every) <= MARKED_POINTS else every[-1:]
    return parts + [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{color}"/>' for a, b in marked]


def line_chart(
    series: Mapping[str, Sequence[Point]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_log: bool = False,
    width: float = WIDTH,
) -> str:
    """Lines over a common x axis as one `<svg>`. The first lies on top; each has its last value at its end.

    A point that is not finite (or not positive, with `y_log`) interrupts its line. With nothing to draw, it says so.
    """

    def drawable(point: Point) -> bool:
        return math.isfinite(point[0]) and math.isfinite(point[1]) and (point[1] > 0 or not y_log)

    runs = {name: [list(run) for ok, run in groupby(points, drawable) if ok] for name, points in series.items()}
    lines = {name: segments for name, segments in runs.items() if segments}
    if not lines:
        return _nothing(title, width)
    points = [point for segments in lines.values() for segment in segments for point in segment]
    x, y = _x_axis([a for a, _ in points], width), _y_axis([b for _, b in points], y_log)
    body = _grid(x, y, x_label, y_label) + (_legend(list(lines), width) if len(lines) > 1 else [])
    for index, segments in reversed(list(enumerate(lines.values()))):
        body += _line(segments, x, y, _color(index), 2.2 if index == 0 else 1.4)
    ends = [segments[-1][-1] for segments in lines.values()]
    heights = _spread([y(value) for _, value in ends])
    for index, ((a, value), height) in enumerate(zip(ends, heights, strict=True)):
        style = f'font-weight="600" fill="{_color(index)}"'
        body.append(_text(x(a) + 8, height + 4, compact(value), style))
    return _frame(title, body, width)


def bar_chart(values: Mapping[str, float], *, title: str, unit: str = "") -> str:
    """Horizontal bars from zero, one a name, each with its value, as one `<svg>` element; no value may be negative."""
    bars = {name: value for name, value in values.items() if math.isfinite(value)}
    top, row, left = 34, 26, 8 + 6.8 * max(map(len, bars), default=0)
    widest = max(bars.values(), default=0.0) or 1.0
    body = []
    for index, (name, value) in enumerate(bars.items()):
        y, width = top + row * index, (WIDTH - left - 90) * value / widest
        body.append(_text(left - 8, y + 13, name, 'text-anchor="end"'))
        body.append(f'<rect x="{left:.1f}" y="{y}" width="{max(width, 1):.1f}" height="18" rx="3" fill="{_color(0)}"/>')
        body.append(_text(left + width + 8, y + 13, f"{compact(value)} {unit}".rstrip(), 'font-weight="600"'))
    return _frame(title, body, WIDTH, top + row * len(bars))


def interval_chart(
    series: Mapping[str, Sequence[tuple[str, float, float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    baseline: tuple[str, float] | None = None,
) -> str:
    """Values with their intervals over categories as one `<svg>`: the marks of a category stand side by side.

    A point is (category, value, low, high); categories keep the order in which they first appear. `baseline` (name,
    value) is a dashed line. A point that is not finite is left out. With nothing to draw, it says so.
    """
    drawn = {name: [p for p in points if all(map(math.isfinite, p[1:]))] for name, points in series.items()}
    categories = list(dict.fromkeys(point[0] for points in drawn.values() for point in points))
    if not categories:
        return _nothing(title)
    values = [value for points in drawn.values() for point in points for value in point[1:]]
    y = _y_axis(values + ([baseline[1]] if baseline else []), log=False)
    middles = [index + 0.5 for index in range(len(categories))]
    x = Axis(
        0, len(categories), LEFT, WIDTH - 4, middles, names=[clip(name, 90 // len(categories)) for name in categories]
    )
    body, legend = _grid(x, y, x_label, y_label), [(name, _color(i), "") for i, name in enumerate(drawn)]
    if baseline:
        body.append(
            f'<path d="M{LEFT},{y(baseline[1]):.1f} H{WIDTH - 4}" stroke="currentColor" stroke-dasharray="5 4"/>'
        )
        legend.append((f"{baseline[0]}: {compact(baseline[1])}", "currentColor", "4 1.5"))
    slot, decimals = 0.84 / len(drawn), 1 + max(len(label.partition(".")[2]) for label in y.labels())
    for index, points in enumerate(drawn.values()):
        for category, *point in points:
            middle = x(categories.index(category) + 0.5 + (index - (len(drawn) - 1) / 2) * slot)
            body += _mark(
                middle, [y(value) for value in point], f"{point[0]:,.{decimals}f}", x(slot) - x(0), _color(index)
            )
    below, bottom = _legend_below(legend, HEIGHT + 18)
    return _frame(title, body + below, WIDTH, bottom + 10)


def _mark(x: float, heights: Sequence[float], text: str, room: float, color: str) -> list[str]:
    """One value with its interval, heights = (value, low, high) in pixels, and its text above in `room` pixels."""
    value, low, high = heights
    size = max(7.0, min(12.0, (room - 3) / (0.6 * len(text))))
    caps = f"M{x - 6:.1f},{low:.1f} h12 M{x - 6:.1f},{high:.1f} h12"
    halo = 'stroke="var(--card, #fff)" stroke-width="3" paint-order="stroke"'  # keeps lines out of the figures
    return [
        f'<path d="M{x:.1f},{low:.1f} V{high:.1f} {caps}" fill="none" stroke="{color}" stroke-width="1.8"/>',
        f'<circle cx="{x:.1f}" cy="{value:.1f}" r="3" fill="{color}"/>',
        _text(x, high - 7, text, f'text-anchor="middle" font-size="{size:.1f}" font-weight="600" {halo}'),
    ]


def matrix_chart(counts: Sequence[Sequence[int]], labels: Sequence[str], *, title: str, what: str = "texts") -> str:
    """A confusion matrix (C, C) as one `<svg>`: rows are true classes, and the shade is the share of the row.

    Of more than `MATRIX_CLASSES` classes it shows those with the most rows, and says how many of them that leaves out;
    `what` the rows are.
    """
    totals = [sum(row) for row in counts]
    shown = sorted(sorted(range(len(labels)), key=lambda c: -totals[c])[:MATRIX_CLASSES])
    names = [clip(labels[c], 22) for c in shown]
    longest = 6.6 * max(map(len, names))
    left = longest + 14
    wide = min(160.0, (WIDTH - left) / len(shown))
    slanted = longest > wide - 6
    if slanted:  # the last name reaches beyond its column
        wide = min(wide, (WIDTH - left - 0.77 * longest) / len(shown))
    high, top = max(22.0, min(wide, 48.0)), 74 + (0.64 * longest if slanted else 0)
    body = [_text(0, 38, "rows: the label in the data · columns: what the model said", 'opacity=".65"')]
    for j, name in enumerate(names):
        x = left + wide * (j + 0.5)
        turn = f'transform="rotate(-40 {x:.1f} {top - 8:.1f})"' if slanted else 'text-anchor="middle"'
        body.append(_text(x, top - 8, name, turn))
    for i, row in enumerate(shown):
        body.append(_text(left - 8, top + high * (i + 0.5) + 4, names[i], 'text-anchor="end"'))
        for j, column in enumerate(shown):
            share = counts[row][column] / max(totals[row], 1)
            body += _cell(left + wide * j, top + high * i, wide, high, counts[row][column], share, row == column)
    bottom = top + high * len(shown)
    if len(shown) < len(labels):
        left_out = sum(totals) - sum(counts[i][j] for i in shown for j in shown)
        texts = f"{left_out:,} of {sum(totals):,} {what} are not shown"
        bottom += 24
        body.append(
            _text(0, bottom, f"the {len(shown)} most frequent of {len(labels):,} classes: {texts}", 'opacity=".65"')
        )
    return _frame(title, body, WIDTH, bottom + 8)


def _cell(x: float, y: float, wide: float, high: float, count: int, share: float, diagonal: bool) -> list[str]:
    """One cell of a matrix: the count and, where there is room, its share of the row; the diagonal is framed."""
    text = f"{count:,} · {100 * share:.0f} %" if wide >= 90 else f"{count:,}"
    size = max(7.0, min(12.0, (wide - 4) / (0.6 * len(text))))
    frame = 'stroke="currentColor" stroke-opacity=".5"' if diagonal else 'stroke="currentColor" stroke-opacity=".13"'
    middle = f'text-anchor="middle" font-size="{size:.1f}"' + ("" if count else ' opacity=".4"')
    return [
        f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{wide - 2:.1f}" height="{high - 2:.1f}" rx="3" '
        f'fill="{_color(0)}" fill-opacity="{SHADE * share:.3f}" {frame}/>',
        _text(x + wide / 2, y + high / 2 + 0.36 * size, text, middle),
    ]
