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

from flashmm.exceptions import InputError, nearest
from flashmm.labels import checked_labels
from flashmm.source_kinds import is_default, match_samples, read_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    BoolArray = NDArray[np.bool_]

Transform = str | Callable[[Any], Any] | None

__all__ = ["BLOCK_BYTES", "Block", "Source", "Transform", "make_source"]

BLOCK_BYTES = 2**26


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
    sample_names
        Labels of the samples in use, for messages; None for their positions.
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
        names = range(self.n) if self.sample_names is None else self.sample_names
        left = [name for name, kept in zip(names, keep, strict=True) if kept]
        return Source(self.values, self.feature_names, order[keep], self.transform, left)

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        """Yield blocks of features, transformed and checked to be finite."""
        stays_sparse = self.is_sparse and _keeps_zero(self.transform)
        rows = self._rows_per_block(block_bytes, stays_sparse)
        for start in range(0, self.m, rows):
            yield self.block(slice(start, min(start + rows, self.m)))

    def dense_blocks(
        self, features: NDArray[np.intp], block_bytes: int = BLOCK_BYTES
    ) -> Iterator[Block]:
        """Yield chosen features as dense blocks (a second look at a few of them)."""
        rows = self._rows_per_block(block_bytes, False)
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

    def missing_samples(self, block_bytes: int = BLOCK_BYTES) -> BoolArray:
        """Which samples in use have a missing value (NaN) in any feature, shape (n,)."""
        missing = np.zeros(self.n, dtype=bool)
        rows = self._rows_per_block(block_bytes, self.is_sparse)
        for start in range(0, self.m, rows):
            raw = self._raw(slice(start, start + rows))
            if sp.issparse(raw):
                missing[raw.indices[np.isnan(raw.data)]] = True
            else:
                missing |= np.isnan(raw).any(axis=0)
        return missing

    def _rows_per_block(self, block_bytes: int, sparse: bool) -> int:
        """How many features make a block of about ``block_bytes``."""
        rows = block_bytes // (8 * max(1, self.n))
        if sparse:  # 12 bytes per stored element: its value and its column
            rows = max(rows, self.m * block_bytes // max(12 * self.values.nnz, 1))
        return max(1, min(self.m, rows))

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
        where = f"feature {_quoted(feature)}, sample {_quoted(sample)}"
        if np.isnan(before):
            raise InputError(
                f"Y has a missing value: {where}. Use missing='drop' to drop the samples that "
                "have one, or fill them in."
            )
        if np.isinf(before):
            raise InputError(f"Y is infinite: {where}. Remove or correct the value.")
        name = self.transform
        if not isinstance(name, str):
            name = getattr(name, "__name__", type(name).__name__)
        hint = " Counts must not be negative." if before < 0 else ""
        raise InputError(
            f"transform {name!r} turns {before:g} into a value that is not finite: {where}.{hint}"
        )


def _quoted(label: object) -> str:
    """A label in a message: text in quotes, numbers bare."""
    return repr(label) if isinstance(label, str) else str(label)


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
    read = read_values(Y, samples)
    if n is None:
        n = int(read.values.shape[1])
    order = match_samples(read, samples, n)
    m = int(read.values.shape[0])
    names = checked_labels(read.features, m, "feature", default=np.arange(m))
    known = read.samples if is_default(samples) else samples
    sample_names = None if known is None or is_default(known) else list(known)
    return Source(read.values, names, order, transform, sample_names)


def _apply_transform(values: Any, transform: Transform) -> Any:
    """Transform a block; values themselves are left alone, whatever the callable does."""
    if transform is None:
        return values
    function = _NAMED_TRANSFORMS[transform] if isinstance(transform, str) else transform
    sparse = sp.issparse(values)
    with np.errstate(all="ignore"):
        if sparse and _keeps_zero(transform):
            data = np.asarray(function(values.data), dtype=np.float64)
            return sp.csr_array((data, values.indices, values.indptr), shape=values.shape)
        given = values.toarray() if sparse else values.copy()
        try:
            result = np.asarray(function(given), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"`transform` failed on a block of Y: {error}") from error
    if result.shape != values.shape:
        raise InputError(
            f"`transform` changed the shape of a block from {values.shape} to {result.shape}; "
            "it must act on each element alone."
        )
    return result


def _keeps_zero(transform: Transform) -> bool:
    """Whether zero maps to zero, so that a transform can act on the stored elements alone.

    Only ufuncs are known to be elementwise; any other callable sees the zeros too.
    """
    if transform is None or isinstance(transform, str):
        return True
    return isinstance(transform, np.ufunc) and bool(transform(np.zeros(1))[0] == 0.0)
