"""Where each net comes from: the study with its arch on the front, the weights it starts from, and what both cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas_transfer.report.collect import Run
from nas_transfer.report.inheritance import runs_by_digest
from nas_transfer.report.nets import Net, dataset
from nas_transfer.report.studies import StudyRecord
from nas_transfer.report.tables import Table
from nas_transfer.report.texts import NONE, millions, percent
from nas_transfer.runs import TaskKind

NOTE = (
    "Arch from: the first study with the net's arch on its front; given: there is none. Starts from: the nearest "
    "ancestor of its weights. Images seen and seconds: of the ancestors of its weights and of that study, before its "
    "own training; only runs in this report are counted."
)


def origin_table(kind: TaskKind, nets: Sequence[Net], studies: Sequence[StudyRecord], runs: Sequence[Run]) -> Table:
    """A row for each net of one kind of task.

    Args:
        kind: kind of the task of all nets.
        nets: its finished nets.
        studies: studies of all tasks.
        runs: that can be counted.
    """
    sources = runs_by_digest(runs)
    rows = []
    for net in nets:
        provenance, costs = net.result.provenance, net.result.costs
        ancestors = [sources[one.config_sha256] for one in provenance if one.config_sha256 in sources]
        start = NONE
        if provenance:
            nearest = sources.get(provenance[-1].config_sha256)
            start = Path(provenance[-1].file).name if nearest is None else str(nearest.folder)
        arch_from, study = _arch_from(net, studies)
        earlier = {run.folder: run.result for run in (*ancestors, *([study] if study else []))}
        results = [result for result in earlier.values() if result is not None]
        images, seconds = sum(result.images_seen for result in results), sum(result.seconds for result in results)
        row = (str(net.folder), percent(net.score), millions(costs.macs["total"]), arch_from, start)
        rows.append((*row, str(images), f"{seconds:.0f}"))
    columns = ("run", f"{kind.score_label} (%)", "Flops(M)", "arch from", "starts from", "images seen", "seconds")
    return Table("Where each net comes from", columns, tuple(rows), NOTE)


def _arch_from(net: Net, studies: Sequence[StudyRecord]) -> tuple[str, Run | None]:
    for study in studies:
        for trial in study.front.trials:
            run = study.run
            if net.comes_from(trial.arch, run.task):
                return f"{run.folder} trial {trial.number}, searched on {run.task} ({dataset(run)})", run
    return "given", None
