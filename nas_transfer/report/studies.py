"""A search's study as its files tell it: the front, every told trial, and how the hypervolume grew."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas_transfer.report.collect import (
    STUDY_STAGES,
    WARM_START_FILE,
    Content,
    Run,
    are_costs,
    is_number,
    parse_json,
    read_json,
    trial_files,
)
from nas_transfer.search.front import FRONT_FILE, share_of_hypervolume
from nas_transfer.search.pareto import hypervolume
from nas_transfer.search.samplers.predicted_front import PREDICTOR_LINE
from nas_transfer.search.study import signs
from nas_transfer.search.work import JOBS, SPENT

SCORE = "score"
DIRECTIONS = {"maximize", "minimize"}
TRUST_FILE = "trust.json"
PREDICTOR = re.compile(PREDICTOR_LINE % (r"(\S+)", "(.+)") + "$", re.MULTILINE)


@dataclass(frozen=True)
class Told:
    """One evaluated trial.

    Attributes:
        number: of the trial.
        values: of the objectives by name, empty without a score.
        reason: why it has none.
        left_out: it was stopped by a limit or between rungs, and did not fail.
        seconds, images: what it cost.
        arch: dict form, None where the job's file is gone.
    """

    number: int
    values: Mapping[str, float]
    reason: str | None
    left_out: bool
    seconds: float
    images: int
    arch: Content | None


@dataclass(frozen=True)
class Member:
    """One net of the front, as ``front.json`` holds it.

    Attributes:
        number: of its trial.
        values: of the objectives by name.
        costs, arch: dict forms.
        again: mean, standard deviation and number of its scores from other seeds, None without any.
        alike: trials beside it on the front that those scores cannot tell it from.
    """

    number: int
    values: Mapping[str, float]
    costs: Content
    arch: Content
    again: tuple[float, float, int] | None
    alike: tuple[int, ...]


@dataclass(frozen=True)
class Growth:
    """The share of the hypervolume after each evaluated trial.

    Attributes:
        shares: (T,) fractions.
        seconds, images: (T,) spent until then, what came before the first trial included.
        box: in words, the box of which these are shares.
    """

    shares: tuple[float, ...]
    seconds: tuple[float, ...]
    images: tuple[int, ...]
    box: str


@dataclass(frozen=True)
class StudyRecord:
    """A search or proxy run.

    Attributes:
        run: its folder.
        directions: ``maximize`` or ``minimize`` by objective.
        picked: number of the picked trial, None before the end.
        members: of the front, best first objective first.
        told: all evaluated trials by number.
        before: seconds and images spent before the first trial.
        trust: how short trainings rank against longer ones, ``trust.json``'s content.
        predictor: name and cross-validated quality of the last predictor, from the log.
        problems: what of the study is missing or broken.
    """

    run: Run
    directions: Mapping[str, str]
    picked: int | None
    members: tuple[Member, ...]
    told: tuple[Told, ...]
    before: tuple[float, int]
    trust: Content | None
    predictor: tuple[str, str] | None
    problems: tuple[str, ...]

    def member(self, number: int | None) -> Member | None:
        """The front's member of a trial."""
        return next((member for member in self.members if member.number == number), None)


def read_study(run: Run) -> StudyRecord | None:
    """The study of a search's run; None for another stage's run, or without a usable ``front.json``."""
    if run.stage not in STUDY_STAGES or not (run.folder / FRONT_FILE).is_file():
        return None
    problems: list[str] = []
    front = read_json(run.folder / FRONT_FILE, problems)
    directions = {} if front is None else front.get("objectives")
    known = isinstance(directions, dict) and directions and set(map(str, directions.values())) <= DIRECTIONS
    if front is None or not isinstance(directions, dict) or not known or not isinstance(front.get("front"), list):
        problems = problems or [f"{FRONT_FILE} holds no objectives or no front"]
        return StudyRecord(run, {}, None, (), (), (0.0, 0), None, None, tuple(problems))
    members = tuple(member for entry in front["front"] if (member := _member(entry, directions)) is not None)
    if len(members) < len(front["front"]):
        problems.append(f"{len(front['front']) - len(members)} members in {FRONT_FILE} cannot be used")
    told = read_told(run.folder, directions, problems)
    counted = ((run.result or {}).get("search") or {}).get("trials")
    if is_number(counted) and counted > len(told):
        problems.append(f"{counted - len(told)} of {counted} trials have no usable file in trials/")
    picked = front.get("picked")
    trust = _trust(run, problems)
    return StudyRecord(
        run, directions, picked if isinstance(picked, int) else None, members, told, _before(run.folder, problems),
        trust, _predictor(run.folder), tuple(problems),
    )  # fmt: skip


def _member(entry: Any, directions: Mapping[str, str]) -> Member | None:
    try:
        values = {name: float(entry["values"][name]) for name in directions}
        repeats = entry.get("repeats")
        again = None if repeats is None else (float(repeats["mean"]), float(repeats["std"]), len(repeats["scores"]))
        alike = tuple(int(number) for number in entry.get("cannot_be_told_from", ()))
        costs, arch = entry["costs"], entry["arch"]
        if not (are_costs(costs) and isinstance(arch, dict)):
            return None
        return Member(int(entry["trial"]), values, costs, arch, again, alike)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def read_told(folder: Path, directions: Mapping[str, str], problems: list[str]) -> tuple[Told, ...]:
    """Every trial with a file, by number."""
    archs = _archs(folder)
    found = []
    for path in trial_files(folder):
        content = read_json(path, problems)
        if content is None:
            continue
        given = content.get("values")
        values = given if isinstance(given, dict) and all(is_number(given.get(name)) for name in directions) else {}
        reason = content.get("reason")
        if not values and not reason:
            reason = "no numbers as values"
        seconds, images = content.get("seconds"), content.get("images")
        found.append(
            Told(
                int(path.stem), {} if reason else {name: float(values[name]) for name in directions}, reason,
                bool(content.get("left_out")), float(seconds) if is_number(seconds) else 0.0,
                int(images) if is_number(images) else 0, archs.get(int(path.stem)),
            )
        )  # fmt: skip
    return tuple(found)


def _archs(folder: Path) -> dict[int, Content]:
    """The arch of each trial from the files of the jobs."""
    found: dict[int, Content] = {}
    for path in folder.glob(f"{JOBS}/*.json"):
        try:
            works = parse_json(path.read_text())["works"]
            found |= {int(work["number"]): work["arch"] for work in works if isinstance(work["arch"], dict)}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it is only said beside the point
    return found


def _before(folder: Path, problems: list[str]) -> tuple[float, int]:
    path = (folder / WARM_START_FILE).with_suffix(SPENT)
    content = read_json(path, problems) if path.exists() else {}
    seconds, images = (content or {}).get("seconds"), (content or {}).get("images")
    return (float(seconds) if is_number(seconds) else 0.0, int(images) if is_number(images) else 0)


def _trust(run: Run, problems: list[str]) -> Content | None:
    path = run.folder / TRUST_FILE
    found = read_json(path, problems) if path.exists() else ((run.result or {}).get("search") or {}).get("validation")
    if found is None:
        return None
    quality = found.get("quality") if isinstance(found, dict) else None
    whole = isinstance(quality, dict) and all(is_number(quality.get(key)) for key in ("tau", "rho", "low", "high"))
    lists = [found.get(key) for key in ("trials", "short", "long")] if isinstance(found, dict) else []
    pairs_up = all(
        isinstance(given, list) and len(given) == len(lists[0] or ()) and all(map(is_number, given)) for given in lists
    )
    if not whole or not pairs_up:
        problems.append(f"{TRUST_FILE} holds no rank correlation")
        return None
    return dict(found)


def _predictor(folder: Path) -> tuple[str, str] | None:
    try:
        found = PREDICTOR.findall((folder / "log.txt").read_text(errors="replace"))
    except OSError:
        return None
    return found[-1] if found else None


def growth(study: StudyRecord) -> Growth | None:
    """How the hypervolume grew; None before the first score.

    The box is the search's own, from 0 to the ends that ``result.json`` states. An older one does not: a single cost's
    end then follows from its hypervolume. Without a result, or with several costs, they end at the largest told.
    """
    names = tuple(study.directions)
    scored = [trial for trial in study.told if trial.values]
    if not scored:
        return None
    factors = np.asarray(signs(list(study.directions.values())))
    points = np.asarray([[trial.values[name] for name in names] for trial in scored]) * factors
    ends, whose = _ends(study, points, factors)
    ideal, reference = _corners(factors, ends)
    if not (reference > ideal).all():
        return None
    shares, best = [], np.empty((0, len(names)))
    current, place = 0.0, 0
    for trial in study.told:
        if trial.values:
            point = points[place]
            place += 1
            if not (best <= point).all(1).any():
                best = np.vstack([best[~(best >= point).all(1)], point])
                current = share_of_hypervolume(best, ideal, reference)
        shares.append(current)
    seconds = study.before[0] + np.cumsum([trial.seconds for trial in study.told])
    images = study.before[1] + np.cumsum([trial.images for trial in study.told])
    box = ", ".join(f"{name} from 0 to {_short(end)}" for name, end in zip(names, ends.tolist(), strict=True))
    return Growth(tuple(shares), tuple(seconds.tolist()), tuple(images.tolist()), f"{box} ({whose})")


def _ends(study: StudyRecord, points: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, str]:
    """Where the box ends in each objective (M,), and whose ends these are."""
    names = tuple(study.directions)
    search = (study.run.result or {}).get("search") or {}
    stated, share = search.get("ends"), search.get("hypervolume")
    if isinstance(stated, dict) and all(is_number(stated.get(name)) for name in names):
        return np.asarray([float(stated[name]) for name in names]), "as in result.json"
    ends = np.asarray([1.0 if name == SCORE else abs(points[:, place]).max() for place, name in enumerate(names)])
    costs = [place for place, name in enumerate(names) if name != SCORE]
    if is_number(share) and len(costs) == 1 and factors[costs[0]] > 0:
        end = _solved_end(points, factors, ends, costs[0], float(share))
        if end is not None:
            ends[costs[0]] = end
            return ends, "as in result.json"
    return ends, "the largest told so far"


def _short(value: float) -> str:
    return f"{value / 1e6:.3f} M" if value >= 1e6 else f"{value:.5g}"


def _corners(factors: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ideal and reference point (M,) each, minimised: a maximised objective runs from 0 to its end, then the ideal."""
    return np.where(factors < 0, -ends, 0.0), np.where(factors < 0, 0.0, ends)


def _solved_end(points: np.ndarray, factors: np.ndarray, ends: np.ndarray, place: int, share: float) -> float | None:
    """Where a cost's side of the box ends, if the points (N, M) dominate this share of it.

    Beyond all points the volume is a + b x end, so that share x (other sides) x end = a + b x end.
    """
    volumes = []
    trial_ends = (ends[place], 2 * ends[place])
    for end in trial_ends:
        _, reference = _corners(factors, np.where(np.arange(len(ends)) == place, end, ends))
        volumes.append(hypervolume(points, reference))
    slope = (volumes[1] - volumes[0]) / (trial_ends[1] - trial_ends[0])
    offset = volumes[0] - slope * trial_ends[0]
    denominator = share * float(np.prod(np.delete(ends, place))) - slope
    if denominator == 0:
        return None
    end = offset / denominator
    return end if np.isfinite(end) and end >= ends[place] * (1 - 1e-9) else None
