"""Random effects along a column of times or positions: ``ar1(t | g)``, ``exp(pos | g)``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from flashmm.arrays.types import FloatArray
from flashmm.designs.curves import distances
from flashmm.designs.design import RandomTerm
from flashmm.exceptions import InputError, listing
from flashmm.formulas.times import as_times, is_time

__all__ = ["MOST_DISTANCES", "MOST_EFFECTS", "along_a_column"]

# Entries of theta that a term may have: its distances, or its pairs of effects.
MOST_DISTANCES = 50
MOST_EFFECTS = 9


def along_a_column(
    term: RandomTerm, values: pd.Series[Any], given: pd.Series[Any], column: str, source: str
) -> RandomTerm:
    """The term with its effects named and placed by the values of a column.

    Parameters
    ----------
    term
        The term; its effects are the different values, ascending.
    values, given
        The column, cleaned and as it was given: numbers, dates and the like, or an ordered
        categorical, whose categories, those without samples too, are equally far apart.
    column, source
        Names for messages.

    Raises
    ------
    InputError
        If the values have no order or no distances, are not whole (``"ar1"``), or there are too few
        or too many.
    """
    what = "times" if term.covariance == "ar1" else "positions"
    at, labels, unit = _places(term.covariance, values, given, column, source)
    if at.size != len(term.effects):
        raise InputError(f"{source}: {column!r} has values that print alike. Round them.")
    if at.size < 2:
        raise InputError(
            f"{source}: {column!r} has one value, {labels[0]}, so that nothing can be correlated. "
            f"Write (1 | {term.group})."
        )
    apart, _ = distances(tuple(at.tolist()))
    steps = apart / apart[1]
    if term.covariance == "ar1" and (np.abs(steps - np.round(steps)) > 1e-9).any():
        raise InputError(
            f"{source}: the lags of {column!r}, {listing([f'{x:.6g}' for x in apart[1:]], 6)}, are "
            "no multiples of the smallest, so the correlation of one step is not in the data. "
            f"Write exp({column} | ...), where correlations are not negative."
        )
    if apart.size > MOST_DISTANCES:
        instead = (
            "Round the times to fewer steps."
            if term.covariance == "ar1"
            else f"Round the positions, or give a kernel with a range that you choose, "
            f"covariances={{{column!r}: fm.Covariance(np.exp(-distance / range), levels=...)}}, "
            f"with (1 | {column})."
        )
        raise InputError(
            f"{source}: {column!r} has {at.size} {what} with {apart.size - 1} different distances; "
            f"up to {MOST_DISTANCES - 1} are possible. {instead}"
        )
    effects = tuple(f"{column}[{label}]" for label in labels)
    return replace(term, effects=effects, positions=tuple(at.tolist()), unit=unit)


def _places(
    structure: str, values: pd.Series[Any], given: pd.Series[Any], column: str, source: str
) -> tuple[FloatArray, list[str], str]:
    """The different values as numbers, ascending, and as text, and the unit of their distances."""
    if is_time(values, structure):
        times = as_times(values, column)
        at, unit = times.distances_of(structure, column, source)
        return at, [str(label) for label in times.text.categories], unit
    if isinstance(values.dtype, pd.CategoricalDtype):
        labels = [str(level) for level in values.cat.categories]
        codes = pd.Index(given.cat.categories).get_indexer(values.cat.categories)
        if structure == "exp":
            raise InputError(
                f"{source}: {column!r} holds categories, which have no distances. Make it a column "
                "of numbers."
            )
        if not values.cat.ordered:
            raise InputError(
                f"{source}: the categories of {column!r} ({listing(labels, 4)}) have no order. "
                f"Make it an ordered categorical, data[{column!r}].cat.as_ordered(), or a column "
                "of whole numbers."
            )
        return codes.astype(np.float64), labels, ""
    if values.dtype.kind not in "iuf":
        kind = "numbers, dates or durations"
        if structure == "ar1":
            kind = "whole numbers, dates, durations or an ordered categorical"
        why = (
            "these have no order in time or space. Dates as text become dates by "
            f"pd.to_datetime(data[{column!r}])."
            if values.dtype.kind == "O"
            else "count steps, such as days since the first."
        )
        raise InputError(f"{source}: {column!r} must hold {kind}, not {values.dtype}: {why}")
    at = np.unique(values.to_numpy(dtype=np.float64))
    labels = [f"{x:.10g}" for x in at]
    if structure == "ar1" and not (at == np.round(at)).all():
        wrong = at[at != np.round(at)][0]
        raise InputError(
            f"{source}: {column!r} holds {wrong:.6g}; the times of ar1 are whole numbers, the lag "
            f"of two their difference. Write exp({column} | ...) for any times (the same for whole "
            "ones and a correlation that is not negative), or number equal steps."
        )
    return at, labels, ""
