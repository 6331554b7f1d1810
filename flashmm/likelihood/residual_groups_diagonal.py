"""One variance component whose Z'Z is diagonal, beside residual variances by group.

The formulas of `flashmm.likelihood.residual_groups` with every matrix over levels a vector: with
c_h = 1 / sigma2_h, a level l has d = sum_h c_h n_h, v = 1 / (1 + theta d), f = theta v and
u = sum_h c_h u_h, where n_h and u_h are its entries of Z'I_h Z and Z'I_h X. Nothing of size q x q
is formed. The traces need

    K   = X'V^-1X         = sum_h c_h X_h - sum_l f u u'
    J_h = X'V^-1 I_h V^-1X / c_h^2 = X_h - sum_l f (u_h u' + u u_h') + sum_l f^2 n_h u u'
    W   = X'V^-1 ZZ'V^-1X = sum_l v^2 u u'

and sums over the levels of products of u_h, u and K^-1. They follow from
`flashmm.likelihood.residual_groups_tables`; where these would be too large, level by level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.likelihood.base import Evaluation, rounding_errors
from flashmm.likelihood.residual_groups_tables import Tables, inverse_of_definite

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

    @property
    def numbers(self) -> int:
        """Numbers that the largest arrays of sums over levels take, for each feature."""
        if self.tables is None:
            return 4 * self.U.size
        return int(self.tables.products.shape[1] + self.tables.weighted.shape[1])

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
class _Traces:
    """tr T and tr TT, (B,); tr N S_h, tr Z'P I_h P Z, (B, H); tr N S_h N S_g, (B, H, H)."""

    first: FloatArray
    second: FloatArray
    NS: FloatArray
    mixed: FloatArray
    both: FloatArray


@dataclass(frozen=True)
class DiagonalAt:
    """What theta makes of them.

    Parameters
    ----------
    c
        1 / sigma2_h, shape (B, H).
    d, v, f
        Of the kinds of levels where there are tables, else of the levels, shape (B, k).
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
            return cls(sums, c, d, v, f, None, *_inverse(K), lowest)
        pairs = tables.of_pairs(f)
        entries = c @ tables.packing.packed(sums.X)
        entries = entries - np.matmul(tables.products_of(c)[:, None], pairs)[:, 0]
        found = inverse_of_definite(tables.packing.unpacked(entries))
        return cls(sums, c, d, v, f, pairs, *found, lowest)

    def by_level(self, values: FloatArray) -> FloatArray:
        """Values like v at the levels, shape (B, q)."""
        return values if self.sums.tables is None else self.sums.tables.by_level(values)

    def _across(self, rows: FloatArray) -> FloatArray:
        """Sums over the levels of weights (B, q) times u, shape (B, p)."""
        return np.asarray(np.matmul(self.c[:, None], self.sums.across(rows))[:, 0])

    def fixed(self, s: FloatArray) -> FloatArray:
        """Coefficients of X, (B, p), for A'I_h y (B, H, q + p)."""
        q = self.sums.U.shape[1]
        total = np.matmul(self.c[:, None], s)[:, 0]
        right = total[:, q:] - self._across(self.by_level(self.f) * total[:, :q])
        return np.asarray(np.matmul(self.K_inverse, right[:, :, None])[:, :, 0])

    def evaluate(
        self, theta: FloatArray, s: FloatArray, yy: FloatArray, *, reml: bool
    ) -> Evaluation:
        """Log-likelihood, score and informations; s (B, H, q + p), yy (B, H)."""
        sums, c, n = self.sums, self.c, self.sums.n
        (H, q, p), B = sums.U.shape, theta.shape[0]
        v, f, d = self.by_level(self.v), self.by_level(self.f), self.by_level(self.d)
        z, x = s[:, :, :q], s[:, :, q:]
        b_x = self.fixed(s)
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
        jK = np.matmul(j, self.K_inverse)
        wr = self._across(vr)
        wKr = np.matmul(wr[:, None], self.K_inverse)[:, 0]
        score, E, A = np.empty((B, 1 + H)), np.empty((B, 1 + H, 1 + H)), np.empty((B, 1 + H, 1 + H))
        A[:, 0, 0] = np.einsum("bq,bq,bq->b", d, r, vr) - (wKr * wr).sum(axis=1)
        Mt = np.matmul(t, vr[:, :, None])[:, :, 0] - np.matmul(jK, wr[:, :, None])[:, :, 0]
        A[:, 0, 1:] = A[:, 1:, 0] = c**2 * Mt
        c2 = c[:, :, None] ** 2 * c[:, None, :] ** 2
        inner = np.matmul(ft, np.swapaxes(t, 1, 2))
        A[:, 1:, 1:] = -c2 * (inner + np.matmul(jK, np.swapaxes(j, 1, 2)))
        found = self._traces(reml=reml)
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
        log_det -= np.log(self.v) @ (np.ones(q) if counts is None else counts)
        df = n.sum()
        if reml:
            df = df - p
            log_det = log_det + self.log_det
        yPy = (c * (square - explained)).sum(axis=1)
        loglik = -0.5 * (df * math.log(2.0 * math.pi) + log_det + yPy)
        rounding = rounding_errors(int(n.sum()), theta[:, 1:].min(axis=1))
        return Evaluation(loglik, 0.5 * score, 0.5 * E, 0.5 * A, rounding)

    def _traces(self, *, reml: bool) -> _Traces:
        """Traces with P, or with V^-1 where not ``reml``."""
        sums, f, v, tables = self.sums, self.f, self.v, self.sums.tables
        H, B, tau = sums.n.size, f.shape[0], self.d * v
        n, counts = (sums.d.T, np.ones(v.shape[1]))
        if tables is not None:
            n, counts = tables.n, tables.counts
        n = n * counts[:, None]
        first = tau @ counts
        second = (tau * tau) @ counts
        mixed = (v * v) @ n
        NS = f @ n
        squares = (n[:, :, None] * (sums.d.T if tables is None else tables.n)[:, None]).reshape(
            n.shape[0], H * H
        )
        both = ((f * f) @ squares).reshape(B, H, H)
        plain = _Traces(first, second, NS, mixed, both)
        if not reml or sums.U.shape[2] == 0:
            return plain
        return self._by_level(plain) if tables is None else self._by_tables(plain, tables)

    def _by_tables(self, plain: _Traces, tables: Tables) -> _Traces:
        """The traces of V^-1 less what P takes from them, by the tables."""
        sums, c, f, v, pairs = self.sums, self.c, self.f, self.v, self.pairs
        assert pairs is not None
        H, B, packing, n = sums.n.size, f.shape[0], tables.packing, tables.n
        K = packing.packed(self.K_inverse) * packing.twice
        square, slopes = tables.products_of(c), tables.slopes_of(c)
        across = tables.of_pairs(v * v)
        triples = tables.of_triples(f * f)
        of_group = (tables.group == np.arange(H)[:, None]).astype(np.float64)  # (H, T)
        products = square[:, None, tables.pair] * of_group
        J = packing.packed(sums.X) - np.matmul(slopes, pairs) + np.matmul(products, triples)
        W = np.matmul(square[:, None], across)
        matrices = packing.unpacked(np.concatenate([W, J], axis=1))
        KJ = np.matmul(self.K_inverse[:, None], matrices)  # (B, 1 + H, p, p)
        trace = np.trace(KJ, axis1=2, axis2=3)
        flat = KJ.reshape(B, 1 + H, -1)
        turned = np.swapaxes(KJ, 2, 3).reshape(B, 1 + H, -1)
        second = np.matmul(flat, np.swapaxes(turned, 1, 2))
        # u'K^-1u summed over the levels of a kind, (B, k)
        weights = (square[:, :, None] * K[:, None]).reshape(B, -1)
        uu = weights @ tables.products.T
        v2, fuu = v * v, f * uu
        by_pair = np.matmul(pairs, K[:, :, None])[:, :, 0]  # sums of f u_g'K^-1u_h, twice if g < h
        cross = np.zeros((B, H, H))
        half = np.where(tables.first == tables.second, 1.0, 0.5) * by_pair
        cross[:, tables.first, tables.second] = half
        cross[:, tables.second, tables.first] = half
        by_triple = np.matmul(triples, K[:, :, None])[:, :, 0]
        # sums of f^2 n_h u'K^-1u_g, (B, H, H)
        between = 0.5 * np.matmul(
            by_triple[:, None] * of_group, np.swapaxes(slopes[:, :, tables.pair], 1, 2)
        )
        squares = (n[:, :, None] * n[:, None]).reshape(n.shape[0], -1)
        cross += ((f * f * fuu) @ squares).reshape(B, H, H) - between - np.swapaxes(between, 1, 2)
        vu = 0.5 * np.matmul(slopes, np.matmul(across, K[:, :, None]))[:, :, 0]
        return _Traces(
            plain.first - trace[:, 0],
            plain.second - 2.0 * np.einsum("bk,bk,bk->b", self.d * v, v2, uu) + second[:, 0, 0],
            plain.NS + trace[:, 1:],
            plain.mixed - 2.0 * (vu - (v2 * fuu) @ n) + second[:, 0, 1:],
            plain.both + 2.0 * cross + second[:, 1:, 1:],
        )

    def _by_level(self, plain: _Traces) -> _Traces:
        """The same level by level."""
        sums, c, f, v = self.sums, self.c, self.f, self.v
        (H, q, p), B, tau = sums.U.shape, f.shape[0], self.d * v
        R = _root(self.K_inverse)
        UhR = np.matmul(sums.U.reshape(H * q, p), R).reshape(B, H, q, p)
        UR = np.matmul(c[:, None], UhR.reshape(B, H, q * p)).reshape(B, q, p)
        vwR = v[:, :, None] ** 2 * UR
        ww = np.matmul(np.swapaxes(UR, 1, 2), vwR)
        wtw = (tau[:, :, None] * vwR * UR).sum(axis=(1, 2))
        Y = UhR - (f[:, None] * sums.d)[..., None] * UR[:, None]
        fUR = np.swapaxes(f[:, :, None] * UR, 1, 2)
        J = np.matmul(np.swapaxes(R, 1, 2)[:, None], np.matmul(sums.X, R[:, None]))
        J -= np.matmul(fUR[:, None], Y)
        J -= np.swapaxes(np.matmul(fUR[:, None], UhR), 2, 3)
        fY = (f[:, None, :, None] * Y).reshape(B, H, q * p)
        flat = J.reshape(B, H, p * p)
        both = plain.both + 2.0 * np.matmul(fY, np.swapaxes(Y.reshape(B, H, q * p), 1, 2))
        both += np.matmul(flat, np.swapaxes(flat, 1, 2))
        mixed = np.matmul(Y.reshape(B, H, q * p), vwR.reshape(B, q * p, 1))[..., 0]
        return _Traces(
            plain.first - np.trace(ww, axis1=1, axis2=2),
            plain.second - 2.0 * wtw + (ww**2).sum(axis=(1, 2)),
            plain.NS + np.trace(J, axis1=2, axis2=3),
            plain.mixed - 2.0 * mixed + (J * ww[:, None]).sum(axis=(2, 3)),
            both,
        )


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


def _root(inverse: FloatArray) -> FloatArray:
    """R with R R' the matrix, shape (B, p, p); anything where that is not definite."""
    try:
        return np.asarray(np.linalg.cholesky(inverse))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(np.where(np.isfinite(inverse), inverse, 0.0))
        return np.asarray(vectors * np.sqrt(values)[:, None, :])
