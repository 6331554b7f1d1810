"""Compiled sums over the elements of sparse matrices, added to what is there.

scipy's own loops, called without the matrices around them: at a nanosecond or two per element, the
checks, conversions and temporary arrays of those would take most of the time. They are no public
interface: where a version of scipy lacks one, its public products stand in. Nothing is checked
here: indices lie inside, and arrays have the shapes that are stated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import FloatArray

try:
    from scipy.sparse import _sparsetools as _loops
except ImportError:  # another scipy
    _loops = None

if TYPE_CHECKING:
    from numpy.typing import NDArray

    IntArray = NDArray[Any]

__all__ = ["add_by_row", "add_products", "add_rows", "assembled", "in_place", "taken_columns"]

_NAMES = ("coo_todense", "csr_todense", "csc_matvecs", "csr_row_index")


def in_place() -> bool:
    """Whether sums are added in place: no arrays as large as the sums are made on the way."""
    return all(hasattr(_loops, name) for name in _NAMES)


def add_rows(indptr: IntArray, indices: IntArray, data: FloatArray, into: FloatArray) -> None:
    """Add a CSR matrix to a dense one, ``into`` (r, c), best contiguous by rows.

    Places that occur more than once are summed, so that a "row" may be that of many samples.
    """
    r, c = into.shape
    if not (in_place() and into.flags.c_contiguous):
        into += sp.csr_array((data, indices, indptr), shape=into.shape).toarray()
        return
    _loops.csr_todense(r, c, indptr.astype(indices.dtype), indices, data, into.reshape(-1))


def add_by_row(rows: IntArray, indices: IntArray, data: FloatArray, into: FloatArray) -> None:
    """Add elements at (rows, indices), each (nnz,), to ``into`` (r, c), best contiguous by rows."""
    if not (in_place() and into.flags.c_contiguous):
        into += sp.coo_array((data, (rows, indices)), shape=into.shape).toarray()
        return
    rows = rows.astype(indices.dtype, copy=False)
    _loops.coo_todense(*into.shape, data.size, rows, indices, data, into.reshape(-1), 0)


def add_products(values: Any, columns: FloatArray, into: FloatArray) -> None:
    """Add the product of a csc_array (m, n) and columns (n, k) to ``into`` (m, k)."""
    if not (in_place() and into.flags.c_contiguous):
        into += values @ columns
        return
    vectors = np.ascontiguousarray(columns).reshape(-1)
    parts = values.indptr, values.indices, values.data, vectors, into.reshape(-1)
    _loops.csc_matvecs(*values.shape, columns.shape[1], *parts)


def assembled(kind: Any, data: Any, indices: Any, indptr: Any, shape: tuple[int, int]) -> Any:
    """A compressed array of parts that are known to fit, sharing their memory.

    Parameters
    ----------
    kind
        csr_array or csc_array. Its constructor would copy parts that are views of larger arrays.
    """
    made = kind(shape, dtype=data.dtype)
    made.data, made.indices, made.indptr = data, indices, indptr
    return made


def taken_columns(values: Any, columns: IntArray) -> Any:
    """Some columns of a csc_array in some order, elements as they were stored."""
    if not in_place():
        return values[:, columns]
    index = values.indices.dtype
    columns = columns.astype(index, copy=False)
    sizes = np.diff(values.indptr)[columns]
    indptr = np.zeros(columns.size + 1, dtype=index)
    np.cumsum(sizes, out=indptr[1:])
    indices, data = (np.empty(int(indptr[-1]), x.dtype) for x in (values.indices, values.data))
    given = values.indptr, values.indices, values.data
    _loops.csr_row_index(columns.size, columns, *given, indices, data)
    return assembled(sp.csc_array, data, indices, indptr, (values.shape[0], columns.size))
