"""Products of one shared matrix with an array per feature."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["SharedMatrix"]

_DENSE_ENTRIES = 5e7
_DENSE_SHARE = 0.02


@dataclass(frozen=True)
class SharedMatrix:
    """A matrix that is the same for all features, dense or sparse, whichever multiplies faster.

    Parameters
    ----------
    matrix
        Sparse, shape (rows, columns).
    """

    matrix: sp.csr_array

    @cached_property
    def _operands(self) -> tuple[FloatArray | sp.csr_array, FloatArray | sp.csr_array]:
        """The matrix and its transpose."""
        rows, columns = self.matrix.shape
        size = rows * columns
        if size <= _DENSE_ENTRIES and self.matrix.nnz > _DENSE_SHARE * size:
            dense = self.matrix.toarray()
            return dense, np.ascontiguousarray(dense.T)
        return self.matrix, sp.csr_array(self.matrix.T)

    def times(self, values: FloatArray) -> FloatArray:
        """M v for v (columns, B), shape (rows, B)."""
        return np.asarray(self._operands[0] @ values)

    def transposed_times(self, values: FloatArray) -> FloatArray:
        """M'v for v (rows, B), shape (columns, B)."""
        return np.asarray(self._operands[1] @ values)
