"""Tables in each other's place: ``data`` and Y, or the two axes of an AnnData object."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from flashmm.arrays.foreign_frames import is_foreign
from flashmm.arrays.labels import as_pandas
from flashmm.exceptions import InputError
from flashmm.formulas.sample_table import check_data

__all__ = ["samples_table", "swapped", "transposed"]


def samples_table(data: Any, Y: Any) -> pd.DataFrame:
    """The table of samples; an error where there is none."""
    if data is None:
        more = ""
        if type(Y).__name__ == "AnnData":
            more = " Of an AnnData object take MultiLMM.from_anndata, whose data are its obs."
        raise InputError(
            "from_formula needs `data`, a table with one row per sample that holds the columns of "
            f"the formula.{more}"
        )
    if type(data).__name__ in ("AnnData", "MuData", "SpatialData"):
        raise InputError(
            f"`data` is of type {type(data).__name__}: pass it to MultiLMM.from_anndata, or its "
            "`obs` as `data`."
        )
    if not isinstance(data, pd.DataFrame) and isinstance(as_pandas(Y), pd.DataFrame):
        try:
            return check_data(data)
        except InputError as error:
            raise InputError(
                f"{error} Are `data` and `Y` swapped? The order is formula, random, data, Y."
            ) from error
    return check_data(data)


def _names(*formulas: Any) -> set[str]:
    """Words of formulas that are no calls."""
    text = " ".join(str(formula) for formula in formulas if formula is not None)
    return {(a or b) for a, b in re.findall(r"`([^`]+)`|([^\W\d][\w.]*)\b(?!\s*\()", text)}


def swapped(error: InputError, fixed: Any, random: Any, data: Any, Y: Any) -> InputError:
    """The error of formulas that were not understood, or that ``data`` and Y are swapped."""
    table = as_pandas(Y) if is_foreign(Y) else Y
    if not isinstance(table, pd.DataFrame):
        return error
    names = _names(fixed, random)
    if names & set(map(str, table.columns)) and not names & set(map(str, data.columns)):
        return InputError(
            "`data` and `Y` are swapped: the formula's columns are those of Y. Pass the samples' "
            "table as `data`, and the measurements, features x samples, as `Y`."
        )
    return error


def transposed(
    error: InputError, fixed: Any, random: Any, obs: pd.DataFrame, var: pd.DataFrame
) -> InputError:
    """The error of formulas that were not understood, or that an AnnData object is transposed."""
    names = _names(fixed, random)
    if names & set(map(str, var.columns)) and not names & set(map(str, obs.columns)):
        return InputError(
            "The AnnData object is transposed: its obs must describe the cells, but the "
            "formula's columns are in its var. Pass adata.T."
        )
    return error
