"""Residual variances by group where Z falls into small blocks beside a border.

The formulas of `flashmm.likelihood.residual_groups.groups` without a matrix of the size of Z for
each feature. Columns of the terms of one grouping factor (and of what is nested in it) fall into L
blocks of s columns; the other columns of Z, and X, are a border of width w. With
V_F = R + Z_F D_F Z_F', a block l has

    F_l = D_l (I + C_ll D_l)^-1,   H_l = F_l C_lr,   U_l = C_lr - C_ll H_l = Z_l'V_F^-1 A_r,
    W_l = C_ll - C_ll F_l C_ll = Z_l'V_F^-1 Z_l,     K_r = C_rr - sum_l C_rl H_l = A_r'V_F^-1 A_r

and of what `Border` makes of K_r follows N = [F_l] + g N_r g' with g = [-H_l; I]. Block vectors and
matrices are kept as one plane for each entry: the first axes are those of the columns of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.elimination import small
from flashmm.likelihood.residual_groups.block_sums import BlockSums, Vectors
from flashmm.likelihood.residual_groups.border import Border, damped_inverse

__all__ = ["BlockAt"]

# Eigenvalues of a D that are negative by this share of the largest are so by rounding.
_ROUNDING = 1e-14


@dataclass(frozen=True)
class BlockAt:
    """What theta makes of the sums.

    Parameters
    ----------
    c
        1 / sigma2_h, shape (B, H).
    C_ff, F
        Shape (s, s, B, L).
    C_fr, H, U
        Shape (s, B, L, w).
    C_rr
        Shape (B, w, w).
    border
        Of K_r.
    D_b
        D of the border, shape (B, b, b).
    log_det
        log |V| - log |R|, of blocks and border, shape (B,).
    least, negative
        The least eigenvalue of V_F, in its units, and how many are not positive, shape (B,).
    lowest
        The least eigenvalue of V, in its units, shape (B,).
    """

    sums: BlockSums
    theta: FloatArray
    c: FloatArray
    C_ff: FloatArray
    F: FloatArray
    C_fr: FloatArray
    C_rr: FloatArray
    H: FloatArray
    U: FloatArray
    border: Border
    D_b: FloatArray
    log_det: FloatArray
    least: FloatArray
    negative: IntArray
    lowest: FloatArray

    @classmethod
    def of(cls, sums: BlockSums, theta: FloatArray) -> BlockAt:
        """At theta (B, k + H)."""
        s, L, w, H, b = sums.s, sums.L, sums.w, sums.H, sums.b
        B, k = theta.shape[0], len(sums.entries)
        sigma2 = theta[:, k:]
        c = 1.0 / sigma2
        C_ff = np.matmul(c, sums.S_ff)
        C_fr = np.matmul(c, sums.S_fr.reshape(s, H, L * w)).reshape(s, B, L, w)
        C_rr = (c @ sums.S_rr.reshape(H, w * w)).reshape(B, w, w)
        own = np.column_stack([theta[:, :k], np.zeros(B)])
        F, log_det, least, negative = _inverses(sums, own, C_ff)
        loaded, U = np.zeros_like(C_fr), C_fr.copy()
        for i, j in np.ndindex(s, s):
            loaded[i] += F[i, j][:, :, None] * C_fr[j]
        for i, j in np.ndindex(s, s):
            U[i] -= C_ff[i, j][:, :, None] * loaded[j]
        K_r = C_rr - np.matmul(C_fr.swapaxes(2, 3), loaded).sum(axis=0)
        K_r = 0.5 * (K_r + K_r.swapaxes(1, 2))
        D_b = own[:, sums.of_border]
        variances = np.diagonal(D_b, axis1=1, axis2=2)
        plain = not np.any((sums.of_border < k) & ~np.eye(b, dtype=bool))
        border = Border.of(K_r, D_b, np.asarray((variances >= 0).all(axis=1) & plain))
        share = sigma2.min(axis=1) / np.abs(sigma2).max(axis=1)
        lowest = np.minimum(np.minimum(least, border.lowest), share)
        log_det = log_det + border.log_det
        return cls(
            *(sums, theta, c, C_ff, F, C_fr, C_rr, loaded, U, border, D_b),
            *(log_det, least, negative, lowest),
        )

    @property
    def K_inverse(self) -> FloatArray:
        """The inverse of X'V^-1X, shape (B, p, p)."""
        return self.border.K_inverse

    def times_F(self, f: FloatArray) -> FloatArray:
        """F_l v for block vectors (s, B, c, L)."""
        return np.asarray(np.einsum("ijbl,jbcl->ibcl", self.F, f))

    def times_g(self, r: FloatArray) -> Vectors:
        """G v for vectors (B, c, w)."""
        return Vectors(-np.matmul(r, self.H.swapaxes(2, 3)), r)

    def g_times(self, v: Vectors) -> FloatArray:
        """g'v, shape (B, c, w)."""
        return np.asarray(v.r - np.matmul(v.f, self.H).sum(axis=0))

    def times_C(self, v: Vectors) -> Vectors:
        """A'R^-1A v."""
        f = np.einsum("ijbl,jbcl->ibcl", self.C_ff, v.f)
        f += np.matmul(v.r, self.C_fr.swapaxes(2, 3))
        r = np.matmul(v.r, self.C_rr) + np.matmul(v.f, self.C_fr).sum(axis=0)
        return Vectors(f, r)

    def times_N(self, v: Vectors, N_r: FloatArray | None = None) -> Vectors:
        """N v; of P, or with the border's ``N_r`` (B, w, w)."""
        N_r = self.border.N if N_r is None else N_r
        moved = self.times_g(np.matmul(self.g_times(v), N_r))
        return Vectors(self.times_F(v.f) + moved.f, moved.r)

    def less_CN(self, v: Vectors, N_r: FloatArray | None = None) -> Vectors:
        """(I - C N) v, A'P of what v stands for."""
        moved = self.times_C(self.times_N(v, N_r))
        return Vectors(v.f - moved.f, v.r - moved.r)

    @property
    def D(self) -> FloatArray:
        """D of the blocks, shape (s, s, B, L)."""
        k, sums = len(self.sums.entries), self.sums
        own = np.column_stack([self.theta[:, :k], np.zeros(self.theta.shape[0])])
        D = own[:, sums.of_block].transpose(1, 2, 0, 3)
        return np.broadcast_to(D, (*D.shape[:3], sums.L))

    def times_D(self, v: Vectors) -> Vectors:
        """D v, zero for the columns of X."""
        b, r = self.sums.b, np.zeros_like(v.r)
        r[..., :b] = np.matmul(v.r[..., :b], self.D_b)
        return Vectors(np.einsum("ijbl,jbcl->ibcl", self.D, v.f), r)

    def apply_T(self, vectors: FloatArray) -> FloatArray:
        """Z'PZ v for the rows of vectors (B, c, q), same shape."""
        B, c, q = vectors.shape
        wide = np.concatenate([vectors, np.zeros((B, c, self.sums.a - q))], axis=2)
        return self.sums.joined(self.less_CN(self.times_C(self.sums.split(wide))))[..., :q]

    def T_blocks(self, N_r: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """E_l, T_ll = W_l - X_l and X_l = U_l N_r U_l', each (s, s, B, L)."""
        E = -np.einsum("ijbl,jkbl->ikbl", self.C_ff, self.F)
        for i in range(self.sums.s):
            E[i, i] += 1.0
        UN, X = np.matmul(self.U, N_r[None]), np.empty_like(self.F)
        for i, j in small.pairs(self.sums.s):
            X[i, j] = X[j, i] = (UN[i] * self.U[j]).sum(axis=2)
        return E, np.einsum("ijbl,jkbl->ikbl", E, self.C_ff) - X, X

    def T_border(self, N_r: FloatArray) -> tuple[FloatArray, FloatArray]:
        """M = I - K_r N_r, (B, w, w), and Z_b'PZ_b, (B, b, b)."""
        M = np.eye(self.sums.w) - np.matmul(self.border.K_r, N_r)
        b = self.sums.b
        return M, np.matmul(M, self.border.K_r)[:, :b, :b]

    def less_known(self, N_r: FloatArray) -> FloatArray:
        """The diagonal of D - D T D, shape (B, a), zero for the columns of X."""
        b, B, D, D_b = self.sums.b, self.theta.shape[0], self.D, self.D_b
        result = np.zeros((B, self.sums.a + 1))
        _, T, _ = self.T_blocks(N_r)
        _, T_b = self.T_border(N_r)
        known = np.einsum("ijbl,jkbl,kibl->ibl", D, T, D)
        result[:, self.sums.fine] = (np.einsum("iibl->ibl", D) - known).transpose(1, 0, 2)
        rest = np.diagonal(D_b, axis1=1, axis2=2) - (np.matmul(D_b, T_b) * D_b).sum(axis=2)
        result[:, self.sums.border[:b]] = rest
        return result[:, : self.sums.a]


def _inverses(
    sums: BlockSums, own: FloatArray, C: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, IntArray]:
    """F (s, s, B, L), the sum of log |I + C D|, their least eigenvalue, how many are below 0 (B,).

    ``own``: the parameters of D and a zero, (B, k + 1).
    """
    s, L, B = sums.s, sums.L, own.shape[0]
    if L == 0:
        none = np.zeros(B, dtype=np.intp)
        return np.empty((0, 0, B, 0)), np.zeros(B), np.full(B, np.inf), none
    root, fine = _roots(sums, own)
    F, log_det, least = np.empty((s, s, B, L)), np.empty(B), np.empty(B)
    negative = np.zeros(B, dtype=np.intp)
    good, bad = np.flatnonzero(fine), np.flatnonzero(~fine)
    if good.size:
        every = slice(None) if good.size == B else good
        R = [[root[i, j][every] for j in range(s)] for i in range(s)]
        packed = [C[i, j][every] for i, j in small.pairs(s)]
        inner = small.sandwich(small.transpose(R), packed)
        for i in range(s):
            at = small.position(s, i, i)
            inner[at] = inner[at] + 1.0
        lower, pivots = small.factorise(inner, s)
        found = small.full(small.sandwich(R, small.inverse_of_factors(lower, pivots)), s)
        for i in range(s):
            for j in range(s):
                F[i, j][every] = found[i][j]
        log_det[every] = sum(np.log(pivot).sum(axis=1) for pivot in pivots)
        least[every] = 1.0
    if bad.size:
        D = np.broadcast_to(own[bad][:, sums.of_block], (bad.size, s, s, L))
        own_C, own_D = (
            part.transpose(0, 3, 1, 2).reshape(-1, s, s)
            for part in (C[:, :, bad].transpose(2, 0, 1, 3), D)
        )
        stack, values = damped_inverse(own_C, own_D, np.zeros(bad.size * L, dtype=bool))
        F[:, :, bad] = stack.reshape(bad.size, L, s, s).transpose(2, 3, 0, 1)
        values = values.reshape(bad.size, L * s)
        log_det[bad] = np.log(np.abs(values)).sum(axis=1)
        least[bad], negative[bad] = values.min(axis=1), (values <= 0).sum(axis=1)
    return F, log_det, least, negative


def _roots(sums: BlockSums, own: FloatArray) -> tuple[FloatArray, BoolArray]:
    """R with R R' = D of the blocks, (s, s, B, L or 1), and where D has one, (B,)."""
    B, parts = own.shape[0], []
    fine: BoolArray = np.asarray(np.isfinite(own).all(axis=1))
    for which in sums.of_terms:
        D = np.where(fine[:, None, None], own[:, which], 0.0)
        values, vectors = (D[:, 0], np.ones_like(D)) if len(which) == 1 else np.linalg.eigh(D)
        largest = np.abs(values).max(axis=1)
        fine &= values[:, 0] >= -_ROUNDING * (largest if len(which) > 1 else 0.0)
        root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
        parts.append(root.reshape(B, -1))
    flat = np.column_stack([*parts, np.zeros(B)])
    return np.ascontiguousarray(flat[:, sums.in_terms].transpose(1, 2, 0, 3)), fine
