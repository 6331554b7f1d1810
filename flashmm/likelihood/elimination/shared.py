"""Products of one shared matrix with an array per feature."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np
import scipy.sparse as sp

from flashmm.arrays.namespaces import Array, like, to_numpy

__all__ = ["SharedMatrix"]

_DENSE_ENTRIES = 5e7
_DENSE_SHARE = 0.02


@dataclass(frozen=True)
class SharedMatrix:
    """A matrix that is the same for all features, dense or sparse, whichever multiplies faster.

    Parameters
    ----------
    shape
        Rows and columns.
    nnz
        Entries that are not zero.
    matrix, transposed
        The matrix and its transpose: arrays, or sparse matrices of scipy or PyTorch.
    """

    shape: tuple[int, int]
    nnz: int
    matrix: Any
    transposed: Any

    @classmethod
    def of(cls, matrix: sp.csr_array) -> SharedMatrix:
        """From a sparse matrix, for numpy's arrays."""
        rows, columns = matrix.shape
        size = rows * columns
        if size <= _DENSE_ENTRIES and matrix.nnz > _DENSE_SHARE * size:
            dense = matrix.toarray()
            return cls((rows, columns), size, dense, np.ascontiguousarray(dense.T))
        return cls((rows, columns), int(matrix.nnz), matrix, sp.csr_array(matrix.T))

    def on(self, example: Array) -> SharedMatrix:
        """The same for arrays of the library and on the device of ``example``."""
        return SharedMatrix(
            self.shape, self.nnz, _on(self.matrix, example), _on(self.transposed, example)
        )

    def times(self, values: Array) -> Array:
        """M v for v (columns, B), shape (rows, B)."""
        return _product(self.matrix, values)

    def transposed_times(self, values: Array) -> Array:
        """M'v for v (rows, B), shape (columns, B)."""
        return _product(self.transposed, values)


def _on(matrix: Any, example: Array) -> Any:
    if not sp.issparse(matrix):
        return like(matrix, example)
    if not array_api_compat.is_torch_array(example):
        return matrix
    xp = array_api_compat.array_namespace(example)
    with warnings.catch_warnings():
        # PyTorch calls its sparse matrices experimental, once.
        warnings.simplefilter("ignore", UserWarning)
        return xp.sparse_csr_tensor(
            like(matrix.indptr.astype(np.int64), example),
            like(matrix.indices.astype(np.int64), example),
            like(matrix.data, example),
            size=matrix.shape,
        )


def _product(matrix: Any, values: Array) -> Array:
    if sp.issparse(matrix) and not array_api_compat.is_numpy_array(values):
        return like(matrix @ to_numpy(values), values)  # a library without sparse matrices
    return matrix @ values
