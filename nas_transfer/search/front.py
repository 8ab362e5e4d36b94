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
from nas_transfer.search.study import Trial, signs

FRONT_FILE = "front.json"
ARCHS = "archs"
RULES = ("best", "knee", "trade_off")


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


def pick(front: Front, rule: str, under: Mapping[str, float]) -> Trial:
    """One trial of the front.

    Args:
        rule: ``best`` of the first objective, ``knee``, or ``trade_off`` (highest).
        under: caps on objectives, in their own units, that the pick must keep; a maximised one's is a floor.

    Raises:
        ConfigError: an unknown rule or objective, or no trial within the caps (says the nearest).
    """
    if rule not in RULES:
        raise ConfigError(f"expected pick to be one of {', '.join(RULES)}, got {rule}")
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
    points = Front(front.names, front.directions, tuple(inside)).points
    if rule == "best" or len(front.names) == 1:
        return inside[int(points[:, 0].argmin())]
    return inside[(knee if rule == "knee" else highest_trade_off)(points)]


def share_of_hypervolume(points: np.ndarray, ideal: np.ndarray, reference: np.ndarray) -> float:
    """Hypervolume of minimised points (N, M) as a share of the box between ideal and reference."""
    return hypervolume(points, reference) / float(np.prod(reference - ideal))


def write_front(
    folder: Path, front: Front, picked: Trial | None, costs_of: Callable[[Trial], dict[str, Any]],
    write: Callable[[Path, dict[str, Any]], None],
) -> None:  # fmt: skip
    """Write ``front.json`` and an arch file for each member, ready for ``arch=``, under the trial's number.

    Args:
        costs_of: a trial's costs with the input size that they are stated for.
        write: writes JSON to a path at once or not at all.
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
