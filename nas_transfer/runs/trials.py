"""The files of the trials of a search: jobs list evaluations, and each evaluation writes its outcome to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nas_transfer.runs import files
from nas_transfer.runs.costs import Ancestor, ArchContent, Usage
from nas_transfer.runs.reading import is_present, read_record, write_record

OUTCOME_FORMAT = JOB_FORMAT = PREPARATION_FORMAT = STARTED_FORMAT = 1
MOST_LETTERS = 500
"""Length of the reason of a failure."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a trial's arch.

    Attributes:
        trial: number of the trial.
        arch: dict form of what is evaluated.
        file: file of the outcome, relative to the run folder.
        steps: training steps of the subnet before it is scored.
        after: the step of the saved state from which training continues; 0 to start from the warm start.
        keep: whether the network is kept: its training state for a later evaluation, or a repaired one as a run folder.
        repeat: index of the seed: 0 is that of the search.
        rivals: trials of the front against which the trial races; None for no race, none of them for a trial that is
            scored on all images, and against which others may race.
    """

    trial: int
    arch: ArchContent
    file: str = ""
    steps: int = 0
    after: int = 0
    keep: bool = False
    repeat: int = 0
    rivals: tuple[int, ...] | None = None

    def __str__(self) -> str:
        """For the log."""
        steps = f" after {self.steps} steps" if self.steps else ""
        return f"trial {self.trial}{steps}{f', repeat {self.repeat}' if self.repeat else ''}"


@dataclass(frozen=True)
class Outcome:
    """The outcome of one evaluation of a trial.

    Attributes:
        trial: number of the trial.
        arch: dict form of its arch.
        values: by objective, each in its unit; empty if the evaluation failed.
        reason: why it has no values, None if it has.
        left_out: it has no values because it breaks a limit or was dropped between rungs; it did not fail.
        metrics: all of the task's metrics.
        seconds: duration of the evaluation.
        training_seconds: the part of `seconds` that its training took.
        device: kind of device that evaluated it: ``cpu`` or ``cuda``.
        images: that it was trained on before it was scored, repetitions included.
        training_macs: multiply-accumulates of that training.
        scored: the share of the search split that was scored: below 1 for a trial that was dropped in a race.
    """

    trial: int
    arch: ArchContent
    values: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    left_out: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    training_seconds: float = 0.0
    device: str = "cpu"
    images: int = 0
    training_macs: int = 0
    scored: float = 1.0

    @classmethod
    def failed(cls, trial: int, arch: ArchContent, reason: str) -> Outcome:
        """A trial without values."""
        return cls(trial, arch, reason=" ".join(reason.split())[:MOST_LETTERS])

    def with_usage_of(self, outcomes: Sequence[Outcome]) -> Outcome:
        """This outcome with the usage of all evaluations of its trial."""
        return replace(
            self,
            seconds=sum(outcome.seconds for outcome in outcomes),
            training_seconds=sum(outcome.training_seconds for outcome in outcomes),
            device=outcomes[-1].device if outcomes else self.device,
            images=sum(outcome.images for outcome in outcomes),
            training_macs=sum(outcome.training_macs for outcome in outcomes),
        )

    def write(self, path: Path) -> None:
        """Write the outcome; the folder is made if it is missing."""
        write_record(path, self, OUTCOME_FORMAT)


def read_outcome(path: Path) -> Outcome | None:
    """Read an outcome, None if there is none; RunError if the file cannot be used."""
    return read_record(path, Outcome, OUTCOME_FORMAT) if is_present(path) else None


def usage_in(folder: Path) -> Usage:
    """The usage of all evaluations with an outcome in a folder; none if there is no such folder."""
    outcomes = [outcome for path in sorted(folder.glob("*.json")) if (outcome := read_outcome(path)) is not None]
    return Usage(
        sum(outcome.images for outcome in outcomes),
        sum(outcome.seconds for outcome in outcomes),
        sum(outcome.seconds for outcome in outcomes if outcome.device != "cpu"),
        sum(outcome.training_macs for outcome in outcomes),
    )


@dataclass(frozen=True)
class Job:
    """Evaluations that one process does one after the other.

    Attributes:
        path: path of the file that lists them.
        trials: their numbers.
    """

    path: Path
    trials: tuple[int, ...]


@dataclass(frozen=True)
class _JobContent:
    evaluations: tuple[Evaluation, ...]


def write_job(path: Path, evaluations: Sequence[Evaluation]) -> Job:
    """Write a job's file; the folder is made if it is missing."""
    write_record(path, _JobContent(tuple(evaluations)), JOB_FORMAT)
    return Job(path, tuple(evaluation.trial for evaluation in evaluations))


def read_job(path: Path) -> tuple[Evaluation, ...]:
    """Read the evaluations of a job."""
    return read_record(path, _JobContent, JOB_FORMAT).evaluations


@dataclass(frozen=True)
class Started:
    """Which SLURM job runs a search's job."""

    slurm_job: str


def write_started(job: Path, slurm_job: str) -> None:
    """Note beside a job's file which SLURM job runs it."""
    write_record(job.with_suffix(files.STARTED_SUFFIX), Started(slurm_job), STARTED_FORMAT)


def read_started(folder: Path) -> dict[Path, str]:
    """The SLURM job of each started job of a search by its note's path."""
    paths = sorted((folder / files.JOBS_FOLDER).glob(f"*{files.STARTED_SUFFIX}"))
    return {path: read_record(path, Started, STARTED_FORMAT).slurm_job for path in paths}


@dataclass(frozen=True)
class Spent:
    """The usage before the first trial, and the times of two archs, the smallest and the largest.

    Attributes:
        seconds: wall time.
        device: kind of device.
        images: trained on.
        step_seconds, scoring_seconds: durations for the two archs, of one training step, and of statistics and score.
        provenance: files that the prepared weights descend from, oldest first.
        training_macs: multiply-accumulates of the training.
    """

    seconds: float = 0.0
    device: str = "cpu"
    images: int = 0
    step_seconds: tuple[float, ...] = ()
    scoring_seconds: tuple[float, ...] = ()
    provenance: tuple[Ancestor, ...] = ()
    training_macs: int = 0

    @property
    def usage(self) -> Usage:
        """The same as a usage."""
        return Usage(self.images, self.seconds, 0.0 if self.device == "cpu" else self.seconds, self.training_macs)

    def write(self, folder: Path, name: str = files.PREPARATION) -> None:
        """Write it into the run folder."""
        write_record(folder / name, self, PREPARATION_FORMAT)


def read_spent(folder: Path, name: str = files.PREPARATION) -> Spent:
    """Read what was spent before the first trial; nothing if there was no preparation."""
    path = folder / name
    return read_record(path, Spent, PREPARATION_FORMAT) if is_present(path) else Spent()
