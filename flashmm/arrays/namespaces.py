"""Arrays of any namespace: what numpy, PyTorch and others need beyond the array API standard.

Numerical code asks for the namespace of what it is given, ``xp = namespace(theta)``, and keeps
to the standard (https://data-apis.org/array-api): boolean masks and slices may be assigned to,
integer arrays may not. All arrays are float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import array_api_compat
import array_api_compat.numpy
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

__all__ = [
    "Array",
    "BoolArray",
    "FloatArray",
    "IntArray",
    "Namespace",
    "Triangle",
    "cholesky",
    "flatnonzero",
    "inverse_of_triangular",
    "like",
    "namespace",
    "put",
    "solved",
    "take",
    "to_numpy",
]

# The standard names no types: whose arrays these are is known when the code runs.
Array: TypeAlias = Any
FloatArray: TypeAlias = Any  # of float64
IntArray: TypeAlias = Any  # of int64
BoolArray: TypeAlias = Any
Namespace: TypeAlias = Any

# numpy names its functions as the standard does from 2.1 on: a wrapper around each of a thousand
# calls is what a fit of one feature would wait for.
_NUMPY: Namespace = np if np.lib.NumpyVersion(np.__version__) >= "2.1.0" else array_api_compat.numpy

# Triangular matrices up to this size are inverted row by row.
_SMALL = 8
# Stacks of so few are inverted one by one.
_FEW = 4


def namespace(array: Array) -> Namespace:
    """The functions for an array and others of its library, named as the standard names them.

    Parameters
    ----------
    array
        Of any library that array-api-compat knows.

    Returns
    -------
    module

    Examples
    --------
    >>> import numpy as np
    >>> float(namespace(np.ones(3)).sum(np.ones(3)))
    3.0
    """
    if type(array) is np.ndarray:  # asked a thousand times in a fit of few features
        return _NUMPY
    return array_api_compat.array_namespace(array)


def like(values: Any, example: Array) -> Array:
    """Values, as an array of the library and on the device of another.

    Parameters
    ----------
    values
        A numpy array or something numpy turns into one.
    example
        The other array.

    Returns
    -------
    array
        Of the dtype that numpy gives ``values``.

    Examples
    --------
    >>> import numpy as np
    >>> like([1.0, 2.0], np.zeros(5))
    array([1., 2.])
    """
    values = np.asarray(values)
    if array_api_compat.is_numpy_array(example):
        return values
    xp, device = namespace(example), array_api_compat.device(example)
    return xp.asarray(np.ascontiguousarray(values), device=device)


def to_numpy(array: Array) -> NDArray[Any]:
    """An array as numpy's, from whatever device; without a copy where it is numpy's already.

    Examples
    --------
    >>> import numpy as np
    >>> to_numpy(np.zeros(2))
    array([0., 0.])
    """
    if array_api_compat.is_torch_array(array):
        return np.asarray(array.numpy(force=True))
    return np.asarray(array)


def take(array: Array, index: Array) -> Array:
    """Rows of an array, chosen by a boolean mask (n,) or by positions.

    Examples
    --------
    >>> import numpy as np
    >>> take(np.arange(3.0), np.array([True, False, True]))
    array([0., 2.])
    """
    if type(array) is np.ndarray:  # asked a hundred times in a fit of few features
        return array[index] if index.dtype == bool else array.take(index, axis=0)
    xp = namespace(array)
    if xp.isdtype(index.dtype, "bool"):
        return array[index]
    return xp.take(array, index, axis=0)


def put(array: Array, index: Array, values: Array) -> None:
    """Overwrite rows of an array, chosen as for `take`.

    Positions, which must differ, are turned into a mask: the standard has no assignment to
    integer arrays.

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.zeros((3, 1))
    >>> put(rows, np.array([2, 0]), np.array([[5.0], [6.0]]))
    >>> rows[:, 0]
    array([6., 0., 5.])
    """
    if type(array) is np.ndarray:
        array[index] = values
        return
    xp = namespace(array)
    if xp.isdtype(index.dtype, "bool") or array_api_compat.is_numpy_array(array):
        array[index] = values
        return
    order = xp.argsort(index)
    rows = xp.arange(array.shape[0], device=array_api_compat.device(array))
    chosen = xp.any(rows[:, None] == index[None, :], axis=1)
    array[chosen] = xp.take(values, order, axis=0)


def flatnonzero(mask: Array) -> Array:
    """Positions of the true elements of a mask (n,)."""
    return namespace(mask).nonzero(mask)[0]


def cholesky(M: Array) -> tuple[Array, Array]:
    """Cholesky factors of a stack of symmetric matrices, each failing for itself alone.

    Parameters
    ----------
    M
        Shape (B, r, r).

    Returns
    -------
    tuple of array
        Lower factors L (B, r, r), NaN where there is none, and which there are, (B,).

    Examples
    --------
    >>> import numpy as np
    >>> L, ok = cholesky(np.array([[[4.0]], [[-1.0]]]))
    >>> L[0], ok
    (array([[2.]]), array([ True, False]))
    """
    xp = namespace(M)
    if array_api_compat.is_torch_namespace(xp):
        L, info = xp.linalg.cholesky_ex(M)
        ok = (info == 0) & xp.all(xp.isfinite(xp.linalg.diagonal(L)), axis=-1)
        return xp.where(ok[:, None, None], L, xp.nan), ok
    # Other libraries raise for a whole stack when one matrix fails; halving isolates it.
    try:
        L = xp.linalg.cholesky(M)
    except np.linalg.LinAlgError:
        count = M.shape[0]
        if count == 1:
            return xp.full_like(M, xp.nan), xp.zeros_like(M[:, 0, 0], dtype=xp.bool)
        halves = cholesky(M[: count // 2, ...]), cholesky(M[count // 2 :, ...])
        L, ok = (xp.concat(parts) for parts in zip(*halves, strict=True))
        return L, ok
    return L, xp.all(xp.isfinite(xp.linalg.diagonal(L)), axis=-1)


def solved(M: Array, right: Array) -> Array:
    """M^-1 R for a stack of square matrices, NaN where one is singular.

    Parameters
    ----------
    M
        Shape (B, r, r).
    right
        Shape (B, r, c).

    Examples
    --------
    >>> import numpy as np
    >>> solved(np.array([[[4.0]], [[0.0]]]), np.ones((2, 1, 1)))[:, 0, 0]
    array([0.25,  nan])
    """
    xp = namespace(M)
    try:
        return xp.linalg.solve(M, right)
    except (np.linalg.LinAlgError, RuntimeError):  # the latter is PyTorch's
        lost = (xp.linalg.slogdet(M)[0] == 0)[:, None, None]
        ones = xp.eye(M.shape[-1], dtype=M.dtype, device=array_api_compat.device(M))
        return xp.where(~lost, xp.linalg.solve(xp.where(lost, ones, M), right), xp.nan)


def inverse_of_triangular(L: Array) -> Array:
    """Inverses of a stack of lower triangular matrices (B, r, r).

    By halves, so that most of the work is matrix products, and by rows where matrices are
    small: several times faster in numpy than the inverse of a matrix without zeros.

    Examples
    --------
    >>> import numpy as np
    >>> inverse_of_triangular(np.array([[[2.0, 0.0], [1.0, 1.0]]]))
    array([[[ 0.5,  0. ],
            [-0.5,  1. ]]])
    """
    xp, r = namespace(L), L.shape[-1]
    if array_api_compat.is_torch_namespace(xp):
        eye = xp.eye(r, dtype=L.dtype, device=array_api_compat.device(L))
        return xp.linalg.solve_triangular(L, eye, upper=False)
    if type(L) is np.ndarray and L.shape[0] <= _FEW and r > _SMALL:
        # Compiled, but one matrix a call.
        return np.stack([lapack.dtrtri(each, lower=1)[0] for each in L]) if len(L) else L
    result = xp.zeros_like(L)
    if r <= _SMALL:
        for i in range(r):
            pivot = 1.0 / L[:, i, i]
            result[:, i, i] = pivot
            if i:
                row = xp.matmul(L[:, i : i + 1, :i], result[:, :i, :i])
                result[:, i, :i] = -pivot[:, None] * row[:, 0, :]
        return result
    half = r // 2
    above = inverse_of_triangular(L[:, :half, :half])
    below = inverse_of_triangular(L[:, half:, half:])
    result[:, :half, :half], result[:, half:, half:] = above, below
    result[:, half:, :half] = -xp.matmul(below, xp.matmul(L[:, half:, :half], above))
    return result


@dataclass(frozen=True)
class Triangle:
    """Symmetric (w, w) matrices as vectors of their w (w + 1) / 2 upper entries, row by row.

    Parameters
    ----------
    width
        Number of rows w.
    upper
        Positions of the upper entries among all w^2, shape (w (w + 1) / 2,).
    source
        For each of the w^2 entries the position of its upper one, shape (w^2,).
    multiplicity
        1 for entries of the diagonal, 2 for others, shape (w (w + 1) / 2,).

    Examples
    --------
    >>> import numpy as np
    >>> triangle = Triangle.of(2, np.zeros(1))
    >>> triangle.pack(np.array([[[1.0, 2.0], [2.0, 3.0]]]))
    array([[1., 2., 3.]])
    >>> triangle.unpack(np.array([[1.0, 2.0, 3.0]]))
    array([[[1., 2.],
            [2., 3.]]])
    """

    width: int
    upper: Array
    source: Array
    multiplicity: Array

    @classmethod
    def of(cls, width: int, example: Array) -> Triangle:
        """The triangle of a width, for matrices of the library and device of ``example``."""
        rows, columns = np.triu_indices(width)
        source = np.empty((width, width), dtype=np.int64)
        source[rows, columns] = source[columns, rows] = np.arange(rows.size)
        return cls(
            width,
            like(rows * width + columns, example),
            like(source.ravel(), example),
            like(np.where(rows == columns, 1.0, 2.0), example),
        )

    def pack(self, matrices: Array) -> Array:
        """Upper entries of matrices (B, w, w), shape (B, w (w + 1) / 2)."""
        xp = namespace(matrices)
        flat = xp.reshape(matrices, (matrices.shape[0], self.width * self.width))
        return xp.take(flat, self.upper, axis=1)

    def unpack(self, packed: Array) -> Array:
        """Matrices (B, w, w) of upper entries (B, w (w + 1) / 2)."""
        xp = namespace(packed)
        full = xp.take(packed, self.source, axis=1)
        return xp.reshape(full, (packed.shape[0], self.width, self.width))
