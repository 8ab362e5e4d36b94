"""Uncertainty: rank correlations and differences with confidence intervals, and scores from other seeds."""

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
    """How well predictions (N,) rank values (N,), with a bootstrap interval; 0 for constant predictions or values."""
    rng = np.random.default_rng(seed)
    resampled = [
        kendall_tau(values[rows], predicted[rows]) for rows in rng.integers(0, len(values), (BOOTSTRAPS, len(values)))
    ]
    low, high = np.percentile(resampled, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2])
    rho = spearmanr(values, predicted).statistic if _varies(values) and _varies(predicted) else 0.0
    return RankQuality(kendall_tau(values, predicted), float(rho), float(low), float(high), len(values))


def kendall_tau(values: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64]) -> float:
    """Kendall's tau-b (Kendall 1945) of values (N,) and predictions (N,); 0 if one of them is constant."""
    return float(kendalltau(values, predicted).statistic) if _varies(values) and _varies(predicted) else 0.0


def _varies(values: npt.NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) > 0)


@dataclass(frozen=True)
class Difference:
    """A mean difference with a confidence interval from `low` to `high`."""

    mean: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval excludes 0."""
        return not self.low <= 0 <= self.high

    def __str__(self) -> str:
        return (
            f"{100 * self.mean:+.2f} ({CONFIDENCE} % interval {100 * self.low:+.2f} to {100 * self.high:+.2f}) points"
        )


def paired_difference(first: npt.ArrayLike, second: npt.ArrayLike) -> Difference:
    """The mean of the paired differences first - second, (N,) each, with a Student's t interval (Student 1908).

    Raises:
        ValueError: there are fewer than two pairs.
    """
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    count = len(differences)
    if count < 2:
        raise ValueError(f"a paired difference needs at least two pairs, got {count}")
    half_width = student.ppf(0.5 + CONFIDENCE / 200, count - 1) * differences.std(ddof=1) / np.sqrt(count)
    mean = float(differences.mean())
    return Difference(mean, mean - float(half_width), mean + float(half_width))


@dataclass(frozen=True)
class Rescored:
    """Scores of the trials of a front from other seeds than that of the search.

    The score of the search itself is left out, since selection for the front favours scores that are too high by
    chance.

    Attributes:
        scores: scores by trial number, in the order of the front. All trials have the same seeds, in the same order.
    """

    scores: Mapping[int, tuple[float, ...]]

    def neighbours(self) -> dict[tuple[int, int], Difference]:
        """The difference of each trial and the next one of the front, paired by seed."""
        return {
            (first, second): paired_difference(self.scores[first], self.scores[second])
            for first, second in itertools.pairwise(self.scores)
        }

    def shown(self, number: int) -> str:
        """Mean and standard deviation of the scores of a trial as text, in points."""
        scores = 100 * np.asarray(self.scores[number])
        return f"{scores.mean():.2f} ± {scores.std(ddof=1):.2f}"

    def repeats_of(self, number: int) -> Repeats:
        """The scores of a trial with their mean and standard deviation."""
        scores = np.asarray(self.scores[number])
        return Repeats(tuple(scores.tolist()), float(scores.mean()), float(scores.std(ddof=1)))

    def indistinguishable_from(self, number: int) -> tuple[int, ...]:
        """The neighbours of a trial on the front whose scores do not differ from its scores with confidence."""
        return tuple(
            pair[0] if pair[1] == number else pair[1]
            for pair, difference in self.neighbours().items()
            if number in pair and not difference.certain
        )

    def __str__(self) -> str:
        pairs = self.neighbours()
        alike = ", ".join(f"{first} and {second}" for (first, second), gap in pairs.items() if not gap.certain)
        seeds = len(next(iter(self.scores.values()), ()))
        return (
            f"pairs of neighbours on the front that the scores of {seeds} other seeds do not distinguish: "
            f"{alike or 'none'} ({len(pairs)} pairs in all)"
        )
