"""Small charts as inline SVG.

They are written by hand because the page is one file whose figures need no script and follow the reader's light or dark
theme, and its points show their values on hovering. Checked with matplotlib 3 and pygal 3.1: matplotlib refuses colours
such as ``var(--s1)`` and writes no hover titles (it draws the pictures of run folders); pygal takes such colours, but
embeds a script even without its JavaScript files, and its tooltips need them. Vega, Bokeh and Plotly draw with scripts.
A chart is `WIDTH` units wide, about a phone's width in pixels, so that its text keeps its size there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 24, 38
NUM_COLOURS = 6
MOST_POINTS_OF_A_LINE = 400
NAME_LETTER, NAME_HEIGHT = 8.0, 10
"""The approximate size of the text beside a point."""
NAME_OFFSETS = (12, 4, -7, 24, -19, 36, -31, 48, -43, 60, -55, -67)
"""How far below a point its text may stand, the preferred offset first."""

Marker = Literal["dot", "square", "triangle", "diamond", "ring", "hollow"]
MARKERS: tuple[Marker, ...] = ("dot", "square", "triangle", "diamond")
"""Those that tell series apart."""


@dataclass(frozen=True)
class Series:
    """One set of points.

    Attributes:
        label: for the legend.
        xs, ys: coordinates, as long as each other.
        style: points alone, a line, or steps that keep a value until the next point.
        colour: 1 to `NUM_COLOURS`, or 0 for grey, the colour of references.
        faint: drawn behind and pale.
        marker: shape of the points.
        titles: what hovering each point shows.
        spreads: half the height of each point's error bar.
        names: text beside each point.
        keys: what a script calls each point, so that it can find it.
    """

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: Literal["points", "line", "steps"] = "points"
    colour: int = 1
    faint: bool = False
    marker: Marker = "dot"
    titles: Sequence[str] = ()
    spreads: Sequence[float] = ()
    names: Sequence[str] = ()
    keys: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A chart with its title, legend and note.

    Attributes:
        title: above it.
        svg: markup.
        legend: (label, classes of the swatch).
        note: below it.
    """

    title: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Size:
    """Width and height of a chart in units."""

    width: int = WIDTH
    height: int = HEIGHT


SMALL = Size()


@dataclass(frozen=True)
class Axis:
    """Maps values to coordinates: `low` to `start`, `high` to `end`, with ticks every `step`."""

    low: float
    high: float
    start: float
    end: float
    step: float

    def at(self, value: float) -> float:
        """The coordinate of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Coordinate and label of each tick."""
        first = math.ceil(self.low / self.step - 1e-9)
        last = math.floor(self.high / self.step + 1e-9)
        values = [count * self.step for count in range(first, last + 1)]
        return [(self.at(value), tick_label(value, self)) for value in values]


def colour_of(index: int) -> int:
    """The colour of the series with this index."""
    return index % NUM_COLOURS + 1


def marker_of(index: int) -> Marker:
    """The marker of the series with this index."""
    return MARKERS[index % len(MARKERS)]


def axis_of(values: Sequence[float], start: float, end: float, count: int) -> Axis:
    """An axis around values with about `count` ticks at 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(1.0, abs(low)):
        reach = abs(low) * 0.1 or 1.0
        low, high = low - reach, high + reach
    margin = 0.05 * (high - low)
    lowered = low - margin
    low = 0.0 if lowered < 0 <= low else lowered  # an axis without negative values does not go below 0
    high += margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return Axis(low, high, start, end, step)


def tick_label(value: float, axis: Axis) -> str:
    """A tick's number with as many decimals as the step needs, in k, M or G where the axis is long."""
    largest = max(abs(axis.low), abs(axis.high))
    factor, suffix = next(((f, s) for f, s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= 5 * f), (1.0, ""))
    decimals = max(0, -math.floor(math.log10(axis.step / factor) + 1e-9))
    if decimals > 4:
        return f"{value:.1e}"
    text = f"{value / factor:.{decimals}f}"
    return "0" if float(text) == 0 else text + suffix


def chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    note: str = "",
    *,
    size: Size = SMALL,
    from_zero: bool = False,
) -> Figure | None:
    """A chart of all series on common axes; None if there is no point.

    Args:
        title, x_label, y_label, note: texts.
        series: the points.
        size: of the chart.
        from_zero: start both axes at 0, so that small differences look small.
    """
    drawn = [one for one in series if len(one.xs)]
    if not drawn:
        return None
    xs = [x for one in drawn for x in one.xs]
    ys = [
        y + sign * spread
        for one in drawn
        for y, spread in zip(one.ys, one.spreads or [0.0] * len(one.ys))
        for sign in (-1, 1)
    ]
    start = [0.0] if from_zero else []
    x_axis = axis_of([*start, *xs], LEFT, size.width - RIGHT, 5)
    y_axis = axis_of([*start, *ys], size.height - BOTTOM, TOP, 5)
    parts = [*_frame(x_axis, y_axis, x_label, y_label, size)]
    for one in sorted(drawn, key=lambda one: not one.faint):
        parts += _draw(one, x_axis, y_axis)
    parts += _draw_names(drawn, x_axis, y_axis, size)
    head = f'<svg viewBox="0 0 {size.width} {size.height}" role="img" aria-label="{escape(title)}"'
    if any(one.keys for one in drawn):  # for the script that moves a mark along the axis
        head += f' data-x="{x_axis.low:.9g} {x_axis.high:.9g} {x_axis.start:g} {x_axis.end:g}"'
    svg = f"{head}>{''.join(parts)}</svg>"
    legend = tuple(
        (one.label, f"s{one.colour} {'stroke' if one.style != 'points' else one.marker}{' faint' if one.faint else ''}")
        for one in drawn
        if one.label
    )
    return Figure(title, svg, legend, note)


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, size: Size) -> list[str]:
    bottom = size.height - BOTTOM
    parts = []
    for x, text in x_axis.ticks():
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{text}</text>')
    for y, text in y_axis.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{size.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{size.width - RIGHT}"/>')
    middle = (LEFT + size.width - RIGHT) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{size.height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(f'<text class="label" x="4" y="13">{escape(y_label)}</text>')
    return parts


def _draw(series: Series, x_axis: Axis, y_axis: Axis) -> list[str]:
    points = [(x_axis.at(x), y_axis.at(y)) for x, y in zip(series.xs, series.ys)]
    classes = f"s{series.colour}{' faint' if series.faint else ''}"
    parts = []
    if series.style != "points":
        parts.append(_path(points, classes, steps=series.style == "steps"))
        if len(points) > 1:
            return parts
    for index, (x, y) in enumerate(points):
        if series.spreads and series.spreads[index]:
            reach = abs(y_axis.at(series.spreads[index]) - y_axis.at(0))
            bar = (
                f"M{x:.1f} {y - reach:.1f}V{y + reach:.1f}M{x - 3:.1f} {y - reach:.1f}h6M{x - 3:.1f} {y + reach:.1f}h6"
            )
            parts.append(f'<path class="line thin {classes}" d="{bar}"/>')
        title = f"<title>{escape(series.titles[index])}</title>" if index < len(series.titles) else ""
        marker = _marker(series.marker, x, y)
        key = f' data-key="{escape(series.keys[index])}"' if index < len(series.keys) else ""
        parts.append(f'<g class="mark {classes} {series.marker}"{key}>{marker}{title}</g>')
    return parts


def _path(points: Sequence[tuple[float, float]], classes: str, *, steps: bool) -> str:
    """A line through points, thinned to about `MOST_POINTS_OF_A_LINE`."""
    thinned = list(points[:: max(1, math.ceil(len(points) / MOST_POINTS_OF_A_LINE))])
    if thinned[-1] != points[-1]:
        thinned.append(points[-1])
    path = f"M{thinned[0][0]:.1f} {thinned[0][1]:.1f}"
    for x, y in thinned[1:]:
        path += f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}"
    return f'<path class="line {classes}" d="{path}"/>'


def _draw_names(series: Sequence[Series], x_axis: Axis, y_axis: Axis, size: Size) -> list[str]:
    """The text beside each named point, at the first position inside the chart that covers no other text."""
    parts: list[str] = []
    named = [
        (x_axis.at(x), y_axis.at(y), name) for one in series for x, y, name in zip(one.xs, one.ys, one.names) if name
    ]
    taken = [(x - 4, x + 4, y + 4) for x, y, _ in named]
    for x, y, name in named:
        width = NAME_LETTER * len(name)
        boxes = [(left, y + offset) for offset in NAME_OFFSETS for left in (x + 9, x - 9 - width)]
        inside = [box for box in boxes if LEFT <= box[0] <= size.width - width and box[1] <= size.height - BOTTOM - 2]
        free = [
            (left, base) for left, base in inside
            if all(left >= x1 or left + width <= x0 or abs(base - y1) >= NAME_HEIGHT for x0, x1, y1 in taken)
        ]  # fmt: skip
        left, base = (free or inside or boxes)[0]
        taken.append((left, left + width, base))
        parts.append(f'<text class="name" x="{left:.1f}" y="{base:.1f}">{escape(name)}</text>')
    return parts


def _marker(marker: Marker, x: float, y: float) -> str:
    shapes = {
        "dot": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>',
        "hollow": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.8"/>',
        "ring": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6.5"/>',
        "square": f'<rect x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4"/>',
        "triangle": f'<path d="M{x:.1f} {y - 4.4:.1f}l4.2 7.4h-8.4z"/>',
        "diamond": f'<path d="M{x:.1f} {y - 4.6:.1f}l4.6 4.6l-4.6 4.6l-4.6 -4.6z"/>',
    }
    return shapes[marker]
