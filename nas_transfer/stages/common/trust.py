"""Check a front: score its trials again with other seeds, and train some archs for longer."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from nas_transfer.errors import RunError
from nas_transfer.runs import Evaluation, Front, Trial, Validation, files
from nas_transfer.search.front import minimised
from nas_transfer.search.loop import SearchLoop
from nas_transfer.search.pareto import by_rank
from nas_transfer.search.statistics import Rescored, rank_quality
from nas_transfer.stages.config.search import ProxyConfig, SearchConfig

logger = logging.getLogger(__name__)


def rescore(config: SearchConfig, loop: SearchLoop, front: Front) -> Rescored | None:
    """Score the trials of the front again with `search.repeats` other seeds; None for no repeats.

    Raises:
        RunError: a trial could not be evaluated again.
    """
    count = config.search.repeats
    if not count:
        return None
    logger.info("scoring the %d trials of the front again with %d other seeds", len(front.trials), count)
    steps = loop.schedule.rungs.steps[-1]
    evaluations = [
        Evaluation(trial.number, trial.arch, files.repeat_file(trial.number, repeat), steps, repeat=repeat)
        for repeat in range(1, count + 1)
        for trial in front.trials
    ]
    scores = [outcome.values[front.names[0]] for outcome in loop.outcomes(evaluations)]
    members = len(front.trials)
    return Rescored({trial.number: tuple(scores[index::members]) for index, trial in enumerate(front.trials)})


def validate_proxy(config: ProxyConfig, loop: SearchLoop, front: Front) -> Validation | None:
    """Train `proxy.validate` archs for longer and compare their scores with those of the search; None for no archs.

    Raises:
        RunError: an arch could not be trained.
    """
    count, times, steps = config.proxy.validate, config.proxy.validate_times, loop.schedule.rungs.steps[-1]
    if not count:
        return None
    chosen = spread(loop.study.told(), front, count)
    if len(chosen) < 3:
        raise RunError(f"proxy.validate needs at least 3 scored trials, got {len(chosen)}: raise search.trials")
    long = times * steps
    logger.info("training %d archs for %d instead of %d steps", len(chosen), long, steps)
    evaluations = [
        Evaluation(trial.number, trial.arch, files.validation_file(trial.number, long), long) for trial in chosen
    ]
    outcomes = loop.outcomes(evaluations)
    first = front.names[0]
    shorts = tuple(trial.values[first] for trial in chosen)
    longs = tuple(outcome.values[first] for outcome in outcomes)
    validation = Validation(
        steps, long, tuple(trial.number for trial in chosen), shorts, longs,
        rank_quality(np.asarray(longs), np.asarray(shorts), config.seed),
        sum(outcome.images for outcome in outcomes), sum(outcome.seconds for outcome in outcomes),
    )  # fmt: skip
    validation.write(loop.folder)
    return validation


def spread(told: Sequence[Trial], front: Front, count: int) -> list[Trial]:
    """`count` trials spread evenly over the front; a smaller front is filled up with the trials of the next ranks."""
    members = list(front.trials)
    if len(members) >= count:
        return [members[index] for index in np.linspace(0, len(members) - 1, count).round().astype(int)]
    numbers = {trial.number for trial in members}
    others = [trial for trial in told if trial.number not in numbers]
    points = minimised(others, front.objectives)
    return members + [others[index] for index in by_rank(points)[: count - len(members)]]
