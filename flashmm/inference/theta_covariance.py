"""Covariance of an estimated theta on the boundary of the psd space, for degrees of freedom.

It comes from the likelihood's curvature along the face of the cone that theta itself lies on. A
step towards a maximum needs no face: it finds the ranks by itself (`flashmm.solvers.kkt_newton`).

Where a covariance block is singular, theta can only move to other matrices of the same rank.
With D = F F', F (s, s) with a zero column per lost dimension, dD = dF F' + F dF' + dF dF', and the
log-likelihood along dF is

    score'J dF - 1/2 dF'(J'I J - 2 S x 1) dF,     J dF = dF F' + F dF'

with I an information matrix of theta and S the block's matrix of derivatives, tr(S dD) =
score'd theta. Rotations F -> F Q leave D alone: the matrix is singular along them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray

__all__ = ["Face", "covariance_on_face", "face"]

_SINGULAR = 1e-8


@dataclass(frozen=True)
class Face:
    """Coordinates of the face at theta, d of them per feature.

    Parameters
    ----------
    jacobian
        d theta by the coordinates, shape (B, k, d); zero along coordinates that are held.
    curvature
        J'I J minus the score's part, shape (B, d, d); the identity for coordinates held.
    free
        Coordinates along which the face extends, shape (B, d).
    """

    jacobian: FloatArray
    curvature: FloatArray
    free: BoolArray


def root_of_block(D: FloatArray) -> tuple[FloatArray, FloatArray]:
    """F with F F' = D (B, s, s), its columns of zero where D is singular, and what D lacks.

    The second, N (B, s, s), maps matrices S of derivatives to N'S N, their part across what F
    spans: at a maximum S F = 0, and what is left of it is rounding.
    """
    variance = np.diagonal(D, axis1=1, axis2=2)
    length = np.sqrt(np.where(variance > 0, variance, 0.0))
    safe = np.where(length > 0, length, 1.0)
    values, vectors = np.linalg.eigh(D / (safe[:, :, None] * safe[:, None, :]))
    lost = ~(values > _SINGULAR)
    root = np.sqrt(np.where(lost, 0.0, values))
    across = np.matmul(vectors * lost[:, None, :], np.swapaxes(vectors, 1, 2))
    across = safe[:, :, None] * across / safe[:, None, :]
    return np.asarray(length[:, :, None] * vectors * root[:, None, :]), np.asarray(across)


def face(
    theta: FloatArray, score: FloatArray, information: FloatArray, blocks: tuple[IntArray, ...]
) -> Face:
    """The face of the psd cone at theta.

    Parameters
    ----------
    theta, score
        Shape (B, k).
    information
        Shape (B, k, k).
    blocks
        Positions in theta of each block's entries, the residual's among them.

    Returns
    -------
    Face
        A block of s > 1 has the s^2 entries of F as coordinates, row by row; a single variance
        has itself, held at zero.
    """
    B, k = theta.shape
    d = sum(block.size for block in blocks)
    J, free = np.zeros((B, k, d)), np.ones((B, d), dtype=bool)
    bend = np.zeros((B, d, d))
    start = 0
    for block in blocks:
        s = block.shape[0]
        if s == 1:
            i = block[0, 0]
            J[:, i, start] = 1.0
            free[:, start] = theta[:, i] > 0
        else:
            F, N = root_of_block(theta[:, block])
            S = score[:, block] * np.where(np.eye(s) > 0, 1.0, 0.5)
            S = np.matmul(np.matmul(np.swapaxes(N, 1, 2), S), N)
            for a in range(s):
                for c in range(s):
                    at = start + a * s + c
                    for b in range(s):  # dD_ab = dD_ba = dF_ac F_bc, twice that for a = b
                        J[:, block[a, b], at] = F[:, b, c] * (2.0 if a == b else 1.0)
                        bend[:, at, start + b * s + c] = 2.0 * S[:, a, b]
                    free[:, at] = np.abs(F[:, :, c]).sum(axis=1) > 0
        start += s * s
    J = np.where(free[:, None, :], J, 0.0)
    both = free[:, :, None] & free[:, None, :]
    curvature = np.matmul(np.matmul(np.swapaxes(J, 1, 2), information), J) - bend
    curvature = np.where(both, curvature, np.eye(d))
    return Face(J, curvature, free)


def covariance_on_face(on: Face, information: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Asymptotic covariance of theta on its face, J H^+ J', and where H is not positive.

    Parameters
    ----------
    on
        The face.
    information
        Expected information of theta, for the units of the coordinates, shape (B, k, k).

    Returns
    -------
    tuple of ndarray
        Covariance (B, k, k), with zeros for what is held; indefinite (B,).
    """
    diagonal = (np.matmul(information, on.jacobian) * on.jacobian).sum(axis=1)
    length = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(on.curvature / (length[:, :, None] * length[:, None, :]))
    null = np.abs(values) <= 1e-9
    inverse = np.where(null, 0.0, 1.0 / np.where(null, 1.0, values))
    along = np.matmul(on.jacobian / length[:, None, :], vectors)
    covariance = np.matmul(along * inverse[:, None, :], np.swapaxes(along, 1, 2))
    # Directions that J maps to nothing have no bearing on theta, whatever the sign there.
    moves = np.abs(along).max(axis=1) > 1e-12 * np.abs(along).max(axis=(1, 2))[:, None]
    return np.asarray(covariance), np.asarray(((values < 0) & ~null & moves).any(axis=1))
