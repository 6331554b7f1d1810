"""What the elimination of blocks needs of a design, computed once and shared by all features.

Within each block the columns of Z are written Z_l = O_l R_l' with orthonormal O_l (R_l a root of
Z_l'Z_l), and everything is said in terms of O_l: nothing is inverted that may be singular, and
what the blocks span drops out of sums exactly. See docs/engines.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from flashmm.arrays.namespaces import Array, Triangle, like
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.likelihood.elimination.shared import SharedMatrix
from flashmm.likelihood.elimination.small import pairs
from flashmm.likelihood.projection import Projection
from flashmm.likelihood.structure import Partition, partitions

__all__ = [
    "Blocks",
    "BorderParameter",
    "Layout",
    "find_partition",
    "independent_columns",
    "make_layout",
]

_WELL_CONDITIONED = 1e-4
# A direction of a block with less than this share of its largest eigenvalue is not there.
_RANK = 1e-13
# What blocks leave of a column that they span is rounding.
_SPANNED = 1e-12


@dataclass(frozen=True)
class Blocks:
    """The blocks of one elimination: L blocks of s effects, as planes (entries, L).

    Parameters
    ----------
    columns
        Columns of Z in the blocks, -1 where a block has fewer than s, shape (L, s).
    root, left_inverse
        R_l with R_l R_l' = Z_l'Z_l, and its left inverse, so that O_l' = left_inverse_l Z_l';
        zeros for directions that are not there; shape (L, s, s).
    parameters
        Positions in theta of the parameters of D in these blocks.
    bases
        Upper triangles of R_l'G_iR_l, shape (k, pairs, L).
    natural
        Upper triangles of G_i itself, shape (k, pairs, L).
    """

    columns: IntArray
    root: Array
    left_inverse: FloatArray
    parameters: tuple[int, ...]
    bases: Array
    natural: Array

    @property
    def L(self) -> int:
        """Number of blocks."""
        return int(self.columns.shape[0])

    @property
    def s(self) -> int:
        """Effects per block."""
        return int(self.columns.shape[1])

    @property
    def size(self) -> int:
        """Number of directions s L; direction a of block l is at a L + l."""
        return self.s * self.L

    @property
    def present(self) -> BoolArray:
        """Which directions are there, shape (s L,)."""
        return np.asarray((self.left_inverse != 0).any(axis=2).T.ravel())

    def on(self, example: Array) -> Blocks:
        """The same for arrays of the library and on the device of ``example``."""
        return replace(
            self,
            bases=like(self.bases, example),
            natural=like(self.natural, example),
            root=like(self.root, example),
        )

    def sparse(self, stack: FloatArray, q: int) -> sp.csr_array:
        """Matrices (L, s, s) of direction by column as one matrix, shape (s L, q)."""
        L, s = self.columns.shape
        shape = (L, s, s)
        row = np.broadcast_to(np.arange(s)[:, None] * L + np.arange(L)[:, None, None], shape)
        column = np.broadcast_to(self.columns[:, None, :], shape)
        there = (column >= 0) & (stack != 0)
        entries = (stack[there], (row[there], column[there]))
        return sp.csr_array(entries, shape=(self.size, q))


@dataclass(frozen=True)
class BorderParameter:
    """A parameter of D in the border: row r of G_i is mask[r] at column partner[r].

    Parameters
    ----------
    position
        Position in theta.
    is_variance
        Whether G_i is diagonal.
    partner, mask
        Shape (q_z,).
    """

    position: int
    is_variance: bool
    partner: Array
    mask: Array


@dataclass(frozen=True)
class Layout:
    """Finest blocks, coarse blocks and border of a design.

    What is left when the finest blocks are gone is A = [O_2, W]: the directions of the coarse
    blocks (q_c = s2 L2), then W = [Z_z, X x_transform] (w = q_z + p). A symmetric matrix over A
    is held as its pattern: the upper triangles of the coarse blocks (pairs2 * L2 entries), the
    coupling of coarse directions and W (q_c * w), the upper triangle of W (w (w + 1) / 2).

    Parameters
    ----------
    fine, coarse
        The two eliminations; ``coarse.L`` is 0 if there is one only.
    border
        Columns of Z in the border, shape (q_z,).
    border_parameters
        Their parameters of D.
    x_transform
        What the columns of X are multiplied by, shape (p, p): unit lengths or, where X is nearly
        collinear, an inverse Cholesky factor that keeps most of X sparse.
    to_directions
        [left_inverse of the blocks; left_inverse of the coarse blocks; rows of the border],
        shape (s L + q_c + q_z, q); times Z'y it gives O'y, O_2'y and Z_z'y.
    from_directions
        The roots in the same places, shape (q, s L + q_c + q_z).
    C
        O'A, direction by direction of the finest blocks, shape (s L, q_c + w).
    WW
        W'W, shape (w, w).
    base
        Pattern of A'(I - O O')A, shape (pattern,).
    outer
        For each pair of directions of each finest block the pattern of c_a c_b' + c_b c_a', or
        of c_a c_a' where a = b; shape (pairs * L, pattern).
    multiplicity
        How often each entry of a pattern stands in the full matrix, 1 or 2, shape (pattern,).
    triangle
        The triangle of W's own matrices.
    independent, independent_of_x
        Columns of Z_z that are a basis of its range, and of what X leaves of it.
    unspanned
        1 for columns of A that the finest blocks do not span, 0 for others, shape (q_c + w,).
    place
        Where each column of Z comes in the order of blocks, coarse blocks and border, effect by
        effect, shape (q,).
    """

    fine: Blocks
    coarse: Blocks
    border: IntArray
    border_parameters: tuple[BorderParameter, ...]
    x_transform: Array
    to_directions: SharedMatrix
    from_directions: SharedMatrix
    C: SharedMatrix
    WW: FloatArray
    base: Array
    outer: SharedMatrix
    multiplicity: Array
    triangle: Triangle
    independent: Array
    independent_of_x: Array
    unspanned: Array
    place: Array

    @property
    def q_z(self) -> int:
        """Random effects in the border."""
        return int(self.border.size)

    @property
    def w(self) -> int:
        """Width of the border, X included."""
        return int(self.WW.shape[0])

    @property
    def border_is_diagonal(self) -> bool:
        """Whether D of the border is diagonal, whatever theta."""
        return all(each.is_variance for each in self.border_parameters)

    @property
    def q_c(self) -> int:
        """Directions of the coarse blocks."""
        return self.coarse.size

    @property
    def parts(self) -> tuple[int, int]:
        """Where the coupling and where W's own triangle start in a pattern."""
        coarse = len(pairs(self.coarse.s)) * self.coarse.L
        return coarse, coarse + self.q_c * self.w

    def on(self, example: Array) -> Layout:
        """The same for arrays of the library and on the device of ``example``."""
        parameters = tuple(
            replace(each, partner=like(each.partner, example), mask=like(each.mask, example))
            for each in self.border_parameters
        )
        return replace(
            self,
            fine=self.fine.on(example),
            coarse=self.coarse.on(example),
            border_parameters=parameters,
            x_transform=like(self.x_transform, example),
            to_directions=self.to_directions.on(example),
            from_directions=self.from_directions.on(example),
            C=self.C.on(example),
            base=like(self.base, example),
            outer=self.outer.on(example),
            multiplicity=like(self.multiplicity, example),
            triangle=Triangle.of(self.w, example),
            unspanned=like(self.unspanned, example),
            place=like(self.place, example),
            independent=like(self.independent, example),
            independent_of_x=like(self.independent_of_x, example),
        )


def find_partition(projection: Projection, *, nested: bool) -> tuple[float, Partition] | None:
    """The partition with least work for one evaluation of one feature, and that work."""
    found = [
        (_work(projection, partition), partition)
        for partition in partitions(projection.ZZ, projection.structure, nested=nested)
    ]
    return min(found, key=lambda each: each[0], default=None)


def _work(projection: Projection, partition: Partition) -> float:
    """Multiplications of one evaluation for one feature, about."""
    ZZ, structure = projection.ZZ, projection.structure
    L, s = partition.fine.shape
    there = partition.fine >= 0
    columns, level = partition.fine[there], np.nonzero(there)[0]
    member = sp.csr_array((np.ones(level.size), (level, columns)), shape=(L, structure.q))
    others = np.setdiff1d(np.arange(structure.q), columns)
    meets = np.diff((member @ sp.csr_array(ZZ != 0)[:, others]).indptr)
    meets = meets + np.diff((member @ sp.csr_array(projection.ZX != 0)).indptr)
    products = 0.5 * s * (s + 1) * (meets.astype(np.float64) * (meets + 1) / 2).sum()
    first = [structure.columns(parameter)[0][0] for parameter in structure.parameters]
    fine = int(np.isin(first, partition.fine).sum())
    coarse = int(np.isin(first, partition.coarse).sum())
    w = partition.border.size + projection.p
    planes = (15 + 12 * fine * s) * s * s * L
    coupling = 2 * partition.coarse.size * w**2 * (3 + 2 * fine + coarse)
    return float(
        planes + 2 * (3 + fine) * products + coupling + 2 * (8 + 3 * (fine + coarse)) * w**3
    )


def make_layout(projection: Projection, partition: Partition) -> Layout:
    """The layout of a partition of the columns of Z."""
    structure, ZZ, border = projection.structure, projection.ZZ, partition.border
    q = structure.q
    fine = _make_blocks(ZZ, structure, partition.fine)
    coarse = _make_blocks(ZZ, structure, partition.coarse)
    x_transform, XX = projection.whitening, np.eye(projection.p)
    if not projection.exact:
        x_transform = _x_transform(projection.XX, projection.ZX)
        XX = x_transform.T @ projection.XX @ x_transform
    X, XX = sp.csr_array(projection.ZX @ x_transform), sp.csr_array(XX)
    pick = sp.csr_array(sp.eye_array(q, format="csr")[border, :])
    left = [blocks.sparse(blocks.left_inverse, q) for blocks in (fine, coarse)]
    roots = [blocks.sparse(np.swapaxes(blocks.root, 1, 2), q) for blocks in (fine, coarse)]
    to_directions = sp.csr_array(sp.vstack([*left, pick], format="csr"))
    rest = sp.csr_array(sp.vstack([left[1], pick], format="csr"))
    C = sp.csr_array(sp.hstack([left[0] @ ZZ @ rest.T, left[0] @ X], format="csr"))
    RX = rest @ X
    AA = sp.csr_array(sp.block_array([[rest @ ZZ @ rest.T, RX], [RX.T, XX]], format="csr"))
    C.eliminate_zeros()
    q_c, w = coarse.size, border.size + x_transform.shape[0]
    places = _Places(coarse.s, coarse.L, q_c, w)
    base, unspanned = _base(AA, C, coarse, places)
    WW = AA[q_c:, :][:, q_c:].toarray()
    z, x = slice(0, border.size), slice(border.size, w)
    return Layout(
        fine,
        coarse,
        border,
        _border_parameters(structure, border),
        x_transform,
        SharedMatrix.of(to_directions),
        SharedMatrix.of(sp.csr_array(sp.vstack([*roots, pick], format="csr").T)),
        SharedMatrix.of(C),
        WW,
        base,
        SharedMatrix.of(_outer_products(C, fine.s, places)),
        _multiplicity(coarse, q_c, w),
        Triangle.of(w, np.empty(0)),
        independent_columns(WW[z, z]),
        independent_columns(WW[z, z] - WW[z, x] @ np.linalg.solve(WW[x, x], WW[x, z])),
        unspanned,
        _places_of_columns(fine, coarse, border, q),
    )


def _places_of_columns(fine: Blocks, coarse: Blocks, border: IntArray, q: int) -> IntArray:
    order = np.concatenate([fine.columns.T.ravel(), coarse.columns.T.ravel(), border])
    place = np.empty(q, dtype=np.intp)
    there = np.flatnonzero(order >= 0)
    place[order[there]] = there
    return place


def _multiplicity(coarse: Blocks, q_c: int, w: int) -> FloatArray:
    rows, columns = np.triu_indices(w)
    return np.concatenate(
        [np.full(coarse.L, 1.0 if a == b else 2.0) for a, b in pairs(coarse.s)]
        + [np.full(q_c * w, 2.0), np.where(rows == columns, 1.0, 2.0)]
    )


def _make_blocks(ZZ: sp.csr_array, structure: CovarianceStructure, columns: IntArray) -> Blocks:
    L, s = columns.shape
    place = np.full((structure.q, 2), -1, dtype=np.intp)
    there = columns >= 0
    level, effect = np.nonzero(there)
    place[columns[there]] = np.column_stack([level, effect])
    gram = np.zeros((L, s, s))
    entries = ZZ[columns[there], :][:, columns[there]].tocoo()
    gram[level[entries.row], effect[entries.row], effect[entries.col]] = entries.data
    values, vectors = np.linalg.eigh(gram)
    values = np.where(values > _RANK * values.max(axis=1, initial=0.0)[:, None], values, 0.0)
    length = np.sqrt(values)
    root = vectors * length[:, None, :]
    inverse = np.divide(
        np.swapaxes(vectors, 1, 2),
        length[:, :, None],
        out=np.zeros_like(vectors),
        where=length[:, :, None] > 0,
    )
    upper = pairs(s)
    parameters, bases, natural = [], [], []
    for i, parameter in enumerate(structure.parameters):
        rows, others = structure.columns(parameter)
        if place[rows[0], 0] < 0:
            continue
        G = np.zeros((L, s, s))
        G[place[rows, 0], place[rows, 1], place[others, 1]] = 1.0
        G[place[rows, 0], place[others, 1], place[rows, 1]] = 1.0
        turned = np.swapaxes(root, 1, 2) @ G @ root
        parameters.append(i)
        natural.append([G[:, a, b] for a, b in upper])
        bases.append([turned[:, a, b] for a, b in upper])
    shape = (len(parameters), len(upper), L)
    return Blocks(
        columns,
        root,
        inverse,
        tuple(parameters),
        np.array(bases).reshape(shape),
        np.array(natural).reshape(shape),
    )


def _border_parameters(
    structure: CovarianceStructure, border: IntArray
) -> tuple[BorderParameter, ...]:
    slot = np.full(structure.q, -1, dtype=np.intp)
    slot[border] = np.arange(border.size)
    found = []
    for i, parameter in enumerate(structure.parameters):
        rows, others = (slot[index] for index in structure.columns(parameter))
        if rows[0] < 0:
            continue
        partner, mask = np.arange(border.size), np.zeros(border.size)
        partner[rows], partner[others] = others, rows
        mask[rows] = mask[others] = 1.0
        found.append(BorderParameter(i, parameter.is_variance, partner, mask))
    return tuple(found)


def _x_transform(XX: FloatArray, ZX: FloatArray) -> FloatArray:
    """Unit lengths, or X's inverse Cholesky factor with the sparsest columns first."""
    length = np.sqrt(np.diag(XX))
    scaled = XX / np.outer(length, length)
    values, vectors = np.linalg.eigh(scaled)
    if values.size == 0 or values[0] > _WELL_CONDITIONED * values[-1]:
        return np.diag(1.0 / length)
    order = np.argsort((ZX != 0).sum(axis=0), kind="stable")
    try:
        factor = np.linalg.cholesky(scaled[np.ix_(order, order)])
    except np.linalg.LinAlgError:
        return np.asarray(vectors / np.sqrt(values) / length[:, None])
    inverse = scipy.linalg.solve_triangular(factor, np.eye(length.size), lower=True).T
    transform = np.empty_like(inverse)
    transform[order] = np.where(np.abs(inverse) > 1e-13 * np.abs(inverse).max(axis=0), inverse, 0.0)
    return np.asarray(transform / length[:, None])


@dataclass(frozen=True)
class _Places:
    """Where entry (i, j), i <= j, of a matrix over A stands in its pattern."""

    s: int
    L: int
    q_c: int
    w: int

    @property
    def size(self) -> int:
        return len(pairs(self.s)) * self.L + self.q_c * self.w + self.w * (self.w + 1) // 2

    def __call__(self, i: IntArray, j: IntArray) -> IntArray:
        first = len(pairs(self.s)) * self.L
        second = first + self.q_c * self.w
        a, b = i // max(self.L, 1), j // max(self.L, 1)
        within_coarse = (a * self.s - a * (a - 1) // 2 + b - a) * self.L + i % max(self.L, 1)
        coupling = first + i * self.w + (j - self.q_c)
        k, n = i - self.q_c, j - self.q_c
        own = second + k * self.w - k * (k - 1) // 2 + (n - k)
        return np.where(j < self.q_c, within_coarse, np.where(i < self.q_c, coupling, own))


def _base(
    AA: sp.csr_array, C: sp.csr_array, coarse: Blocks, places: _Places
) -> tuple[FloatArray, FloatArray]:
    left = sp.csr_array(AA - C.T @ C)
    gone = left.diagonal() <= _SPANNED * AA.diagonal()
    entries = sp.coo_array(sp.triu(left))
    kept = ~(gone[entries.row] | gone[entries.col])
    base = np.zeros(places.size)
    i, j = entries.row[kept].astype(np.intp), entries.col[kept].astype(np.intp)
    base[places(i, j)] = entries.data[kept]
    absent = np.flatnonzero(~coarse.present)
    base[places(absent, absent)] = 1.0  # stands for itself: D has nothing there
    return base, np.where(gone, 0.0, 1.0)


def _outer_products(C: sp.csr_array, s: int, places: _Places) -> sp.csr_array:
    L = C.shape[0] // s
    rows = [C[a * L : (a + 1) * L] for a in range(s)]
    stacked = [_packed_outer(rows[a], rows[b], a == b, places) for a, b in pairs(s)]
    return sp.csr_array(sp.vstack(stacked, format="csr"))


def _packed_outer(
    left: sp.csr_array, right: sp.csr_array, same: bool, places: _Places
) -> sp.csr_array:
    """Row by row the pattern of l r' + r l' (of l l' when they are the same)."""
    L = left.shape[0]
    n_left, n_right = np.diff(left.indptr), np.diff(right.indptr)
    count = n_left * n_right
    row = np.repeat(np.arange(L), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    width = n_right[row]
    i = left.indptr[row] + within // width
    j = right.indptr[row] + within % width
    a, b = left.indices[i].astype(np.intp), right.indices[j].astype(np.intp)
    values = left.data[i] * right.data[j]
    if same:
        keep = a <= b
        row, a, b, values = row[keep], a[keep], b[keep], values[keep]
    else:
        values = np.where(a == b, 2.0, 1.0) * values
        a, b = np.minimum(a, b), np.maximum(a, b)
    return sp.csr_array((values, (row, places(a, b))), shape=(L, places.size))


def independent_columns(gram: FloatArray) -> IntArray:
    """Columns that span a Gram matrix's range, by Cholesky's method with pivots."""
    lowest = 1e-10 * max(float(np.diag(gram).max(initial=0.0)), 1.0)
    try:  # faster by far than with pivots
        if (np.diag(np.linalg.cholesky(gram)) ** 2 > 1e3 * lowest).all():
            return np.arange(gram.shape[0])
    except np.linalg.LinAlgError:
        pass
    factor, pivots, rank, info = scipy.linalg.lapack.dpstrf(gram, tol=lowest, lower=1)
    del factor, info
    return np.sort(pivots[:rank] - 1)
