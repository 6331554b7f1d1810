"""The gate for arrays of numbers: what counts as numeric, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from flashmm.arrays.sparse import check_sparse
from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError

__all__ = ["dimensions", "float_array", "numeric_array", "unmasked"]

_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "boolean", "empty")


def dimensions(values: Any) -> int | None:
    """How many dimensions an array or nested list has; None for lists that are not rectangular."""
    known = getattr(values, "ndim", None)
    try:
        return int(np.ndim(values) if known is None else known)
    except (ValueError, TypeError):  # TypeError: a Dataset of xarray
        return None


def unmasked(values: Any) -> NDArray[Any]:
    """Dense values as an array; masked ones are NaN, where np.asarray would forget the mask."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        return np.where(np.ma.getmaskarray(values), np.nan, values.data)
    return np.asarray(values)


def numeric_array(values: Any, name: str) -> NDArray[Any]:
    """Values as an array of real numbers, in their own dtype where numpy has it.

    Objects that are numbers become float64; None, pd.NA and masked values become NaN. Text is
    refused even where it spells a number.
    """
    if isinstance(values, (list, tuple)) and any(isinstance(v, np.ma.MaskedArray) for v in values):
        values = [unmasked(row) for row in values]
    if isinstance(values, np.ma.MaskedArray):
        mask, values = np.ma.getmaskarray(values), numeric_array(values.data, name)
        return np.where(mask, np.nan, values) if mask.any() else values
    if sp.issparse(values):
        check_sparse(values, name)
        values = values.toarray()
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"{name} must be a rectangular array of numbers.") from None
    if array.dtype.kind in "iufb":
        return array
    if array.dtype.kind == "O" and array.ndim == 0:
        raise InputError(f"{name} must be numeric; it is of type {type(values).__name__}.")
    if array.dtype.kind == "O":
        found = pd.api.types.infer_dtype(array.ravel(), skipna=True)
        if found in _NUMBERS:
            return np.where(pd.isna(array), np.nan, array).astype(np.float64)
        raise InputError(f"{name} must be numeric; it holds objects that are not ({found}).")
    raise InputError(f"{name} must be numeric; its dtype is {array.dtype}.")


def float_array(values: Any, name: str) -> FloatArray:
    """`numeric_array` as float64, without a copy where it is float64 already."""
    return np.asarray(numeric_array(values, name), dtype=np.float64)
