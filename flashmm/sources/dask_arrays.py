"""Y as a dask array, dense or of sparse blocks: computed one piece at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from flashmm.arrays.numeric import unmasked
from flashmm.arrays.sparse import UnsoundMatrixError, compressed
from flashmm.exceptions import InputError, listing
from flashmm.sources.readers import Piece

__all__ = ["DaskReader", "dask_reader", "is_dask", "joined_chunks"]


def is_dask(values: Any) -> bool:
    """Whether this is a dask array."""
    return hasattr(values, "__dask_graph__") and hasattr(values, "numblocks")


def dask_reader(values: Any, *, transposed: bool = False) -> DaskReader:
    """A dask array; ``transposed``: it is samples x features."""
    if values.ndim == 1:
        values = values[None, :]
    if values.ndim != 2:
        raise InputError(f"Y must have two dimensions, features x samples; it has {values.ndim}.")
    if np.isnan([size for sizes in values.chunks for size in sizes]).any():
        raise InputError(
            "Y is a dask array with chunks of unknown size; call Y.compute_chunk_sizes() first."
        )
    if np.dtype(values.dtype).kind not in "iufb":
        raise InputError(f"Y must be numeric; its dtype is {values.dtype}.")
    return DaskReader(values, transposed)


@dataclass(frozen=True)
class DaskReader:
    """Pieces along the chunks of a dask array.

    Parameters
    ----------
    values
        Two-dimensional dask array.
    transposed
        Whether it is samples x features.
    """

    values: Any
    transposed: bool

    one_pass = False
    kind = "dask array"

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        rows, columns = (int(size) for size in self.values.shape)
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def sparse(self) -> bool:
        """Whether pieces are sparse."""
        meta = self.values._meta
        return bool(sp.issparse(meta)) or hasattr(meta, "to_scipy_sparse")

    @property
    def whole_samples(self) -> bool:
        """Whether every piece holds all features of its samples."""
        return bool(len(self._edges()[1 if self.transposed else 0]) <= 2)

    def _edges(self) -> list[NDArray[Any]]:
        """Where chunks begin and end along each axis; a filter leaves chunks that hold nothing."""
        return [np.unique(np.cumsum([0, *sizes])) for sizes in self.values.chunks]

    def runs(self, block_bytes: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of `values` that go together: whole chunks, no empty ones alone.

        Runs of chunks up to ``block_bytes`` along one axis; single chunks where both are cut.
        """
        edges = self._edges()
        width = max(1, block_bytes // 8)
        if self.sparse:  # a guess at how full the blocks are: no more than a tenth
            width *= 10
        for axis in (0, 1):
            if edges[1 - axis].size <= 2:
                edges[axis] = _joined(edges[axis], width // max(1, self.values.shape[1 - axis]))
        for rows, columns in itertools.product(*map(itertools.pairwise, edges)):
            yield slice(*map(int, rows)), slice(*map(int, columns))

    def pieces(self, block_bytes: int, *, dense: bool) -> Iterator[Piece]:  # noqa: ARG002
        """Runs of chunks, each computed when it is read."""
        chunks_of = self.chunks()
        for rows, columns in self.runs(block_bytes):
            features, samples = (columns, rows) if self.transposed else (rows, columns)
            shape = rows.stop - rows.start, columns.stop - columns.start
            yield Piece(features, samples, self._reading(chunks_of(rows, columns), shape))

    def chunks(self) -> Callable[[slice, slice], list[list[Any]]]:
        """Gives the chunks of a run that hold something, row by row, not computed."""
        grid = self.values.to_delayed()
        held = [np.flatnonzero(sizes) for sizes in self.values.chunks]
        starts = [
            np.cumsum(sizes)[at] - np.asarray(sizes)[at]
            for sizes, at in zip(self.values.chunks, held, strict=True)
        ]

        def chunks_of(rows: slice, columns: slice) -> list[list[Any]]:
            across, down = (
                at[slice(*np.searchsorted(start, [run.start, run.stop]).tolist())]
                for at, start, run in zip(held, starts, (rows, columns), strict=True)
            )
            return [list(row) for row in grid[np.ix_(across, down)]]

        return chunks_of

    def _reading(self, chunks: list[list[Any]], shape: tuple[int, int]) -> Callable[[], Any]:
        def read() -> Any:
            import dask  # noqa: PLC0415  (an optional package, which made the array)

            # Chunk by chunk: dask would join sparse ones before they are known to be sound.
            return joined_chunks(dask.compute(chunks)[0], shape, self.transposed)

        return read


def joined_chunks(chunks: list[list[Any]], shape: tuple[int, int], transposed: bool) -> Any:
    """Computed chunks, row by row, as one piece of features x samples.

    Parameters
    ----------
    chunks
        ndarrays, matrices of scipy, or arrays of the package sparse.
    shape
        What the dask array says of them together.
    transposed
        Whether they are samples x features.

    Returns
    -------
    ndarray, csr_array or csc_array

    Raises
    ------
    InputError
        If they are of another shape, as where a function mapped over blocks drops some rows.
    """
    rows = [[_plain(chunk) for chunk in row] for row in chunks]
    first = rows[0][0]
    sizes = [[chunk.shape for chunk in row] for row in rows]
    fits = all(
        len(size) == 2 and (size[0], across[1]) == (row[0][0], size[1])
        for row in sizes
        for size, across in zip(row, sizes[0], strict=True)
    )
    total = sum(row[0][0] for row in sizes) if fits else 0, sum(size[-1] for size in sizes[0])
    if not fits or total != shape:
        found = listing([size for row in sizes for size in row])
        raise InputError(
            f"Blocks of Y have the shapes {found}, where "
            f"the dask array says that they make up {shape}. Tell dask the sizes that its blocks "
            "have (`chunks` of map_blocks)."
        )
    if len(rows) == len(rows[0]) == 1:
        values = first
    elif any(sp.issparse(chunk) for row in rows for chunk in row):
        by_columns = sp.issparse(first) and first.format == "csc"
        values = sp.block_array(rows, format="csc" if by_columns else "csr")
    else:
        values = np.block(rows)
    return values.T if transposed else values


def _plain(values: Any) -> Any:
    if hasattr(values, "to_scipy_sparse"):
        try:
            values = values.to_scipy_sparse()
        except ValueError as error:
            raise UnsoundMatrixError(str(error)) from error
    return compressed(values, "Y") if sp.issparse(values) else unmasked(values)


def _joined(edges: Any, width: int) -> Any:
    """Edges of runs of chunks that span no more than ``width``, or are single chunks."""
    kept = [int(edges[0])]
    for before, edge in itertools.pairwise(edges):
        if edge - kept[-1] > width and before > kept[-1]:
            kept.append(int(before))
    if edges[-1] > kept[-1]:
        kept.append(int(edges[-1]))
    return np.array(kept)
