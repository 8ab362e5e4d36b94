"""A cheap regression that chooses among proposed archs: ridge regression on genes and pairs of genes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas_transfer.arch import Arch
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import History

RIDGE = 1.0
"""Penalty of the squared weights."""
MIN_TRIALS = 10
"""Number of trials with values from which the regression is used."""


class QuadraticScreen:
    """Ridge regression (Hoerl and Kennard 1970) of the objectives on the genes of an arch.

    The features are an indicator for each choice of each gene, and for each pair of genes the product of the positions
    of their values among the choices. Effects of single genes are therefore arbitrary, and interactions bilinear. The
    weights are fitted again whenever there are new values.

    Args:
        problem: the problem of the search. The objectives that it knows are not predicted.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        free = [(index, gene.choices) for index, gene in enumerate(problem.space.genes) if len(gene.choices) > 1]
        self._free = [index for index, _ in free]
        self._choices = [np.asarray(choices) for _, choices in free]
        self._pairs = np.triu_indices(len(free), 1)
        self._fitted = -1
        self._weights = np.empty((0, 0))

    def features(self, archs: Sequence[Arch]) -> np.ndarray:
        """The features of archs: (N, F)."""
        values = np.asarray([arch.values for arch in archs])[:, self._free]
        columns = [np.ones((len(archs), 1))]
        scaled = np.empty(values.shape)
        for column, choices in enumerate(self._choices):
            positions = np.searchsorted(choices, values[:, column])
            columns.append(np.eye(len(choices))[positions] - 1 / len(choices))
            scaled[:, column] = positions / (len(choices) - 1) - 0.5
        columns.append(scaled[:, self._pairs[0]] * scaled[:, self._pairs[1]])
        return np.concatenate(columns, 1)

    def best(self, archs: Sequence[Arch], history: History, front: np.ndarray) -> Arch:
        """Choose the arch that is predicted to lie farthest beyond the front.

        The distance is the additive epsilon indicator (Zitzler et al. 2003), with each objective divided by its
        standard deviation: the smallest shift that would make the arch dominated. The first arch is chosen if fewer
        than `MIN_TRIALS` trials have values.

        Args:
            archs: at least one arch.
            history: the trials so far.
            front: minimised values (N, M) of the current front.
        """
        if len(history.archs) < MIN_TRIALS or len(archs) == 1:
            return archs[0]
        values = history.values
        mean, deviation = values.mean(0), values.std(0) + 1e-12
        if self._fitted != len(values):
            self._fitted = len(values)
            self._weights = _ridge(self.features(history.archs), (values - mean) / deviation)
        predicted = self.features(archs) @ self._weights
        for index, exact in self.problem.known(archs).items():
            predicted[:, index] = (exact - mean[index]) / deviation[index]
        distances = (((front - mean) / deviation)[None] - predicted[:, None]).max(2).min(1)
        return archs[int(distances.argmax())]


def _ridge(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights (F, M) from features (N, F) and targets (N, M), by the smaller of the two normal equations."""
    count, width = features.shape
    if count < width:
        return features.T @ np.linalg.solve(features @ features.T + RIDGE * np.eye(count), targets)
    return np.linalg.solve(features.T @ features + RIDGE * np.eye(width), features.T @ targets)
