"""make_source: whatever Y is -> a source whose samples are in the order of the design."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import scipy.sparse as sp
import xarray as xr

from flashmm.arrays.foreign_frames import is_foreign
from flashmm.arrays.labels import as_pandas, checked_labels, is_default, labelled_frame
from flashmm.exceptions import InputError, nearest
from flashmm.sources.anndata_kinds import is_anndata, matrix_reader, read_anndata
from flashmm.sources.dask_arrays import is_dask
from flashmm.sources.dataarrays import read_dataarray
from flashmm.sources.disk import is_on_disk
from flashmm.sources.iterables import is_blocks, read_blocks
from flashmm.sources.match_samples import match_samples
from flashmm.sources.memory import read_memory
from flashmm.sources.readers import Labelled
from flashmm.sources.source import Source
from flashmm.sources.transforms import Transform, check_transform

__all__ = ["labelled", "make_source", "source_of"]

ROWS = ("features", "samples")


def make_source(
    Y: Any,
    *,
    transform: Transform = None,
    samples: pd.Index | None = None,
    n: int | None = None,
    rows: str = "features",
) -> Source:
    """Wrap Y as a source whose samples are in the order of the design.

    Parameters
    ----------
    Y
        Features x samples: ndarray (1-D is one feature), memory map, Series (one feature),
        DataFrame, scipy.sparse matrix or array, xarray.DataArray (dims told apart by name), dask
        array, h5py dataset, zarr array, iterable of ``(samples, block)``; or AnnData, the path of
        an .h5ad or .zarr or of a table inside one, or an open group that holds it, whose rows
        are the samples.
    transform
        ``"log2p1"``, ``"log1p"``, an elementwise callable, or None.
    samples
        Index of the design's data; labels are matched when both sides carry them.
    n
        Number of samples of the design.
    rows
        What the rows of an array, frame or block are: ``"features"`` or ``"samples"``.

    Returns
    -------
    Source

    Raises
    ------
    InputError
        If Y is transposed, mismatched, non-numeric or has duplicate feature names.
    """
    if rows not in ROWS:
        raise InputError(f"Unknown rows={rows!r}. {nearest(str(rows), list(ROWS))}")
    return source_of(labelled(Y, samples, n, rows == "samples"), transform, samples, n)


def source_of(
    read: Labelled, transform: Transform, samples: pd.Index | None, n: int | None
) -> Source:
    """A source from a reader and the labels it came with; see `make_source`."""
    check_transform(transform)
    m, columns = read.reader.shape
    n = columns if n is None else n
    position = match_samples(read, samples, n)
    names = checked_labels(read.features, m, "feature")
    known = read.samples if is_default(samples) else samples
    sample_names = None if known is None or is_default(known) else known
    return Source(
        read.reader,
        names,
        n,
        position,
        transform=transform,
        sample_names=sample_names,
        numbered=read.features is None,
    )


def _of_dict(Y: dict[Any, Any]) -> pd.DataFrame:
    """Values of each feature by its name, as features x samples."""
    try:
        return pd.DataFrame(Y).T
    except ValueError as error:
        raise InputError(
            "Y must be numeric, features x samples; it is a dict, whose values must be one number "
            f"for each sample: {error}"
        ) from error


def labelled(Y: Any, samples: pd.Index | None, n: int | None, transposed: bool) -> Labelled:
    """Y with its labels, whatever kind it is of; ``transposed``: its rows are the samples."""
    # A group of HDF5 is a mapping too, and so is one kind of scipy's sparse matrices.
    if isinstance(Y, Mapping) and not is_on_disk(Y) and not sp.issparse(Y):
        Y = _of_dict(dict(Y))
    if is_foreign(Y):
        Y = labelled_frame(as_pandas(Y))
    if is_anndata(Y):
        return read_anndata(Y)
    if isinstance(Y, xr.DataArray):
        return read_dataarray(Y, samples)
    if is_blocks(Y):
        return read_blocks(Y, samples, n, transposed=transposed)
    if is_dask(Y) or is_on_disk(Y):
        return Labelled(matrix_reader(Y, transposed=transposed))
    return read_memory(Y, transposed=transposed)
