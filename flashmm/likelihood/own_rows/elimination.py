"""The algebra of features with rows of their own: blocks are eliminated, a border is kept.

With V_1 = sigma2 I + Z_1 D_1 Z_1' for the blocks Z_1 of a layout, and F = [Z_2, X] the border,

    Z_1'V_1^-1 = E Z_1'            E_l = (sigma2 I + Z_l'Z_l D_1)^-1 for each block l
    S = F'V_1^-1 F                 = (F'F - sum_l (Z_l'F)' D_1 E_l Z_l'F) / sigma2
    P = V_1^-1 - V_1^-1 F Q F'V_1^-1

where Q is a matrix of the border's size. Everything else follows from R = E Z_1'F, block by block:
T = Z'PZ is t_l = E_l Z_l'Z_l on the diagonal of its first part, less R Q R'. y is a further column
of F, so quadratic forms in Py come with the traces' matrices. The work of a feature is that of
products of R, of size q w^2. The blocks are the last axis of every array, the longest: arithmetic
runs along it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.own_rows.layout import OwnLayout
from flashmm.likelihood.own_rows.sweep import SAFE_PIVOT, planes, sweep, unplaned

__all__ = [
    "Border",
    "Effects",
    "Eliminated",
    "Pieces",
    "combined",
    "covariance_of_blocks",
    "covariance_of_border",
    "eliminate",
    "inner",
    "inverses",
    "joined",
    "left_by_border",
    "positive_border",
    "solve_border",
    "times",
]


# Logarithms cost several times what products do: one is taken of so many factors.
_TOGETHER = 8
# Eigenvalues of I + D_2 S, relative to the others, that are not zero by rounding. Searches that run
# to the edge of the domain get closer than that: they end where the stack's do.
_CLEAR = 1e-6
# What is left of a column's square, after those before it, where it depends on them.
_DEPENDENT = 1e-12


@dataclass(frozen=True)
class Pieces:
    """The designs and data of B features, in the coordinates of a layout.

    Parameters
    ----------
    d
        Z_l'Z_l of each block, shape (B, s, s, L).
    U
        [Z_2, X, y]'Z_1, X whitened and y less its projection on X, shape (B, w + 1, s, L).
    FF
        Cross-products of [Z_2, X, y], shape (B, w + 1, w + 1).
    n
        Samples, shape (B,).
    """

    d: FloatArray
    U: FloatArray
    FF: FloatArray
    n: FloatArray

    def take(self, index: IntArray | slice) -> Pieces:
        """Those of some of the features."""
        return Pieces(self.d[index], self.U[index], self.FF[index], self.n[index])


@dataclass(frozen=True)
class Eliminated:
    """The blocks eliminated at theta: what is left of them.

    Parameters
    ----------
    theta
        Shape (B, k).
    D1
        Covariance of a block's effects, shape (B, s, s).
    S
        [F, y]'V_1^-1 [F, y], shape (B, w + 1, w + 1).
    log_det
        log |V_1|, shape (B,).
    lowest, highest
        Bounds of the eigenvalues of V_1 on the span of Z_1, shape (B,).
    negative
        How many of those are negative, shape (B,).
    """

    theta: FloatArray
    D1: FloatArray
    S: FloatArray
    log_det: FloatArray
    lowest: FloatArray
    highest: FloatArray
    negative: FloatArray

    @property
    def sigma2(self) -> FloatArray:
        """Residual variances, shape (B,)."""
        return self.theta[:, -1]

    def take(self, index: IntArray) -> Eliminated:
        """The same of some of the features."""
        return Eliminated(*(getattr(self, name)[index] for name in self.__match_args__))


@dataclass(frozen=True)
class Effects:
    """The blocks' effects at theta.

    Parameters
    ----------
    t
        E_l Z_l'Z_l, symmetric, shape (B, s, s, L).
    R
        E U, shape (B, w + 1, s, L).
    """

    t: FloatArray
    R: FloatArray


@dataclass(frozen=True)
class Border:
    """The border solved at theta.

    Parameters
    ----------
    Q
        P = V_1^-1 - V_1^-1 F Q F'V_1^-1, shape (B, w, w).
    Q_whole
        The same for V^-1, shape (B, w, w); zero but for Z_2.
    N
        (X'V^-1X)^-1 of the whitened X, shape (B, p, p).
    log_det
        log |V| - log |V_1|, shape (B,).
    log_det_X
        log |X'V^-1X|, shape (B,).
    regular
        Whether both determinants are positive, shape (B,).
    """

    Q: FloatArray
    Q_whole: FloatArray
    N: FloatArray
    log_det: FloatArray
    log_det_X: FloatArray
    regular: BoolArray

    def put(self, index: IntArray, other: Border) -> None:
        """Overwrite some of the features, in place."""
        for name in self.__match_args__:
            getattr(self, name)[index] = getattr(other, name)


def covariance_of_blocks(layout: OwnLayout, theta: FloatArray) -> FloatArray:
    """D_1 of one block, shape (B, s, s)."""
    D1 = np.zeros((theta.shape[0], layout.s, layout.s))
    for i, pairs in layout.fine_params:
        for a, b in pairs:
            D1[:, a, b] += theta[:, i]
    return D1


def covariance_of_border(layout: OwnLayout, theta: FloatArray) -> FloatArray:
    """D_2, shape (B, q2, q2)."""
    D2 = np.zeros((theta.shape[0], layout.q2, layout.q2))
    for i, pairs in layout.border_params:
        for rows, columns in pairs:
            D2[:, rows, columns] += theta[:, i, None]
    return D2


def times(blocks: FloatArray, U: FloatArray) -> FloatArray:
    """Blocks (B, s, s, L or 1) times U (B, c, s, L), same shape as U."""
    s = U.shape[2]
    if s == 1:
        return np.asarray(blocks[:, 0] * U[:, :, 0])[:, :, None]
    result = np.empty((*U.shape[:3], max(blocks.shape[3], U.shape[3])))
    for a in range(s):
        np.multiply(blocks[:, None, a, 0], U[:, :, 0], out=result[:, :, a])
        for b in range(1, s):
            result[:, :, a] += blocks[:, None, a, b] * U[:, :, b]
    return result


def joined(pairs: tuple[tuple[int, int], ...], R: FloatArray) -> FloatArray:
    """G_i R (B, c, s, L) for the parameter that joins these effects of each block."""
    if R.shape[2] == 1 and pairs == ((0, 0),):
        return R
    result = np.zeros_like(R)
    for a, b in pairs:
        result[:, :, a] += R[:, :, b]
    return result


def inner(left: FloatArray, right: FloatArray) -> FloatArray:
    """Sum over blocks of L_l'R_l of arrays (B, c, s, L), shape (B, c, c)."""
    B, c, s, L = left.shape
    flat = right.reshape(B, right.shape[1], s * L)
    return np.asarray(np.matmul(left.reshape(B, c, s * L), np.swapaxes(flat, 1, 2)))


def combined(weights: FloatArray, R: FloatArray) -> FloatArray:
    """Weights (B, c, w) times R (B, w, s, L), shape (B, c, s, L)."""
    B, w, s, L = R.shape
    flat = np.matmul(weights, R.reshape(B, w, s * L))
    return np.asarray(flat.reshape(B, weights.shape[1], s, L))


def eliminate(layout: OwnLayout, pieces: Pieces, theta: FloatArray) -> tuple[Eliminated, Effects]:
    """Eliminate the blocks at theta (B, k)."""
    sigma2, D1 = theta[:, -1], covariance_of_blocks(layout, theta)
    E, log_det, lowest, highest, negative = inverses(pieces.d, D1, sigma2)
    R = times(E, pieces.U)
    lost = D1 * inner(pieces.U, R) if layout.s == 1 else inner(pieces.U, times(D1[..., None], R))
    S = pieces.FF - lost
    S = 0.5 * (S + np.swapaxes(S, 1, 2)) / sigma2[:, None, None]
    t = times(E, pieces.d)
    log_det = log_det + (pieces.n - layout.L * layout.s) * np.log(np.abs(sigma2))
    left = Eliminated(theta, D1, S, log_det, lowest, highest, negative)
    return left, Effects(t, R)


def inverses(
    d: FloatArray, D1: FloatArray, sigma2: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Inverses of A_l = sigma2 I + d_l D_1, and what their spectra say.

    Returns
    -------
    tuple of array
        A_l^-1 (B, s, s, L), then, each (B,): sum_l log |det A_l|, the smallest and the largest
        eigenvalue, and how many are negative.
    """
    s = d.shape[1]
    if s == 1:
        values = sigma2[:, None] + d[:, 0, 0] * D1[:, 0]
        lowest, negative = values.min(axis=1), np.zeros(values.shape[0])
        below = np.flatnonzero(lowest < 0)
        negative[below] = (values[below] < 0).sum(axis=1)
        log_det = _log_of_product(np.abs(values) if below.size else values)
        return (1.0 / values)[:, None, None], log_det, lowest, values.max(axis=1), negative
    A = np.swapaxes(times(d, D1[..., None]), 1, 2)  # (B, s, s, L)
    index = np.arange(s)
    A[:, index, index] += sigma2[:, None, None]
    if s == 2:
        determinant = A[:, 0, 0] * A[:, 1, 1] - A[:, 0, 1] * A[:, 1, 0]
        E = np.empty_like(A)
        E[:, 0, 0], E[:, 1, 1] = A[:, 1, 1], A[:, 0, 0]
        E[:, 0, 1], E[:, 1, 0] = -A[:, 0, 1], -A[:, 1, 0]
        E /= determinant[:, None, None]
        half = 0.5 * (A[:, 0, 0] + A[:, 1, 1])
        root = np.sqrt(np.maximum(half * half - determinant, 0.0))
        values = np.stack([half - root, half + root])
        # The smaller one by the determinant: the difference cancels.
        big = np.where(half >= 0, values[1], values[0])
        small = np.divide(determinant, big, out=np.zeros_like(big), where=big != 0)
        values = np.asarray(np.stack([small, big], axis=-1))
    else:
        A = np.moveaxis(A, 3, 1)
        determinant = np.linalg.det(A)
        safe = np.where(determinant[..., None, None] == 0, np.eye(s), A)
        E = np.ascontiguousarray(np.moveaxis(np.linalg.inv(safe), 1, 3), dtype=np.float64)
        values = np.asarray(np.linalg.eigvals(A).real, dtype=np.float64)
    flat = values.reshape(values.shape[0], -1)
    log_det = np.log(np.abs(determinant)).sum(axis=1)
    return E, log_det, flat.min(axis=1), flat.max(axis=1), (flat < 0).sum(axis=1)


def _log_of_product(values: FloatArray) -> FloatArray:
    """sum_l log d_l for d (B, L) >= 0, shape (B,), with one logarithm for several factors."""
    products = np.multiply.reduceat(values, np.arange(0, values.shape[1], _TOGETHER), axis=1)
    total = np.log(products).sum(axis=1)
    lost = np.flatnonzero(~np.isfinite(total))
    total[lost] = np.log(values[lost]).sum(axis=1)
    return np.asarray(total)


def solve_border(layout: OwnLayout, blocks: Eliminated, p: int) -> Border:
    """Eliminate the border: Z_2 first, X next.

    Where D_2 = C^2 is diagonal, with [C, I] for Z_2 and X and M = [C, I] S [C, I] + [I, 0],

        Q = [C, I] M^-1 [C, I]      |V| / |V_1| = |M_22|      |X'V^-1X| = |M| / |M_22|
    """
    S, q2 = blocks.S, layout.q2
    B, w = S.shape[0], S.shape[1] - 1
    D2 = covariance_of_border(layout, blocks.theta)
    diagonal = np.diagonal(D2, axis1=1, axis2=2)
    alone = np.count_nonzero(D2, axis=(1, 2)) == np.count_nonzero(diagonal, axis=1)
    rooted = alone & (diagonal >= 0).all(axis=1)
    C = np.ones((w, B))
    C[:q2] = np.sqrt(np.where(rooted[:, None], diagonal, 0.0)).T
    M = planes(S[:, :w, :w])
    M *= C
    M *= C[:, None]
    index = np.arange(q2)
    M[index, index] += 1.0
    pivots, safe = sweep(M, range(q2))
    with np.errstate(all="ignore"):
        log_det = np.log(np.abs(pivots)).sum(axis=0)
        Q_whole = np.zeros((B, w, w))
        if q2:
            J = -C[:q2] * M[:q2, :q2]
            J *= C[:q2, None]
            Q_whole[:, :q2, :q2] = np.moveaxis(J, 2, 0)
        pivots, clear = sweep(M, range(q2, w))
        log_det_X = np.log(np.abs(pivots)).sum(axis=0)
        M *= -C
        M *= C[:, None]
    Q = unplaned(M)
    N = np.ascontiguousarray(Q[:, q2:, q2:])
    border = Border(Q, Q_whole, N, log_det, log_det_X, rooted & safe & clear)
    rest = np.flatnonzero(~border.regular)
    if rest.size:
        border.put(rest, _with_pivoting(S[rest], D2[rest], p))
    return border


def _with_pivoting(S: FloatArray, D2: FloatArray, p: int) -> Border:
    """The same for any D_2 (B, q2, q2), by LAPACK."""
    B, q2, w = S.shape[0], D2.shape[1], S.shape[1] - 1
    Q_whole, kappa = np.zeros((B, w, w)), np.zeros((B, w, p))
    log_det, regular = np.zeros(B), np.ones(B, dtype=bool)
    Sxx = S[:, q2:w, q2:w]
    kappa[:, q2:] = np.eye(p)
    if q2:
        A, index = np.matmul(D2, S[:, :q2, :q2]), np.arange(q2)
        A[:, index, index] += 1.0
        inverse, log_det, regular = _inverse(A)
        J = np.matmul(inverse, D2)
        J = 0.5 * (J + np.swapaxes(J, 1, 2))
        Q_whole[:, :q2, :q2] = J
        kappa[:, :q2] = -np.matmul(J, S[:, :q2, q2:w])
        Sxx = Sxx + np.matmul(S[:, q2:w, :q2], kappa[:, :q2])
    N, log_det_X, fixed = _inverse(0.5 * (Sxx + np.swapaxes(Sxx, 1, 2)))
    Q = Q_whole + np.matmul(np.matmul(kappa, N), np.swapaxes(kappa, 1, 2))
    return Border(Q, Q_whole, N, log_det, log_det_X, regular & fixed)


def _inverse(A: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Inverses of matrices (B, c, c), logs of their determinants, and which are positive."""
    sign, log_det = np.linalg.slogdet(A)
    good = (sign > 0) & np.isfinite(log_det)
    if not good.all():
        A = np.where(good[:, None, None], A, np.eye(A.shape[1]))
    return np.asarray(np.linalg.inv(A)), log_det, np.asarray(good)


def left_by_border(A: FloatArray, tolerance: float) -> tuple[FloatArray, FloatArray]:
    """What of y the border leaves, and its rank, from cross-products of [F, y], (B, w + 1, w + 1).

    A direction counts whose eigenvalue exceeds ``tolerance``. Both have shape (B,).
    """
    w, M = A.shape[1] - 1, planes(A)
    least = _DEPENDENT * np.diagonal(A, axis1=1, axis2=2)[:, :w].T
    pivots, _ = sweep(M, range(w), _DEPENDENT)
    rss, kept = M[w, w].copy(), pivots > least
    rank = kept.sum(axis=0).astype(np.float64)
    rest = np.flatnonzero(~((pivots > SAFE_PIVOT) | ~kept).all(axis=0))
    if rest.size:
        part = A[rest]
        left, basis = np.linalg.eigh(part[:, :w, :w])
        real = left > tolerance * np.maximum(left[:, -1:], 1.0)
        c = np.matmul(np.swapaxes(basis, 1, 2), part[:, :w, w:])[:, :, 0]
        c = np.where(real, c, 0.0)
        rss[rest] = part[:, w, w] - (c**2 / np.where(real, left, 1.0)).sum(axis=1)
        rank[rest] = real.sum(axis=1)
    return rss, rank


def positive_border(layout: OwnLayout, blocks: Eliminated) -> tuple[BoolArray, IntArray]:
    """Where V is positive definite given that V_1 is, and how many eigenvalues are negative, (B,).

    Clearly so: in between, the dense stack keeps more digits.
    """
    q2 = layout.q2
    if q2 == 0:
        B = blocks.S.shape[0]
        return np.ones(B, dtype=bool), np.zeros(B, dtype=np.intp)
    values, vectors = np.linalg.eigh(blocks.S[:, :q2, :q2])
    root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    D2 = covariance_of_border(layout, blocks.theta)
    M = np.matmul(np.swapaxes(root, 1, 2), np.matmul(D2, root))
    M[:, np.arange(q2), np.arange(q2)] += 1.0
    values = np.linalg.eigvalsh(M)
    return np.asarray(values[:, 0] > _CLEAR), np.asarray((values < -_CLEAR).sum(axis=1))
