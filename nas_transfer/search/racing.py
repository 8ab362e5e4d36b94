"""Racing: a trial that is clearly dominated after a part of the search split is dropped, and the rest is not scored.

Hoeffding races (Maron and Moore 1994) compare models on the images that all of them have seen so far. Here a trial
races against one member of the front as it was when the trial was asked: among those that are no worse in any other
objective, the one with the best score. Every trial sees the images in the same shuffled order, so both are compared on
the same ones. At a few points on the way, the trial is dropped if the chance is small that its rival leads by luck
alone (`nas_transfer.tasks.tally.Tally.chance`).

The error rate bounds the chance that a trial is dropped which would have scored at least as much as its rival on
the whole split. It is divided by the number of points (Bonferroni), since each of them is an opportunity to err. There
is one rival, so that no further division is needed.
"""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nas_transfer.errors import RunError
from nas_transfer.runs import Direction, Evaluation, Outcome, files, read_outcome
from nas_transfer.runs.atomic import replacing
from nas_transfer.search.pareto import signs

if TYPE_CHECKING:  # `nas_transfer.search` is free of torch
    from nas_transfer.tasks.tally import Tally
    from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)

LOOKS = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Shares of the search split after which a trial may be dropped."""
LEAST_IMAGES = 32
"""A trial is dropped after no fewer images: a bootstrap of fewer is too sure."""


def looks_at(num_images: int) -> tuple[int, ...]:
    """The numbers of images after which a trial may be dropped."""
    counts = {max(LEAST_IMAGES, math.ceil(share * num_images)) for share in LOOKS}
    return tuple(sorted(count for count in counts if count < num_images))


class Dropped(Exception):
    """A trial is dominated by its rival.

    Attributes:
        share: the share of the search split that was scored.
    """

    def __init__(self, reason: str, share: float) -> None:
        super().__init__(reason)
        self.share = share


@dataclass(frozen=True)
class Race:
    """The rules of a race.

    Args:
        rate: chance of dropping a trial that scores at least as much as its rival on all images.
        folder: the run folder, which holds the outcomes and the tallies of rivals.
        directions: ``maximize`` or ``minimize`` by the name of an objective.
        score: the name of the objective that images are scored for.
        metric: the metric that is this objective.
        num_images: images of the search split.
        seed: seed of bootstrap samples.
    """

    rate: float
    folder: Path
    directions: Mapping[str, Direction]
    score: str
    metric: str
    num_images: int
    seed: int
    _arrays: dict[int, Mapping[str, np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    @property
    def looks(self) -> tuple[int, ...]:
        """The numbers of images after which a trial may be dropped."""
        return looks_at(self.num_images)

    @property
    def level(self) -> float:
        """The error rate of each look."""
        return self.rate / max(1, len(self.looks))

    def contest(self, evaluation: Evaluation, costs: Mapping[str, float]) -> Contest:
        """The race of a trial.

        Args:
            evaluation: names the members of the front.
            costs: values of all objectives but the score.
        """
        rivals = evaluation.rivals or ()
        for number in set(self._arrays).difference(rivals):
            del self._arrays[number]
        outcomes = [outcome for number in rivals if (outcome := self._outcome(number)) is not None]
        return Contest(self, evaluation.trial, rival_of(costs, outcomes, self.directions, self.score))

    def _outcome(self, number: int) -> Outcome | None:
        path = self.folder / files.trial_file(number)
        try:
            outcome = read_outcome(path)
        except RunError as error:
            logger.warning("%s: no trial races against trial %d", error, number)
            return None
        return None if outcome is None or outcome.reason is not None else outcome

    def tally(self, number: int, like: Tally) -> Tally | None:
        """The tally of all images of a rival, of the kind of another one; None if its file cannot be used."""
        path = self.folder / files.tally_file(number)
        try:
            if number not in self._arrays:
                with np.load(path, allow_pickle=False) as content:
                    self._arrays[number] = dict(content)
            tally = like.with_arrays(self._arrays[number])
            if not np.array_equal(tally.images[: len(like.images)], like.images):
                raise ValueError("it is of other images")
        except FileNotFoundError:  # another worker has found that the rival has left the front
            logger.info("%s has been deleted: no trial races against trial %d", path, number)
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be used (%s): no trial races against trial %d", path, error, number)
            return None
        return tally

    def keep(self, number: int, tally: Tally) -> None:
        """Write the tally of a trial for those that race against it."""
        with replacing(self.folder / files.tally_file(number)) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **tally.arrays())


@dataclass
class Contest:
    """The race of one trial.

    Args:
        race: its rules.
        trial: the number of the trial.
        rival: the outcome of its rival; None if no trial of the front is no worse in all other objectives.
    """

    race: Race
    trial: int
    rival: Outcome | None
    _tally: Tally | None = field(default=None, init=False)

    def look(self, task: Task, num_images: int, before: int) -> None:
        """Compare with the rival if it is time.

        Args:
            task: has predicted the first `num_images` images.
            num_images: images so far.
            before: images at the last call.

        Raises:
            Dropped: the rival is better.
        """
        due = any(before < count <= num_images for count in self.race.looks)
        if self.rival is None or not due or num_images >= self.race.num_images:
            return
        mine = self._read(task)
        rival = self.race.tally(self.rival.trial, mine)
        if rival is None:
            return
        rival = rival.part(0, num_images)
        if not rival.score > mine.score:
            return
        rng = np.random.default_rng([self.race.seed, num_images])
        if mine.chance(rival, self.race.level, rng) <= self.race.level:
            name, total = self.race.score, self.race.num_images
            raise Dropped(
                f"dropped after {num_images} of {total} images: {name} {mine.score:.6g} there, {rival.score:.6g} of "
                f"trial {self.rival.trial}, which is no worse in other objectives",
                num_images / total,
            )

    def finish(self, task: Task) -> None:
        """Keep the tally of a trial that has been scored on all images, unless its rival dominates it."""
        tally = self._read(task)
        if self.rival is None or tally.score > self.rival.values[self.race.score]:
            self.race.keep(self.trial, tally)

    def _read(self, task: Task) -> Tally:
        known = self._tally
        self._tally = task.tally() if known is None else known.joined(task.tally(len(known.images)))
        return self._tally


def rival_of(
    costs: Mapping[str, float], outcomes: Sequence[Outcome], directions: Mapping[str, Direction], score: str
) -> Outcome | None:
    """The outcome with the best score among those that are no worse in any other objective; None for none."""
    others = [name for name in directions if name != score]
    factors = dict(zip(others, signs([directions[name] for name in others]), strict=True))
    no_worse = [
        outcome
        for outcome in outcomes
        if all(factors[name] * outcome.values[name] <= factors[name] * costs[name] for name in others)
    ]
    return max(no_worse, key=lambda outcome: (outcome.values[score], -outcome.trial), default=None)


def forget_others(folder: Path, front: Collection[int]) -> None:
    """Delete the tallies of trials that have left the front, against which no trial will race."""
    kept = {folder / files.tally_file(number) for number in front}
    for path in (folder / files.RACES_FOLDER).glob("*.npz"):
        if path not in kept:
            path.unlink(missing_ok=True)
