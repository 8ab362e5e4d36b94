"""The study of a search: its front, the outcomes of its trials, and how the hypervolume grew with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas_transfer.report.collect import STUDY_STAGES, Reader, Run
from nas_transfer.runs import (
    Front,
    Outcome,
    SearchSummary,
    Spent,
    Trial,
    Validation,
    files,
    read_front,
    read_outcome,
    read_spent,
    read_validation,
)
from nas_transfer.search.front import share_of_hypervolume
from nas_transfer.search.pareto import signs

SCORE = "score"


@dataclass(frozen=True)
class Growth:
    """The share of the hypervolume after each evaluated trial.

    Attributes:
        shares: (T,) fractions.
        seconds, images: (T,) spent until then, including what came before the first trial.
        box: in words, the box of which these are shares.
    """

    shares: tuple[float, ...]
    seconds: tuple[float, ...]
    images: tuple[int, ...]
    box: str


@dataclass(frozen=True)
class StudyRecord:
    """A search or proxy run.

    Attributes:
        run: its folder.
        front: without objectives if its file cannot be used.
        outcomes: outcomes of all evaluated trials, by number.
        spent: before the first trial.
        validation: how well short trainings rank archs; None if that was not measured.
        problems: what of the study is missing or broken.
    """

    run: Run
    front: Front
    outcomes: tuple[Outcome, ...]
    spent: Spent
    validation: Validation | None
    problems: tuple[str, ...]

    @property
    def scored(self) -> list[Outcome]:
        """The outcomes with values."""
        return [outcome for outcome in self.outcomes if outcome.reason is None]

    @property
    def summary(self) -> SearchSummary | None:
        """The search in figures, None before its end."""
        return self.run.result.search if self.run.result is not None else None

    @property
    def picked(self) -> Trial | None:
        """The picked trial, None before the end."""
        return self.front.trial(self.front.picked)

    @property
    def score_key(self) -> str:
        """The metric that is the score, ``score`` if unknown."""
        result = self.run.result
        return (result.score_key if result is not None else None) or SCORE


def read_study(run: Run) -> StudyRecord | None:
    """Read the study of a search's run; None for a run of another stage, or without a front."""
    if run.stage not in STUDY_STAGES or not (run.folder / files.FRONT).is_file():
        return None
    reader = Reader(run.folder)
    front = reader.read(read_front)
    spent = reader.read(read_spent) or Spent()
    if front is None:
        return StudyRecord(run, Front({}, ()), (), spent, None, tuple(reader.problems))
    outcomes = _read_outcomes(reader, front)
    summary = run.result.search if run.result is not None else None
    if summary is not None and summary.trials > len(outcomes):
        missing = summary.trials - len(outcomes)
        reader.problems.append(f"{missing} of {summary.trials} trials have no usable file in {files.TRIALS_FOLDER}/")
    validation = reader.read(read_validation) or (summary.validation if summary is not None else None)
    return StudyRecord(run, front, outcomes, spent, validation, tuple(reader.problems))


def _read_outcomes(reader: Reader, front: Front) -> tuple[Outcome, ...]:
    """The outcome of every trial that has a usable file, by number."""
    outcomes = []
    for path in files.trial_files(reader.folder):
        name = f"{files.TRIALS_FOLDER}/{path.name}"
        outcome = reader.read(read_outcome, name)
        if outcome is None:
            continue
        missing = [objective for objective in front.names if objective not in outcome.values]
        if missing and outcome.reason is None:
            reader.problems.append(f"{name} has no value of {', '.join(missing)}")
            continue
        outcomes.append(outcome)
    return tuple(outcomes)


def growth(study: StudyRecord) -> Growth | None:
    """How the hypervolume grew; None before the first score.

    The box runs from 0 to the ends that the result states; without a result they are the largest values so far.
    """
    names, scored = study.front.names, study.scored
    if not scored or not names:
        return None
    factors = np.asarray(signs(study.front.directions))
    points = np.asarray([[outcome.values[name] for name in names] for outcome in scored]) * factors
    if study.summary is not None and set(names) <= set(study.summary.ends):
        ends, source = np.asarray([study.summary.ends[name] for name in names]), f"as in {files.RESULT}"
    else:
        largest = [1.0 if name == SCORE else abs(points[:, column]).max() for column, name in enumerate(names)]
        ends, source = np.asarray(largest), "the largest so far"
    # A maximised objective runs from 0 to its end, which is then the ideal.
    ideal, reference = np.where(factors < 0, -ends, 0.0), np.where(factors < 0, 0.0, ends)
    if not (reference > ideal).all():
        return None
    shares = _shares(study.outcomes, dict(zip((outcome.trial for outcome in scored), points)), ideal, reference)
    seconds = study.spent.seconds + np.cumsum([outcome.seconds for outcome in study.outcomes])
    images = study.spent.images + np.cumsum([outcome.images for outcome in study.outcomes])
    box = ", ".join(f"{name} from 0 to {_short(end)}" for name, end in zip(names, ends.tolist(), strict=True))
    return Growth(shares, tuple(seconds.tolist()), tuple(images.tolist()), f"{box} ({source})")


def _shares(
    outcomes: Sequence[Outcome], points: Mapping[int, np.ndarray], ideal: np.ndarray, reference: np.ndarray
) -> tuple[float, ...]:
    """The share of the box that is dominated after each outcome; `points` are (M,) by trial, minimised."""
    shares: list[float] = []
    front, share = np.empty((0, len(ideal))), 0.0
    for outcome in outcomes:
        point = points.get(outcome.trial)
        if point is not None and not (front <= point).all(1).any():
            front = np.vstack([front[~(front >= point).all(1)], point])
            share = share_of_hypervolume(front, ideal, reference)
        shares.append(share)
    return tuple(shares)


def _short(value: float) -> str:
    return f"{value / 1e6:.3f} M" if value >= 1e6 else f"{value:.5g}"
