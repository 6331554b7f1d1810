"""Variances under the posterior: means, intervals, and their shares of the total.

Given the ratios, sigma2 is (d0 s0^2 + Q) / chi2 on n - p + d0 degrees of freedom and theta_i is
gamma_i sigma2, so the distribution of a variance is a mixture of scaled inverse chi-squares with,
for gamma_i = 0, an atom at zero. A covariance may be negative; its parts are the same, mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from flashmm.arrays.types import FloatArray
from flashmm.inference.integrated.posterior import Posterior

__all__ = ["VarianceSummary", "share_summary", "variance_summary"]

_BISECTIONS = 44


@dataclass(frozen=True)
class VarianceSummary:
    """Posterior means (B, k) and equal-tailed limits (B, k, 2) of k quantities."""

    mean: FloatArray
    limits: FloatArray


def variance_summary(ratios: FloatArray, posterior: Posterior, alpha: float) -> VarianceSummary:
    """Means and limits of gamma_i sigma2.

    Parameters
    ----------
    ratios
        Shape (G, k); a column of ones for sigma2 itself.
    posterior
        Of B features.
    alpha
        One minus the probability between the limits.
    """
    df = posterior.df[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.where(np.isinf(df), 1.0, df / (df - 2.0))
    sigma2 = np.where(df > 2, growth, np.nan) * posterior.variance
    mean = (posterior.weights * sigma2) @ ratios
    limits = np.empty((*mean.shape, 2))
    for i in range(ratios.shape[1]):
        location = ratios[:, i] * posterior.variance
        for side, tail in enumerate((alpha / 2.0, 1.0 - alpha / 2.0)):
            limits[:, i, side] = _quantile(location, posterior, tail)
    return VarianceSummary(mean, limits)


def share_summary(shares: FloatArray, posterior: Posterior, alpha: float) -> VarianceSummary:
    """Means and limits of functions of the ratios alone, such as an intra-class correlation.

    Limits are quantiles of the distribution on the grid, interpolated between its points.

    Parameters
    ----------
    shares
        Values at the grid points, shape (G, k).
    posterior, alpha
        As in `variance_summary`.
    """
    weights = posterior.weights
    mean = weights @ shares
    limits = np.empty((*mean.shape, 2))
    for i in range(shares.shape[1]):
        order = np.argsort(shares[:, i], kind="stable")
        ordered, reached = shares[order, i], np.cumsum(weights[:, order], axis=1)
        middle = reached - 0.5 * weights[:, order]
        for side, tail in enumerate((alpha / 2.0, 1.0 - alpha / 2.0)):
            limits[:, i, side] = _interpolated(ordered, middle, reached, tail)
    return VarianceSummary(mean, limits)


def _interpolated(
    values: FloatArray, middle: FloatArray, reached: FloatArray, tail: float
) -> FloatArray:
    """Where the middles of the probability steps (B, G) reach ``tail``; at an end, that end."""
    right = np.minimum((middle < tail).sum(axis=1), values.size - 1)
    left = np.maximum(right - 1, 0)
    rows = np.arange(middle.shape[0])
    low, high = middle[rows, left], middle[rows, right]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(high > low, (tail - low) / (high - low), 0.0)
    found = values[left] + np.clip(share, 0.0, 1.0) * (values[right] - values[left])
    return np.asarray(np.where(reached[:, 0] >= tail, values[0], found))


def _quantile(location: FloatArray, posterior: Posterior, tail: float) -> FloatArray:
    """Quantiles of location df / chi2_df, location (B, G), under the weights; shape (B,)."""
    half = 0.5 * np.minimum(posterior.df, 1e10)
    # A quantile of a mixture lies among those of what is mixed.
    upper, lower = (half / special.gammainccinv(half, q) for q in (tail, 1.0 - tail))
    ends = np.where(location > 0, location * upper[:, None], location * lower[:, None])
    ends = np.where(posterior.weights > 0, ends, np.nan)
    low, high = np.fmin.reduce(ends, axis=1), np.fmax.reduce(ends, axis=1)
    widest = np.maximum(np.abs(low), np.abs(high))
    low, high = low - 1e-12 * widest, high + 1e-12 * widest
    for _ in range(_BISECTIONS):
        x = 0.5 * (low + high)
        enough = (posterior.weights * _below(location, half, x)).sum(axis=1) >= tail
        high, low = np.where(enough, x, high), np.where(enough, low, x)
    found = 0.5 * (low + high)
    return np.asarray(np.where(np.abs(found) <= 2e-12 * widest, 0.0, found))


def _below(location: FloatArray, half: FloatArray, x: FloatArray) -> FloatArray:
    """P(location df / chi2_df <= x), shape (B, G); df = 2 half (B,), x (B,)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = location / x[:, None]
    same = ratio > 0  # both on one side of zero
    tail = special.gammaincc(half[:, None], half[:, None] * np.where(same, ratio, 0.0))
    beside = np.where(x[:, None] >= 0, location <= 0, 0.0)
    return np.asarray(np.where(same, np.where(location > 0, tail, 1.0 - tail), beside))
