"""What a search leaves behind: the front, arch files, and one arch that a rule picks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from nas_transfer.errors import ConfigError, report_faults
from nas_transfer.runs import Costs, Direction, Front, Trial, files
from nas_transfer.runs.atomic import write_text
from nas_transfer.search.pareto import highest_trade_off, hypervolume, knee, non_dominated
from nas_transfer.search.statistics import Rescored
from nas_transfer.search.study import signs

RULES = ("best", "knee", "high_trade_off", "trade_off")


def points_of(front: Front) -> np.ndarray:
    """The values of a front's trials (N, M), minimised."""
    return minimised(front.trials, front.objectives)


def minimised(trials: Sequence[Trial], objectives: Mapping[str, Direction]) -> np.ndarray:
    """The values of trials (N, M) with those of maximised objectives negated."""
    values = np.asarray([[trial.values[name] for name in objectives] for trial in trials])
    return values.reshape(-1, len(objectives)) * signs(objectives.values())


def front_of(trials: Sequence[Trial], objectives: Mapping[str, Direction]) -> Front:
    """The front of all trials with values; of trials with equal values the first one."""
    if not trials:
        return Front(dict(objectives), ())
    points = minimised(trials, objectives)
    kept: dict[tuple[float, ...], Trial] = {}
    for index in np.flatnonzero(non_dominated(points)):
        kept.setdefault(tuple(points[index]), trials[index])
    return Front(dict(objectives), tuple(trial for _, trial in sorted(kept.items(), key=lambda item: item[0])))


@dataclass(frozen=True)
class TradeOff:
    """How much score a cost is worth.

    The worth of a member, smaller being better, is (max_score_key - score) / max_score_key + ratio * cost / the
    front's largest cost: with a ratio of 0.1, half the cost is worth 5 % of `max_score_key`.

    Args:
        second: the objective against the score, a minimised one.
        max_score_key: the score of a perfect network; scores are fractions in 0-1.
        ratio: what the largest cost is worth, in shares of `max_score_key`.

    Raises:
        ConfigError: naming the value.
    """

    second: str
    max_score_key: float = 1.0
    ratio: float = 0.1

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

    def worths(self, front: Front) -> np.ndarray:
        """The worth (N,) of each member.

        Raises:
            ConfigError: a score above `max_score_key`, which is then on another scale; the cost is maximised.
        """
        if front.objectives[self.second] != "minimize":
            raise ConfigError(f"expected search.trade_off.second to be minimised, got {self.second}")
        scores = np.asarray([trial.values["score"] for trial in front.trials])
        costs = np.asarray([trial.values[self.second] for trial in front.trials])
        if len(scores) and scores.max() > self.max_score_key:
            raise ConfigError(
                f"expected scores up to search.trade_off.max_score_key={self.max_score_key:g}, got {scores.max():g}: "
                "scores are fractions in 0-1, and max_score_key the best that one can reach"
            )
        return (self.max_score_key - scores) / self.max_score_key + self.ratio * costs / max(costs, default=1.0)


def pick(front: Front, rule: str | None, under: Mapping[str, float], trade_off: TradeOff | None = None) -> Trial:
    """One trial of the front.

    Args:
        rule: ``best`` of the first objective, ``knee``, ``high_trade_off`` (Rachmawati and Srinivasan 2009), or
            ``trade_off``, the smallest worth; None for the last if there is a trade-off, else for the knee.
        under: caps on objectives, in their own units, that the pick must keep; a maximised one's is a floor.
        trade_off: of score and cost.

    Raises:
        ConfigError: an unknown rule or objective, or no trial within the caps (says the nearest).
    """
    rule = rule or ("knee" if trade_off is None else "trade_off")
    if rule not in RULES:
        raise ConfigError(f"expected pick to be one of {', '.join(RULES)}, got {rule}")
    if rule == "trade_off" and trade_off is None:
        raise ConfigError("expected search.trade_off={second: macs, ratio: 0.1} with pick=trade_off, got none")
    inside = list(front.trials)
    for name, cap in under.items():
        if name not in front.names:
            raise ConfigError(f"expected pick_under of {', '.join(front.names)}, got {name}")
        sign = signs([front.objectives[name]])[0]
        within = [trial for trial in inside if sign * trial.values[name] <= sign * cap]
        if not within:
            nearest = min((trial.values[name] for trial in inside), key=lambda value: sign * value, default=None)
            raise ConfigError(f"expected a member of the front with {name} within {cap:g}, the nearest has {nearest}")
        inside = within
    if not inside:
        raise ConfigError("expected a trial with values to pick from, got none: every candidate failed or was left out")
    points = minimised(inside, front.objectives)
    if rule == "trade_off" and trade_off is not None:
        worth = dict(zip((trial.number for trial in front.trials), trade_off.worths(front), strict=True))
        return min(inside, key=lambda trial: worth[trial.number])
    if rule == "best" or len(front.names) == 1:
        return inside[int(points[:, 0].argmin())]
    return inside[(knee if rule == "knee" else highest_trade_off)(points)]


def share_of_hypervolume(points: np.ndarray, ideal: np.ndarray, reference: np.ndarray) -> float:
    """Hypervolume of minimised points (N, M) as a share of the box between ideal and reference."""
    return hypervolume(points, reference) / float(np.prod(reference - ideal))


def write_front(
    folder: Path, front: Front, costs_of: Callable[[Trial], Costs], rescored: Rescored | None = None
) -> Front:
    """Write ``front.json`` and an arch file for each trial on the front, ready for ``arch=``.

    Args:
        costs_of: computes a trial's costs.
        rescored: the trials' scores from other seeds.

    Returns:
        The front as it was written, with costs, files and scores from other seeds.
    """
    (folder / files.ARCHS_FOLDER).mkdir(exist_ok=True)
    kept = {files.arch_file(trial.number) for trial in front.trials}
    for path in (folder / files.ARCHS_FOLDER).glob("trial_*.yaml"):
        if f"{files.ARCHS_FOLDER}/{path.name}" not in kept:
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
    written = replace(front, trials=tuple(trials))
    written.write(folder)
    return written


def _arch_file(trial: Trial) -> str:
    values = ", ".join(f"{name} {value:.6g}" for name, value in trial.values.items())
    text = yaml.safe_dump(dict(trial.arch), sort_keys=False, default_flow_style=None, width=200)
    return f"# Trial {trial.number} of a search: {values} (scores on the search split).\n{text}"
