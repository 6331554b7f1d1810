"""The reference grid of a fit: averages of what is predicted over it, and their contrasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.numeric import dimensions
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError, check_names, check_option, listing, nearest
from flashmm.formulas.new_data_recipe import DesignRecipe
from flashmm.inference.contrast_families import contrast_weights, interaction_weights
from flashmm.inference.contrasts import Contrasts
from flashmm.inference.marginal_means import averaging_weights
from flashmm.results.contrast_results import TTestResults
from flashmm.results.fitted import FittedModel
from flashmm.results.fixed_effects import t_test
from flashmm.results.simultaneous import Family, JointContrasts

__all__ = ["ReferenceGrid", "contrast_tests", "names_of", "reference_grid"]

_MAX_GRID = 1_000_000
_WEIGHTS = ("equal", "proportional")


@dataclass(frozen=True)
class ReferenceGrid:
    """Points at which a model is predicted, and the averages over them.

    Parameters
    ----------
    table
        The points, one row each.
    values
        Values of every column, whose product the points are.
    kept, groups
        Columns whose levels get an average each, and those within whose levels they do.
    averages
        Weights of the points in each average, shape (n_averages, n_points); groups vary slowest.
    sets_offset
        Whether the points set a column that the offset is made of.
    """

    table: pd.DataFrame
    values: dict[str, list[Any]]
    kept: tuple[str, ...]
    groups: tuple[str, ...]
    averages: FloatArray
    sets_offset: bool

    @property
    def per_group(self) -> int:
        """Averages within one group."""
        return int(np.prod([len(self.values[name]) for name in self.kept]))

    @property
    def levels(self) -> dict[str, list[str]]:
        """Levels of the columns that get averages, as text."""
        return {name: [str(value) for value in self.values[name]] for name in self.kept}

    def labels(self, names: tuple[str, ...]) -> list[str]:
        """Combinations of levels: ``"trt=A, cls=1"``."""
        return [
            ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
            for values in product(*(self.values[name] for name in names))
        ]


def reference_grid(
    recipe: DesignRecipe,
    kept: tuple[str, ...],
    groups: tuple[str, ...],
    at: Mapping[str, Any] | None,
    weights: str,
    *,
    held: str | None = None,
) -> ReferenceGrid:
    """The grid of a fit and what is averaged over it.

    Parameters
    ----------
    recipe
        How X is made of data.
    kept, groups
        Columns whose levels get an average each, and those within whose levels they do.
    at
        Values in place of all levels or of the mean.
    weights
        ``"equal"`` or ``"proportional"``.
    held
        A column that the grid has even where the offset alone uses it.

    Raises
    ------
    InputError
        If a column, a level or an option is unknown.
    """
    check_option("weights", weights, _WEIGHTS)
    given = check_names("at", at, "value")
    grid = _grid(recipe, given, held)
    for name in (*kept, *groups):
        if name not in grid:
            if "~" in str(name):
                raise InputError(
                    f"{name!r} is a formula: name the columns, marginal_means('a', by='b'), and "
                    "for all pairs of means pass contrast='pairwise'."
                )
            raise InputError(
                f"{name!r} is not a column of the fixed formula. {nearest(name, list(grid))}"
            )
    twice = [name for name in dict.fromkeys((*kept, *groups)) if (*kept, *groups).count(name) > 1]
    if twice:
        raise InputError(f"`specs` and `by` name {listing(twice)} more than once.")
    table = pd.DataFrame(list(product(*grid.values())), columns=list(grid))
    shown = (*groups, *kept)
    size = tuple(len(grid[name]) for name in shown)
    position = {name: np.arange(len(grid[name])) for name in grid}
    codes = pd.DataFrame(list(product(*position.values())), columns=list(grid))
    target = np.zeros(len(table), dtype=np.intp)
    if shown:
        target = np.ravel_multi_index(tuple(codes[name].to_numpy() for name in shown), size)
    weight = np.ones(len(table))
    if weights == "proportional":
        weight = _frequencies(recipe, table, [name for name in grid if name not in shown])
    W = averaging_weights(target, weight, int(np.prod(size)))
    if not np.isfinite(W).all():
        raise InputError(
            "No sample has the levels that `at` leaves to average over; "
            'proportional weights do not exist. Use weights="equal".'
        )
    return ReferenceGrid(table, grid, kept, groups, W, _sets_offset(recipe, given, held))


def contrast_tests(
    fitted: FittedModel,
    positions: IntArray,
    grid: ReferenceGrid,
    rows: FloatArray,
    labels: list[str],
    *,
    contrast: Any,
    interaction: Any,
    reference: Any,
    options: Mapping[str, Any],
    noise: float = 1e-13,
) -> TTestResults:
    """Tests of averages over a grid, or of contrasts of them within each group.

    Parameters
    ----------
    fitted, positions
        The fit, and positions of the features.
    grid
        The grid.
    rows
        What is averaged at its points: coefficients of beta and, last, what is known, shape
        (n_points, p + 1).
    labels
        Names of the averages of one group, for tests of the averages themselves.
    contrast, interaction, reference
        As in `MultiLMMResults.marginal_means`.
    options
        Those of `MultiLMMResults.t_test`.
    noise
        Relative error of ``rows``: what cancels to less is zero.
    """
    L = grid.averages @ rows
    if contrast is not None and interaction is not None:
        raise InputError("Pass `contrast`, or `interaction` for products of contrasts; not both.")
    if contrast is None and interaction is None:
        if reference is not None:
            raise InputError("`reference` is the control of contrast='trt.vs.ctrl'; there is none.")
        inner, combined = labels, np.eye(grid.per_group)
    elif interaction is not None:
        factors = grid.levels if grid.kept else {labels[0]: labels}
        inner, combined = interaction_weights(interaction, factors, reference)
    else:
        levels = [" ".join(values) for values in product(*grid.levels.values())]
        inner, combined = contrast_weights(contrast, levels if grid.kept else labels, reference)
    names = tuple(
        f"{label} | {group}" if group else label
        for group in grid.labels(grid.groups)
        for label in inner
    )
    parts = L.reshape(-1, grid.per_group, L.shape[1])
    matrix = np.concatenate([_without_noise(combined, part, noise) for part in parts])
    _refuse_constants(matrix[:, :-1], names)
    added = matrix[:, -1]
    tests = t_test(fitted, positions, Contrasts(matrix[:, :-1], -added, names), **options)
    estimate = tests.ds["estimate"] + xr.DataArray(added, dims="contrast")
    ds = tests.ds.assign(estimate=estimate, value=("contrast", np.zeros(len(names))))
    limits, joint, c = tests.limits, tests.joint, len(inner)
    assert joint is not None
    families = tuple(
        Family(np.arange(start, start + c), combined) for start in range(0, len(names), c)
    )
    return TTestResults(
        ds,
        alternative=tests.alternative,
        df_method=tests.df_method,
        limits=None if limits is None else lambda alpha: limits(alpha) + added[:, None],
        joint=JointContrasts(joint.matrix, joint.covariance, families),
    )


def _without_noise(combined: FloatArray, rows: FloatArray, noise: float) -> FloatArray:
    """Combinations of rows, exactly zero where they cancel."""
    found = combined @ rows
    found[np.abs(found) <= noise * (np.abs(combined) @ np.abs(rows))] = 0.0
    return np.asarray(found)


def _refuse_constants(matrix: FloatArray, labels: tuple[str, ...]) -> None:
    """Refuse contrasts that are the same whatever the coefficients are."""
    constant = [label for label, row in zip(labels, matrix, strict=True) if not row.any()]
    if constant:
        raise InputError(
            f"The formula itself fixes {listing(constant, 3)}, whatever the coefficients: there is "
            "nothing to test. Slopes, or differences, that should vary between levels need an "
            "interaction with them."
        )


def names_of(columns: str | Sequence[str] | None, what: str) -> tuple[str, ...]:
    """Names of columns; ``what`` is the argument that holds them."""
    if columns is None:
        return ()
    """Names of columns; ``what`` is the argument that holds them."""
    one = isinstance(columns, str) or dimensions(columns) == 0
    names: tuple[Any, ...] = (columns,) if one else tuple(columns)
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise InputError(f"`{what}` takes names of columns, as text, not {wrong[0]!r}.")
    return names


def _sets_offset(recipe: DesignRecipe, at: Mapping[str, Any], held: str | None) -> bool:
    """Whether `at` names, or a slope is along, a column that the offset is made of."""
    return recipe.offset is not None and any(
        name in recipe.offset.columns for name in (*at, *([] if held is None else [held]))
    )


def _grid(recipe: DesignRecipe, at: dict[str, Any], held: str | None) -> dict[str, list[Any]]:
    """Values of every column of the fixed formula."""
    columns = recipe.grid_columns
    unknown = [name for name in at if name not in columns]
    if unknown:
        raise InputError(
            f"`at` names {unknown[0]!r}, which is not a column of the fixed formula. "
            f"{nearest(str(unknown[0]), columns)}"
        )
    grid: dict[str, list[Any]] = {}
    for name in columns if _sets_offset(recipe, at, held) else recipe.fixed.columns:
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
