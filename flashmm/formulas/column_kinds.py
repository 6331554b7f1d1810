"""Kinds of columns beyond numbers, text, booleans and categories: made usual, or explained."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from formulaic import SimpleFormula

from flashmm.arrays.types import BoolArray
from flashmm.exceptions import InputError

__all__ = ["absent_values", "explained", "kind_of", "refuse_as_numbers", "usual_type"]

# What a column that is no number can become, by kind.
_ADVICE = {
    "dates or times": "days since the first: ({x} - {x}.min()).dt.days",
    "durations": "days: {x}.dt.total_seconds() / 86400",
    "periods": "months since the first: {x}.dt.year * 12 + {x}.dt.month",
    "intervals": "their middles: {x}.array.mid, or of a categorical: {x}.cat.categories.mid",
}
_OBJECTS = {
    "date": "dates or times",
    "datetime": "dates or times",
    "datetime64": "dates or times",
    "time": "dates or times",
    "timedelta": "durations",
    "timedelta64": "durations",
    "period": "periods",
    "interval": "intervals",
}


def absent_values(values: pd.Series[Any], column: str) -> BoolArray:
    """Where a column is missing, shape (n,); records, of which nobody can tell, are refused."""
    if isinstance(values.dtype, np.dtype) and values.dtype.kind == "V":
        raise InputError(
            f"Column {column!r} of `data` holds records ({values.dtype}); a column must hold one "
            "number or one level for each sample."
        )
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iubf":
        return np.asarray(np.isnan(values.to_numpy()))
    # np.asarray(series) would make the index of data build a hash table of its labels.
    absent: BoolArray = values.isna().to_numpy(dtype=bool)
    return absent


def usual_type(values: pd.Series[Any], column: str) -> pd.Series[Any]:
    """A column without the wrapping of Arrow: dictionaries as categories, decimals as numbers.

    Raises
    ------
    InputError
        If the values are neither numbers nor levels: lists, structs, complex numbers.
    """
    dtype = values.dtype
    complexes = (complex, np.complexfloating)
    if dtype.kind == "c" or (
        pd.api.types.is_object_dtype(dtype) and any(isinstance(v, complexes) for v in values)
    ):
        raise InputError(f"Column {column!r} of `data` holds complex numbers; take a real part.")
    if isinstance(dtype, pd.ArrowDtype):
        return _from_arrow(values, column)
    if pd.api.types.is_object_dtype(dtype) and not all(map(_hashable, values)):
        raise InputError(
            f"Column {column!r} of `data` holds lists or other containers; a column must hold one "
            "number or one level for each sample."
        )
    return values


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _from_arrow(values: pd.Series[Any], column: str) -> pd.Series[Any]:
    kind = str(values.dtype.pyarrow_dtype)
    if kind.startswith("dictionary"):
        array: Any = values.array
        levels = array.__arrow_array__().unify_dictionaries().combine_chunks().dictionary
        return values.astype(object).astype(pd.CategoricalDtype(levels.to_pylist()))
    if kind.startswith("decimal"):
        return values.astype(object).astype(float)
    if kind.startswith(("timestamp", "duration")):
        return values.astype(values.dtype.numpy_dtype)
    if kind.startswith(("date", "time")):
        return values.astype(object)
    if kind.startswith(("list", "large_list", "fixed_size", "struct", "map", "binary", "large_b")):
        raise InputError(
            f"Column {column!r} of `data` is of Arrow's type {kind}; a column must hold one number "
            "or one level for each sample. Convert it, e.g. to text."
        )
    return values


def kind_of(values: pd.Series[Any]) -> str | None:
    """The kind of a column that counts as no number but is not made of levels either."""
    dtype = values.dtype
    if dtype.kind in "Mm":
        return "dates or times" if dtype.kind == "M" else "durations"
    if isinstance(dtype, pd.PeriodDtype):
        return "periods"
    if isinstance(dtype, pd.IntervalDtype):
        return "intervals"
    if pd.api.types.is_object_dtype(dtype):
        return _OBJECTS.get(pd.api.types.infer_dtype(values))
    return None


def refuse_as_numbers(data: pd.DataFrame, formula: SimpleFormula, source: str) -> None:
    """Raise where a formula names a column of dates or the like by itself: ``~ when``."""
    for name in dict.fromkeys(factor.expr for term in formula for factor in term.factors):
        if name in data:
            _refuse(data[name], name, source)


def explained(error: InputError, data: pd.DataFrame, source: str) -> InputError:
    """The error of a formula that could not be evaluated, or which column is to blame for it."""
    for name in data.columns:
        if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", source):
            try:
                _refuse(data[name], name, source)
            except InputError as better:
                return better
    return error


def _refuse(values: pd.Series[Any], name: str, source: str) -> None:
    kind = kind_of(values)
    if kind is not None:
        raise InputError(
            f"{source} uses the column {name!r} as numbers, but it holds {kind}. Convert it to "
            f"numbers in the unit you mean, such as {_ADVICE[kind].format(x=name)}; or write "
            f"C({name}) to take each value as a level."
        )
