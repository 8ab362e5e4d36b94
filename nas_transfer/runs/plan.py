"""The plan of a search: its batches and random start; with a budget in minutes also what was timed, and its trials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nas_transfer.runs import files
from nas_transfer.runs.costs import Usage
from nas_transfer.runs.reading import is_present, read_record, write_record

TIMING_FORMAT, PLAN_FORMAT = 1, 3


@dataclass(frozen=True)
class Timing:
    """What was timed before a search.

    Attributes:
        step_seconds: of a training step of the smallest and of the largest arch; empty where trials are not trained.
        scoring_seconds: of the rest of a trial, for the same archs: repair or BatchNorm statistics, and the score.
        warmup_seconds: estimated for the warm-up; 0 without one.
        damage_seconds: estimated for the damages of all choices; 0 if they are not measured, or were before.
        seconds: duration of the timing itself.
        images: trained on for it.
        device: kind of device.
        training_macs: multiply-accumulates of its training.
        preparation_seconds: what the first repairs, at the smallest and the largest input size, take longer.
    """

    step_seconds: tuple[float, ...]
    scoring_seconds: tuple[float, ...]
    warmup_seconds: float
    damage_seconds: float
    seconds: float
    images: int = 0
    device: str = "cpu"
    training_macs: int = 0
    preparation_seconds: float = 0.0

    @property
    def usage(self) -> Usage:
        """What the timing itself used."""
        return Usage(self.images, self.seconds, 0.0 if self.device == "cpu" else self.seconds, self.training_macs)

    def write(self, folder: Path) -> None:
        """Write it into the run folder."""
        write_record(folder / files.TIMING, self, TIMING_FORMAT)


@dataclass(frozen=True)
class PlannedMinutes:
    """A budget in minutes.

    Attributes:
        minutes: the budget, ``search.minutes``.
        workers: processes that evaluate trials at the same time.
        trial_seconds: estimate for a trial, on average.
        before_seconds: estimate for what comes before the first trial, the timing included.
    """

    minutes: float
    workers: int
    trial_seconds: float
    before_seconds: float


@dataclass(frozen=True)
class Plan:
    """How a search is divided. A search that is continued for longer keeps its batches and its random start.

    Attributes:
        trials: number of trials.
        ask_batch, num_random: ``search.ask_batch`` and ``search.sampler.num_random``; `num_random` is None for a
            sampler without it.
        budget: how the minutes of a search with ``search.minutes`` are spent; None with ``search.trials``.
    """

    trials: int
    ask_batch: int
    num_random: int | None
    budget: PlannedMinutes | None = None

    @property
    def device_minutes(self) -> float | None:
        """Minutes for warm-up and trials, over all workers; the search ends when they are spent. None for no limit."""
        return None if self.budget is None else self.budget.workers * self.budget.minutes

    def write(self, folder: Path) -> None:
        """Write it into the run folder."""
        write_record(folder / files.PLAN, self, PLAN_FORMAT)


def read_timing(folder: Path) -> Timing | None:
    """Read what was timed before a search, None if nothing was."""
    path = folder / files.TIMING
    return read_record(path, Timing, TIMING_FORMAT) if is_present(path) else None


def read_plan(folder: Path) -> Plan | None:
    """Read the plan of a search, None if it has not begun."""
    path = folder / files.PLAN
    return read_record(path, Plan, PLAN_FORMAT) if is_present(path) else None
