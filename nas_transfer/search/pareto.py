"""Trade-offs between objectives: non-dominated points, hypervolume, and rules that choose one point of a front.

All objectives are minimised: pass the negative of a maximised one. All values must be finite.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from nas_transfer.runs import Direction


def signs(directions: Iterable[Direction]) -> list[float]:
    """Factors that turn values of objectives into minimised ones: -1 for a maximised objective."""
    return [-1.0 if direction == "maximize" else 1.0 for direction in directions]


def non_dominated(points: np.ndarray) -> npt.NDArray[np.bool_]:
    """Which points (N, M) no other point dominates: bool (N,). Equal points do not dominate each other."""
    count = len(points)
    kept = np.ones(count, dtype=bool)
    if points.shape[1] == 2:
        # Sort by the first objective, then the second: a point is kept if its second value is the best so far.
        order = np.lexsort((points[:, 1], points[:, 0]))
        best, best_point = np.inf, np.full(2, np.nan)
        for index in order:
            point = points[index]
            kept[index] = point[1] < best or bool((point == best_point).all())
            if point[1] < best:
                best, best_point = point[1], point
        return kept
    for index in range(count):
        no_worse = (points <= points[index]).all(1)
        better = (points < points[index]).any(1)
        kept[index] = not (no_worse & better).any()
    return kept


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """The volume that the points (N, M) dominate below the reference (M,), exact, by slicing (While et al. 2006).

    A point that is not below the reference in every objective contributes nothing.
    """
    inside = points[(points < reference).all(1)]
    if not len(inside):
        return 0.0
    front = np.unique(inside[non_dominated(inside)], axis=0)  # sorted by the first objective
    if front.shape[1] == 1:
        return float(reference[0] - front[0, 0])
    if front.shape[1] == 2:
        heights = np.append(reference[1], front[:-1, 1]) - front[:, 1]
        return float(((reference[0] - front[:, 0]) * heights).sum())
    edges = np.append(front[:, 0], reference[0])
    return sum(
        float(edges[index + 1] - edges[index]) * hypervolume(front[: index + 1, 1:], reference[1:])
        for index in range(len(front))
        if edges[index + 1] > edges[index]
    )


def normalised(points: np.ndarray) -> np.ndarray:
    """Scale points (N, M) to 0-1 in each objective. If all points are equal in an objective, it becomes 0."""
    low, high = points.min(0), points.max(0)
    return (points - low) / np.where(high > low, high - low, 1.0)


def crowding(points: np.ndarray) -> np.ndarray:
    """Crowding distance (N,) of points (N, M) (Deb et al. 2002); infinite at both ends of each objective."""
    count, objectives = points.shape
    distance = np.zeros(count)
    scaled = normalised(points)
    for objective in range(objectives):
        order = np.argsort(scaled[:, objective], kind="stable")
        values = scaled[order, objective]
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += values[2:] - values[:-2]
    return distance


def by_rank(points: np.ndarray) -> list[int]:
    """Rank points (N, M) as NSGA-II does (Deb et al. 2002): front after front, the least crowded first within each."""
    remaining = np.arange(len(points))
    order: list[int] = []
    while len(remaining):
        front = remaining[non_dominated(points[remaining])]
        distances = crowding(points[front])
        order += front[np.argsort(-distances, kind="stable")].tolist()
        remaining = np.setdiff1d(remaining, front)
    return order


def knee(front: np.ndarray) -> int:
    """The index of the point that lies farthest below the plane through the best points of each objective (Das 1999).

    Args:
        front: (N, M), non-dominated.
    """
    scaled = normalised(front)
    # After scaling, the plane through the ends is roughly sum(x) = const, so the smallest sum lies farthest below it.
    return int(scaled.sum(1).argmin())


def highest_trade_off(front: np.ndarray) -> int:
    """The index of the point with the highest trade-off (Rachmawati and Srinivasan 2009).

    The trade-off between two points is the loss of moving from the first to the second divided by the gain, both summed
    over the scaled objectives. The trade-off of a point is the smallest one over all other points.

    Args:
        front: (N, M), non-dominated.
    """
    if len(front) == 1:
        return 0
    scaled = normalised(front)
    trade_offs = []
    for index in range(len(scaled)):
        change = np.delete(scaled, index, 0) - scaled[index]
        loss, gain = np.maximum(change, 0).sum(1), np.maximum(-change, 0).sum(1)
        trade_offs.append(np.min(np.divide(loss, gain, out=np.full_like(loss, np.inf), where=gain > 0)))
    return int(np.argmax(trade_offs))
