"""Marginal means over a reference grid, and their contrasts, for every feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.numeric import dimensions
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError, check_names, check_option, listing, nearest
from flashmm.formulas.new_data_recipe import DesignRecipe
from flashmm.inference.contrasts import Contrasts
from flashmm.inference.marginal_means import averaging_weights, contrast_weights
from flashmm.results.contrast_results import TTestResults
from flashmm.results.fitted import FittedModel
from flashmm.results.fixed_effects import t_test

__all__ = ["marginal_means"]

_MAX_GRID = 1_000_000
_WEIGHTS = ("equal", "proportional")


def marginal_means(
    fitted: FittedModel,
    positions: IntArray,
    specs: str | Sequence[str],
    *,
    by: str | Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
    contrast: Any = None,
    reference: str | None = None,
    weights: str = "equal",
    context: Mapping[str, Any] | None = None,
    **options: Any,
) -> TTestResults:
    """Estimated marginal means, or their contrasts; see `MultiLMMResults.marginal_means`."""
    check_option("weights", weights, _WEIGHTS)
    recipe = fitted.known_recipe()
    grid = _grid(recipe, check_names("at", at, "value"))
    kept, groups = _names(specs, "specs"), _names(by, "by")
    for name in (*kept, *groups):
        if name not in grid:
            raise InputError(
                f"{name!r} is not a column of the fixed formula. {nearest(name, list(grid))}"
            )
    if not kept:
        raise InputError("`specs` is empty; name the columns whose levels get a mean.")
    twice = [name for name in dict.fromkeys((*kept, *groups)) if (*kept, *groups).count(name) > 1]
    if twice:
        raise InputError(f"`specs` and `by` name {listing(twice)} more than once.")

    table = pd.DataFrame(list(product(*grid.values())), columns=list(grid))
    shown = (*groups, *kept)
    size = np.array([len(grid[name]) for name in shown])
    n_targets = int(size.prod())
    position = {name: np.arange(len(grid[name])) for name in grid}
    codes = pd.DataFrame(list(product(*position.values())), columns=list(grid))
    target = np.ravel_multi_index(tuple(codes[name].to_numpy() for name in shown), tuple(size))
    weight = np.ones(len(table))
    if weights == "proportional":
        weight = _frequencies(recipe, table, [name for name in grid if name not in shown])
    W = averaging_weights(target, weight, n_targets)
    if not np.isfinite(W).all():
        raise InputError(
            "No sample has the levels that `at` leaves to average over; "
            'proportional weights do not exist. Use weights="equal".'
        )
    # The offset is the last column, whose coefficient is one: its mean, as in emmeans, or its value
    # at what `at` says of its columns.
    offset = np.full(len(table), recipe.offset_mean)
    if _sets_offset(recipe, at):
        offset = fitted.offset_rows(table, context)
    rows = np.column_stack([fitted.fixed_rows(table, context), offset])
    L = W @ rows
    per_group = int(np.prod([len(grid[name]) for name in kept]))
    group_labels = [
        ", ".join(f"{name}={value}" for name, value in zip(groups, values, strict=True))
        for values in product(*(grid[name] for name in groups))
    ]
    if contrast is None:
        means = [
            ", ".join(f"{name}={value}" for name, value in zip(kept, values, strict=True))
            for values in product(*(grid[name] for name in kept))
        ]
        inner, combined = means, np.eye(per_group)
    else:
        levels = [
            " ".join(str(value) for value in values)
            for values in product(*(grid[name] for name in kept))
        ]
        inner, combined = contrast_weights(contrast, levels, reference)
    labels = tuple(
        f"{label} | {group}" if group else label for group in group_labels for label in inner
    )
    matrix = np.concatenate([combined @ part for part in L.reshape(-1, per_group, L.shape[1])])
    added = matrix[:, -1]
    tests = t_test(fitted, positions, Contrasts(matrix[:, :-1], -added, labels), **options)
    estimate = tests.ds["estimate"] + xr.DataArray(added, dims="contrast")
    ds = tests.ds.assign(estimate=estimate, value=("contrast", np.zeros(len(labels))))
    limits = tests.limits
    return TTestResults(
        ds,
        alternative=tests.alternative,
        df_method=tests.df_method,
        limits=None if limits is None else lambda alpha: limits(alpha) + added[:, None],
    )


def _names(columns: str | Sequence[str] | None, what: str) -> tuple[str, ...]:
    if columns is None:
        return ()
    one = isinstance(columns, str) or dimensions(columns) == 0
    names: tuple[Any, ...] = (columns,) if one else tuple(columns)
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise InputError(f"`{what}` takes names of columns, as text, not {wrong[0]!r}.")
    return names


def _sets_offset(recipe: DesignRecipe, at: Mapping[str, Any] | None) -> bool:
    """Whether `at` names a column that the offset is made of."""
    return recipe.offset is not None and any(name in recipe.offset.columns for name in at or {})


def _grid(recipe: DesignRecipe, at: dict[str, Any]) -> dict[str, list[Any]]:
    """Values of every column of the fixed formula."""
    columns = recipe.grid_columns
    unknown = [name for name in at if name not in columns]
    if unknown:
        raise InputError(
            f"`at` names {unknown[0]!r}, which is not a column of the fixed formula. "
            f"{nearest(str(unknown[0]), columns)}"
        )
    grid: dict[str, list[Any]] = {}
    for name in columns if _sets_offset(recipe, at) else recipe.fixed.columns:
        record = recipe.columns[name]
        if name in at:
            scalar = isinstance(at[name], str) or dimensions(at[name]) == 0
            grid[name] = [at[name]] if scalar else list(at[name])
            if not grid[name]:
                raise InputError(f"`at` gives no value for {name!r}.")
        else:
            grid[name] = list(record.levels) if name in recipe.factors else [record.mean]
    size = int(np.prod([float(len(values)) for values in grid.values()]))
    if size > _MAX_GRID:
        raise InputError(
            f"The reference grid has {size} points, more than {_MAX_GRID}. Fix some columns with "
            "`at`."
        )
    return grid


def _frequencies(recipe: DesignRecipe, table: pd.DataFrame, averaged: list[str]) -> FloatArray:
    """Samples at each grid point's levels of the factors that are averaged over."""
    factors = [name for name in averaged if name in recipe.factors]
    if not factors:
        return np.ones(len(table))
    where = [recipe.factors.index(name) for name in factors]
    shape = tuple(len(recipe.columns[name].levels) for name in factors)
    flat = np.ravel_multi_index(tuple(recipe.combinations[:, where].T), shape)
    counts = np.bincount(flat, weights=recipe.counts, minlength=int(np.prod(shape)))
    codes = [
        pd.Index(recipe.columns[name].levels).get_indexer(pd.Index(table[name])) for name in factors
    ]
    known = np.all([code >= 0 for code in codes], axis=0)
    point = np.ravel_multi_index(tuple(np.maximum(code, 0) for code in codes), shape)
    return np.where(known, counts[point], 0.0)
