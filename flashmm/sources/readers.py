"""Pieces of Y and how large they are: what every kind of Y hands out, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from flashmm.arrays.compiled import assembled
from flashmm.arrays.numeric import unmasked
from flashmm.arrays.sparse import UnsoundMatrixError, check_indices, check_pointer
from flashmm.arrays.types import IntArray

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BLOCK_BYTES", "CompressedReader", "DenseReader", "Labelled", "Piece", "Reader", "spans"]

# Large enough that the sums of a block, (p + q) x m, cost less than its elements; small enough
# that a few blocks at once are nothing.
BLOCK_BYTES = 2**26


@dataclass(frozen=True)
class Piece:
    """Where a piece of Y lies, and how to read it.

    Parameters
    ----------
    features, samples
        The rows and columns of Y (features x samples) that it covers; samples may be positions.
    read
        Gives the values, shape (f, n_b): ndarray, csr_array (stored by feature) or csc_array
        (stored by sample).
    number
        Position among the blocks that Y came in, for messages; None to count the pieces.
    """

    features: slice
    samples: slice | IntArray
    read: Callable[[], Any]
    number: int | None = None


class Reader(Protocol):
    """One kind of Y, features x samples."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    @property
    def sparse(self) -> bool:
        """Whether pieces are sparse."""

    @property
    def whole_samples(self) -> bool:
        """Whether every piece holds all features of its samples."""

    @property
    def one_pass(self) -> bool:
        """Whether the pieces can be had only once."""

    @property
    def kind(self) -> str:
        """What Y is, for the log."""

    def pieces(self, block_bytes: int, *, dense: bool) -> Iterable[Piece]:
        """Pieces of about ``block_bytes``; ``dense``: they will be made dense."""


@dataclass(frozen=True)
class Labelled:
    """A kind of Y with the labels it came with; None where there are none."""

    reader: Reader
    features: pd.Index | None = None
    samples: pd.Index | None = None


def spans(length: int, width: int, multiple: int = 1) -> Iterator[slice]:
    """Slices of about ``width`` that cover ``length``, whole multiples where there is room."""
    width = max(1, width // multiple * multiple or min(width, length))
    for start in range(0, length, width):
        yield slice(start, min(start + width, length))


@dataclass(frozen=True)
class DenseReader:
    """A dense two-dimensional array that can be sliced: in memory, memory-mapped, on disk.

    Parameters
    ----------
    values
        Array-like with shape, dtype and two-dimensional slices.
    by_samples
        Whether slices of samples are what its storage favours.
    transposed
        Whether ``values`` is samples x features.
    multiple
        Samples or features that a chunk of the storage spans along the sliced axis.
    kind
        What Y is, for the log.
    """

    values: Any
    by_samples: bool = False
    transposed: bool = False
    multiple: int = 1
    kind: str = "dense array"

    sparse = False
    one_pass = False

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        rows, columns = (int(size) for size in self.values.shape)
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def whole_samples(self) -> bool:
        """Whether every piece holds all features of its samples."""
        return self.by_samples

    def pieces(self, block_bytes: int, *, dense: bool) -> Iterator[Piece]:  # noqa: ARG002
        """Slabs of samples or of features."""
        m, n = self.shape
        along, across = (n, m) if self.by_samples else (m, n)
        for span in spans(along, block_bytes // (8 * max(across, 1)), self.multiple):
            features, samples = (slice(0, m), span) if self.by_samples else (span, slice(0, n))
            yield Piece(features, samples, self._reading(features, samples))

    def _reading(self, features: slice, samples: slice) -> Callable[[], Any]:
        def read() -> Any:
            if self.transposed:
                return unmasked(self.values[samples, features]).T
            return unmasked(self.values[features, samples])

        return read


@dataclass(frozen=True)
class CompressedReader:
    """A compressed sparse matrix, in memory or on disk: its three arrays are sliced alike.

    Parameters
    ----------
    data, indices
        Stored elements and their positions on the other axis, shape (nnz,); ndarray, h5py
        dataset or zarr array.
    indptr
        Where each row (or column) starts, in memory.
    shape
        (m, n) of Y, features x samples.
    by_samples
        Whether the elements are stored sample by sample (CSR of cells x genes).
    canonical
        Whether every element is known to be stored once.
    kind
        What Y is, for the log.
    """

    data: Any
    indices: Any
    indptr: NDArray[Any]
    shape: tuple[int, int]
    by_samples: bool
    canonical: bool = False
    kind: str = "sparse matrix"

    sparse = True
    one_pass = False

    def __post_init__(self) -> None:
        along = self.shape[1 if self.by_samples else 0]
        if self.indptr.size != along + 1:
            raise UnsoundMatrixError(
                f"its index pointer has {self.indptr.size} entries, but must have {along + 1}", "Y"
            )

    @property
    def whole_samples(self) -> bool:
        """Whether every piece holds all features of its samples."""
        return self.by_samples

    def pieces(self, block_bytes: int, *, dense: bool) -> Iterator[Piece]:
        """Slabs along the compressed axis, by their stored elements."""
        m, n = self.shape
        along, across = (n, m) if self.by_samples else (m, n)
        bytes_each = self.data.dtype.itemsize + self.indices.dtype.itemsize
        budget = max(1, block_bytes // bytes_each)
        longest = max(1, block_bytes // (8 * max(across, 1))) if dense else max(along, 1)
        start = 0
        while start < along:
            end = min(int(self.indptr[start]) + budget, int(self.indptr[-1]))
            stop = int(np.searchsorted(self.indptr, end, side="right")) - 1
            stop = min(max(stop, start + 1), start + longest, along)
            span = slice(start, stop)
            features, samples = (slice(0, m), span) if self.by_samples else (span, slice(0, n))
            yield Piece(features, samples, self._reading(start, stop, across))
            start = stop

    def _reading(self, start: int, stop: int, across: int) -> Callable[[], Any]:
        def read() -> Any:
            low, high = self._span(start, stop)
            data, indices = np.asarray(self.data[low:high]), np.asarray(self.indices[low:high])
            indptr = self.indptr[start : stop + 1] - low
            check_pointer(indptr, stop - start, data.size, indices.size)
            check_indices(indices, across)
            if max(across, indices.size) <= np.iinfo(np.int32).max:
                # One kind of index, and the small one: scipy would bring all to the larger.
                indices, indptr = (x.astype(np.int32, copy=False) for x in (indices, indptr))
            else:
                indices, indptr = (x.astype(np.int64, copy=False) for x in (indices, indptr))
            kind, shape = sp.csr_array, (stop - start, across)
            if self.by_samples:
                kind, shape = sp.csc_array, shape[::-1]
            values = assembled(kind, data, indices, indptr, shape)
            if self.canonical:
                values.has_canonical_format = True
            return values

        return read

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        """Where the stored elements of some rows (or columns) begin and end."""
        low, high = int(self.indptr[start]), int(self.indptr[stop])
        stored, elements = int(self.indices.shape[0]), int(self.data.shape[0])
        if stored != elements:
            raise UnsoundMatrixError(f"it has {elements} elements, but {stored} indices")
        if start == 0 and low != 0:
            raise UnsoundMatrixError(f"its index pointer starts at {low}, not at 0")
        if not 0 <= low <= high <= stored:
            raise UnsoundMatrixError(
                f"its index pointer goes from {low} to {high}, of {stored} stored elements"
            )
        if stop + 1 == self.indptr.size and high != stored:
            raise UnsoundMatrixError(
                f"its index pointer ends at {high}, but {stored} elements are stored"
            )
        return low, high
