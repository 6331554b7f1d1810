"""The algebra of a diagonal matrix with a narrow border, for many features at once.

M = D + C T C' with D = sigma2 + theta_1 Lambda diagonal (r entries), C (r x w) shared by all
features and T(theta) the w x w covariance of the other components. Everything follows from
w x w matrices and from sums sum_l g_l(theta) c_l c_l' over the r eigendirections. The outer
products c_l c_l' are the same for all features, only the weights g differ, so the sums of all
features are one matrix product (B x r) @ (r x w (w + 1) / 2).

With a single component beside the main one C is scaled so that T = theta_2 I: then
S = C'D^-1C enters through I + theta_2 S alone, which is symmetric, and one triangular inverse
gives the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import array_api_compat

from flashmm.arrays.namespaces import (
    BoolArray,
    FloatArray,
    Triangle,
    cholesky,
    inverse_of_triangular,
    namespace,
    take,
)
from flashmm.likelihood.base import SINGULAR, Forms, log_of_product

__all__ = ["Border", "Pieces", "factorised", "make_border", "quadratic_forms", "solve", "traces"]

_RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Border:
    """Matrices A_i of one basis, rotated so that the main one is diagonal.

    Parameters
    ----------
    rotation
        Eigenvectors of the main A, shape (r, r).
    eigenvalues
        Its eigenvalues, shape (r,).
    powers
        Their squares, themselves and ones, shape (r, 3).
    main
        Position of the main component among the parameters.
    others
        Positions of the b = k - 1 other parameters of D.
    C
        Basis of the other components' range, rotated, shape (r, w): orthonormal, or, for a
        single one, with C C' its A.
    T
        The b other parameters' matrices in that basis, shape (b, w, w).
    outer
        Upper triangles of c_l c_l', shape (r, w (w + 1) / 2).
    triangle
        Their layout.
    """

    rotation: FloatArray
    eigenvalues: FloatArray
    powers: FloatArray
    main: int
    others: tuple[int, ...]
    C: FloatArray
    T: FloatArray
    outer: FloatArray
    triangle: Triangle

    @property
    def width(self) -> int:
        """Number of border columns w."""
        return int(self.C.shape[1])

    @property
    def is_single(self) -> bool:
        """Whether one component makes up the border, so that T = theta_2 I."""
        return len(self.others) == 1

    def diagonal(self, theta: FloatArray) -> FloatArray:
        """D, shape (B, r)."""
        return theta[:, self.main, None] * self.eigenvalues + theta[:, -1:]

    def sums(self, weights: FloatArray) -> FloatArray:
        """sum_l g_l c_l c_l' for weights g (B, r), shape (B, w, w)."""
        return self.triangle.unpack(weights @ self.outer)

    def covariance(self, theta: FloatArray) -> FloatArray:
        """T(theta), shape (B, w, w)."""
        total = theta[:, self.others[0], None, None] * self.T[0, :, :]
        for i in range(1, len(self.others)):
            total += theta[:, self.others[i], None, None] * self.T[i, :, :]
        return total


def make_border(A: FloatArray, main: int, is_variance: list[bool]) -> Border:
    """The border of matrices A (k, r, r), of which the one at ``main`` is made diagonal.

    ``is_variance`` tells variances from covariances, whose A is not positive semi-definite.
    """
    xp = namespace(A)
    values, rotation = xp.linalg.eigh(A[main, :, :])
    values = xp.where(xp.abs(values) < 1e-12 * xp.max(xp.abs(values)), 0.0, values)
    others = tuple(i for i in range(A.shape[0]) if i != main)
    rotated = [rotation.T @ A[i, :, :] @ rotation for i in others]
    # The range of the variances' matrices holds that of the covariances' too.
    variances = [M for i, M in zip(others, rotated, strict=True) if is_variance[i]]
    spread, vectors = xp.linalg.eigh(sum(variances[1:], start=variances[0]))
    dropped = int(xp.sum(xp.astype(spread <= _RANK_TOLERANCE * spread[-1], xp.int64)))
    C = vectors[:, dropped:]
    if len(others) == 1:
        C = C * xp.sqrt(spread[dropped:])
        T = xp.eye(C.shape[1], dtype=A.dtype, device=array_api_compat.device(A))[None, :, :]
    else:
        T = xp.stack([C.T @ M @ C for M in rotated])
    triangle = Triangle.of(C.shape[1], A)
    powers = xp.stack([values * values, values, xp.ones_like(values)], axis=1)
    outer = triangle.pack(C[:, :, None] * C[:, None, :])
    return Border(rotation, values, powers, main, others, C, T, outer, triangle)


@dataclass(frozen=True)
class Pieces:
    """What one evaluation works with, per feature.

    Parameters
    ----------
    d, inverse
        D and D^-1, shape (B, r).
    Q
        T (I + S T)^-1 with S = C'D^-1C, so that M^-1 = D^-1 - D^-1 C Q C'D^-1; (B, w, w).
    left
        (I + S T)^-1, shape (B, w, w): C'M^-1 = left C'D^-1.
    CWC
        C'M^-1C, shape (B, w, w).
    log_det
        log |M|, shape (B,).
    """

    d: FloatArray
    inverse: FloatArray
    Q: FloatArray
    left: FloatArray
    CWC: FloatArray
    log_det: FloatArray

    def take(self, index: BoolArray) -> Pieces:
        """The same for some of the features."""
        return Pieces(*(take(getattr(self, name), index) for name in self.__match_args__))


def factorised(border: Border, theta: FloatArray) -> tuple[Pieces, BoolArray, BoolArray]:
    """The pieces; where M is positive definite; where D is not, so that one cannot tell.

    Pieces are NaN or without meaning where M is not positive definite.
    """
    xp = namespace(theta)
    d = border.diagonal(theta)
    unknown = xp.min(d, axis=1) <= SINGULAR * xp.max(xp.abs(d), axis=1)
    if bool(xp.any(unknown)):
        d = xp.where(unknown[:, None], 1.0, d)
    inverse = 1.0 / d
    S = border.sums(inverse)
    if border.is_single:
        Q, left, CWC, log_det, inside = _single(S, theta[:, border.others[0]])
    else:
        Q, left, CWC, log_det, inside, known = _several(S, border.covariance(theta))
        unknown = unknown | ~known
    return Pieces(d, inverse, Q, left, CWC, log_of_product(d) + log_det), inside, unknown


def _with_unit(F: FloatArray) -> FloatArray:
    """I + F, in place."""
    xp, w = namespace(F), F.shape[-1]
    flat = xp.reshape(F, (F.shape[0], w * w))
    flat[:, :: w + 1] += 1.0
    return xp.reshape(flat, F.shape)


def _pivots(L: FloatArray, ok: BoolArray) -> tuple[FloatArray, BoolArray]:
    """Log |L L'|, and whether it is far from singular, of L L' = I + something."""
    xp = namespace(L)
    pivots = xp.linalg.diagonal(L)
    log_det = 2.0 * xp.sum(xp.log(pivots), axis=1)
    if not L.shape[-1]:
        return log_det, ok
    low, high = xp.min(pivots, axis=1) ** 2, xp.max(pivots, axis=1) ** 2
    return log_det, ok & (low > SINGULAR * xp.where(high > 1.0, high, 1.0))


def _single(S: FloatArray, theta: FloatArray) -> tuple[FloatArray, ...]:
    """Q, left, CWC, log |I + T S| and whether M is positive definite, for T = theta I."""
    xp = namespace(S)
    L, ok = cholesky(_with_unit(theta[:, None, None] * S))
    log_det, ok = _pivots(L, ok)
    root = inverse_of_triangular(L)
    left = xp.matmul(xp.matrix_transpose(root), root)
    return theta[:, None, None] * left, left, xp.matmul(S, left), log_det, ok


def _several(S: FloatArray, T: FloatArray) -> tuple[FloatArray, ...]:
    """Q, left, CWC, log |I + T S|, where M is positive definite, and where S = L L' is.

    M is positive definite exactly when F = I + L'T L is. Written with F^-1 and K = L'T L =
    F - I, nothing cancels when T S is large or small.
    """
    xp = namespace(S)
    L, known = cholesky(S)
    if not bool(xp.all(known)):
        eye = xp.eye(S.shape[-1], dtype=S.dtype, device=array_api_compat.device(S))
        L = xp.where(known[:, None, None], L, eye)
    transposed = xp.matrix_transpose(L)
    K = xp.matmul(xp.matmul(transposed, T), L)
    factor, inside = cholesky(_with_unit(K + 0.0))
    log_det, inside = _pivots(factor, inside)
    root, L_inverse = inverse_of_triangular(factor), inverse_of_triangular(L)
    F_inverse = xp.matmul(xp.matrix_transpose(root), root)
    L_inverse_transposed = xp.matrix_transpose(L_inverse)
    Q = xp.matmul(xp.matmul(L_inverse_transposed, xp.matmul(F_inverse, K)), L_inverse)
    LF = xp.matmul(L, F_inverse)
    Q = 0.5 * (Q + xp.matrix_transpose(Q))
    return Q, xp.matmul(LF, L_inverse), xp.matmul(LF, transposed), log_det, inside, known


def solve(border: Border, pieces: Pieces, vectors: FloatArray) -> FloatArray:
    """M^-1 v, one vector a feature, (B, r): D^-1 v - D^-1 C Q C'D^-1 v."""
    scaled = vectors * pieces.inverse
    return _corrected(border, pieces, scaled, scaled @ border.C)


def _corrected(border: Border, pieces: Pieces, scaled: FloatArray, inner: FloatArray) -> FloatArray:
    """D^-1 v - D^-1 C Q C'D^-1 v from D^-1 v and C'D^-1 v."""
    xp = namespace(scaled)
    inner = xp.matmul(inner[:, None, :], pieces.Q)[:, 0, :]
    return scaled - (inner @ border.C.T) * pieces.inverse


def quadratic_forms(border: Border, pieces: Pieces, theta: FloatArray, u: FloatArray) -> Forms:
    """u'M^-1u, y'P V_i P y and y'P V_i P V_j P y on the span of Z, the residual last.

    With w = M^-1 u the vectors A_i w are Lambda w, w itself and C T_i C'w; of the last kind
    only C'w is needed, since C'M^-1 = left C'D^-1 and C'M^-1C = CWC.
    """
    xp, k = namespace(u), len(border.others) + 2
    main, last = border.main, k - 1
    scaled = u * pieces.inverse
    inner = scaled @ border.C
    w = _corrected(border, pieces, scaled, inner)
    value = xp.vecdot(w, u)
    Cw = xp.matmul(pieces.left, inner[:, :, None])[:, :, 0]

    first, second = _empty_forms(theta)
    # Lambda w and w: products x'M^-1 y = x'D^-1 y - (C'D^-1 x)' Q C'D^-1 y
    squares = w * w
    first[:, main], first[:, last] = squares @ border.eigenvalues, xp.sum(squares, axis=1)
    squares *= pieces.inverse
    moments = squares @ border.powers
    scaled = w * pieces.inverse
    inner = xp.stack([(scaled * border.eigenvalues) @ border.C, scaled @ border.C], axis=1)
    products = xp.matmul(xp.matmul(inner, pieces.Q), xp.matrix_transpose(inner))
    second[:, main, main] = moments[:, 0] - products[:, 0, 0]
    second[:, main, last] = second[:, last, main] = moments[:, 1] - products[:, 0, 1]
    second[:, last, last] = moments[:, 2] - products[:, 1, 1]

    inner = xp.matmul(inner, xp.matrix_transpose(pieces.left))
    loaded = [Cw if border.is_single else Cw @ border.T[i, :, :] for i in range(k - 2)]
    for i, row in enumerate(border.others):
        first[:, row] = xp.vecdot(loaded[i], Cw)
        crossed = xp.matmul(inner, loaded[i][:, :, None])[:, :, 0]
        second[:, row, main] = second[:, main, row] = crossed[:, 0]
        second[:, row, last] = second[:, last, row] = crossed[:, 1]
        forward = xp.matmul(pieces.CWC, loaded[i][:, :, None])[:, :, 0]
        for j in range(i + 1):
            column = border.others[j]
            second[:, row, column] = second[:, column, row] = xp.vecdot(forward, loaded[j])
    return Forms(value, first, second)


def traces(border: Border, pieces: Pieces, theta: FloatArray) -> Forms:
    """Log |M|, tr(W A_i) and tr(W A_i W A_j) with W = M^-1, the residual (A = I) last."""
    xp, k = namespace(theta), len(border.others) + 2
    inverse, Q, left, CWC = pieces.inverse, pieces.Q, pieces.left, pieces.CWC
    main, last = border.main, k - 1
    first, second = _empty_forms(theta)
    # c_l'Q c_l gives the sums with weights of first and third order, without (w, w) matrices.
    CQC = (border.triangle.pack(Q) * border.triangle.multiplicity) @ border.outer.T
    square = inverse * inverse
    CQC *= square
    once = (inverse - CQC) @ border.powers[:, 1:]
    first[:, main], first[:, last] = once[:, 0], once[:, 1]
    CQC *= inverse
    twice = (square - 2.0 * CQC) @ border.powers
    S_last = border.sums(square)
    square *= border.eigenvalues
    S_main = border.sums(square)
    GS_main, GS_last = xp.matmul(left, S_main), xp.matmul(left, S_last)
    if border.is_single:
        products, weight = (GS_main, GS_last), theta[:, border.others[0]] ** 2
    else:
        products, weight = (xp.matmul(Q, S_main), xp.matmul(Q, S_last)), 1.0
    transposed = [xp.matrix_transpose(product) for product in products]
    second[:, main, main] = twice[:, 0] + weight * _inner(products[0], transposed[0])
    second[:, main, last] = twice[:, 1] + weight * _inner(products[0], transposed[1])
    second[:, last, last] = twice[:, 2] + weight * _inner(products[1], transposed[1])
    second[:, last, main] = second[:, main, last]

    loaded = [CWC if border.is_single else xp.matmul(CWC, border.T[i, :, :]) for i in range(k - 2)]
    for i, row in enumerate(border.others):
        # tr(T_i left S left') for both sums
        TG = left if border.is_single else xp.matmul(border.T[i, :, :], left)
        first[:, row] = xp.linalg.trace(loaded[i])
        second[:, row, main] = second[:, main, row] = _inner(TG, GS_main)
        second[:, row, last] = second[:, last, row] = _inner(TG, GS_last)
        right = xp.matrix_transpose(loaded[i])
        for j in range(i + 1):
            column = border.others[j]
            second[:, row, column] = second[:, column, row] = _inner(right, loaded[j])
    return Forms(pieces.log_det, first, second)


def _empty_forms(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Arrays for first and second derivatives."""
    xp, (count, k) = namespace(theta), theta.shape
    options = {"dtype": theta.dtype, "device": array_api_compat.device(theta)}
    return xp.empty((count, k), **options), xp.empty((count, k, k), **options)


def _inner(left: FloatArray, right: FloatArray) -> FloatArray:
    """sum_ab L_ab R_ab of two stacks, shape (B,)."""
    xp = namespace(left)
    shape = (left.shape[0], left.shape[1] * left.shape[2])
    return xp.vecdot(xp.reshape(left, shape), xp.reshape(right, shape))
