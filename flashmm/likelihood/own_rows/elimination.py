"""The algebra of features with rows of their own: blocks are eliminated, a border is kept.

With V_1 = sigma2 I + Z_1 D_1 Z_1' for the blocks Z_1 of a layout, and F = [Z_2, X] the border,

    Z_1'V_1^-1 = E Z_1'            E_l = (sigma2 I + Z_l'Z_l D_1)^-1 for each block l
    S = F'V_1^-1 F                 = (F'F - sum_l (Z_l'F)' D_1 E_l Z_l'F) / sigma2
    P = V_1^-1 - V_1^-1 F Q F'V_1^-1

where Q is a matrix of the border's size. Everything else follows from R = E Z_1'F, block by block:
T = Z'PZ is t_l = E_l Z_l'Z_l on the diagonal of its first part, less R Q R'. y is a further column
of F, so quadratic forms in Py come with the traces' matrices. The work of a feature is that of
products of R, of size q w^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.base import Forms
from flashmm.likelihood.elimination import small
from flashmm.likelihood.own_rows.layout import OwnLayout

__all__ = [
    "Border",
    "Eliminated",
    "Pieces",
    "eliminate",
    "quadratic_forms",
    "solve_border",
    "traces",
]


# Matrices up to this size are factorised entry by entry, where no pivot is below this share of
# its diagonal entry.
_FEW, _SAFE_PIVOT = 6, 1e-4


@dataclass(frozen=True)
class Pieces:
    """The designs and data of B features, in the coordinates of a layout.

    Parameters
    ----------
    d
        Z_l'Z_l of each block, shape (B, L, s, s).
    U
        Z_1'[Z_2, X, y], X whitened and y less its projection on X, shape (B, L, s, w + 1).
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
    """The blocks eliminated at theta.

    Parameters
    ----------
    layout
        Where everything is.
    theta
        Shape (B, k).
    D1
        Covariance of a block's effects, shape (B, s, s).
    E
        Shape (B, L, s, s).
    t
        E_l Z_l'Z_l, symmetric, shape (B, L, s, s).
    R
        E U, shape (B, L, s, w + 1).
    S
        [F, y]'V_1^-1 [F, y], shape (B, w + 1, w + 1).
    log_det
        log |V_1|, shape (B,).
    lowest, highest
        Bounds of the eigenvalues of V_1 on the span of Z_1, shape (B,).
    negative
        How many of those are negative, shape (B,).
    """

    layout: OwnLayout
    theta: FloatArray
    D1: FloatArray
    E: FloatArray
    t: FloatArray
    R: FloatArray
    S: FloatArray
    log_det: FloatArray
    lowest: FloatArray
    highest: FloatArray
    negative: FloatArray

    @property
    def sigma2(self) -> FloatArray:
        """Residual variances, shape (B,)."""
        return self.theta[:, -1]


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
    """Blocks (B, L or 1, s, s) times U (B, L, s, c), same shape as U."""
    s = U.shape[2]
    if s == 1:
        return np.asarray(blocks * U)
    if s > 3:
        return np.asarray(np.matmul(blocks, U))
    result = np.empty(np.broadcast_shapes(blocks.shape[:2], U.shape[:2]) + U.shape[2:])
    for a in range(s):
        np.multiply(blocks[:, :, a, 0, None], U[:, :, 0], out=result[:, :, a])
        for b in range(1, s):
            result[:, :, a] += blocks[:, :, a, b, None] * U[:, :, b]
    return result


def joined(pairs: tuple[tuple[int, int], ...], R: FloatArray) -> FloatArray:
    """G_i R for the parameter that joins these effects of each block."""
    if R.shape[2] == 1 and pairs == ((0, 0),):
        return R
    result = np.zeros_like(R)
    for a, b in pairs:
        result[:, :, a] += R[:, :, b]
    return result


def inner(left: FloatArray, right: FloatArray) -> FloatArray:
    """Sum over blocks of L_l'R_l, shape (B, c, c)."""
    B, L, s, c = left.shape
    flat = left.reshape(B, L * s, c)
    return np.asarray(np.matmul(np.swapaxes(flat, 1, 2), right.reshape(B, L * s, right.shape[3])))


def eliminate(layout: OwnLayout, pieces: Pieces, theta: FloatArray) -> Eliminated:
    """Eliminate the blocks at theta (B, k)."""
    sigma2, D1 = theta[:, -1], covariance_of_blocks(layout, theta)
    E, determinant, lowest, highest, negative = _inverses(pieces.d, D1, sigma2)
    R = times(E, pieces.U)
    S = pieces.FF - inner(pieces.U, times(D1[:, None], R))
    S = 0.5 * (S + np.swapaxes(S, 1, 2)) / sigma2[:, None, None]
    t = times(E, pieces.d)
    size = layout.L * layout.s
    log_det = np.log(np.abs(determinant)).sum(axis=1) + (pieces.n - size) * np.log(np.abs(sigma2))
    return Eliminated(layout, theta, D1, E, t, R, S, log_det, lowest, highest, negative)


def _inverses(
    d: FloatArray, D1: FloatArray, sigma2: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """(sigma2 I + d D_1)^-1, determinants (B, L), ends of the spectra and negative values (B,)."""
    s = d.shape[2]
    if s == 1:
        values = sigma2[:, None] + d[:, :, 0, 0] * D1[:, 0, 0, None]
        ends = values.min(axis=1), values.max(axis=1), (values < 0).sum(axis=1)
        return (1.0 / values)[:, :, None, None], values, *ends
    A = times(d, np.broadcast_to(D1[:, None], d.shape))
    index = np.arange(s)
    A[:, :, index, index] += sigma2[:, None, None]
    if s == 2:
        determinant = A[..., 0, 0] * A[..., 1, 1] - A[..., 0, 1] * A[..., 1, 0]
        E = np.empty_like(A)
        E[..., 0, 0], E[..., 1, 1] = A[..., 1, 1], A[..., 0, 0]
        E[..., 0, 1], E[..., 1, 0] = -A[..., 0, 1], -A[..., 1, 0]
        E /= determinant[..., None, None]
        half = 0.5 * (A[..., 0, 0] + A[..., 1, 1])
        root = np.sqrt(np.maximum(half * half - determinant, 0.0))
        values = np.stack([half - root, half + root])
        # The smaller one by the determinant: the difference cancels.
        big = np.where(half >= 0, values[1], values[0])
        small = np.divide(determinant, big, out=np.zeros_like(big), where=big != 0)
        values = np.asarray(np.stack([small, big], axis=-1))
    else:
        determinant = np.linalg.det(A)
        safe = np.where(determinant[..., None, None] == 0, np.eye(s), A)
        E = np.asarray(np.linalg.inv(safe), dtype=np.float64)
        values = np.asarray(np.linalg.eigvals(A).real, dtype=np.float64)
    flat = values.reshape(values.shape[0], -1)
    return E, determinant, flat.min(axis=1), flat.max(axis=1), (flat < 0).sum(axis=1)


def solve_border(blocks: Eliminated, p: int) -> Border:
    """Eliminate the border: Z_2 first, X next."""
    layout, S = blocks.layout, blocks.S
    B, q2, w = S.shape[0], layout.q2, S.shape[1] - 1
    Q_whole = np.zeros((B, w, w))
    log_det, regular = np.zeros(B), np.ones(B, dtype=bool)
    Sxx, kappa = S[:, q2:w, q2:w], np.zeros((B, w, p))
    kappa[:, q2:] = np.eye(p)
    if q2:
        D2 = covariance_of_border(layout, blocks.theta)
        J, log_det, regular = _solve_effects(S[:, :q2, :q2], D2)
        Q_whole[:, :q2, :q2] = J
        kappa[:, :q2] = -np.matmul(J, S[:, :q2, q2:w])
        Sxx = Sxx + np.matmul(S[:, q2:w, :q2], kappa[:, :q2])
    N, log_det_X, fixed = _inverse_of_symmetric(0.5 * (Sxx + np.swapaxes(Sxx, 1, 2)))
    Q = Q_whole + np.matmul(np.matmul(kappa, N), np.swapaxes(kappa, 1, 2))
    return Border(Q, Q_whole, N, log_det, log_det_X, regular & fixed)


def _solve_effects(S: FloatArray, D2: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
    """(I + D_2 S)^-1 D_2, log |I + D_2 S| and where that is real; S and D_2 are (B, c, c).

    I + D_2 S is not symmetric unless D_2 is a multiple of I. Where D_2 = C^2 is diagonal,
    (I + D_2 S)^-1 D_2 = C (I + C S C)^-1 C, whose inner matrix is, with the same determinant.
    """
    diagonal = np.diagonal(D2, axis1=1, axis2=2)
    alone = np.count_nonzero(D2, axis=(1, 2)) == np.count_nonzero(diagonal, axis=1)
    rooted = alone & (diagonal >= 0).all(axis=1)
    if rooted.all():
        return _by_scales(S, np.sqrt(diagonal))
    J, log_det, regular = np.empty_like(D2), np.empty(rooted.size), np.empty_like(rooted)
    # Row by row: what one feature gets does not depend on the others of its pass.
    for where, solve in ((rooted, _by_scales), (~rooted, _by_product)):
        if where.any():
            D = np.sqrt(diagonal[where]) if solve is _by_scales else D2[where]
            J[where], log_det[where], regular[where] = solve(S[where], D)
    return J, log_det, regular


def _by_scales(S: FloatArray, C: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
    left, right, index = C[:, :, None], C[:, None, :], np.arange(C.shape[1])
    M = left * S * right
    M[:, index, index] += 1.0
    inverse, log_det, regular = _inverse_of_symmetric(M)
    return left * inverse * right, log_det, regular


def _by_product(S: FloatArray, D2: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
    A, index = np.matmul(D2, S), np.arange(D2.shape[1])
    A[:, index, index] += 1.0
    inverse, log_det, regular = _inverse_by_lapack(A)
    J = np.matmul(inverse, D2)
    return 0.5 * (J + np.swapaxes(J, 1, 2)), log_det, regular


def _inverse_of_symmetric(A: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Inverses of symmetric matrices (B, c, c), logs of determinants, and which are positive.

    Of small ones only the upper triangle is read.
    """
    if A.shape[1] == 1:
        value = A[:, :, 0]
        positive = value[:, 0] > 0
        return 1.0 / A, np.log(np.abs(value[:, 0])), positive
    c = A.shape[1]
    if c == 0 or c > _FEW:
        return _inverse_by_lapack(A)
    planes = [np.ascontiguousarray(A[:, a, b]) for a, b in small.pairs(c)]
    lower, pivots = small.factorise(planes, c)
    safe = np.ones(A.shape[0], dtype=bool)
    for pivot, own in zip(pivots, small.diagonal(planes, c), strict=True):
        safe &= pivot > _SAFE_PIVOT * own
    with np.errstate(all="ignore"):
        entries = small.full(small.inverse_of_factors(lower, pivots), c)
        log_det = np.log(np.abs(np.prod(pivots, axis=0)))
    inverse = np.empty_like(A)
    for a in range(c):
        for b in range(c):
            inverse[:, a, b] = entries[a][b]
    safe &= np.isfinite(log_det)
    good = safe.copy()
    rest = np.flatnonzero(~safe)
    if rest.size:
        inverse[rest], log_det[rest], good[rest] = _inverse_by_lapack(A[rest])
    return inverse, log_det, good


def _inverse_by_lapack(A: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
    sign, log_det = np.linalg.slogdet(A)
    good = (sign > 0) & np.isfinite(log_det)
    if not good.all():
        A = np.where(good[:, None, None], A, np.eye(A.shape[1]))
    return np.asarray(np.linalg.inv(A)), log_det, np.asarray(good)


def left_by_border(A: FloatArray, tolerance: float) -> tuple[FloatArray, FloatArray]:
    """What of y the border leaves, and its rank, from cross-products of [F, y], (B, w + 1, w + 1).

    A direction counts whose eigenvalue exceeds ``tolerance``. Both have shape (B,).
    """
    B, w = A.shape[0], A.shape[1] - 1
    rss, rank, rest = np.empty(B), np.full(B, float(w)), np.arange(B)
    if w <= _FEW:
        planes = [np.ascontiguousarray(A[:, a, b]) for a, b in small.pairs(w + 1)]
        _, pivots = small.factorise(planes, w + 1)
        clear = np.ones(B, dtype=bool)
        for pivot in pivots[:w]:
            clear &= pivot > _SAFE_PIVOT
        rss[:], rest = pivots[w], np.flatnonzero(~clear)
    if rest.size:
        part = A[rest]
        left, basis = np.linalg.eigh(part[:, :w, :w])
        real = left > tolerance * np.maximum(left[:, -1:], 1.0)
        c = np.matmul(np.swapaxes(basis, 1, 2), part[:, :w, w:])[:, :, 0]
        c = np.where(real, c, 0.0)
        rss[rest] = part[:, w, w] - (c**2 / np.where(real, left, 1.0)).sum(axis=1)
        rank[rest] = real.sum(axis=1)
    return rss, rank


def positive_border(blocks: Eliminated) -> tuple[BoolArray, IntArray]:
    """Where V is positive definite given that V_1 is, and how many eigenvalues are not, (B,)."""
    layout, q2 = blocks.layout, blocks.layout.q2
    if q2 == 0:
        B = blocks.S.shape[0]
        return np.ones(B, dtype=bool), np.zeros(B, dtype=np.intp)
    values, vectors = np.linalg.eigh(blocks.S[:, :q2, :q2])
    root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    D2 = covariance_of_border(layout, blocks.theta)
    M = np.matmul(np.swapaxes(root, 1, 2), np.matmul(D2, root))
    M[:, np.arange(q2), np.arange(q2)] += 1.0
    values = np.linalg.eigvalsh(M)
    return np.asarray(values[:, 0] > 1e-10), np.asarray((values <= 1e-10).sum(axis=1))


# ---- likelihood ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Products:
    """Sums over blocks of products of R, for the parameters i <= j of the blocks.

    Parameters
    ----------
    M
        R'G_i R, each (B, w + 1, w + 1).
    K
        R'G_i t G_j R, each (B, w + 1, w + 1).
    first
        tr(G_i t), each (B,).
    second
        tr(G_i t G_j t), each (B,).
    """

    M: list[FloatArray]
    K: dict[tuple[int, int], FloatArray]
    first: list[FloatArray]
    second: dict[tuple[int, int], FloatArray]


def products(blocks: Eliminated) -> Products:
    """The sums over blocks that traces and quadratic forms share."""
    R, t = blocks.R, blocks.t
    pairs = [pairs for _, pairs in blocks.layout.fine_params]
    GR = [joined(one, R) for one in pairs]
    Gt = [joined(one, t) for one in pairs]
    M, K, first = [], {}, []
    second: dict[tuple[int, int], FloatArray] = {}
    for i, mine in enumerate(GR):
        M.append(inner(R, mine))
        first.append(np.einsum("blss->b", Gt[i]))
        tGR = times(t, mine)
        for j in range(i + 1):
            K[j, i] = inner(GR[j], tGR)
            second[j, i] = (Gt[j] * np.swapaxes(Gt[i], 2, 3)).sum(axis=(1, 2, 3))
    return Products(M, K, first, second)


def quadratic_forms(blocks: Eliminated, border: Border, found: Products) -> Forms:
    """y'Py, y'P V_i P y and y'P V_i P V_j P y; the residual last."""
    layout, S = blocks.layout, blocks.S
    w, q2, theta = S.shape[1] - 1, layout.q2, blocks.theta
    B, k = theta.shape
    phi = np.matmul(border.Q, S[:, :w, w:])
    psi = np.concatenate([-phi, np.ones((B, 1, 1))], axis=1)  # P y = V_1^-1 [F, y] psi
    value = np.matmul(S[:, w:, :], psi)[:, 0, 0]
    first, second = np.zeros((B, k)), np.zeros((B, k, k))
    loads = []  # F'V_1^-1 Z_1 G_i r_1 of the blocks' parameters, (B, w, 1)
    for (i, _), M in zip(layout.fine_params, found.M, strict=True):
        Mpsi = np.matmul(M, psi)
        first[:, i] = np.matmul(np.swapaxes(psi, 1, 2), Mpsi)[:, 0, 0]
        loads.append(Mpsi[:, :w])
    for (a, b), K in found.K.items():
        i, j = layout.fine_params[a][0], layout.fine_params[b][0]
        part = np.matmul(np.swapaxes(psi, 1, 2), np.matmul(K, psi))[:, 0, 0]
        part -= np.matmul(np.swapaxes(loads[a], 1, 2), np.matmul(border.Q, loads[b]))[:, 0, 0]
        second[:, i, j] = second[:, j, i] = part
    if q2:
        r2 = np.matmul(S[:, :q2], psi)[:, :, 0]
        Phi, T22 = coupling(blocks, border.Q)
        turned = np.zeros((B, len(layout.border_params), q2))
        for number, (i, pairs) in enumerate(layout.border_params):
            for rows, columns in pairs:  # a row may have several partners
                np.add.at(turned[:, number].T, rows, r2[:, columns].T)
            first[:, i] = (turned[:, number] * r2).sum(axis=1)
        inside = np.matmul(np.matmul(turned, T22), np.swapaxes(turned, 1, 2))
        at = np.array([i for i, _ in layout.border_params], dtype=np.intp)
        second[np.ix_(np.arange(B), at, at)] = inside
        for (i, _), load in zip(layout.fine_params, loads, strict=True):
            across = np.matmul(np.swapaxes(load, 1, 2), Phi)
            part = np.matmul(across, np.swapaxes(turned, 1, 2))[:, 0]
            second[:, i, at] = part
            second[:, at, i] = part
    forms = Forms(value, first, second)
    _add_residual(forms, theta, value)
    return forms


def coupling(blocks: Eliminated, Q: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Phi (B, w, q2) and T_22 (B, q2, q2): T_12 = R Phi."""
    S, q2 = blocks.S, blocks.layout.q2
    w = S.shape[1] - 1
    QS = np.matmul(Q, S[:, :w, :q2])
    Phi = -QS
    Phi[:, np.arange(q2), np.arange(q2)] += 1.0
    T22 = np.matmul(S[:, :q2, :w], Phi)
    return Phi, 0.5 * (T22 + np.swapaxes(T22, 1, 2))


def traces(
    blocks: Eliminated, Q: FloatArray, found: Products, log_det: FloatArray, df: FloatArray
) -> Forms:
    """A log determinant, tr(P V_i) and tr(P V_i P V_j) for the P of Q; the residual last."""
    layout, theta = blocks.layout, blocks.theta
    w, q2 = blocks.S.shape[1] - 1, layout.q2
    B, k = theta.shape
    first, second = np.zeros((B, k)), np.zeros((B, k, k))
    QM = [np.matmul(Q, M[:, :w, :w]) for M in found.M]
    for (i, _), raw, product in zip(layout.fine_params, found.first, QM, strict=True):
        first[:, i] = raw - np.einsum("bii->b", product)
    for (a, b), K in found.K.items():
        i, j = layout.fine_params[a][0], layout.fine_params[b][0]
        part = found.second[a, b] - 2.0 * (Q * np.swapaxes(K[:, :w, :w], 1, 2)).sum(axis=(1, 2))
        part += (QM[a] * np.swapaxes(QM[b], 1, 2)).sum(axis=(1, 2))
        second[:, i, j] = second[:, j, i] = part
    if q2:
        Phi, T22 = coupling(blocks, Q)
        for number, (i, mine) in enumerate(layout.border_params):
            for row, column in mine:
                first[:, i] += T22[:, row, column].sum(axis=1)
            for j, theirs in layout.border_params[: number + 1]:
                for row, column in mine:
                    for c, d in theirs:
                        second[:, i, j] += (T22[:, column][:, :, c] * T22[:, row][:, :, d]).sum(
                            axis=(1, 2)
                        )
                second[:, j, i] = second[:, i, j]
        for (i, _), M in zip(layout.fine_params, found.M, strict=True):
            across = np.matmul(np.swapaxes(Phi, 1, 2), np.matmul(M[:, :w, :w], Phi))
            for j, theirs in layout.border_params:
                for c, d in theirs:
                    second[:, i, j] += across[:, c, d].sum(axis=1)
                second[:, j, i] = second[:, i, j]
    forms = Forms(log_det, first, second)
    _add_residual(forms, theta, df)
    return forms


def _add_residual(forms: Forms, theta: FloatArray, total: FloatArray) -> None:
    """Fill in the residual's entries: sum_i theta_i V_i = V, and P V P = P."""
    sigma2, first, second = theta[:, -1], forms.first, forms.second
    rest = theta[:, :-1]
    first[:, -1] = (total - (rest * first[:, :-1]).sum(axis=1)) / sigma2
    mixed = first[:, :-1] - (second[:, :-1, :-1] * rest[:, None, :]).sum(axis=2)
    mixed /= sigma2[:, None]
    second[:, :-1, -1] = second[:, -1, :-1] = mixed
    second[:, -1, -1] = (first[:, -1] - (rest * mixed).sum(axis=1)) / sigma2
