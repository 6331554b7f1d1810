"""Residual variances by group where Z falls into small blocks beside a border.

The formulas of `flashmm.likelihood.residual_groups.groups` without a matrix of the size of Z.
Columns of the terms of one grouping factor (and of what is nested in it) fall into L blocks of s
columns; the other columns of Z, and X, are a border of width w. With V_F = R + Z_F D_F Z_F', a
block l has

    F_l = D_l (I + C_ll D_l)^-1,   H_l = F_l C_lr,   U_l = C_lr - C_ll H_l = Z_l'V_F^-1 A_r,
    W_l = C_ll - C_ll F_l C_ll = Z_l'V_F^-1 Z_l,     K_r = C_rr - sum_l C_rl H_l = A_r'V_F^-1 A_r

and of what `Border` makes of K_r follows N = [F_l] + g N_r g' with g = [-H_l; I]. Block vectors and
matrices are kept as one plane for each entry: the first axes are those of the columns of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.likelihood.elimination import small
from flashmm.likelihood.residual_groups.border import Border, damped_inverse
from flashmm.likelihood.structure import partitions

__all__ = ["BlockAt", "BlockSums", "Vectors"]

# Eigenvalues of a D that are negative by this share of the largest are so by rounding.
_ROUNDING = 1e-14


@dataclass(frozen=True)
class Entries:
    """Where the ones of G_i are.

    Parameters
    ----------
    blocks
        Pairs (a, b) of columns of a block, (b, a) as well, and in which blocks they are ones, shape
        (L,); None for all.
    border
        Rows and columns of those in the border, each shape (e,), in parts without a column twice.
    """

    blocks: tuple[tuple[int, int, FloatArray | None], ...]
    border: tuple[tuple[IntArray, IntArray], ...]

    def of_planes(self, planes: FloatArray) -> FloatArray:
        """G_i v for block vectors (s, ..., L)."""
        result = np.zeros_like(planes)
        for a, b, mask in self.blocks:
            result[a] += planes[b] if mask is None else mask * planes[b]
        return result

    def of_border(self, rows: FloatArray) -> FloatArray:
        """G_i v for vectors (..., b)."""
        result = np.zeros_like(rows)
        for row, column in self.border:
            result[..., column] += rows[..., row]
        return result


@dataclass(frozen=True)
class Vectors:
    """Vectors over the columns of A: in the blocks (s, B, c, L), in the border (B, c, w)."""

    f: FloatArray
    r: FloatArray


@dataclass(frozen=True)
class BlockSums:
    """Sums by group A'I_h A, sorted into blocks and border.

    Parameters
    ----------
    fine
        Columns of A of each block, a where it has fewer, shape (s, L).
    border
        The other columns of A, those of X last, shape (w,).
    a, b
        Columns of A, and of Z in the border.
    S_ff, S_fr, S_rr
        Shapes (s, s, H, L), (s, H, L, w) and (H, w, w).
    n
        Samples of each group, shape (H,).
    of_block, of_border
        Which parameter each entry of D is, k for none, (s, s, L), or (s, s, 1) where all blocks are
        alike, and (b, b).
    of_terms, in_terms
        The same of D for one level of each term, (e, e), and which of the entries of these, one
        after the other, each entry of a block is, like ``of_block``.
    entries
        Of each of the k parameters of D.
    """

    fine: IntArray
    border: IntArray
    a: int
    b: int
    S_ff: FloatArray
    S_fr: FloatArray
    S_rr: FloatArray
    n: FloatArray
    of_block: IntArray
    of_border: IntArray
    of_terms: tuple[IntArray, ...]
    in_terms: IntArray
    entries: tuple[Entries, ...]

    @classmethod
    def make(
        cls,
        S: FloatArray,
        n: FloatArray,
        structure: CovarianceStructure,
        *,
        dense: bool = False,
    ) -> BlockSums:
        """Of sums S (H, q + p, q + p) of groups of n (H,) samples; without blocks if ``dense``."""
        (H, a, _), q = S.shape, structure.q
        fine, own = np.empty((0, 0), dtype=np.intp), np.arange(q)
        if not dense:
            fine, own = _partition(S[:, :q, :q], structure)
        border = np.concatenate([own, np.arange(q, a)])
        fine = np.where(fine < 0, a, fine)
        padded = np.zeros((H, a + 1, a + 1))
        padded[:, :a, :a] = S
        which = _Which.of(structure, a)
        in_terms = which.entry(fine[:, None], fine[None])
        of_terms = tuple(which.of_terms)
        flat = np.concatenate([part.ravel() for part in of_terms] + [[len(structure.parameters)]])
        of_block = flat[in_terms]
        of_border = flat[which.entry(own[:, None], own[None])]
        if fine.shape[1] and (in_terms == in_terms[..., :1]).all():
            in_terms, of_block = in_terms[..., :1], of_block[..., :1]
        return cls(
            fine,
            border,
            a,
            own.size,
            np.ascontiguousarray(padded[:, fine[:, None], fine[None]].transpose(1, 2, 0, 3)),
            np.ascontiguousarray(padded[:, fine[:, :, None], border].transpose(1, 0, 2, 3)),
            np.ascontiguousarray(padded[:, border[:, None], border]),
            n,
            of_block,
            of_border,
            of_terms,
            in_terms,
            tuple(_entries(i, of_block, of_border) for i in range(len(structure.parameters))),
        )

    @property
    def H(self) -> int:
        """Number of groups."""
        return int(self.n.size)

    @property
    def s(self) -> int:
        """Columns of a block."""
        return int(self.fine.shape[0])

    @property
    def L(self) -> int:
        """Number of blocks."""
        return int(self.fine.shape[1])

    @property
    def w(self) -> int:
        """Width of the border."""
        return int(self.border.size)

    @property
    def numbers(self) -> int:
        """Numbers that an evaluation takes for each feature, about."""
        s, L, w, H, k = self.s, self.L, self.w, self.H, len(self.entries)
        planes = L * s * (s * (2 * H + 2 * k + 8) + 4 * H)
        return planes + s * L * w * (4 * H + 6) + w * w * (4 * H + 3 * k + 12) + 64

    def split(self, rows: FloatArray) -> Vectors:
        """Vectors (B, c, a) as blocks and border."""
        padded = np.zeros((*rows.shape[:2], self.a + 1))
        padded[..., : self.a] = rows
        planes = np.ascontiguousarray(padded[..., self.fine].transpose(2, 0, 1, 3))
        return Vectors(planes, rows[..., self.border])

    def joined(self, vectors: Vectors) -> FloatArray:
        """The vectors (B, c, a) of blocks and border."""
        result = np.zeros((*vectors.r.shape[:2], self.a + 1))
        result[..., self.fine] = vectors.f.transpose(1, 2, 0, 3)
        result[..., self.border] = vectors.r
        return result[..., : self.a]

    def least_squares(self, s: FloatArray, yy: FloatArray) -> FloatArray:
        """Residual sums of squares of each group on Z and X, for A'I_h y s (m, H, a), yy (m, H).

        Infinite for groups that these could explain whatever the data.
        """
        rss, y = yy.copy(), self.split(s)
        for h, n in enumerate(self.n):
            across = self.S_fr[:, h].transpose(1, 0, 2)  # (L, s, w)
            blocks = self.S_ff[:, :, h].transpose(2, 0, 1)
            root, rank = _root_of_inverse(blocks, np.einsum("lii->l", blocks))
            along = np.matmul(y.f[:, :, h].transpose(2, 1, 0), root)  # (L, m, s)
            loaded = np.matmul(root.swapaxes(1, 2), across)
            rest = self.S_rr[h] - np.matmul(loaded.swapaxes(1, 2), loaded).sum(axis=0)
            left = y.r[:, h] - np.matmul(along, loaded).sum(axis=0)
            last, more = _root_of_inverse(rest[None], np.trace(self.S_rr[h])[None])
            if rank + more >= n:
                rss[:, h] = np.inf
                continue
            rss[:, h] -= (along**2).sum(axis=(0, 2)) + ((left @ last[0]) ** 2).sum(axis=1)
        return rss

    def times_S(self, v: Vectors) -> Vectors:
        """S_h v for all groups: (s, B, c, H, L) and (B, c, H, w)."""
        s, H, L, w = self.s, self.H, self.L, self.w
        B, c, _ = v.r.shape
        f = np.einsum("ijhl,jbcl->ibchl", self.S_ff, v.f)
        flat = self.S_fr.reshape(s, H * L, w)
        f += np.matmul(v.r.reshape(B * c, w), flat.swapaxes(1, 2)).reshape(s, B, c, H, L)
        r = (v.r.reshape(B * c, w) @ self.S_rr.transpose(2, 0, 1).reshape(w, H * w)).reshape(
            B, c, H, w
        )
        across = self.S_fr.transpose(0, 2, 1, 3).reshape(s, L, H * w)
        r += np.matmul(v.f.reshape(s, B * c, L), across).sum(axis=0).reshape(B, c, H, w)
        return Vectors(f, r)


def _root_of_inverse(matrices: FloatArray, size: FloatArray) -> tuple[FloatArray, int]:
    """R with R R' the pseudoinverses of psd matrices (L, s, s), and the sum of their ranks.

    Eigenvalues up to 1e-10 of ``size`` (L,) are rounding.
    """
    if matrices.size == 0:
        return np.zeros_like(matrices), 0
    values, vectors = np.linalg.eigh(matrices)
    held = values > 1e-10 * size[:, None]
    root = vectors * np.where(held, 1.0 / np.sqrt(np.where(held, values, 1.0)), 0.0)[:, None]
    return np.asarray(root), int(held.sum())


@dataclass(frozen=True)
class _Which:
    """Term, level and effect of each column of A, those of X and the missing one last."""

    term: IntArray
    level: IntArray
    effect: IntArray
    of_terms: list[IntArray]

    @classmethod
    def of(cls, structure: CovarianceStructure, a: int) -> _Which:
        k = len(structure.parameters)
        term, level, effect = (np.full(a + 1, -1, dtype=np.intp) for _ in range(3))
        of_terms = []
        for t, one in enumerate(structure.terms):
            start, stop, e = structure.offsets[t], structure.offsets[t + 1], len(one.effects)
            term[start:stop] = t
            level[start:stop], effect[start:stop] = np.divmod(np.arange(stop - start), e)
            own = np.full((e, e), k, dtype=np.intp)
            for i, parameter in enumerate(structure.parameters):
                if parameter.term == t:
                    rows, columns = (x - start for x in structure.columns(parameter))
                    here = (rows < e) & (columns < e)
                    own[rows[here], columns[here]] = own[columns[here], rows[here]] = i
            of_terms.append(own)
        return cls(term, level, effect, of_terms)

    def entry(self, rows: IntArray, columns: IntArray) -> IntArray:
        """Which entry of the terms' D each pair of columns is, the last for none."""
        sizes = np.array([own.shape[0] for own in self.of_terms], dtype=np.intp)
        starts = np.concatenate([[0], np.cumsum(sizes**2)])
        term = self.term[rows]
        same = (term >= 0) & (term == self.term[columns])
        same &= self.level[rows] == self.level[columns]
        safe = np.maximum(term, 0)
        size = sizes[safe] if sizes.size else safe
        place = starts[safe] + self.effect[rows] * size + self.effect[columns]
        return np.asarray(np.where(same, place, starts[-1]))


def _entries(i: int, of_block: IntArray, of_border: IntArray) -> Entries:
    """Where the parameter i is."""
    here = of_block == i
    blocks = [
        (int(a), int(b), None if here[a, b].all() else here[a, b].astype(np.float64))
        for a, b in zip(*np.nonzero(here.any(axis=2)), strict=True)
    ]
    row, column = np.nonzero(of_border == i)
    order = np.argsort(column, kind="stable")
    row, column = row[order], column[order]
    first = np.searchsorted(column, column)  # the first of the same column
    turn = np.arange(column.size) - first
    parts = [(row[turn == j], column[turn == j]) for j in range(int(turn.max(initial=-1)) + 1)]
    return Entries(tuple(blocks), tuple(parts))


def _partition(S: FloatArray, structure: CovarianceStructure) -> tuple[IntArray, IntArray]:
    """Columns of Z in blocks, (s, L), -1 for none, and in the border, (b,), with least work."""
    q = structure.q
    best: tuple[IntArray, IntArray] = (np.empty((0, 0), dtype=np.intp), np.arange(q))
    if q == 0:
        return best
    least = _work(0, 0, q)
    pattern = sp.csr_array(np.abs(S).sum(axis=0))
    for partition in partitions(pattern, structure, nested=False):
        L, s = partition.fine.shape
        work = _work(L, s, partition.border.size)
        if work < least:
            best, least = (partition.fine.T, partition.border), work
    return best


def _work(L: int, s: int, b: int) -> float:
    """Multiplications of an evaluation, about: of matrices of the border, and of blocks."""
    w = b + 5.0
    return 10.0 * w**3 + L * s * w * (w + 10.0 * s) + 20.0 * L * s**3


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
    least, lowest
        The least eigenvalue of V_F, and of V, in their units, shape (B,).
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
        F, log_det, least = _inverses(sums, own, C_ff)
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
            sums, theta, c, C_ff, F, C_fr, C_rr, loaded, U, border, D_b, log_det, least, lowest
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
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """F (s, s, B, L), the sum of log |I + C D| (B,) and the least eigenvalue of these (B,).

    ``own``: the parameters of D and a zero, (B, k + 1).
    """
    s, L, B = sums.s, sums.L, own.shape[0]
    if L == 0:
        return np.empty((0, 0, B, 0)), np.zeros(B), np.full(B, np.inf)
    root, fine = _roots(sums, own)
    F, log_det, least = np.empty((s, s, B, L)), np.empty(B), np.empty(B)
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
        least[bad] = values.min(axis=1)
    return F, log_det, least


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
