"""The Gaussian process against that of scikit-learn, and what its prior is for."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from nas_transfer.search.gaussian_process import JITTER, GaussianProcess


def drawn(count: int, features: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1.0, -1 / 3, 1 / 3, 1.0], (count, features))


def test_the_posterior_is_scikit_learns_for_the_same_parameters() -> None:
    features, others = drawn(40, 6), drawn(25, 6, seed=1)
    values = features[:, 0] + features[:, 1] * features[:, 2] + 0.1 * np.random.default_rng(2).normal(size=40)
    process = GaussianProcess().fit(features, values)
    signal, level, noise = np.exp(process._theta[:3].numpy())
    lengths = np.exp(process._theta[3:].numpy()) * np.sqrt(6)
    kernel = ConstantKernel(signal) * Matern(lengths, nu=2.5) + ConstantKernel(level)
    reference = GaussianProcessRegressor(kernel, alpha=noise + JITTER, optimizer=None, normalize_y=True)
    means, deviations = reference.fit(features, values).predict(others, return_std=True)
    ours = process.posterior(others)
    np.testing.assert_allclose(ours[0], means, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ours[1], deviations, rtol=1e-6)
    np.testing.assert_array_equal(process.predict(others), ours[0])


def test_one_feature_among_many_is_found_where_a_common_length_scale_cannot_find_it() -> None:
    features, others = drawn(40, 30), drawn(200, 30, seed=1)

    def cliff(rows: np.ndarray) -> np.ndarray:
        return np.where(rows[:, 3] > 0, 1.0, 0.0) + 0.02 * rows.sum(1)

    process = GaussianProcess().fit(features, cliff(features))
    kernel = ConstantKernel() * Matern(3.0, nu=2.5) + WhiteKernel(1e-2, (1e-6, 1.0))
    common = GaussianProcessRegressor(kernel, normalize_y=True).fit(features, cliff(features))
    errors = [np.abs(model.predict(others) - cliff(others)).mean() for model in (process, common)]
    assert errors[0] < 0.5 * errors[1]


def test_the_prior_helps_where_there_are_fewer_values_than_features() -> None:
    errors = []
    for seed in range(4):
        features, others = drawn(25, 40, seed), drawn(200, 40, seed + 100)
        noise = np.random.default_rng(seed).normal(size=25)
        values = features[:, :4].sum(1) + 0.5 * noise
        # The same length scales, by maximum likelihood.
        kernel = ConstantKernel() * Matern(np.full(40, 3.0), nu=2.5) + WhiteKernel(1e-2, (1e-6, 1.0))
        models = (GaussianProcess(), GaussianProcessRegressor(kernel, normalize_y=True))
        errors.append(
            [np.square(m.fit(features, values).predict(others) - others[:, :4].sum(1)).mean() for m in models]
        )
    ours, theirs = np.mean(errors, 0)
    assert ours < theirs


def test_the_deviation_covers_the_errors_and_grows_away_from_the_data() -> None:
    features, others = drawn(60, 8), drawn(300, 8, seed=1)

    def smooth(rows: np.ndarray) -> np.ndarray:
        return np.asarray(np.sin(rows[:, 0]) + rows[:, 1] * rows[:, 2])

    means, deviations = GaussianProcess().fit(features, smooth(features)).posterior(others)
    errors = np.abs(means - smooth(others))
    assert np.mean(errors <= 1.96 * deviations) > 0.9
    nearest = np.abs(others[:, None] - features[None]).sum(2).min(1)
    assert spearmanr(nearest, deviations).statistic > 0.2


@pytest.mark.parametrize("values", [np.full(12, 3.0), np.linspace(0, 1e-9, 12), 1e9 * np.arange(12.0)])
def test_any_scale_of_values_is_fitted(values: np.ndarray) -> None:
    means, deviations = GaussianProcess().fit(drawn(12, 4), values).posterior(drawn(5, 4, seed=1))
    assert np.isfinite(means).all()
    assert np.isfinite(deviations).all()
    assert (means >= values.min() - np.ptp(values)).all()
    assert (means <= values.max() + np.ptp(values)).all()


def test_a_fit_is_the_same_each_time() -> None:
    features = drawn(30, 10)
    values = features[:, 0] - features[:, 4] ** 2
    first, second = (GaussianProcess().fit(features, values).predict(drawn(9, 10, seed=3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
