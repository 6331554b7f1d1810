"""Profile-likelihood limits of variance parameters, for all features at once.

The limits of theta_i are the values at which twice the fall of the log-likelihood, maximised over
the other parameters, equals a chi-square quantile (Venzon & Moolgavkar 1988, Appl Statist 37:87).
They are roots of r(v) = sqrt(2 (l_max - l_i(v))) - sqrt(quantile), which is almost straight; its
derivative needs the score at the constrained maximum alone. Newton's method with a bracket
finds each feature's own root.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.inference.constrained import Maximiser
from flashmm.solvers.space import PSD
from flashmm.solvers.verdict_texts import Status

__all__ = ["Estimate", "profile_limits"]

_ITERATIONS = 40
# Constrained fits that may fail before a feature is given up, as its likelihood has no maximum.
_FAILURES = 3
# In standard errors, roughly: r is a standardised distance.
_TOLERANCE = 1e-7
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Estimate:
    """The unconstrained maxima that profiles start from, in internal units.

    Parameters
    ----------
    theta
        Shape (B, k).
    se
        Standard errors, shape (B, k).
    loglik
        Shape (B,).
    features
        Positions of the features in the likelihood, shape (B,).
    """

    theta: FloatArray
    se: FloatArray
    loglik: FloatArray
    features: IntArray


def profile_limits(
    maximiser: Maximiser,
    estimate: Estimate,
    parameter: int,
    quantile: float,
    over: Callable[[], bool] = lambda: False,
) -> FloatArray:
    """Lower and upper limits of one parameter, in internal units.

    Parameters
    ----------
    maximiser
        The likelihood and its space.
    estimate
        The maxima of B features.
    parameter
        Position in theta.
    quantile
        Twice the fall of the log-likelihood at the limits.
    over
        Whether to stop searching; limits that are not found by then are NaN.

    Returns
    -------
    ndarray
        Shape (B, 2). In the psd space a variance has the lower limit 0 where its likelihood
        does not fall far enough before. NaN where no limit was found.
    """
    count = estimate.features.size
    rows = np.tile(np.arange(count), 2)
    side = np.repeat([-1.0, 1.0], count)
    limits = np.full(2 * count, np.nan)
    outer = side * np.inf
    searched = np.ones(2 * count, dtype=bool)
    zeros = _zeros(maximiser, parameter)
    if zeros and not over():  # the lower side ends at zero
        down = np.flatnonzero(side < 0)
        at_zero = maximiser.at(estimate.theta, estimate.features, zeros=zeros)
        reached = 2.0 * (estimate.loglik - at_zero.loglik) <= quantile
        reached |= estimate.theta[:, parameter] <= 0.0
        limits[down[reached]] = 0.0
        searched[down[reached]] = False
        outer[down] = 0.0
    found = _search(
        maximiser,
        estimate,
        parameter,
        quantile,
        rows[searched],
        side[searched],
        outer[searched],
        over,
    )
    limits[searched] = found
    return np.stack([limits[:count], limits[count:]], axis=1)


def _zeros(maximiser: Maximiser, parameter: int) -> tuple[int, ...]:
    """A variance that may not be negative, with its covariances; empty for other parameters."""
    if isinstance(maximiser.space, PSD):
        for block in maximiser.space.blocks:
            here = np.flatnonzero(np.diag(block) == parameter)
            if here.size:
                return tuple(sorted({int(i) for i in block[here[0]]}))
    return ()


def _search(
    maximiser: Maximiser,
    estimate: Estimate,
    parameter: int,
    quantile: float,
    rows: IntArray,
    side: FloatArray,
    outer: FloatArray,
    over: Callable[[], bool],
) -> FloatArray:
    """Roots between the estimate and ``outer``, one for each of the R rows."""
    goal = np.sqrt(quantile)
    inner = estimate.theta[rows, parameter].copy()
    centre = inner.copy()
    theta = estimate.theta[rows].copy()
    value = centre + side * goal * estimate.se[rows, parameter]
    value = np.where(_between(value, inner, outer, side), value, 0.5 * (inner + outer))
    limits = np.full(rows.size, np.nan)
    failures = np.zeros(rows.size, dtype=np.int64)
    active = np.flatnonzero(np.isfinite(value))
    for _ in range(_ITERATIONS):
        if active.size == 0 or over():
            break
        start = _moved(theta[active], parameter, value[active], maximiser)
        features = estimate.features[rows[active]]
        at = maximiser.at(start, features, values=(parameter,))
        exists = np.isfinite(at.loglik)
        fall = 2.0 * (estimate.loglik[rows[active]] - at.loglik)
        r = np.sqrt(np.maximum(fall, 0.0))
        theta[active[exists]] = at.theta[exists]
        beyond = r > goal
        v = value[active]
        outer[active[beyond]], inner[active[~beyond]] = v[beyond], v[~beyond]
        done = exists & (np.abs(r - goal) <= _TOLERANCE)
        limits[active[done]] = v[done]
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = v + (goal - r) * r / -at.score[:, parameter]
        bounded = np.isfinite(outer[active])
        wider = centre[active] + 2.0 * (v - centre[active])
        with np.errstate(invalid="ignore"):
            fallback = np.where(bounded, 0.5 * (inner[active] + outer[active]), wider)
        # A step that doubles the distance is far enough while there is no bracket.
        reach = np.where(bounded, outer[active], wider)
        sound = exists & _between(newton, inner[active], reach, side[active])
        value[active] = np.where(sound, newton, fallback)
        # A bracket that has closed holds the root to rounding, or a jump between two maxima.
        closed = bounded & (np.abs(outer[active] - inner[active]) <= 1e-12 * np.abs(v))
        rooted = closed & ~done & (np.abs(r - goal) <= _ROUNDING)
        limits[active[rooted]] = v[rooted]
        failures[active[exists & (at.status > Status.INDEFINITE)]] += 1
        higher = exists & (fall < -1e-6 * (1.0 + np.abs(at.loglik)))
        hopeless = higher | (failures[active] > _FAILURES)
        limits[active[hopeless]] = np.nan
        active = active[~(done | closed | hopeless)]
    return limits


def _between(
    value: FloatArray, inner: FloatArray, outer: FloatArray, side: FloatArray
) -> BoolArray:
    """Whether values lie strictly between the bracket's ends; False for NaN."""
    with np.errstate(invalid="ignore"):
        return np.asarray((side * (value - inner) > 0) & (side * (outer - value) > 0))


def _moved(
    theta: FloatArray, parameter: int, value: FloatArray, maximiser: Maximiser
) -> FloatArray:
    """Starting values with the parameter moved, inside the space where that is simple.

    A variance takes its covariances along (the correlations stay); a covariance that grows
    widens the variances beside it.
    """
    moved = theta.copy()
    moved[:, parameter] = value
    if not isinstance(maximiser.space, PSD):
        return moved
    for block in maximiser.space.blocks:
        if block.shape[0] == 1 or parameter not in block:
            continue
        row, column = (int(x) for x in np.argwhere(block == parameter)[0])
        old = theta[:, parameter]
        if row == column:
            ratio = np.divide(value, old, out=np.zeros_like(old), where=old > 0)
            for other in np.setdiff1d(block[row], [parameter]):
                moved[:, other] *= np.sqrt(np.maximum(ratio, 0.0))
        else:
            growth = np.abs(value - old)
            moved[:, block[row, row]] += growth
            moved[:, block[column, column]] += growth
    return moved
