"""The budget of a search in minutes: archs are timed by a first job, and the number of trials follows from it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from nas_transfer.errors import ConfigError, RunError
from nas_transfer.runs import files
from nas_transfer.runs.plan import Plan, Timing, read_plan, read_timing
from nas_transfer.runs.texts import counted, duration
from nas_transfer.search.loop import Launch, Schedule, prepare
from nas_transfer.search.objectives.base import Objective
from nas_transfer.search.objectives.score import Score
from nas_transfer.search.planning import LEAST_START, TrialSeconds, batch_of, start_of, trial_seconds, trials_in
from nas_transfer.stages.common.slurm_jobs import wait_for_jobs
from nas_transfer.stages.config.search import ProxyConfig, SearchConfig

logger = logging.getLogger(__name__)

FEW_TRIALS = 10
"""Fewer trials are too few to learn from."""
NUM_RANDOM = "num_random"

Config = TypeVar("Config", bound=SearchConfig)


def plan_of_run(config: SearchConfig, launch: Launch, baselines: int) -> Plan | None:
    """The plan of a search without ``search.trials``, which is made once and kept; None for one with it.

    Args:
        launch: runs the job that times archs.
        baselines: how many of the first trials train to the last rung.

    Raises:
        ConfigError: the budget leaves no time for a trial.
        RunError: the job failed.
    """
    minutes, folder = config.search.minutes, config.folder
    if config.search.trials is not None or minutes is None:
        return None
    plan = read_plan(folder)
    if plan is not None and plan.minutes == minutes:
        logger.info("search.minutes=%g: %d trials, as planned when the search began", minutes, plan.trials)
        return plan
    if not (folder / files.TIMING).is_file():
        logger.info("search.minutes=%g: timing the smallest and the largest arch first", minutes)
        wait_for_jobs(folder)
        prepare(folder, folder / files.TIMING, launch, files.TIMING_JOB)
    timing = read_timing(folder)
    if timing is None:
        raise RunError(f"{folder / files.TIMING} is missing: repeat the command")
    made = make_plan(config, timing, baselines)
    if plan is not None:  # a longer budget continues the search
        made = replace(made, ask_batch=plan.ask_batch, num_random=plan.num_random)
    made.write(folder)
    _announce(config, timing, made)
    return made


def make_plan(config: SearchConfig, timing: Timing, baselines: int) -> Plan:
    """Divide ``search.minutes``; see `plan_of_run`."""
    keys, each = config.search, trial_seconds(timing, config.rungs())
    assert keys.minutes is not None
    workers = keys.workers or 1
    before = timing.seconds + timing.warmup_seconds + timing.damage_seconds + timing.preparation_seconds
    trials = trials_in(workers * (60 * keys.minutes - before), each, baselines)
    if not trials:
        raise ConfigError(_too_short(config, each, before))
    sampler = keys.sampler
    num_random = start_of(trials, int(str(sampler[NUM_RANDOM]))) if NUM_RANDOM in sampler else None
    return Plan(keys.minutes, workers, trials, batch_of(trials, keys.ask_batch), num_random, each.average, before)


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


def warn_of_chance(config: SearchConfig, num_more: int) -> None:
    """Warn if a search with ``search.trials`` proposes most of them before its sampler learns from a score.

    Args:
        num_more: how many archs the search begins with beside its random start, see `Problem.num_more`.
    """
    keys = config.search
    if keys.trials is None or NUM_RANDOM not in keys.sampler or keys.trials < FEW_TRIALS:
        return
    num_random = int(str(keys.sampler[NUM_RANDOM]))
    drawn = num_random + num_more
    if not keys.workers:  # they learn from each trial, and not batch by batch
        drawn = math.ceil(drawn / keys.ask_batch) * keys.ask_batch
    drawn = min(keys.trials, drawn)
    if drawn <= keys.trials // 2:
        return
    start = max(LEAST_START, start_of(keys.trials, num_random) - num_more)
    batch = batch_of(keys.trials, keys.ask_batch)
    logger.warning(
        "%d of %d trials are proposed before the sampler learns from a score: add search.ask_batch=%d "
        "search.sampler.num_random=%d, or give search.minutes instead of search.trials",
        drawn, keys.trials, batch, start,
    )  # fmt: skip


def planned(config: Config, plan: Plan | None) -> Config:
    """The configuration with the numbers of a plan."""
    if plan is None:
        return config
    sampler = config.search.sampler
    if plan.num_random is not None and NUM_RANDOM in sampler:
        sampler = sampler.with_values(num_random=plan.num_random)
    search = replace(config.search, trials=plan.trials, ask_batch=plan.ask_batch, sampler=sampler)
    return replace(config, search=search)


def schedule_of(
    config: SearchConfig, plan: Plan | None, images_per_step: int, objectives: Mapping[str, Objective], *, repairs: bool
) -> Schedule:
    """Batches, jobs, rungs and limits of a planned search. Its minutes are a limit, too: a timed step may be wrong.

    Trials keep their networks if they are repaired and scored, but not trained.

    Args:
        repairs: whether the archs are subnets of one whole network.
    """
    budget = config.budget(images_per_step)
    if plan is not None:
        limits = [limit for limit in (budget.device_minutes, plan.device_minutes) if limit is not None]
        budget = replace(budget, device_minutes=min(limits))
    is_scored = any(isinstance(objective, Score) for objective in objectives.values())
    keeps = repairs and is_scored and not isinstance(config, ProxyConfig)
    return replace(config.search.schedule(config.rungs(), budget), keeps_networks=keeps)


def close_plan(config: SearchConfig, plan: Plan | None, trials: int) -> None:
    """Record the number of trials of a search that its minutes have ended earlier than planned.

    A search that ``proxy.budget`` may have ended keeps its plan, and continues when that budget is raised.
    """
    budget = config.budget(1)
    if plan is None or trials >= plan.trials or budget.images is not None or budget.device_minutes is not None:
        return
    logger.warning(
        "search.minutes=%g ended the search after %d of %d trials, which took longer than the timed ones",
        plan.minutes, trials, plan.trials,
    )  # fmt: skip
    replace(plan, trials=trials).write(config.folder)


def _announce(config: SearchConfig, timing: Timing, plan: Plan) -> None:
    """Log what the search will do, and how to do the same on any machine."""
    seconds = plan.trials * plan.trial_seconds / plan.workers
    parts = [f"about {counted(plan.trials, 'trial')} of {duration(plan.trial_seconds)}, {duration(seconds)}"]
    if plan.workers > 1:
        parts[0] += f" with {plan.workers} workers"
    if timing.warmup_seconds and isinstance(config, ProxyConfig):
        parts.append(f"a warm-up of {config.proxy.warmup_steps} steps, {duration(timing.warmup_seconds)}")
    if timing.damage_seconds:
        parts.append(f"damages, {duration(timing.damage_seconds)}")
    logger.info("search.minutes=%g: %s", plan.minutes, "; ".join(parts))
    same = [f"search.trials={plan.trials}", f"search.ask_batch={plan.ask_batch}"]
    if plan.num_random is not None:
        same.append(f"search.sampler.num_random={plan.num_random}")
    logger.info("the same search on any machine: %s", " ".join(same))
    if plan.trials < FEW_TRIALS:
        logger.warning("%s: few to choose from, so raise search.minutes", counted(plan.trials, "trial"))
