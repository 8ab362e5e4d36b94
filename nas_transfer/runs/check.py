"""``check.json``: what is in a dataset, what is wrong with it, and what training on it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nas_transfer.runs import files
from nas_transfer.runs.reading import read_record, write_record

CHECK_FORMAT = 1


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: its kind, the part of the dataset, the file or class, and a sentence."""

    kind: str
    part: str
    name: str
    text: str


@dataclass(frozen=True)
class TrainingEstimate:
    """How long a training takes, extrapolated from a few timed steps.

    Attributes:
        device: that trained.
        arch: as the command line names it.
        batch: images in a step.
        step_seconds: median of the timed steps.
        steps_timed: how many were timed.
        steps, epochs: of the whole run.
        hours: of the whole run, without scoring.
        peak_memory_gb: the most memory in use, 10^9 bytes.
    """

    device: str
    arch: str
    batch: int
    step_seconds: float
    steps_timed: int
    steps: int
    epochs: float
    hours: float
    peak_memory_gb: float


@dataclass(frozen=True)
class Check:
    """A validated dataset.

    Attributes:
        task: for which it was checked.
        root: folder of the dataset.
        parts: figures of each part: images, sizes, classes, objects.
        counts: findings by kind.
        num_problems: findings that count as problems.
        findings: all of them.
        seconds: that reading took.
        training: what training takes, or None.
        not_timed: why training was not timed, empty if it was.
    """

    task: str
    root: str
    parts: Mapping[str, Mapping[str, object]]
    counts: Mapping[str, int]
    num_problems: int
    findings: tuple[Finding, ...]
    seconds: float
    training: TrainingEstimate | None = None
    not_timed: str = ""

    def write(self, folder: Path) -> None:
        """Write ``check.json`` into a run folder."""
        write_record(folder / files.CHECK, self, CHECK_FORMAT)


def read_check(folder: Path) -> Check:
    """What ``check.json`` holds; RunError if there is none or it cannot be used."""
    return read_record(folder / files.CHECK, Check, CHECK_FORMAT)
