"""Correlations of random effects and their limits, by the delta method or the profile likelihood.

The correlation of the effects i and j is rho = theta_c / sqrt(theta_i theta_j). Limits of the delta
method are symmetric in Fisher's z = artanh(rho). For the profile the covariance follows from the
rest, theta_c = rho sqrt(theta_i theta_j), and the likelihood is maximised over the rest by scoring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.inference.roots import profile_roots
from flashmm.inference.tails import norm_isf

__all__ = [
    "CommonCorrelation",
    "CommonVariance",
    "Correlated",
    "Correlation",
    "Tied",
    "correlation",
    "delta_limits",
    "profile_limits",
]

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


class Tied(Protocol):
    """A function of theta on the real line, z, that ties one parameter to others when it is held.

    Parameters
    ----------
    dependent
        Position of the parameter that follows from the others and z.
    guarded
        Positions of variances that must stay positive.
    """

    @property
    def dependent(self) -> int:
        """Position of the dependent parameter."""
        ...

    @property
    def guarded(self) -> tuple[int, ...]:
        """Positions of the variances."""
        ...

    def z(self, theta: FloatArray) -> FloatArray:
        """Z of theta (R, k), shape (R,); NaN where it has none."""
        ...

    def tied(self, theta: FloatArray, z: FloatArray) -> FloatArray:
        """Theta with the dependent parameter that z (R,) gives."""
        ...

    def slopes(self, theta: FloatArray) -> list[tuple[int, FloatArray]]:
        """Derivatives of the dependent parameter by the others that it follows from, (R,) each."""
        ...

    def value(self, z: FloatArray) -> FloatArray:
        """What z stands for."""
        ...

    def room(self, z: FloatArray, side: FloatArray) -> FloatArray:
        """How far limits are looked for on either side of z."""
        ...


@dataclass(frozen=True)
class Correlated:
    """Positions in theta of a covariance and of the two variances beside it; z = artanh(rho)."""

    covariance: int
    row: int
    column: int

    @property
    def dependent(self) -> int:
        """The covariance."""
        return self.covariance

    @property
    def guarded(self) -> tuple[int, ...]:
        """Both variances."""
        return self.row, self.column

    def z(self, theta: FloatArray) -> FloatArray:
        """Fisher's z of the correlation."""
        a, b = theta[:, self.row], theta[:, self.column]
        with np.errstate(invalid="ignore", divide="ignore"):
            rho = np.where((a > 0) & (b > 0), theta[:, self.covariance] / np.sqrt(a * b), np.nan)
        return np.asarray(np.arctanh(np.clip(rho, -np.tanh(_MOST / 2), np.tanh(_MOST / 2))))

    def tied(self, theta: FloatArray, z: FloatArray) -> FloatArray:
        """The covariance that a correlation gives."""
        theta = theta.copy()
        size = np.sqrt(theta[:, self.row] * theta[:, self.column])
        theta[:, self.covariance] = np.tanh(z) * size
        return theta

    def slopes(self, theta: FloatArray) -> list[tuple[int, FloatArray]]:
        """Of the covariance by the variances."""
        half = 0.5 * theta[:, self.covariance]
        return [(i, half / theta[:, i]) for i in self.guarded]

    def value(self, z: FloatArray) -> FloatArray:
        """The correlation."""
        rho = np.tanh(z)
        return np.asarray(np.where(np.abs(rho) > np.tanh(_MOST - 1.0), np.sign(rho), rho))

    def room(self, z: FloatArray, side: FloatArray) -> FloatArray:
        """To correlations of one."""
        return np.maximum(_MOST - side * z, 1e-6)


@dataclass(frozen=True)
class CommonCorrelation:
    """The correlation rho of compound symmetry, of the ratio of its two eigenvalues.

    They are positions in theta, ``mean`` = v (1 + (s - 1) rho) and ``deviation`` = v (1 - rho) for
    s effects; z is half the logarithm of their ratio, Fisher's z of rho where s = 2.
    """

    mean: int
    deviation: int
    s: int

    @property
    def dependent(self) -> int:
        """The eigenvalue of the mean."""
        return self.mean

    @property
    def guarded(self) -> tuple[int, ...]:
        """The other."""
        return (self.deviation,)

    def z(self, theta: FloatArray) -> FloatArray:
        """Half the logarithm of the ratio."""
        a, b = theta[:, self.mean], theta[:, self.deviation]
        with np.errstate(invalid="ignore", divide="ignore"):
            z = 0.5 * np.log(np.where((a >= 0) & (b >= 0) & (a + b > 0), a / b, np.nan))
        return np.asarray(np.clip(z, -_MOST / 2, _MOST / 2))

    def tied(self, theta: FloatArray, z: FloatArray) -> FloatArray:
        """The eigenvalue of the mean that z gives."""
        theta = theta.copy()
        theta[:, self.mean] = np.exp(2.0 * z) * theta[:, self.deviation]
        return theta

    def slopes(self, theta: FloatArray) -> list[tuple[int, FloatArray]]:
        """The ratio of the eigenvalues."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return [(self.deviation, theta[:, self.mean] / theta[:, self.deviation])]

    def value(self, z: FloatArray) -> FloatArray:
        """The correlation, from -1 / (s - 1) to 1."""
        ratio = np.exp(2.0 * np.clip(z, -_MOST, _MOST))
        rho = np.where(z > 0, 1.0 - self.s / (ratio + self.s - 1.0), (ratio - 1.0))
        rho = np.where(z > 0, rho, rho / (ratio + self.s - 1.0))
        ends = np.where(z > 0, 1.0, -1.0 / (self.s - 1))
        return np.asarray(np.where(np.abs(z) > _MOST - 1.0, ends, rho))

    def room(self, z: FloatArray, side: FloatArray) -> FloatArray:
        """To correlations of one and of minus one over s - 1."""
        return np.maximum(_MOST - side * z, 1e-6)


@dataclass(frozen=True)
class CommonVariance:
    """The variance v of compound symmetry, (mean + (s - 1) deviation) / s; z = log(v) / 2."""

    mean: int
    deviation: int
    s: int
    bounded: bool

    @property
    def dependent(self) -> int:
        """The eigenvalue of the mean."""
        return self.mean

    @property
    def guarded(self) -> tuple[int, ...]:
        """None."""
        return ()

    def z(self, theta: FloatArray) -> FloatArray:
        """Logarithm of the standard deviation."""
        v = (theta[:, self.mean] + (self.s - 1) * theta[:, self.deviation]) / self.s
        return np.asarray(0.5 * np.log(np.where(v > 0, v, np.nan)))

    def tied(self, theta: FloatArray, z: FloatArray) -> FloatArray:
        """The eigenvalue of the mean that v leaves; where theta is bounded, not below zero."""
        theta, total = theta.copy(), self.s * np.exp(2.0 * z)
        if self.bounded:
            most = total / (self.s - 1)
            theta[:, self.deviation] = np.minimum(theta[:, self.deviation], most)
        left = total - (self.s - 1) * theta[:, self.deviation]
        theta[:, self.mean] = np.maximum(left, 0.0) if self.bounded else left
        return theta

    def slopes(self, theta: FloatArray) -> list[tuple[int, FloatArray]]:
        """What one eigenvalue takes from the other."""
        return [(self.deviation, np.full(theta.shape[0], 1.0 - self.s))]

    def value(self, z: FloatArray) -> FloatArray:
        """The standard deviation."""
        return np.asarray(np.exp(z))

    def room(self, z: FloatArray, side: FloatArray) -> FloatArray:
        """A factor of a million."""
        del side
        return np.full(z.shape, _MOST)


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
    at: Tied,
    kept: BoolArray,
    goal: float,
) -> FloatArray:
    """Values of a correlation, or another function of theta, at the ends of its profile interval.

    There twice the fall of the profile log-likelihood is the square of ``goal``.

    Parameters
    ----------
    evaluate
        The likelihood of the B features in the units of theta.
    theta
        Its maxima, shape (B, k).
    se
        Standard errors of z, shape (B,).
    at
        The function of theta.
    kept
        Variances that may not be negative, shape (k,).
    goal
        Root of the chi-square quantile.

    Returns
    -------
    ndarray
        Shape (B, 2); the end of the range, such as a correlation of one, where the likelihood does
        not fall far enough before.
    """
    count = theta.shape[0]
    top, _, _ = evaluate(np.arange(count), theta)
    start = np.repeat(theta, 2, axis=0)
    # Next to a variance of zero a correlation says nothing: there the variance is held.
    floor = np.where(kept, 0.0, -np.inf) * np.ones_like(theta)
    floor[:, at.guarded] = _SMALL * theta[:, at.guarded]
    centre = at.z(theta)

    def distance(rows: IntArray, x: FloatArray) -> FloatArray:
        f = rows // 2
        value, where = _maximum(evaluate, f, start[rows], centre[f] + x, at, floor[f])
        start[rows] = np.where(np.isfinite(value)[:, None], where, start[rows])
        return np.asarray(np.sqrt(np.maximum(2.0 * (top[f] - value), 0.0)))

    side = np.tile([-1.0, 1.0], count)
    middle = np.repeat(centre, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        first = side * goal * np.repeat(se, 2)
    first = np.where(np.isfinite(first) & (first != 0.0), np.clip(first, -3.0, 3.0), side)
    first = np.where(np.isfinite(middle), first, np.nan)
    ends = middle + profile_roots(distance, first, goal, at.room(middle, side))
    return np.asarray(at.value(ends).reshape(count, 2))


def _maximum(
    evaluate: Evaluate,
    features: IntArray,
    theta: FloatArray,
    z: FloatArray,
    at: Tied,
    floor: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Maxima with z held and theta not below ``floor``: values (R,), theta (R, k)."""
    k = theta.shape[1]
    free = np.delete(np.arange(k), at.dependent)
    theta = at.tied(theta, z)
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
        for i, slope in at.slopes(point):
            J[:, at.dependent, int(np.searchsorted(free, i))] = slope
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
            for i in at.guarded:
                least = np.maximum(0.1 * point[trying, i], floor[active[trying], i])
                moved[:, i] = np.maximum(moved[:, i], least)
            moved = at.tied(moved, z[active[trying]])
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
