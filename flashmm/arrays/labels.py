"""Labels of features and coefficients: checking them, and finding what is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flashmm.exceptions import InputError, listing, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["checked_labels", "feature_positions", "is_default"]


def checked_labels(names: Any, size: int, what: str, *, default: NDArray[Any]) -> NDArray[Any]:
    """Labels as an array of text or integers, unique and of the right number."""
    if names is None:
        return default
    if isinstance(names, str):
        raise InputError(f"The {what} names must be a sequence of names, not the text {names!r}.")
    index = pd.Index(names)
    if index.size != size:
        raise InputError(f"There are {index.size} {what} names for {size} {what}s.")
    absent = np.flatnonzero(_missing(index))
    if absent.size:
        raise InputError(
            f"Missing {what} names: {listing(index[absent], 3)} at position "
            f"{', '.join(map(str, absent[:3]))} ({absent.size} in all). Name every {what}."
        )
    if index.dtype.kind not in "iu":  # two labels may differ as objects but not as text
        index = pd.Index([str(name) for name in index], dtype=object)
    if not index.is_unique:
        repeated = index[index.duplicated()].unique()
        raise InputError(f"Duplicate {what} names: {listing(repeated)}. Make them unique.")
    return np.asarray(index)


def _missing(index: pd.Index) -> NDArray[np.bool_]:
    """Which labels are None, NaN, NA or NaT, a part of a label of several levels included."""
    if isinstance(index, pd.MultiIndex):
        return np.asarray(index.to_frame().isna().any(axis=1), dtype=bool)
    return np.asarray(index.isna(), dtype=bool)


def feature_positions(names: NDArray[Any], features: Any) -> NDArray[np.intp]:
    """Positions of the requested features: names, positions, a slice or a boolean mask.

    Integers are names where the features are named by integers, else positions.
    """
    m = names.size
    if isinstance(features, slice):
        return np.asarray(np.arange(m)[features])
    if pd.api.types.is_bool_dtype(getattr(features, "dtype", None)):  # pandas' nullable too
        requested = np.asarray(features, dtype=bool)
    else:
        requested = np.atleast_1d(np.asarray(features))
    if requested.dtype == bool:
        if requested.shape != (m,):
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


def is_default(index: pd.Index | None) -> bool:
    """Whether an index is absent or just counts 0, 1, 2, ...: it labels nothing."""
    return index is None or (
        isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1
    )
