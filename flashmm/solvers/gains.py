"""Whether another end of a search takes the place of the first: higher, and no worse a verdict."""

from __future__ import annotations

import numpy as np

from flashmm.arrays.namespaces import Array, BoolArray, IntArray, flatnonzero, namespace, put
from flashmm.arrays.types import FloatArray
from flashmm.likelihood.base import Evaluation, Likelihood, rows_of
from flashmm.solvers.base import Solution
from flashmm.solvers.blocks import symmetric_eigen
from flashmm.solvers.verdict_texts import Status

__all__ = ["GAIN", "improves", "indefinite", "is_higher", "spoilt"]

# Gains in log-likelihood that are worth another answer.
GAIN = 1e-6
_MOST_ROUNDING = 1e-2
# The bound on rounding has no meaning at sigma2 = 0, where a likelihood may be exact all the same.
_ROUNDING_AT_ZERO = 1e-4


def is_higher(before: Solution, again: Solution) -> BoolArray:
    """Which ends (B,) of a further search are higher than those of the search before."""
    xp = namespace(before.theta)
    rounding = xp.clip(_rounding(before) + _rounding(again), max=_MOST_ROUNDING)
    return again.evaluation.loglik > before.evaluation.loglik + GAIN + rounding


def improves(likelihood: Likelihood, before: Solution, again: Solution) -> BoolArray:
    """Which ends (B,) of a further search are higher than those before, and finished as well.

    A verdict must not become worse by a search for more: an end does not count whose score or
    information is lost in rounding, unless those of the one before are too.
    """
    better = is_higher(before, again) & (again.status <= int(Status.BOUNDARY))
    rows = flatnonzero(better)
    if rows.shape[0]:
        first, second = before.take(rows), again.take(rows)
        worse = spoilt(likelihood, second.theta, second.evaluation)
        put(better, rows, ~worse | spoilt(likelihood, first.theta, first.evaluation))
    return better


def spoilt(likelihood: Likelihood, theta: FloatArray, at: Evaluation) -> BoolArray:
    """Where (B,) rounding leaves no standard errors, or no score, to judge an end by."""
    xp, expected = namespace(theta), at.expected
    with np.errstate(all="ignore"):  # rounding may have spoilt it at the edge of the domain
        length = xp.sqrt(xp.linalg.diagonal(expected))
        values, _ = symmetric_eigen(expected / (length[:, :, None] * length[:, None, :]))
        found: BoolArray = ~(xp.min(values, axis=1) > 0.0)
    lost = getattr(likelihood, "lost_in_rounding", None)
    if lost is None or hasattr(likelihood, "of"):  # of features with rows of their own, all at once
        return found
    return found | lost(theta, expected)


def indefinite(likelihood: Likelihood, features: IntArray, theta: FloatArray) -> BoolArray:
    """Where V is not positive definite at theta (B, k).

    The restricted likelihood exists beyond V's domain, as far as the error contrasts have a
    covariance. A first search may end there, as FLASHMM's does; no other maximum is given up for
    one without standard errors.
    """
    if features.shape[0] == 0:
        return features < 0
    return ~rows_of(likelihood, features).is_definite(theta)


def _rounding(end: Solution) -> Array:
    """Rounding errors of the log-likelihoods, shape (B,)."""
    xp = namespace(end.theta)
    return xp.where(end.theta[:, -1] == 0.0, _ROUNDING_AT_ZERO, end.evaluation.rounding)
