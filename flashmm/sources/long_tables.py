"""A long table, one row per value, as features x samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from flashmm.arrays.foreign_frames import is_foreign
from flashmm.arrays.labels import as_pandas
from flashmm.arrays.numeric import float_array
from flashmm.exceptions import InputError, listing, nearest
from flashmm.slips.answers import answered

__all__ = ["from_long"]


@answered
def from_long(
    table: Any,
    feature: str = "feature",
    sample: str = "sample",
    value: str = "value",
    *,
    samples: Any = None,
    fill: float = np.nan,
) -> pd.DataFrame:
    """Features x samples from a long table with one row per value.

    Parameters
    ----------
    table
        A DataFrame of any library, or a dict of columns.
    feature, sample, value
        Names of the columns with the name of the feature, the label of the sample, the value.
    samples
        Labels of the samples in the order wanted, as the index of ``data``; samples that the
        table lacks are filled. By default those of the table in order of appearance.
    fill
        What values that the table does not have are: NaN, missing, by default; 0 for counts.

    Returns
    -------
    DataFrame
        Y for `MultiLMM.from_formula`, features in order of appearance. It is matched by label
        with ``data``, whose index must hold the labels of the samples.

    Raises
    ------
    InputError
        If a column is absent, a name missing, a value no number, or a feature has two values in
        one sample.

    Examples
    --------
    >>> import flashmm as fm
    >>> fm.from_long({"feature": ["a", "a", "b"], "sample": ["s1", "s2", "s1"], "value": [1, 2, 3]})
    sample    s1   s2
    feature
    a        1.0  2.0
    b        3.0  NaN
    """
    frame = _table(table)
    for name, given in (("feature", feature), ("sample", sample), ("value", value)):
        if given not in frame.columns:
            raise InputError(
                f"`{name}` names {given!r}, which is no column of the table. "
                f"{nearest(given, [str(column) for column in frame.columns])}"
            )
        if name != "value" and frame[given].isna().any():
            row = int(np.flatnonzero(frame[given].isna())[0])
            raise InputError(f"Column {given!r} of the table is missing in row {row}.")
    features, names = pd.factorize(_plain(frame[feature]))
    columns, labels = pd.factorize(_plain(frame[sample]))
    values = float_array(frame[value], f"Column {value!r} of the table")
    place = features.astype(np.int64) * max(1, len(labels)) + columns
    first = pd.Series(place).duplicated().to_numpy()
    if first.any():
        row = int(np.flatnonzero(first)[0])
        raise InputError(
            f"The table has several values of {str(names[features[row]])!r} in sample "
            f"{str(labels[columns[row]])!r} (row {row}; {int(first.sum())} rows in all). Average "
            "or sum them first."
        )
    Y = np.full((len(names), len(labels)), float(fill))
    Y[features, columns] = values
    found = pd.DataFrame(
        Y, index=pd.Index(names, name="feature"), columns=pd.Index(labels, name="sample")
    )
    if samples is None:
        return found
    wanted = pd.Index(as_pandas(samples), name="sample")
    extra = found.columns[~found.columns.isin(wanted)]
    if len(extra):
        raise InputError(f"`samples` lacks samples of the table: {listing(extra)}.")
    if not wanted.is_unique:
        raise InputError(f"`samples` repeats {listing(wanted[wanted.duplicated()].unique())}.")
    return found.reindex(columns=wanted, fill_value=float(fill))


def _table(table: Any) -> pd.DataFrame:
    table = as_pandas(table) if is_foreign(table) else table
    if isinstance(table, dict):
        table = pd.DataFrame(table)
    if not isinstance(table, pd.DataFrame):
        raise InputError(
            f"from_long takes a table with a row per value, not {type(table).__name__}."
        )
    return table


def _plain(values: pd.Series[Any]) -> pd.Series[Any]:
    """Labels without the order of categories."""
    return values.astype(object) if isinstance(values.dtype, pd.CategoricalDtype) else values
