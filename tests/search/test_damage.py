"""Sums of damages, the line that estimates scores from them, and what the predictor makes of them."""

import itertools

import numpy as np
import pytest

from nas_transfer.arch import Gene
from nas_transfer.errors import ConfigError, RunError
from nas_transfer.runs import ChoiceDamage, DamageTable
from nas_transfer.search.damage import ArchDamage, fit_additive
from nas_transfer.search.predictors import Additive, choose, damage_feature, features_of
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import History
from nas_transfer.search.samplers.predicted_front import PredictedFront
from nas_transfer.space import SearchSpace

SPACE = SearchSpace(
    "tiny",
    (
        Gene("depth.a", (1, 2)), Gene("kernel_size.a.0", (3, 5)), Gene("kernel_size.a.1", (3, 5), ("depth.a", 2)),
        Gene("width.b", (8, 16, 24)), Gene("proposals", (10, 20)),
    ),
)  # fmt: skip
DAMAGES = {
    ("depth.a", 1): 0.5, ("kernel_size.a.0", 3): 0.1, ("kernel_size.a.1", 3): 0.2, ("width.b", 8): 0.4,
    ("width.b", 16): 0.15,
}  # fmt: skip


def table(damages: dict[tuple[str, int], float], space: str = "tiny") -> DamageTable:
    choices = tuple(ChoiceDamage(gene, value, 2 * damage, damage) for (gene, value), damage in damages.items())
    return DamageTable(space, choices, "0" * 64, 100, 0, 1.0)


def test_the_damage_of_an_arch_is_the_sum_over_its_choices_that_have_an_effect() -> None:
    damage = ArchDamage(SPACE, table(DAMAGES))
    archs = [SPACE.arch(values) for values in itertools.product(*(gene.choices for gene in SPACE.genes))]
    for arch, found in zip(archs, damage(archs), strict=True):
        expected = sum(DAMAGES.get((name, arch[name]), 0.0) for name in SPACE.names if name != "kernel_size.a.1")
        if arch["depth.a"] == 2:
            expected += DAMAGES.get(("kernel_size.a.1", arch["kernel_size.a.1"]), 0.0)
        assert found == pytest.approx(expected)
    assert damage([SPACE.largest()]).tolist() == [0.0]
    assert ArchDamage(SPACE, table(DAMAGES), "features")(archs) == pytest.approx(2 * damage(archs))


def test_a_table_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RunError, match="must be of space 'tiny', got those of space 'other'"):
        ArchDamage(SPACE, table(DAMAGES, "other"))
    with pytest.raises(RunError, match=r"do not fit the space: gene 'width\.b' of space 'tiny' must be one of"):
        ArchDamage(SPACE, table({("width.b", 12): 0.1}))
    with pytest.raises(RunError, match=r"a gene must be one of space 'tiny', got 'width\.c'"):
        ArchDamage(SPACE, table({("width.c", 8): 0.1}))
    partial = ArchDamage(SPACE, table({("width.b", 16): 0.1}))
    with pytest.raises(ConfigError, match=r"the damage of width\.b=8 was not measured, only those of \[16, 24\]"):
        partial([SPACE.smallest()])


def test_the_line_is_the_least_squares_line_through_the_whole_network() -> None:
    rng = np.random.default_rng(0)
    damages = np.concatenate([[0.0], rng.random(20)])
    scores = 0.8 - 0.3 * damages + 0.02 * rng.standard_normal(21)
    line = fit_additive(damages, scores)
    slope = np.linalg.lstsq(damages[1:, None], scores[1:] - scores[0], rcond=None)[0][0]
    assert line.whole == scores[0]
    assert line.factor == pytest.approx(-slope)
    free = fit_additive(damages[1:], scores[1:])
    gradient, intercept = np.polyfit(damages[1:], scores[1:], 1)
    assert (free.whole, free.factor) == pytest.approx((intercept, -gradient))
    assert free(np.asarray([0.5])) == pytest.approx([intercept + 0.5 * gradient])


def test_the_factor_is_never_negative() -> None:
    line = fit_additive(np.asarray([0.0, 0.5, 1.0]), np.asarray([0.5, 0.6, 0.7]))
    assert line.factor == 0
    assert fit_additive(np.zeros(3), np.asarray([0.1, 0.2, 0.3])).factor == 0


def test_the_predictor_reads_the_damage_from_the_last_feature() -> None:
    damages = np.asarray([0.0, 1.0, 2.0, 3.0])
    features = np.column_stack([np.ones(4), damage_feature(damages, 3.0)])
    assert features[:, 1].tolist() == [-1.0, pytest.approx(-1 / 3), pytest.approx(1 / 3), 1.0]
    fitted = Additive().fit(features, -(0.9 - 0.1 * damages))  # minimised scores
    assert fitted.predict(features) == pytest.approx(-(0.9 - 0.1 * damages))


def test_a_predictor_that_sees_the_damage_ranks_better_where_scores_follow_it() -> None:
    rng = np.random.default_rng(1)
    space = SearchSpace("wide", tuple(Gene(f"g{index}", (1, 2, 3)) for index in range(20)))
    weights = {(f"g{index}", value): float(rng.exponential() * (3 - value)) for index in range(20) for value in (1, 2)}
    damage = ArchDamage(space, table(weights, "wide"))
    archs = [space.sample(rng) for _ in range(24)]
    values = 0.01 * damage(archs) ** 2
    genes = features_of(space, archs)
    blind = choose(["ridge", "gp"], genes, values, 0).quality
    seeing = choose(
        ["ridge", "gp", "damage"], np.column_stack([genes, damage_feature(damage(archs), 30.0)]), values, 0
    ).quality
    assert seeing.tau > blind.tau + 0.1


def test_a_search_of_known_objectives_finds_the_front_of_the_enumerated_space() -> None:
    damage = ArchDamage(SPACE, table(DAMAGES))

    def sizes(archs: list) -> np.ndarray:
        return np.asarray([float(sum(arch.values)) for arch in archs])

    problem = Problem(
        SPACE, costs=lambda archs: {"damage": damage(archs), "macs": sizes(archs)},
        known=lambda archs: {0: damage(archs), 1: sizes(archs)}, damage=damage,
    )  # fmt: skip
    archs = {SPACE.arch(values) for values in itertools.product(*(gene.choices for gene in SPACE.genes))}
    points = {arch: (float(damage([arch])[0]), float(sizes([arch])[0])) for arch in archs}
    best = {
        point for point in points.values()
        if not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points.values())
    }  # fmt: skip
    sampler, history = PredictedFront(problem, 0, 4, "auto", 16, 10, 0.1, damage=True), History()
    for number in range(30):
        arch = sampler.next_arch(history, number)
        history.ask(arch)
        history.add(arch, points[arch])
    assert best <= {tuple(values) for values in history.values.tolist()}
