"""Fronts and hypervolumes against brute force."""

import itertools

import numpy as np
import pytest

from nas_transfer.search.pareto import crowding, highest_trade_off, hypervolume, knee, non_dominated


def brute_force_front(points: np.ndarray) -> list[bool]:
    return [not any((other <= point).all() and (other < point).any() for other in points) for point in points]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_front_is_what_comparing_all_pairs_says_with_ties_and_twins(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    for _ in range(30):
        points = rng.integers(0, 6, (40, objectives)).astype(float)
        assert non_dominated(points).tolist() == brute_force_front(points)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_hypervolume_is_the_number_of_dominated_cells_of_a_grid(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    for _ in range(20):
        points = rng.integers(0, 7, (8, objectives)).astype(float)
        reference = np.full(objectives, 5.0)
        cells = sum(
            any((point <= cell).all() for point in points) for cell in itertools.product(range(5), repeat=objectives)
        )
        assert hypervolume(points, reference) == pytest.approx(cells)


def test_a_set_without_a_point_below_the_reference_has_no_volume() -> None:
    assert hypervolume(np.array([[5.0, 1.0], [6.0, 0.0]]), np.array([5.0, 5.0])) == 0.0
    assert hypervolume(np.empty((0, 2)), np.array([5.0, 5.0])) == 0.0


def test_crowding_is_the_sum_of_scaled_gaps_to_the_neighbours() -> None:
    points = np.array([[0.0, 10.0], [1.0, 4.0], [3.0, 2.0], [4.0, 0.0]])
    expected = [np.inf, 3 / 4 + 8 / 10, 3 / 4 + 4 / 10, np.inf]
    np.testing.assert_allclose(crowding(points), expected)


def test_the_knee_and_the_trade_off_find_the_bend() -> None:
    bent = np.array([[0.0, 10.0], [1.0, 3.0], [2.0, 2.5], [6.0, 1.0], [10.0, 0.0]])
    assert knee(bent) == 1
    assert highest_trade_off(bent) == 1
    assert knee(bent[:1]) == highest_trade_off(bent[:1]) == 0
