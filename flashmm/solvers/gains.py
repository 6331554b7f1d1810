"""Whether another end of a search is higher than the first by more than rounding."""

from __future__ import annotations

from flashmm.arrays.namespaces import Array, BoolArray, namespace
from flashmm.solvers.base import Solution

__all__ = ["GAIN", "is_higher"]

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


def _rounding(end: Solution) -> Array:
    """Rounding errors of the log-likelihoods, shape (B,)."""
    xp = namespace(end.theta)
    return xp.where(end.theta[:, -1] == 0.0, _ROUNDING_AT_ZERO, end.evaluation.rounding)
