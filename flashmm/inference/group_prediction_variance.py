"""Errors of predictions where groups of samples have residual variances of their own.

The errors of the mixed model equations' solutions [b_hat - b; beta_hat - beta] have the covariance
N of `flashmm.likelihood.residual_groups.groups` (Henderson 1975), b given beta F. So for rows
w = [z; x]

    f = w'N w,    df/dtheta_i = v'G_i v, v the part of (I - C N) w along Z,
    df/dsigma2_h = (N w)'S_h N w / sigma2_h^2
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.inference.prediction_variance import PredictionMoments
from flashmm.likelihood.moments import apply_G
from flashmm.likelihood.residual_groups.groups import ResidualGroups
from flashmm.likelihood.residual_groups.present_groups import PresentGroups

__all__ = ["effect_covariance", "effect_errors", "own_effect_errors", "prediction_errors"]


def prediction_errors(
    likelihood: ResidualGroups,
    theta: FloatArray,
    X: FloatArray,
    Z: FloatArray,
    independent: FloatArray,
) -> PredictionMoments:
    """Variances of x'(beta_hat - beta) + z'(b_hat - b) and their derivatives, in internal units.

    Parameters
    ----------
    likelihood
        Whose matrices they are of.
    theta
        Internal parameters, shape (B, k + H).
    X, Z
        Rows of X, shape (c, p), and of the scaled Z, shape (c, q).
    independent
        Row i adds ``independent[i] @ theta``, shape (c, k + H).
    """
    structure, q = likelihood.projection.structure, Z.shape[1]
    k, shape = len(structure.parameters), (theta.shape[0], Z.shape[0])
    w = np.hstack([Z, X @ likelihood.projection.whitening])
    variance, gradient = np.empty(shape), np.empty((*shape, theta.shape[1]))
    for here, at in likelihood.parts(theta):
        rows = at.sums.split(np.broadcast_to(w, (here.size, *w.shape)))
        Nw = at.sums.joined(at.times_N(rows))
        v = at.sums.joined(at.less_CN(rows))[..., :q]
        variance[here] = (Nw * w).sum(axis=2)
        for i in range(k):
            gradient[here, :, i] = (apply_G(structure, i, v) * v).sum(axis=2)
        for h in range(likelihood.H):
            squares = (np.matmul(Nw, likelihood.S[h]) * Nw).sum(axis=2)
            gradient[here, :, k + h] = at.c[:, h, None] ** 2 * squares
    return PredictionMoments(variance + theta @ independent.T, gradient + independent)


def effect_covariance(likelihood: ResidualGroups, theta: FloatArray) -> FloatArray:
    """var(b | y, beta) of the scaled effects, in internal units, shape (B, q, q)."""
    return _times_N(likelihood, theta, np.eye(likelihood.projection.structure.q), given=True)


def effect_errors(
    likelihood: ResidualGroups, theta: FloatArray, rows: FloatArray, *, given: bool
) -> FloatArray:
    """Variances of w'(b - b_hat) for the rows w (c, q), in internal units, shape (B, c).

    ``given``: given y and beta.
    """
    variance = (_times_N(likelihood, theta, rows, given=given) * rows).sum(axis=2)
    return np.where(variance < -1e-12, np.nan, np.maximum(variance, 0.0))


def own_effect_errors(
    likelihood: Any, theta: FloatArray, rows: FloatArray, *, given: bool
) -> FloatArray:
    """`effect_errors` of any likelihood with residual variances by group, rows (c, q) or (B, c, q).

    The rows of features that share their samples are the same.
    """
    if isinstance(likelihood, ResidualGroups):
        return effect_errors(likelihood, theta, rows, given=given)
    if isinstance(likelihood, PresentGroups):
        inner, kept = likelihood.inner, likelihood.kept
        return effect_errors(inner, theta[:, kept], rows, given=given)
    result = np.empty(rows.shape[:2])
    for where, one in likelihood.parts:
        if isinstance(one, ResidualGroups | PresentGroups):
            shared = rows[where[0]]
            result[where] = own_effect_errors(one, theta[where], shared, given=given)
        else:
            result[where] = one.effect_errors(theta[where], rows[where], given=given)
    return result


def _times_N(
    likelihood: ResidualGroups, theta: FloatArray, rows: FloatArray, *, given: bool
) -> FloatArray:
    """N w for the rows w (c, q), or F w ``given`` beta too, over the random effects, (B, c, q)."""
    (c, q), B = rows.shape, theta.shape[0]
    result = np.empty((B, c, q))
    wide = np.hstack([rows, np.zeros((c, likelihood.projection.p))])
    for here, at in likelihood.parts(theta):
        vectors = at.sums.split(np.broadcast_to(wide, (here.size, *wide.shape)))
        N_r = at.border.N_ml if given else at.border.N
        result[here] = at.sums.joined(at.times_N(vectors, N_r))[..., :q]
    return result
