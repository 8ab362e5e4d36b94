"""The front of a search and the validation of its scores: ``front.json`` and ``trust.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from nas_transfer.runs import files
from nas_transfer.runs.costs import ArchContent, Costs
from nas_transfer.runs.reading import is_present, read_record, write_record

FRONT_FORMAT = VALIDATION_FORMAT = 1
CONFIDENCE = 95
"""The confidence level of every interval, in per cent."""

Direction: TypeAlias = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class RankQuality:
    """How well predictions rank archs that they were not fitted on.

    Attributes:
        tau, rho: Kendall's and Spearman's rank correlation.
        low, high: interval of tau that holds 95 % of bootstrap resamples of the archs (Efron 1979).
        count: number of archs.
    """

    tau: float
    rho: float
    low: float
    high: float
    count: int

    @property
    def better_than_chance(self) -> bool:
        """Whether the interval of tau lies above 0."""
        return self.low > 0

    def __str__(self) -> str:
        return (
            f"Kendall's tau {self.tau:.2f} ({CONFIDENCE} % interval {self.low:.2f} to {self.high:.2f}), "
            f"Spearman's rho {self.rho:.2f}, {self.count} archs"
        )


@dataclass(frozen=True)
class PredictorQuality:
    """The predictor that a search used last, and how well it ranks in cross-validation."""

    predictor: str
    quality: RankQuality


@dataclass(frozen=True)
class Repeats:
    """The scores of a trial from other seeds than the search's, as fractions."""

    scores: tuple[float, ...]
    mean: float
    std: float


@dataclass(frozen=True)
class Trial:
    """A trial with values.

    Attributes:
        number: number of the trial.
        arch: dict form of its arch.
        values: by objective, each in its unit.
        metrics: all of the task's metrics on the search split, fractions.
        costs: costs of the arch, None until they are computed.
        file: arch file, relative to the run folder; empty for a trial without one.
        repeats: scores from other seeds, None without any.
        indistinguishable_from: neighbours on the front whose scores from other seeds do not differ with confidence.
    """

    number: int
    arch: ArchContent
    values: Mapping[str, float]
    metrics: Mapping[str, float] = field(default_factory=dict)
    costs: Costs | None = None
    file: str = ""
    repeats: Repeats | None = None
    indistinguishable_from: tuple[int, ...] = ()


@dataclass(frozen=True)
class Front:
    """The non-dominated trials of a study, best first objective first.

    Attributes:
        objectives: direction by name, in the order of the study.
        trials: the trials on the front.
        picked: number of the picked trial, None before the end of the search.
        predictor: the predictor that chose the last trials, None without one.
        resized: the trials of the whole network, the largest arch at each input size, on the front or not. It is one
            trial where a search has no gene of the input size.
        narrowed: the trials of the largest arch with narrower neck and head, on the front or not.

    Raises:
        ValueError: a trial has no value of an objective.
    """

    objectives: Mapping[str, Direction]
    trials: tuple[Trial, ...]
    picked: int | None = None
    predictor: PredictorQuality | None = None
    resized: tuple[Trial, ...] = ()
    narrowed: tuple[Trial, ...] = ()

    def __post_init__(self) -> None:
        for trial in (*self.trials, *self.baselines):
            for name in self.objectives:
                if name not in trial.values:
                    raise ValueError(
                        f"trial {trial.number} must have a value of {name}, got {', '.join(trial.values) or 'none'}"
                    )

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives' names."""
        return tuple(self.objectives)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The objectives' directions, in the order of `names`."""
        return tuple(self.objectives.values())

    @property
    def baselines(self) -> tuple[Trial, ...]:
        """The trials that the front is compared with: `resized` and `narrowed`."""
        return (*self.resized, *self.narrowed)

    def trial(self, number: int | None) -> Trial | None:
        """The trial of this number, None if it is not on the front."""
        return next((trial for trial in self.trials if trial.number == number), None)

    def is_resized(self, number: int) -> bool:
        """Whether the trial of this number is one of the whole network."""
        return any(trial.number == number for trial in self.resized)

    def is_narrowed(self, number: int) -> bool:
        """Whether the trial of this number is the whole network with narrower neck and head."""
        return any(trial.number == number for trial in self.narrowed)

    def rows(self) -> list[dict[str, object]]:
        """The trials as plain dicts for a table: number, whether it is picked, values, costs, arch file."""
        return [
            {
                "trial": trial.number,
                "picked": trial.number == self.picked,
                **trial.values,
                **({} if trial.costs is None else _cost_columns(trial.costs)),
                "file": trial.file,
            }
            for trial in self.trials
        ]

    def write(self, folder: Path) -> None:
        """Write ``front.json`` into a run folder."""
        write_record(folder / files.FRONT, self, FRONT_FORMAT)


def _cost_columns(costs: Costs) -> dict[str, object]:
    return {"macs": costs.macs["total"], "params": costs.params["total"], "input_size": costs.size}


def read_front(folder: Path) -> Front:
    """Read the front in a run folder; RunError if there is none or it cannot be used."""
    return read_record(folder / files.FRONT, Front, FRONT_FORMAT)


@dataclass(frozen=True)
class Validation:
    """How the scores of short trainings rank archs, compared with those of longer ones.

    Attributes:
        steps, long_steps: training steps of the short and of the long trainings.
        trials: their numbers.
        short, long: scores, in the order of `trials`.
        quality: rank correlation of short and long scores.
        images: training images of the long trainings.
        seconds: duration of the long trainings.

    Raises:
        ValueError: not as many scores as trials.
    """

    steps: int
    long_steps: int
    trials: tuple[int, ...]
    short: tuple[float, ...]
    long: tuple[float, ...]
    quality: RankQuality
    images: int
    seconds: float

    def __post_init__(self) -> None:
        if not len(self.trials) == len(self.short) == len(self.long):
            counts = f"{len(self.trials)} trials, {len(self.short)} short and {len(self.long)} long scores"
            raise ValueError(f"trials and scores must be equal in number, got {counts}")

    def __str__(self) -> str:
        text = f"scores after {self.steps} steps against those after {self.long_steps}: {self.quality}"
        if not self.quality.better_than_chance:
            text += "; no better than chance: do not rely on the order of the front"
        return text

    def write(self, folder: Path) -> None:
        """Write ``trust.json`` into a run folder."""
        write_record(folder / files.VALIDATION, self, VALIDATION_FORMAT)


def read_validation(folder: Path) -> Validation | None:
    """Read ``trust.json``, None if there is none; RunError if it cannot be used."""
    path = folder / files.VALIDATION
    return read_record(path, Validation, VALIDATION_FORMAT) if is_present(path) else None
