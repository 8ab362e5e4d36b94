"""Small charts and arch drawings as inline SVG: no script, no file, colours from the page's variables.

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
NAME_LETTER, NAME_HEIGHT = 7.2, 10
"""About how large the text beside a point is."""
NAME_DOWN = (12, 4, -7, 24, -19, 36, -31, 48, -43, 60, -55, -67)
"""How far below a point the text may stand, the best place first."""

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
        colour: 1 to `NUM_COLOURS`; 0 is grey, for what the others are seen beside.
        faint: drawn behind and pale.
        marker: shape of the points.
        titles: what hovering each point shows.
        spreads: half the height of each point's error bar.
        names: text beside each point.
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


@dataclass(frozen=True)
class Figure:
    """A chart with what stands around it.

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
class Axis:
    """Values onto the page: `low` at `start`, `high` at `end`, with ticks every `step`."""

    low: float
    high: float
    start: float
    end: float
    step: float

    def at(self, value: float) -> float:
        """The place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Place and label of each tick."""
        first = math.ceil(self.low / self.step - 1e-9)
        last = math.floor(self.high / self.step + 1e-9)
        return [(self.at(place * self.step), tick_label(place * self.step, self)) for place in range(first, last + 1)]


def axis_of(values: Sequence[float], start: float, end: float, count: int) -> Axis:
    """An axis around values with about `count` ticks at 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(1.0, abs(low)):
        reach = abs(low) * 0.1 or 1.0
        low, high = low - reach, high + reach
    margin = 0.05 * (high - low)
    raised = low - margin
    low = 0.0 if raised < 0 <= low else raised  # nothing here is negative unless it is
    high += margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return Axis(low, high, start, end, step)


def tick_label(value: float, axis: Axis) -> str:
    """A tick's number, with k, M or G for large ones, as many decimals as the step needs."""
    largest = max(abs(axis.low), abs(axis.high))
    factor, suffix = next(((f, s) for f, s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= 5 * f), (1.0, ""))
    decimals = max(0, -math.floor(math.log10(axis.step / factor) + 1e-9))
    if decimals > 4:
        return f"{value:.1e}"
    text = f"{value / factor:.{decimals}f}"
    return "0" if float(text) == 0 else text + suffix


def chart(title: str, x_label: str, y_label: str, series: Sequence[Series], note: str = "") -> Figure | None:
    """A chart of all series on common axes; None if there is no point."""
    shown = [one for one in series if len(one.xs)]
    if not shown:
        return None
    xs = [x for one in shown for x in one.xs]
    reaches = [(one.spreads or [0.0] * len(one.ys)) for one in shown]
    ys = [y + sign * reach for one, own in zip(shown, reaches) for y, reach in zip(one.ys, own) for sign in (-1, 1)]
    across = axis_of(xs, LEFT, WIDTH - RIGHT, 5)
    up = axis_of(ys, HEIGHT - BOTTOM, TOP, 5)
    parts = [*_frame(across, up, x_label, y_label)]
    for one in sorted(shown, key=lambda own: not own.faint):
        parts += _drawn(one, across, up)
    parts += _names(shown, across, up)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">' + "".join(parts) + "</svg>"
    legend = tuple(
        (one.label, f"s{one.colour} {'stroke' if one.style != 'points' else one.marker}{' faint' if one.faint else ''}")
        for one in shown
        if one.label
    )
    return Figure(title, svg, legend, note)


def _frame(across: Axis, up: Axis, x_label: str, y_label: str) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for x, text in across.ticks():
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{text}</text>')
    for y, text in up.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text class="label" x="4" y="13">{escape(y_label)}</text>')
    return parts


def _drawn(one: Series, across: Axis, up: Axis) -> list[str]:
    places = [(across.at(x), up.at(y)) for x, y in zip(one.xs, one.ys)]
    classes = f"s{one.colour}{' faint' if one.faint else ''}"
    parts = []
    if one.style != "points":
        thinned = places[:: max(1, math.ceil(len(places) / MOST_POINTS_OF_A_LINE))]
        if thinned[-1] != places[-1]:
            thinned.append(places[-1])
        path = f"M{thinned[0][0]:.1f} {thinned[0][1]:.1f}"
        for x, y in thinned[1:]:
            path += f"H{x:.1f}V{y:.1f}" if one.style == "steps" else f"L{x:.1f} {y:.1f}"
        parts.append(f'<path class="line {classes}" d="{path}"/>')
        if len(places) > 1:
            return parts
    for place, (x, y) in enumerate(places):
        if one.spreads and one.spreads[place]:
            reach = abs(up.at(one.spreads[place]) - up.at(0))
            bar = (
                f"M{x:.1f} {y - reach:.1f}V{y + reach:.1f}M{x - 3:.1f} {y - reach:.1f}h6M{x - 3:.1f} {y + reach:.1f}h6"
            )
            parts.append(f'<path class="line thin {classes}" d="{bar}"/>')
        title = f"<title>{escape(one.titles[place])}</title>" if place < len(one.titles) else ""
        parts.append(f'<g class="mark {classes} {one.marker}">{_marker(one.marker, x, y)}{title}</g>')
    return parts


def _names(series: Sequence[Series], across: Axis, up: Axis) -> list[str]:
    """The text beside each named point, at the first place that is inside the chart and free."""
    parts: list[str] = []
    named = [(across.at(x), up.at(y), name) for one in series for x, y, name in zip(one.xs, one.ys, one.names) if name]
    taken = [(x - 4, x + 4, y + 4) for x, y, _ in named]
    for x, y, name in named:
        width = NAME_LETTER * len(name)
        boxes = [(left, y + down) for down in NAME_DOWN for left in (x + 9, x - 9 - width)]
        inside = [box for box in boxes if LEFT <= box[0] <= WIDTH - width and box[1] <= HEIGHT - BOTTOM - 2]
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
