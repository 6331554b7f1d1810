"""Tests as means of tests over a posterior: p-values, limits and what summarises them.

Given the ratios, (l'beta_hat - l'beta) / (s sqrt(l'Cl)) is Student's t on n - p + d0 degrees of
freedom, and beta_hat is independent of the error contrasts that the posterior of the ratios is
made of. So the mean of the p-values given the ratios is exact on average over features where the
prior is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from flashmm.arrays.types import FloatArray
from flashmm.inference.integrated.posterior import Posterior
from flashmm.inference.integrated.student import f_tail, student_cdf, student_density
from flashmm.inference.statistics import Alternative

__all__ = [
    "JointTests",
    "MixtureTests",
    "joint_tests",
    "mixture_covariance",
    "mixture_limits",
    "mixture_tests",
]

_MAX_STEPS = 60


@dataclass(frozen=True)
class MixtureTests:
    """Tests of c linear functions for B features; all arrays (B, c).

    Parameters
    ----------
    estimate
        Posterior mean of the estimates given the ratios.
    se
        Root of the posterior mean of their variances plus the variance of the estimates over the
        posterior.
    df
        Degrees of freedom of that variance, 2 mean^2 / variance over the posterior.
    p
        Posterior means of the p-values given the ratios.
    """

    estimate: FloatArray
    se: FloatArray
    df: FloatArray
    p: FloatArray


@dataclass(frozen=True)
class JointTests:
    """F tests of one hypothesis for B features; all arrays (B,)."""

    F: FloatArray
    df: FloatArray
    p: FloatArray


def mixture_tests(
    estimates: FloatArray,
    unit_variance: FloatArray,
    posterior: Posterior,
    values: FloatArray,
    alternative: Alternative = "two-sided",
) -> MixtureTests:
    """T tests integrated over a posterior.

    Parameters
    ----------
    estimates
        At the grid points, shape (B, c, G).
    unit_variance
        Variances over sigma2, shape (c, G), or (B, c, G) where designs differ.
    posterior
        Of the B features, in the units of the estimates.
    values
        Hypothesised values, shape (c,).
    alternative
        ``"two-sided"``, ``"greater"`` or ``"less"``.
    """
    variance = unit_variance * posterior.variance[:, None, :]
    estimate, se, df = _summary(estimates, variance, posterior)
    t = (estimates - values[:, None]) / np.sqrt(variance)
    if alternative == "two-sided":
        t = -np.abs(t)
    elif alternative == "greater":
        t = -t
    p = posterior.mean(student_cdf(posterior.df, t))
    p = 2.0 * p if alternative == "two-sided" else p
    return MixtureTests(
        estimate, se, df, np.minimum(p, 1.0)
    )  # weights add up to 1 but for rounding


def mixture_limits(
    estimates: FloatArray,
    unit_variance: FloatArray,
    posterior: Posterior,
    alpha: float | FloatArray,
) -> FloatArray:
    """Limits at which the one-sided integrated p-values are alpha / 2, shape (B, c, 2).

    ``alpha`` is one number or one of each limit, (B, c).

    By safeguarded Newton steps from limits of Student's t; the answer is exact to 1e-10 of the
    standard error.
    """
    scale = np.sqrt(unit_variance * posterior.variance[:, None, :])
    estimate, se, df = _summary(estimates, scale**2, posterior)
    freedom = posterior.df[:, None, None]
    first = special.stdtrit(np.minimum(df, 1e10), alpha / 2.0) * se
    # A quantile of a mixture lies among the quantiles of what is mixed.
    each = np.asarray(alpha)[..., None] / 2.0
    part = special.stdtrit(np.minimum(freedom, 1e10), each) * scale
    used = (posterior.weights > 0)[:, None, :]
    limits = []
    for sign in (1.0, -1.0):
        centre, start = sign * estimates, sign * estimate + first
        ends = centre + part
        low = np.where(used, ends, np.inf).min(axis=-1)
        high = np.where(used, ends, -np.inf).max(axis=-1)
        x = np.clip(start, low, high)
        for _ in range(_MAX_STEPS):
            t = (x[..., None] - centre) / scale
            excess = posterior.mean(student_cdf(posterior.df, t)) - alpha / 2.0
            low, high = np.where(excess < 0, x, low), np.where(excess < 0, high, x)
            density = posterior.mean(student_density(posterior.df, t) / scale)
            with np.errstate(divide="ignore", invalid="ignore"):
                step = x - excess / density
            inside = (step > low) & (step < high)
            again = np.where(inside, step, 0.5 * (low + high))
            moved = np.abs(again - x)
            x = again
            if not (moved > 1e-10 * se).any():  # False for NaN
                break
        limits.append(sign * x)
    return np.stack(limits, axis=-1)


def mixture_covariance(
    estimates: FloatArray, unit_covariance: FloatArray, posterior: Posterior
) -> FloatArray:
    """Posterior mean of the covariances plus that of the estimates over it, shape (B, r, r).

    Parameters
    ----------
    estimates
        Of r functions at the grid points, shape (B, r, G).
    unit_covariance
        Covariances over sigma2, shape (r, r, G); (B, r, r, G) where features have their own.
    posterior
        Of the B features.
    """
    r, G = estimates.shape[1:]
    weights = posterior.weights
    weighted = weights * posterior.variance
    flat = unit_covariance.reshape(*unit_covariance.shape[:-3], r * r, G)
    if flat.ndim == 2:
        spread = (weighted @ flat.T).reshape(-1, r, r)
    else:
        spread = np.matmul(flat, weighted[:, :, None]).reshape(-1, r, r)
    apart = estimates - posterior.mean(estimates)[:, :, None]
    between = np.matmul(apart * weights[:, None, :], np.swapaxes(apart, 1, 2))
    return np.asarray(spread + between)


def joint_tests(
    estimates: FloatArray, unit_covariance: FloatArray, posterior: Posterior, values: FloatArray
) -> JointTests:
    """F tests integrated over a posterior.

    F is the squared length of the mean estimate in the metric of its covariance, which is the
    mean of the covariances plus that of the estimates over the posterior, divided by r.

    Parameters
    ----------
    estimates
        Of r linearly independent functions, shape (B, r, G).
    unit_covariance
        Covariances over sigma2, shape (r, r, G), or (B, r, r, G) where designs differ.
    posterior
        Of the B features.
    values
        Hypothesised values, shape (r,).
    """
    r, G = estimates.shape[1:]
    flat = unit_covariance.reshape(*unit_covariance.shape[:-3], r * r, G)
    difference = estimates - values[:, None]
    F = _squared_lengths(difference, unit_covariance)
    F /= r * posterior.variance
    p = np.minimum(posterior.mean(f_tail(F, float(r), posterior.df)), 1.0)
    centre = posterior.mean(difference)
    total = mixture_covariance(estimates, unit_covariance, posterior)
    good = np.asarray(np.isfinite(total).all(axis=(1, 2)))
    safe = np.where(good[:, None, None], total, np.eye(r))
    inverse = np.linalg.inv(safe)
    statistic = np.matmul(np.matmul(centre[:, None, :], inverse), centre[:, :, None])[:, 0, 0] / r
    inverses = inverse.reshape(-1, r * r)
    if flat.ndim == 2:
        size = (inverses @ flat) * posterior.variance
    else:
        size = np.matmul(inverses[:, None], flat)[:, 0] * posterior.variance
    df = _matched_df(size, posterior)
    return JointTests(*(np.where(good, each, np.nan) for each in (statistic, df, p)))


def _squared_lengths(difference: FloatArray, unit_covariance: FloatArray) -> FloatArray:
    """d'C^-1 d of differences (B, r, G), C (r, r, G) or (B, r, r, G), shape (B, G)."""
    whitening = np.linalg.inv(np.linalg.cholesky(np.moveaxis(unit_covariance, -1, -3)))
    if whitening.ndim == 4:
        white = np.matmul(whitening, np.swapaxes(difference, 1, 2)[..., None])
        return np.asarray((white * white).sum(axis=(2, 3)))
    result = np.empty((difference.shape[0], difference.shape[2]))
    for g, one in enumerate(whitening):
        white = difference[:, :, g] @ one.T
        result[:, g] = (white * white).sum(axis=1)
    return result


def _summary(
    estimates: FloatArray, variance: FloatArray, posterior: Posterior
) -> tuple[FloatArray, FloatArray, FloatArray]:
    estimate = posterior.mean(estimates)
    apart = posterior.mean((estimates - estimate[..., None]) ** 2)
    se = np.sqrt(posterior.mean(variance) + apart)
    return estimate, se, _matched_df(variance, posterior)


def _matched_df(variance: FloatArray, posterior: Posterior) -> FloatArray:
    """2 mean^2 / variance of variances (B, ..., G) over the posterior, sigma2's own included."""
    mean = posterior.mean(variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = posterior.mean((variance / mean[..., None] - 1.0) ** 2)
        own = 2.0 / posterior.df
        return np.asarray(2.0 / (own.reshape(-1, *(1,) * (spread.ndim - 1)) + spread))
