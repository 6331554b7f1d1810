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

__all__ = ["inner", "inverse", "log_determinant", "matvec", "product", "symmetric", "transpose"]


def product(left: FloatArray, right: FloatArray) -> FloatArray:
    """L R, shape (s, s, ...); the trailing dims broadcast."""
    s = left.shape[0]
    planes = np.broadcast_shapes(left.shape[2:], right.shape[2:])
    result, term = np.empty((s, s, *planes)), np.empty(planes)
    for i in range(s):
        for j in range(s):
            np.multiply(left[i, 0], right[0, j], out=result[i, j])
            for k in range(1, s):
                np.multiply(left[i, k], right[k, j], out=term)
                result[i, j] += term
    return result


def matvec(matrix: FloatArray, vector: FloatArray) -> FloatArray:
    """M v for vectors (s, ...)."""
    s = matrix.shape[0]
    result, term = np.empty_like(vector), np.empty(vector.shape[1:])
    for i in range(s):
        np.multiply(matrix[i, 0], vector[0], out=result[i])
        for k in range(1, s):
            np.multiply(matrix[i, k], vector[k], out=term)
            result[i] += term
    return result


def transpose(matrix: FloatArray) -> FloatArray:
    """M' of each matrix."""
    return np.swapaxes(matrix, 0, 1)


def symmetric(matrix: FloatArray) -> FloatArray:
    """The mean of M and M', taking out rounding, in place."""
    s = matrix.shape[0]
    for i in range(s):
        for j in range(i):
            mean = 0.5 * (matrix[i, j] + matrix[j, i])
            matrix[i, j] = matrix[j, i] = mean
    return matrix


def inner(left: FloatArray, right: FloatArray) -> FloatArray:
    """sum_ij L_ij R_ij of each pair of matrices or vectors, summed over the last dim too."""
    axes = (*range(left.ndim - 2), -1)
    return np.asarray((left * right).sum(axis=axes))


def inverse(matrix: FloatArray) -> FloatArray:
    """M^-1 of each matrix; shape (s, s, B, L)."""
    s = matrix.shape[0]
    result = np.empty_like(matrix)
    if s == 1:
        np.reciprocal(matrix, out=result)
    elif s == 2:
        determinant = matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]
        for (i, j), sign in {(0, 0): 1.0, (0, 1): -1.0, (1, 0): -1.0, (1, 1): 1.0}.items():
            entry = matrix[1 - j, 1 - i] if i == j else matrix[i, j]
            np.divide(sign * entry, determinant, out=result[i, j])
    else:
        stack = np.linalg.inv(np.moveaxis(matrix, (0, 1), (-2, -1)))
        result[...] = np.moveaxis(stack, (-2, -1), (0, 1))
    return result


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
