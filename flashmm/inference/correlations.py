"""Correlations of random effects and their limits, by the delta method or the profile likelihood.

The correlation of the effects i and j is rho = theta_c / sqrt(theta_i theta_j). Limits of the delta
method are symmetric in Fisher's z = artanh(rho). For the profile the covariance follows from the
rest, theta_c = rho sqrt(theta_i theta_j), and the likelihood is maximised over the rest by scoring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.inference.roots import profile_roots
from flashmm.inference.tails import norm_isf

__all__ = ["Correlated", "Correlation", "correlation", "delta_limits", "profile_limits"]

_STEPS, _HALVINGS = 60, 30
_DECREMENT = 1e-9
# Variances beside a correlation stay above this share of their estimates.
_SMALL = 1e-8
# Largest |z| of a profile: correlations beyond differ from 1 by less than 1e-11.
_MOST = 14.0


@dataclass(frozen=True)
class Correlation:
    """Estimates and standard errors, both (B,); NaN where a variance is not positive."""

    estimate: FloatArray
    se: FloatArray


@dataclass(frozen=True)
class Correlated:
    """Positions in theta of a covariance and of the two variances beside it."""

    covariance: int
    row: int
    column: int


def correlation(theta: FloatArray, covariance: FloatArray, at: Correlated) -> Correlation:
    """Correlations and, by the delta method, their standard errors.

    Parameters
    ----------
    theta
        Shape (B, k).
    covariance
        Of theta, shape (B, k, k).
    at
        Which parameters.
    """
    a, b, c = theta[:, at.row], theta[:, at.column], theta[:, at.covariance]
    with np.errstate(invalid="ignore", divide="ignore"):
        size = np.sqrt(np.where((a > 0) & (b > 0), a * b, np.nan))
        rho = c / size
        gradient = np.stack([1.0 / size, -0.5 * rho / a, -0.5 * rho / b], axis=1)
    places = [at.covariance, at.row, at.column]
    block = covariance[:, places][:, :, places]
    variance = np.matmul(np.matmul(gradient[:, None, :], block), gradient[:, :, None])[:, 0, 0]
    return Correlation(np.clip(rho, -1.0, 1.0), np.sqrt(np.maximum(variance, 0.0)))


def delta_limits(found: Correlation, alpha: float) -> FloatArray:
    """Limits symmetric in Fisher's z, shape (B, 2); NaN for a correlation of one."""
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = 1.0 - found.estimate**2
        z = np.arctanh(np.where(inside > 1e-12, found.estimate, np.nan))
        half = norm_isf(alpha / 2.0) * found.se / inside
    return np.stack([np.tanh(z - half), np.tanh(z + half)], axis=1)


# Log-likelihoods (R,), scores (R, k) and expected information (R, k, k) of rows at theta (R, k).
Evaluate = Callable[["IntArray", "FloatArray"], tuple["FloatArray", "FloatArray", "FloatArray"]]


def profile_limits(
    evaluate: Evaluate,
    theta: FloatArray,
    se: FloatArray,
    at: Correlated,
    kept: BoolArray,
    goal: float,
) -> FloatArray:
    """Correlations at which twice the fall of the profile log-likelihood is the square of ``goal``.

    Parameters
    ----------
    evaluate
        The likelihood of the B features in the units of theta.
    theta
        Its maxima, shape (B, k).
    se
        Standard errors of the correlations, shape (B,).
    at
        Which parameters.
    kept
        Variances that may not be negative, shape (k,).
    goal
        Root of the chi-square quantile.

    Returns
    -------
    ndarray
        Shape (B, 2); one, or minus one, where the likelihood does not fall far enough before.
    """
    count = theta.shape[0]
    top, _, _ = evaluate(np.arange(count), theta)
    start = np.repeat(theta, 2, axis=0)
    a, b = theta[:, at.row], theta[:, at.column]
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = np.where((a > 0) & (b > 0), theta[:, at.covariance] / np.sqrt(a * b), np.nan)
    # Next to a variance of zero a correlation says nothing: there the variance is held.
    floor = np.where(kept, 0.0, -np.inf) * np.ones_like(theta)
    floor[:, [at.row, at.column]] = _SMALL * theta[:, [at.row, at.column]]
    centre = np.arctanh(np.clip(rho, -np.tanh(_MOST / 2), np.tanh(_MOST / 2)))

    def distance(rows: IntArray, x: FloatArray) -> FloatArray:
        f = rows // 2
        value, where = _maximum(evaluate, f, start[rows], np.tanh(centre[f] + x), at, floor[f])
        start[rows] = np.where(np.isfinite(value)[:, None], where, start[rows])
        return np.asarray(np.sqrt(np.maximum(2.0 * (top[f] - value), 0.0)))

    side = np.tile([-1.0, 1.0], count)
    middle = np.repeat(centre, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        first = side * goal * np.repeat(se / (1.0 - rho**2), 2)
    first = np.where(np.isfinite(first) & (first != 0.0), np.clip(first, -3.0, 3.0), side)
    first = np.where(np.isfinite(middle), first, np.nan)
    most = np.maximum(_MOST - side * middle, 1e-6)
    ends = np.tanh(middle + profile_roots(distance, first, goal, most))
    ends = np.where(np.abs(ends) > np.tanh(_MOST - 1.0), np.sign(ends), ends)
    return np.asarray(ends.reshape(count, 2))


def _maximum(
    evaluate: Evaluate,
    features: IntArray,
    theta: FloatArray,
    rho: FloatArray,
    at: Correlated,
    floor: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Maxima with correlations held and theta not below ``floor``: values (R,), theta (R, k)."""
    k = theta.shape[1]
    free = np.delete(np.arange(k), at.covariance)
    theta = _tied(theta, rho, at)
    value, score, information = evaluate(features, theta)
    theta, value = theta.copy(), value.copy()
    score, information = score.copy(), information.copy()
    active = np.flatnonzero(np.isfinite(value))
    for _ in range(_STEPS):
        if active.size == 0:
            break
        point = theta[active]
        J = np.zeros((active.size, k, k - 1))
        J[:, free, np.arange(k - 1)] = 1.0
        for i in (at.row, at.column):
            J[:, at.covariance, int(np.searchsorted(free, i))] = (
                0.5 * point[:, at.covariance] / point[:, i]
            )
        Jt = np.swapaxes(J, 1, 2)
        s = np.matmul(Jt, score[active][:, :, None])[:, :, 0]
        E = np.matmul(np.matmul(Jt, information[active]), J)
        held = (point[:, free] <= floor[active][:, free]) & (s <= 0.0)
        s[held] = 0.0
        E[held] = 0.0
        np.swapaxes(E, 1, 2)[held] = 0.0
        rows, places = np.nonzero(held)
        E[rows, places, places] = 1.0
        length = np.sqrt(np.maximum(np.diagonal(E, axis1=1, axis2=2), 1e-300))
        scaled = E / (length[:, :, None] * length[:, None, :]) + 1e-12 * np.eye(k - 1)
        step = np.linalg.solve(scaled, (s / length)[:, :, None])[:, :, 0] / length
        done = (step * s).sum(axis=1) < _DECREMENT
        active, point, step = active[~done], point[~done], step[~done]
        if active.size == 0:
            break
        trying, size = np.arange(active.size), np.ones(active.size)
        for _ in range(_HALVINGS):
            moved = point[trying].copy()
            moved[:, free] += size[trying, None] * step[trying]
            moved = np.maximum(moved, floor[active[trying]])
            for i in (at.row, at.column):
                least = np.maximum(0.1 * point[trying, i], floor[active[trying], i])
                moved[:, i] = np.maximum(moved[:, i], least)
            moved = _tied(moved, rho[active[trying]], at)
            new, new_score, new_information = evaluate(features[active[trying]], moved)
            up = np.isfinite(new) & (new >= value[active[trying]])
            where = active[trying[up]]
            theta[where], value[where] = moved[up], new[up]
            score[where], information[where] = new_score[up], new_information[up]
            trying = trying[~up]
            size[trying] *= 0.5
            if trying.size == 0:
                break
        active = np.delete(active, trying)
    return value, theta


def _tied(theta: FloatArray, rho: FloatArray, at: Correlated) -> FloatArray:
    """Theta with the covariance that a correlation gives."""
    theta = theta.copy()
    theta[:, at.covariance] = rho * np.sqrt(theta[:, at.row] * theta[:, at.column])
    return theta
