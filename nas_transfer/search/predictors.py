"""Predictors: regressions that estimate an objective of an arch from earlier trials.

The Gaussian process is that of `nas_transfer.search.gaussian_process`; the other models come from scikit-learn and
scipy. Cross-validation measures how well each one ranks archs that it was not fitted on, and chooses among them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RBFInterpolator
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from nas_transfer.arch import Arch
from nas_transfer.search.damage import fit_additive
from nas_transfer.search.gaussian_process import GaussianProcess
from nas_transfer.search.statistics import RankQuality, kendall_tau, rank_quality
from nas_transfer.space import SearchSpace

Array: TypeAlias = npt.NDArray[np.float64]

FOLDS = 5


class Predictor(Protocol):
    """A regression from features (N, F) to values (N,)."""

    def fit(self, features: Array, values: Array) -> object:
        """Fit features (N, F) and values (N,), and discard any earlier fit."""

    def predict(self, features: Array) -> Array:
        """Predict the values (N,) of features (N, F)."""


class RadialBasis:
    """Smoothed interpolation by linear radial basis functions, a kind that NSGANetV2 (Lu et al. 2020) uses too."""

    def fit(self, features: Array, values: Array) -> RadialBasis:
        """Fit one function for each distinct row of features (N, F), to the mean of its values (N,)."""
        rows, indices = np.unique(features, axis=0, return_inverse=True)
        means = np.bincount(indices.ravel(), values) / np.bincount(indices.ravel())
        self.function = RBFInterpolator(rows, means, smoothing=0.1, kernel="linear", degree=0)
        return self

    def predict(self, features: Array) -> Array:
        """Interpolate at features (N, F): (N,)."""
        return self.function(features)


class Additive:
    """A line through the point of the whole network over the last feature, its damage (`nas_transfer.search.damage`).

    The values must be minimised and the last feature that of `damage_feature`.
    """

    def fit(self, features: Array, values: Array) -> Additive:
        """Fit the slope to features (N, F) and values (N,)."""
        self.line = fit_additive(self._damages(features), -values)
        return self

    def predict(self, features: Array) -> Array:
        """The values on the line (N,)."""
        return -self.line(self._damages(features))

    @staticmethod
    def _damages(features: Array) -> Array:
        return (features[:, -1] + 1) / 2


def _ridge() -> Predictor:
    # For features of unit scale, these penalties range from almost none to almost constant predictions.
    return make_pipeline(PolynomialFeatures(2, include_bias=False), RidgeCV(np.logspace(-3, 3, 13)))


PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "ridge": _ridge,
    "gp": GaussianProcess,
    "forest": lambda: RandomForestRegressor(100, min_samples_leaf=2, random_state=0),
    "boosting": lambda: GradientBoostingRegressor(subsample=0.8, random_state=0),
    "mlp": lambda: MLPRegressor(hidden_layer_sizes=(64, 64), solver="lbfgs", alpha=0.1, max_iter=500, random_state=0),
    "rbf": RadialBasis,
}


DAMAGE = "damage"
"""Name of the predictor `Additive`, which needs the damages of archs."""
DAMAGE_PREDICTORS: dict[str, Callable[[], Predictor]] = {**PREDICTORS, DAMAGE: Additive}


def damage_feature(damages: Array, scale: float) -> Array:
    """Damages (N,) as a feature: -1 for the largest arch and 1 for a damage of `scale`, if that is above 0."""
    return 2 * damages / (scale or 1.0) - 1


def features_of(space: SearchSpace, archs: Sequence[Arch]) -> Array:
    """The position of each gene's value among its choices, scaled to [-1, 1]: (N, G).

    G counts the genes with more than one choice. A branch of the space, such as the choice among three heads, has no
    order: it is a column for each choice, 1 where that is chosen and -1 elsewhere.
    """
    free = [(index, gene.choices) for index, gene in enumerate(space.genes) if len(gene.choices) > 1]
    values = np.asarray([arch.values for arch in archs]).reshape(len(archs), -1)
    columns = []
    for index, choices in free:
        if space.genes[index] is space.branch and len(choices) > 2:
            columns += [np.where(values[:, index] == choice, 1.0, -1.0) for choice in choices]
        else:
            columns.append(2 * np.searchsorted(choices, values[:, index]) / (len(choices) - 1) - 1)
    return np.stack(columns, 1).astype(np.float64)


def fitted(name: str, features: Array, values: Array) -> Predictor:
    """Fit the predictor of this name in `DAMAGE_PREDICTORS` to features (N, F) and values (N,)."""
    predictor = DAMAGE_PREDICTORS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        predictor.fit(features, values)
    return predictor


def cross_validated(name: str, features: Array, values: Array, seed: int) -> Array:
    """Predict each value by a model that was fitted without the value's fold: (N,)."""
    predicted = np.empty(len(values))
    for train, test in KFold(min(FOLDS, len(values)), shuffle=True, random_state=seed).split(features):
        predicted[test] = fitted(name, features[train], values[train]).predict(features[test])
    return predicted


@dataclass(frozen=True)
class Choice:
    """A predictor that cross-validation has chosen.

    Attributes:
        name: its key in `DAMAGE_PREDICTORS`.
        quality: how well it ranks values that it was not fitted to.
        error: root of the mean square of its errors there.
    """

    name: str
    quality: RankQuality
    error: float

    def fitted(self, features: Array, values: Array) -> Estimate:
        """Fit the predictor to features (N, F) and values (N,)."""
        return Estimate(fitted(self.name, features, values), self.error)


@dataclass(frozen=True)
class Estimate:
    """A fitted predictor with its uncertainty.

    That of a Gaussian process depends on the arch. For the others, it is their error in cross-validation.
    """

    predictor: Predictor
    error: float

    def __call__(self, features: Array) -> tuple[Array, Array]:
        """The means (N,) and standard deviations (N,) at features (N, F)."""
        if isinstance(self.predictor, GaussianProcess):
            return self.predictor.posterior(features)
        return self.predictor.predict(features), np.full(len(features), self.error)


def choose(names: Sequence[str], features: Array, values: Array, seed: int) -> Choice:
    """Choose the predictor with the highest cross-validated Kendall's tau."""
    predictions = {name: cross_validated(name, features, values, seed) for name in names}
    best = max(predictions, key=lambda name: kendall_tau(values, predictions[name]))
    error = float(np.sqrt(np.square(values - predictions[best]).mean()))
    return Choice(best, rank_quality(values, predictions[best], seed), error)
