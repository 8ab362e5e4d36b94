"""The range of costs that a search can attain, against all archs of small spaces."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from nas_transfer.arch import Arch, Gene
from nas_transfer.errors import ConfigError
from nas_transfer.search.attainable import CostRange, attainable
from nas_transfer.search.problem import Costs, Limit, Problem
from nas_transfer.space import SearchSpace

SPACE = SearchSpace("small", tuple(Gene(name, (1, 2, 4, 7)) for name in ("a", "b", "c", "d")))


def costs(archs: Sequence[Arch]) -> Costs:
    values = np.array([arch.values for arch in archs], dtype=float)
    return {"macs": 1e6 * values.prod(1), "params": values @ [3.0, 1.0, 1.0, 5.0]}


def extremes(problem: Problem, name: str) -> tuple[float, float]:
    archs = [SPACE.arch(values) for values in product(*(gene.choices for gene in SPACE.genes))]
    archs = [arch for arch in archs if all(arch[gene] == value for gene, value in problem.frozen.items())]
    values = costs([arch for arch, allowed in zip(archs, problem.feasible(archs), strict=True) if allowed])[name]
    return float(values.min()), float(values.max())


@pytest.mark.parametrize(
    ("frozen", "limits"),
    [
        ({}, {}),
        ({"b": 2}, {}),
        ({"b": 2, "d": 1}, {"macs": Limit(high=60e6)}),
        ({}, {"macs": Limit(high=200e6)}),
        ({}, {"macs": Limit(low=100e6)}),
        ({}, {"params": Limit(15, 30)}),
    ],
)
def test_the_range_is_that_of_all_archs(frozen: dict[str, int], limits: dict[str, Limit]) -> None:
    problem = Problem(SPACE, frozen, limits, costs)
    for name, reach in attainable(problem, costs).items():
        low, high = extremes(problem, name)
        if not limits:
            assert (reach.low, reach.high) == (low, high)
        assert low <= reach.low <= reach.high <= high
        assert reach.low <= 1.5 * low
        assert reach.high >= 0.65 * high  # each step of these genes almost doubles a cost


def test_a_space_that_cannot_keep_its_limits_is_an_error() -> None:
    with pytest.raises(ConfigError, match="widen the constraints"):
        attainable(Problem(SPACE, {}, {"macs": Limit(high=0.5)}, costs), costs)


def test_a_range_reads_as_a_sentence_would_say_it() -> None:
    assert str(CostRange(412.3e6, 6395e6)) == "412 M to 6395 M (x15.5)"
    assert str(CostRange(0.52e6, 12.25e6)) == "0.52 M to 12.2 M (x23.6)"
    assert str(CostRange(3.0, 150.0)) == "3 to 150 (x50)"
    assert CostRange(0.0, 2.0).ratio == float("inf")
