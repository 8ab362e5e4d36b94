"""What an arch will score, learnt from those that were scored, and how far such a guess can be trusted.

The models are scikit-learn's and scipy's. Which one is used, and whether any is, is decided by how well it ranks archs
that it was not fitted on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RBFInterpolator
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from nas_transfer.search.statistics import RankQuality, kendall_tau, rank_quality
from nas_transfer.space import Arch, SearchSpace

Array: TypeAlias = npt.NDArray[np.float64]

FOLDS = 5


class Predictor(Protocol):
    """Fitted on (N, F) features and (N,) values; predicts (N,)."""

    def fit(self, features: Array, values: Array) -> Any:
        """Learn; what was learnt before is forgotten."""

    def predict(self, features: Array) -> Array:
        """Values (N,) of other features (N, F)."""


class RadialBasis:
    """Interpolation by thin plate splines, smoothed (NSGANetV2, Lu et al. 2020, uses radial basis functions too)."""

    def fit(self, features: Array, values: Array) -> RadialBasis:
        """Place one function at each different row."""
        rows, places = np.unique(features, axis=0, return_inverse=True)
        means = np.bincount(places.ravel(), values) / np.bincount(places.ravel())
        self.function = RBFInterpolator(rows, means, smoothing=0.1, kernel="linear", degree=0)
        return self

    def predict(self, features: Array) -> Array:
        """The interpolant."""
        return self.function(features)


def _ridge() -> Predictor:
    # Alphas for features of unit scale: from nearly none to nearly the mean.
    return make_pipeline(PolynomialFeatures(2, include_bias=False), RidgeCV(np.logspace(-3, 3, 13)))


def _gaussian_process() -> Predictor:
    kernel = ConstantKernel() * Matern(length_scale=3.0, nu=2.5) + WhiteKernel(1e-2, (1e-6, 1.0))
    return GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)


PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "ridge": _ridge,
    "gp": _gaussian_process,
    "forest": lambda: RandomForestRegressor(100, min_samples_leaf=2, random_state=0),
    "boosting": lambda: GradientBoostingRegressor(subsample=0.8, random_state=0),
    "mlp": lambda: MLPRegressor(hidden_layer_sizes=(64, 64), solver="lbfgs", alpha=0.1, max_iter=500, random_state=0),
    "rbf": RadialBasis,
}


def features_of(space: SearchSpace, archs: Sequence[Arch]) -> Array:
    """Each gene's place among its choices, from -1 to 1: (N, G) for the G genes that have a choice."""
    free = [(place, gene.choices) for place, gene in enumerate(space.genes) if len(gene.choices) > 1]
    values = np.asarray([arch.values for arch in archs]).reshape(len(archs), -1)
    columns = [2 * np.searchsorted(choices, values[:, place]) / (len(choices) - 1) - 1 for place, choices in free]
    return np.stack(columns, 1).astype(np.float64)


def fitted(name: str, features: Array, values: Array) -> Predictor:
    """A predictor of `PREDICTORS` that has learnt."""
    predictor = PREDICTORS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        predictor.fit(features, values)
    return predictor


def cross_validated(name: str, features: Array, values: Array, seed: int) -> Array:
    """Each value predicted by a model that was fitted without its fold: (N,)."""
    predicted = np.empty(len(values))
    for train, test in KFold(min(FOLDS, len(values)), shuffle=True, random_state=seed).split(features):
        predicted[test] = fitted(name, features[train], values[train]).predict(features[test])
    return predicted


def choose(names: Sequence[str], features: Array, values: Array, seed: int) -> tuple[str, RankQuality]:
    """The predictor with the highest cross-validated tau, and how good it is."""
    found = {name: cross_validated(name, features, values, seed) for name in names}
    best = max(found, key=lambda name: kendall_tau(values, found[name]))
    return best, rank_quality(values, found[best], seed)
