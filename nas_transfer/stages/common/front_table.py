"""The table of a front that a search prints."""

from __future__ import annotations

import math
from collections import Counter

from nas_transfer.arch import short_id
from nas_transfer.runs import Front, Trial
from nas_transfer.runs.texts import value_text
from nas_transfer.stages.common.trust import Rescored
from nas_transfer.stages.config.search import SCORE
from nas_transfer.tasks.task import Task


def front_table(front: Front, task: Task, rescored: Rescored | None) -> list[str]:
    """A line of names and one for each trial, with a mark at the picked one.

    Args:
        front: as it was written, so that its trials have costs.
        task: the supernet's task; its tensors are not used.
        rescored: the scores from other seeds; None without any.
    """
    columns = [*front.names]
    if SCORE not in front.names and any(task.score_key in trial.metrics for trial in front.trials):
        columns.append(SCORE)
    heads = "".join(f"{name:>16}" for name in columns) + ("" if rescored is None else "          again")
    lines = [f"  trial  {heads}   at          arch"]
    for trial in front.trials:
        shown = {SCORE: trial.metrics.get(task.score_key, math.nan), **trial.values}
        values = "".join(f"{value_text(name, shown[name]):>16}" for name in columns)
        again = "" if rescored is None else f"{rescored.shown(trial.number):>15}"
        size = "" if trial.costs is None else "x".join(map(str, trial.costs.input_size))
        about = f"{size:<10}  {short_id(trial.arch)}  {head_of(trial, task)}".rstrip()
        mark = "*" if trial.number == front.picked else " "
        lines.append(f"{mark} {trial.number:5d}  {values}{again}   {about}")
    return lines


def head_of(trial: Trial, task: Task) -> str:
    """The name of the head of a trial's arch; empty if the task has one head."""
    return task.head_name(task.space.from_dict(trial.arch)) or ""


def heads_on(front: Front, task: Task) -> str | None:
    """How many trials of the front have which head, None if the task has one head."""
    counts = Counter(head_of(trial, task) for trial in front.trials)
    return None if "" in counts else f"heads on the front: {', '.join(f'{name} {n}' for name, n in counts.items())}"
