"""A cheap guess at what archs will score, to choose among proposals: ridge regression on genes and pairs of genes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import History
from nas_transfer.space import Arch

RIDGE = 1.0
LEAST_TOLD = 10


class QuadraticScreen:
    """Predicts the objectives of an arch from those that were told (Hoerl and Kennard 1970, ridge regression).

    Features are an indicator for each choice of each gene, and the product of each two genes' places among their
    choices: effects of single genes are free, interactions are bilinear. Fitted anew whenever something was told.

    Args:
        problem: of the archs; objectives that it knows are not predicted.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        free = [(k, gene.choices) for k, gene in enumerate(problem.space.genes) if len(gene.choices) > 1]
        self._places = [k for k, _ in free]
        self._choices = [np.asarray(choices) for _, choices in free]
        self._pairs = np.triu_indices(len(free), 1)
        self._fitted = -1
        self._weights = np.empty((0, 0))

    def features(self, archs: Sequence[Arch]) -> np.ndarray:
        """(N, F)."""
        values = np.asarray([arch.values for arch in archs])[:, self._places]
        columns = [np.ones((len(archs), 1))]
        scaled = np.empty(values.shape)
        for number, choices in enumerate(self._choices):
            index = np.searchsorted(choices, values[:, number])
            columns.append(np.eye(len(choices))[index] - 1 / len(choices))
            scaled[:, number] = index / (len(choices) - 1) - 0.5
        columns.append(scaled[:, self._pairs[0]] * scaled[:, self._pairs[1]])
        return np.concatenate(columns, 1)

    def best(self, archs: Sequence[Arch], history: History, front: np.ndarray) -> Arch:
        """The arch that is predicted to go farthest beyond the front; the first one while little is known.

        How far is the additive epsilon indicator (Zitzler et al. 2003) after scaling every objective to its deviation:
        the least shift that would make the arch dominated.

        Args:
            archs: at least one.
            front: minimised values (N, M) of the current front.
        """
        if len(history.archs) < LEAST_TOLD or len(archs) == 1:
            return archs[0]
        values = history.values
        mean, deviation = values.mean(0), values.std(0) + 1e-12
        if self._fitted != len(values):
            self._fitted = len(values)
            self._weights = _ridge(self.features(history.archs), (values - mean) / deviation)
        predicted = self.features(archs) @ self._weights
        for place, exact in self.problem.known(archs).items():
            predicted[:, place] = (exact - mean[place]) / deviation[place]
        ahead = (((front - mean) / deviation)[None] - predicted[:, None]).max(2).min(1)
        return archs[int(ahead.argmax())]


def _ridge(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights (F, M), from whichever of the two normal equations is smaller."""
    count, width = features.shape
    if count < width:
        return features.T @ np.linalg.solve(features @ features.T + RIDGE * np.eye(count), targets)
    return np.linalg.solve(features.T @ features + RIDGE * np.eye(width), features.T @ targets)
