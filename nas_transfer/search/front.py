"""The front of a search: its trials, its files, and the rules that pick one trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from nas_transfer.errors import ConfigError, report_faults
from nas_transfer.ranges import PositiveNumber, PositiveShare
from nas_transfer.runs import Costs, Direction, Front, Trial, files
from nas_transfer.runs.atomic import write_text
from nas_transfer.search.pareto import highest_trade_off, hypervolume, knee, non_dominated, signs
from nas_transfer.search.statistics import Rescored

RULES = ("best", "knee", "high_trade_off", "trade_off")


def points_of(front: Front) -> np.ndarray:
    """The values of the trials of a front: (N, M), minimised."""
    return minimised(front.trials, front.objectives)


def minimised(trials: Sequence[Trial], objectives: Mapping[str, Direction]) -> np.ndarray:
    """The values of trials: (N, M), with maximised objectives negated."""
    values = np.asarray([[trial.values[name] for name in objectives] for trial in trials])
    return values.reshape(-1, len(objectives)) * signs(objectives.values())


def front_of(trials: Sequence[Trial], objectives: Mapping[str, Direction]) -> Front:
    """The non-dominated trials, sorted by their values; only the first of several trials with equal values."""
    if not trials:
        return Front(dict(objectives), ())
    points = minimised(trials, objectives)
    distinct: dict[tuple[float, ...], Trial] = {}
    for index in np.flatnonzero(non_dominated(points)):
        distinct.setdefault(tuple(points[index]), trials[index])
    return Front(dict(objectives), tuple(trial for _, trial in sorted(distinct.items(), key=lambda item: item[0])))


@dataclass(frozen=True)
class TradeOff:
    """A fixed exchange rate between score and cost.

    It assigns each trial of a front a penalty; less is better::

        (max_score_key - score) / max_score_key + ratio * cost / largest cost of the front

    With a ratio of 0.1, halving the largest cost is worth 5 % of `max_score_key`.

    Args:
        second: the objective that is traded against the score. It must be minimised.
        max_score_key: the score of a perfect network; scores are fractions in 0-1.
        ratio: the worth of the largest cost, as a fraction of `max_score_key`.

    Raises:
        ConfigError: `max_score_key` or `ratio` is out of range.
    """

    second: str
    max_score_key: PositiveShare = 1.0
    ratio: PositiveNumber = 0.1

    def __post_init__(self) -> None:
        faults = []
        if not 0 < self.max_score_key <= 1:
            faults.append(
                f"search.trade_off.max_score_key must be above 0 and up to 1, got {self.max_score_key:g}: "
                "scores are fractions, not percentages"
            )
        if not self.ratio > 0:
            faults.append(f"search.trade_off.ratio must be above 0, got {self.ratio}")
        report_faults(faults)

    def penalties(self, front: Front) -> np.ndarray:
        """The penalty (N,) of each trial of the front.

        Raises:
            ConfigError: a score is above `max_score_key`, or the second objective is maximised.
        """
        if front.objectives[self.second] != "minimize":
            raise ConfigError(f"search.trade_off.second must be a minimised objective, got {self.second}")
        scores = np.asarray([trial.values["score"] for trial in front.trials])
        costs = np.asarray([trial.values[self.second] for trial in front.trials])
        if len(scores) and scores.max() > self.max_score_key:
            raise ConfigError(
                f"a score of {scores.max():g} is above search.trade_off.max_score_key={self.max_score_key:g}: "
                "set max_score_key to the best score that a network can reach, a fraction in 0-1"
            )
        return (self.max_score_key - scores) / self.max_score_key + self.ratio * costs / max(costs, default=1.0)


def pick(front: Front, rule: str | None, under: Mapping[str, float], trade_off: TradeOff | None = None) -> Trial:
    """Pick one trial of the front.

    Args:
        front: the front.
        rule: ``best`` in the first objective, ``knee``, ``high_trade_off`` (Rachmawati and Srinivasan 2009), or
            ``trade_off`` for the smallest penalty of `trade_off`. None picks by `trade_off` if it is given, and
            otherwise the knee.
        under: limits on objectives, in their own units: a maximum for a minimised objective, a minimum for a maximised
            one.
        trade_off: exchange rate between score and cost.

    Raises:
        ConfigError: the rule or an objective is unknown, or no trial is within the limits.
    """
    rule = rule or ("knee" if trade_off is None else "trade_off")
    if rule not in RULES:
        raise ConfigError(f"pick must be one of {', '.join(RULES)}, got {rule}")
    if rule == "trade_off" and trade_off is None:
        raise ConfigError("pick=trade_off needs search.trade_off, for instance '{second: macs, ratio: 0.1}', got none")
    inside = list(front.trials)
    for name, cap in under.items():
        if name not in front.names:
            raise ConfigError(f"pick_under must name objectives of this search ({', '.join(front.names)}), got {name}")
        sign = signs([front.objectives[name]])[0]
        within = [trial for trial in inside if sign * trial.values[name] <= sign * cap]
        if not within:
            nearest = min((trial.values[name] for trial in inside), key=lambda value: sign * value, default=None)
            raise ConfigError(f"no trial of the front has {name} within pick_under={cap:g}, the nearest has {nearest}")
        inside = within
    if not inside:
        raise ConfigError(
            "no trial can be picked: every trial failed or was left out, for the reasons in trials/*.json"
        )
    points = minimised(inside, front.objectives)
    if rule == "trade_off" and trade_off is not None:
        penalties = dict(zip((trial.number for trial in front.trials), trade_off.penalties(front), strict=True))
        return min(inside, key=lambda trial: penalties[trial.number])
    if rule == "best" or len(front.names) == 1:
        return inside[int(points[:, 0].argmin())]
    return inside[(knee if rule == "knee" else highest_trade_off)(points)]


def share_of_hypervolume(points: np.ndarray, ideal: np.ndarray, reference: np.ndarray) -> float:
    """The hypervolume of minimised points (N, M) as a share of the box between `ideal` and `reference`, both (M,)."""
    return hypervolume(points, reference) / float(np.prod(reference - ideal))


def write_front(
    folder: Path, front: Front, costs_of: Callable[[Trial], Costs], rescored: Rescored | None = None
) -> Front:
    """Write ``front.json`` and an arch file, ready for ``arch=``, for each trial of the front.

    Arch files of trials that are no longer on the front are deleted.

    Args:
        folder: run folder of the search.
        front: the front.
        costs_of: computes the costs of a trial.
        rescored: scores of the trials from other seeds.

    Returns:
        The front as written, with costs, arch files and scores from other seeds.
    """
    (folder / files.ARCHS_FOLDER).mkdir(exist_ok=True)
    numbers = {trial.number for trial in front.trials}
    current = {files.arch_file(number) for number in numbers}
    for path in (folder / files.ARCHS_FOLDER).glob("trial_*.yaml"):
        if f"{files.ARCHS_FOLDER}/{path.name}" not in current:
            path.unlink()
    trials = []
    for trial in front.trials:
        file = files.arch_file(trial.number)
        write_text(folder / file, _arch_file(trial))
        trial = replace(trial, costs=costs_of(trial), file=file)
        if rescored is not None:
            trial = replace(
                trial,
                repeats=rescored.repeats_of(trial.number),
                indistinguishable_from=rescored.indistinguishable_from(trial.number),
            )
        trials.append(trial)
    picked = front.trial(front.picked)
    if picked is not None:
        write_text(folder / files.PICKED_ARCH, _arch_file(picked))
    resized, narrowed = (
        tuple(
            replace(trial, costs=costs_of(trial), file=files.arch_file(trial.number) if trial.number in numbers else "")
            for trial in baselines
        )
        for baselines in (front.resized, front.narrowed)
    )
    written = replace(front, trials=tuple(trials), resized=resized, narrowed=narrowed)
    written.write(folder)
    return written


def _arch_file(trial: Trial) -> str:
    values = ", ".join(f"{name} {value:.6g}" for name, value in trial.values.items())
    text = yaml.safe_dump(dict(trial.arch), sort_keys=False, default_flow_style=None, width=200)
    return f"# Trial {trial.number} of a search: {values} (scores on the search split).\n{text}"
