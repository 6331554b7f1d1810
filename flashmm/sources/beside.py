"""Tables beside Y: weights and covariates of each feature and sample, read where Y's blocks lie."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.arrays.labels import is_default
from flashmm.arrays.numeric import unmasked
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.exceptions import InputError, listing
from flashmm.sources.dask_arrays import DaskReader
from flashmm.sources.make import labelled
from flashmm.sources.match_samples import match_samples
from flashmm.sources.readers import CompressedReader, DenseReader, Labelled
from flashmm.sources.source import Source

__all__ = ["Beside", "beside", "beside_of"]


@dataclass(frozen=True)
class Beside:
    """Numbers for the features and samples of Y.

    Parameters
    ----------
    name
        What they are, for messages.
    values
        Array-like of two dimensions, or a sparse matrix, that can be sliced.
    transposed
        Whether it is samples x features.
    rows
        Its row for each feature of Y in use; None where they agree.
    columns
        Its column for each sample of the design; None where they agree.
    """

    name: str
    values: Any
    transposed: bool
    rows: IntArray | None
    columns: IntArray | None

    def read(self, features: slice | IntArray, samples: slice | IntArray) -> FloatArray:
        """The numbers of some features and samples of the design, shape (f, n_b)."""
        here = features if self.rows is None else self.rows[features]
        there = samples if self.columns is None else self.columns[samples]
        first, second = (there, here) if self.transposed else (here, there)
        part = _part(self.values, _as_slice(first), _as_slice(second))
        if sp.issparse(part):
            part = part.toarray()
        elif hasattr(part, "todense"):
            part = part.todense()
        part = unmasked(part).astype(np.float64, copy=False)
        return part.T if self.transposed else part

    def restricted(self, keep: BoolArray) -> Beside:
        """With only some of the samples of the design."""
        columns = np.arange(keep.size) if self.columns is None else self.columns
        return replace(self, columns=columns[keep])

    def at(self, positions: IntArray, m: int) -> Beside:
        """With only some of the m features in use."""
        rows = np.arange(m) if self.rows is None else self.rows
        return replace(self, rows=rows[positions])


def beside(
    values: Any, name: str, source: Source, samples: pd.Index | None, rows: str = "features"
) -> Beside:
    """Match a table to the features of Y in use and to the samples of the design.

    By label where both sides carry labels, else by position.

    Parameters
    ----------
    values
        Features x samples, of any kind that Y may be of but an iterable of blocks.
    name
        What it is, for messages.
    source
        Y; none of the samples of the design is dropped yet.
    samples
        Index of the design's data.
    rows
        As in `make_source`.

    Raises
    ------
    InputError
        If it does not match, or is not numeric.
    """
    try:
        read = labelled(values, samples, source.n, rows == "samples")
        return beside_of(read, name, source, samples)
    except InputError as error:
        raise InputError(re.sub(r"\bY\b", f"`{name}`", str(error))) from None


def beside_of(read: Labelled, name: str, source: Source, samples: pd.Index | None) -> Beside:
    """Match a table that has been opened; see `beside`."""
    if read.reader.one_pass:
        raise InputError(
            f"`{name}` comes as blocks that can be had only once, but must be read where Y's "
            "blocks lie. Pass an array or a file."
        )
    position = match_samples(read, samples, source.n)
    columns = None
    if position is not None:
        columns = np.empty(source.n, dtype=np.intp)
        columns[position] = np.arange(position.size)
    return Beside(name, *_sliceable(read.reader), _rows_of(read, name, source), columns)


def _rows_of(read: Labelled, name: str, source: Source) -> IntArray | None:
    """The row of each feature of Y in use."""
    m, names, mine = read.reader.shape[0], source.feature_names, read.features
    counted = np.arange(source.m) if source.chosen is None else source.chosen
    plain = names.dtype.kind in "iu" and np.array_equal(names, counted)
    if mine is None or (plain and not _same_numbers(mine, source.reader.shape[0])):
        return _by_position(m, name, source)
    if is_default(mine) and not (names.dtype.kind in "iu" and np.isin(names, mine).all()):
        return _by_position(m, name, source)
    known = pd.Index(mine) if names.dtype.kind in "iu" else pd.Index([str(x) for x in mine])
    if not known.is_unique:
        repeated = known[known.duplicated()].unique()
        raise InputError(f"`{name}` has duplicate feature labels: {listing(repeated)}.")
    position = known.get_indexer(pd.Index(names))
    if (position < 0).any():
        raise InputError(
            f"The features of `{name}` and of the responses do not match by label; without a row "
            f"in `{name}`: {listing(names[position < 0])}."
        )
    return None if np.array_equal(position, np.arange(m)) else np.asarray(position)


def _same_numbers(labels: pd.Index, m: int) -> bool:
    """Whether labels are 0, ..., m - 1 in another order, as of rows that were shuffled."""
    return labels.size == m and bool(pd.Index(np.arange(m)).isin(labels).all())


def _by_position(m: int, name: str, source: Source) -> IntArray | None:
    if m != source.reader.shape[0]:
        raise InputError(
            f"`{name}` has {m} features (rows), but there are {source.reader.shape[0]} responses. "
            "It is features x samples, as they are."
        )
    return source.chosen


def _sliceable(reader: Any) -> tuple[Any, bool]:
    """What a reader reads, as something that can be sliced, and whether it is samples x ..."""
    if isinstance(reader, (DenseReader, DaskReader)):
        return reader.values, reader.transposed
    if isinstance(reader, CompressedReader):
        arrays = (np.asarray(reader.data[:]), np.asarray(reader.indices[:]), reader.indptr)
        made = sp.csc_array if reader.by_samples else sp.csr_array
        return sp.csr_array(made(arrays, shape=reader.shape)), False
    raise InputError(
        f"a {reader.kind} cannot be read where Y's blocks lie. Pass an array or a file."
    )


def _as_slice(index: slice | IntArray) -> slice | IntArray:
    """A run of positions as a slice."""
    if isinstance(index, slice) or index.size == 0:
        return index
    start = int(index[0])
    if np.array_equal(index, np.arange(start, start + index.size)):
        return slice(start, start + index.size)
    return index


def _part(values: Any, first: slice | IntArray, second: slice | IntArray) -> Any:
    """Some rows and columns, of what may know slices alone."""
    if hasattr(values, "__dask_graph__"):
        return values[first][:, second].compute()
    if sp.issparse(values):
        return values[first][:, second]
    if hasattr(values, "oindex"):  # zarr
        return values.oindex[first, second]
    if isinstance(values, np.ndarray):
        if isinstance(first, slice):
            return values[first][:, second]
        return values[:, second][first]
    outer, inner = (_span(index) for index in (first, second))
    found = values[outer[0], inner[0]]  # an HDF5 dataset, or a frame
    return found[outer[1]][:, inner[1]]


def _span(index: slice | IntArray) -> tuple[slice, slice | IntArray]:
    """A slice that covers positions, and the positions in it."""
    if isinstance(index, slice) or index.size == 0:
        return (index, slice(None)) if isinstance(index, slice) else (slice(0, 0), slice(None))
    low, high = int(index.min()), int(index.max()) + 1
    return slice(low, high), index - low
