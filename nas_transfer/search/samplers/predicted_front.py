"""Search on predictions: NSGA-II on predictors of all objectives, whose front supplies the next archs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nas_transfer.arch import Arch
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Count, Positive, Share
from nas_transfer.runs import PredictorQuality
from nas_transfer.search.improvement import expected_improvement
from nas_transfer.search.pareto import by_rank
from nas_transfer.search.planning import MOST_START
from nas_transfer.search.predictors import (
    DAMAGE,
    PREDICTORS,
    Array,
    Estimate,
    choose,
    damage_feature,
    features_of,
)
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import ArchSampler, History
from nas_transfer.search.samplers.pareto_evolution import ParetoEvolution, change_genes

logger = logging.getLogger(__name__)

AUTO = "auto"
MIN_TRIALS = 10
"""Number of trials with values from which predictors are fitted."""
START_DRAWS = 64
"""Random archs among which each arch of the start is chosen."""
NEAREST = 8
"""How many of these archs, nearest to the target cost, are compared by their distance to earlier archs."""
REFIT_SHARE = 0.05
"""Growth of the trials with values after which a worker fits the predictors again."""
MARGIN = 0.1
"""How far the reference point of hypervolumes lies behind the worst values, as a share of their range."""

Predict = Callable[[Sequence[Arch]], tuple[Array, Array]]
"""Maps N archs to the means and standard deviations of their minimised objectives, (N, M) each.

A deviation is 0 where the problem knows the objective."""


@dataclass(frozen=True)
class _Plan:
    """Candidates with their predicted values.

    Attributes:
        num_trials: number of trials with values to which the predictors are fitted.
        candidates: the archs of the last population of NSGA-II; empty if predictions are not used.
        predicted: means of their minimised objectives (N, M).
        deviations: standard deviations of their objectives (N, M), 0 where these are known.
        predict: predicts other archs.
    """

    num_trials: int
    candidates: list[Arch]
    predicted: Array
    deviations: Array
    predict: Predict


class PredictedFront(ArchSampler):
    """Sampler that searches on predicted objectives (MSuNAS: Lu et al. 2020, NSGANetV2, arXiv 2007.10396).

    The search starts with archs that are spread over costs and genes. For each later batch, the sampler

    1. fits a predictor for each objective that needs an evaluation, to the values of all trials so far;
    2. runs NSGA-II (Deb et al. 2002) on the predictions;
    3. proposes those archs of its last population that add most to the hypervolume of the current front and the pending
       archs. In even trials it takes the predictions as they are, in odd ones it averages over their uncertainty
       (Emmerich et al. 2011).

    Predictions taken at face value pay in spaces of many genes, and expectations where the predictor is wrong (De Ath
    et al. 2021, arXiv 1911.12809).

    In a search of one whole network, the predictors may see the damage of an arch beside its genes
    (`nas_transfer.search.damage`).

    With workers, the predictors are fitted again whenever the trials with values have grown by `REFIT_SHARE`. Trials
    that still run count with their predicted values.

    If the first of the predictors ranks no better than chance, `ParetoEvolution` proposes the batch instead.

    Args:
        problem: the space and its limits.
        seed: seed of all draws.
        num_random: number of archs at the start. The other archs of `Problem.first` come on top. None for
            `MOST_START`.
        predictor: a key of `PREDICTORS`, or ``auto`` for the one that ranks best in cross-validation. With `damage`,
            the line over damages competes with it.
        population: population of NSGA-II.
        generations: generations of NSGA-II.
        mutation: probability that a mutation redraws a gene. A mutation changes one gene in any case.
        damage: whether a search of one whole network measures the damages of its choices for the predictors.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(
        self, problem: Problem, seed: int, num_random: Count | None, predictor: str, population: Positive,
        generations: Count, mutation: Share, damage: bool,
    ) -> None:  # fmt: skip
        super().__init__(problem, seed)
        num_random = MOST_START if num_random is None else num_random
        if predictor != AUTO and predictor not in PREDICTORS:
            raise ConfigError(
                f"search.sampler.predictor must be auto or one of {', '.join(PREDICTORS)}, got {predictor}"
            )
        if num_random < 1 or population < 4 or generations < 1:
            raise ConfigError(
                "search.sampler.num_random and generations must be at least 1, and population at least 4, "
                f"got {num_random=} {generations=} {population=}"
            )
        self.num_random = num_random
        self.names = list(PREDICTORS) if predictor == AUTO else [predictor]
        if damage and problem.damage is not None:
            self.names.append(DAMAGE)
        self.uses_damage = damage
        self._scale: float | None = None
        self.population = population
        self.generations = generations
        self.mutation = mutation
        self.fallback = ParetoEvolution(problem, seed, num_random, mutation, crossover=0.8, screen=1)
        self._plan: _Plan | None = None

    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """Propose the candidate that is predicted to add most to the current front and the pending archs."""
        if number < self.num_random + self.problem.num_more or len(history.archs) < MIN_TRIALS:
            return self._start(history, number, rng)
        if self._plan is None or (not self.keeps_plan and self._plan.num_trials != len(history.archs)):
            self._plan = self._predict(history)
        plan = self._plan
        new = [index for index, arch in enumerate(plan.candidates) if arch.values not in history.seen]
        if not new:
            return self.fallback.propose(history, number, rng)
        known, predicted, deviations = history.values, plan.predicted[new], plan.deviations[new]
        if history.pending:
            known = np.concatenate([known, plan.predict(list(history.pending.values()))[0]])
        every = np.concatenate([known, plan.predicted])
        reference = every.max(0) + MARGIN * np.ptp(every, axis=0)
        gains = expected_improvement(known, predicted, np.zeros_like(predicted), reference)
        if number % 2 or not gains.any():
            gains = expected_improvement(known, predicted, deviations, reference)
        return plan.candidates[new[int(gains.argmax())]]

    def plan(self, history: History) -> None:
        """Fit the predictors again once the trials with values have grown by `REFIT_SHARE`."""
        start = self.num_random + self.problem.num_more
        if len(history.archs) < MIN_TRIALS or len(history.asked) < start:
            return
        if self._plan is None or len(history.archs) > (1 + REFIT_SHARE) * self._plan.num_trials:
            self._plan = self._predict(history)

    def _start(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """Draw random archs near a target cost, and choose the one farthest from all earlier archs.

        Choosing the farthest of several draws is Mitchell's best-candidate algorithm (1991). The target costs follow
        van der Corput's sequence (1935), 1/2, 1/4, 3/4, 1/8, ..., and so fill the range of costs evenly.
        """
        space = self.problem.space
        ends = self.problem.ends
        drawn = [self._towards(ends[rng.integers(len(ends))], rng) for _ in range(START_DRAWS)]
        for costs in list(self.problem.costs(drawn).values())[:1]:
            low, high = costs.min(), costs.max()
            target = low + van_der_corput(max(1, number - self.problem.num_more - 1)) * (high - low)
            drawn = [drawn[index] for index in np.abs(costs - target).argsort(kind="stable")[:NEAREST]]
        if not history.seen:
            return drawn[0]
        seen = features_of(space, [space.arch(values) for values in sorted(history.seen)])
        distances = np.abs(features_of(space, drawn)[:, None] - seen[None]).sum(2).min(1)
        return drawn[int(distances.argmax())]

    def _towards(self, end: Arch, rng: np.random.Generator) -> Arch:
        """Draw an arch, and replace a random share of its genes by those of an end of the space.

        Without this step, the costs of random archs would crowd around their mean.
        """
        arch = self.problem.draw(rng)
        replaced = rng.random(len(arch.values)) < rng.random()
        mixed = np.where(replaced, end.values, arch.values).tolist()
        moved = self.problem.frozen_arch(self.problem.space.arch(mixed))
        return moved if self.problem.feasible([moved])[0] else arch

    def _predict(self, history: History) -> _Plan:
        """Fit the predictors, log their quality, and search on them; no candidates if they rank by chance."""
        features, values = self._features(history.archs), history.values
        exact = self.problem.known(history.archs)
        estimates: dict[int, Estimate] = {}
        for index in [index for index in range(values.shape[1]) if index not in exact]:
            choice = choose(self.names, features, values[:, index], self.seed)
            if not estimates:
                self.predictor = PredictorQuality(choice.name, choice.quality)
                logger.info(
                    "predictor %s of the first predicted objective, in cross-validation: %s",
                    choice.name,
                    choice.quality,
                )
                if not choice.quality.better_than_chance:
                    logger.info("the predictor ranks no better than chance and is not used for this batch")
                    return _no_plan(history)
            estimates[index] = choice.fitted(features, values[:, index])

        def predict(archs: Sequence[Arch]) -> tuple[Array, Array]:
            new_features, columns = self._features(archs), self.problem.known(archs)
            means, deviations = np.empty((len(archs), values.shape[1])), np.zeros((len(archs), values.shape[1]))
            for index in range(values.shape[1]):
                if index in estimates:
                    means[:, index], deviations[:, index] = estimates[index](new_features)
                else:
                    means[:, index] = columns[index]
            return means, deviations

        return self._evolve(history, predict)

    def _features(self, archs: Sequence[Arch]) -> Array:
        """The genes of archs and, where it is known, their damage: (N, F)."""
        features, damage = features_of(self.problem.space, archs), self.problem.damage
        if damage is None or not self.uses_damage:
            return features
        if self._scale is None:
            self._scale = float(damage([self.problem.space.smallest()])[0])
        return np.column_stack([features, damage_feature(damage(archs), self._scale)])

    def _evolve(self, history: History, predict: Predict) -> _Plan:
        """Run NSGA-II on the predictions, starting from the best archs so far; the last population becomes the plan."""
        rng = np.random.default_rng([self.seed, len(history.archs)])
        space = self.problem.space
        order = by_rank(history.values)[: self.population]
        archs = [history.archs[index] for index in order]
        predicted, deviations = predict(archs)
        for _ in range(self.generations):
            seen = {arch.values for arch in archs}
            children: list[Arch] = []
            for _ in range(self.population):
                first, second = (archs[min(rng.integers(0, len(archs), 2))] for _ in range(2))  # sorted by rank
                child = change_genes(self.problem, space.crossover(first, second, rng), self.mutation, rng)
                child = self.problem.frozen_arch(child)
                if child.values not in seen:
                    seen.add(child.values)
                    children.append(child)
            feasible = self.problem.feasible(children)
            children = [child for child, allowed in zip(children, feasible, strict=True) if allowed]
            if children:
                means, errors = predict(children)
                archs = archs + children
                predicted, deviations = np.concatenate([predicted, means]), np.concatenate([deviations, errors])
            order = by_rank(predicted)[: self.population]
            archs, predicted, deviations = [archs[index] for index in order], predicted[order], deviations[order]
        return _Plan(len(history.archs), archs, predicted, deviations, predict)


def _no_plan(history: History) -> _Plan:
    """A plan without candidates."""
    empty = history.values[:0]
    return _Plan(len(history.archs), [], empty, empty, lambda archs: (empty, empty))


def van_der_corput(index: int) -> float:
    """The value of van der Corput's sequence in 0-1: the binary digits of `index`, mirrored behind the point."""
    value, share = 0.0, 0.5
    while index:
        index, digit = divmod(index, 2)
        value, share = value + digit * share, share / 2
    return value
