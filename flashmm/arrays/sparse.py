"""The gate for sparse matrices: indices and pointers are sound before compiled code trusts them.

scipy checks little of what it is given and nothing of what is changed later; an index outside the
matrix then reads and writes memory that belongs to others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from flashmm.exceptions import InputError

__all__ = ["UnsoundMatrixError", "check_indices", "check_pointer", "check_sparse", "compressed"]


class UnsoundMatrixError(InputError):
    """A sparse matrix whose parts contradict each other."""

    def __init__(self, fault: str, what: str | None = None) -> None:
        super().__init__(f"{what or 'It'} is no sound sparse matrix: {fault}.")
        self.fault, self.what = fault, what

    def __reduce__(self) -> tuple[Any, ...]:  # workers send it as its parts
        return type(self), (self.fault, self.what)

    def named(self, what: str) -> UnsoundMatrixError:
        """The same fault, of something with a name."""
        return UnsoundMatrixError(self.fault, what)


def compressed(matrix: Any, what: str) -> Any:
    """A sparse matrix as CSC if it is that, else as two-dimensional CSR, once it is sound.

    Parameters
    ----------
    matrix
        Any format of scipy.sparse, shape (r, c) or (c,).
    what
        What to call it in a message.

    Returns
    -------
    csr_array or csc_array
        Sharing the memory of ``matrix`` where it can.
    """
    check_sparse(matrix, what)
    if matrix.format == "csc":
        return sp.csc_array(matrix)
    return sp.csr_array(matrix.reshape(1, -1) if matrix.ndim == 1 else matrix)


def check_sparse(matrix: Any, what: str) -> None:
    """Raise if the parts of a sparse matrix of scipy, of any format, do not fit together."""
    try:
        _check_format(matrix)
    except UnsoundMatrixError as error:
        raise error.named(what) from None


def _check_format(matrix: Any) -> None:
    shape = (1, *matrix.shape) if len(matrix.shape) == 1 else matrix.shape
    if matrix.format in ("csr", "csc", "bsr"):
        if matrix.format == "csc":
            shape = shape[::-1]
        elif matrix.format == "bsr":
            rows, columns = (int(size) for size in matrix.data.shape[1:])
            if min(rows, columns) < 1 or shape[0] % rows or shape[1] % columns:
                raise UnsoundMatrixError(f"blocks of {rows} x {columns} do not make up its shape")
            shape = shape[0] // rows, shape[1] // columns
        check_pointer(matrix.indptr, shape[0], len(matrix.data), len(matrix.indices))
        check_indices(matrix.indices, shape[1])
    elif matrix.format == "coo":
        for index, length in zip(_coordinates(matrix), matrix.shape, strict=True):
            if len(index) != len(matrix.data):
                raise UnsoundMatrixError(
                    f"it has {len(matrix.data)} elements, but {len(index)} positions"
                )
            check_indices(index, length)
    elif matrix.format == "lil":
        for columns, values in zip(matrix.rows, matrix.data, strict=True):
            if len(columns) != len(values):
                raise UnsoundMatrixError("a row has more positions than elements, or fewer")
            check_indices(np.asarray(columns, dtype=np.int64), shape[1])
    elif matrix.format == "dok":
        keys = np.array(list(matrix.keys()), dtype=np.int64).reshape(-1, len(matrix.shape))
        for index, length in zip(keys.T, matrix.shape, strict=True):
            check_indices(index, length)


def _coordinates(matrix: Any) -> tuple[NDArray[Any], ...]:
    """Positions along each axis; older versions of scipy name two."""
    return tuple(getattr(matrix, "coords", None) or (matrix.row, matrix.col))


def check_pointer(indptr: Any, length: int, *stored: int) -> None:
    """Raise unless a pointer goes from 0 to the number of stored elements without falling.

    Parameters
    ----------
    indptr
        Where each row (or column) starts, shape (length + 1,).
    length
        Rows (or columns).
    stored
        Lengths of the arrays of elements and indices.
    """
    if indptr.ndim != 1 or indptr.size != length + 1:
        raise UnsoundMatrixError(
            f"its index pointer has {indptr.size} entries, but must have {length + 1}"
        )
    if indptr.dtype.kind not in "iu":
        raise UnsoundMatrixError(f"its index pointer is {indptr.dtype}, not whole numbers")
    if indptr[0] != 0:
        raise UnsoundMatrixError(f"its index pointer starts at {indptr[0]}, not at 0")
    falling = np.flatnonzero(indptr[1:] < indptr[:-1])
    if falling.size:
        at = int(falling[0])
        raise UnsoundMatrixError(
            f"its index pointer falls from {indptr[at]} to {indptr[at + 1]} after entry {at}"
        )
    for size in stored:
        if indptr[-1] != size:
            raise UnsoundMatrixError(
                f"its index pointer ends at {indptr[-1]}, but {size} elements or indices are stored"
            )


def check_indices(indices: Any, width: int) -> None:
    """Raise unless all indices lie between 0 and ``width - 1``."""
    if indices.size == 0:
        return
    if indices.dtype.kind not in "iu":
        raise UnsoundMatrixError(f"its indices are {indices.dtype}, not whole numbers")
    largest = indices.max()
    wrong = largest if largest >= width else indices.min()
    if not 0 <= wrong < width:
        raise UnsoundMatrixError(f"index {wrong} lies outside 0 to {width - 1}")
