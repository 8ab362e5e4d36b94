"""How far a search's front can be trusted: its members scored again, and trained for longer than in the search."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nas_transfer.errors import RunError
from nas_transfer.report.studies import TRUST_FILE
from nas_transfer.runs.result import write_json_atomically
from nas_transfer.search.front import Front
from nas_transfer.search.loop import SearchLoop
from nas_transfer.search.pareto import by_rank
from nas_transfer.search.statistics import RankQuality, Rescored, rank_quality
from nas_transfer.search.study import Outcome, Trial, signs
from nas_transfer.search.work import REPEATS, VALIDATION, Work, read_outcome
from nas_transfer.stages.config.search import ProxyConfig, SearchConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """How the scores of short trainings rank archs, held against longer ones.

    Attributes:
        steps, long_steps: of the short and the long training.
        trials: numbers.
        short, long: scores, in the order of `trials`.
        quality: rank correlation of the two.
        images: what the long trainings saw.
        seconds: what they took.
    """

    steps: int
    long_steps: int
    trials: tuple[int, ...]
    short: tuple[float, ...]
    long: tuple[float, ...]
    quality: RankQuality
    images: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What ``trust.json`` holds."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"scores after {self.steps} steps against those after {self.long_steps}: {self.quality}"
        if not self.quality.better_than_chance:
            text += "; no better than chance: do not rely on the order of the front"
        return text


def rescore(config: SearchConfig, loop: SearchLoop, front: Front) -> Rescored | None:
    """Score the front's members from `search.repeats` other seeds; None if none are asked for.

    Raises:
        RunError: a member that could not be scored again.
    """
    count = config.search.repeats
    if not count:
        return None
    logger.info("scoring the front's %d members again from %d other seeds", len(front.trials), count)
    steps = loop.schedule.rungs.steps[-1]
    works = [
        Work(trial.number, trial.arch, f"{REPEATS}/{trial.number}.{repeat}.json", steps, repeat=repeat)
        for repeat in range(1, count + 1)
        for trial in front.trials
    ]
    scores = [_value(outcome, front) for outcome in _outcomes(loop, works)]
    members = len(front.trials)
    return Rescored({trial.number: tuple(scores[place::members]) for place, trial in enumerate(front.trials)})


def validate_proxy(config: ProxyConfig, loop: SearchLoop, front: Front) -> Validation | None:
    """Train some archs for longer and hold the search's scores against theirs; None if none are asked for.

    Raises:
        RunError: an arch that could not be trained.
    """
    count, times, steps = config.proxy.validate, config.proxy.validate_times, loop.schedule.rungs.steps[-1]
    if not count:
        return None
    chosen = spread(loop.study.told(), front, count)
    if len(chosen) < 3:
        raise RunError(f"proxy.validate needs at least 3 trials with values, got {len(chosen)}")
    long = times * steps
    logger.info("training %d archs for %d instead of %d steps", len(chosen), long, steps)
    works = [Work(trial.number, trial.arch, f"{VALIDATION}/{trial.number}.{long}.json", long) for trial in chosen]
    outcomes = _outcomes(loop, works)
    shorts, longs = (tuple(values) for values in ([t.values[0] for t in chosen], [_value(o, front) for o in outcomes]))
    found = Validation(
        steps, long, tuple(trial.number for trial in chosen), shorts, longs,
        rank_quality(np.asarray(longs), np.asarray(shorts), config.seed),
        sum(outcome.images for outcome in outcomes), sum(outcome.seconds for outcome in outcomes),
    )  # fmt: skip
    write_json_atomically(loop.folder / TRUST_FILE, found.to_dict())
    return found


def spread(told: Sequence[Trial], front: Front, count: int) -> list[Trial]:
    """So many trials: spread evenly over the front, and where it has fewer, those that come next."""
    members = list(front.trials)
    if len(members) >= count:
        return [members[place] for place in np.linspace(0, len(members) - 1, count).round().astype(int)]
    own = {trial.number for trial in members}
    others = [trial for trial in told if trial.number not in own]
    points = np.asarray([trial.values for trial in others]).reshape(len(others), -1) * signs(front.directions)
    return members + [others[place] for place in by_rank(points)[: count - len(members)]]


def _outcomes(loop: SearchLoop, works: Sequence[Work]) -> list[Outcome]:
    reasons = loop.do(works)
    found = []
    for work in works:
        outcome = read_outcome(loop.folder / work.file)
        if outcome is None or outcome.reason is not None:
            reason = reasons.get(work.number, "its job left no result") if outcome is None else outcome.reason
            raise RunError(f"trial {work.number} could not be scored again: {reason} ({work.file})")
        found.append(outcome)
    return found


def _value(outcome: Outcome, front: Front) -> float:
    return outcome.values[front.names[0]]
