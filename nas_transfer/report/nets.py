"""Finished fine-tuned nets, and groups of nets whose scores can be compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas_transfer.arch import short_id
from nas_transfer.report.collect import Run
from nas_transfer.report.texts import NONE
from nas_transfer.runs import ArchContent, Result, TaskKind


@dataclass(frozen=True)
class Net:
    """A finished fine-tuned net: one arch, trained and scored.

    Attributes:
        run: the run that trained the net.
        result: the result of the run.
        arch: the arch in dict form.
        score: the score on the validation split, a fraction.
        kind: the kind of its task.
    """

    run: Run
    result: Result
    arch: ArchContent
    score: float
    kind: TaskKind

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.run.folder

    @property
    def supernet(self) -> str:
        """The name of the supernet, which is that of the arch's space."""
        return str(self.arch.get("space", "net"))

    def comes_from(self, trial: ArchContent, task: str) -> bool:
        """Whether its arch is that of a trial, or its body that of a trial on another task, such as classification.

        Args:
            trial: the arch of the trial. Its input size belongs to the task that it was searched on.
            task: the name of that task.
        """
        if task == self.run.task:
            return trial == self.arch
        shared = trial.keys() & self.arch.keys() - {"resolution"}
        return len(shared) > 1 and all(trial[name] == self.arch[name] for name in shared)

    @property
    def arch_name(self) -> str:
        """The value of ``arch=``, without the folder and suffix of an arch file; empty if unknown."""
        return Path(str(self.run.config.get("arch", ""))).stem

    @property
    def model(self) -> str:
        """The name in tables: supernet, kind of model, arch."""
        return f"{self.supernet}_{self.kind.model} {self.arch_name} ({short_id(self.arch)})".replace("  ", " ")


def kind_of(result: Result) -> TaskKind:
    """The kind of a result's task; if unknown, a kind with the name and the score of the task."""
    return result.kind or TaskKind(result.task, result.task, result.score_key or "score")


def nets_of(runs: Sequence[Run]) -> list[Net]:
    """The finished fine-tuned nets among runs, sorted by MACs."""
    nets = [
        Net(run, run.result, run.result.arch, run.result.score, kind_of(run.result))
        for run in runs
        if run.is_net and run.result is not None and run.result.arch is not None and run.result.score is not None
    ]
    return sorted(nets, key=lambda net: net.result.costs.macs["total"])


def nets_by_kind(nets: Sequence[Net]) -> list[tuple[TaskKind, list[Net]]]:
    """The nets of each kind of task, whatever their heads, sorted by title."""
    families: dict[TaskKind, list[Net]] = {}
    for net in nets:
        families.setdefault(net.kind.family, []).append(net)
    groups = [(of_family[0].kind, of_family) for of_family in families.values()]
    return sorted(groups, key=lambda group: (group[0].title, group[0].score_key))


def nets_by_data(nets: Sequence[Net]) -> list[list[Net]]:
    """Groups of nets whose scores can be compared: nets of one task on one dataset."""
    groups: dict[tuple[str, str], list[Net]] = {}
    for net in nets:
        groups.setdefault((net.run.task, data_root(net.run)), []).append(net)
    return list(groups.values())


def head_name(run: Run, arch: ArchContent) -> str | None:
    """The name of the head of an arch, where a gene chooses among several; None for one head."""
    number = arch.get("head")
    lists = (run.config.get(f"task.build.{part}.heads") for part in ("detector", "head"))
    names = next((names for names in lists if isinstance(names, list)), [])
    return str(names[number - 1]) if isinstance(number, int) and 1 <= number <= len(names) else None


def data_root(run: Run) -> str:
    """The configured ``data.root``, as a normalised path; empty if unknown."""
    root = run.config.get("data.root")
    return os.path.normpath(str(root)) if root else ""


def dataset(run: Run, others: Sequence[Run] = ()) -> str:
    """The name of the dataset: the last folder of ``data.root``, with its parent if other runs have the same name."""
    root = data_root(run)
    if not root:
        return NONE
    path = Path(root)
    other_roots = {data_root(other) for other in others} - {"", root}
    ambiguous = any(Path(other).name == path.name for other in other_roots)
    return str(Path(*path.parts[-2:])) if ambiguous else path.name or root


def schedule(run: Run) -> tuple[int, int] | None:
    """Optimiser steps of a finished training, and images per step; None if they are unknown."""
    result = run.result
    if result is None or not result.images_seen:
        return None
    batch, accumulate = run.config.get("data.batch_size"), run.config.get("task.recipe.accumulate", 1)
    if not (isinstance(batch, int) and isinstance(accumulate, int) and min(batch, accumulate, result.devices) >= 1):
        return None
    images = batch * accumulate * result.devices
    return round(result.images_seen / images), images
