"""How a design falls apart: one grouping factor's blocks, and a border of everything else.

All terms on one grouping factor make Z_B'Z_B block diagonal, one s x s block per level. The
other random effects and X are the border W, of width w. Blocks and border meet in
B = Z_B'W, one s x w matrix per level, sparse where W is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.likelihood.projection import Projection

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]

__all__ = ["Layout", "find_layout"]

_DENSE_OUTER = 5e7  # entries of the outer products that may be held dense
_WELL_CONDITIONED = 1e-4
MAX_EFFECTS = 4


@dataclass(frozen=True)
class Layout:
    """Blocks and border of a design; shared by all features.

    Parameters
    ----------
    columns
        Columns of Z in the blocks, shape (L, s).
    border
        Columns of Z in the border, shape (q_z,).
    ZZ
        The blocks of Z_B'Z_B, indices first, shape (s, s, 1, L).
    WW
        W'W with W = [Z_z, X x_transform], shape (w, w).
    B
        Z_B'W, rows level by level, sparse, shape (L s, w).
    x_transform
        What the columns of X are multiplied by, shape (p, p): unit lengths, which keeps X sparse,
        or a whitening where X is nearly collinear.
    block_parameters
        Parameters of D in the blocks: (position in theta, symmetric s x s basis matrix).
    border_parameters
        Parameters in the border: (position in theta, rows, columns) of the ones of G_i among
        the border's columns, one entry (rows, columns) per triangle.
    """

    columns: IntArray
    border: IntArray
    ZZ: FloatArray
    WW: FloatArray
    B: sp.csr_array
    x_transform: FloatArray
    block_parameters: tuple[tuple[int, FloatArray], ...]
    border_parameters: tuple[tuple[int, tuple[tuple[IntArray, IntArray], ...]], ...]

    @property
    def L(self) -> int:
        """Number of levels."""
        return int(self.columns.shape[0])

    @property
    def s(self) -> int:
        """Effects per level."""
        return int(self.columns.shape[1])

    @property
    def q_z(self) -> int:
        """Random effects in the border."""
        return int(self.border.size)

    @property
    def w(self) -> int:
        """Width of the border, X included."""
        return int(self.WW.shape[0])

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """The s (s + 1) / 2 pairs of effects."""
        return [(a, b) for a in range(self.s) for b in range(a, self.s)]

    @cached_property
    def triangle(self) -> tuple[IntArray, IntArray]:
        """Rows and columns of the upper triangle of a w x w matrix."""
        return np.triu_indices(self.w)

    @cached_property
    def range_of_border(self) -> FloatArray | None:
        """Orthonormal basis of the range of Z_z'Z_z, shape (q_z, rank); None if full."""
        return _range(self.WW[: self.q_z, : self.q_z])

    @cached_property
    def range_without_x(self) -> FloatArray | None:
        """The same once X is projected out."""
        z, x = slice(0, self.q_z), slice(self.q_z, self.w)
        ZX = self.WW[z, x]
        return _range(self.WW[z, z] - ZX @ np.linalg.solve(self.WW[x, x], ZX.T))

    @cached_property
    def outer(self) -> FloatArray | sp.csr_array:
        """Packed outer products b_a b_b' + b_b b_a' of each level, pair by pair.

        Shape (pairs * L, w (w + 1) / 2); for a = b just b_a b_a'.
        """
        parts = [self.B[a :: self.s] for a in range(self.s)]
        size = len(self.pairs) * self.L * self.triangle[0].size
        share = (self.B.nnz / max(1, self.B.shape[0] * self.w)) ** 2
        if size <= _DENSE_OUTER and share > 0.02:
            dense = [part.toarray() for part in parts]
            rows, columns = self.triangle
            blocks = []
            for a, b in self.pairs:
                block = dense[a][:, rows] * dense[b][:, columns]
                if a != b:
                    block += dense[b][:, rows] * dense[a][:, columns]
                blocks.append(block)
            return np.concatenate(blocks)
        stacked = [_packed_outer(parts[a], parts[b], a == b) for a, b in self.pairs]
        return sp.csr_array(sp.vstack(stacked, format="csr"))

    @cached_property
    def outer_transposed(self) -> FloatArray | sp.csr_array:
        """The transpose, stored by rows when sparse."""
        outer = self.outer
        return sp.csr_array(outer.T) if sp.issparse(outer) else outer.T

    def sums(self, weights: FloatArray) -> FloatArray:
        """sum_l B_l'G_l B_l for symmetric weights G (s, s, B, L), shape (B, w, w)."""
        packed = np.concatenate([weights[a, b] for a, b in self.pairs], axis=1)
        upper = np.asarray((self.outer_transposed @ packed.T).T)
        rows, columns = self.triangle
        full = np.empty((upper.shape[0], self.w, self.w))
        full[:, rows, columns] = upper
        full[:, columns, rows] = upper
        return full

    def sandwich(self, N: FloatArray) -> FloatArray:
        """B_l N B_l' for symmetric N (B, w, w), shape (s, s, B, L)."""
        rows, columns = self.triangle
        packed = N[:, rows, columns] * np.where(rows == columns, 1.0, 2.0)
        flat = np.asarray((self.outer @ packed.T).T).reshape(N.shape[0], -1, self.L)
        result = np.empty((self.s, self.s, N.shape[0], self.L))
        for i, (a, b) in enumerate(self.pairs):
            result[a, b] = flat[:, i] if a == b else 0.5 * flat[:, i]
            result[b, a] = result[a, b]
        return result

    def gather(self, vectors: FloatArray) -> FloatArray:
        """sum_l B_l'x_l for vectors (s, B, L), shape (B, w)."""
        s, count, _ = vectors.shape
        flat = np.moveaxis(vectors, 0, 2).reshape(count, self.L * s)
        return np.asarray((self._B_transposed @ flat.T).T)

    def scatter(self, border: FloatArray) -> FloatArray:
        """B_l g for border vectors g (B, w), shape (s, B, L)."""
        flat = np.asarray((self.B @ border.T).T).reshape(border.shape[0], self.L, self.s)
        return np.ascontiguousarray(np.moveaxis(flat, 2, 0))

    @cached_property
    def _B_transposed(self) -> sp.csr_array:
        return sp.csr_array(self.B.T)


def _range(gram: FloatArray) -> FloatArray | None:
    if gram.shape[0] == 0:
        return None
    values, vectors = np.linalg.eigh(gram)
    keep = values > 1e-10 * max(float(values[-1]), 1.0)
    return None if keep.all() else np.ascontiguousarray(vectors[:, keep])


def _packed_outer(left: sp.csr_array, right: sp.csr_array, same: bool) -> sp.csr_array:
    """Row by row the packed upper triangle of l r' + r l' (of l l' when they are the same)."""
    L, w = left.shape
    n_left, n_right = np.diff(left.indptr), np.diff(right.indptr)
    count = n_left * n_right
    row = np.repeat(np.arange(L), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    width = n_right[row]
    i = left.indptr[row] + within // width
    j = right.indptr[row] + within % width
    a, b, values = left.indices[i], right.indices[j], left.data[i] * right.data[j]
    if same:
        keep = a <= b
        row, a, b, values = row[keep], a[keep], b[keep], values[keep]
    else:
        values = np.where(a == b, 2.0, 1.0) * values
        a, b = np.minimum(a, b), np.maximum(a, b)
    a, b = a.astype(np.int64), b.astype(np.int64)
    position = a * w - a * (a - 1) // 2 + (b - a)  # in the order of triu_indices
    return sp.csr_array((values, (row, position)), shape=(L, w * (w + 1) // 2))


def find_layout(projection: Projection) -> Layout | None:
    """Blocks of the grouping factor with most columns that is small enough per level.

    None if no grouping factor gives block-diagonal cross-products.
    """
    structure = projection.structure
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for position, term in enumerate(structure.terms):
        groups.setdefault((term.group, term.levels), []).append(position)
    candidates = sorted(
        groups.values(),
        key=lambda terms: -sum(structure.terms[t].n_columns for t in terms),
    )
    for terms in candidates:
        if sum(len(structure.terms[t].effects) for t in terms) > MAX_EFFECTS:
            continue
        columns = np.concatenate(
            [
                np.arange(structure.offsets[t], structure.offsets[t + 1]).reshape(
                    -1, len(structure.terms[t].effects)
                )
                for t in terms
            ],
            axis=1,
        )
        if _is_block_diagonal(projection.ZZ, columns):
            return _make_layout(projection, terms, columns)
    return None


def _is_block_diagonal(ZZ: sp.csr_array, columns: IntArray) -> bool:
    L, s = columns.shape
    level = np.full(ZZ.shape[0], -1, dtype=np.intp)
    level[columns.ravel()] = np.repeat(np.arange(L), s)
    entries = ZZ.tocoo()
    rows, others = level[entries.row], level[entries.col]
    inside = (rows >= 0) & (others >= 0) & (entries.data != 0)
    return bool((rows[inside] == others[inside]).all())


def _make_layout(projection: Projection, terms: list[int], columns: IntArray) -> Layout:
    structure, ZZ = projection.structure, projection.ZZ
    L, s = columns.shape
    in_block = np.zeros(structure.q, dtype=bool)
    in_block[columns.ravel()] = True
    border = np.flatnonzero(~in_block)
    slot = np.full(structure.q, -1, dtype=np.intp)
    slot[border] = np.arange(border.size)

    blocks = np.empty((s, s, 1, L))
    for a in range(s):
        for b in range(s):
            blocks[a, b, 0] = np.asarray(ZZ[columns[:, a], :][:, columns[:, b]].diagonal())
    x_transform = _x_transform(projection.XX)
    X_scaled = projection.ZX @ x_transform
    flat = columns.ravel()
    B = sp.csr_array(
        sp.hstack([ZZ[flat, :][:, border], sp.csr_array(X_scaled[flat])], format="csr")
    )
    WW = np.block(
        [
            [ZZ[border, :][:, border].toarray(), X_scaled[border]],
            [X_scaled[border].T, x_transform.T @ projection.XX @ x_transform],
        ]
    )
    first = {}  # first effect of each block term within the s effects
    count = 0
    for t in terms:
        first[t] = count
        count += len(structure.terms[t].effects)
    block_parameters, border_parameters = [], []
    for i, parameter in enumerate(structure.parameters):
        if parameter.term in first:
            basis = np.zeros((s, s))
            if parameter.row < 0:  # one variance for all effects of the term
                stop = first[parameter.term] + len(structure.terms[parameter.term].effects)
                for a in range(first[parameter.term], stop):
                    basis[a, a] = 1.0
            else:
                a, b = (
                    first[parameter.term] + parameter.row,
                    first[parameter.term] + parameter.column,
                )
                basis[a, b] = basis[b, a] = 1.0
            block_parameters.append((i, basis))
        else:
            rows, others = (slot[index] for index in structure.columns(parameter))
            ones = ((rows, others),) if parameter.is_variance else ((rows, others), (others, rows))
            border_parameters.append((i, ones))
    return Layout(
        columns,
        border,
        blocks,
        WW,
        B,
        x_transform,
        tuple(block_parameters),
        tuple(border_parameters),
    )


def _x_transform(XX: FloatArray) -> FloatArray:
    length = np.sqrt(np.diag(XX))
    values, vectors = np.linalg.eigh(XX / np.outer(length, length))
    if values[0] > _WELL_CONDITIONED * values[-1]:
        return np.diag(1.0 / length)
    return np.asarray(vectors / np.sqrt(values) / length[:, None])
