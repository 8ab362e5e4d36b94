"""Routes A, B and C side by side: the networks that each found, trained alike, against what finding them cost."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from nas_transfer.errors import RunError
from nas_transfer.report.collect import Run
from nas_transfer.runs import Result, files, read_front, read_result
from nas_transfer.runs.atomic import write_text
from nas_transfer.search.front import share_of_hypervolume
from nas_transfer.search.statistics import Difference, paired_difference

REFERENCE_COST = 1.1
"""Times the MACs of the largest net: where the box of the hypervolume ends; its other side is score 0."""
RETRAINED = re.compile(r"([A-Za-z][A-Za-z\d]*)-(\d+)-\d+$")
"""The name of a retrained net's run: ROUTE-SEED-INDEX."""
FOLDER_PREFIX = "compare-"
"""Pattern of the folder names that ``scripts/compare_routes.sh`` gives."""


@dataclass
class Route:
    """The nets of one route in each seed, and what finding them cost.

    Attributes:
        name: that of ``scripts/compare_routes.sh``, such as ``A`` or ``C0``.
        points: by seed, (N, 2): score on the report split and MACs of each retrained net.
        volumes: by seed, the share of the box that these dominate.
        images: by seed, loaded by all trainings before the nets were chosen.
        passes: by seed, the same times the archs that each image was run through.
        macs: by seed, multiply-accumulates of these passes: of body, neck and head of the archs that ran.
        seconds: by seed, of training and search before the nets were chosen.
    """

    name: str
    points: dict[int, npt.NDArray[np.float64]] = field(default_factory=dict)
    volumes: dict[int, float] = field(default_factory=dict)
    images: dict[int, int] = field(default_factory=dict)
    passes: dict[int, int] = field(default_factory=dict)
    macs: dict[int, int] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Several routes on one task.

    Attributes:
        task: its name.
        score_key: the metric of the scores.
        reference_macs: where the box of the hypervolume ends.
        routes: by name.
    """

    task: str
    score_key: str
    reference_macs: float
    routes: Mapping[str, Route]

    def difference(self, one: str, other: str) -> Difference | None:
        """Difference of the hypervolumes, paired by seed; None with fewer than two common seeds."""
        first, second = self.routes[one].volumes, self.routes[other].volumes
        seeds = sorted(set(first) & set(second))
        if len(seeds) < 2:
            return None
        return paired_difference([first[seed] for seed in seeds], [second[seed] for seed in seeds])


def compared_folders(runs: Sequence[Run]) -> list[tuple[Path, str]]:
    """The folder and the task of each comparison that some runs belong to."""
    folders = {
        (run.folder.parents[2], run.task): None
        for run in runs
        if run.stage == "finetune"
        and RETRAINED.match(run.folder.name)
        and len(run.folder.parents) > 2
        and run.folder.parents[2].name.startswith(FOLDER_PREFIX)
    }
    return list(folders)


def chosen_archs(run: Path, count: int) -> list[Path]:
    """The arch files of `count` trials, spread evenly over a search's front; all of a smaller front.

    Raises:
        RunError: the search has no front.
    """
    trials = read_front(run).trials
    indices = np.unique(np.linspace(0, len(trials) - 1, min(count, len(trials))).round().astype(int)).tolist()
    return [run / trials[index].file for index in indices]


def baseline_archs(run: Path) -> list[Path]:
    """Arch files of the baselines of a search, written beside those of its front: `Front.baselines`.

    Raises:
        RunError: the search has no front.
    """
    paths = []
    for trial in read_front(run).baselines:
        paths.append(run / files.ARCHS_FOLDER / f"baseline_{trial.number}.yaml")
        write_text(paths[-1], yaml.safe_dump(dict(trial.arch), sort_keys=False, default_flow_style=None))
    return paths


def compare(runs: Path, task: str, *, stage: str = "finetune", finished_only: bool = False) -> Comparison:
    """Compare the routes that ``scripts/compare_routes.sh`` ran.

    Args:
        runs: its folder. Retrained nets are the runs ``STAGE/TASK/ROUTE-SEED-INDEX``.
        task: name of the task.
        stage: of the runs with the scores of the nets.
        finished_only: leave out a route's seed of which a net has no result.

    Raises:
        RunError: a run has no result or no score, or the search of a route is missing.
    """
    nets = _retrained(runs / stage / task, finished_only)
    reference = REFERENCE_COST * max(net.costs.macs["total"] for results in nets.values() for net in results)
    routes: dict[str, Route] = {}
    for (name, seed), results in nets.items():
        route = routes.setdefault(name, Route(name))
        points = np.asarray([[_score(net, runs), net.costs.macs["total"]] for net in results])
        route.points[seed] = points
        route.volumes[seed] = share_of_hypervolume(
            points * [-1, 1], np.asarray([-1.0, 0.0]), np.asarray([0.0, reference])
        )
        before = _results_before_choice(runs, name, seed)
        route.images[seed] = sum(result.images_seen for result in before)
        route.passes[seed] = sum(result.images_seen * result.passes_per_image for result in before)
        route.macs[seed] = sum(result.training_macs for result in before)
        route.seconds[seed] = sum(result.seconds for result in before)
    score_key = next(iter(nets.values()))[0].score_key or "score"
    return Comparison(task, score_key, reference, dict(sorted(routes.items())))


def _retrained(folder: Path, finished_only: bool) -> dict[tuple[str, int], list[Result]]:
    """The results of the retrained nets by route and seed."""
    folders: dict[tuple[str, int], list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("*-*-*")):
        match = RETRAINED.match(path.name)
        if match is not None:
            folders[match[1], int(match[2])].append(path)
    nets = {
        key: [_result(path) for path in paths]
        for key, paths in folders.items()
        if not finished_only or all((path / files.RESULT).is_file() for path in paths)
    }
    if not nets:
        raise RunError(f"no retrained net in {folder}: wait for scripts/compare_routes.sh")
    return nets


def _results_before_choice(runs: Path, route: str, seed: int) -> list[Result]:
    """The results of what a route did before its nets were chosen."""
    paths = sorted(path.parent for path in runs.glob(f"*/*/{route}-{seed}/{files.RESULT}"))
    if not paths:
        raise RunError(f"no finished search of route {route} with seed {seed} below {runs}")
    return [_result(path) for path in paths]


def _result(folder: Path) -> Result:
    result = read_result(folder)
    if result is None:
        raise RunError(f"{folder / files.RESULT} is missing: the run is not finished")
    return result


def _score(net: Result, runs: Path) -> float:
    if net.score is None:
        raise RunError(f"a retrained net of {net.task} in {runs} has no score")
    return net.score
