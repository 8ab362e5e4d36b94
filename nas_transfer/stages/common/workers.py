"""Workers of a search: processes that the launcher starts once, and that ask for their trials by themselves."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping

from nas_transfer.errors import NasTransferError, RunError
from nas_transfer.paths import PACKAGE
from nas_transfer.runs import Job, files, read_spent, write_job
from nas_transfer.runs.plan import read_plan
from nas_transfer.runs.versions import program_sha256
from nas_transfer.search.evaluate import TrialEvaluator
from nas_transfer.search.loop import SearchLoop
from nas_transfer.search.objectives.base import Objective
from nas_transfer.search.racing import forget_others
from nas_transfer.search.samplers.base import ArchSampler
from nas_transfer.search.shared_study import SharedStudy
from nas_transfer.search.study import Study
from nas_transfer.search.workers import Worker, is_finished, may_ask, require_few_failures
from nas_transfer.space import SearchSpace
from nas_transfer.stages.common.candidates import searched_weights
from nas_transfer.stages.common.damage import cuts_parts, damage_of_run
from nas_transfer.stages.common.launching import WorkerLauncher
from nas_transfer.stages.common.planning import planned, schedule_of
from nas_transfer.stages.common.problem import make_sampler, searched_problem
from nas_transfer.stages.config.search import SearchConfig

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 30.0
MOST_BARREN_STARTS = 3
"""How often in a row all workers may end without having told a trial."""


def open_study(
    config: SearchConfig, space: SearchSpace, objectives: Mapping[str, Objective], sampler: ArchSampler
) -> Study:
    """The study of a search: one that workers share if `search.workers` is set."""
    directions = {name: objective.direction for name, objective in objectives.items()}
    keys, folder = config.search, config.folder
    if keys.workers is not None:
        return SharedStudy(folder, keys.storage, space, directions, sampler, keys.patience())
    if (folder / files.STUDY_DATABASE).exists():
        raise RunError(
            f"the search in {folder} was begun by workers: add search.workers=N to continue it, or use another name=..."
        )
    return Study(folder, keys.storage, space, directions, sampler)


def run_worker(config: SearchConfig, evaluator: TrialEvaluator) -> None:
    """Ask for trials, evaluate them and tell their outcomes until the study is finished.

    Raises:
        RunError: the search has not begun, or runs with another version of the program.
    """
    task, objectives = evaluator.supernet, evaluator.objectives
    plan = read_plan(config.folder)
    if plan is None:
        raise RunError(f"the search in {config.folder} has not begun: start it first, without search.job")
    config = planned(config, plan)
    checkpoint = searched_weights(config)[1]
    damage = damage_of_run(config, task.space, checkpoint)
    repairs = cuts_parts(config, checkpoint)
    problem = searched_problem(config, task, objectives, repairs=repairs)
    sampler = make_sampler(config, problem, damage)
    study = open_study(config, task.space, objectives, sampler)
    assert isinstance(study, SharedStudy)
    _require_same_program(study)
    images_per_step = int(str(config.data["batch_size"])) * config.task.recipe.build().accumulate
    schedule = schedule_of(config, plan, images_per_step, objectives, repairs=repairs)
    worker = Worker(study, schedule, evaluator.evaluate, read_spent(config.folder), sampler.problem.baselines)
    logger.info("this worker asks for trials")
    logger.info("this worker told %d trials", worker.run())


def _require_same_program(study: SharedStudy) -> None:
    if study.program is None:
        raise RunError(f"the search in {study.folder} has not begun: start it first, without search.job")
    mine = program_sha256(PACKAGE)
    if mine != study.program:
        raise RunError(
            f"the search in {study.folder} runs with another version of this program or of its packages (SHA-256 "
            f"{study.program[:12]}, this worker {mine[:12]}): install the same one"
        )


def run_workers(
    config: SearchConfig, study: SharedStudy, loop: SearchLoop, launcher: WorkerLauncher | None,
    progress: Callable[[], None],
) -> None:  # fmt: skip
    """Start workers, and start new ones if they end before the study is finished.

    Args:
        loop: holds the schedule, the baselines and what was spent before the first trial.
        launcher: starts workers; None to start none.
        progress: called now and then while trials finish.

    Raises:
        RunError: all workers ended without telling a trial, or too many trials failed.
    """

    def may_ask_more() -> bool:
        return may_ask(study, loop.schedule, loop.prepared, loop.baselines)

    def tell_progress() -> None:
        if loop.schedule.races:
            forget_others(study.folder, study.front())
        progress()

    if launcher is not None:
        study.program = program_sha256(PACKAGE)
    barren = 0
    while not study.persistently(lambda: is_finished(study, may_ask_more)):
        if launcher is None:
            raise RunError(f"the search in {study.folder} is not finished: repeat its command")
        before = study.num_told
        left = loop.schedule.trials - len(study) + study.num_open
        jobs = worker_jobs(config, min(config.search.workers or 1, left))
        try:
            reasons = launcher.run(jobs, _Progress(study, tell_progress).look)
        except NasTransferError as error:  # of one worker, while others may have gone on
            if study.num_told == before:
                raise
            reasons = [str(error)] * len(jobs)
        require_few_failures(study, loop.schedule)
        for job, reason in zip(jobs, reasons, strict=True):
            if reason is not None:
                logger.warning("%s failed: %s", job.path.stem, reason)
        barren = barren + 1 if study.num_told == before else 0
        if barren == MOST_BARREN_STARTS:
            reason = next((reason for reason in reasons if reason), "they gave no reason")
            raise RunError(f"the workers of {barren} starts told no trial: {reason}")
    study.publish()
    tell_progress()


def join(config: SearchConfig, launcher: WorkerLauncher) -> None:
    """Start workers that take part in a search which another process runs.

    Raises:
        RunError: a worker was refused.
    """
    logger.info("another process runs the search in %s: this one adds workers", config.folder)
    jobs = worker_jobs(config, config.search.workers or 1)
    reasons = launcher.run(jobs, lambda: None)
    if all(reasons):
        raise RunError(str(reasons[0]))


def worker_jobs(config: SearchConfig, count: int) -> list[Job]:
    """Write the files of new workers."""
    start = secrets.token_hex(3)
    names = (files.worker_job(f"{start}_{number}") for number in range(count))
    return [write_job(config.folder / name, []) for name in names]


class _Progress:
    """Calls a function when trials have been told, at most every `PROGRESS_SECONDS`."""

    def __init__(self, study: SharedStudy, progress: Callable[[], None]) -> None:
        self._study, self._progress = study, progress
        self._told, self._next = study.num_told, time.monotonic() + PROGRESS_SECONDS

    def look(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PROGRESS_SECONDS
        told = self._study.persistently(lambda: self._study.num_told)
        if told > self._told:
            self._told = told
            self._study.persistently(self._progress)
