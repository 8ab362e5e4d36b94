"""A worker of a search: it asks for a trial, evaluates it, tells its outcome, and asks again, until there are no more.

No worker waits for another one. A trial with several rungs is compared with those that have reached the same rung so
far, and is trained further or dropped at once: asynchronous successive halving (Li et al. 2020, ASHA, arXiv
1810.05934), in its variant that stops trials instead of pausing them.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path

from nas_transfer.arch import Arch
from nas_transfer.errors import ConfigError, RunError
from nas_transfer.runs import Evaluation, Outcome, Spent, files, read_outcome
from nas_transfer.runs.texts import value_text
from nas_transfer.search.halving import dropped
from nas_transfer.search.loop import Schedule
from nas_transfer.search.shared_study import Asked, SharedStudy

logger = logging.getLogger(__name__)

MOST_SECONDS_IDLE = 5.0
"""Longest pause before a worker without a trial looks for one again."""


class Worker:
    """Evaluate trials of a shared study until it is finished.

    Args:
        study: the study.
        schedule: the number of trials, rungs and limits; its batches and jobs are not used.
        evaluate: evaluates one trial.
        prepared: usage before the first trial.
        baselines: archs that are trained to the last rung, however they rank.
    """

    def __init__(
        self, study: SharedStudy, schedule: Schedule, evaluate: Callable[[Evaluation], Outcome],
        prepared: Spent | None = None, baselines: Collection[Arch] = (),
    ) -> None:  # fmt: skip
        self.study = study
        self.folder = study.folder
        self.schedule = schedule
        self.evaluate = evaluate
        self.prepared = prepared or Spent()
        self.baselines = frozenset(baselines)
        self._at_rung: dict[Path, Outcome] = {}

    def run(self) -> int:
        """Evaluate trials until none is left and no other worker runs one; returns how many this worker told.

        Raises:
            RunError: too many trials failed one after the other.
            NasTransferError: every trial would fail.
        """
        told = 0
        pause = min(MOST_SECONDS_IDLE, self.study.patience.heartbeat_seconds / 2)
        while True:
            self.study.persistently(lambda: require_few_failures(self.study, self.schedule))
            asked = self.study.take(self.may_ask)
            if asked is not None:
                told += self._do(asked)
            elif self.study.persistently(lambda: is_finished(self.study, self.may_ask)):
                return told
            else:
                time.sleep(pause)  # a worker that still runs may die

    def may_ask(self) -> bool:
        """Whether the number of trials and the budget allow one more trial."""
        return may_ask(self.study, self.schedule, self.prepared, self.baselines)

    def _do(self, asked: Asked) -> bool:
        """Evaluate a trial, and tell its outcome. If this worker is ended, another one gets the trial."""
        try:
            with self.study.heartbeats(asked):
                outcome = self._outcome(asked)
                told = self.study.finish(asked, outcome)
        except BaseException:
            self.study.give_back(asked)
            raise
        for path in (self.folder / files.STATES_FOLDER).glob(f"{asked.number}.*") if told else ():
            path.unlink(missing_ok=True)
        shown = ", ".join(f"{name} {value_text(name, value)}" for name, value in outcome.values.items())
        logger.info("trial %d: %s (%.2f s)", asked.number, shown or outcome.reason, outcome.seconds)
        return told

    def _outcome(self, asked: Asked) -> Outcome:
        """Evaluate a trial rung by rung, until it is dropped or has reached the last one."""
        rungs = self.schedule.rungs
        at_rungs: list[Outcome] = []
        previous = 0
        for steps in rungs.steps:
            last = steps == rungs.steps[-1]
            evaluation = Evaluation(
                asked.number, asked.arch.to_dict(), files.rung_file(asked.number, steps), steps, previous,
                keep=not last or self.schedule.keeps_networks, rivals=self._rivals(asked) if last else None,
            )  # fmt: skip
            outcome = self._evaluated(evaluation)
            at_rungs.append(outcome)
            if not last and outcome.reason is None and not self._continues(asked, steps):
                outcome = dropped(outcome, steps)
            if last or outcome.reason is not None:
                break
            previous = steps
        return outcome.with_usage_of(at_rungs)

    def _rivals(self, asked: Asked) -> tuple[int, ...] | None:
        """The trials of the front against which a trial races, none for a baseline; None without races."""
        if not self.schedule.races:
            return None
        return () if asked.arch in self.baselines else tuple(self.study.persistently(self.study.front))

    def _evaluated(self, evaluation: Evaluation) -> Outcome:
        """The outcome of an evaluation. One that a dead worker has left behind is used."""
        path = self.folder / evaluation.file
        try:
            outcome = read_outcome(path)
        except RunError as error:
            logger.warning("%s; %s is evaluated again", error, evaluation)
            outcome = None
        kept = files.state_file(self.folder, evaluation.trial, evaluation.steps)
        goes_on = evaluation.keep and evaluation.steps > 0  # from its state
        if (
            outcome is not None
            and outcome.arch == json.loads(json.dumps(evaluation.arch))
            and (not goes_on or outcome.reason is not None or kept.is_file())
        ):
            return outcome
        outcome = self.evaluate(evaluation)
        outcome.write(path)
        return outcome

    def _continues(self, asked: Asked, steps: int) -> bool:
        """Whether a trial is among the best share of those that have reached this rung so far."""
        outcomes: dict[int, Outcome] = {}
        for number, path in files.rung_files(self.folder, steps).items():
            if path not in self._at_rung:
                try:
                    outcome = read_outcome(path)
                except RunError as error:
                    logger.warning("%s", error)
                    continue
                if outcome is None:
                    continue
                self._at_rung[path] = outcome
            outcomes[number] = self._at_rung[path]
        baselines = {asked.number} if asked.arch in self.baselines else set()
        return asked.number in self.schedule.rungs.survivors(outcomes, self.study.directions, baselines)


def may_ask(study: SharedStudy, schedule: Schedule, prepared: Spent, baselines: Collection[Arch]) -> bool:
    """Whether the number of trials and the budget allow one more trial, if those that run use what is usual."""
    asked, num_open = len(study), study.num_open
    if asked >= schedule.trials:
        return False
    finished, seconds = asked - num_open, study.seconds()
    fits = schedule.budget.trials_left(
        prepared.images + study.images(),
        prepared.seconds + seconds,
        seconds / finished if finished else None,
        len(baselines) - study.num_finished(baselines),
    )
    if fits < 1 and not asked:
        raise ConfigError(
            f"the warm-up and the two timed archs used up proxy.budget or search.minutes ({prepared.images} images, "
            f"{prepared.seconds:.0f} s): raise it"
        )
    return fits - num_open >= 1


def is_finished(study: SharedStudy, may_ask: Callable[[], bool]) -> bool:
    """Whether no trial runs or waits, and no more is asked."""
    return not study.num_open and not may_ask()


def require_few_failures(study: SharedStudy, schedule: Schedule) -> None:
    """Raise RunError if more trials have failed in a row than the search tolerates."""
    failures = study.failures_in_a_row()
    if failures > schedule.max_failures:
        number, reason = study.failures()[-1]
        raise RunError(
            f"{failures} trials in a row failed, more than search.max_failures={schedule.max_failures}; "
            f"the last is trial {number}: {reason}"
        )
