"""A Gaussian process with a length scale for each feature, for few and expensive observations."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

Array: TypeAlias = npt.NDArray[np.float64]

LENGTH = (0.5, 1.0)
"""Mean and standard deviation of the normal prior of the logarithm of a length scale."""
SIGNAL = (0.0, 1.0)
"""The same for the variance of the function, where values have a variance of 1."""
LEVEL = (0.0, 1.5)
"""The same for the variance of the unknown mean."""
NOISE = (math.log(0.01), 2.0)
"""The same for the variance of the noise."""
STEPS = 60
"""Largest number of steps of L-BFGS-B."""
JITTER = 1e-6
"""Added to the variance of the noise, so that the Cholesky decomposition succeeds."""


class GaussianProcess:
    """Gaussian process regression (Rasmussen and Williams 2006) with a Matern 5/2 kernel.

    Each feature has a length scale, so that features without effect are ignored (automatic relevance determination,
    MacKay 1994). The parameters maximise the posterior: with fewer observations than features, the likelihood alone
    would fit length scales to noise. Distances are divided by the square root of the number of features, so that the
    same prior suits few and many of them (Hvarfner et al. 2024, arXiv 2402.02229).
    """

    def fit(self, features: Array, values: Array) -> GaussianProcess:
        """Fit features (N, F), scaled to [-1, 1], and values (N,), and discard any earlier fit."""
        self._mean, self._deviation = float(values.mean()), float(values.std()) or 1.0
        self._features = torch.as_tensor(features, dtype=torch.float64)
        scaled = torch.as_tensor((values - self._mean) / self._deviation, dtype=torch.float64)
        means, deviations = (
            torch.tensor(column, dtype=torch.float64)
            for column in zip(SIGNAL, LEVEL, NOISE, *[LENGTH] * features.shape[1], strict=True)
        )

        def objective(parameters: Array) -> tuple[float, Array]:
            """The negative logarithm of the posterior density but for a constant, and its gradient."""
            theta = torch.tensor(parameters, requires_grad=True)
            cholesky, failed = torch.linalg.cholesky_ex(self._noisy_covariance(theta))
            if failed:
                return 1e10, np.zeros_like(parameters)
            white = torch.linalg.solve_triangular(cholesky, scaled[:, None], upper=False)
            prior = ((theta - means) / deviations).square().sum() / 2
            loss = white.square().sum() / 2 + cholesky.diagonal().log().sum() + prior
            (gradient,) = torch.autograd.grad(loss, theta)
            return loss.item(), gradient.numpy()

        found = minimize(objective, means.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
        self._theta = torch.as_tensor(found.x)
        self._cholesky = torch.linalg.cholesky(self._noisy_covariance(self._theta))
        self._weights = torch.cholesky_solve(scaled[:, None], self._cholesky)[:, 0]
        return self

    def predict(self, features: Array) -> Array:
        """The posterior means (N,) at features (N, F)."""
        return self.posterior(features)[0]

    def posterior(self, features: Array) -> tuple[Array, Array]:
        """The means (N,) and standard deviations (N,) of the function, without noise, at features (N, F)."""
        covariance = _covariance(torch.as_tensor(features, dtype=torch.float64), self._features, self._theta)
        means = covariance @ self._weights
        white = torch.linalg.solve_triangular(self._cholesky, covariance.T, upper=False)
        variances = (self._theta[:2].exp().sum() - white.square().sum(0)).clamp_min(0)
        return self._mean + self._deviation * means.numpy(), self._deviation * variances.sqrt().numpy()

    def _noisy_covariance(self, theta: Tensor) -> Tensor:
        covariance = _covariance(self._features, self._features, theta)
        return covariance + (theta[2].exp() + JITTER) * torch.eye(len(covariance), dtype=torch.float64)


def _covariance(first: Tensor, second: Tensor, theta: Tensor) -> Tensor:
    """The covariance (N, M) of features (N, F) and (M, F)."""
    scale = torch.exp(-theta[3:]) / math.sqrt(first.shape[1])
    first, second = first * scale, second * scale
    squares = first.square().sum(1)[:, None] + second.square().sum(1) - 2 * first @ second.T
    distances = (5 * squares.clamp_min(0) + 1e-12).sqrt()  # the square root of 0 has no gradient
    matern = (1 + distances + distances.square() / 3) * torch.exp(-distances)
    return theta[0].exp() * matern + theta[1].exp()
