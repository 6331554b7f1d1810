"""Tables of other libraries as pandas holds them: polars, pyarrow, modin and what narwhals reads.

narwhals comes with formulaic, and is imported where such a table is met, no earlier.
"""

from __future__ import annotations

import sys
from typing import Any

import pandas as pd

__all__ = ["frame_as_pandas", "is_foreign", "series_as_pandas"]

# Libraries whose tables narwhals reads; where none is loaded there is no table of theirs.
_PACKAGES = frozenset(
    {"cudf", "dask", "duckdb", "ibis", "modin", "narwhals", "polars", "pyarrow", "pyspark"}
)
# Tables that are pandas' own in another place: they give back a pandas object with its labels.
_LIKE_PANDAS = frozenset({"cudf", "modin"})
_NAMES = frozenset(
    {
        *("DataFrame", "LazyFrame", "Series", "Table", "RecordBatch", "ChunkedArray"),
        *("DuckDBPyRelation",),
    }
)


def _package(values: Any) -> str:
    return type(values).__module__.partition(".")[0]


def is_foreign(values: Any) -> bool:
    """Whether this is a table or column of a library other than pandas.

    Examples
    --------
    >>> import pandas as pd
    >>> is_foreign(pd.DataFrame()), is_foreign([1.0])
    (False, False)
    """
    package = _package(values)
    return package in _PACKAGES and package in sys.modules and type(values).__name__ in _NAMES


def frame_as_pandas(frame: Any) -> pd.DataFrame:
    """A table of another library as a DataFrame.

    Levels of an Enum keep their order; those of text and of a Categorical, whose order in polars
    is that of appearance, are text and sort. Null and NaN are both missing; whole numbers are of
    64 bits, so that their products do not wrap around.

    Parameters
    ----------
    frame
        A DataFrame, LazyFrame or Table; lazy ones are collected.
    """
    if _package(frame) in _LIKE_PANDAS:
        return _of_pandas_kind(frame)
    import narwhals as nw  # noqa: PLC0415  (only for such tables)

    table: Any = nw.from_native(frame)
    if isinstance(table, nw.LazyFrame):
        table = table.collect()
    return pd.DataFrame({name: _column(table[name]) for name in table.columns})


def series_as_pandas(series: Any) -> pd.Series[Any]:
    """A column of another library as a Series; see `frame_as_pandas`."""
    if _package(series) in _LIKE_PANDAS:
        found: pd.Series[Any] = _of_pandas_kind(series)
        return found
    import narwhals as nw  # noqa: PLC0415  (only for such tables)

    column: Any = nw.from_native(series, series_only=True)
    return pd.Series(_column(column), name=column.name or None)


def _of_pandas_kind(values: Any) -> Any:
    convert = getattr(values, "to_pandas", None) or values._to_pandas
    return convert()


def _column(column: Any) -> Any:
    """The values of a column of narwhals as pandas holds them."""
    import narwhals as nw  # noqa: PLC0415

    dtype = column.dtype
    nulls = column.is_null().any()
    if isinstance(dtype, nw.Enum):
        return pd.Categorical(column.to_list(), categories=list(dtype.categories))
    if dtype in (nw.Categorical, nw.String):
        return pd.Series(column.cast(nw.String).to_list(), dtype=object)
    if dtype.is_float():
        values = column.cast(nw.Float64)
        if nulls:
            values = values.fill_null(float("nan"))
        return values.to_numpy().astype("float64")
    if dtype.is_integer():
        whole = pd.Series(column.to_list(), dtype="Int64") if nulls else None
        return column.to_numpy().astype("int64") if whole is None else whole
    if dtype == nw.Boolean:
        return pd.Series(column.to_list(), dtype="boolean" if nulls else "bool")
    if dtype.is_decimal():
        return pd.Series(column.cast(nw.Float64).to_list(), dtype="float64")
    return pd.Series(column.to_list())  # dates among them, and what is then refused by its name
