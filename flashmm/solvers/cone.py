"""A small quadratic program over positive semi-definite blocks, for a batch of features.

    minimise  1/2 x'Ix - (I theta + s)'x   subject to every block of x being psd

Solved by a primal-dual interior-point method with Nesterov-Todd scaling (Nesterov & Todd
1997; Toh 2008 for quadratic objectives). theta has few entries, so the cost is nothing beside
that of the likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]

__all__ = ["ConeProgram", "solve_cone_program"]

_ITERATIONS = 40
_GAP = 1e-15
_RESIDUAL = 1e-13
_TINY = 1e-40
_SNAP = 1e-9


@dataclass(frozen=True)
class ConeProgram:
    """The quadratic model at theta, for B features.

    Parameters
    ----------
    theta
        Where the model was built, shape (B, k).
    score
        Gradient there, shape (B, k).
    information
        Negative curvature, positive definite, shape (B, k, k).
    """

    theta: FloatArray
    score: FloatArray
    information: FloatArray


@dataclass(frozen=True)
class _Block:
    """One s x s block: the parameters it owns and the symmetric basis they multiply."""

    positions: IntArray  # (k_b,), in theta
    basis: FloatArray  # (k_b, s, s)
    inverse_basis: FloatArray  # (k_b, s, s): trace(inverse_basis_i @ S) reads entry i


def _block(indices: IntArray) -> _Block:
    positions = np.unique(indices)
    basis = np.stack([(indices == position).astype(np.float64) for position in positions])
    counts = basis.sum(axis=(1, 2))
    return _Block(positions, basis, basis / counts[:, None, None])


def _matrix(block: _Block, x: FloatArray) -> FloatArray:
    """Parameters (B, k) to block matrices (B, s, s)."""
    kb, s, _ = block.basis.shape
    return (x[:, block.positions] @ block.basis.reshape(kb, s * s)).reshape(-1, s, s)


def _gradient_matrix(block: _Block, g: FloatArray) -> FloatArray:
    """Gradients in theta (B, k) to symmetric matrices S with tr(S dX) = g'dx."""
    kb, s, _ = block.basis.shape
    return (g[:, block.positions] @ block.inverse_basis.reshape(kb, s * s)).reshape(-1, s, s)


def _gradient_vector(block: _Block, S: FloatArray) -> FloatArray:
    """The inverse of `_gradient_matrix`, shape (B, k_b)."""
    kb, s, _ = block.basis.shape
    return S.reshape(-1, s * s) @ block.basis.reshape(kb, s * s).T


def _root(X: FloatArray, power: float) -> FloatArray:
    if X.shape[-1] == 1:
        return np.asarray(np.maximum(X, _TINY) ** power)
    values, vectors = np.linalg.eigh(X)
    values = np.maximum(values, _TINY) ** power
    return np.asarray(np.matmul(vectors * values[:, None, :], np.swapaxes(vectors, 1, 2)))


def _scaling_inverse(X: FloatArray, S: FloatArray) -> FloatArray:
    """Inverse of the Nesterov-Todd scaling point W, W S W = X."""
    half = _root(X, 0.5)
    inner = _root(np.matmul(np.matmul(half, S), half), 0.5)
    inverse_half = _root(X, -0.5)
    return np.asarray(np.matmul(np.matmul(inverse_half, inner), inverse_half))


def _longest_step(X: FloatArray, dX: FloatArray) -> FloatArray:
    """Largest alpha with X + alpha dX psd, shape (B,); X positive definite."""
    if X.shape[-1] == 1:
        x, dx = X[:, 0, 0], dX[:, 0, 0]
        return np.where(dx < 0, x / np.maximum(-dx, 1e-300), np.inf)
    inverse_half = _root(X, -0.5)
    lowest = np.linalg.eigvalsh(np.matmul(np.matmul(inverse_half, dX), inverse_half))[:, 0]
    return np.where(lowest < 0, -1.0 / np.minimum(lowest, -1e-300), np.inf)


def solve_cone_program(program: ConeProgram, blocks: tuple[IntArray, ...]) -> FloatArray:
    """Steps d (B, k) such that theta + d solves the program.

    Parameters
    ----------
    program
        The quadratic model of each feature.
    blocks
        Positions in theta of each block's entries; together they cover theta.

    Returns
    -------
    ndarray
        The steps, shape (B, k). Variances and eigenvalues that end at the boundary are put
        exactly there.
    """
    parts = [_block(block) for block in blocks]
    unit = _units(program.information, blocks)
    H = program.information * unit[:, :, None] * unit[:, None, :]
    theta = program.theta / unit
    target = np.matmul(H, theta[:, :, None])[:, :, 0] + program.score * unit
    size = 1.0 + np.abs(target).max(axis=1)  # scale of x and of the dual
    b = target / size[:, None]

    count, k = theta.shape
    order = sum(block.shape[0] for block in blocks)
    x, z = np.zeros((count, k)), np.zeros((count, k))
    for part in parts:
        diagonal = np.trace(part.basis, axis1=1, axis2=2) > 0  # start from the identity
        x[:, part.positions[diagonal]] = 1.0
        z[:, part.positions[diagonal]] = 1.0
    z *= 1.0 + np.abs(np.matmul(H, x[:, :, None])[:, :, 0] - b).max(axis=1, keepdims=True)

    # Finished features leave the loop, so that none depends on the company it keeps.
    active = np.arange(count)
    for _ in range(_ITERATIONS):
        gradient = np.matmul(H[active], x[active, :, None])[:, :, 0] - b[active]
        gap = (x[active] * z[active]).sum(axis=1) / order
        open_ = (gap > _GAP) | (np.abs(gradient - z[active]).max(axis=1) > _RESIDUAL)
        active, gradient, gap = active[open_], gradient[open_], gap[open_]
        if active.size == 0:
            break
        next_x, next_z = _sound_iterate(H[active], x[active], z[active], gradient, gap, parts)
        # Past the last digit an iterate may break down; the one before is as good as it gets.
        sound = np.isfinite(next_x).all(axis=1) & np.isfinite(next_z).all(axis=1)
        active = active[sound]
        x[active], z[active] = next_x[sound], next_z[sound]
    return np.asarray(_snapped(x, z, parts) * size[:, None] * unit - program.theta)


def _sound_iterate(
    H: FloatArray,
    x: FloatArray,
    z: FloatArray,
    gradient: FloatArray,
    gap: FloatArray,
    parts: list[_Block],
) -> tuple[FloatArray, FloatArray]:
    """`_iterate`, with NaN for features on which it fails.

    numpy raises for a whole stack when one matrix fails; halving the stack isolates it.
    """
    try:
        return _iterate(H, x, z, gradient, gap, parts)
    except np.linalg.LinAlgError:
        count = x.shape[0]
        if count == 1:
            return np.full_like(x, np.nan), np.full_like(z, np.nan)
        halves = [
            _sound_iterate(H[half], x[half], z[half], gradient[half], gap[half], parts)
            for half in (slice(None, count // 2), slice(count // 2, None))
        ]
        return (
            np.concatenate([half[0] for half in halves]),
            np.concatenate([half[1] for half in halves]),
        )


def _iterate(
    H: FloatArray,
    x: FloatArray,
    z: FloatArray,
    gradient: FloatArray,
    gap: FloatArray,
    parts: list[_Block],
) -> tuple[FloatArray, FloatArray]:
    """One interior-point step towards a tenth of the duality gap."""
    barrier = H.copy()
    push = -gradient
    centre = np.maximum(0.1 * gap, 1e-18)
    for part in parts:
        X, S = _matrix(part, x), _gradient_matrix(part, z)
        inverse = _scaling_inverse(X, S)
        products = np.matmul(inverse[:, None], part.basis[None])
        kb = part.positions.size
        flat = products.reshape(x.shape[0], kb, -1)
        turned = np.swapaxes(products, 2, 3).reshape(x.shape[0], kb, -1)
        here = np.ix_(np.arange(x.shape[0]), part.positions, part.positions)
        barrier[here] += np.matmul(flat, np.swapaxes(turned, 1, 2))
        push[:, part.positions] += _gradient_vector(part, centre[:, None, None] * _root(X, -1.0))
    length = np.sqrt(np.diagonal(barrier, axis1=-2, axis2=-1))
    scaled = barrier / (length[:, :, None] * length[:, None, :])
    dx = np.linalg.solve(scaled, (push / length)[:, :, None])[:, :, 0] / length
    dz = gradient + np.matmul(H, dx[:, :, None])[:, :, 0] - z
    primal, dual = np.full(x.shape[0], np.inf), np.full(x.shape[0], np.inf)
    for part in parts:
        X, S = _matrix(part, x), _gradient_matrix(part, z)
        primal = np.minimum(primal, _longest_step(X, _matrix(part, dx)))
        dual = np.minimum(dual, _longest_step(S, _gradient_matrix(part, dz)))
    alpha = np.minimum(1.0, 0.95 * primal)[:, None]
    beta = np.minimum(1.0, 0.95 * dual)[:, None]
    both = np.minimum(alpha, beta)  # a quadratic objective couples the two steps
    return x + both * dx, z + both * dz


def _units(information: FloatArray, blocks: tuple[IntArray, ...]) -> FloatArray:
    """Units for theta in which variances have unit information; a congruence of each block."""
    count, k = information.shape[:2]
    unit = np.ones((count, k))
    for block in blocks:
        diagonal = np.diag(block)
        curvature = information[:, diagonal, diagonal]
        effect = np.where(curvature > 0, curvature, 1.0) ** -0.25  # of a standard deviation
        for a in range(block.shape[0]):
            for b in range(a, block.shape[0]):
                unit[:, block[a, b]] = effect[:, a] * effect[:, b]
    return unit


def _snapped(x: FloatArray, z: FloatArray, parts: list[_Block]) -> FloatArray:
    """X with eigenvalues that the dual holds at zero put exactly there."""
    result = x.copy()
    for part in parts:
        if part.basis.shape[1] == 1:
            i = part.positions[0]
            result[:, i] = np.where((x[:, i] < _SNAP) & (x[:, i] < z[:, i]), 0.0, x[:, i])
            continue
        values, vectors = np.linalg.eigh(_matrix(part, x))
        dual = (vectors * np.matmul(_gradient_matrix(part, z), vectors)).sum(axis=1)
        values = np.where((values < _SNAP) & (values < dual), 0.0, values)
        X = np.matmul(vectors * values[:, None, :], np.swapaxes(vectors, 1, 2))
        kb = part.positions.size
        result[:, part.positions] = X.reshape(x.shape[0], -1) @ part.inverse_basis.reshape(kb, -1).T
    return result
