"""Stacks of tiny s x s matrices with the matrix indices first: arrays (s, s, B, L).

For s of 1 to 4 elementwise arithmetic on (B, L) planes beats a call per matrix by far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    BoolArray = NDArray[np.bool_]

__all__ = ["inner", "inverse", "log_determinant", "matvec", "product", "transpose"]


def product(left: FloatArray, right: FloatArray) -> FloatArray:
    """L R, shape (s, s, ...); the trailing dims broadcast."""
    s = left.shape[0]
    rows = []
    for i in range(s):
        row = []
        for j in range(s):
            entry = left[i, 0] * right[0, j]
            for k in range(1, s):
                entry = entry + left[i, k] * right[k, j]
            row.append(entry)
        rows.append(np.stack(row))
    return np.stack(rows)


def matvec(matrix: FloatArray, vector: FloatArray) -> FloatArray:
    """M v for vectors (s, ...)."""
    s = matrix.shape[0]
    entries = []
    for i in range(s):
        entry = matrix[i, 0] * vector[0]
        for k in range(1, s):
            entry = entry + matrix[i, k] * vector[k]
        entries.append(entry)
    return np.stack(entries)


def transpose(matrix: FloatArray) -> FloatArray:
    """M' of each matrix."""
    return np.swapaxes(matrix, 0, 1)


def inner(left: FloatArray, right: FloatArray) -> FloatArray:
    """sum_ij L_ij R_ij of each pair of matrices or vectors, summed over the last dim too."""
    axes = (*range(left.ndim - 2), -1)
    return np.asarray((left * right).sum(axis=axes))


def inverse(matrix: FloatArray) -> FloatArray:
    """M^-1 of each matrix; shape (s, s, B, L)."""
    s = matrix.shape[0]
    if s == 1:
        return np.reciprocal(matrix)
    if s == 2:
        determinant = matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]
        adjugate = [[matrix[1, 1], -matrix[0, 1]], [-matrix[1, 0], matrix[0, 0]]]
        return np.stack([np.stack(row) for row in adjugate]) / determinant
    last: FloatArray = np.linalg.inv(np.moveaxis(matrix, (0, 1), (-2, -1)))
    return np.moveaxis(last, (-2, -1), (0, 1))


def log_determinant(matrix: FloatArray, singular: float) -> tuple[FloatArray, FloatArray]:
    """Log det and a relative distance to singularity of matrices with real eigenvalues.

    Parameters
    ----------
    matrix
        Shape (s, s, B, L), each similar to a symmetric matrix.
    singular
        Distances up to this give a log determinant of NaN.

    Returns
    -------
    tuple of ndarray
        Both of shape (B, L). The distance is about the smallest over the largest eigenvalue,
        and not positive where a matrix is not positive definite.
    """
    s = matrix.shape[0]
    if s == 1:
        determinant, distance = matrix[0, 0], np.sign(matrix[0, 0])
    elif s == 2:
        determinant = matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]
        trace = matrix[0, 0] + matrix[1, 1]
        distance = np.where(trace > 0, determinant / trace**2, -1.0)
    else:
        values = np.linalg.eigvals(np.moveaxis(matrix, (0, 1), (-2, -1))).real
        determinant = values.prod(axis=-1)
        distance = values.min(axis=-1) / np.abs(values).max(axis=-1)
    good = distance > singular
    return np.log(np.where(good, determinant, np.nan)), distance
