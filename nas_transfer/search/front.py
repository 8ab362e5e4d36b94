"""What a search leaves behind: the front, arch files, and one arch that a rule picks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from nas_transfer.errors import ConfigError
from nas_transfer.search.pareto import highest_trade_off, hypervolume, knee, non_dominated
from nas_transfer.search.statistics import Rescored
from nas_transfer.search.study import Trial, signs

FRONT_FILE = "front.json"
ARCHS = "archs"
RULES = ("best", "knee", "high_trade_off", "trade_off")


@dataclass(frozen=True)
class Front:
    """The non-dominated trials of a study, best first objective first.

    Attributes:
        names: of the objectives.
        directions: ``maximize`` or ``minimize``, as long.
        trials: the members.
    """

    names: tuple[str, ...]
    directions: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def points(self) -> np.ndarray:
        """(N, M), minimised."""
        return np.asarray([trial.values for trial in self.trials]).reshape(-1, len(self.names)) * signs(self.directions)


def front_of(trials: Sequence[Trial], directions: Mapping[str, str]) -> Front:
    """The front of all told trials; of trials with equal values the first one."""
    names, kinds = tuple(directions), tuple(directions.values())
    if not trials:
        return Front(names, kinds, ())
    points = np.asarray([trial.values for trial in trials]) * signs(kinds)
    kept: dict[tuple[float, ...], Trial] = {}
    for index in np.flatnonzero(non_dominated(points)):
        kept.setdefault(tuple(points[index]), trials[index])
    return Front(names, kinds, tuple(trial for _, trial in sorted(kept.items(), key=lambda item: item[0])))


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
        if not 0 < self.max_score_key <= 1:
            raise ConfigError(
                "expected search.trade_off.max_score_key above 0 and up to 1, for scores are fractions in 0-1 and no "
                f"percentages, got {self.max_score_key:g}: 1.0"
            )
        if not self.ratio > 0:
            raise ConfigError(f"expected search.trade_off.ratio above 0, got {self.ratio}")

    def worths(self, front: Front) -> np.ndarray:
        """The worth (N,) of each member.

        Raises:
            ConfigError: a score above `max_score_key`, which is then on another scale; the cost is maximised.
        """
        values = np.asarray([trial.values for trial in front.trials]).reshape(-1, len(front.names))
        place = front.names.index(self.second)
        if front.directions[place] != "minimize":
            raise ConfigError(f"expected search.trade_off.second to be minimised, got {self.second}")
        scores, costs = values[:, front.names.index("score")], values[:, place]
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
        place = front.names.index(name)
        sign = signs(front.directions)[place]
        within = [trial for trial in inside if sign * trial.values[place] <= sign * cap]
        if not within:
            nearest = min((trial.values[place] for trial in inside), key=lambda value: sign * value, default=None)
            raise ConfigError(f"expected a member of the front with {name} within {cap:g}, the nearest has {nearest}")
        inside = within
    if not inside:
        raise ConfigError("expected a trial with values to pick from, got none: every candidate failed or was left out")
    kept = Front(front.names, front.directions, tuple(inside))
    if rule == "trade_off" and trade_off is not None:
        worth = dict(zip((trial.number for trial in front.trials), trade_off.worths(front), strict=True))
        return min(inside, key=lambda trial: worth[trial.number])
    if rule == "best" or len(front.names) == 1:
        return inside[int(kept.points[:, 0].argmin())]
    return inside[(knee if rule == "knee" else highest_trade_off)(kept.points)]


def share_of_hypervolume(points: np.ndarray, ideal: np.ndarray, reference: np.ndarray) -> float:
    """Hypervolume of minimised points (N, M) as a share of the box between ideal and reference."""
    return hypervolume(points, reference) / float(np.prod(reference - ideal))


def write_front(
    folder: Path, front: Front, picked: Trial | None, costs_of: Callable[[Trial], dict[str, Any]],
    write: Callable[[Path, dict[str, Any]], None], rescored: Rescored | None = None,
) -> None:  # fmt: skip
    """Write ``front.json`` and an arch file for each member, ready for ``arch=``, under the trial's number.

    Args:
        costs_of: a trial's costs with the input size that they are stated for.
        write: writes JSON to a path at once or not at all.
        rescored: the members' scores from other seeds.
    """
    (folder / ARCHS).mkdir(exist_ok=True)
    kept = {f"trial_{trial.number}.yaml" for trial in front.trials}
    for path in (folder / ARCHS).glob("trial_*.yaml"):
        if path.name not in kept:
            path.unlink()
    members = []
    for trial in front.trials:
        values = dict(zip(front.names, trial.values, strict=True))
        path = folder / ARCHS / f"trial_{trial.number}.yaml"
        path.write_text(_arch_file(trial, values))
        members.append(
            {
                "trial": trial.number, "values": values, "metrics": dict(trial.metrics), "costs": costs_of(trial),
                "arch": trial.arch.to_dict(), "file": f"{ARCHS}/{path.name}",
            }
            | ({} if rescored is None else rescored.to_dict(trial.number))
        )  # fmt: skip
    if picked is not None:
        values = dict(zip(front.names, picked.values, strict=True))
        (folder / ARCHS / "picked.yaml").write_text(_arch_file(picked, values))
    content = {
        "objectives": dict(zip(front.names, front.directions, strict=True)),
        "picked": None if picked is None else picked.number,
        "front": members,
    }
    write(folder / FRONT_FILE, content)


def _arch_file(trial: Trial, values: Mapping[str, float]) -> str:
    found = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
    text = yaml.safe_dump(trial.arch.to_dict(), sort_keys=False, default_flow_style=None, width=200)
    return f"# Trial {trial.number} of a search: {found} (scores on the search split).\n{text}"
