"""The files that the weights of runs descend from, and the runs in a report that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas_transfer.report.collect import Run
from nas_transfer.runs import Ancestor


@dataclass(frozen=True)
class Inherited:
    """A file that the weights of runs descend from.

    Attributes:
        ancestor: the file.
        source: folder of the run that made it, None if it is not among the finished runs of the report.
        descendants: folders of the runs that descend from it.
    """

    ancestor: Ancestor
    source: Path | None
    descendants: tuple[Path, ...]


def inherited_files(runs: Sequence[Run]) -> list[Inherited]:
    """Every file that the weights of finished runs descend from, each once."""
    sources = {digest: run.folder for digest, run in runs_by_digest(runs).items()}
    ancestors: dict[str, Ancestor] = {}
    descendants: dict[str, list[Path]] = {}
    for run in runs:
        for ancestor in run.result.provenance if run.result is not None else ():
            key = ancestor.sha256 or ancestor.file
            ancestors.setdefault(key, ancestor)
            descendants.setdefault(key, []).append(run.folder)
    return [
        Inherited(ancestor, sources.get(ancestor.config_sha256), tuple(descendants[key]))
        for key, ancestor in ancestors.items()
    ]


def runs_by_digest(runs: Sequence[Run]) -> dict[str, Run]:
    """Finished runs by the hash of their configuration."""
    return {run.result.config_sha256: run for run in runs if run.result is not None and run.result.config_sha256}
