"""Expected hypervolume improvement against hypervolumes of drawn points."""

import numpy as np
import pytest

from nas_transfer.search import improvement
from nas_transfer.search.improvement import expected_improvement
from nas_transfer.search.pareto import hypervolume


def grown(front: np.ndarray, point: np.ndarray, reference: np.ndarray) -> float:
    return hypervolume(np.concatenate([front, point[None]]), reference) - hypervolume(front, reference)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_a_known_point_adds_what_the_hypervolume_grows_by(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    front, points = rng.random((12, objectives)), 1.2 * rng.random((20, objectives)) - 0.2
    reference = np.full(objectives, 0.9)  # some points of the front and some of the others lie behind it
    found = expected_improvement(front, points, np.zeros_like(points), reference)
    np.testing.assert_allclose(found, [grown(front, point, reference) for point in points], atol=1e-12)
    assert (found == 0).any() or objectives > 2
    assert (found > 0).any()


@pytest.mark.parametrize("uncertain", [(True, False), (True, True), (True, True, False)])
def test_an_uncertain_point_adds_the_mean_over_its_draws(uncertain: tuple[bool, ...]) -> None:
    rng = np.random.default_rng(0)
    front, points = rng.random((6, len(uncertain))), rng.random((3, len(uncertain)))
    deviations = np.where(uncertain, 0.2, 0.0) * np.ones_like(points)
    reference = np.full(len(uncertain), 1.1)
    found = expected_improvement(front, points, deviations, reference)
    for index, point in enumerate(points):
        draws = point + deviations[index] * rng.normal(size=(600, len(uncertain)))
        gains = [grown(front, draw, reference) for draw in draws]
        error = np.std(gains) / np.sqrt(len(gains))
        assert found[index] == pytest.approx(np.mean(gains), abs=5 * error + 1e-4)  # draws miss what is rarer


def test_the_expectation_at_a_point_of_the_front_is_above_zero() -> None:
    front = np.asarray([[0.2, 0.8], [0.5, 0.5], [0.8, 0.2]])
    known, uncertain = (
        expected_improvement(front, front, np.asarray([[deviation, 0.0]] * 3), np.ones(2)) for deviation in (0.0, 0.1)
    )
    assert (known == 0).all()
    assert (uncertain > 0).all()


def test_without_a_front_a_point_adds_its_box() -> None:
    found = expected_improvement(np.empty((0, 2)), np.asarray([[0.25, 0.5]]), np.zeros((1, 2)), np.ones(2))
    assert found == pytest.approx([0.75 * 0.5])


def test_a_front_with_too_many_cells_is_approximated(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = np.linspace(0, 1, 200)
    front, points = np.stack([costs, 1 - costs**0.5], 1), np.asarray([[0.1, 0.5], [0.3, 0.1], [0.9, 0.9]])
    exact = expected_improvement(front, points, np.zeros_like(points), np.ones(2))
    monkeypatch.setattr(improvement, "MOST_CELLS", 50**2)
    rough = expected_improvement(front, points, np.zeros_like(points), np.ones(2))
    assert rough != pytest.approx(exact, abs=1e-6)
    assert rough == pytest.approx(exact, abs=0.01)
