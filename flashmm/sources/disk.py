"""Y on disk: h5py datasets, zarr arrays, and the groups in which AnnData files hold matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from flashmm.arrays.sparse import UnsoundMatrixError
from flashmm.exceptions import InputError, listing
from flashmm.sources.disk_arrays import disk_array
from flashmm.sources.readers import CompressedReader, DenseReader, Piece, Reader

__all__ = ["disk_reader", "is_on_disk"]

_ENCODINGS = {"csr_matrix": True, "csc_matrix": False}


def is_on_disk(values: Any) -> bool:
    """Whether this is an h5py or zarr dataset, or a group; one of a closed file is refused."""
    module = type(values).__module__.split(".", maxsplit=1)[0]
    if module == "h5py" and not values:
        raise InputError("Y belongs to an HDF5 file that is closed. Open it, and keep it open.")
    return module in ("h5py", "zarr")


def disk_reader(values: Any, *, transposed: bool) -> Reader:
    """A dataset or sparse group; ``transposed``: it is samples x features.

    Raises
    ------
    InputError
        If it is neither, holds no numbers, or cannot be read.
    """
    try:
        return _reader(values, transposed)
    except InputError:
        raise
    except Exception as error:  # whatever h5py and zarr meet in a damaged file
        reason = str(error) or type(error).__name__
        raise InputError(f"Y cannot be read; the file may be damaged: {reason}") from error


def _reader(values: Any, transposed: bool) -> Reader:
    if hasattr(values, "shape"):
        return _dense_reader(values, transposed)
    encoding = str(values.attrs.get("encoding-type", ""))
    if encoding not in _ENCODINGS:
        raise InputError(
            f"Y, the group {values.name!r}, holds {encoding or 'something unknown'!r}; a dense "
            "array, a CSR or a CSC matrix can be read."
        )
    absent = [name for name in ("data", "indices", "indptr") if name not in values]
    if absent:
        raise InputError(f"Y, the group {values.name!r}, lacks {listing(absent)}.")
    for name in ("data", "indices", "indptr"):
        if len(getattr(values[name], "shape", ())) != 1:
            raise InputError(f"Y, the group {values.name!r}: {name!r} is no row of numbers.")
        if name != "data" and values[name].dtype.kind not in "iu":
            raise InputError(f"Y, the group {values.name!r}: {name!r} holds no whole numbers.")
    rows, columns = _shape(values)
    _check_numeric(values["data"].dtype)
    by_rows = _ENCODINGS[encoding]
    return _CompressedOnDisk(
        disk_array(values["data"]),
        disk_array(values["indices"]),
        np.asarray(values["indptr"][:]),
        (columns, rows) if transposed else (rows, columns),
        by_samples=by_rows == transposed,
        kind=f"{encoding[:3].upper()} matrix on disk",
    )


def _shape(group: Any) -> tuple[int, int]:
    """Rows and columns that a sparse group says it has."""
    shape = np.asarray(group.attrs.get("shape", ()))
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or (shape < 0).any():
        raise InputError(
            f"Y, the group {group.name!r}, must give its shape as two whole numbers, not "
            f"{shape.tolist()!r}."
        )
    return int(shape[0]), int(shape[1])


def _dense_reader(values: Any, transposed: bool) -> DenseReader:
    if len(values.shape) != 2:
        raise InputError(
            f"Y must have two dimensions, features x samples; it has {len(values.shape)}."
        )
    _check_numeric(values.dtype)
    chunks = values.chunks or (1, values.shape[1])
    # A slab along an axis reads whole chunks: take the axis that chunks span least of.
    along = 0 if chunks[0] * values.shape[1] <= chunks[1] * values.shape[0] else 1
    return _DenseOnDisk(
        values,
        by_samples=(along == 0) == transposed,
        transposed=transposed,
        multiple=int(chunks[along]),
        kind="dense array on disk",
    )


def _check_numeric(dtype: Any) -> None:
    if np.dtype(dtype).kind not in "iufb":
        raise InputError(f"Y must be numeric; its dtype is {dtype}.")


class _Guarded:
    """Reading whose failures say that the file is damaged; before a reader, whose pieces it has."""

    def pieces(self, block_bytes: int, *, dense: bool) -> Iterator[Piece]:
        pieces = super().pieces(block_bytes, dense=dense)  # type: ignore[misc]
        for number, piece in enumerate(pieces):
            yield replace(piece, read=partial(_guarded, piece.read, number))


class _DenseOnDisk(_Guarded, DenseReader):
    """A dense array on disk."""


class _CompressedOnDisk(_Guarded, CompressedReader):
    """A compressed sparse matrix on disk."""


def _guarded(read: Callable[[], Any], number: int) -> Any:
    try:
        return read()
    except (InputError, MemoryError, UnsoundMatrixError):
        raise
    except Exception as error:  # codecs have errors of their own, such as zlib.error
        raise InputError(
            f"Block {number} of Y cannot be read; the file may be damaged: {error}"
        ) from error
