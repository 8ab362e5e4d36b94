"""The loop of a search: ask a batch, have it evaluated somewhere, tell it in trial order, go on where it was killed.

Archs travel to the evaluating processes and outcomes come back as files (`nas_transfer.runs.trials`).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nas_transfer.errors import ConfigError, RunError, report_faults
from nas_transfer.runs import ArchContent, Evaluation, Job, Outcome, Spent, files, read_outcome, read_spent, write_job
from nas_transfer.search.halving import Rungs, dropped
from nas_transfer.search.study import Study
from nas_transfer.space import Arch

logger = logging.getLogger(__name__)

Launch = Callable[[Sequence[Job]], Sequence[str | None]]
"""Runs jobs to their end; returns for each why it failed, None if it did not."""


@dataclass(frozen=True)
class Budget:
    """What a search may spend beside its number of trials; a batch is made smaller to fit in.

    Args:
        images: trained on, null for no limit.
        device_minutes: of evaluation, summed over jobs wherever they ran, null for no limit. The first batch is not
            made smaller: what a candidate takes is known after it.
        images_per_trial: what a candidate sees in the mean.

    Raises:
        ConfigError: naming the value.
    """

    images: int | None = None
    device_minutes: float | None = None
    images_per_trial: float = 0.0

    def __post_init__(self) -> None:
        given = {"images": self.images, "device_minutes": self.device_minutes}
        faults = [
            f"proxy.budget.{name} must be above 0 or null, got {value}"
            for name, value in given.items()
            if value is not None and not value > 0
        ]
        if self.images is not None and not self.images_per_trial:
            faults.append("proxy.budget.images limits training, got proxy.rungs of no step: use search.trials")
        report_faults(faults)

    def trials_left(self, images: int, seconds: float, seconds_per_trial: float | None) -> float:
        """How many more trials fit in after so many images and seconds; what a trial takes is None before the first."""
        left = float("inf")
        if self.images is not None:
            left = (self.images - images) / self.images_per_trial
        if self.device_minutes is not None and seconds_per_trial:
            left = min(left, (60 * self.device_minutes - seconds) / seconds_per_trial)
        return max(0.0, left)


@dataclass(frozen=True)
class Schedule:
    """How a search is cut into batches and jobs.

    Args:
        trials: how many there shall be in the end, failed ones included.
        ask_batch: trials that are asked at a time.
        trials_per_job: archs that a job evaluates.
        max_failures: failed trials in a row that end the search.
        rungs: training steps after which candidates are scored.
        budget: what ends the search before `trials` does.

    Raises:
        ConfigError: a number below 1.
    """

    trials: int
    ask_batch: int
    trials_per_job: int
    max_failures: int
    rungs: Rungs = field(default_factory=Rungs)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        given = {"trials": self.trials, "ask_batch": self.ask_batch, "trials_per_job": self.trials_per_job}
        report_faults(f"search.{name} must be at least 1, got {value}" for name, value in given.items() if value < 1)


class SearchLoop:
    """Runs a study to its end.

    A batch is asked as a whole before any of it is evaluated, and told as a whole after: what is asked depends on the
    seed, on `ask_batch` and on the outcomes alone, not on how the batch was split into jobs or where it was cut off.

    Args:
        study: what is asked and told; this process holds its lock.
        folder: of the run.
        schedule: trials, batches, jobs.
        launch: evaluates jobs.
        after_batch: called after each batch.
    """

    def __init__(
        self, study: Study, folder: Path, schedule: Schedule, launch: Launch, after_batch: Callable[[], None]
    ) -> None:
        self.study = study
        self.folder = folder
        self.schedule = schedule
        self.launch = launch
        self.after_batch = after_batch
        self.prepared = Spent()

    def prepare(self, file: Path) -> None:
        """Have a job without candidates write what every other job reads, unless it is there.

        Raises:
            RunError: the job did not write it.
        """
        if not file.is_file():
            reason = self.launch([write_job(self.folder / files.JOBS_FOLDER / files.PREPARATION_JOB, [])])[0]
            if not file.is_file():
                raise RunError(f"expected {file} from the search's first job, got none: {reason or 'it left no file'}")
        self.prepared = read_spent(self.folder)

    def run(self) -> None:
        """Go on to the end.

        Raises:
            RunError: too many failures in a row, with the last reason.
        """
        while True:
            batch = self.study.open_trials()
            if batch:
                logger.info("going on with %d trials that were asked before", len(batch))
            batch += [self.study.ask() for _ in range(self._missing(len(batch)))]
            if not batch:
                if not len(self.study):
                    raise ConfigError(
                        "expected proxy.budget to leave room for a candidate, got all of it spent by the warm-up and "
                        f"two timed candidates ({self.prepared.images} images, {self.prepared.seconds:.0f} s): raise it"
                    )
                return
            reasons = self._evaluate(batch)
            for number, arch in batch:
                self.study.tell(self._outcome(number, arch, files.trial_file(number), reasons))
            shutil.rmtree(self.folder / files.STATES_FOLDER, ignore_errors=True)
            self.after_batch()
            failures = self.study.failures_in_a_row()
            if failures > self.schedule.max_failures:
                number, reason = self.study.failures()[-1]
                raise RunError(
                    f"expected at most search.max_failures={self.schedule.max_failures} failed candidates in a row, "
                    f"got {failures}, the last one trial {number}: {reason}"
                )

    def _missing(self, waiting: int) -> int:
        """Trials to ask now, beside those that wait: up to the end of a batch, of the search, or of its budget."""
        asked, batch = len(self.study), self.schedule.ask_batch
        told, seconds = asked - waiting, self.study.seconds()
        fits = self.schedule.budget.trials_left(
            self.prepared.images + self.study.images(),
            self.prepared.seconds + seconds,
            seconds / told if told else None,
        )
        end = min(self.schedule.trials, (asked // batch + 1) * batch)
        # A batch that was told in part was asked in full: its end is not filled up a second time.
        missing = end - asked if asked % batch or not waiting else 0
        return int(max(0, min(missing, fits - waiting)))

    def _evaluate(self, batch: Sequence[tuple[int, Arch]]) -> dict[int, str]:
        """Have all trials without an outcome evaluated, rung by rung; reasons of failed jobs by trial."""
        rungs = self.schedule.rungs
        evaluations = [
            Evaluation(number, arch.to_dict(), files.trial_file(number), rungs.steps[-1]) for number, arch in batch
        ]
        if len(rungs.steps) == 1:
            return self.do(evaluations)
        if all((self.folder / evaluation.file).is_file() for evaluation in evaluations):
            return {}  # cut off while the batch was told: a part of it would have other survivors
        reasons: dict[int, str] = {}
        before = 0
        for rung, steps in enumerate(rungs.steps):
            last = rung == len(rungs.steps) - 1
            todo = [
                replace(
                    evaluation, file=files.rung_file(evaluation.trial, steps), steps=steps, after=before, keep=not last
                )
                for evaluation in evaluations
            ]
            reasons |= self.do(todo)
            outcomes = {each.trial: self._outcome(each.trial, each.arch, each.file, reasons) for each in todo}
            survivors = set() if last else rungs.survivors(outcomes, self.study.directions)
            for evaluation in evaluations:
                if evaluation.trial not in survivors:
                    self._end(evaluation, steps, outcomes[evaluation.trial], last)
            evaluations = [evaluation for evaluation in evaluations if evaluation.trial in survivors]
            before = steps
        return reasons

    def _outcome(self, trial: int, arch: Arch | ArchContent, file: str, reasons: Mapping[int, str]) -> Outcome:
        content = arch.to_dict() if isinstance(arch, Arch) else arch
        try:
            outcome = read_outcome(self.folder / file)
        except RunError as error:
            return Outcome.failed(trial, content, str(error))
        return outcome or Outcome.failed(trial, content, reasons.get(trial) or "its job left no result")

    def _end(self, evaluation: Evaluation, steps: int, outcome: Outcome, last: bool) -> None:
        """Write the outcome of a trial that ends at the rung of so many steps, with all that it used, once."""
        if (self.folder / evaluation.file).is_file():
            return
        rungs = [
            read_outcome(self.folder / files.rung_file(evaluation.trial, each))
            for each in self.schedule.rungs.steps
            if each <= steps
        ]
        ended = outcome if last or outcome.reason is not None else dropped(outcome, steps)
        ended = ended.with_usage_of([rung for rung in rungs if rung is not None])
        ended.write(self.folder / evaluation.file)

    def do(self, evaluations: Sequence[Evaluation]) -> dict[int, str]:
        """Have evaluations without an outcome done; reasons of failed jobs by trial."""
        waiting = [evaluation for evaluation in evaluations if not (self.folder / evaluation.file).is_file()]
        count = self.schedule.trials_per_job
        jobs = [
            write_job(self.folder / files.JOBS_FOLDER / _job_file(part[0]), part)
            for part in (waiting[start : start + count] for start in range(0, len(waiting), count))
        ]
        if not jobs:
            return {}
        failed = zip(jobs, self.launch(jobs), strict=True)
        return {number: reason for job, reason in failed if reason is not None for number in job.trials}


def _job_file(first: Evaluation) -> str:
    folder, name = first.file.split("/")
    return name if folder == files.TRIALS_FOLDER else f"{folder}-{name}"
