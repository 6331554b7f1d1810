"""Elimination where a part of V is indefinite although V may be positive definite.

A negative variance may be held up by another factor's. Woodbury's identity asks of each part
only that it is not singular, and whether V itself is positive definite follows from counting
negative eigenvalues: with D = B J B' (J signs) and S = Z'V_0^-1Z,

    neg(V_0 + Z D Z') = neg(V_0) + pos(J + B'SB) - pos(J)

(Haynsworth's inertia additivity, 1968, for the matrix [[V_0, Z], [Z', -D^-1]]), and of error
contrasts neg(Q'VQ) = neg(V) + pos(X'V^-1X) - p. Slower than
`flashmm.likelihood.elimination.eliminate`, and for the few features that need it.
"""

from __future__ import annotations

from flashmm.arrays.namespaces import Array, namespace
from flashmm.arrays.types import IntArray
from flashmm.likelihood.base import SINGULAR
from flashmm.likelihood.elimination import small
from flashmm.likelihood.elimination.eliminate import (
    Border,
    Coarse,
    Eliminated,
    Pattern,
    block_times,
    border_covariance,
    covariance_planes,
    finest,
    harmless,
    identity,
    pattern,
)
from flashmm.likelihood.elimination.layout import Layout
from flashmm.likelihood.elimination.small import Matrix, Symmetric

__all__ = ["covariance_is_definite", "eliminate_border_indefinite", "eliminate_indefinite"]

# Pivots below this share of the largest lose too many digits.
_SMALL = 1e-9


def covariance_is_definite(blocks: list[IntArray], theta: Array) -> Array:
    """Which theta (B, k) have every covariance block of D positive semi-definite, shape (B,).

    ``blocks`` holds the positions in theta of each block's entries, (s, s).
    """
    xp = namespace(theta)
    definite = xp.all(xp.isfinite(theta), axis=1)
    theta = harmless(theta, ~definite)
    for block in blocks:
        rows = [xp.stack([theta[:, int(i)] for i in row], axis=-1) for row in block]
        lowest = rows[0][:, 0]
        if len(rows) > 1:
            lowest = xp.linalg.eigvalsh(xp.stack(rows, axis=-2))[:, 0]
        definite = definite & (lowest >= 0)
    return definite


def eliminate_indefinite(layout: Layout, theta: Array, n: int) -> Eliminated:
    """As `eliminate`; ``negatives`` counts the negative eigenvalues of V_1."""
    xp, fine = namespace(theta), layout.fine
    _, pivots = finest(layout, theta)
    sizes = xp.abs(xp.concat(pivots))
    share = xp.min(sizes, axis=0) / xp.max(sizes, axis=0)
    beyond = ~((share > _SMALL) & (theta[:, -1] > 0))
    theta = harmless(theta, beyond)
    lower, pivots = finest(layout, theta)
    stacked = xp.concat(pivots)
    negatives = xp.sum(xp.astype(stacked < 0, xp.float64), axis=0)
    sigma2 = theta[:, -1]
    log_det = xp.sum(xp.log(xp.abs(stacked)), axis=0) + (n - fine.size) * xp.log(sigma2)
    inverse = small.inverse_of_factors(lower, pivots)
    packed = layout.outer.transposed_times(xp.concat(inverse)) + layout.base[:, None] / sigma2
    S = pattern(layout, packed)
    distance = xp.where(beyond, -1.0, share)
    if layout.coarse.L == 0:
        return Eliminated(theta, inverse, S, None, S.own, log_det, distance, negatives)
    coarse, more, change, near = _coarse(layout, S, theta)
    own = S.own - xp.matmul(xp.matrix_transpose(coarse.K), S.coupling)
    return Eliminated(
        theta,
        inverse,
        S,
        coarse,
        0.5 * (own + xp.matrix_transpose(own)),
        log_det + more,
        xp.where(near > _SMALL, distance, -1.0),
        negatives + change,
    )


def _coarse(layout: Layout, S: Pattern, theta: Array) -> tuple[Coarse, Array, Array, Array]:
    xp, blocks = namespace(theta), layout.coarse
    s = blocks.s
    gram = _stack(S.coarse, s)
    G, log_det, change, near = _added(
        gram, _stack(covariance_planes(blocks, blocks.bases, theta), s)
    )
    H = identity(theta, s) - xp.matmul(gram, G)
    T = xp.matmul(H, gram)
    G_planes, H_planes, T_planes = (_planes(each) for each in (G, H, T))
    K, E = block_times(G_planes, S.coupling), block_times(H_planes, S.coupling)
    coarse = Coarse(small.symmetric(G_planes), small.symmetric(T_planes), H_planes, K, E)
    return (
        coarse,
        xp.sum(log_det, axis=0),
        xp.sum(change, axis=0),
        xp.min(near, axis=0),
    )


def _stack(packed: Symmetric, s: int) -> Array:
    """Planes (L, B) as matrices (L, B, s, s)."""
    xp = namespace(packed[0])
    return xp.stack([xp.stack(row, axis=-1) for row in small.full(packed, s)], axis=-2)


def _planes(stack: Array) -> Matrix:
    s = stack.shape[-1]
    return [[stack[..., a, b] for b in range(s)] for a in range(s)]


def _added(S: Array, D: Array) -> tuple[Array, Array, Array, Array]:
    """(D^-1 + S)^-1, log |det(I + S D)|, the change in negative eigenvalues, and how regular."""
    xp = namespace(S)
    d, vectors = xp.linalg.eigh(D)
    signs = xp.where(d < 0, -1.0, 1.0)
    root = vectors * xp.sqrt(xp.abs(d))[..., None, :]
    M = xp.matmul(xp.matmul(xp.matrix_transpose(root), S), root)
    M = 0.5 * (M + xp.matrix_transpose(M)) + identity(S, S.shape[-1]) * signs[..., None, :]
    values, inverse = _inverse(M)
    sizes = xp.abs(values)
    Q = xp.matmul(xp.matmul(root, inverse), xp.matrix_transpose(root))
    return (
        Q,
        xp.sum(xp.log(sizes), axis=-1),
        _positive(values) - _positive(signs),
        xp.min(sizes, axis=-1) / xp.max(sizes, axis=-1),
    )


def _inverse(M: Array) -> tuple[Array, Array]:
    """Eigenvalues, kept from zero, and the inverse of symmetric matrices."""
    xp = namespace(M)
    values, vectors = xp.linalg.eigh(M)
    values = xp.where(values == 0, 1e-300, values)
    return values, xp.matmul(vectors / values[..., None, :], xp.matrix_transpose(vectors))


def _positive(values: Array) -> Array:
    xp = namespace(values)
    return xp.sum(xp.astype(values > 0, xp.float64), axis=-1)


def eliminate_border_indefinite(layout: Layout, blocks: Eliminated, *, with_x: bool) -> Border:
    """As `eliminate_border`; beyond the domain where a negative eigenvalue is left."""
    S, q_z = blocks.S, layout.q_z
    xp, negatives = namespace(S), blocks.negatives
    log_det = xp.zeros_like(blocks.log_det)
    T, C = S[:, :q_z, :q_z], xp.zeros_like(S[:, q_z:, q_z:])
    near = xp.ones_like(log_det)
    if with_x:
        values, C = _inverse(S[:, q_z:, q_z:])
        negatives = negatives + _positive(values) - float(layout.w - q_z)
        log_det = xp.sum(xp.log(xp.abs(values)), axis=-1)
    J = xp.matmul(C, S[:, q_z:, :q_z])
    if q_z:
        T = T - xp.matmul(S[:, :q_z, q_z:], J)
        T = 0.5 * (T + xp.matrix_transpose(T))
        Q, more, change, near = _added(T, border_covariance(layout, blocks.theta))
        negatives, log_det = negatives + change, log_det + more
        K = identity(T, q_z) - xp.matmul(Q, T)
        T = xp.matmul(T, K)
    else:
        Q, K = T, T
    JQ = xp.matmul(J, Q)
    N = xp.concat(
        [
            xp.concat([Q, -xp.matrix_transpose(JQ)], axis=2),
            xp.concat([-JQ, C + xp.matmul(JQ, xp.matrix_transpose(J))], axis=2),
        ],
        axis=1,
    )
    inside = (negatives == 0) & (near > SINGULAR)
    K = xp.concat([K, -xp.matmul(J, K)], axis=1)
    return Border(N, K, T, log_det, xp.where(inside, near, -1.0))
