"""The dense part of V for residual variances by group: a border of random effects, then X.

Once the blocks are gone (see `flashmm.likelihood.residual_groups.blocks`), what is left is a matrix
K_r = A_r'V_F^-1 A_r of the border A_r = [Z_b, X], with V_F the part of V that the blocks make.
With F = D_b (I + K_bb D_b)^-1, g = [-F K_bx; I] and K = K_xx - K_xb F K_bx = X'V^-1X,

    V^-1 = V_F^-1 - V_F^-1 A_r N A_r'V_F^-1,    N = F
    P    = likewise,                            N = F + g K^-1 g'
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray

__all__ = ["Border", "damped_inverse", "inverse_of_symmetric"]

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Border:
    """What K_r and D_b make, for B features, a border of b random effects, p fixed ones.

    Parameters
    ----------
    K_r
        Shape (B, w, w) with w = b + p.
    N, N_ml
        Of P and of V^-1, shape (B, w, w).
    g
        Shape (B, w, p).
    K_inverse
        The inverse of X'V^-1X, shape (B, p, p).
    log_det, log_det_K
        log |I + K_bb D_b| and log |X'V^-1X|, shape (B,).
    lowest
        The least eigenvalue of I + K_bb D_b, shape (B,).
    """

    K_r: FloatArray
    N: FloatArray
    N_ml: FloatArray
    g: FloatArray
    K_inverse: FloatArray
    log_det: FloatArray
    log_det_K: FloatArray
    lowest: FloatArray

    @classmethod
    def of(cls, K_r: FloatArray, D: FloatArray, rooted: BoolArray) -> Border:
        """Of K_r (B, w, w) and D_b (B, b, b); ``rooted``: D_b is diagonal and not below zero."""
        b, (B, w, _) = D.shape[1], K_r.shape
        F, values = damped_inverse(K_r[:, :b, :b], D, rooted)
        g = np.concatenate(
            [-F @ K_r[:, :b, b:], np.broadcast_to(np.eye(w - b), (B, w - b, w - b))], axis=1
        )
        K = K_r[:, b:, b:] + K_r[:, b:, :b] @ g[:, :b]
        K = 0.5 * (K + np.swapaxes(K, 1, 2))
        K_inverse = inverse_of_symmetric(K)
        N_ml = np.zeros((B, w, w))
        N_ml[:, :b, :b] = F
        N = N_ml + g @ K_inverse @ np.swapaxes(g, 1, 2)
        log_det = np.log(np.abs(values)).sum(axis=1)
        lowest = values.min(axis=1, initial=np.inf)
        return cls(K_r, N, N_ml, g, K_inverse, log_det, np.linalg.slogdet(K)[1], lowest)


def damped_inverse(
    C: FloatArray, D: FloatArray, rooted: BoolArray
) -> tuple[FloatArray, FloatArray]:
    """F = D (I + C D)^-1 and the eigenvalues of I + C D, (B, b, b) and (B, b).

    With a root of a diagonal D, ``rooted`` (B,), F keeps its digits where D is large beside the
    residual variances; with one of C, D need not be positive semi-definite. Not finite and -1 where
    C or D is not finite; eigenvalues are zero at most where there is no inverse.
    """
    B, b = C.shape[:2]
    # Far outside the domain rounding and overflow leave matrices that have no inverse.
    finite = np.asarray(np.isfinite(C).all(axis=(1, 2)) & np.isfinite(D).all(axis=(1, 2)))
    C, D = (np.where(finite[:, None, None], part, 0.0) for part in (C, D))
    inner, left = _inner(C, D, rooted)
    finite &= np.isfinite(inner).all(axis=(1, 2))
    inner = np.where(finite[:, None, None], inner, np.eye(b))
    values = np.linalg.eigvalsh(inner) if b else np.ones((B, 0))
    size = np.abs(values)
    singular = size.min(axis=1, initial=np.inf) <= 1e-300 + _EPS * size.max(axis=1, initial=0.0)
    inner = np.where(singular[:, None, None], np.eye(b), inner)
    F = left @ _solved(inner, np.swapaxes(left, 1, 2))
    F[~rooted] = D[~rooted] - F[~rooted]
    values = np.where(singular[:, None], np.minimum(values, 0.0), values)
    return F, np.where(finite[:, None], values, -1.0)


def _inner(C: FloatArray, D: FloatArray, rooted: BoolArray) -> tuple[FloatArray, FloatArray]:
    """A matrix M with the eigenvalues of I + C D, and B with F = B M^-1 B' or D - B M^-1 B'."""
    one = np.eye(C.shape[1])
    inner, left = np.empty_like(C), np.empty_like(C)
    diagonal = np.diagonal(D, axis1=1, axis2=2)[rooted]
    root = np.sqrt(diagonal)[:, :, None] * one
    inner[rooted] = one + root @ C[rooted] @ root
    left[rooted] = root
    others = np.flatnonzero(~rooted)
    if others.size:
        values, vectors = np.linalg.eigh(C[others])
        root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
        inner[others] = one + np.swapaxes(root, 1, 2) @ D[others] @ root
        left[others] = D[others] @ root
    return inner, left


def _solved(matrices: FloatArray, right: FloatArray) -> FloatArray:
    """Symmetric matrices' inverses times ``right``, both (B, b, b); not finite without one."""
    try:
        return np.asarray(np.linalg.solve(matrices, right))
    except np.linalg.LinAlgError:  # numpy says this of all where it holds for one
        return np.asarray(np.matmul(inverse_of_symmetric(matrices), right))


def inverse_of_symmetric(matrices: FloatArray) -> FloatArray:
    """Inverses of symmetric matrices (B, p, p), NaN for one that has none."""
    good = np.asarray(np.isfinite(matrices).all(axis=(1, 2)))
    safe = np.where(good[:, None, None], matrices, np.eye(matrices.shape[1]))
    try:
        result = np.linalg.inv(safe)
    except np.linalg.LinAlgError:  # numpy says this of all where it holds for one
        values, vectors = np.linalg.eigh(safe)
        values = np.where(values == 0.0, np.nan, values)
        result = np.matmul(vectors / values[:, None, :], np.swapaxes(vectors, 1, 2))
    return np.asarray(np.where(good[:, None, None], result, np.nan))
