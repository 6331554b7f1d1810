"""What stands before ``~``: the columns of the samples' table that are the responses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula

from flashmm.arrays.labels import as_pandas, in_order
from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError, listing, nearest

__all__ = ["Responses", "read_responses", "responses_of", "split_sides"]

# Functions that a response may stand in, as in ``log(y) ~ x``.
_FUNCTIONS = ("exp", "log", "log10", "log1p", "log2", "sqrt")
_NAME = r"`[^`]+`|[^\W\d][\w.]*"
_RESPONSE = re.compile(
    rf"(?P<name>{_NAME})|(?:np\.)?(?P<function>{'|'.join(_FUNCTIONS)})\(\s*(?P<of>{_NAME})\s*\)"
)
_QUOTED = re.compile(r"""(`[^`]*`|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""")


class Responses(tuple[str, ...]):
    """Responses as they stand before ``~``, in order: columns, or functions of columns."""

    __slots__ = ()


def split_sides(formula: Any) -> tuple[Responses, Any]:
    """A formula's responses, none where it is one-sided, and its right side.

    Parameters
    ----------
    formula
        Text, or a formula of formulaic.

    Raises
    ------
    InputError
        If what stands before ``~`` is no column or function of one.

    Examples
    --------
    >>> split_sides("log(distance) ~ age + (1 | Subject)")
    (('log(distance)',), '~ age + (1 | Subject)')
    >>> split_sides("cbind(a, b) ~ x")[0], split_sides("~ x")[0]
    (('a', 'b'), ())
    """
    if isinstance(formula, Formula) and hasattr(formula, "lhs") and hasattr(formula, "rhs"):
        names = [str(term).strip() for term in formula.lhs]
        return Responses(names), formula.rhs
    if not isinstance(formula, str):
        return Responses(), formula
    parts = _QUOTED.split(formula)
    at, length = -1, 0
    for i, part in enumerate(parts):
        if i % 2 == 0 and at < 0 and "~" in part:
            at = length + part.index("~")
        length += len(part)
    left, right = formula[: max(at, 0)].strip(), formula[max(at, 0) :]
    if not left:
        return Responses(), formula
    if "~" in "".join(_QUOTED.split(right[1:])[::2]):
        raise InputError(
            f"`fixed` = {formula!r} is two-sided more than once: one ~ stands between the "
            "responses and the fixed effects. Random effects are bars, '+ (1 | g)', or `random`."
        )
    bound = re.fullmatch(r"cbind\((.*)\)", left, flags=re.DOTALL)
    pieces = _split(bound[1], ",") if bound else _split(left, "+")
    for piece in pieces:
        if not _RESPONSE.fullmatch(piece):
            raise InputError(
                f"`fixed` = {formula!r}: before `~` stand columns of `data`, joined by +, or "
                f"{', '.join(_FUNCTIONS[:-1])} or {_FUNCTIONS[-1]} of one; {piece!r} is none. Put "
                "its values into a column, or pass a `transform`."
            )
    return Responses(pieces), right


def _split(text: str, separator: str) -> list[str]:
    """Text at separators outside of backticks."""
    parts, pieces = _QUOTED.split(text), [""]
    for i, part in enumerate(parts):
        first, *others = part.split(separator) if i % 2 == 0 else [part]
        pieces[-1] += first
        pieces += others
    return [piece.strip() for piece in pieces]


def read_responses(
    fixed: Any, Y: Any, table: pd.DataFrame | None, feature_columns: Any
) -> tuple[Any, Responses]:
    """The right side of a formula, and which columns of the table Y is; none where Y is given.

    Parameters
    ----------
    fixed
        The formula.
    Y
        What was passed as Y; the names of columns count.
    table
        The samples' table.
    feature_columns
        Names of the columns, a name, or a boolean mask of the columns.

    Raises
    ------
    InputError
        If the responses are given more than once, or not at all.
    """
    left, right = split_sides(fixed)
    columns = [] if table is None else list(table.columns)
    said = {"the left side of the formula": left} if left else {}
    if feature_columns is not None:
        said["`feature_columns`"] = _asked(feature_columns, columns)
    if _are_columns(Y, columns):
        said["`Y`"] = Responses([f"`{name}`" for name in ([Y] if isinstance(Y, str) else Y)])
    elif Y is not None and said:
        raise InputError(
            f"Y is given, and so {'are' if len(said) == 1 else 'is'} the responses by "
            f"{next(iter(said))}: pass one of them. With Y the formula is one-sided: "
            f"{str(right).strip()!r}."
        )
    if len(said) > 1:
        raise InputError(f"The responses are given by {' and by '.join(said)}; keep one of them.")
    return right, next(iter(said.values()), Responses())


def _are_columns(Y: Any, columns: list[Any]) -> bool:
    if isinstance(Y, str):
        return Y in columns
    return (
        isinstance(Y, (list, tuple, pd.Index))
        and len(Y) > 0
        and all(isinstance(name, str) for name in Y)
    )


def _asked(feature_columns: Any, columns: list[Any]) -> Responses:
    if isinstance(feature_columns, str):
        feature_columns = [feature_columns]
    feature_columns = as_pandas(feature_columns)
    if isinstance(feature_columns, pd.Series) and pd.api.types.is_bool_dtype(feature_columns):
        feature_columns = in_order(
            feature_columns, pd.Index(columns), "`feature_columns`", of="columns"
        )
    given = np.asarray(feature_columns, dtype=object).ravel()
    if given.size and all(isinstance(value, (bool, np.bool_)) for value in given):
        if given.size != len(columns):
            raise InputError(
                f"`feature_columns` is a mask of {given.size} columns; `data` has {len(columns)}."
            )
        given = np.asarray([name for name, use in zip(columns, given, strict=True) if use])
    if given.size == 0:
        raise InputError("`feature_columns` names no column.")
    return Responses([f"`{name}`" for name in given])


def responses_of(
    table: pd.DataFrame, responses: Responses
) -> tuple[FloatArray, list[str], list[str]]:
    """Responses as features x samples.

    Returns
    -------
    Y
        Shape (m, n), NaN where missing.
    features
        Names of the m features.
    columns
        The columns of the table that they come from.

    Raises
    ------
    InputError
        If a column is unknown, twice there or not numeric.
    """
    by_text = {str(column): column for column in table.columns}
    values, features, used = [], [], []
    for text in responses:
        found = _RESPONSE.fullmatch(text)
        inner = text if found is None else found["name"] or found["of"]
        bare = inner.strip("`")
        if bare not in by_text:
            raise InputError(
                f"The response {bare!r} is not a column of `data`. {nearest(bare, list(by_text))}"
            )
        column = _numbers(table[by_text[bare]], bare)
        function = None if found is None else found["function"]
        if function:
            with np.errstate(all="ignore"):
                column = np.asarray(getattr(np, function)(column))
        values.append(column)
        features.append(f"{function}({bare})" if function else bare)
        used.append(bare)
    repeated = [name for name in dict.fromkeys(features) if features.count(name) > 1]
    if repeated:
        raise InputError(f"The response {listing(repeated)} is named more than once.")
    return np.array(values, dtype=np.float64).reshape(len(values), len(table)), features, used


def _numbers(values: pd.Series[Any], name: str) -> FloatArray:
    dtype = values.dtype
    number = pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)
    if not number and pd.api.types.is_object_dtype(dtype):
        number = pd.api.types.infer_dtype(values, skipna=True) in (
            *("integer", "floating", "mixed-integer-float", "decimal", "boolean", "empty"),
        )
    if not number:
        raise InputError(
            f"The response {name!r} must be numeric; its dtype is {dtype}. Convert it to numbers."
        )
    return np.asarray(pd.to_numeric(values.astype("Float64")).to_numpy(np.float64, na_value=np.nan))
