"""What theta implies: fixed effects and their covariance, random effects and their errors.

Everything follows from the projected statistics (`flashmm.likelihood.projection`): with
r = Z'Py and T = Z'PZ,

    beta = (X'X)^-1 X'(y - Z D r)
    C = cov(beta) = sigma2 (X'X)^-1 + H'(D - D T D) H,   H = Z'X (X'X)^-1
    b = D r,   var(b - b_hat) = D - D T D,   var(b | y, beta) = D - D Z'V^-1Z D

(Henderson 1975; the second line is X'PX = 0 written out). No inverse of D is taken: it may be
singular or indefinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from flashmm.likelihood.general import combine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.likelihood.projection import Projection

    FloatArray = NDArray[np.float64]

__all__ = ["FixedEffects", "RandomEffects", "fixed_effects", "random_effects"]


@dataclass(frozen=True)
class FixedEffects:
    """Estimates of the fixed effects in the units of Y.

    Parameters
    ----------
    beta
        Shape (B, p).
    covariance
        Shape (B, p, p); symmetric, indefinite where V is.
    """

    beta: FloatArray
    covariance: FloatArray


@dataclass(frozen=True)
class RandomEffects:
    """Predictions of the random effects in the units of Y.

    Parameters
    ----------
    blup
        Best linear unbiased predictions, shape (B, q).
    se
        Their standard errors, shape (B, q); None when not asked for.
    """

    blup: FloatArray
    se: FloatArray | None


def fixed_effects(
    projection: Projection, theta: FloatArray, features: NDArray[np.intp]
) -> FixedEffects:
    """Generalised least squares at theta.

    Parameters
    ----------
    projection
        Projected statistics.
    theta
        Internal theta of the chosen features, shape (B, k + 1).
    features
        Their positions, shape (B,).

    Returns
    -------
    FixedEffects
    """
    structure, H, K = projection.structure, projection.H, projection.K
    k, r, p = projection.A.shape[0], projection.r, projection.p
    HGH, KGH = np.empty((k, p, p)), np.empty((k, r, p))
    for i, parameter in enumerate(structure.parameters):
        rows, columns = structure.columns(parameter)
        HGH[i], KGH[i] = H[rows].T @ H[columns], K[rows].T @ H[columns]
        if not parameter.is_variance:
            HGH[i] += HGH[i].T.copy()
            KGH[i] += K[columns].T @ H[rows]
    W = np.linalg.inv(combine(projection.A, theta))
    F = (theta[:, :k] @ KGH.reshape(k, r * p)).reshape(-1, r, p)
    covariance = (theta[:, :k] @ HGH.reshape(k, p * p)).reshape(-1, p, p)
    covariance += theta[:, -1, None, None] * projection.XX_inverse
    covariance -= np.matmul(np.swapaxes(F, 1, 2), np.matmul(W, F))
    covariance = 0.5 * (covariance + np.swapaxes(covariance, 1, 2))
    scale = projection.scale[features]
    w = np.matmul(W, projection.u[features][:, :, None])
    correction = np.matmul(np.swapaxes(F, 1, 2), w)[:, :, 0]  # H'D r, since r = K w
    beta = projection.beta_ols[:, features].T - np.sqrt(scale)[:, None] * correction
    return FixedEffects(beta, covariance * scale[:, None, None])


def random_effects(
    projection: Projection,
    theta: FloatArray,
    features: NDArray[np.intp],
    se: Literal["conditional", "prediction"] | None = None,
) -> RandomEffects:
    """Best linear unbiased predictions at theta.

    Parameters
    ----------
    projection
        Projected statistics.
    theta
        Internal theta of the chosen features, shape (B, k + 1).
    features
        Their positions, shape (B,).
    se
        ``"conditional"``: standard deviations given y and beta (lme4's condVar);
        ``"prediction"``: standard errors of prediction, beta estimated; None: neither.

    Returns
    -------
    RandomEffects
    """
    structure = projection.structure
    W = np.linalg.inv(combine(projection.A, theta))
    unit = np.sqrt(projection.scale[features])[:, None] / projection.column_scale
    w = np.matmul(W, projection.u[features][:, :, None])[:, :, 0]
    blup = structure.multiply(theta, w @ projection.K.T) * unit
    if se is None:
        return RandomEffects(blup, None)
    K = projection.K
    if se == "conditional":
        W, K = np.linalg.inv(combine(projection.A_full, theta)), projection.K_full
    count, q, rank = theta.shape[0], K.shape[0], K.shape[1]
    DK = np.zeros((count, q, rank))
    variance = np.zeros((count, q))
    for i, parameter in enumerate(structure.parameters):
        rows, columns = structure.columns(parameter)
        weight = theta[:, i, None, None]
        DK[:, rows] += weight * K[columns]
        if parameter.is_variance:
            variance[:, rows] += theta[:, i, None]
        else:
            DK[:, columns] += weight * K[rows]
    variance -= (np.matmul(DK, W) * DK).sum(axis=2)
    with np.errstate(invalid="ignore"):
        error = np.sqrt(np.where(variance < -1e-12, np.nan, np.maximum(variance, 0.0)))
    return RandomEffects(blup, error * unit)
