"""Errors of predictions where groups of samples have residual variances of their own.

The errors of the mixed model equations' solutions [b_hat - b; beta_hat - beta] have the covariance
N of `flashmm.likelihood.residual_groups` (Henderson 1975), b given beta F. So for rows w = [z; x]

    f = w'N w,    df/dtheta_i = v'G_i v, v the part of (I - C N) w along Z,
    df/dsigma2_h = (N w)'S_h N w / sigma2_h^2
"""

from __future__ import annotations

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.inference.prediction_variance import PredictionMoments
from flashmm.likelihood.moments import apply_G
from flashmm.likelihood.residual_groups import ResidualGroups

__all__ = ["effect_covariance", "effect_errors", "prediction_errors"]


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
    at = likelihood.matrices(theta, "REML")
    w = np.hstack([Z, X @ likelihood.projection.whitening])
    Nw = np.matmul(w, at.N)  # (B, c, a); N and C are symmetric
    variance = (Nw * w).sum(axis=2)
    v = (w - np.matmul(Nw, at.C))[..., :q]
    k = len(structure.parameters)
    gradient = np.empty((*variance.shape, theta.shape[1]))
    for i in range(k):
        gradient[..., i] = (apply_G(structure, i, v) * v).sum(axis=2)
    for h in range(likelihood.H):
        gradient[..., k + h] = at.c[:, h, None] ** 2 * (np.matmul(Nw, likelihood.S[h]) * Nw).sum(2)
    return PredictionMoments(variance + theta @ independent.T, gradient + independent)


def effect_covariance(likelihood: ResidualGroups, theta: FloatArray) -> FloatArray:
    """var(b | y, beta) of the scaled effects, in internal units, shape (B, q, q)."""
    q = likelihood.projection.structure.q
    return likelihood.matrices(theta, "ML").N_trace[:, :q, :q]


def effect_errors(
    likelihood: ResidualGroups, theta: FloatArray, rows: FloatArray, *, given: bool
) -> FloatArray:
    """Variances of w'(b - b_hat) for the rows w (c, q), in internal units, shape (B, c).

    ``given``: given y and beta.
    """
    q = rows.shape[1]
    N = likelihood.matrices(theta, "ML" if given else "REML").N_trace[:, :q, :q]
    variance = (np.matmul(rows, N) * rows).sum(axis=2)
    return np.where(variance < -1e-12, np.nan, np.maximum(variance, 0.0))
