"""Y in memory: arrays, frames, sparse matrices and DataArrays, with their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.arrays.labels import is_default
from flashmm.arrays.numeric import numeric_array
from flashmm.arrays.sparse import compressed
from flashmm.exceptions import InputError, listing
from flashmm.sources.readers import CompressedReader, DenseReader, Labelled

__all__ = ["array_reader", "read_memory", "sparse_reader"]


@dataclass(frozen=True)
class _FrameValues:
    """A frame of numeric columns that is sliced into float64."""

    frame: pd.DataFrame

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.frame.shape[0]), int(self.frame.shape[1]))

    def __getitem__(self, key: tuple[slice, slice]) -> Any:
        return self.frame.iloc[key].to_numpy(dtype=np.float64, na_value=np.nan)


def read_memory(Y: Any, *, transposed: bool = False) -> Labelled:
    """A Series, DataFrame, sparse matrix, or anything that numpy makes an array of numbers of.

    ``transposed``: it is samples x features.
    """
    if sp.issparse(Y):
        return Labelled(sparse_reader(Y, transposed=transposed))
    if transposed:
        Y = Y.T if hasattr(Y, "T") else np.asarray(Y).T
    if isinstance(Y, pd.Series):
        frame = _numeric_frame(Y.to_frame())
        name = None if Y.name is None else pd.Index([Y.name])
        values = frame.to_numpy(dtype=np.float64, na_value=np.nan).T
        return Labelled(DenseReader(values), name, Y.index)
    if isinstance(Y, pd.DataFrame):
        features = None if is_default(Y.index) else Y.index
        return Labelled(_frame_reader(Y), features, Y.columns)
    return Labelled(array_reader(Y))


def array_reader(Y: Any) -> DenseReader:
    """A dense array; slabs follow its layout in memory."""
    values = numeric_array(Y, "Y")
    if values.ndim == 1:
        values = values[None, :]
    if values.ndim != 2:
        raise InputError(f"Y must have two dimensions, features x samples; it has {values.ndim}.")
    return DenseReader(values, by_samples=values.flags.f_contiguous and values.shape[0] > 1)


def sparse_reader(Y: Any, *, transposed: bool = False) -> CompressedReader:
    """A sparse matrix by its compressed axis; other formats become CSR.

    ``transposed``: it is samples x features. Its parts go to the reader as they are, which checks
    them block by block: scipy would turn a broken matrix round, or copy it, without a look.
    """
    if Y.dtype.kind not in "iufb":
        raise InputError(f"Y must be numeric; its dtype is {Y.dtype}.")
    values = Y if Y.format in ("csr", "csc") and Y.ndim == 2 else compressed(Y, "Y")
    rows, columns = int(values.shape[0]), int(values.shape[1])
    return CompressedReader(
        values.data,
        values.indices,
        values.indptr,
        (columns, rows) if transposed else (rows, columns),
        by_samples=(values.format == "csc") != transposed,
        kind=f"{values.format.upper()} matrix in memory",
    )


def _frame_reader(frame: pd.DataFrame) -> CompressedReader | DenseReader:
    """A frame of numeric columns, by CSR where all columns are sparse."""
    sparse = frame.shape[1] > 0 and all(
        isinstance(dtype, pd.SparseDtype) and dtype.fill_value == 0 for dtype in frame.dtypes
    )
    if sparse:
        return sparse_reader(frame.sparse.to_coo())
    return DenseReader(_FrameValues(_numeric_frame(frame)), kind="DataFrame")


def _numeric_frame(frame: pd.DataFrame) -> pd.DataFrame:
    if len(frame.dtypes) and all(dtype.name == "object" for dtype in frame.dtypes):
        values = numeric_array(frame.to_numpy(dtype=object), "Y")
        return pd.DataFrame(values, index=frame.index, columns=frame.columns)
    numeric = np.array(
        [
            pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)
            for dtype in frame.dtypes
        ],
        dtype=bool,
    )
    if not numeric.all():
        raise InputError(
            f"Y must be numeric; these columns are not: {listing(frame.columns[~numeric])}. "
            "If one of them holds the feature names, make it the index."
        )
    return frame
