"""One variance component whose Z'Z is diagonal, beside residual variances by group.

The formulas of `flashmm.likelihood.residual_groups.groups` with every matrix over levels a vector:
with c_h = 1 / sigma2_h, a level l has d = sum_h c_h n_h, v = 1 / (1 + theta d), f = theta v and
u = sum_h c_h u_h, where n_h and u_h are its entries of Z'I_h Z and Z'I_h X. Nothing of size q x q
is formed. The traces need

    K   = X'V^-1X         = sum_h c_h X_h - sum_l f u u'
    J_h = X'V^-1 I_h V^-1X / c_h^2 = X_h - sum_l f (u_h u' + u u_h') + sum_l f^2 n_h u u'
    W   = X'V^-1 ZZ'V^-1X = sum_l v^2 u u'

and sums over the levels of products of u_h, u and K^-1. They follow from
`flashmm.likelihood.residual_groups.tables`; where these would be too large, level by level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.likelihood.residual_groups.tables import Tables, inverse_of_definite

__all__ = ["ENOUGH", "LEAST", "DiagonalAt", "DiagonalSums"]

# Bytes of tables, beyond which the sums over levels are made level by level.
_TABLES = 2**25
# Share of a group's samples that degrees of freedom within levels must be for a start.
ENOUGH = 0.3
# Residual variances of starts, in internal units, are at least this.
LEAST = 1e-2


@dataclass(frozen=True)
class DiagonalSums:
    """The groups' sums: d (H, q), U (H, q, p), X (H, p, p), n (H,), and tables of their products.

    ``U_columns`` is U as (p, H q), and ``U_rows`` as (q, H p).
    """

    d: FloatArray
    U: FloatArray
    X: FloatArray
    n: FloatArray
    U_columns: FloatArray
    U_rows: FloatArray
    X_rows: FloatArray
    tables: Tables | None

    @classmethod
    def make(
        cls, d: FloatArray, U: FloatArray, X: FloatArray, n: FloatArray, most: int = _TABLES
    ) -> DiagonalSums:
        """Of the sums; ``most`` bytes of tables."""
        H, q, p = U.shape
        columns = np.ascontiguousarray(U.reshape(H * q, p).T)
        rows = U.swapaxes(0, 1).reshape(q, H * p)
        X_rows = X.swapaxes(0, 1).reshape(p, H * p)
        return cls(d, U, X, n, columns, rows, X_rows, Tables.make(d, U, most))

    def numbers(self, *, on_the_way: bool = False) -> int:
        """Numbers that the largest arrays of sums over levels take, for each feature."""
        if self.tables is None:
            return 4 * self.U.size
        most = 0 if on_the_way else self.tables.weighted.shape[1]
        return int(self.tables.products.shape[1] + most)

    def _within(self, s: FloatArray, yy: FloatArray) -> FloatArray:
        """Sums of squares about the means of the levels in each group, shape (m, H)."""
        weights = 1.0 / np.where(self.d > 0, self.d, np.inf)
        z = s[:, :, : self.d.shape[1]]
        return np.asarray(yy - np.einsum("mhq,mhq,hq->mh", z, z, weights))

    def least_squares(self, s: FloatArray, yy: FloatArray) -> FloatArray:
        """Residual sums of squares of each group on Z and X, for A'I_h y s (m, H, q + p), (m, H).

        Infinite for groups that these could explain whatever the data.
        """
        q, weights = self.d.shape[1], 1.0 / np.where(self.d > 0, self.d, np.inf)
        rss = self._within(s, yy)
        for h, n in enumerate(self.n):
            scaled = self.U[h] * weights[h, :, None]
            values, vectors = np.linalg.eigh(self.X[h] - scaled.T @ self.U[h])
            largest = np.abs(np.diagonal(self.X[h])).max(initial=0.0)
            held = values > 1e-10 * largest
            if held.sum() + np.count_nonzero(self.d[h]) >= n:
                rss[:, h] = np.inf
                continue
            root = vectors[:, held] / np.sqrt(values[held])
            along = s[:, h, q:] @ root - s[:, h, :q] @ (scaled @ root)
            rss[:, h] -= (along**2).sum(axis=1)
        return rss

    def moments(self, s: FloatArray, yy: FloatArray) -> FloatArray:
        """Variances by the analysis of variance of y, residuals on X, shape (m, 1 + H).

        Residual variances from within the levels (of all samples where few of a group share one),
        the other one from the squares of the levels' means, or zero (Searle et al. 1992, chapter
        5). A search from there takes about one step fewer than from zero.
        """
        df = self.n - np.count_nonzero(self.d, axis=1)
        scarce = df < ENOUGH * self.n
        squares = np.where(scarce, yy, self._within(s, yy))
        sigma2 = np.maximum(squares / np.where(scarce, self.n, df), LEAST)
        total = self.d.sum(axis=0)
        weights = 1.0 / np.where(total > 0, total, np.inf)
        z = s[:, :, : total.size].sum(axis=1)
        between = (z * z) @ weights - sigma2 @ (self.d @ weights)
        return np.column_stack([np.maximum(between / total.sum(), 0.0), sigma2])

    def across(self, rows: FloatArray) -> FloatArray:
        """Sums over the levels of weights (B, q) times u_h, shape (B, H, p)."""
        H, _, p = self.U.shape
        return np.asarray((rows @ self.U_rows).reshape(rows.shape[0], H, p))


@dataclass(frozen=True)
class DiagonalAt:
    """What theta makes of them.

    Parameters
    ----------
    c
        1 / sigma2_h, shape (B, H).
    d, v, f
        Of the kinds of levels where there are tables, else of the levels, shape (B, k).
    U
        u of the levels, shape (B, q, p); None with tables.
    pairs
        Sums over the levels of f times the products of pairs, shape (B, P, t); None without tables.
    K_inverse
        The inverse of K = X'V^-1X, shape (B, p, p).
    log_det
        log |K|, shape (B,).
    lowest
        The least of 1 + theta d, and of the residual variances over their largest, shape (B,).
    """

    sums: DiagonalSums
    c: FloatArray
    d: FloatArray
    v: FloatArray
    f: FloatArray
    U: FloatArray | None
    pairs: FloatArray | None
    K_inverse: FloatArray
    log_det: FloatArray
    lowest: FloatArray

    @classmethod
    def of(cls, sums: DiagonalSums, theta: FloatArray) -> DiagonalAt:
        """At theta (B, 1 + H)."""
        H, q, p = sums.U.shape
        B, main, sigma2, tables = theta.shape[0], theta[:, :1], theta[:, 1:], sums.tables
        c = 1.0 / sigma2
        d = c @ (sums.d if tables is None else tables.n.T)
        inner = 1.0 + main * d
        v = 1.0 / inner
        f = main * v
        lowest = np.minimum(inner.min(axis=1), sigma2.min(axis=1) / sigma2.max(axis=1))
        if tables is None:
            U = (c @ sums.U.reshape(H, q * p)).reshape(B, q, p)
            K = (c @ sums.X.reshape(H, p * p)).reshape(B, p, p)
            K = K - np.matmul(np.swapaxes(U * f[:, :, None], 1, 2), U)
            return cls(sums, c, d, v, f, U, None, *_inverse(K), lowest)
        pairs = tables.of_pairs(f)
        entries = c @ tables.packing.packed(sums.X)
        entries = entries - np.matmul(tables.products_of(c)[:, None], pairs)[:, 0]
        found = inverse_of_definite(tables.packing.unpacked(entries))
        return cls(sums, c, d, v, f, None, pairs, *found, lowest)

    def by_level(self, values: FloatArray) -> FloatArray:
        """Values like v at the levels, shape (B, q)."""
        return values if self.sums.tables is None else self.sums.tables.by_level(values)

    def across(self, rows: FloatArray) -> FloatArray:
        """Sums over the levels of weights (B, q) times u, shape (B, p)."""
        return np.asarray(np.matmul(self.c[:, None], self.sums.across(rows))[:, 0])

    def fixed(self, s: FloatArray) -> FloatArray:
        """Coefficients of X, (B, p), for A'I_h y (B, H, q + p)."""
        q = self.sums.U.shape[1]
        total = np.matmul(self.c[:, None], s)[:, 0]
        right = total[:, q:] - self.across(self.by_level(self.f) * total[:, :q])
        return np.asarray(np.matmul(self.K_inverse, right[:, :, None])[:, :, 0])


def _inverse(K: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Inverses (B, p, p) and log determinants (B,), NaN where K (B, p, p) is not definite."""
    finite = np.asarray(np.isfinite(K).all(axis=(1, 2)))
    K = np.where(finite[:, None, None], K, np.eye(K.shape[1]))
    try:
        root = np.linalg.cholesky(K)
        values = np.diagonal(root, axis1=1, axis2=2)
        inverse, log_det = np.linalg.inv(K), 2.0 * np.log(values).sum(axis=1)
    except np.linalg.LinAlgError:  # numpy says this of all where it holds for one
        values, vectors = np.linalg.eigh(K)
        inverse = np.matmul(vectors / values[:, None, :], np.swapaxes(vectors, 1, 2))
        log_det = np.log(values).sum(axis=1)
    return np.asarray(inverse), np.asarray(np.where(finite, log_det, np.nan))
