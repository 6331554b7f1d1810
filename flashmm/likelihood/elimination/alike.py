"""Finest blocks that are alike, eliminated once: stacks of s x s matrices, one for each kind.

Levels whose R_l'G_iR_l are equal have the same F_l = sigma2 I + R_l'D R_l whatever theta, all of
them in a balanced design. A sum over the levels of a kind is then its number times what F^-1 gives,
or a product of F^-1 and sums over levels: of c c' (c = O_l'W, shared by all features), and at
theta of e e' with e = O_l'(y - W g). Matrices are products of stacks, which from three effects on
beats planes (`flashmm.likelihood.elimination.small`) even where no two levels are alike. Where
there are coarse blocks, planes serve.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.namespaces import cholesky, inverse_of_triangular
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.base import SINGULAR
from flashmm.likelihood.elimination.eliminate import (
    Border,
    Eliminated,
    Pattern,
    by_partner,
    harmless,
)
from flashmm.likelihood.elimination.layout import Layout
from flashmm.likelihood.elimination.shared import SharedMatrix
from flashmm.likelihood.elimination.small import pairs

__all__ = [
    "Alike",
    "Inverses",
    "Shelf",
    "Sums",
    "alike_blocks",
    "eliminate_alike",
    "projected",
    "sums",
]

# Two effects a level: levels of a kind, on average, from which stacks beat planes.
_PAIRS = 2


@dataclass(frozen=True)
class Shelf:
    """Kinds that have the same number of levels.

    Parameters
    ----------
    kinds
        Which of all kinds.
    rows
        Their directions.
    levels
        Levels of each of them.
    C
        O'W of their directions, dense or sparse, shape (rows, w).
    """

    kinds: slice
    rows: slice
    levels: int
    C: FloatArray | sp.csr_array


@dataclass(frozen=True)
class Alike:
    """The finest blocks of a layout by their kind: U kinds of s effects.

    Parameters
    ----------
    counts
        Levels of each kind, shape (U,).
    shelves
        The kinds by their number of levels, ascending.
    bases
        R'G_iR of each kind, shape (k, U, s, s).
    to_directions
        Z'y to O'y, kind by kind and within a kind effect by effect, then Z_z'y; shape
        (s L + q_z, q).
    C
        O'W in that order, (s L, w).
    outer
        The triangle of the sum of c_a c_b' over the levels of a kind, symmetric in a and b;
        shape (U s s, w (w + 1) / 2).
    """

    counts: IntArray
    shelves: tuple[Shelf, ...]
    bases: FloatArray
    to_directions: SharedMatrix
    C: SharedMatrix
    outer: SharedMatrix

    @property
    def U(self) -> int:
        """Kinds."""
        return int(self.counts.size)

    @property
    def s(self) -> int:
        """Effects of a block."""
        return int(self.bases.shape[-1])

    def on_shelves(self, values: FloatArray) -> list[FloatArray]:
        """Values in directions (B, s L) by the levels of each kind, (B, U_n, s, n) a shelf."""
        return [
            values[:, each.rows].reshape(values.shape[0], -1, self.s, each.levels)
            for each in self.shelves
        ]


def alike_blocks(layout: Layout) -> Alike | None:
    """The blocks of a layout by their kind; None where planes are faster, or what there is."""
    fine, upper = layout.fine, pairs(layout.fine.s)
    if layout.q_c or not isinstance(fine.bases, np.ndarray) or not fine.parameters:
        return None
    keys = fine.bases.reshape(-1, fine.L).T
    _, first, kind = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    kind = kind.ravel()
    counts = np.bincount(kind)
    by_count = np.argsort(counts, kind="stable")
    counts, first, kind = counts[by_count], first[by_count], np.argsort(by_count)[kind]
    if fine.s < 2 or (fine.s == 2 and _PAIRS * counts.size > fine.L):
        return None
    U, s, L = counts.size, fine.s, fine.L
    order = np.argsort(kind, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(counts)])
    levels = [order[a:b] for a, b in pairwise(bounds)]
    rows = np.concatenate([(np.arange(s)[:, None] * L + each).ravel() for each in levels])
    square = np.empty((s, s), dtype=np.intp)
    for i, (a, b) in enumerate(upper):
        square[a, b] = square[b, a] = i
    bases = fine.bases[:, square.ravel()][:, :, first]  # (k, s s, U)
    bases = np.swapaxes(bases, 1, 2).reshape(-1, U, s, s)
    C = sp.csr_array(layout.C.matrix)[rows]
    whole = SharedMatrix.of(C)
    new = np.flatnonzero(np.diff(counts, prepend=0))
    shelves = tuple(
        Shelf(
            slice(a, b),
            slice(bounds[a] * s, bounds[b] * s),
            int(counts[a]),
            whole.matrix[bounds[a] * s : bounds[b] * s],
        )
        for a, b in pairwise([*new.tolist(), U])
    )
    member = sp.csr_array((np.ones(L), (kind, np.arange(L))), shape=(U, L))
    outer = sp.csr_array(layout.outer.matrix)
    planes = [member @ outer[i * L : (i + 1) * L] for i in range(len(upper))]
    halves = [planes[square[a, b]] * (1.0 if a == b else 0.5) for a in range(s) for b in range(s)]
    # From entry by kind to kind by entry.
    stacked = sp.csr_array(sp.vstack(halves, format="csr"))
    turned = stacked[(np.arange(s * s)[None, :] * U + np.arange(U)[:, None]).ravel()]
    to_directions = sp.csr_array(layout.to_directions.matrix)
    border = np.arange(s * L, to_directions.shape[0])
    return Alike(
        counts,
        shelves,
        np.ascontiguousarray(bases),
        SharedMatrix.of(to_directions[np.concatenate([rows, border])]),
        whole,
        SharedMatrix.of(sp.csr_array(turned)),
    )


@dataclass(frozen=True)
class Inverses:
    """F^-1 of each kind, shape (B, U, s, s), and what the border needs to be eliminated."""

    F: FloatArray
    blocks: Eliminated


def eliminate_alike(layout: Layout, alike: Alike, theta: FloatArray, n: int) -> Inverses:
    """Eliminate the blocks from V at theta (B, k), for n samples; as `eliminate` does."""
    L, ok, distance = _factors(layout, alike, theta)
    beyond: BoolArray = ~(ok & (distance > SINGULAR) & (theta[:, -1] > 0))
    if beyond.any():
        theta = harmless(theta, beyond)
        L, _, distance = _factors(layout, alike, theta)
        distance = np.where(beyond, -1.0, distance)
    s, sigma2 = alike.s, theta[:, -1]
    half = inverse_of_triangular(L)
    F = np.matmul(np.swapaxes(half, 1, 2), half).reshape(theta.shape[0], alike.U, s, s)
    pivots = np.diagonal(L, axis1=1, axis2=2).reshape(theta.shape[0], alike.U, s)
    log_det = 2.0 * np.matmul(np.log(np.prod(pivots, axis=2)), alike.counts.astype(float))
    log_det = log_det + (n - layout.fine.size) * np.log(sigma2)
    packed = _over_W(alike, F.reshape(theta.shape[0], -1)) + layout.base / sigma2[:, None]
    S = layout.triangle.unpack(packed)
    nothing = Pattern([], S[:, :0, :], S)
    return Inverses(F, Eliminated(theta, [], nothing, None, S, log_det, distance))


def _factors(
    layout: Layout, alike: Alike, theta: FloatArray
) -> tuple[FloatArray, BoolArray, FloatArray]:
    """Cholesky factors (B U, s, s) of F, whether all of a feature exist, and its distance (B,)."""
    s, U = alike.s, alike.U
    flat = alike.bases.reshape(alike.bases.shape[0], -1)
    F = np.matmul(theta[:, list(layout.fine.parameters)], flat).reshape(-1, s, s)
    F[:, np.arange(s), np.arange(s)] += np.repeat(theta[:, -1], U)[:, None]
    L, ok = cholesky(F)
    pivots = np.diagonal(L, axis1=1, axis2=2).reshape(-1, U * s) ** 2
    with np.errstate(invalid="ignore"):
        distance = pivots.min(axis=1) / pivots.max(axis=1)
    return L, ok.reshape(-1, U).all(axis=1), distance


def _over_W(alike: Alike, planes: FloatArray) -> FloatArray:
    """Triangles of sum c' M c over all levels, for M of each kind (B, U s s)."""
    return np.asarray(alike.outer.transposed_times(planes.T).T)


@dataclass(frozen=True)
class Projected:
    """What P makes of y.

    Parameters
    ----------
    r
        F^-1 O_l'(y - W g) of all levels, (B, U_n, s, n) a shelf.
    r_z
        Z_z'Py, shape (B, q_z).
    value
        y'Py, shape (B,).
    """

    r: list[FloatArray]
    r_z: FloatArray
    value: FloatArray


def projected(
    layout: Layout, alike: Alike, at: Inverses, border: Border, zy: FloatArray, total: float
) -> Projected:
    """P y from Z'Ry (B, q) and y'Ry, of features or at one theta for all."""
    q, F, sigma2 = layout.fine.size, at.F, at.blocks.theta[:, -1]
    directions = np.ascontiguousarray(alike.to_directions.times(zy.T).T)
    y, y_z = directions[:, :q], directions[:, q:]
    spanned = np.asarray(alike.C.transposed_times(y.T).T)
    rest = -spanned
    rest[:, : layout.q_z] += y_z
    a = rest * (layout.unspanned / sigma2[:, None])
    value = (total - (y * y).sum(axis=1)) / sigma2
    for shelf, mine in zip(alike.shelves, alike.on_shelves(y), strict=True):
        Fy = np.matmul(F[:, shelf.kinds], mine).reshape(y.shape[0], -1)
        value = value + (Fy * y[:, shelf.rows]).sum(axis=1)
        a += Fy @ shelf.C
    g = np.matmul(border.N, a[:, :, None])[:, :, 0]
    r_z = np.matmul(np.swapaxes(border.K, 1, 2), a[:, :, None])[:, :, 0]
    value = value - (g * a).sum(axis=1)
    e = alike.on_shelves(y - np.asarray(alike.C.times(g.T).T))
    r = [np.matmul(F[:, shelf.kinds], mine) for shelf, mine in zip(alike.shelves, e, strict=True)]
    return Projected(r, r_z, value)


@dataclass(frozen=True)
class Sums:
    """Quadratic forms and traces in d directions of D, then by the border's parameters.

    Parameters
    ----------
    forms, traces
        y'P V_i P y and tr(P V_i), with V^-1 for P in traces under ML, shape (B, c).
    forms2, traces2
        y'P V_i P V_j P y and tr(P V_i P V_j), likewise, shape (B, c, c).
    score
        Derivatives of the log-likelihood by the parameters of D in the blocks, shape (B, k).
    """

    forms: FloatArray
    forms2: FloatArray
    traces: FloatArray
    traces2: FloatArray
    score: FloatArray


def sums(
    layout: Layout,
    alike: Alike,
    at: Inverses,
    border: Border,
    traced: Border,
    py: Projected,
    D: FloatArray,
) -> Sums:
    """Forms and traces in directions D of the blocks, then by the border's parameters.

    Parameters
    ----------
    layout, alike, at
        The design, and its blocks at theta.
    border, traced
        The border with X, and that of the traces, which under ML is without X.
    py
        What P makes of y.
    D
        Symmetric matrices of each kind, shape (B or 1, U, d, s, s).
    """
    F, s, U = at.F, alike.s, alike.U
    B, d, w = F.shape[0], D.shape[2], layout.w
    inner = (layout.triangle.pack(traced.N) * layout.multiplicity).T
    X = np.matmul(np.matmul(F, np.asarray(alike.outer.times(inner).T).reshape(B, U, s, s)), F)
    # The directions one below the other make one product of each kind's.
    rows = D.reshape(D.shape[0], U, d * s, s)
    buffer = np.matmul(rows, F)  # the next products go there too: new memory takes time
    FD = np.ascontiguousarray(_turned(buffer.reshape(B, U, d, s, s))).reshape(B, U, d * s, s)
    M, a = np.empty_like(F), np.zeros((B, d, w))
    for shelf, r in zip(alike.shelves, py.r, strict=True):
        np.matmul(r, _turned(r), out=M[:, shelf.kinds])
        left = _directions_first(np.matmul(FD[:, shelf.kinds], r), d)
        a += (left @ shelf.C).reshape(B, d, w)
    FDF = _directions_first(np.matmul(FD, F, out=buffer), d)
    Y = layout.triangle.unpack(_over_W(alike, FDF)).reshape(B, d, w, w)
    left = alike.counts[:, None, None] * F - X
    # tr(F D_i (n F - 2 X) D_j), the part of levels by themselves; X is that of all of a kind.
    first = Sums(
        _products(D, M),
        _double_products(FD, np.matmul(rows, M, out=buffer), d)
        - np.matmul(np.matmul(a, border.N), _turned(a)),
        _products(D, left),
        _double_products(FD, np.matmul(rows, left - X, out=buffer), d)
        + _traces_of_products(traced.N, Y),
        0.5 * _products(np.swapaxes(alike.bases, 0, 1)[None], M - left),
    )
    if not layout.border_parameters:
        return first
    return _with_border(layout, border, traced, py.r_z, first, a, Y)


def _turned(matrix: FloatArray) -> FloatArray:
    return np.swapaxes(matrix, -1, -2)


def _directions_first(values: FloatArray, d: int) -> FloatArray:
    """Rows (B, U, d s, c) of each direction, (B d, U s c)."""
    B, U, rows, c = values.shape
    parts = np.swapaxes(values.reshape(B, U, d, rows // d * c), 1, 2)
    return np.ascontiguousarray(parts).reshape(B * d, U * (rows // d) * c)


def _products(D: FloatArray, matrix: FloatArray) -> FloatArray:
    """tr(D_i M), summed over the kinds, for D (B or 1, U, d, s, s) and M (B, U, s, s): (B, d)."""
    B, U, s, _ = matrix.shape
    directions = D.reshape(D.shape[0], U, -1, s * s)
    found = np.matmul(directions, matrix.reshape(B, U, s * s, 1))[..., 0]
    return np.asarray(found.sum(axis=1))


def _double_products(FD: FloatArray, DG: FloatArray, d: int) -> FloatArray:
    """tr(F D_i G D_j), summed over the kinds, from F D and D G (B, U, d s, s), shape (B, d, d)."""
    B, U, rows, s = FD.shape
    shape = (B, U, d, rows // d * s)
    found = np.matmul(FD.reshape(shape), _turned(DG.reshape(shape))).sum(axis=1)
    return np.asarray(0.5 * (found + _turned(found)))


def _traces_of_products(N: FloatArray, Y: FloatArray) -> FloatArray:
    """tr(N Y_i N Y_j) for N (B, w, w) and Y (B, d, w, w), shape (B, d, d)."""
    B, d, w, _ = Y.shape
    NY = np.matmul(N[:, None], Y)
    return np.asarray(np.matmul(NY.reshape(B, d, w * w), _turned(_turned(NY).reshape(B, d, w * w))))


def _with_border(
    layout: Layout,
    border: Border,
    traced: Border,
    r_z: FloatArray,
    blocks: Sums,
    a: FloatArray,
    Y: FloatArray,
) -> Sums:
    """The same with the border's parameters: x_i = G_i Z_z'Py in the place of a block's vectors."""
    each, B = layout.border_parameters, r_z.shape[0]
    x = np.stack([by_partner(r_z[:, :, None], i.partner, i.mask)[:, :, 0] for i in each], axis=1)
    across = np.matmul(np.matmul(a, border.K), _turned(x))
    GT = np.stack([by_partner(traced.T, i.partner, i.mask) for i in each], axis=1)
    flat = GT.reshape(B, len(each), -1)
    YK = np.matmul(Y, traced.K[:, None])
    partners = np.stack([traced.K[:, :, i.partner] * i.mask for i in each], axis=1)
    mixed = np.matmul(YK.reshape(B, Y.shape[1], -1), _turned(partners.reshape(B, len(each), -1)))
    return Sums(
        np.concatenate([blocks.forms, np.matmul(x, r_z[:, :, None])[:, :, 0]], axis=1),
        _bordered(blocks.forms2, across, np.matmul(np.matmul(x, border.T), _turned(x))),
        np.concatenate([blocks.traces, np.trace(GT, axis1=2, axis2=3)], axis=1),
        _bordered(blocks.traces2, mixed, np.matmul(flat, _turned(_turned(GT).reshape(flat.shape)))),
        blocks.score,
    )


def _bordered(first: FloatArray, across: FloatArray, last: FloatArray) -> FloatArray:
    """[[first, across], [across', last]] of stacks of matrices."""
    above = np.concatenate([first, across], axis=2)
    return np.concatenate([above, np.concatenate([_turned(across), last], axis=2)], axis=1)
