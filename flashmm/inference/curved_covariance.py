"""Covariance of an estimated theta that lies on a curve of own parameters, J I^-1 J'.

The delta method: theta = theta(u) with J = d theta / du, u of asymptotic covariance I^-1. What a
bound holds, a correlation of 1 or a variance of 0, does not vary; other terms' covariance matrices
vary along the face of the psd cone that they lie on (`flashmm.inference.theta_covariance`).
"""

from __future__ import annotations

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray
from flashmm.designs.curves import CurvedParameters
from flashmm.designs.design import CovarianceStructure
from flashmm.inference.theta_covariance import covariance_on_face, face
from flashmm.likelihood.base import Evaluation
from flashmm.likelihood.own_parameters import along

__all__ = ["covariance_along"]

# A correlation this close to its bounds does not vary, nor does a variance this small, if it may
# not be negative.
_AT_BOUND = 1e-10


def covariance_along(
    structure: CovarianceStructure, theta: FloatArray, at: Evaluation, *, observed: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Asymptotic covariances of theta and of the own parameters.

    Parameters
    ----------
    structure
        The random terms, some of them not linear in their parameters.
    theta
        On the curve, shape (B, k_theta).
    at
        The likelihood there, by theta.
    observed
        Whether I is the observed information on the face that theta lies on, or, where that is not
        positive definite, the expected one there; else the expected one of all that the curves
        leave.

    Returns
    -------
    tuple of ndarray
        Shapes (B, k_theta, k_theta) and (B, k, k); zeros for what is held, NaN where unknown.
    """
    curved = structure.curved
    assert curved is not None
    known = np.isfinite(theta).all(axis=1) & np.isfinite(at.expected).all(axis=(1, 2))
    known &= np.isfinite(at.average).all(axis=(1, 2)) & np.isfinite(at.score).all(axis=1)
    k, own = curved.k, np.full((theta.shape[0], curved.k, curved.k), np.nan)
    J = np.full((theta.shape[0], theta.shape[1], k), np.nan)
    if known.any():
        u = curved.own(theta[known])
        free = _inside(curved, u)
        u = np.where(np.isnan(u), 0.0, u)
        here = along(curved, u, at.take(np.flatnonzero(known)))
        J[known] = curved.jacobian(u)
        own[known] = (_on_face if observed else _expected)(structure, u, here, free)
    return J @ own @ np.swapaxes(J, 1, 2), own


def _inside(curved: CurvedParameters, u: FloatArray) -> BoolArray:
    """Own parameters (B, k) but for correlations at a bound; variances count, as everywhere."""
    free = np.ones(u.shape, dtype=bool)
    for curve, _, own in curved.parts():
        if curve is None:
            continue
        lower, upper = curve.bounds
        with np.errstate(invalid="ignore"):
            inside = (u[:, own] > lower + _AT_BOUND) & (u[:, own] < upper - _AT_BOUND)
        free[:, own] = inside | curve.is_cone
    return free


def _expected(
    structure: CovarianceStructure, u: FloatArray, at: Evaluation, free: BoolArray
) -> FloatArray:
    """Inverse of the expected information of what is free, zeros elsewhere."""
    del structure
    both = free[:, :, None] & free[:, None, :]
    information = np.where(both, at.expected, np.eye(u.shape[1]))
    length = np.sqrt(np.abs(np.diagonal(information, axis1=1, axis2=2)))
    length = np.where(length > 0, length, 1.0)
    scale = length[:, :, None] * length[:, None, :]
    return np.where(both, np.linalg.pinv(information / scale, hermitian=True) / scale, 0.0)


def _on_face(
    structure: CovarianceStructure, u: FloatArray, at: Evaluation, free: BoolArray
) -> FloatArray:
    """Inverse of the observed information along the face, of the expected where it is not definite.

    What is free in no block, a correlation, counts as a positive number where nothing holds it.
    """
    blocks = structure.own_blocks()
    there = u.copy()
    loose = np.setdiff1d(np.arange(u.shape[1]), np.concatenate([b.ravel() for b in blocks]))
    there[:, loose] = 1.0
    for curve, _, own in structure.curved.parts() if structure.curved else ():
        if curve is not None:
            large = curve.is_cone & (u[:, own] > _AT_BOUND)
            there[:, own] = np.where(large | (free[:, own] & ~curve.is_cone), 1.0, 0.0)
    every = (*blocks, *(np.array([[i]]) for i in loose))
    covariance, indefinite = covariance_on_face(
        face(there, at.score, at.observed, every), at.expected
    )
    if indefinite.any():
        again = at.take(np.flatnonzero(indefinite))
        covariance[indefinite], _ = covariance_on_face(
            face(there[indefinite], 0.0 * again.score, again.expected, every), again.expected
        )
    return covariance
