"""The kinds of Y: values, feature labels and sample labels of each, and matching the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import xarray as xr

from flashmm.exceptions import InputError, listing
from flashmm.numeric import numeric_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LabelledValues", "match_samples", "read_values"]

SAMPLE_DIMS = ("sample", "samples", "obs", "cell", "cells", "observation")
FEATURE_DIMS = ("feature", "features", "var", "gene", "genes", "variable")


@dataclass(frozen=True)
class LabelledValues:
    """Y in two dimensions, with the labels it came with.

    Parameters
    ----------
    values
        Features x samples, shape (m, n): ndarray, DataFrame of numeric columns, or csr_array
        in canonical format.
    features, samples
        Labels, None where there are none.
    """

    values: Any
    features: pd.Index | None = None
    samples: pd.Index | None = None


def read_values(Y: Any, samples: pd.Index | None) -> LabelledValues:
    """Read any kind of Y; ``samples``, the index of the design's data, may name a dim."""
    if isinstance(Y, pd.Series):
        frame = _numeric_frame(Y.to_frame())
        name = None if Y.name is None else pd.Index([Y.name])
        values = frame.to_numpy(dtype=np.float64, na_value=np.nan).T
        return LabelledValues(values, name, Y.index)
    if isinstance(Y, pd.DataFrame):
        features = None if is_default(Y.index) else Y.index
        return LabelledValues(_from_frame(Y), features, Y.columns)
    if isinstance(Y, xr.DataArray):
        return _from_dataarray(Y, samples)
    if sp.issparse(Y):
        return LabelledValues(_canonical(Y))
    values = numeric_array(Y, "Y")
    if values.ndim == 1:
        values = values[None, :]
    if values.ndim != 2:
        raise InputError(f"Y must have two dimensions, features x samples; it has {values.ndim}.")
    return LabelledValues(values)


def is_default(index: pd.Index | None) -> bool:
    """Whether an index is absent or just counts 0, 1, 2, ...: it labels nothing."""
    return index is None or (
        isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1
    )


def _canonical(Y: Any) -> sp.csr_array:
    """Sparse values as csr_array with every entry stored once; Y itself is left alone."""
    if Y.dtype.kind not in "iufb":
        raise InputError(f"Y must be numeric; its dtype is {Y.dtype}.")
    rows = sp.csr_array(Y.reshape(1, -1) if Y.ndim == 1 else Y)
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows


def _from_frame(frame: pd.DataFrame) -> Any:
    """A frame of numeric columns, or a csr_array where all columns are sparse."""
    sparse = frame.shape[1] > 0 and all(
        isinstance(dtype, pd.SparseDtype) and dtype.fill_value == 0 for dtype in frame.dtypes
    )
    return _canonical(frame.sparse.to_coo()) if sparse else _numeric_frame(frame)


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


def _from_dataarray(Y: xr.DataArray, samples: pd.Index | None) -> LabelledValues:
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
    values = _canonical(Y.data) if sp.issparse(Y.data) else numeric_array(Y.data, "Y")

    def labels(dim: str) -> pd.Index | None:
        return pd.Index(Y[dim].to_numpy()) if dim in Y.coords else None

    return LabelledValues(values, labels(feature_dim), labels(sample_dim))


def match_samples(
    read: LabelledValues, samples: pd.Index | None, n: int
) -> NDArray[np.intp] | None:
    """Positions of Y's columns in the order of the design, None when they already agree.

    By label when both sides carry labels, else by position.
    """
    m, columns = read.values.shape
    if not _both_labelled(read.samples, samples):
        if columns == n:
            return None
        if m == n:
            raise InputError(
                f"Y looks transposed: it must be features x samples with {n} samples, but its "
                f"shape is {(m, columns)}. Pass Y.T."
            )
        raise InputError(
            f"Y has {columns} samples (columns), but the design has {n}. Y is features x samples."
        )
    assert read.samples is not None
    assert samples is not None
    return _match_labels(read.samples, samples, read.features)


def _both_labelled(labels: pd.Index | None, samples: pd.Index | None) -> bool:
    """Whether Y and data both carry labels.

    0, 1, 2, ... are labels only beside the same numbers in another order, as rows that were
    shuffled have them.
    """
    if labels is None or samples is None or (is_default(labels) and is_default(samples)):
        return False
    if is_default(labels) or is_default(samples):
        return labels.size == samples.size and bool(
            labels.isin(samples).all() and samples.isin(labels).all()
        )
    return True


def _match_labels(
    labels: pd.Index, samples: pd.Index, features: pd.Index | None
) -> NDArray[np.intp] | None:
    if not samples.is_unique:
        repeated = samples[samples.duplicated()].unique()
        raise InputError(
            f"The index of `data` has duplicate labels: {listing(repeated)}. Y is matched to "
            "`data` by label; make the labels unique, or reset the index to match by position."
        )
    if not labels.is_unique:
        repeated = labels[labels.duplicated()].unique()
        raise InputError(f"Y has duplicate sample labels: {listing(repeated)}.")
    position = labels.get_indexer(samples)
    absent = samples[position < 0]
    extra = labels[~labels.isin(samples)]
    if absent.size == 0 and extra.size == 0:
        return None if np.array_equal(position, np.arange(samples.size)) else position
    if features is not None and samples.isin(features).all():
        raise InputError(
            "Y is transposed: it must be features x samples, but its rows carry the labels of the "
            "samples. Pass Y.T."
        )
    parts = []
    if absent.size:
        parts.append(f"samples in `data` without a column in Y: {listing(absent)}")
    if extra.size:
        parts.append(f"columns of Y without a row in `data`: {listing(extra)}")
    alike = samples.astype(str).isin(labels.astype(str)).any() and absent.size == samples.size
    hint = (
        f" The labels look alike but are {labels.inferred_type} in Y and {samples.inferred_type} "
        "in `data`."
        if alike
        else ""
    )
    raise InputError(
        f"The samples of Y and `data` do not match by label; {'; '.join(parts)}.{hint} Make the "
        "labels agree, or pass Y without labels to match by position."
    )
