"""Slopes along a number over a reference grid, and their contrasts, for every feature."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError, nearest
from flashmm.formulas.new_data_recipe import DesignRecipe
from flashmm.inference.derivatives import derivative
from flashmm.results.contrast_results import TTestResults
from flashmm.results.fitted import FittedModel
from flashmm.results.reference_grid import contrast_tests, names_of, reference_grid

__all__ = ["marginal_slopes"]


def marginal_slopes(
    fitted: FittedModel,
    positions: IntArray,
    variable: str,
    *,
    by: str | Sequence[str] | None = None,
    within: str | Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
    contrast: Any = None,
    interaction: Any = None,
    reference: Any = None,
    weights: str = "equal",
    context: Mapping[str, Any] | None = None,
    **options: Any,
) -> TTestResults:
    """Slopes along a number, or their contrasts; see `MultiLMMResults.marginal_slopes`."""
    recipe = fitted.known_recipe()
    _check_variable(recipe, variable)
    kept = names_of(by, "by")
    grid = reference_grid(recipe, kept, names_of(within, "within"), at, weights, held=variable)
    point = grid.table[variable].to_numpy()
    rows = derivative(_rows_along(fitted, grid.table, variable, grid.sets_offset, context), point)
    unknown = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if unknown.size:
        raise InputError(
            f"The fixed formula has no slope along {variable!r} at {point[unknown[0]]!r}: it "
            "cannot be evaluated on both sides of it. Choose other values with `at`."
        )
    return contrast_tests(
        fitted,
        positions,
        grid,
        rows,
        grid.labels(kept) if kept else [variable],
        contrast=contrast,
        interaction=interaction,
        reference=reference,
        options=options,
        noise=1e-9,
    )


def _check_variable(recipe: DesignRecipe, variable: str) -> None:
    """Refuse what is no number of the formula."""
    columns = recipe.grid_columns
    numbers = [name for name in columns if name not in recipe.factors]
    if not isinstance(variable, str) or variable not in columns:
        raise InputError(
            f"{variable!r} is not a column of the fixed formula. {nearest(str(variable), numbers)}"
        )
    if variable not in numbers:
        raise InputError(
            f"{variable!r} is a factor in the fixed formula, and has no slope; `marginal_means` "
            "gives means at its levels."
        )


def _rows_along(
    fitted: FittedModel,
    table: pd.DataFrame,
    variable: str,
    sets_offset: bool,
    context: Mapping[str, Any] | None,
) -> Callable[[FloatArray], FloatArray]:
    """Rows of X and the offset at other values of one column, shape (n, p + 1)."""
    tried: list[bool] = []

    def rows(values: FloatArray) -> FloatArray:
        # Several values for each point of the grid, point by point.
        times = values.size // len(table)
        moved = table.loc[np.repeat(np.arange(len(table)), times)].reset_index(drop=True)
        moved[variable] = values
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore", RuntimeWarning)
                X = fitted.fixed_rows(moved, context)
                offset = np.zeros(len(moved))
                if sets_offset:
                    offset = fitted.offset_rows(moved, context)
        except InputError:
            if not tried:  # not even at the points themselves
                raise
            return np.full((len(moved), len(fitted.columns) + 1), np.nan)
        tried.append(True)
        return np.column_stack([X, offset])

    return rows
