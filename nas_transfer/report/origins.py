"""Where each net comes from: the study that found its arch, the weights that it starts from, and what both cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas_transfer.report.collect import WEIGHTS_FILE, Run
from nas_transfer.report.inheritance import read_provenance, runs_by_digest
from nas_transfer.report.studies import StudyRecord
from nas_transfer.report.tables import NONE, Table, TaskKind, dataset, millions, percent

NOTE = (
    "Arch from: the first study whose front holds the net's arch; given: none does. Starts from: the nearest "
    "ancestor of its weights. Images seen and seconds: of its weights' ancestors and that study, before the net's own "
    "training; only runs in this report can be counted."
)


def origin_table(kind: TaskKind, nets: Sequence[Run], studies: Sequence[StudyRecord], runs: Sequence[Run]) -> Table:
    """A row for each net of one kind of task.

    Args:
        kind, nets: the finished nets of one kind of task.
        studies: of any task.
        runs: all that can be counted.
    """
    made = runs_by_digest(runs)
    rows = []
    for net in nets:
        result = net.result or {}
        chain = _chain(net.folder / WEIGHTS_FILE)
        counted = [made[entry["config_sha256"]] for entry in chain if entry["config_sha256"] in made]
        start = NONE
        if chain:
            nearest = made.get(chain[-1]["config_sha256"])
            start = Path(chain[-1]["file"]).name if nearest is None else str(nearest.folder)
        source, study = _arch_from(result["arch"], studies)
        before = {run.folder: run.result or {} for run in (*counted, *([study] if study else []))}
        spent = [sum(own.get(key, 0) for own in before.values()) for key in ("images_seen", "seconds")]
        row = (str(net.folder), percent(result["score"]), millions(result["costs"]["macs"]["total"]), source, start)
        rows.append((*row, f"{spent[0]:.0f}", f"{spent[1]:.0f}"))
    columns = ("run", f"{kind.score} (%)", "Flops(M)", "arch from", "starts from", "images seen", "seconds")
    return Table("Where each net comes from", columns, tuple(rows), NOTE)


def _chain(path: Path) -> list[dict[str, str]]:
    """The ancestors of weights, none where they cannot be read, which is said among the problems."""
    try:
        return read_provenance(path) if path.is_file() else []
    except ValueError:
        return []


def _arch_from(arch: object, studies: Sequence[StudyRecord]) -> tuple[str, Run | None]:
    for study in studies:
        for member in study.members:
            if member.arch == arch:
                run = study.run
                return f"{run.folder} trial {member.number}, searched on {run.task} ({dataset(run)})", run
    return "given", None
