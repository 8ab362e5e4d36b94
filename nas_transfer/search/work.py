"""What is to be evaluated and what came of it, as files, so that nothing is lost with a process.

``jobs/<name>.json`` lists the works of a job; each work leaves one outcome in a file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas_transfer.search.study import Outcome
from nas_transfer.space import Arch, SearchSpace

SPENT = ".spent.json"
JOBS, TRIALS, STATES = "jobs", "trials", "states"
REPEATS, VALIDATION = "repeats", "validation"

Write = Callable[[Path, dict[str, Any]], None]
"""Makes a JSON file appear whole, or not at all."""


@dataclass(frozen=True)
class Work:
    """One evaluation of one arch.

    Attributes:
        number: of its trial.
        arch: what is evaluated.
        file: of the outcome, relative to the run's folder.
        steps: training steps that its private copy has had when it is scored.
        after: of these, the steps whose state an earlier work of the same trial kept; 0 to start anew.
        keep: whether a later work goes on from this one's state.
        repeat: which draw of everything random: 0 is the search's own.
    """

    number: int
    arch: Arch
    file: str
    steps: int = 0
    after: int = 0
    keep: bool = False
    repeat: int = 0

    def __str__(self) -> str:
        """For the log."""
        steps = f" after {self.steps} steps" if self.steps else ""
        return f"trial {self.number}{steps}{f', repeat {self.repeat}' if self.repeat else ''}"


@dataclass(frozen=True)
class Job:
    """Works that one process does one after the other.

    Attributes:
        path: of the file that lists them.
        numbers: of their trials.
    """

    path: Path
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Spent:
    """What was spent before the first candidate, and what two timed candidates, the smallest and the largest, took.

    Attributes:
        seconds: wall time.
        device: kind of device.
        images: trained on.
        step_seconds, scoring_seconds: of the two, for one training step and for statistics and score.
    """

    seconds: float = 0.0
    device: str = "cpu"
    images: int = 0
    step_seconds: tuple[float, ...] = ()
    scoring_seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What evaluations used.

    Attributes:
        images: trained on, repetitions included.
        seconds: on whatever device, those of failed evaluations included.
        gpu_seconds: of these, those on an accelerator.
    """

    images: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0


def usage_in(folder: Path) -> Usage:
    """What the evaluations used whose outcomes lie in `folder`; nothing where there is no such folder."""
    outcomes = [outcome for path in sorted(folder.glob("*.json")) if (outcome := read_outcome(path)) is not None]
    return Usage(
        sum(outcome.images for outcome in outcomes),
        sum(outcome.seconds for outcome in outcomes),
        sum(outcome.seconds for outcome in outcomes if outcome.device != "cpu"),
    )


def write_spent(file: Path, spent: Spent, write: Write) -> None:
    """Write what a prepared file cost, beside it."""
    write(file.with_suffix(SPENT), asdict(spent))


def read_spent(file: Path) -> Spent:
    """What a prepared file cost."""
    return Spent(**json.loads(file.with_suffix(SPENT).read_text()))


def trial_file(number: int) -> str:
    """Where a trial's outcome is written, relative to the run's folder."""
    return f"{TRIALS}/{number}.json"


def state_file(folder: Path, number: int, steps: int) -> Path:
    """Where the training state of a trial's private copy is kept after so many steps."""
    return folder / STATES / f"{number}.{steps}.ckpt"


def read_outcome(path: Path) -> Outcome | None:
    """A written outcome, None if there is none."""
    return Outcome(**json.loads(path.read_text())) if path.is_file() else None


def write_outcome(path: Path, outcome: Outcome, write: Write) -> None:
    """Write an outcome, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, asdict(outcome))


def write_job(path: Path, works: Sequence[Work], write: Write) -> Job:
    """Write a job's file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, {"works": [{**vars(work), "arch": work.arch.to_dict()} for work in works]})
    return Job(path, tuple(work.number for work in works))


def read_job(path: Path, space: SearchSpace) -> list[Work]:
    """The works of a job."""
    entries = json.loads(path.read_text())["works"]
    return [Work(**{**entry, "arch": space.from_dict(entry["arch"])}) for entry in entries]
