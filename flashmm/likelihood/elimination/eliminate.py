"""Elimination of blocks and border from V, for a batch of features.

V_F = sigma2 I + Z_F D_F Z_F' falls into the finest blocks, V_1 = V_F + Z_2 D_2 Z_2' into the coarse
ones, and V = V_1 + Z_z D_z Z_z'. With A = [O_2, W] as in `flashmm.likelihood.elimination.layout`,

    P = V_F^-1 - V_F^-1 A N_A A'V_F^-1,   N_A = blockdiag(G, 0) + R N R',   R = [-K; I]

where K = G O_2'V_F^-1 W, and N is w x w. Nothing of size q x q is formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import array_api_compat

from flashmm.arrays.namespaces import Array, cholesky, inverse_of_triangular, namespace
from flashmm.likelihood.base import SINGULAR
from flashmm.likelihood.elimination import small
from flashmm.likelihood.elimination.layout import Blocks, Layout
from flashmm.likelihood.elimination.small import Matrix, Symmetric

# A variance of the border that is zero: its square root must not vanish.
_NOTHING = 1e-60

__all__ = [
    "Border",
    "Coarse",
    "Eliminated",
    "Pattern",
    "block_times",
    "border_covariance",
    "by_partner",
    "covariance_planes",
    "eliminate",
    "eliminate_border",
    "finest",
    "harmless",
    "identity",
    "pattern",
]


@dataclass(frozen=True)
class Pattern:
    """A symmetric matrix over A = [O_2, W] for every feature.

    Parameters
    ----------
    coarse
        Its coarse blocks, planes of shape (L2, B).
    coupling
        O_2 by W, shape (B, q_c, w).
    own
        W by W, shape (B, w, w).
    """

    coarse: Symmetric
    coupling: Array
    own: Array


@dataclass(frozen=True)
class Coarse:
    """The coarse blocks when the finest are gone; planes of shape (L2, B).

    Parameters
    ----------
    G, T
        (D^-1 + S)^-1 and (S^-1 + D)^-1 with S = O_2'V_F^-1O_2.
    H
        (I + S D)^-1, so that O_2'V_1^-1 = H O_2'V_F^-1.
    K, E
        G and H times O_2'V_F^-1W, shape (B, q_c, w).
    """

    G: Symmetric
    T: Symmetric
    H: Matrix
    K: Array
    E: Array


@dataclass(frozen=True)
class Eliminated:
    """A batch of features when the blocks are gone.

    Parameters
    ----------
    theta
        Shape (B, k); harmless values where the blocks are not positive definite.
    inverse
        F_l^-1 = O_l'V_F^-1O_l of the finest blocks, planes of shape (L, B).
    fine
        A'V_F^-1A.
    coarse
        None without coarse blocks.
    S
        W'V_1^-1W, shape (B, w, w).
    log_det
        log |V_1|, shape (B,).
    distance
        To the edge, about smallest over largest eigenvalue, -1 beyond it; shape (B,).
    negatives
        Negative eigenvalues of V_1, shape (B,), where they are allowed; None where not.
    """

    theta: Array
    inverse: Symmetric
    fine: Pattern
    coarse: Coarse | None
    S: Array
    log_det: Array
    distance: Array
    negatives: Array = None


@dataclass(frozen=True)
class Border:
    """A batch of features when the border is gone too.

    Parameters
    ----------
    N
        P = V_1^-1 - V_1^-1 W N W'V_1^-1, shape (B, w, w).
    K
        Z_z'P = K'W'V_1^-1, shape (B, w, q_z).
    T
        Z_z'PZ_z, shape (B, q_z, q_z).
    log_det
        log |X'V_1^-1X| if X is eliminated, and of the border's own factor, shape (B,).
    distance
        As in `Eliminated`.
    """

    N: Array
    K: Array
    T: Array
    log_det: Array
    distance: Array


def pattern(layout: Layout, packed: Array) -> Pattern:
    """Take packed entries (pattern, B) apart."""
    xp, L = namespace(packed), layout.coarse.L
    first, second = layout.parts
    coarse = [packed[i : i + L, :] for i in range(0, first, L)] if L else []
    own = layout.triangle.unpack(xp.permute_dims(packed[second:, :], (1, 0)))
    coupling = xp.reshape(
        xp.permute_dims(packed[first:second, :], (1, 0)), (packed.shape[1], layout.q_c, layout.w)
    )
    return Pattern(coarse, coupling, own)


def covariance_planes(blocks: Blocks, bases: Array, theta: Array) -> Symmetric:
    """sum_i theta_i basis_i of every block, planes of shape (L, B)."""
    xp = namespace(theta)
    k, count, L = bases.shape
    weights = xp.stack([theta[:, i] for i in blocks.parameters])
    flat = xp.matmul(xp.permute_dims(xp.reshape(bases, (k, count * L)), (1, 0)), weights)
    return [flat[i * L : (i + 1) * L, :] for i in range(count)]


def block_times(matrix: Matrix, values: Array) -> Array:
    """Each coarse block's matrix times its rows of values (B, q_c, c), shape (B, q_c, c)."""
    xp, s = namespace(values), len(matrix)
    L = values.shape[1] // s
    parts = [values[:, b * L : (b + 1) * L, :] for b in range(s)]
    turned = [[xp.permute_dims(plane, (1, 0))[:, :, None] for plane in row] for row in matrix]
    rows = small.matvec(turned, parts)
    return rows[0] if s == 1 else xp.concat(rows, axis=1)


def by_partner(matrix: Array, partner: Array, mask: Array) -> Array:
    """G M for a border parameter's G and matrices M (B, q_z, c)."""
    return mask[:, None] * namespace(matrix).take(matrix, partner, axis=1)


def _distance(pivots: list[Array]) -> Array:
    """Smallest over largest pivot of each feature; -1 where one is not positive."""
    xp = namespace(pivots[0])
    lows, highs = [xp.min(d, axis=0) for d in pivots], [xp.max(d, axis=0) for d in pivots]
    low, high = lows[0], highs[0]
    for a, b in zip(lows[1:], highs[1:], strict=True):
        low, high = xp.minimum(low, a), xp.maximum(high, b)
    positive = low > 0
    return xp.where(positive, low / xp.where(positive, high, xp.ones_like(high)), -1.0)


def _log_det(pivots: list[Array]) -> Array:
    xp = namespace(pivots[0])
    total = pivots[0]
    for pivot in pivots[1:]:
        total = total * pivot
    return xp.sum(xp.log(total), axis=0)


def harmless(theta: Array, beyond: Array) -> Array:
    """Theta with the features beyond the domain put where V is the identity."""
    xp = namespace(theta)
    identity = xp.zeros_like(theta)
    identity[:, -1] = 1.0
    return xp.where(beyond[:, None], identity, theta)


def finest(layout: Layout, theta: Array) -> tuple[Matrix, list[Array]]:
    """Factors of F_l = sigma2 I + R_l'D R_l."""
    fine = layout.fine
    F = covariance_planes(fine, fine.bases, theta)
    on_diagonal = {small.position(fine.s, a, a) for a in range(fine.s)}
    F = [plane + theta[:, -1] if i in on_diagonal else plane for i, plane in enumerate(F)]
    return small.factorise(F, fine.s)


def eliminate(layout: Layout, theta: Array, n: int) -> Eliminated:
    """Eliminate the blocks from V at theta (B, k), for n samples."""
    xp, fine = namespace(theta), layout.fine
    lower, pivots = finest(layout, theta)
    distance = _distance(pivots)
    beyond = ~((distance > SINGULAR) & (theta[:, -1] > 0))
    if bool(xp.any(beyond)):
        theta, distance = harmless(theta, beyond), xp.where(beyond, -1.0, distance)
        lower, pivots = finest(layout, theta)
    inverse = small.inverse_of_factors(lower, pivots)
    sigma2 = theta[:, -1]
    log_det = _log_det(pivots) + (n - fine.size) * xp.log(sigma2)
    packed = layout.outer.transposed_times(xp.concat(inverse)) + layout.base[:, None] / sigma2
    S = pattern(layout, packed)
    if layout.coarse.L == 0:
        return Eliminated(theta, inverse, S, None, S.own, log_det, distance)
    coarse, pivots = _eliminate_coarse(layout, S, theta)
    near = _distance(pivots)
    beyond = ~(near > SINGULAR)
    if bool(xp.any(beyond)):
        again = eliminate(layout, harmless(theta, beyond), n)
        return Eliminated(
            again.theta,
            again.inverse,
            again.fine,
            again.coarse,
            again.S,
            again.log_det,
            xp.where(beyond, -1.0, xp.minimum(distance, again.distance)),
        )
    own = S.own - xp.matmul(xp.matrix_transpose(coarse.K), S.coupling)
    own = 0.5 * (own + xp.matrix_transpose(own))
    return Eliminated(
        theta,
        inverse,
        S,
        coarse,
        own,
        log_det + _log_det(pivots),
        xp.minimum(distance, near),
    )


def _eliminate_coarse(layout: Layout, S: Pattern, theta: Array) -> tuple[Coarse, list[Array]]:
    """The coarse blocks, and the pivots of I + L'D L with L L' = S."""
    xp, blocks = namespace(theta), layout.coarse
    s = blocks.s
    D = covariance_planes(blocks, blocks.bases, theta)
    lower, pivots = small.factorise(S.coarse, s)
    # S is positive definite: V_F is, and directions that are not there stand for themselves.
    lengths = [xp.sqrt(xp.where(pivot > 0, pivot, xp.ones_like(pivot))) for pivot in pivots]
    inverse = small.inverse_of_lower(lower)
    zero, one = xp.zeros_like(lengths[0]), xp.ones_like(lengths[0])
    root = [
        [lower[a][b] * lengths[b] if b < a else (lengths[a] if a == b else zero) for b in range(s)]
        for a in range(s)
    ]
    root_inverse = [
        [(inverse[a][b] if b < a else (one if a == b else zero)) / lengths[a] for b in range(s)]
        for a in range(s)
    ]
    F = small.sandwich(small.transpose(root), D)
    on_diagonal = {small.position(s, a, a) for a in range(s)}
    F = [plane + 1.0 if i in on_diagonal else plane for i, plane in enumerate(F)]
    lower, pivots = small.factorise(F, s)
    safe = [xp.where(pivot > 0, pivot, xp.ones_like(pivot)) for pivot in pivots]
    F_inverse = small.inverse_of_factors(lower, safe)
    # Written with F^-1, nothing cancels when S D is large or small.
    half = small.product(root, small.full(F_inverse, s))
    H = small.product(half, root_inverse)
    T = small.symmetric(small.product(half, small.transpose(root)))
    G = small.symmetric(small.product(small.full(D, s), H))
    K = block_times(small.full(G, s), S.coupling)
    return Coarse(G, T, H, K, block_times(H, S.coupling)), pivots


def eliminate_border(
    layout: Layout, blocks: Eliminated, *, with_x: bool, whole: bool = False
) -> Border:
    """Eliminate X (or not) and the border's random effects from S = W'V_1^-1W.

    What X (or the border itself) absorbs of the border does not touch P and is left out,
    unless ``whole``: the fixed effects' covariance does depend on it.
    """
    S, q_z = blocks.S, layout.q_z
    xp = namespace(S)
    log_det = xp.zeros_like(blocks.log_det)
    distance = log_det + xp.inf
    T, J = S[:, :q_z, :q_z], xp.zeros_like(S[:, q_z:, :q_z])
    C = xp.zeros_like(S[:, q_z:, q_z:])
    if with_x:
        L, ok = _guarded_cholesky(S[:, q_z:, q_z:])
        inverse_L = inverse_of_triangular(L)
        C = xp.matmul(xp.matrix_transpose(inverse_L), inverse_L)
        log_det = 2.0 * xp.sum(xp.log(xp.linalg.diagonal(L)), axis=-1)
        distance = xp.where(ok, distance, -1.0)
    if q_z == 0:
        return Border(C, xp.zeros_like(S[:, :, :0]), T, log_det, distance)
    if with_x:
        J = xp.matmul(C, S[:, q_z:, :q_z])
        T = T - xp.matmul(S[:, :q_z, q_z:], J)
    independent = layout.independent_of_x if with_x else layout.independent
    scales = _scales(layout, blocks.theta)
    if scales is not None:
        inner = _by_scales(T, scales, whole=whole)
    else:
        inner = _by_root(layout, blocks.theta, T, independent, whole=whole)
    JQ = xp.matmul(J, inner.Q)
    lower = C + xp.matmul(JQ, xp.matrix_transpose(J))
    N = xp.concat(
        [
            xp.concat([inner.Q, -xp.matrix_transpose(JQ)], axis=2),
            xp.concat([-JQ, lower], axis=2),
        ],
        axis=1,
    )
    return Border(
        N,
        xp.concat([inner.K, -xp.matmul(J, inner.K)], axis=1),
        inner.T,
        log_det + inner.log_det,
        xp.where(inner.distance > 0, xp.minimum(distance, inner.distance), -1.0),
    )


@dataclass(frozen=True)
class _Inner:
    """The border's random effects for S = Z_z'P_1Z_z, P_1 without them.

    Q = (D^-1 + S)^-1, K = (I + S D)^-1 transposed and T = (S^-1 + D)^-1, shape (B, q_z, q_z);
    log |I + S D| and its distance to singularity, (B,).
    """

    Q: Array
    K: Array
    T: Array
    log_det: Array
    distance: Array


def _scales(layout: Layout, theta: Array) -> Array | None:
    """Square roots of D_z, shape (B, q_z), where it is diagonal and not negative; else None."""
    xp = namespace(theta)
    if not layout.border_is_diagonal:
        return None
    total = sum(theta[:, each.position, None] * each.mask for each in layout.border_parameters)
    if bool(xp.any(total < 0)):
        return None
    # A zero would do as well, but for K, which divides by it.
    return xp.sqrt(xp.where(total > _NOTHING, total, _NOTHING))


def _by_scales(S: Array, scales: Array, *, whole: bool) -> _Inner:
    """With D = diag(d)^2, from F = I + diag(d) S diag(d), which is always positive definite."""
    xp, q_z = namespace(S), S.shape[-1]
    left, right = scales[:, :, None], scales[:, None, :]
    F = left * S * right + identity(S, q_z)
    F_inverse, log_det, near = _inverse(F)
    Q = left * F_inverse * right
    if whole:  # of no use to the fixed effects' covariance, and dear where the border is wide
        return _Inner(Q, Q, Q, log_det, near)
    K = right / left * F_inverse
    T = xp.matmul(K, S)
    return _Inner(Q, xp.matrix_transpose(K), 0.5 * (T + xp.matrix_transpose(T)), log_det, near)


def _inverse(F: Array) -> tuple[Array, Array, Array]:
    """F^-1, log |F| and the distance to singularity, -1 where F is not positive definite."""
    xp = namespace(F)
    factor, inside = _guarded_cholesky(F)
    pivots = xp.linalg.diagonal(factor)
    near = xp.min(pivots, axis=-1) ** 2 / xp.clip(xp.max(pivots, axis=-1) ** 2, 1.0, None)
    half = inverse_of_triangular(factor)
    return (
        xp.matmul(xp.matrix_transpose(half), half),
        2.0 * xp.sum(xp.log(pivots), axis=-1),
        xp.where(inside & (near > SINGULAR), near, -1.0),
    )


def _by_root(layout: Layout, theta: Array, S: Array, independent: Array, *, whole: bool) -> _Inner:
    """For any D, from F = I + L'D L with L L' = S.

    What X (or the border itself) absorbs of the border is left out of Q unless ``whole``.
    """
    xp = namespace(S)
    up, down, ok = _root(S, independent)
    D_up = _border_covariance_times(layout, theta, up)
    inner = xp.matmul(xp.matrix_transpose(up), D_up)
    F_inverse, log_det, near = _inverse(inner + identity(inner, inner.shape[-1]))
    # Written with F^-1, nothing cancels when D S is large or small.
    up_F = xp.matmul(up, F_inverse)
    if whole:
        D = border_covariance(layout, theta)
        Q = D - xp.matmul(xp.matmul(D_up, F_inverse), xp.matrix_transpose(D_up))
    else:
        Q = xp.matmul(xp.matmul(xp.matrix_transpose(down), xp.matmul(F_inverse, inner)), down)
    return _Inner(
        0.5 * (Q + xp.matrix_transpose(Q)),
        xp.matrix_transpose(xp.matmul(up_F, down)),
        xp.matmul(up_F, xp.matrix_transpose(up)),
        log_det,
        xp.where(ok, near, -1.0),
    )


def identity(example: Array, size: int) -> Array:
    """The identity, of the kind of some matrices."""
    return namespace(example).eye(
        size, dtype=example.dtype, device=array_api_compat.device(example)
    )


def _guarded_cholesky(M: Array) -> tuple[Array, Array]:
    """Cholesky factors, the identity where there is none, and where there are."""
    xp = namespace(M)
    L, ok = cholesky(M)
    if not bool(xp.all(ok)):
        L = xp.where(ok[:, None, None], L, identity(M, M.shape[-1]))
    return L, ok


def _root(T: Array, independent: Array) -> tuple[Array, Array, Array]:
    """L (B, q_z, r) with L L' = T of rank r, a left inverse (B, r, q_z), and which T have one.

    With the columns of ``independent`` first, L = [L_1; M L_1] and [L_1^-1, 0] undoes it.
    """
    xp = namespace(T)
    q_z, rank = T.shape[-1], independent.shape[0]
    if rank == q_z:
        L, ok = _guarded_cholesky(T)
        return L, inverse_of_triangular(L), ok
    columns = xp.take(T, independent, axis=2)
    L, ok = _guarded_cholesky(xp.take(columns, independent, axis=1))
    inverse = inverse_of_triangular(L)
    up = xp.matmul(columns, xp.matrix_transpose(inverse))
    down = xp.matmul(inverse, xp.take(identity(T, q_z), independent, axis=0))
    return up, down, ok


def _border_covariance_times(layout: Layout, theta: Array, matrix: Array) -> Array:
    """D_z M of the border's random effects for matrices M (B, q_z, c)."""
    total = None
    for each in layout.border_parameters:
        part = theta[:, each.position, None, None] * by_partner(matrix, each.partner, each.mask)
        total = part if total is None else total + part
    return total


def border_covariance(layout: Layout, theta: Array) -> Array:
    """D_z, shape (B, q_z, q_z)."""
    xp = namespace(theta)
    one = identity(theta, layout.q_z)
    return _border_covariance_times(
        layout, theta, xp.broadcast_to(one, (theta.shape[0], *one.shape))
    )
