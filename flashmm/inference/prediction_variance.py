"""Variances of predictions x'(beta_hat - beta) + z'(b_hat - b), and how they depend on theta.

From the mixed model equations (Henderson 1975), with T = Z'PZ, H = Z'X (X'X)^-1 and w = z - H x:

    f = sigma2 x'(X'X)^-1 x + w'(D - D T D) w
    df/dtheta_i = v'G_i v,  v = (I - T D) w,

the residual's derivative from sum_i theta_i df/dtheta_i = f. With z = 0 it is the variance of a
contrast of beta. Arrays only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.likelihood.base import Estimator
from flashmm.likelihood.moments import apply_G, near_zero_residual, powers_of_P, times_D

__all__ = ["PredictionMoments", "prediction_moments"]


@dataclass(frozen=True)
class PredictionMoments:
    """Variances of c predictions for B features, shape (B, c), and their gradient (B, c, k)."""

    variance: FloatArray
    gradient: FloatArray


def prediction_moments(
    likelihood: Estimator,
    theta: FloatArray,
    X: FloatArray,
    Z: FloatArray,
    independent: FloatArray,
) -> PredictionMoments:
    """Variances of predictions and their derivatives by theta, in internal units.

    Parameters
    ----------
    likelihood
        Its `apply_T` does the work.
    theta
        Internal parameters, shape (B, k).
    X
        Rows of X, shape (c, p).
    Z
        Rows of the scaled Z, shape (c, q), or (B, c, q) where features scale it differently.
    independent
        What is linear in theta and independent of the data, such as the effects of unknown levels
        and the noise of a new observation: row i adds ``independent[i] @ theta``; shape (c, k), or
        (B, c, k).

    Returns
    -------
    PredictionMoments
    """
    projection, k = likelihood.projection, theta.shape[1]
    structure = projection.structure
    W = Z - np.matmul(X, np.swapaxes(projection.H, -1, -2))
    W = np.broadcast_to(W, (theta.shape[0], *Z.shape[-2:]))
    D_W = times_D(structure, theta, W)
    v = W - likelihood.apply_T(theta, D_W)
    fixed = (np.matmul(X, projection.XX_inverse) * X).sum(axis=-1)
    variance = theta[:, -1:] * fixed + (D_W * v).sum(axis=2)
    gradient = np.empty((*variance.shape, k))
    rest = variance.copy()
    for i in range(k - 1):
        gradient[..., i] = (apply_G(structure, i, v) * v).sum(axis=2)
        rest -= theta[:, i, None] * gradient[..., i]
    near = near_zero_residual(likelihood, theta)
    with np.errstate(divide="ignore", invalid="ignore"):
        gradient[..., -1] = rest / theta[:, -1:]
    if near.any():
        squared, _ = powers_of_P(likelihood, theta, D_W, near)
        gradient[near, :, -1] = (fixed + (D_W * squared).sum(axis=2))[near]
    variance += np.matmul(independent, theta[:, :, None])[:, :, 0]
    return PredictionMoments(variance, gradient + independent)
