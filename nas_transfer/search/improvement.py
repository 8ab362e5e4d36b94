"""Expected hypervolume improvement: how much of the objective space an uncertain point would add to a front."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from nas_transfer.search.pareto import non_dominated

Array: TypeAlias = npt.NDArray[np.float64]

MOST_CELLS = 250_000
"""Largest number of cells of the grid. A front whose grid would be finer is approximated by some of its edges."""


def expected_improvement(front: Array, means: Array, deviations: Array, reference: Array) -> Array:
    """The expected growth of the hypervolume of a front by each of N points: (N,) (Emmerich et al. 2011).

    All objectives are minimised. A point is normally distributed, independently in each objective; where a deviation
    is 0, the objective is known. The edges of the front divide the space below the reference into cells. The expected
    volume that a point covers in a cell that the front leaves free is a product over objectives, so that the sum over
    cells is exact, whatever the number of objectives, up to `MOST_CELLS` cells.

    Args:
        front: values (K, M) of the front; dominated ones do no harm.
        means, deviations: those of the points: (N, M).
        reference: the worst values (M,) that count.
    """
    front = front[non_dominated(front)] if len(front) else front
    count = means.shape[1]
    most = int(MOST_CELLS ** (1 / count))
    edges, covered = [], []
    for objective in range(count):
        edge = np.unique(np.minimum(front[:, objective], reference[objective]))
        if len(edge) > most:
            edge = edge[np.linspace(0, len(edge) - 1, most).round().astype(int)]
        edge = np.concatenate([[-np.inf], edge, [reference[objective]]])
        edges.append(edge[:-1])
        below = _mean_excess(edge, means[:, objective], deviations[:, objective])
        covered.append(np.diff(below, axis=1))
    free = np.ones([len(edge) for edge in edges])
    for point in front:
        corner = [int(np.searchsorted(edge, value)) for edge, value in zip(edges, point, strict=True)]
        free[tuple(slice(first, None) for first in corner)] = 0
    total = np.broadcast_to(free, (len(means), *free.shape))
    for shares in reversed(covered):
        total = np.einsum("n...k,nk->n...", total, shares)
    return np.asarray(total, dtype=np.float64)


def _mean_excess(edges: Array, means: Array, deviations: Array) -> Array:
    """The expected distance by which each edge (E,) exceeds each point (N,), 0 where it does not: (N, E)."""
    gaps = edges - means[:, None]
    safe = np.where(deviations > 0, deviations, 1.0)[:, None]
    scaled = np.maximum(gaps / safe, -40.0)  # below, the expectation is 0
    uncertain = safe * (scaled * norm.cdf(scaled) + norm.pdf(scaled))
    return np.where(deviations[:, None] > 0, uncertain, np.maximum(gaps, 0.0))
