"""A second start for features that end with variances of zero or below.

Fits start from variances of zero, which most data leave at once. Where they end on the boundary of
the psd space, or without it at a negative variance, the likelihood may have another, higher maximum
at positive ones: about one such feature in a hundred of small random designs, one in a thousand of
large ones with few levels. A search that comes from large variances finds it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flashmm.arrays.namespaces import BoolArray, IntArray, flatnonzero, namespace, put, take
from flashmm.arrays.types import FloatArray
from flashmm.likelihood.base import Likelihood
from flashmm.solvers.base import Solution, Solver
from flashmm.solvers.fallback import maximise_in_stages
from flashmm.solvers.gains import improves, indefinite
from flashmm.solvers.space import ParameterSpace
from flashmm.solvers.start import Starts
from flashmm.solvers.verdict_texts import Status

__all__ = ["may_be_higher_above", "searched_again", "second_starts"]


def second_starts(first: Starts, is_variance: NDArray[np.bool_]) -> FloatArray:
    """Large variances, no covariances and a small residual, in internal units.

    Parameters
    ----------
    first
        First starts.
    is_variance
        Which parameters are variances, shape (k,).

    Returns
    -------
    numpy.ndarray
        Shape (m, k). NaN for features whose first start was given: who chooses a start chooses
        the maximum.
    """
    start = np.where(is_variance, 1.0, 0.0)
    start[-1] = 0.1
    return np.where(first.given[:, None], np.nan, start)


def may_be_higher_above(solution: Solution, start: FloatArray) -> BoolArray:
    """Which features (B,) have variances of zero or below, and a second start (B, k)."""
    xp = namespace(solution.theta)
    boundary = solution.status == int(Status.BOUNDARY)
    # Of the parameters variances alone start above zero; comparisons with NaN are false.
    negative = xp.any((solution.theta < 0) & (start > 0), axis=1)
    converged = (solution.status == int(Status.CONVERGED)) & negative
    return (boundary & xp.isfinite(start[:, 0])) | converged


def searched_again(
    likelihood: Likelihood,
    space: ParameterSpace,
    stages: tuple[Solver, ...],
    solution: Solution,
    features: IntArray,
    start: FloatArray,
    *,
    max_iter: int,
) -> Solution:
    """The solution with the better of two ends where the first has variances of zero or below.

    Parameters
    ----------
    likelihood, space, stages, features, max_iter
        As for `maximise_in_stages`, whose ``solution`` it is.
    start
        Second starts, shape (B, k); NaN for features that are not searched again.

    Returns
    -------
    Solution
        Changed in place: steps of both searches count.
    """
    rows = flatnonzero(may_be_higher_above(solution, start))
    if rows.shape[0] == 0:
        return solution
    if space.name != "psd":  # a search that is not finished is on its way to the domain's edge
        stages = stages[:1]
    again = maximise_in_stages(
        likelihood, space, stages, take(start, rows), take(features, rows), max_iter=max_iter
    )
    put(solution.n_iter, rows, take(solution.n_iter, rows) + again.n_iter)
    better = flatnonzero(improves(likelihood, solution.take(rows), again))
    if space.name != "psd":
        gone = indefinite(likelihood, take(features, take(rows, better)), take(again.theta, better))
        better = better[~gone]
    if better.shape[0]:
        where = take(rows, better)
        put(solution.theta, where, take(again.theta, better))
        put(solution.status, where, take(again.status, better))
        solution.evaluation.put(where, again.evaluation.take(better))
    return solution
