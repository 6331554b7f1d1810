"""Sums by group, sorted into small blocks of columns of Z and a border of the others and X."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.likelihood.structure import partitions

__all__ = ["BlockSums", "Entries", "Vectors"]


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
