"""Labels of features and coefficients: checking them, and finding what is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flashmm.exceptions import InputError, listing, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["checked_labels", "feature_positions"]


def checked_labels(names: Any, size: int, what: str, *, default: NDArray[Any]) -> NDArray[Any]:
    """Labels as an array of text or integers, unique and of the right number."""
    if names is None:
        return default
    index = pd.Index(names)
    if index.size != size:
        raise InputError(f"There are {index.size} {what} names for {size} {what}s.")
    if not index.is_unique:
        repeated = index[index.duplicated()].unique()
        raise InputError(f"Duplicate {what} names: {listing(repeated)}.")
    if index.dtype.kind in "iu":
        return np.asarray(index)
    return np.array([str(name) for name in index], dtype=object)


def feature_positions(names: NDArray[Any], features: Any) -> NDArray[np.intp]:
    """Positions of the requested features: names, positions, a slice or a boolean mask."""
    m = names.size
    if isinstance(features, slice):
        return np.asarray(np.arange(m)[features])
    requested = np.atleast_1d(np.asarray(features))
    if requested.dtype == bool:
        if requested.size != m:
            raise InputError(f"The mask has {requested.size} entries for {m} features.")
        return np.asarray(np.flatnonzero(requested))
    if requested.dtype.kind in "iu" and names.dtype.kind not in "iu":
        if requested.size and (requested.min() < -m or requested.max() >= m):
            raise InputError(f"Feature position out of range: there are {m} features.")
        return np.asarray(np.arange(m)[requested])
    if names.dtype.kind not in "iu":
        requested = np.array([str(name) for name in requested], dtype=object)
    positions = pd.Index(names).get_indexer(pd.Index(requested))
    if (positions < 0).any():
        unknown = requested[positions < 0]
        hint = nearest(str(unknown[0]), [str(name) for name in names])
        raise InputError(f"Unknown feature: {listing(unknown)}. {hint}")
    return np.asarray(positions, dtype=np.intp)
