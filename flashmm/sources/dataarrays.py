"""Y as an xarray DataArray: its dims are told apart by name."""

from __future__ import annotations

from typing import Any

import pandas as pd
import scipy.sparse as sp
import xarray as xr

from flashmm.exceptions import InputError
from flashmm.sources.dask_arrays import dask_reader, is_dask
from flashmm.sources.memory import array_reader, sparse_reader
from flashmm.sources.readers import Labelled, Reader

__all__ = ["read_dataarray"]

SAMPLE_DIMS = ("sample", "samples", "obs", "cell", "cells", "observation")
FEATURE_DIMS = ("feature", "features", "var", "gene", "genes", "variable")


def read_dataarray(Y: xr.DataArray, samples: pd.Index | None) -> Labelled:
    """A DataArray; ``samples``, the index of the design's data, may name a dim."""
    if Y.ndim == 1:
        Y = Y.expand_dims("feature") if "feature" not in Y.dims else Y.expand_dims("features")
    if Y.ndim != 2:
        raise InputError(f"Y must have two dims, features and samples; it has {list(Y.dims)}.")
    dims = [str(dim) for dim in Y.dims]
    sample_dims = [dim for dim in dims if dim.lower() in SAMPLE_DIMS]
    feature_dims = [dim for dim in dims if dim.lower() in FEATURE_DIMS]
    if not sample_dims and samples is not None and samples.name in dims:
        sample_dims = [str(samples.name)]
    if max(len(sample_dims), len(feature_dims)) == 2 or not (sample_dims or feature_dims):
        raise InputError(
            f"The dims of Y, {dims[0]!r} and {dims[1]!r}, do not say which holds the samples. "
            "Rename them to 'feature' and 'sample'."
        )
    if sample_dims:
        sample_dim = sample_dims[0]
        feature_dim = dims[1] if sample_dim == dims[0] else dims[0]
    else:
        feature_dim = feature_dims[0]
        sample_dim = dims[1] if feature_dim == dims[0] else dims[0]
    Y = Y.transpose(feature_dim, sample_dim)
    data: Any = Y.data
    reader: Reader
    if is_dask(data):
        reader = dask_reader(data)
    else:
        reader = sparse_reader(data) if sp.issparse(data) else array_reader(data)

    def labels(dim: str) -> pd.Index | None:
        return pd.Index(Y[dim].to_numpy()) if dim in Y.coords else None

    return Labelled(reader, labels(feature_dim), labels(sample_dim))
