"""The front of what is predicted: NSGA-II on predictors of all objectives, of which spread-out members are asked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nas_transfer.errors import ConfigError
from nas_transfer.runs import PredictorQuality
from nas_transfer.search.pareto import by_rank, non_dominated
from nas_transfer.search.predictors import PREDICTORS, Array, Predictor, choose, features_of, fitted
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import ArchSampler, History
from nas_transfer.search.samplers.pareto_evolution import ParetoEvolution, change_genes
from nas_transfer.space import Arch

logger = logging.getLogger(__name__)

AUTO = "auto"
LEAST_TOLD = 10
SPREAD_DRAWS = 64
NEAREST = 8


Predict = Callable[[Sequence[Arch]], Array]
"""Minimised objectives (N, M) of archs, predicted or, where they are known, exact."""


@dataclass(frozen=True)
class _Plan:
    """What was predicted from the first `told` values: candidates, and what also judges pending archs."""

    told: int
    candidates: list[Arch]
    predicted: Array
    predict: Predict


class PredictedFront(ArchSampler):
    """MSuNAS's search (Lu et al. 2020, NSGANetV2, arXiv 2007.10396): few true evaluations, many predicted ones.

    After a random start that is spread over costs and genes, each batch fits a predictor of every objective that needs
    an evaluation on all values told so far, runs NSGA-II (Deb et al. 2002) on the predictions, and asks for members of
    the predicted front that go farthest beyond what is known or already asked for. Where the first of these predictors
    ranks no better than chance, `ParetoEvolution` asks instead.

    Args:
        problem, seed: see `ArchSampler`.
        num_random: archs of the spread-out start.
        predictor: a key of `PREDICTORS`, or ``auto`` for the one that ranks best in cross-validation.
        population, generations: of NSGA-II.
        mutation: probability for each gene of a mutated arch; one gene changes in any case.

    Raises:
        ConfigError: naming the value.
    """

    def __init__(
        self, problem: Problem, seed: int, num_random: int, predictor: str, population: int, generations: int,
        mutation: float,
    ) -> None:  # fmt: skip
        super().__init__(problem, seed)
        if predictor != AUTO and predictor not in PREDICTORS:
            raise ConfigError(
                f"expected sampler.predictor to be auto or one of {', '.join(PREDICTORS)}, got {predictor}"
            )
        if num_random < 1 or population < 4 or generations < 1:
            raise ConfigError(
                "expected sampler num_random and generations of at least 1 and population of at least 4, "
                f"got {num_random}, {generations} and {population}"
            )
        self.num_random = num_random
        self.names = list(PREDICTORS) if predictor == AUTO else [predictor]
        self.population = population
        self.generations = generations
        self.mutation = mutation
        self.without = ParetoEvolution(problem, seed, num_random, mutation, crossover=0.8, screen=1)
        self._plan: _Plan | None = None

    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """The member of the predicted front that goes farthest beyond the known and the pending."""
        if number < self.num_random or len(history.archs) < LEAST_TOLD:
            return self._spread(history, number, rng)
        if self._plan is None or self._plan.told != len(history.archs):
            self._plan = self._predict(history)
        plan = self._plan
        open_places = [k for k, arch in enumerate(plan.candidates) if arch.values not in history.seen]
        if not open_places:
            return self.without.propose(history, number, rng)
        known = history.values[non_dominated(history.values)]
        if history.pending:
            known = np.concatenate([known, plan.predict(list(history.pending.values()))])
        scale = history.values.std(0) + 1e-12
        # The additive epsilon indicator (Zitzler et al. 2003): the least shift that would make the arch dominated.
        ahead = ((known[None] - plan.predicted[open_places][:, None]) / scale).max(2).min(1)
        return plan.candidates[open_places[int(ahead.argmax())]]

    def _spread(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """Of random archs near a cost, the one farthest from all that were asked (Mitchell 1991, best candidate).

        The costs of the start fill the range of the space: van der Corput's sequence (1935), 1/2, 1/4, 3/4, 1/8, ...
        """
        space = self.problem.space
        ends = [self.problem.frozen_arch(end) for end in (space.smallest(), space.largest())]
        drawn = [self._towards(ends[rng.integers(2)], rng) for _ in range(SPREAD_DRAWS)]
        for costs in list(self.problem.costs([*ends, *drawn]).values())[:1]:
            low, high = costs[2:].min(), costs[2:].max()  # limits may leave out the ends
            target = low + van_der_corput(max(1, number - 1)) * (high - low)
            drawn = [drawn[place] for place in np.abs(costs[2:] - target).argsort(kind="stable")[:NEAREST]]
        if not history.seen:
            return drawn[0]
        seen = features_of(space, [space.arch(values) for values in sorted(history.seen)])
        distances = np.abs(features_of(space, drawn)[:, None] - seen[None]).sum(2).min(1)
        return drawn[int(distances.argmax())]

    def _towards(self, end: Arch, rng: np.random.Generator) -> Arch:
        """A random arch with a random share of an end's genes: uniform archs alone crowd around the mean cost."""
        arch = self.problem.draw(rng)
        taken = rng.random(len(arch.values)) < rng.random()
        mixed = [theirs if take else own for own, theirs, take in zip(arch.values, end.values, taken, strict=True)]
        moved = self.problem.frozen_arch(self.problem.space.arch(mixed))
        return moved if self.problem.feasible([moved])[0] else arch

    def _predict(self, history: History) -> _Plan:
        """Fit, say how far the predictions can be trusted, and search on them; no candidate where they cannot."""
        space = self.problem.space
        features, values = features_of(space, history.archs), history.values
        exact = self.problem.known(history.archs)
        models: dict[int, Predictor] = {}
        for place in [place for place in range(values.shape[1]) if place not in exact]:
            name, quality = choose(self.names, features, values[:, place], self.seed)
            if not models:
                self.predictor = PredictorQuality(name, quality)
                logger.info("predictor %s of the first objective that is predicted, cross-validated: %s", name, quality)
            models[place] = fitted(name, features, values[:, place])
            if len(models) == 1 and not quality.better_than_chance:
                logger.info("it ranks no better than chance: this batch is asked without it")
                return _Plan(len(values), [], values[:0], lambda archs: values[:0])

        def predict(archs: Sequence[Arch]) -> Array:
            own, found = features_of(space, archs), self.problem.known(archs)
            found |= {place: model.predict(own) for place, model in models.items()}
            return np.stack([found[place] for place in range(values.shape[1])], 1)

        return self._evolve(history, predict)

    def _evolve(self, history: History, predict: Predict) -> _Plan:
        """NSGA-II on the predictions, from the best archs told: its last population."""
        rng = np.random.default_rng([self.seed, len(history.archs)])
        space = self.problem.space
        order = by_rank(history.values)[: self.population]
        archs = [history.archs[place] for place in order]
        predicted = predict(archs)
        for _ in range(self.generations):
            known = {arch.values for arch in archs}
            children: list[Arch] = []
            for _ in range(self.population):
                first, second = (archs[min(rng.integers(0, len(archs), 2))] for _ in range(2))  # ranked: less is better
                child = change_genes(self.problem, space.crossover(first, second, rng), self.mutation, rng)
                child = self.problem.frozen_arch(child)
                if child.values not in known:
                    known.add(child.values)
                    children.append(child)
            kept = self.problem.feasible(children) if children else np.zeros(0, dtype=bool)
            children = [child for child, keep in zip(children, kept, strict=True) if keep]
            if children:
                archs, predicted = archs + children, np.concatenate([predicted, predict(children)])
            order = by_rank(predicted)[: self.population]
            archs, predicted = [archs[place] for place in order], predicted[order]
        return _Plan(len(history.archs), archs, predicted, predict)


def van_der_corput(index: int) -> float:
    """The binary digits of `index` mirrored behind the point: in 0-1, each new one in a largest gap."""
    value, share = 0.0, 0.5
    while index:
        index, digit = divmod(index, 2)
        value, share = value + digit * share, share / 2
    return value
