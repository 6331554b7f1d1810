"""Small symmetric systems, one per feature: k x k with k the number of variance parameters.

Written as elementwise arithmetic over the features, entry by entry: for k of a few this beats a
call per matrix, and one feature's breakdown stays its own.
"""

from __future__ import annotations

import numpy as np

from flashmm.arrays.namespaces import BoolArray, FloatArray, namespace

__all__ = ["solve_definite", "solve_symmetric", "unit_diagonal"]

# Pivots of a matrix of unit diagonal below this are rounding.
_SMALLEST_PIVOT = 1e-12


def unit_diagonal(information: FloatArray) -> tuple[FloatArray, FloatArray]:
    """A matrix scaled to unit diagonal, (B, k, k), and the square roots of its diagonal, (B, k)."""
    xp = namespace(information)
    diagonal = xp.abs(xp.linalg.diagonal(information))
    length = xp.sqrt(xp.where(diagonal > 0, diagonal, 1.0))
    return information / (length[:, :, None] * length[:, None, :]), length


def solve_definite(
    matrix: FloatArray,
    right: FloatArray,
    lowest: float = _SMALLEST_PIVOT,
    relative_to: FloatArray | None = None,
) -> tuple[FloatArray, BoolArray]:
    """Solve M x = b where M - ``lowest`` R is positive definite.

    Parameters
    ----------
    matrix
        Shape (B, k, k), of about unit diagonal.
    right
        Shape (B, k).
    lowest
        A bound on the smallest eigenvalue, relative to R.
    relative_to
        R, positive definite, shape (B, k, k); the identity by default.

    Returns
    -------
    tuple of array
        The solutions (B, k), and for which features the bound holds (Sylvester's law of
        inertia: the pivots of M - lowest R are positive), (B,). Solutions of others are not
        to be used.
    """
    xp, k = namespace(matrix), right.shape[1]
    # What breaks down past a bad pivot is not used.
    with np.errstate(all="ignore"):
        factor, pivot = _factored(matrix, 0.0)
        bounds = pivot
        if relative_to is not None:
            bounds = pivot + _factored(matrix - lowest * relative_to, 0.0)[1]
        elif lowest != 0.0:
            bounds = _factored(matrix, lowest)[1]
        smallest = xp.min(xp.stack(bounds, axis=1), axis=1)
        y: list[FloatArray] = []
        for i in range(k):
            value = right[:, i]
            for j in range(i):
                value = value - factor[i][j] * y[j]
            y.append(value)
        x: list[FloatArray] = [y[i] / pivot[i] for i in range(k)]
        for i in range(k - 2, -1, -1):
            for j in range(i + 1, k):
                x[i] = x[i] - factor[j][i] * x[j]
    return xp.stack(x, axis=1), smallest > 0


def _factored(matrix: FloatArray, shift: float) -> tuple[list[list[FloatArray]], list[FloatArray]]:
    """L (unit diagonal) and d of M - shift I = L diag(d) L', entries of shape (B,).

    A pivot of zero is replaced by a tiny negative one.
    """
    xp, k = namespace(matrix), matrix.shape[-1]
    factor: list[list[FloatArray]] = []
    pivot: list[FloatArray] = []
    for i in range(k):
        row: list[FloatArray] = []
        scaled: list[FloatArray] = []
        for j in range(i):
            value = matrix[:, i, j]
            for c in range(j):
                value = value - scaled[c] * factor[j][c]
            scaled.append(value)
            row.append(value / pivot[j])
        value = matrix[:, i, i] - shift
        for c in range(i):
            value = value - scaled[c] * row[c]
        factor.append(row)
        pivot.append(xp.where(value == 0.0, -1e-300, value))
    return factor, pivot


def solve_symmetric(information: FloatArray, score: FloatArray) -> FloatArray:
    """I^-1 s for a stack of symmetric matrices; eigenvalues are kept positive.

    Works on the matrix scaled to unit diagonal, so units do not matter. Directions without
    information get a bounded step rather than an infinite one.
    """
    xp = namespace(information)
    scaled, length = unit_diagonal(information)
    right = score / length
    step, ok = solve_definite(scaled, right, 1e-10)
    if not bool(xp.all(ok)):
        rest = ~ok
        values, vectors = xp.linalg.eigh(_finite(scaled[rest]))
        values = xp.clip(xp.abs(values), min=1e-12)
        projected = xp.matmul(xp.matrix_transpose(vectors), right[rest][:, :, None])
        step[rest] = xp.matmul(vectors, projected / values[:, :, None])[:, :, 0]
    return step / length


def _finite(matrix: FloatArray) -> FloatArray:
    """The matrices, the identity in place of those that are not finite."""
    xp, k = namespace(matrix), matrix.shape[-1]
    flat = xp.reshape(matrix, (matrix.shape[0], k * k))
    fine = xp.all(xp.isfinite(flat), axis=1)
    return xp.where(fine[:, None, None], matrix, xp.eye(k, dtype=matrix.dtype))
