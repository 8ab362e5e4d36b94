"""Fine-tuned nets of one task and data set in one chart, beside what others published where that compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nas_transfer.arch_files import LARGEST
from nas_transfer.report.arch_drawing import arch_words
from nas_transfer.report.collect import Run
from nas_transfer.report.plots import MARKERS, NUM_COLOURS, Figure, Series, chart
from nas_transfer.report.published import LABEL, PUBLISHED, SOURCE, PublishedNet, PublishedTable
from nas_transfer.report.tables import NONE, TaskKind, arch_name, dataset, input_size, millions, nets_by_data
from nas_transfer.search.pareto import non_dominated

BESIDE = 0
"""Colour of what is no supernet's."""
MOST_NAMED = 6
"""Nets beside which their runs' names have room."""


def net_figures(kind: TaskKind, nets: Sequence[Run]) -> list[Figure]:
    """A chart for each task and data set whose nets can be compared with each other or with published ones.

    Each supernet has the same colour and marker in all of them.

    Args:
        kind: of all the nets' tasks.
        nets: finished fine-tuned nets.
    """
    supernets = list(dict.fromkeys(supernet(net) for net in nets))
    found = [_net_figure(kind, own, supernets, dataset(own[0], nets)) for own in nets_by_data(nets)]
    return [figure for figure in found if figure is not None]


def supernet(net: Run) -> str:
    """The space of the net's arch, which is called like its supernet."""
    return str((net.result or {})["arch"].get("space", "net"))


def _net_figure(kind: TaskKind, nets: Sequence[Run], supernets: Sequence[str], where: str) -> Figure | None:
    """One task's and data set's chart; None for a single net with nothing beside it."""
    part = kind.part if all(kind.part in _costs(net)["macs"] for net in nets) else "total"
    published = _published(nets, part)
    if len(nets) < 2 and published is None:
        return None
    series = []
    for place, name in enumerate(supernets):
        own = [net for net in nets if supernet(net) == name]
        look: dict[str, Any] = {"colour": place % NUM_COLOURS + 1, "marker": MARKERS[place % len(MARKERS)]}
        series.append(
            Series(
                name, [_macs(net, part) for net in own], [_score(net) for net in own],
                names=[net.folder.name for net in own] if len(nets) <= MOST_NAMED else _largest_named(own),
                titles=[_title(kind, net) for net in own], **look,
            )
        )  # fmt: skip
    best = not_dominated(nets, part)
    if len(best) > 1:
        xs, ys = [_macs(net, part) for net in best], [_score(net) for net in best]
        series.append(Series("front", xs, ys, style="steps", colour=BESIDE))
    notes = ["From each run's result.json; scores on the validation split."]
    if published is not None:
        series.append(_published_series(kind, published))
        notes.append(_published_note(kind, published))
    sizes = {input_size(net.result) for net in nets}
    whose = "of all parts" if part == "total" else f"of the {part} alone"
    x_label = f"MACs {whose}" + (f", at {sizes.pop()}" if len(sizes) == 1 else "")
    title = f"{nets[0].task}{'' if where == NONE else f' on {where}'}: {kind.score} against MACs"
    return chart(title, x_label, f"{kind.score} (%)", series, " ".join(notes))


def not_dominated(nets: Sequence[Run], part: str) -> list[Run]:
    """The nets than which no other has a higher score at no more MACs of a part, or fewer at no less; by MACs."""
    points = np.asarray([(_macs(net, part), -_score(net)) for net in nets])
    kept = [net for net, keep in zip(nets, non_dominated(points).tolist(), strict=True) if keep]
    return sorted(kept, key=lambda net: _macs(net, part))


def _costs(net: Run) -> Any:
    return (net.result or {})["costs"]


def _macs(net: Run, part: str) -> float:
    return float(_costs(net)["macs"][part])


def _score(net: Run) -> float:
    return 100 * float((net.result or {})["score"])


def _largest_named(nets: Sequence[Run]) -> list[str]:
    """What stands beside each of many nets of one supernet: which is the largest, said once."""
    largest = [arch_name(net) == LARGEST for net in nets]
    first = largest.index(True) if True in largest else None
    return [LARGEST if place == first else "" for place in range(len(nets))]


def _title(kind: TaskKind, net: Run) -> str:
    macs = ", ".join(f"{part} {millions(value)}" for part, value in _costs(net)["macs"].items())
    lines = [f"{kind.score} {_score(net):.2f} %", f"MACs (M) at {input_size(net.result)}: {macs}", str(net.folder)]
    return "\n".join([*lines, f"{arch_name(net)} {arch_words((net.result or {})['arch'])}".strip()])


def _published(nets: Sequence[Run], part: str) -> PublishedTable | None:
    """The published nets that compare with one of these, counted alike; None without any."""
    for table in PUBLISHED:
        if table.part == part and any(table.is_comparable(net.task, _costs(net)) for net in nets):
            return table
    return None


def _published_series(kind: TaskKind, table: PublishedTable) -> Series:
    titles = [
        f"{LABEL}\n{_published_text(kind, net)}\n{net.config}, at {_size(table)}; from {SOURCE}" for net in table.nets
    ]
    macs = [1e6 * net.mega_macs for net in table.nets]
    scores = [net.score for net in table.nets]
    return Series(LABEL, macs, scores, colour=BESIDE, marker="hollow", titles=titles)


def _published_text(kind: TaskKind, net: PublishedNet) -> str:
    return f"{net.name}: {kind.score} {net.score:g} %, {net.mega_macs:g} M MACs"


def _published_note(kind: TaskKind, table: PublishedTable) -> str:
    rows = "; ".join(_published_text(kind, net) for net in table.nets)
    return (
        f"{LABEL.capitalize()}, on {table.dataset} at {_size(table)}, from {SOURCE}, and comparable only with nets "
        f"scored on that same data: {rows}."
    )


def _size(table: PublishedTable) -> str:
    return "x".join(map(str, table.input_size))
