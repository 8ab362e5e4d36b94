"""Fine-tuned nets of one task and dataset in one chart, beside published nets where they compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas_transfer.arch_files import LARGEST
from nas_transfer.report.arch_drawing import arch_text
from nas_transfer.report.nets import Net, dataset, nets_by_data
from nas_transfer.report.plots import Figure, Series, chart, colour_of, marker_of
from nas_transfer.report.published import LABEL, PUBLISHED, SOURCE, PublishedNet, PublishedTable
from nas_transfer.report.texts import NONE, millions
from nas_transfer.runs import TaskKind
from nas_transfer.search.pareto import non_dominated

GREY = 0
"""Colour of what belongs to no supernet."""
MOST_NAMED = 6
"""Largest number of nets whose names all fit on the chart."""


def net_figures(kind: TaskKind, nets: Sequence[Net]) -> list[Figure]:
    """A chart for each task and dataset whose nets can be compared with each other or with published ones.

    Each supernet has the same colour and marker in all of them.

    Args:
        kind: kind of the task of all nets.
        nets: finished fine-tuned nets.
    """
    supernets = list(dict.fromkeys(net.supernet for net in nets))
    runs = [net.run for net in nets]
    figures = [
        _net_figure(kind, comparable, supernets, dataset(comparable[0].run, runs)) for comparable in nets_by_data(nets)
    ]
    return [figure for figure in figures if figure is not None]


def _net_figure(kind: TaskKind, nets: Sequence[Net], supernets: Sequence[str], data: str) -> Figure | None:
    """The chart of one task and dataset; None for a single net with nothing beside it."""
    part = kind.macs_part if all(kind.macs_part in net.result.costs.macs for net in nets) else "total"
    published = _published(nets, part)
    if len(nets) < 2 and published is None:
        return None
    series = []
    for index, supernet in enumerate(supernets):
        of_supernet = [net for net in nets if net.supernet == supernet]
        series.append(
            Series(
                supernet, [_macs(net, part) for net in of_supernet], [100 * net.score for net in of_supernet],
                names=_all_names(of_supernet) if len(nets) <= MOST_NAMED else _largest_name(of_supernet),
                titles=[_title(kind, net) for net in of_supernet],
                colour=colour_of(index), marker=marker_of(index),
            )
        )  # fmt: skip
    front = non_dominated_nets(nets, part)
    if len(front) > 1:
        xs, ys = [_macs(net, part) for net in front], [100 * net.score for net in front]
        series.append(Series("front", xs, ys, style="steps", colour=GREY))
    notes = ["From the result of each run; scores on the validation split."]
    if published is not None:
        series.append(_published_series(kind, published))
        notes.append(_published_note(kind, published))
    sizes = {net.result.costs.size for net in nets}
    scope = "of all parts" if part == "total" else f"of the {part} alone"
    x_label = f"MACs {scope}" + (f", at {sizes.pop()}" if len(sizes) == 1 else "")
    title = f"{nets[0].run.task}{'' if data == NONE else f' on {data}'}: {kind.score_label} against MACs"
    return chart(title, x_label, f"{kind.score_label} (%)", series, " ".join(notes))


def non_dominated_nets(nets: Sequence[Net], part: str) -> list[Net]:
    """The non-dominated nets by score and MACs of a part, in the order of their MACs."""
    points = np.asarray([(_macs(net, part), -net.score) for net in nets])
    kept = [net for net, keep in zip(nets, non_dominated(points).tolist(), strict=True) if keep]
    return sorted(kept, key=lambda net: _macs(net, part))


def _macs(net: Net, part: str) -> float:
    return float(net.result.costs.macs[part])


def _all_names(nets: Sequence[Net]) -> list[str]:
    return [net.folder.name for net in nets]


def _largest_name(nets: Sequence[Net]) -> list[str]:
    """The text beside each of many nets of one supernet: only the first largest arch is named."""
    largest = [net.arch_name == LARGEST for net in nets]
    first = largest.index(True) if True in largest else None
    return [LARGEST if index == first else "" for index in range(len(nets))]


def _title(kind: TaskKind, net: Net) -> str:
    costs = net.result.costs
    macs = ", ".join(f"{part} {millions(value)}" for part, value in costs.macs.items())
    lines = [f"{kind.score_label} {100 * net.score:.2f} %", f"MACs (M) at {costs.size}: {macs}", str(net.folder)]
    return "\n".join([*lines, f"{net.arch_name} {arch_text(net.arch)}".strip()])


def _published(nets: Sequence[Net], part: str) -> PublishedTable | None:
    """The published nets that compare with one of these and count the same part; None without any."""
    for table in PUBLISHED:
        if table.part == part and any(table.is_comparable(net.run.task, net.result.costs) for net in nets):
            return table
    return None


def _published_series(kind: TaskKind, table: PublishedTable) -> Series:
    titles = [
        f"{LABEL}\n{_published_text(kind, net)}\n{net.config}, at {_size(table)}; from {SOURCE}" for net in table.nets
    ]
    macs = [1e6 * net.mega_macs for net in table.nets]
    scores = [net.score for net in table.nets]
    return Series(LABEL, macs, scores, colour=GREY, marker="hollow", titles=titles)


def _published_text(kind: TaskKind, net: PublishedNet) -> str:
    return f"{net.name}: {kind.score_label} {net.score:g} %, {net.mega_macs:g} M MACs"


def _published_note(kind: TaskKind, table: PublishedTable) -> str:
    rows = "; ".join(_published_text(kind, net) for net in table.nets)
    return (
        f"{LABEL.capitalize()}, on {table.dataset} at {_size(table)}, from {SOURCE}; they compare only with nets "
        f"scored on the same data: {rows}."
    )


def _size(table: PublishedTable) -> str:
    return "x".join(map(str, table.input_size))
