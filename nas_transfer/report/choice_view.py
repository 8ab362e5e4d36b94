"""The opening of the page: an answer, one large chart of all trained nets, and a slider for a budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from nas_transfer.report.choice import LATENCY, MACS, NARROWED, RESIZED, WHOLE, Candidate, Choice
from nas_transfer.report.choice_texts import answer_text, choice_table, line_text, range_text, title_text
from nas_transfer.report.plots import MARKERS, SMALL, Figure, Series, Size, chart
from nas_transfer.report.tables import Table

WIDE, NARROW = Size(1180, 440), SMALL
MOST_NAMED = 12
"""Largest number of nets whose names are all on the chart; of more, only the pick and the whole network are named."""
AXIS_LABELS = {MACS: "MACs", LATENCY: "latency"}
BUDGET_UNITS = {MACS: (1e6, "M MACs"), LATENCY: (1.0, "ms")}
"""Factor and unit of a budget in words."""


@dataclass(frozen=True)
class AxisView:
    """The charts of one cost.

    Attributes:
        name: of the cost.
        label: in words.
        wide, narrow: the chart for screens and for phones.
        low, high: ends of the slider: the cheapest and the costliest net.
        start: where the slider stands at first: the cost of the recommended net.
        unit, factor: a budget in words is the cost divided by `factor`, in this unit.
    """

    name: str
    label: str
    wide: Figure
    narrow: Figure
    low: float
    high: float
    start: float
    unit: str
    factor: float


@dataclass(frozen=True)
class ChoiceView:
    """The opening for one task and dataset.

    Attributes:
        title, answer, reach: texts.
        axes: a chart for each cost; the first is shown. There is none for a single net.
        table: all nets.
        nets: JSON for the script: name, score, costs and line of each net.
        pick: what the slider says before it is moved.
    """

    title: str
    answer: str
    reach: str
    axes: tuple[AxisView, ...]
    table: Table
    nets: str
    pick: str


def choice_view(choice: Choice) -> ChoiceView:
    """The opening for a choice."""
    names = [name for name in (LATENCY, MACS) if _all_costs(choice, name)]
    names.sort(key=lambda name: len(_all_costs(choice, name)), reverse=True)  # latency first if every net has one
    nets = [
        {
            "key": str(number),
            "name": one.name,
            "score": one.net.score,
            "costs": {name: cost for name in names if (cost := choice.cost(one, name)) is not None},
            "text": line_text(one, choice),
        }
        for number, one in enumerate(choice.candidates)
    ]
    return ChoiceView(
        title_text(choice),
        answer_text(choice),
        range_text(choice),
        tuple(_axis_view(choice, name) for name in names) if len(choice.candidates) > 1 else (),
        choice_table(choice),
        json.dumps(nets),
        line_text(choice.pick, choice),
    )


def _all_costs(choice: Choice, axis: str) -> list[float]:
    return [cost for one in choice.candidates if (cost := choice.cost(one, axis)) is not None]


def _axis_view(choice: Choice, axis: str) -> AxisView:
    factor, unit = BUDGET_UNITS[axis]
    costs = _all_costs(choice, axis)
    wide, narrow = (_figure(choice, axis, size) for size in (WIDE, NARROW))
    start = choice.cost(choice.pick, axis)
    low, high = min(costs), max(costs)
    return AxisView(axis, AXIS_LABELS[axis], wide, narrow, low, high, high if start is None else start, unit, factor)


def _figure(choice: Choice, axis: str, size: Size) -> Figure:
    kind = choice.pick.net.kind
    shown = [one for one in choice.candidates if choice.cost(one, axis) is not None]
    series = [*_ranges(choice, axis), *_curve(choice, axis)]
    origins = sorted({one.origin for one in shown if not one.is_baseline})
    for index, origin in enumerate(origins):
        of_origin = [one for one in shown if one.origin == origin]
        series.append(_points(choice, axis, of_origin, size, origin, colour=index % 5 + 1, marker=index))
    for origin, marker in ((NARROWED, 2), (RESIZED, 1), (WHOLE, 3)):
        of_origin = [one for one in shown if one.origin == origin]
        series.append(_points(choice, axis, of_origin, size, origin, colour=0, marker=marker))
    if choice.pick in shown:
        cost, score = choice.cost(choice.pick, axis) or 0.0, 100 * choice.pick.net.score
        series.append(Series("recommended", [cost], [score], colour=6, marker="ring"))
    label = f"latency (ms), {choice.engine}" if axis == LATENCY else "MACs"
    left_out = len(choice.candidates) - len(shown)
    note = f"Both axes start at 0.{f' {left_out} nets without a latency are left out.' if left_out else ''}"
    title = f"{kind.score_label} against {AXIS_LABELS[axis]}"
    figure = chart(title, label, f"{kind.score_label} (%)", series, note, size=size, from_zero=True)
    assert figure is not None  # there is always a net
    return figure


def _points(
    choice: Choice, axis: str, nets: Sequence[Candidate], size: Size, label: str, *, colour: int, marker: int
) -> Series:
    numbers = {id(one): str(number) for number, one in enumerate(choice.candidates)}
    few = len(choice.candidates) <= MOST_NAMED and size == WIDE
    named = [few or one in (choice.pick, choice.whole) for one in nets]
    return Series(
        label, [choice.cost(one, axis) or 0.0 for one in nets], [100 * one.net.score for one in nets],
        colour=colour, marker=MARKERS[marker % len(MARKERS)],
        titles=[line_text(one, choice) for one in nets],
        names=[one.name if shown else "" for one, shown in zip(nets, named, strict=True)],
        keys=[numbers[id(one)] for one in nets],
    )  # fmt: skip


def _curve(choice: Choice, axis: str) -> list[Series]:
    """The whole network, resized or narrowed, as a line."""
    points = [(cost, one.net.score) for one in choice.baselines if (cost := choice.cost(one, axis)) is not None]
    if len(points) < 2:
        return []
    return [Series("", [cost for cost, _ in points], [100 * score for _, score in points], style="line", colour=0)]


def _ranges(choice: Choice, axis: str) -> list[Series]:
    """The MACs within reach of the search and those of its front, as bars at the bottom."""
    bars = (("within reach of the search", choice.attainable, 0.0), ("front of the search", choice.front, 1.2))
    if axis != MACS:
        return []
    return [
        Series(label, reach, (height, height), style="line", colour=5 if height else 0, faint=not height)
        for label, reach, height in bars
        if reach is not None
    ]
