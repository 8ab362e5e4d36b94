"""What a network did in each image of a split, from which the score of any sample of these images follows.

Two networks that have seen the same images are compared image by image: what both find easy or hard cancels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.stats import binom
from typing_extensions import Self

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]

DRAWS_PER_CHANCE = 5
"""Bootstrap samples, as a multiple of the inverse of the smallest chance that matters."""


@dataclass(frozen=True, eq=False)
class Tally(ABC):
    """What the score of a network needs of each image.

    Attributes:
        images: the ids (N,) of the images, in the order in which they were predicted.
    """

    images: Integers

    @abstractmethod
    def scores(self, weights: Integers) -> Floats:
        """The scores (B,) of B samples, in which each image occurs as often as `weights` (B, N) says.

        NaN for a sample without annotations.
        """

    @abstractmethod
    def part(self, start: int, end: int | None = None) -> Self:
        """The tally of the images from position `start` on, up to `end` if it is given."""

    @abstractmethod
    def joined(self, later: Self) -> Self:
        """The tally of these images and of later ones."""

    @property
    def score(self) -> float:
        """The score of all images."""
        return float(self.scores(np.ones((1, len(self.images)), dtype=np.int64))[0])

    def chance(self, rival: Self, level: float, rng: np.random.Generator) -> float:
        """The chance that a rival leads on these images although it is no better: small where it is better.

        It is the share of paired bootstrap samples (Efron 1979) in which the rival does not lead: both networks are
        scored on the same samples, drawn with replacement from the images.

        Args:
            rival: the tally of the same images of another network.
            level: the chance below which a decision is made; it sets the number of samples.
            rng: draws the samples.
        """
        draws = int(np.ceil(DRAWS_PER_CHANCE / level))
        count = len(self.images)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=draws)
        leads = rival.scores(weights) > self.scores(weights)
        return (1 + int((~leads).sum())) / (draws + 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """All values, for a file."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Self:
        """A tally of this kind with the values of `arrays`.

        Raises:
            KeyError: one of them is missing.
            ValueError: one has another type or other dimensions than here.
        """
        values = {}
        for field in fields(self):
            mine, given = np.asarray(getattr(self, field.name)), arrays[field.name]
            if given.dtype != mine.dtype or given.ndim != mine.ndim:
                raise ValueError(f"{field.name} is of another kind")
            values[field.name] = given if mine.ndim else given.item()
        return replace(self, **values)


@dataclass(frozen=True, eq=False)
class HitTally(Tally):
    """Which images a classifier recognised: the score is their share.

    Attributes:
        hits: whether each image (N,) was recognised.
    """

    hits: Booleans

    def scores(self, weights: Integers) -> Floats:
        """The shares of recognised images."""
        return (weights @ self.hits.astype(np.float64)) / weights.sum(1)

    def part(self, start: int, end: int | None = None) -> HitTally:
        """The tally of some images in a row."""
        return HitTally(self.images[start:end], self.hits[start:end])

    def joined(self, later: HitTally) -> HitTally:
        """The tally of these images and of later ones."""
        return HitTally(np.append(self.images, later.images), np.append(self.hits, later.hits))

    def chance(self, rival: HitTally, level: float, rng: np.random.Generator) -> float:
        """The same by the exact sign test on the images that only one of both recognised (McNemar 1947).

        A bootstrap would be too sure where these images are few.
        """
        ahead, behind = int((rival.hits & ~self.hits).sum()), int((self.hits & ~rival.hits).sum())
        return float(binom.sf(ahead - 1, ahead + behind, 0.5))


@dataclass(frozen=True, eq=False)
class PixelTally(Tally):
    """The pixels of a segmentation network by class.

    Attributes:
        counts: for each image and class pixels that were found, annotated and predicted, (N, 3, C).
        metric: ``miou``, ``pixel_accuracy``, ``mean_accuracy``, or the index of the class whose IoU is the score.
    """

    counts: Integers
    metric: str

    def scores(self, weights: Integers) -> Floats:
        """The scores of the sums of the counts."""
        count, rows, classes = self.counts.shape
        totals = weights.astype(np.float64) @ self.counts.reshape(count, rows * classes).astype(np.float64)
        hits, truth, predicted = totals.reshape(-1, rows, classes).transpose(1, 0, 2)
        union = truth + predicted - hits
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.metric == "pixel_accuracy":
                return hits.sum(1) / truth.sum(1)
            if self.metric == "miou":
                return _mean_where(hits / union, union > 0)
            if self.metric == "mean_accuracy":
                return _mean_where(hits / truth, truth > 0)
            return hits[:, int(self.metric)] / union[:, int(self.metric)]

    def part(self, start: int, end: int | None = None) -> PixelTally:
        """The tally of some images in a row."""
        return replace(self, images=self.images[start:end], counts=self.counts[start:end])

    def joined(self, later: PixelTally) -> PixelTally:
        """The tally of these images and of later ones."""
        counts = np.concatenate([self.counts, later.counts])
        return replace(self, images=np.append(self.images, later.images), counts=counts)


def _mean_where(values: Floats, defined: Booleans) -> Floats:
    return np.where(defined, values, 0).sum(1) / defined.sum(1)
