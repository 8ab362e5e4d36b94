"""The plan of a search: its batches and its random start, and its number of trials if it has a budget in minutes.

For a budget in minutes, a first job times archs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from nas_transfer.errors import ConfigError, RunError
from nas_transfer.runs import files
from nas_transfer.runs.plan import Plan, PlannedMinutes, Timing, read_plan, read_timing
from nas_transfer.runs.texts import counted, duration
from nas_transfer.search.loop import Launch, Schedule, prepare
from nas_transfer.search.objectives.base import Objective
from nas_transfer.search.objectives.score import Score
from nas_transfer.search.planning import (
    MOST_BATCH,
    MOST_TRAINED_BATCH,
    TYPICAL_ARCHS,
    Shares,
    TrialSeconds,
    batch_of,
    end_archs,
    share_between,
    start_of,
    trial_seconds,
    trials_in,
)
from nas_transfer.search.problem import Problem
from nas_transfer.stages.common.candidates import has_evaluator
from nas_transfer.stages.common.slurm_jobs import wait_for_jobs
from nas_transfer.stages.config.search import ProxyConfig, SearchConfig
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)

FEW_TRIALS = 10
"""Fewer trials are too few to learn from."""
NUM_RANDOM = "num_random"

Config = TypeVar("Config", bound=SearchConfig)


def plan_of_run(config: SearchConfig, launch: Launch, problem: Problem, task: Task, *, repairs: bool) -> Plan:
    """The plan of a search, which is made once and kept. With ``search.minutes``, archs are timed first.

    Args:
        launch: runs the job that times archs.
        problem: the problem of the search.
        task: knows the multiply-accumulates of archs.
        repairs: whether the archs are subnets of one whole network.

    Raises:
        ConfigError: the budget leaves no time for a trial.
        RunError: the job failed.
    """
    kept, minutes, trials = read_plan(config.folder), config.search.minutes, config.search.trials
    if trials is None and kept is not None and kept.budget is not None and kept.budget.minutes == minutes:
        logger.info("search.minutes=%g: %d trials, as planned when the search began", minutes, kept.trials)
        return kept
    if trials is not None:
        plan = divided(config, trials, problem.num_more)
        blind = min(trials, problem.num_more + (plan.num_random or 0))
        logger.info(
            "search.trials=%d: batches of %d%s", trials, plan.ask_batch,
            f"; the sampler learns from scores after {blind} trials" if plan.num_random is not None else "",
        )  # fmt: skip
    else:
        timing = _timing_of_run(config, launch)
        plan = make_plan(config, timing, problem, shares_of(problem, task, repairs=repairs))
    if kept is not None:  # another length continues the search
        plan = replace(plan, num_random=kept.num_random)
    if plan != kept:
        plan.write(config.folder)
        if trials is None:
            _announce(config, timing, plan)
    return plan


def _timing_of_run(config: SearchConfig, launch: Launch) -> Timing:
    """Time archs in a job of its own, unless they are timed."""
    folder = config.folder
    if not (folder / files.TIMING).is_file():
        logger.info("search.minutes=%g: timing the smallest and the largest arch first", config.search.minutes)
        wait_for_jobs(folder)
        prepare(folder, folder / files.TIMING, launch, files.TIMING_JOB)
    timing = read_timing(folder)
    if timing is None:
        raise RunError(f"{folder / files.TIMING} is missing: repeat the command")
    return timing


def shares_of(problem: Problem, task: Task, *, repairs: bool) -> Shares:
    """Where random archs and baselines lie between the archs that are timed; see `plan_of_run`."""
    rng = np.random.default_rng(0)
    drawn = [problem.draw(rng) for _ in range(TYPICAL_ARCHS)]
    smallest, largest = task.cost_totals(end_archs(problem.space, repairs=repairs)).macs.tolist()
    typical, baselines = (
        share_between(task.cost_totals(archs).macs, smallest, largest) for archs in (drawn, problem.baselines or drawn)
    )
    return Shares(typical, baselines)


def divided(config: SearchConfig, trials: int, num_more: int) -> Plan:
    """The plan of a search of so many trials: batch and random start as configured, else as its length asks for.

    Args:
        num_more: how many archs the search begins with beside its random start, see `Problem.num_more`.
    """
    keys, num_random = config.search, None
    if NUM_RANDOM in keys.sampler:
        given = keys.sampler[NUM_RANDOM]
        num_random = start_of(trials, num_more) if given is None else int(str(given))
    most = MOST_TRAINED_BATCH if isinstance(config, ProxyConfig) else MOST_BATCH
    return Plan(trials, keys.ask_batch or batch_of(trials, most, config.rungs()), num_random)


def make_plan(config: SearchConfig, timing: Timing, problem: Problem, shares: Shares) -> Plan:
    """Divide ``search.minutes``; see `plan_of_run`."""
    keys, each = config.search, trial_seconds(timing, config.rungs(), shares)
    assert keys.minutes is not None
    workers = keys.workers or 1
    before = timing.seconds + timing.warmup_seconds + timing.damage_seconds
    if keys.workers is not None or not has_evaluator(config):  # else the timing has prepared the trials of this process
        before += timing.preparation_seconds
    trials = trials_in(workers * (60 * keys.minutes - before), each, len(problem.baselines))
    if not trials:
        raise ConfigError(_too_short(config, each, before))
    budget = PlannedMinutes(keys.minutes, workers, each.average, before)
    return replace(divided(config, trials, problem.num_more), budget=budget)


def _too_short(config: SearchConfig, each: TrialSeconds, before: float) -> str:
    enough = math.ceil((before + FEW_TRIALS * max(each.average, each.baseline)) / 60)
    if isinstance(config, ProxyConfig):
        steps = f"proxy.warmup_steps ({config.proxy.warmup_steps}) or proxy.rungs ({list(config.proxy.rungs)})"
    else:
        steps = f"calibration_images ({config.calibration_images}) or repair_views ({config.repair_views})"
    return (
        f"search.minutes={config.search.minutes:g} leaves no time for a trial of {duration(each.baseline)} after "
        f"{duration(before)} of preparation: set search.minutes={enough} for {FEW_TRIALS} trials, or lower {steps}"
    )


def planned(config: Config, plan: Plan) -> Config:
    """The configuration with the numbers of a plan."""
    sampler = config.search.sampler
    if plan.num_random is not None and NUM_RANDOM in sampler:
        sampler = sampler.with_values(num_random=plan.num_random)
    search = replace(config.search, trials=plan.trials, ask_batch=plan.ask_batch, sampler=sampler)
    return replace(config, search=search)


def schedule_of(
    config: SearchConfig, plan: Plan, images_per_step: int, objectives: Mapping[str, Objective], *, repairs: bool
) -> Schedule:
    """Batches, jobs, rungs and limits of a planned search. Its minutes are a limit, too: a timed step may be wrong.

    Trials keep their networks if they are repaired and scored, but not trained.

    Args:
        repairs: whether the archs are subnets of one whole network.
    """
    budget = config.budget(images_per_step)
    if plan.device_minutes is not None:
        limits = [limit for limit in (budget.device_minutes, plan.device_minutes) if limit is not None]
        budget = replace(budget, device_minutes=min(limits))
    is_scored = any(isinstance(objective, Score) for objective in objectives.values())
    keeps = repairs and is_scored and not isinstance(config, ProxyConfig)
    return replace(config.search.schedule(config.rungs(), budget), keeps_networks=keeps)


def close_plan(config: SearchConfig, plan: Plan, trials: int) -> None:
    """Record the number of trials of a search that its minutes have ended earlier than planned.

    A search that ``proxy.budget`` may have ended keeps its plan, and continues when that budget is raised.
    """
    budget = config.budget(1)
    if plan.budget is None or trials >= plan.trials or budget.images is not None or budget.device_minutes is not None:
        return
    logger.warning(
        "search.minutes=%g ended the search after %d of %d trials, which took longer than the timed ones",
        plan.budget.minutes, trials, plan.trials,
    )  # fmt: skip
    replace(plan, trials=trials).write(config.folder)


def _announce(config: SearchConfig, timing: Timing, plan: Plan) -> None:
    """Log what the search will do, and how to do the same on any machine."""
    budget = plan.budget
    assert budget is not None
    seconds = plan.trials * budget.trial_seconds / budget.workers
    parts = [f"about {counted(plan.trials, 'trial')} of {duration(budget.trial_seconds)}, {duration(seconds)}"]
    if budget.workers > 1:
        parts[0] += f" with {budget.workers} workers"
    if timing.warmup_seconds and isinstance(config, ProxyConfig):
        parts.append(f"a warm-up of {config.proxy.warmup_steps} steps, {duration(timing.warmup_seconds)}")
    if timing.damage_seconds:
        parts.append(f"damages, {duration(timing.damage_seconds)}")
    logger.info("search.minutes=%g: %s", budget.minutes, "; ".join(parts))
    same = [f"search.trials={plan.trials}", f"search.ask_batch={plan.ask_batch}"]
    if plan.num_random is not None:
        same.append(f"search.sampler.num_random={plan.num_random}")
    logger.info("the same search on any machine: %s", " ".join(same))
    if plan.trials < FEW_TRIALS:
        logger.warning("%s: few to choose from, so raise search.minutes", counted(plan.trials, "trial"))
