"""Routes A, B and C side by side: the networks that each found, trained alike, against what finding them cost."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nas_transfer.errors import RunError
from nas_transfer.runs.result import RESULT_FILE
from nas_transfer.search.front import FRONT_FILE, share_of_hypervolume
from nas_transfer.search.statistics import Difference, paired_difference

REFERENCE_COST = 1.1
"""Of the largest arch's MACs: where the box of the hypervolume ends; its other side is score 0."""


@dataclass
class Route:
    """What one route found in each seed.

    Attributes:
        name: ``A``, ``B``, ``C``, ``C10``.
        points: by seed, (N, 2): score on the report split and MACs of each retrained net.
        volumes: by seed, the share of the box that these dominate.
        images: by seed, seen by all trainings before the nets were chosen, each once however many archs it ran through.
        passes: by seed, the same times the archs that each ran through.
        seconds: by seed, of training and search before the nets were chosen.
    """

    name: str
    points: dict[int, np.ndarray] = field(default_factory=dict)
    volumes: dict[int, float] = field(default_factory=dict)
    images: dict[int, int] = field(default_factory=dict)
    passes: dict[int, int] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Several routes on one task.

    Attributes:
        task: its name.
        score_key: what was scored.
        reference_macs: where the box of the hypervolume ends.
        routes: by name.
    """

    task: str
    score_key: str
    reference_macs: float
    routes: dict[str, Route]

    def difference(self, one: str, other: str) -> Difference | None:
        """Of the hypervolumes, in pairs of the same seed; None with fewer than two common seeds."""
        first, second = self.routes[one].volumes, self.routes[other].volumes
        seeds = sorted(set(first) & set(second))
        if len(seeds) < 2:
            return None
        return paired_difference([first[seed] for seed in seeds], [second[seed] for seed in seeds])


def chosen_archs(run: Path, count: int) -> list[Path]:
    """Arch files of so many members of a search's front, spread evenly over it; all of a smaller front.

    Raises:
        RunError: the search has no front.
    """
    members = _read(run / FRONT_FILE)["front"]
    places = np.unique(np.linspace(0, len(members) - 1, min(count, len(members))).round().astype(int))
    return [run / members[place]["file"] for place in places]


def comparison(runs: Path, task: str, *, finished_only: bool = False) -> Comparison:
    """What `compare_routes.sh` left: nets are runs ``finetune/TASK/ROUTE-SEED-PLACE``.

    Args:
        finished_only: leave out a route's seed of which a net has no result.

    Raises:
        RunError: a run without a result, naming it.
    """
    nets: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    folders: dict[tuple[str, int], list[Path]] = defaultdict(list)
    for folder in sorted((runs / "finetune" / task).glob("*-*-*")):
        letters, number, _ = folder.name.split("-")
        folders[letters, int(number)].append(folder)
    for key, own in folders.items():
        if not finished_only or all((folder / RESULT_FILE).is_file() for folder in own):
            nets[key] = [_read(folder / RESULT_FILE) for folder in own]
    if not nets:
        raise RunError(f"expected retrained nets in {runs / 'finetune' / task}, got none")
    reference = REFERENCE_COST * max(net["costs"]["macs"]["total"] for found in nets.values() for net in found)
    routes: dict[str, Route] = {}
    for (name, seed), group in nets.items():
        route = routes.setdefault(name, Route(name))
        points = np.asarray([[net["score"], net["costs"]["macs"]["total"]] for net in group])
        route.points[seed] = points
        route.volumes[seed] = share_of_hypervolume(
            points * [-1, 1], np.asarray([-1.0, 0.0]), np.asarray([0.0, reference])
        )
        before = [_read(path) for path in _searches(runs, name, seed)]
        route.images[seed] = sum(result["images_seen"] for result in before)
        route.passes[seed] = sum(result["images_seen"] * result["passes_per_image"] for result in before)
        route.seconds[seed] = sum(result["seconds"] for result in before)
    score_key = next(iter(nets.values()))[0]["score_key"]
    return Comparison(task, score_key, reference, dict(sorted(routes.items())))


def _searches(runs: Path, route: str, seed: int) -> list[Path]:
    """Result files of what a route did before its nets were chosen."""
    name = f"{route}-{seed}"
    found = sorted(path for path in runs.glob(f"*/*/{name}/{RESULT_FILE}"))
    if not found:
        raise RunError(f"expected the search of route {route} with seed {seed} below {runs}, got none")
    return found


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RunError(f"expected {path}, got none: the run is not finished")
    return json.loads(path.read_text())
