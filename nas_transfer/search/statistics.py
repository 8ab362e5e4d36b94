"""How sure a number is: rank correlations and differences with intervals, a front scored again from other seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau, spearmanr
from scipy.stats import t as student

from nas_transfer.runs import CONFIDENCE, RankQuality, Repeats

BOOTSTRAPS = 200


def rank_quality(values: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64], seed: int) -> RankQuality:
    """How well predictions (N,) rank values (N,); constants rank nothing: 0."""
    rng = np.random.default_rng(seed)
    resampled = [
        kendall_tau(values[rows], predicted[rows]) for rows in rng.integers(0, len(values), (BOOTSTRAPS, len(values)))
    ]
    low, high = np.percentile(resampled, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2])
    rho = spearmanr(values, predicted).statistic if _varies(values) and _varies(predicted) else 0.0
    return RankQuality(kendall_tau(values, predicted), float(rho), float(low), float(high), len(values))


def kendall_tau(values: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64]) -> float:
    """Kendall's tau-b (Kendall 1945); 0 where one of the two does not vary."""
    return float(kendalltau(values, predicted).statistic) if _varies(values) and _varies(predicted) else 0.0


def _varies(values: npt.NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) > 0)


@dataclass(frozen=True)
class Difference:
    """A mean difference with its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.low <= 0 <= self.high

    def __str__(self) -> str:
        return (
            f"{100 * self.mean:+.2f} ({CONFIDENCE} % interval {100 * self.low:+.2f} to {100 * self.high:+.2f}) points"
        )


def paired_difference(first: npt.ArrayLike, second: npt.ArrayLike) -> Difference:
    """The mean of first - second, (N,) each, made in pairs; Student's t interval (Student 1908).

    Raises:
        ValueError: fewer than two pairs.
    """
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    count = len(differences)
    if count < 2:
        raise ValueError(f"expected at least two pairs, got {count}")
    reach = student.ppf(0.5 + CONFIDENCE / 200, count - 1) * differences.std(ddof=1) / np.sqrt(count)
    mean = float(differences.mean())
    return Difference(mean, mean - float(reach), mean + float(reach))


@dataclass(frozen=True)
class Rescored:
    """New scores of a front's members.

    The score by which a member came onto the front is not among them: of many, the luckiest come there.

    Attributes:
        scores: by trial, in the order of the front, one for each seed; the seeds are the same for all trials.
    """

    scores: Mapping[int, tuple[float, ...]]

    def neighbours(self) -> dict[tuple[int, int], Difference]:
        """The difference of each member and the next one of the front, in pairs of the same seed."""
        numbers = list(self.scores)
        return {
            (one, other): paired_difference(self.scores[one], self.scores[other])
            for one, other in itertools.pairwise(numbers)
        }

    def shown(self, number: int) -> str:
        """Mean and standard deviation of a trial's scores, in points."""
        scores = 100 * np.asarray(self.scores[number])
        return f"{scores.mean():.2f} ± {scores.std(ddof=1):.2f}"

    def repeats_of(self, number: int) -> Repeats:
        """A trial's scores with their mean and standard deviation."""
        scores = np.asarray(self.scores[number])
        return Repeats(tuple(scores.tolist()), float(scores.mean()), float(scores.std(ddof=1)))

    def indistinguishable_from(self, number: int) -> tuple[int, ...]:
        """The trial's neighbours on the front that these scores cannot tell it from."""
        return tuple(
            pair[0] if pair[1] == number else pair[1]
            for pair, difference in self.neighbours().items()
            if number in pair and not difference.certain
        )

    def __str__(self) -> str:
        pairs = self.neighbours()
        alike = ", ".join(f"{one} and {other}" for (one, other), found in pairs.items() if not found.certain)
        seeds = len(next(iter(self.scores.values()), ()))
        return (
            f"neighbours that {seeds} other seeds cannot tell apart by score: {alike or 'none'} of {len(pairs)} pairs"
        )
