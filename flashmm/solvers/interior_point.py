"""An interior-point method for a small quadratic program over positive semi-definite blocks.

    minimise  1/2 x'Hx - b'x   subject to every block of x being psd

Primal-dual, with Nesterov-Todd scaling (Nesterov & Todd 1997; Toh 2008 for quadratic objectives).
It always gets there, in some twenty iterations: for programs on which
`flashmm.solvers.kkt_newton` goes astray.
"""

from __future__ import annotations

import numpy as np

from flashmm.arrays.namespaces import FloatArray, namespace, put, take
from flashmm.solvers.blocks import Block, Blocks, symmetric_eigen
from flashmm.solvers.linear import solve_definite, unit_diagonal

__all__ = ["interior_point"]

_ITERATIONS = 40
_GAP = 1e-15
_RESIDUAL = 1e-13
_TINY = 1e-40


def interior_point(blocks: Blocks, H: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Solve the program for a batch of features.

    Parameters
    ----------
    blocks
        The blocks of x.
    H
        Positive definite, shape (B, k, k), in coordinates as in `Blocks`.
    b
        Shape (B, k).

    Returns
    -------
    tuple of array
        The solutions x and their multipliers z, the gradients there; both shape (B, k).
    """
    xp = namespace(H)
    size = 1.0 + xp.max(xp.abs(b), axis=1, keepdims=True)  # scale of x and of the multipliers
    b = b / size
    variance = (blocks.factor == 1.0) & (blocks.free == 0.0)
    order = int(xp.sum(xp.astype(variance, xp.int64)))
    x = xp.astype(variance, xp.float64) + xp.zeros_like(b)  # the identity
    z = x * (1.0 + xp.max(xp.abs(_times(H, x) - b), axis=1, keepdims=True))

    # Finished features leave the loop, so that none depends on the company it keeps.
    active = xp.arange(b.shape[0])
    for _ in range(_ITERATIONS):
        here, dual, curvature = take(x, active), take(z, active), take(H, active)
        gradient = _times(curvature, here) - take(b, active)
        gap = xp.sum(here * dual, axis=1) / order
        open_ = (gap > _GAP) | (xp.max(xp.abs(gradient - dual), axis=1) > _RESIDUAL)
        active = active[open_]
        if active.shape[0] == 0:
            break
        with np.errstate(all="ignore"):
            next_x, next_z = _iterate(
                blocks, curvature[open_], here[open_], dual[open_], gradient[open_], gap[open_]
            )
        # Past the last digit an iterate may break down; the one before is as good as it gets.
        sound = xp.all(xp.isfinite(next_x) & xp.isfinite(next_z), axis=1)
        active = active[sound]
        put(x, active, next_x[sound])
        put(z, active, next_z[sound])
    return x * size, z * size


def _times(H: FloatArray, x: FloatArray) -> FloatArray:
    return namespace(H).matmul(H, x[:, :, None])[:, :, 0]


def _iterate(
    blocks: Blocks,
    H: FloatArray,
    x: FloatArray,
    z: FloatArray,
    gradient: FloatArray,
    gap: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """One step towards a tenth of the duality gap."""
    xp = namespace(H)
    centre = xp.clip(0.1 * gap, min=1e-18)[:, None]
    alone = blocks.single > 0
    kept = xp.where(alone, xp.clip(x, min=_TINY), 1.0)
    eye = xp.eye(x.shape[1], dtype=x.dtype)
    barrier = H + eye * xp.where(alone, z / kept, 0.0)[:, None, :]
    push = xp.where(alone, centre / kept, 0.0) - gradient
    for block in blocks.larger:
        X, S = blocks.matrices(block, x), blocks.matrices(block, z)
        W = _scaling_inverse(X, S)
        s = block.size
        kron = W[:, :, None, :, None] * W[:, None, :, None, :]
        kron = xp.reshape(kron, (x.shape[0], s * s, s * s))
        barrier = barrier + xp.matmul(xp.matmul(block.basis, kron), block.basis.T)
        push = push + centre * blocks.coordinates(block, _root(X, -1.0))
    scaled, length = unit_diagonal(barrier)
    dx, ok = solve_definite(scaled, push / length, 0.0)
    dx = xp.where(ok[:, None], dx / length, xp.nan)
    dz = gradient + _times(H, dx) - z
    primal = xp.where(alone & (dx < 0), -x / xp.where(dx < 0, dx, -1.0), xp.inf)
    dual = xp.where(alone & (dz < 0), -z / xp.where(dz < 0, dz, -1.0), xp.inf)
    longest = xp.min(xp.where(primal < dual, primal, dual), axis=1)
    for block in blocks.larger:
        for at, change in ((x, dx), (z, dz)):
            limit = _longest_step(blocks, block, at, change)
            longest = xp.where(limit < longest, limit, longest)
    # A quadratic objective couples the steps of x and z.
    share = xp.clip(0.95 * longest, max=1.0)[:, None]
    return x + share * dx, z + share * dz


def _root(X: FloatArray, power: float) -> FloatArray:
    xp = namespace(X)
    values, vectors = symmetric_eigen(X)
    values = xp.clip(values, min=_TINY) ** power
    return xp.matmul(vectors * values[:, None, :], xp.matrix_transpose(vectors))


def _scaling_inverse(X: FloatArray, S: FloatArray) -> FloatArray:
    """Inverse of the Nesterov-Todd scaling point W, W S W = X."""
    xp = namespace(X)
    half, inverse_half = _root(X, 0.5), _root(X, -0.5)
    inner = xp.matmul(xp.matmul(half, S), half)
    inner = _root(0.5 * (inner + xp.matrix_transpose(inner)), 0.5)
    return xp.matmul(xp.matmul(inverse_half, inner), inverse_half)


def _longest_step(blocks: Blocks, block: Block, x: FloatArray, dx: FloatArray) -> FloatArray:
    """Largest alpha with X + alpha dX psd, shape (B,); X positive definite."""
    xp = namespace(x)
    inverse_half = _root(blocks.matrices(block, x), -0.5)
    turned = xp.matmul(xp.matmul(inverse_half, blocks.matrices(block, dx)), inverse_half)
    values, _ = symmetric_eigen(0.5 * (turned + xp.matrix_transpose(turned)))
    lowest = xp.min(values, axis=1)
    limit = xp.where(lowest < 0, -1.0 / xp.where(lowest < 0, lowest, -1.0), xp.inf)
    return xp.where(xp.isfinite(lowest), limit, 0.0)
