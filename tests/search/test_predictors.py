"""Predictors: what they learn, how cross-validation judges them, and how a sampler uses them."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.stats import kendalltau

from nas_transfer.arch import Arch, Gene
from nas_transfer.errors import ConfigError
from nas_transfer.search.front import share_of_hypervolume
from nas_transfer.search.pareto import hypervolume
from nas_transfer.search.predictors import (
    PREDICTORS,
    RankQuality,
    choose,
    cross_validated,
    features_of,
    fitted,
    rank_quality,
)
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import ArchSampler, History
from nas_transfer.search.samplers.predicted_front import PredictedFront, _no_plan, _Plan, van_der_corput
from nas_transfer.search.samplers.random_archs import RandomArchs
from nas_transfer.space import SearchSpace

SPACE = SearchSpace("toy", tuple(Gene(f"depth.{k}", (1, 2, 3, 5)) for k in range(6)))


def sampled(count: int) -> list[Arch]:
    rng = np.random.default_rng(0)
    return [SPACE.sample(rng) for _ in range(count)]


def score(archs: list[Arch]) -> np.ndarray:
    """Two genes help alone, two more only together; saturating."""
    values = np.asarray([arch.values for arch in archs], dtype=float)
    return np.sqrt(values[:, 0]) + 0.5 * np.log(values[:, 1]) + 0.05 * values[:, 2] * values[:, 3]


@pytest.mark.parametrize("name", PREDICTORS)
def test_every_predictor_ranks_archs_that_it_has_not_seen(name: str) -> None:
    archs = sampled(120)
    features, values = features_of(SPACE, archs), score(archs)
    predicted = fitted(name, features[:80], values[:80]).predict(features[80:])
    assert kendalltau(predicted, values[80:]).statistic > 0.55
    assert predicted.shape == (40,)


def test_features_are_scaled_positions_among_the_choices() -> None:
    arch = SPACE.arch([1, 2, 3, 5, 1, 5])
    assert features_of(SPACE, [arch])[0] == pytest.approx([-1, -1 / 3, 1 / 3, 1, -1, 1])


def test_a_value_is_predicted_by_a_model_that_did_not_see_it() -> None:
    archs = sampled(40)
    features = features_of(SPACE, archs)
    noise = np.random.default_rng(1).normal(size=40)
    inside = fitted("rbf", features, noise).predict(features)
    outside = cross_validated("rbf", features, noise, seed=0)
    assert kendalltau(inside, noise).statistic > 0.8  # learnt by heart
    assert abs(kendalltau(outside, noise).statistic) < 0.3


def test_rank_quality_is_scipys_with_an_interval_that_noise_cannot_escape() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=60)
    close = values + 0.3 * rng.normal(size=60)
    quality = rank_quality(values, close, seed=0)
    assert quality.tau == pytest.approx(kendalltau(values, close).statistic)
    assert quality.low < quality.tau < quality.high
    assert quality.better_than_chance
    assert not rank_quality(values, rng.normal(size=60), seed=0).better_than_chance
    constant = rank_quality(values, np.ones(60), seed=0)
    assert (constant.tau, constant.rho, constant.better_than_chance) == (0.0, 0.0, False)


@pytest.mark.slow
def test_auto_takes_the_predictor_that_ranks_best() -> None:
    archs = sampled(60)
    features, values = features_of(SPACE, archs), score(archs)
    choice = choose(list(PREDICTORS), features, values, seed=0)
    each = {key: kendalltau(cross_validated(key, features, values, 0), values).statistic for key in PREDICTORS}
    assert each[choice.name] == max(each.values()) == pytest.approx(choice.quality.tau)


def history(values: np.ndarray, archs: list[Arch]) -> History:
    known = History()
    for arch, value in zip(archs, values, strict=True):
        known.add(arch, [-float(value), float(sum(arch.values))])
    return known


def sampler(**changes: object) -> PredictedFront:
    options: dict[str, object] = {
        "num_random": 5, "predictor": "gp", "population": 16, "generations": 6, "mutation": 0.1, "damage": True,
    }  # fmt: skip
    return PredictedFront(Problem(SPACE), 0, **(options | changes))  # type: ignore[arg-type]


def test_proposals_go_beyond_the_known_front(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    archs = sampled(60)
    known = history(score(archs), archs)
    predicting = sampler()
    asked: list[Arch] = []
    for number in range(60, 68):
        asked.append(predicting.propose(known, number, np.random.default_rng(number)))
        known.ask(asked[-1])
    assert len(set(asked)) == 8
    assert not set(asked) & set(archs)
    points = known.values
    new = np.stack([-score(asked), [float(sum(arch.values)) for arch in asked]], 1)
    beyond = [not (points <= point).all(1).any() for point in new]
    assert np.mean(beyond) >= 0.75  # most of them are dominated by no arch that is known
    assert np.ptp(new[:, 1]) > 8  # spread over the costs
    assert "Kendall's tau" in caplog.text


def test_pending_archs_repel_proposals_and_failed_archs_do_not() -> None:
    archs = sampled(60)

    def asked(finish: Callable[[History, Arch], None]) -> list[Arch]:
        known, predicting, proposed = history(score(archs), archs), sampler(), []
        for number in range(60, 68):
            proposed.append(predicting.propose(known, number, np.random.default_rng(number)))
            finish(known, proposed[-1])
        return proposed

    def fail(known: History, arch: Arch) -> None:
        known.ask(arch)
        known.add(arch, None)

    failed, waiting = asked(fail), asked(History.ask)
    assert failed == asked(lambda known, arch: known.seen.add(arch.values))  # as if there were no such arch
    assert failed[0] == waiting[0]
    assert failed != waiting


@pytest.mark.parametrize("expects", [False, True])
def test_an_even_trial_trusts_the_predictions_and_an_odd_one_their_mean_over_errors(expects: bool) -> None:
    archs = sampled(40)
    known, predicting = history(score(archs), archs), sampler()
    trusting, expecting = (predicting.propose(known, number, np.random.default_rng(0)) for number in (40, 41))
    assert trusting != expecting
    arch = expecting if expects else trusting
    plan = predicting._plan
    assert plan is not None
    new = [index for index, candidate in enumerate(plan.candidates) if candidate not in archs]
    worst, best = (find(np.concatenate([known.values, plan.predicted]), axis=0) for find in (np.max, np.min))
    reference = worst + 0.1 * (worst - best)
    draws = np.random.default_rng(1).normal(size=(200, 2)) if expects else np.zeros((1, 2))
    points = plan.predicted[new, None] + plan.deviations[new, None] * draws
    gains = [
        np.mean([hypervolume(np.concatenate([known.values, point[None]]), reference) for point in drawn])
        for drawn in points
    ]
    chosen = gains[[plan.candidates[index] for index in new].index(arch)] - hypervolume(known.values, reference)
    assert chosen == pytest.approx(max(gains) - hypervolume(known.values, reference), rel=0.05 if expects else 1e-9)


def test_a_predictor_that_ranks_by_chance_is_reported_and_not_used(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    archs = sampled(40)
    known = history(np.random.default_rng(3).normal(size=40), archs)
    predicting = sampler()
    arch = predicting.propose(known, 40, np.random.default_rng(0))
    assert "no better than chance" in caplog.text
    assert arch == predicting.fallback.propose(known, 40, np.random.default_rng(0))


def test_an_unknown_predictor_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"sampler\.predictor must be auto or one of ridge, gp.*, got svm"):
        sampler(predictor="svm")


def test_the_quality_reads_as_a_sentence() -> None:
    assert str(RankQuality(0.5, 0.7, 0.25, 0.75, 30)) == (
        "Kendall's tau 0.50 (95 % interval 0.25 to 0.75), Spearman's rho 0.70, 30 archs"
    )


def test_the_start_fills_the_range_of_costs() -> None:
    def costs(archs: Sequence[Arch]) -> dict[str, np.ndarray]:
        return {"macs": np.asarray([float(sum(arch.values)) for arch in archs])}

    problem = Problem(SPACE, costs=costs)
    start, history = PredictedFront(problem, 0, 18, "gp", 16, 6, 0.1, damage=True), History()
    archs: list[Arch] = []
    for number in range(18):
        archs.append(start.next_arch(history, number))
        history.add(archs[-1], None)
    covered = np.sort(costs(archs)["macs"])
    low, high = costs([SPACE.smallest(), SPACE.largest()])["macs"]
    assert (covered[0], covered[-1]) == (low, high)
    drawn = np.sort(costs([problem.draw(np.random.default_rng(seed)) for seed in range(18)])["macs"])
    assert np.diff(covered).max() < 0.6 * np.diff(np.concatenate([[low], drawn, [high]])).max()


def test_each_number_of_the_sequence_falls_into_a_largest_gap() -> None:
    assert [van_der_corput(index) for index in range(1, 8)] == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]


WIDE = SearchSpace("wide", tuple(Gene(f"depth.{k}", (1, 2, 3, 5)) for k in range(12)))


def wide_costs(archs: Sequence[Arch]) -> dict[str, np.ndarray]:
    return {"size": np.asarray([float(np.square(arch.values).sum()) for arch in archs])}


def wide_values(arch: Arch) -> list[float]:
    """Minus a saturating score of pairs of genes, none of which pays alone; the size."""
    x = np.asarray(arch.values, dtype=float)
    worth = np.linspace(1, 6, 6)
    return [-float((worth * np.sqrt(x[::2] * x[1::2])).sum()), float(wide_costs([arch])["size"][0])]


def covered(search: ArchSampler) -> float:
    """The hypervolume of a search's 60 archs, asked in batches of ten, as a share of the box of the space."""
    trials, points = History(), []
    for start in range(0, 60, 10):
        archs = []
        for number in range(start, start + 10):
            archs.append(search.next_arch(trials, number))
            trials.ask(archs[-1])
        points += [wide_values(arch) for arch in archs]
        for arch, values in zip(archs, points[start:], strict=True):
            trials.add(arch, values)
    small, large = (wide_values(arch) for arch in (WIDE.smallest(), WIDE.largest()))
    return share_of_hypervolume(np.asarray(points), np.asarray([large[0], small[1]]), np.asarray([small[0], large[1]]))


class StartAlone(PredictedFront):
    """The same start, and then evolution without a predictor."""

    def _predict(self, history: History) -> _Plan:
        return _no_plan(history)


@pytest.mark.slow
def test_a_search_that_predicts_finds_more_than_one_that_does_not() -> None:
    problem = Problem(WIDE, costs=wide_costs, known=lambda archs: {1: wide_costs(archs)["size"]})
    options = (20, "gp", 30, 10, 0.05)
    with_predictor, without, random = (
        [covered(make(seed)) for seed in range(4)]
        for make in (
            lambda seed: PredictedFront(problem, seed, *options, damage=True),
            lambda seed: StartAlone(problem, seed, *options, damage=True),
            lambda seed: RandomArchs(problem, seed),
        )
    )
    assert min(with_predictor) > max(without) > max(random)  # seen: means 0.62, 0.54, 0.48


def test_a_known_objective_is_not_predicted() -> None:
    problem = Problem(WIDE, costs=wide_costs, known=lambda archs: {1: wide_costs(archs)["size"]})
    rng = np.random.default_rng(0)
    archs = [WIDE.sample(rng) for _ in range(30)]
    known = History()
    for arch in archs:
        known.add(arch, wide_values(arch))
    predicting = PredictedFront(problem, 0, 20, "ridge", 16, 4, 0.05, damage=True)
    predicting.propose(known, 30, rng)
    plan = predicting._plan
    assert plan is not None
    assert len(plan.candidates) == 16
    np.testing.assert_array_equal(plan.predicted[:, 1], wide_costs(plan.candidates)["size"])
    assert (plan.deviations[:, 1] == 0).all()
    features, values = features_of(WIDE, archs), known.values[:, 0]
    errors = values - cross_validated("ridge", features, values, 0)
    assert plan.deviations[:, 0] == pytest.approx(np.sqrt(np.square(errors).mean()))
    assert not np.allclose(plan.predicted[:, 0], [wide_values(arch)[0] for arch in plan.candidates])
