"""The loop of a search: ask a batch, have it evaluated somewhere, tell it in trial order, go on where it was killed.

Archs travel to the evaluating processes and outcomes come back as files, so that nothing is lost with a process:
``jobs/<first trial>.json`` lists the archs of a job, ``trials/<number>.json`` is the outcome of a trial.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas_transfer.errors import ConfigError, RunError
from nas_transfer.search.study import Outcome, Study
from nas_transfer.space import Arch, SearchSpace

logger = logging.getLogger(__name__)

JOBS, TRIALS = "jobs", "trials"
PREPARATION = "prepare.json"


@dataclass(frozen=True)
class Job:
    """Archs that one process evaluates one after the other.

    Attributes:
        path: of the file that lists them.
        numbers: of their trials.
    """

    path: Path
    numbers: tuple[int, ...]


Launch = Callable[[Sequence[Job]], Sequence[str | None]]
"""Runs jobs to their end; returns for each why it failed, None if it did not."""

Write = Callable[[Path, dict[str, Any]], None]


def trial_file(folder: Path, number: int) -> Path:
    """Where a trial's outcome is written."""
    return folder / TRIALS / f"{number}.json"


def read_outcome(path: Path) -> Outcome | None:
    """A written outcome, None if there is none (files are written at once or not at all)."""
    return Outcome(**json.loads(path.read_text())) if path.is_file() else None


def write_outcome(path: Path, outcome: Outcome, write: Write) -> None:
    """Write an outcome; `write` makes a file appear whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, asdict(outcome))


def read_job(path: Path, space: SearchSpace) -> list[tuple[int, Arch]]:
    """The trials of a job: numbers and archs."""
    return [(entry["number"], space.from_dict(entry["arch"])) for entry in json.loads(path.read_text())["trials"]]


class SearchLoop:
    """Runs a study up to a number of trials.

    A batch is asked as a whole before any of it is evaluated, and told as a whole after: what is asked depends on the
    seed, on `ask_batch` and on the outcomes alone, not on how the batch was split into jobs or where it was cut off.

    Args:
        study: what is asked and told; this process holds its lock.
        folder: of the run.
        trials: how many there shall be in the end, failed ones included.
        ask_batch: trials that are asked at a time.
        trials_per_job: archs that a job evaluates.
        max_failures: failed trials in a row that end the search.
        launch: evaluates jobs.
        write: writes JSON to a path at once or not at all.
        after_batch: called after each batch.

    Raises:
        ConfigError: a number below 1.
    """

    def __init__(
        self, study: Study, folder: Path, *, trials: int, ask_batch: int, trials_per_job: int, max_failures: int,
        launch: Launch, write: Write, after_batch: Callable[[], None],
    ) -> None:  # fmt: skip
        for name, value in (("trials", trials), ("ask_batch", ask_batch), ("trials_per_job", trials_per_job)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"expected search.{name} of at least 1, got {value}")
        self.study = study
        self.folder = folder
        self.trials = trials
        self.ask_batch = ask_batch
        self.trials_per_job = trials_per_job
        self.max_failures = max_failures
        self.launch = launch
        self.write = write
        self.after_batch = after_batch

    def prepare(self, file: Path) -> None:
        """Have a job without candidates write what every other job reads, unless it is there.

        Raises:
            RunError: the job did not write it.
        """
        if file.is_file():
            return
        (self.folder / JOBS).mkdir(parents=True, exist_ok=True)
        path = self.folder / JOBS / PREPARATION
        self.write(path, {"trials": []})
        reason = self.launch([Job(path, ())])[0]
        if not file.is_file():
            raise RunError(f"expected {file} from the search's first job, got none: {reason or 'it left no file'}")

    def run(self) -> None:
        """Go on to the end.

        Raises:
            RunError: too many failures in a row, with the last reason.
        """
        (self.folder / JOBS).mkdir(parents=True, exist_ok=True)
        while True:
            batch = self.study.open_trials()
            if batch:
                logger.info("going on with %d trials that were asked before", len(batch))
            batch += [self.study.ask() for _ in range(self._missing())]
            if not batch:
                return
            reasons = self._evaluate(batch)
            for number, _ in batch:
                outcome = read_outcome(trial_file(self.folder, number))
                self.study.tell(number, outcome or Outcome.failed(reasons.get(number) or "its job left no result"))
            self.after_batch()
            failures = self.study.failures_in_a_row()
            if failures > self.max_failures:
                number, reason = self.study.failures()[-1]
                raise RunError(
                    f"expected at most search.max_failures={self.max_failures} failed candidates in a row, "
                    f"got {failures}, the last one trial {number}: {reason}"
                )

    def _missing(self) -> int:
        """Trials to ask now: up to the end of a batch, or of the search."""
        asked = len(self.study)
        end = min(self.trials, (asked // self.ask_batch + 1) * self.ask_batch)
        # A batch that was told in part was asked in full: its end is not filled up a second time.
        return max(0, end - asked) if asked % self.ask_batch or not self.study.open_trials() else 0

    def _evaluate(self, batch: Sequence[tuple[int, Arch]]) -> dict[int, str]:
        """Have all archs without an outcome evaluated; reasons of failed jobs by trial."""
        waiting = [(number, arch) for number, arch in batch if not trial_file(self.folder, number).is_file()]
        jobs = []
        for start in range(0, len(waiting), self.trials_per_job):
            part = waiting[start : start + self.trials_per_job]
            path = self.folder / JOBS / f"{part[0][0]}.json"
            self.write(path, {"trials": [{"number": number, "arch": arch.to_dict()} for number, arch in part]})
            jobs.append(Job(path, tuple(number for number, _ in part)))
        if not jobs:
            return {}
        failed = zip(jobs, self.launch(jobs), strict=True)
        return {number: reason for job, reason in failed if reason is not None for number in job.numbers}
