"""How variances of contrasts depend on residual variances by group, block by block."""

from __future__ import annotations

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.designs.design import CovarianceStructure
from flashmm.likelihood.base import ContrastMoments
from flashmm.likelihood.moments import apply_G
from flashmm.likelihood.residual_groups.block_sums import Vectors
from flashmm.likelihood.residual_groups.blocks import BlockAt

__all__ = ["moments_by_block"]


def moments_by_block(
    at: BlockAt, structure: CovarianceStructure, rows: FloatArray, *, adjustment: bool
) -> ContrastMoments:
    """Moments of hypotheses of r contrasts each, ``rows`` (g, r, p) of whitened X.

    With v = A-coordinates of V^-1X C L', d (L C L') / d theta_i = (C v)'G_i (C v), and by sigma2_h
    v'S_h v / sigma2_h^2; second derivatives likewise with T, M and N (Kenward & Roger 1997).
    """
    sums, H, k = at.sums, at.sums.H, len(at.sums.entries)
    (groups, r, _), q, B = rows.shape, structure.q, at.c.shape[0]
    CL = np.matmul(at.K_inverse[:, None], np.swapaxes(rows, 1, 2))  # (B, g, p, r)
    variance = np.matmul(rows[None], CL)
    loaded = np.matmul(at.border.g[:, None], CL)  # (B, g, w, r)
    v = at.times_g(np.swapaxes(loaded, 2, 3).reshape(B, groups * r, sums.w))

    def by_hypothesis(vectors: Vectors, of: int = 1) -> FloatArray:
        """Shape (B, g, of, r, a) of vectors (B, g r of, a)."""
        found = sums.joined(vectors).reshape(B, groups, r, of, sums.a)
        return np.ascontiguousarray(np.swapaxes(found, 2, 3))

    def flat(vectors: Vectors) -> Vectors:
        """Vectors of contrasts and groups in one row."""
        f, b, count = vectors.f, vectors.r, groups * r * H
        return Vectors(f.reshape(*f.shape[:2], count, f.shape[-1]), b.reshape(B, count, -1))

    Sv = flat(sums.times_S(v))
    w = by_hypothesis(at.times_C(v))[:, :, 0, :, :q]
    Gw = [apply_G(structure, i, w) for i in range(k)]
    own, grouped = by_hypothesis(v), by_hypothesis(Sv, H)
    c = at.c[:, None, :, None, None]
    vSv = np.matmul(own, np.swapaxes(grouped, 3, 4))  # (B, g, H, r, r)
    gradient = np.empty((B, groups, k + H, r, r))
    for i in range(k):
        gradient[:, :, i] = np.matmul(Gw[i], np.swapaxes(w, 2, 3))
    gradient[:, :, k:] = c**2 * vSv
    if not adjustment:
        return ContrastMoments(variance, gradient, None)
    result = np.empty((B, groups, k + H, k + H, r, r))
    PSv = c**2 * by_hypothesis(at.less_CN(Sv), H)[..., :q]
    NSv = by_hypothesis(at.times_N(Sv), H)
    for i in range(k):
        TGw = at.apply_T(Gw[i].reshape(B, groups * r, q)).reshape(B, groups, r, q)
        for j in range(k):
            result[:, :, i, j] = np.matmul(TGw, np.swapaxes(Gw[j], 2, 3))
        mixed = np.matmul(Gw[i][:, :, None], np.swapaxes(PSv, 3, 4))
        result[:, :, i, k:] = mixed
        result[:, :, k:, i] = np.swapaxes(mixed, -1, -2)
    for h in range(H):
        cross = np.matmul(grouped[:, :, h, None], np.swapaxes(NSv, 3, 4))
        both = (at.c[:, h, None] ** 2 * at.c**2)[:, None, :, None, None]
        result[:, :, k + h, k:] = -both * cross
        result[:, :, k + h, k + h] += at.c[:, None, h, None, None] ** 3 * vSv[:, :, h]
    return ContrastMoments(variance, gradient, result)
