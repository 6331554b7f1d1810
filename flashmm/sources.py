"""Every kind of Y, read as blocks: features x samples, float64, never whole when sparse.

A source knows its labels and hands out blocks; `flashmm.summary_stats` sums over them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import xarray as xr

from flashmm.exceptions import InputError, listing, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    BoolArray = NDArray[np.bool_]

Transform = str | Callable[[Any], Any] | None

BLOCK_BYTES = 2**26
SAMPLE_DIMS = ("sample", "samples", "obs", "cell", "cells", "observation")
FEATURE_DIMS = ("feature", "features", "var", "gene", "genes", "variable")


def _log2p1(values: Any) -> Any:
    return np.log1p(values) / np.log(2.0)


_NAMED_TRANSFORMS: dict[str, Callable[[Any], Any]] = {"log2p1": _log2p1, "log1p": np.log1p}


@dataclass(frozen=True)
class Block:
    """Some features of Y, all kept samples.

    Parameters
    ----------
    features
        Positions of the features in the block.
    values
        Dense (f, n) float64 array, or sparse csr_array of that shape.
    """

    features: slice | NDArray[np.intp]
    values: FloatArray | sp.csr_array


@dataclass(frozen=True)
class Source:
    """Y with its labels, a transform and the samples to use.

    Parameters
    ----------
    values
        Two-dimensional ndarray, DataFrame or csr_array, features x samples.
    feature_names
        Labels of the m features: strings, or 0..m-1 when Y has none.
    order
        Positions of the samples to use, in the order of the design; None for all.
    transform
        Elementwise transform, or None.
    """

    values: Any
    feature_names: NDArray[Any]
    order: NDArray[np.intp] | None = None
    transform: Transform = None
    sample_names: Sequence[object] | None = None

    @property
    def m(self) -> int:
        """Number of features."""
        return int(self.values.shape[0])

    @property
    def n(self) -> int:
        """Number of samples in use."""
        return int(self.values.shape[1]) if self.order is None else int(self.order.size)

    @property
    def is_sparse(self) -> bool:
        """Whether Y is held sparse."""
        return bool(sp.issparse(self.values))

    def restricted(self, keep: BoolArray) -> Source:
        """The same source with only the samples in ``keep`` (over the samples in use)."""
        order = np.arange(self.n) if self.order is None else self.order
        names = self.sample_names
        if names is not None:
            names = [name for name, kept in zip(names, keep, strict=True) if kept]
        return Source(self.values, self.feature_names, order[keep], self.transform, names)

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        """Yield blocks of features, transformed and checked to be finite."""
        rows = max(1, min(self.m, block_bytes // (8 * max(1, self.n))))
        if self.is_sparse:
            rows = max(rows, self.m * block_bytes // max(12 * self.values.nnz, 1))
        for start in range(0, self.m, rows):
            yield self.block(slice(start, min(start + rows, self.m)))

    def dense_blocks(
        self, features: NDArray[np.intp], block_bytes: int = BLOCK_BYTES
    ) -> Iterator[Block]:
        """Yield chosen features as dense blocks (a second look at a few of them)."""
        rows = max(1, block_bytes // (8 * max(1, self.n)))
        for start in range(0, features.size, rows):
            block = self.block(features[start : start + rows])
            values: Any = block.values
            dense = values.toarray() if sp.issparse(values) else np.asarray(values)
            yield Block(block.features, dense)

    def block(self, features: slice | NDArray[np.intp]) -> Block:
        """One block of features, transformed, float64, checked to be finite."""
        raw = self._raw(features)
        values = _apply_transform(raw, self.transform)
        stored = values.data if sp.issparse(values) else values
        if not np.isfinite(stored).all():
            self._raise_non_finite(features, raw, values)
        return Block(features, values)

    def missing_samples(self) -> BoolArray:
        """Which samples in use have a missing value (NaN) in any feature, shape (n,)."""
        missing = np.zeros(self.n, dtype=bool)
        rows = max(1, BLOCK_BYTES // (8 * max(1, self.n)))
        if self.is_sparse:
            rows = max(rows, self.m)
        for start in range(0, self.m, rows):
            raw = self._raw(slice(start, start + rows))
            if sp.issparse(raw):
                missing[raw.indices[np.isnan(raw.data)]] = True
            else:
                missing |= np.isnan(raw).any(axis=0)
        return missing

    def _raw(self, features: slice | NDArray[np.intp]) -> Any:
        if isinstance(self.values, pd.DataFrame):
            frame = self.values.iloc[features]
            block = frame.to_numpy(dtype=np.float64, na_value=np.nan)
        elif sp.issparse(self.values):
            chosen = sp.csr_array(self.values[features, :])
            if self.order is not None:
                chosen = sp.csr_array(chosen[:, self.order])
            return chosen.astype(np.float64)
        else:
            block = self.values[features]
        if self.order is not None:
            block = block[:, self.order]
        return np.ascontiguousarray(block, dtype=np.float64)

    def _raise_non_finite(self, features: slice | NDArray[np.intp], raw: Any, values: Any) -> None:
        if sp.issparse(values):
            values, raw = values.tocoo(), raw.tocoo()
            first = int(np.flatnonzero(~np.isfinite(values.data))[0])
            row, column = int(values.row[first]), int(values.col[first])
            before = raw.data[first]
        else:
            row, column = (int(x) for x in np.argwhere(~np.isfinite(values))[0])
            before = raw[row, column]
        feature = self.feature_names[features][row]
        sample = column if self.sample_names is None else self.sample_names[column]
        where = f"feature {feature!r}, sample {sample!r}"
        if np.isnan(before):
            raise InputError(
                f"Y has a missing value: {where}. Use missing='drop' to drop the samples that "
                "have one, or fill them in."
            )
        if np.isinf(before):
            raise InputError(f"Y is infinite: {where}. Remove or correct the value.")
        raise InputError(
            f"transform={self.transform!r} turns {before:g} into a value that is not finite: "
            f"{where}. Counts must not be negative."
        )


def make_source(
    Y: Any, *, transform: Transform = None, samples: pd.Index | None = None, n: int | None = None
) -> Source:
    """Wrap Y as a source whose samples are in the order of the design.

    Parameters
    ----------
    Y
        Features x samples: ndarray (1-D is one feature), Series (one feature), DataFrame,
        scipy.sparse matrix or array, or xarray.DataArray (dims told apart by name).
    transform
        ``"log2p1"``, ``"log1p"``, an elementwise callable, or None.
    samples
        Index of the design's data; labels are matched when both sides carry them.
    n
        Number of samples of the design.

    Returns
    -------
    Source

    Raises
    ------
    InputError
        If Y is transposed, mismatched, non-numeric or has duplicate feature names.
    """
    if isinstance(transform, str) and transform not in _NAMED_TRANSFORMS:
        raise InputError(
            f"Unknown transform {transform!r}. {nearest(transform, list(_NAMED_TRANSFORMS))} "
            "A callable is accepted too."
        )
    if transform is not None and not isinstance(transform, str) and not callable(transform):
        raise InputError("`transform` must be 'log2p1', 'log1p', a callable or None.")
    values, features, labels = _as_two_dimensional(Y, samples)
    samples_labelled = None if samples is None else _labelled(samples)
    if n is None:
        n = int(values.shape[1])
    order = _match_samples(values.shape, features, labels, samples_labelled, n)
    names = _feature_names(features, int(values.shape[0]))
    sample_names: Sequence[object] | None = None
    if samples_labelled is not None:
        sample_names = list(samples_labelled)
    elif labels is not None:
        sample_names = list(labels)
    return Source(values, names, order, transform, sample_names)


def _as_two_dimensional(
    Y: Any, samples: pd.Index | None
) -> tuple[Any, pd.Index | None, pd.Index | None]:
    """Values (m, n) with feature and sample labels, None where there are none."""
    if isinstance(Y, pd.Series):
        name = None if Y.name is None else pd.Index([Y.name])
        return np.atleast_2d(_numeric(Y.to_numpy())), name, _labelled(Y.index)
    if isinstance(Y, pd.DataFrame):
        return _numeric_frame(Y), _labelled(Y.index), _labelled(Y.columns)
    if isinstance(Y, xr.DataArray):
        return _from_dataarray(Y, samples)
    if sp.issparse(Y):
        if Y.dtype.kind not in "iufb":
            raise InputError(f"Y must be numeric; its dtype is {Y.dtype}.")
        return sp.csr_array(Y), None, None
    values = _numeric(np.asarray(Y))
    if values.ndim == 1:
        values = values[None, :]
    if values.ndim != 2:
        raise InputError(f"Y must have two dimensions, features x samples; it has {values.ndim}.")
    return values, None, None


def _labelled(index: pd.Index) -> pd.Index | None:
    return None if isinstance(index, pd.RangeIndex) else index


def _numeric(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind in "iufb":
        return values
    if values.dtype.kind == "O":
        try:
            return values.astype(np.float64)
        except (TypeError, ValueError):
            pass
    raise InputError(f"Y must be numeric; its dtype is {values.dtype}.")


def _numeric_frame(frame: pd.DataFrame) -> pd.DataFrame:
    kinds = [
        pd.api.types.is_numeric_dtype(t) and not pd.api.types.is_complex_dtype(t)
        for t in frame.dtypes
    ]
    if not all(kinds):
        bad = frame.columns[~np.array(kinds)]
        raise InputError(
            f"Y must be numeric; these columns are not: {listing(bad)}. "
            "If one of them holds the feature names, make it the index."
        )
    return frame


def _from_dataarray(
    Y: xr.DataArray, samples: pd.Index | None
) -> tuple[Any, pd.Index | None, pd.Index | None]:
    if Y.ndim == 1:
        Y = Y.expand_dims("feature") if "feature" not in Y.dims else Y.expand_dims("features")
    if Y.ndim != 2:
        raise InputError(f"Y must have two dims, features and samples; it has {list(Y.dims)}.")
    first, second = (str(dim) for dim in Y.dims)
    sample_dim = next((d for d in (first, second) if d.lower() in SAMPLE_DIMS), None)
    feature_dim = next((d for d in (first, second) if d.lower() in FEATURE_DIMS), None)
    if sample_dim is None and samples is not None and samples.name in (first, second):
        sample_dim = str(samples.name)
    if sample_dim is None and feature_dim is None:
        raise InputError(
            f"The dims of Y, {first!r} and {second!r}, do not say which holds the samples. "
            "Rename them to 'feature' and 'sample'."
        )
    if sample_dim is None:
        sample_dim = second if feature_dim == first else first
    feature_dim = second if sample_dim == first else first
    Y = Y.transpose(feature_dim, sample_dim)

    def labels(dim: str) -> pd.Index | None:
        return pd.Index(Y[dim].to_numpy()) if dim in Y.coords else None

    data = Y.data
    values = sp.csr_array(data) if sp.issparse(data) else _numeric(np.asarray(data))
    return values, labels(feature_dim), labels(sample_dim)


def _match_samples(
    shape: tuple[int, int],
    features: pd.Index | None,
    labels: pd.Index | None,
    samples: pd.Index | None,
    n: int,
) -> NDArray[np.intp] | None:
    """Positions of Y's columns in the order of the design, None when they already agree."""
    m, columns = shape
    if labels is not None and samples is not None:
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
        if absent.size or extra.size:
            if features is not None and samples.isin(features).all():
                raise InputError(
                    "Y is transposed: it must be features x samples, but its rows carry the "
                    "labels of the samples. Pass Y.T."
                )
            parts = []
            if absent.size:
                parts.append(f"samples in `data` without a column in Y: {listing(absent)}")
            if extra.size:
                parts.append(f"columns of Y without a row in `data`: {listing(extra)}")
            raise InputError(
                f"The samples of Y and `data` do not match by label; {'; '.join(parts)}. Make the "
                "labels agree, or pass Y without labels to match by position."
            )
        return None if np.array_equal(position, np.arange(n)) else position
    if columns != n:
        if m == n:
            raise InputError(
                f"Y looks transposed: it must be features x samples with {n} samples, but its "
                f"shape is {shape}. Pass Y.T."
            )
        raise InputError(
            f"Y has {columns} samples (columns), but the design has {n}. Y is features x samples."
        )
    return None


def _feature_names(features: pd.Index | None, m: int) -> NDArray[Any]:
    if features is None:
        return np.arange(m)
    if not features.is_unique:
        repeated = features[features.duplicated()].unique()
        raise InputError(
            f"Y has duplicate feature names: {listing(repeated)}. Make them unique, for instance "
            "by appending a suffix."
        )
    if features.dtype.kind in "iu":
        return np.asarray(features)
    return np.array([str(name) for name in features], dtype=object)


def _apply_transform(values: Any, transform: Transform) -> Any:
    if transform is None:
        return values
    function = _NAMED_TRANSFORMS[transform] if isinstance(transform, str) else transform
    with np.errstate(all="ignore"):
        if sp.issparse(values):
            if isinstance(transform, str) or _keeps_zero(function):
                result = values.copy()
                result.data = np.asarray(function(values.data), dtype=np.float64)
                return result
            values = values.toarray()
        result = np.asarray(function(values), dtype=np.float64)
    if result.shape != values.shape:
        raise InputError(
            f"`transform` changed the shape of a block from {values.shape} to {result.shape}; "
            "it must act on each element alone."
        )
    return result


def _keeps_zero(function: Callable[[Any], Any]) -> bool:
    """Whether a ufunc maps zero to zero, so that it can act on the stored elements alone."""
    return isinstance(function, np.ufunc) and bool(function(np.zeros(1))[0] == 0.0)
