"""The loop of a search: ask for a batch of trials, launch jobs that evaluate them, tell the outcomes in trial order.

Jobs read archs from files and write outcomes to files (`nas_transfer.runs.trials`), so an interrupted loop resumes.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nas_transfer.arch import Arch
from nas_transfer.errors import ConfigError, RunError, report_faults, storage_error
from nas_transfer.runs import ArchContent, Evaluation, Job, Outcome, Spent, files, read_outcome, read_spent, write_job
from nas_transfer.runs.atomic import replacing
from nas_transfer.runs.reading import holds_tensors, is_present
from nas_transfer.search.halving import Rungs, dropped
from nas_transfer.search.racing import forget_others
from nas_transfer.search.study import Study

logger = logging.getLogger(__name__)

PROBE_BYTES = 1 << 16
"""Size of a file that is written after a job has failed: more than an outcome needs."""

Launch = Callable[[Sequence[Job]], Sequence[str | None]]
"""Run jobs to their end; returns the reason of the failure of each job, None if it succeeded."""


@dataclass(frozen=True)
class Budget:
    """Limits of a search beside its number of trials. The last batch is made smaller to fit.

    Args:
        images: number of training images; None for no limit.
        device_minutes: minutes of evaluation, summed over all jobs; None for no limit. The first batch is never made
            smaller, because the duration of a trial is not known before.
        images_per_trial: training images of a trial, on average.
        images_per_baseline: training images of a trial that is trained to the last rung.

    Raises:
        ConfigError: a limit is not positive, or `images` is limited although no trial is trained.
    """

    images: int | None = None
    device_minutes: float | None = None
    images_per_trial: float = 0.0
    images_per_baseline: float = 0.0

    def __post_init__(self) -> None:
        given = {"images": self.images, "device_minutes": self.device_minutes}
        faults = [
            f"proxy.budget.{name} must be above 0 or null, got {value}"
            for name, value in given.items()
            if value is not None and not value > 0
        ]
        if self.images is not None and not self.images_per_trial:
            faults.append(
                "proxy.budget.images has no effect because proxy.rungs=[0] trains nothing: limit search.trials instead"
            )
        report_faults(faults)

    def trials_left(
        self, images: int, seconds: float, seconds_per_trial: float | None, num_baselines: int = 0
    ) -> float:
        """How many more trials fit.

        Args:
            images, seconds: used so far.
            seconds_per_trial: None if unknown.
            num_baselines: how many of the next trials are trained to the last rung.
        """
        trials = float("inf")
        if self.images is not None:
            left, of_baselines = self.images - images, num_baselines * self.images_per_baseline
            trials = num_baselines + (left - of_baselines) / self.images_per_trial
            if 0 < left < of_baselines:
                trials = left / self.images_per_baseline
        if self.device_minutes is not None and seconds_per_trial:
            trials = min(trials, (60 * self.device_minutes - seconds) / seconds_per_trial)
        return max(0.0, trials)


@dataclass(frozen=True)
class Schedule:
    """How a search is divided into batches and jobs, and when it ends.

    Args:
        trials: number of trials at the end, failed ones included.
        ask_batch: trials in a batch.
        trials_per_job: trials that a job evaluates.
        max_failures: number of consecutive failed trials that the search tolerates.
        rungs: training steps after which trials are scored.
        budget: limits that may end the search before `trials` is reached.
        races: whether trials race against those of the front.
        keeps_networks: whether trials keep their networks, so that those of the front need no second evaluation.

    Raises:
        ConfigError: a number is below 1.
    """

    trials: int
    ask_batch: int
    trials_per_job: int
    max_failures: int
    rungs: Rungs = field(default_factory=Rungs)
    budget: Budget = field(default_factory=Budget)
    races: bool = False
    keeps_networks: bool = False

    def __post_init__(self) -> None:
        given = {"trials": self.trials, "ask_batch": self.ask_batch, "trials_per_job": self.trials_per_job}
        report_faults(f"search.{name} must be at least 1, got {value}" for name, value in given.items() if value < 1)


class SearchLoop:
    """Run a study to its end.

    All trials of a batch are asked before any of them is evaluated, and all are told afterwards. The archs therefore
    depend only on the seed, on `ask_batch` and on the outcomes, and not on jobs or interruptions.

    Args:
        study: the study. This process must hold the lock of the run folder.
        folder: run folder of the search.
        schedule: trials, batches and jobs.
        launch: runs jobs.
        after_batch: called after each batch.
        baselines: archs that are trained to the last rung, however they rank.

    Attributes:
        prepared: usage before the first trial.
    """

    def __init__(
        self, study: Study, folder: Path, schedule: Schedule, launch: Launch, after_batch: Callable[[], None],
        baselines: Collection[Arch] = (),
    ) -> None:  # fmt: skip
        self.study = study
        self.folder = folder
        self.schedule = schedule
        self.launch = launch
        self.after_batch = after_batch
        self.baselines = frozenset(baselines)
        self.prepared = Spent()

    def prepare(self, file: Path) -> None:
        """Launch a job that writes the file that all other jobs read, unless it exists and is whole.

        Raises:
            RunError: the job did not write the file.
        """
        if file.is_file() and not is_prepared(file):
            logger.warning("%s is damaged, or %s is missing: it is made again", file, files.PREPARATION)
            file.unlink()
        prepare(self.folder, file, self.launch)
        self.prepared = read_spent(self.folder)

    def run(self) -> None:
        """Run the search to its end, from where it was interrupted.

        Raises:
            ConfigError: the budget does not allow a single trial.
            RunError: too many consecutive trials failed; the message states the last reason.
        """
        while True:
            batch = self.study.open_trials()
            if batch:
                logger.info("resuming with %d open trials", len(batch))
            batch += [self.study.ask() for _ in range(self._missing(len(batch)))]
            if not batch:
                if not len(self.study):
                    raise ConfigError(
                        "the warm-up and the two timed archs used up proxy.budget or search.minutes "
                        f"({self.prepared.images} images, {self.prepared.seconds:.0f} s): raise it"
                    )
                return
            reasons = self._evaluate(batch)
            for number, arch in batch:
                self.study.tell(self._outcome(number, arch, files.trial_file(number), reasons))
            shutil.rmtree(self.folder / files.STATES_FOLDER, ignore_errors=True)
            if self.schedule.races:
                forget_others(self.folder, self.study.front())
            self.after_batch()
            failures = self.study.failures_in_a_row()
            if failures > self.schedule.max_failures:
                number, reason = self.study.failures()[-1]
                raise RunError(
                    f"{failures} trials in a row failed, more than search.max_failures={self.schedule.max_failures}; "
                    f"the last is trial {number}: {reason}"
                )

    def _missing(self, num_open: int) -> int:
        """How many trials to ask in addition to the open ones: to the end of the batch, the search or the budget."""
        asked, batch = len(self.study), self.schedule.ask_batch
        finished, seconds = asked - num_open, self.study.seconds()
        fits = self.schedule.budget.trials_left(
            self.prepared.images + self.study.images(),
            self.prepared.seconds + seconds,
            seconds / finished if finished else None,
            self.baselines_left(),
        )
        end = min(self.schedule.trials, (asked // batch + 1) * batch)
        # All trials of a batch are asked before the first is told, so a complete batch with open trials needs no more.
        missing = end - asked if asked % batch or not num_open else 0
        return int(max(0, min(missing, fits - num_open)))

    def baselines_left(self) -> int:
        """How many of the first trials are baselines that are not finished."""
        return len(self.baselines) - self.study.num_finished(self.baselines)

    def _evaluate(self, batch: Sequence[tuple[int, Arch]]) -> dict[int, str]:
        """Evaluate all trials without an outcome, rung by rung; returns the reasons of failed jobs by trial number."""
        rungs = self.schedule.rungs
        rivals = tuple(self.study.front()) if self.schedule.races else None
        evaluations = [
            Evaluation(
                number, arch.to_dict(), files.trial_file(number), rungs.steps[-1], keep=self.schedule.keeps_networks,
                rivals=() if rivals and arch in self.baselines else rivals,
            )
            for number, arch in batch
        ]  # fmt: skip
        if len(rungs.steps) == 1:
            return self.do(evaluations)
        if all((self.folder / evaluation.file).is_file() for evaluation in evaluations):
            return {}  # interrupted while telling: halving the open trials alone would give other survivors
        baselines = {number for number, arch in batch if arch in self.baselines}
        reasons: dict[int, str] = {}
        previous_steps = 0
        for rung, steps in enumerate(rungs.steps):
            last = rung == len(rungs.steps) - 1
            at_rung = [
                replace(
                    evaluation, file=files.rung_file(evaluation.trial, steps), steps=steps, after=previous_steps,
                    keep=not last, rivals=evaluation.rivals if last else None,
                )
                for evaluation in evaluations
            ]  # fmt: skip
            reasons |= self.do(at_rung)
            outcomes = {each.trial: self._outcome(each.trial, each.arch, each.file, reasons) for each in at_rung}
            survivors = set() if last else rungs.survivors(outcomes, self.study.directions, baselines)
            for evaluation in evaluations:
                if evaluation.trial not in survivors:
                    self._end(evaluation, steps, outcomes[evaluation.trial], last)
            evaluations = [evaluation for evaluation in evaluations if evaluation.trial in survivors]
            previous_steps = steps
        return reasons

    def _outcome(self, trial: int, arch: Arch | ArchContent, file: str, reasons: Mapping[int, str]) -> Outcome:
        content = arch.to_dict() if isinstance(arch, Arch) else arch
        try:
            outcome = read_outcome(self.folder / file)
        except RunError as error:
            return Outcome.failed(trial, content, str(error))
        return outcome or Outcome.failed(trial, content, reasons.get(trial) or "its job wrote no outcome")

    def _end(self, evaluation: Evaluation, steps: int, outcome: Outcome, last: bool) -> None:
        """Write the final outcome of a trial that ends at the rung of `steps`, with its usage at all rungs, once."""
        if (self.folder / evaluation.file).is_file():
            return
        at_rungs = [
            read_outcome(self.folder / files.rung_file(evaluation.trial, rung_steps))
            for rung_steps in self.schedule.rungs.steps
            if rung_steps <= steps
        ]
        final = outcome if last or outcome.reason is not None else dropped(outcome, steps)
        final = final.with_usage_of([earlier for earlier in at_rungs if earlier is not None])
        final.write(self.folder / evaluation.file)

    def do(self, evaluations: Sequence[Evaluation]) -> dict[int, str]:
        """Launch the evaluations without an outcome; returns the reasons of failed jobs by trial number."""
        waiting = [evaluation for evaluation in evaluations if not self._has_outcome(evaluation)]
        count = self.schedule.trials_per_job
        jobs = [
            write_job(self.folder / files.JOBS_FOLDER / _job_file(part[0]), part)
            for part in (waiting[start : start + count] for start in range(0, len(waiting), count))
        ]
        if not jobs:
            return {}
        failed = zip(jobs, self.launch(jobs), strict=True)
        reasons = {number: reason for job, reason in failed if reason is not None for number in job.trials}
        if reasons:
            _require_space(self.folder)
        return reasons

    def _has_outcome(self, evaluation: Evaluation) -> bool:
        """Whether the outcome of this arch is on disk. A damaged file is deleted: the arch is evaluated again."""
        path = self.folder / evaluation.file
        try:
            outcome = read_outcome(path)
            if outcome is None or outcome.arch == json.loads(json.dumps(evaluation.arch)):
                return outcome is not None
            fault = f"{path} is of another arch"
        except RunError as error:
            if not path.is_file():
                raise
            fault = str(error)
        logger.warning("%s; %s is evaluated again", fault, evaluation)
        path.unlink()
        return False

    def outcomes(self, evaluations: Sequence[Evaluation]) -> list[Outcome]:
        """Launch the evaluations without an outcome; returns the outcomes of all.

        Raises:
            RunError: an arch could not be evaluated.
        """
        reasons = self.do(evaluations)
        outcomes = []
        for evaluation in evaluations:
            outcome = read_outcome(self.folder / evaluation.file)
            if outcome is None or outcome.reason is not None:
                reason = reasons.get(evaluation.trial, "its job left no result") if outcome is None else outcome.reason
                raise RunError(f"trial {evaluation.trial} could not be evaluated again: {reason} ({evaluation.file})")
            outcomes.append(outcome)
        return outcomes


def prepare(folder: Path, file: Path, launch: Launch, job: str = files.PREPARATION_JOB) -> None:
    """Launch a job without trials that writes a file for all other jobs of a search, unless the file exists.

    Args:
        job: the name of the job's file, by which it knows what to do.

    Raises:
        RunError: the job did not write the file.
    """
    if file.is_file():
        return
    reason = launch([write_job(folder / files.JOBS_FOLDER / job, [])])[0]
    if not file.is_file():
        raise RunError(f"the first job of the search did not write {file}: {reason or 'it gave no reason'}")


def _require_space(folder: Path) -> None:
    """Raise StorageError if nothing can be written: a job that died of that is no failure of its trials."""
    try:
        with replacing(folder / files.PROBE) as temporary:
            temporary.write_bytes(bytes(PROBE_BYTES))
        (folder / files.PROBE).unlink()
    except OSError as error:
        if (failure := storage_error(error)) is not None:
            raise failure from error
        raise


def is_prepared(file: Path) -> bool:
    """Whether the file that the first job writes for all others is whole, and what it cost is known."""
    return is_present(file) and holds_tensors(file) and is_present(file.parent / files.PREPARATION)


def _job_file(first: Evaluation) -> str:
    folder, name = first.file.split("/")
    return name if folder == files.TRIALS_FOLDER else f"{folder}-{name}"
