"""Log-likelihood, score and informations of residual variances by group, all levels as vectors.

One variance component whose Z'Z is diagonal; formulas in
`flashmm.likelihood.residual_groups.groups`.
"""

from __future__ import annotations

import math

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.likelihood.base import Evaluation, rounding_errors
from flashmm.likelihood.residual_groups.level_traces import Ratios, approximated, exact
from flashmm.likelihood.residual_groups.levels import DiagonalAt

__all__ = ["evaluated"]


def evaluated(
    at: DiagonalAt,
    theta: FloatArray,
    s: FloatArray,
    yy: FloatArray,
    *,
    reml: bool,
    ratios: Ratios | None = None,
) -> Evaluation:
    """Log-likelihood, score and informations at theta (B, 1 + H).

    Parameters
    ----------
    at
        What theta makes of the sums.
    s, yy
        A'I_h y, shape (B, H, q + p), and the sums of squares, shape (B, H).
    reml
        Whether to restrict the likelihood.
    ratios
        Given, the expected information is approximate, see `approximated`.
    """
    sums, c, n = at.sums, at.c, at.sums.n
    (H, q, p), B = sums.U.shape, theta.shape[0]
    v, f, d = at.by_level(at.v), at.by_level(at.f), at.by_level(at.d)
    z, x = s[:, :, :q], s[:, :, q:]
    b_x = at.fixed(s)
    e = (b_x @ sums.U_columns).reshape(B, H, q)
    np.subtract(z, e, out=e)  # Z'I_h (y - X b_x)
    left = np.matmul(c[:, None], e)[:, 0]
    b_z, r = f * left, v * left
    t = sums.d * b_z[:, None]
    np.subtract(e, t, out=t)
    t_x = x - (b_x @ sums.X_rows).reshape(B, H, p)
    square = yy - np.matmul(x + t_x, b_x[:, :, None])[:, :, 0]
    explained = np.matmul(e, b_z[:, :, None])[:, :, 0]
    ee = square - explained - np.matmul(t, b_z[:, :, None])[:, :, 0]
    ft, vr = t * f[:, None], v * r
    j = t_x - sums.across(b_z)  # then g't_h, (B, H, p)
    spread = sums.across(ft.reshape(B * H, q)).reshape(B, H, H, p)
    j -= np.matmul(c[:, None, None], spread)[:, :, 0]
    jK = np.matmul(j, at.K_inverse)
    wr = at.across(vr)
    wKr = np.matmul(wr[:, None], at.K_inverse)[:, 0]
    score, E, A = np.empty((B, 1 + H)), np.empty((B, 1 + H, 1 + H)), np.empty((B, 1 + H, 1 + H))
    A[:, 0, 0] = np.einsum("bq,bq,bq->b", d, r, vr) - (wKr * wr).sum(axis=1)
    Mt = np.matmul(t, vr[:, :, None])[:, :, 0] - np.matmul(jK, wr[:, :, None])[:, :, 0]
    A[:, 0, 1:] = A[:, 1:, 0] = c**2 * Mt
    c2 = c[:, :, None] ** 2 * c[:, None, :] ** 2
    inner = np.matmul(ft, np.swapaxes(t, 1, 2))
    A[:, 1:, 1:] = -c2 * (inner + np.matmul(jK, np.swapaxes(j, 1, 2)))
    found = exact(at, reml=reml) if ratios is None or not reml else approximated(at, ratios)
    score[:, 0] = np.einsum("bq,bq->b", r, r) - found.first
    score[:, 1:] = c**2 * (ee + found.NS) - c * n
    E[:, 0, 0] = found.second
    E[:, 0, 1:] = E[:, 1:, 0] = c**2 * found.mixed
    E[:, 1:, 1:] = c2 * found.both
    each = np.arange(1, 1 + H)
    E[:, each, each] += c**2 * n - 2.0 * c**3 * found.NS
    A[:, each, each] += c**3 * ee
    log_det = -(n * np.log(c)).sum(axis=1)
    counts = None if sums.tables is None or sums.tables.k == q else sums.tables.counts
    log_det -= np.log(at.v) @ (np.ones(q) if counts is None else counts)
    df = n.sum()
    if reml:
        df = df - p
        log_det = log_det + at.log_det
    yPy = (c * (square - explained)).sum(axis=1)
    loglik = -0.5 * (df * math.log(2.0 * math.pi) + log_det + yPy)
    rounding = rounding_errors(int(n.sum()), theta[:, 1:].min(axis=1))
    return Evaluation(loglik, 0.5 * score, 0.5 * E, 0.5 * A, rounding)
