"""Newton's method for a maximum over positive semi-definite blocks.

At a maximum (by the Karush-Kuhn-Tucker conditions, KKT) the blocks X of theta and the multipliers
Z = -gradient are both psd and X Z = 0, so both are parts of one matrix, Y = X - Z, and the
conditions are one equation in Y without inequalities: gradient(X(Y)) + Z(Y) = 0. It is semismooth,
and Newton's method on it converges quadratically and finds the ranks of the blocks by itself (Qi &
Sun 2006, SIAM J Matrix Anal Appl 28:360; for blocks of one entry it is the primal-dual active set
method of Hintermueller, Ito & Kunisch 2002, SIAM J Optim 13:865). In the eigenbasis of Y the
derivative of X is diagonal, weights m, and with H the negative curvature each step solves one
symmetric system,

    (m^1/2 H m^1/2 + 1 - m) w = m^1/2 (gradient + Z)

which is positive definite where the curvature of the likelihood along the face of the boundary
that X lies on is negative, the bend of the face included: the second-order condition.
"""

from __future__ import annotations

from flashmm.arrays.namespaces import BoolArray, FloatArray, namespace, put
from flashmm.likelihood.base import Evaluation
from flashmm.solvers.blocks import Blocks, Decomposition
from flashmm.solvers.interior_point import interior_point
from flashmm.solvers.linear import solve_definite

__all__ = ["newton_step", "quadratic_program"]

_ITERATIONS = 25
_NEWTON_ITERATIONS = 8
_RESIDUAL = 1e-13
# Eigenvalues of X below this, in units of a standard error, are zero.
_ZERO = 1e-9


def newton_step(
    blocks: Blocks, theta: FloatArray, at: Evaluation, lowest: float
) -> tuple[FloatArray, BoolArray]:
    """A Newton step for the likelihood, from theta on whatever face of the boundary.

    It solves the quadratic model with the observed information, which need be definite along the
    face alone. The expected information gives the units.

    Parameters
    ----------
    blocks
        The blocks of theta.
    theta
        Shape (B, k).
    at
        The likelihood there.
    lowest
        A bound on the eigenvalues of the system.

    Returns
    -------
    tuple of array
        Steps (B, k), and for which features the second-order condition holds, (B,).
    """
    xp = namespace(theta)
    unit = blocks.units(at.expected)
    x, gradient, H, b, Y = _program(blocks, unit, theta, at.score, at.observed)
    solution, ok = _solved(blocks, H, b, Y, lowest, _NEWTON_ITERATIONS)
    step = solution - x
    uphill = xp.sum(step * gradient, axis=1) > 0
    return step * unit, ok & uphill


def quadratic_program(
    blocks: Blocks, theta: FloatArray, score: FloatArray, information: FloatArray
) -> FloatArray:
    """Maximise score'd - 1/2 d'I d with theta + d in the space.

    Parameters
    ----------
    blocks
        The blocks of theta.
    theta, score
        Shape (B, k).
    information
        Positive definite, shape (B, k, k).

    Returns
    -------
    array
        The steps d, shape (B, k), exact to rounding but where theta + d has almost no curvature.
    """
    xp = namespace(theta)
    unit = blocks.units(information)
    x, _, H, b, Y = _program(blocks, unit, theta, score, information)
    solution, solved = _solved(blocks, H, b, Y)
    if not bool(xp.all(solved)):
        rest = ~solved
        # The interior point knows the ranks; from there Newton's method finds the last digits.
        at, multiplier = interior_point(blocks, H[rest], b[rest])
        exact, ok = _solved(blocks, H[rest], b[rest], at - multiplier)
        near = blocks.decomposed(at - multiplier).X
        solution[rest] = xp.where(ok[:, None], exact, near)
    return (solution - x) * unit


def _program(
    blocks: Blocks,
    unit: FloatArray,
    theta: FloatArray,
    score: FloatArray,
    information: FloatArray,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """The quadratic model in coordinates: x, the gradient, H, b = H x + gradient, first Y."""
    H = information * unit[:, :, None] * unit[:, None, :]
    x, gradient = theta / unit, score * unit
    b = namespace(x).matmul(H, x[:, :, None])[:, :, 0] + gradient
    return x, gradient, H, b, x - blocks.multiplier(x, gradient, _ZERO)


def _solved(
    blocks: Blocks,
    H: FloatArray,
    b: FloatArray,
    Y: FloatArray,
    lowest: float = 0.0,
    iterations: int = _ITERATIONS,
) -> tuple[FloatArray, BoolArray]:
    """Solutions x of the program from starts Y, shape (B, k), and which were found, (B,).

    Found are those with systems that have no eigenvalue below ``lowest`` on the way.
    """
    xp = namespace(b)
    solution = xp.zeros_like(b)
    solved = xp.zeros_like(b[:, 0]) > 0
    active = xp.arange(b.shape[0])
    for iteration in range(iterations + 1):
        parts = blocks.decomposed(Y)
        image = xp.matmul(H, parts.X[:, :, None])[:, :, 0]
        residual = b - image + (parts.X - Y)
        size = 1.0 + xp.max(xp.abs(b), axis=1) + xp.max(xp.abs(image), axis=1)
        done = xp.max(xp.abs(residual), axis=1) <= _RESIDUAL * size
        if bool(xp.any(done)):
            put(solution, active[done], parts.X[done])
            put(solved, active[done], done[done])
            left = ~done
            active, H, b, Y, residual = active[left], H[left], b[left], Y[left], residual[left]
            rotation = None if parts.rotation is None else parts.rotation[left]
            parts = Decomposition(parts.X[left], parts.weight[left], rotation)
        if active.shape[0] == 0 or iteration == iterations:
            break
        change, ok = _step(H, residual, parts, lowest)
        Y = Y + change
        if not bool(xp.all(ok)):
            active, H, b, Y = active[ok], H[ok], b[ok], Y[ok]
    return solution, solved


def _step(
    H: FloatArray, residual: FloatArray, parts: Decomposition, lowest: float
) -> tuple[FloatArray, BoolArray]:
    """The change of Y, shape (B, k), and for which features the system is definite, (B,)."""
    xp = namespace(H)
    R, m = parts.rotation, parts.weight
    if R is not None:
        H = xp.matmul(xp.matmul(R, H), xp.matrix_transpose(R))
        residual = xp.matmul(R, residual[:, :, None])[:, :, 0]
    root = xp.sqrt(m)
    half = H * root[:, None, :]
    system = half * root[:, :, None]
    eye = xp.eye(m.shape[1], dtype=m.dtype)
    w, ok = solve_definite(system + eye * (1.0 - m)[:, None, :], root * residual, lowest)
    change = residual - xp.matmul(half, w[:, :, None])[:, :, 0] + root * w
    if R is not None:
        change = xp.matmul(change[:, None, :], R)[:, 0, :]
    return change, ok
