"""Results in one netCDF file: estimates, statistics, options and recipe."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.types import IntArray
from flashmm.exceptions import InputError
from flashmm.formulas.new_data_recipe import DesignRecipe
from flashmm.formulas.recipe_text import recipe_from_text, recipe_to_text
from flashmm.likelihood import ENGINES
from flashmm.results.fitted import FitOptions, FittedModel, attributes
from flashmm.solvers.verdict_texts import Status
from flashmm.stats.groups import finer_groups, sizes_by_group, with_residual_groups
from flashmm.stats.own_rows import PatternedStats, any_from_dataset
from flashmm.stats.summary_stats import SummaryStats
from flashmm.storage.files import load_dataset, reading, save_dataset
from flashmm.storage.schema import OPTIONAL, RESULTS

__all__ = ["load_results", "save_results"]


# Options that earlier files lack.
_LATER = {"residual_variance": "estimated", "residual_by": "", "residual_groups": ""}


def save_results(fitted: FittedModel, path: str | PathLike[str]) -> None:
    """Write a fitted model; see `MultiLMMResults.save`."""
    stats = fitted.stats.to_dataset()
    ds = xr.merge([fitted.ds, stats], join="exact", compat="no_conflicts")
    ds.attrs = {**stats.attrs, **fitted.ds.attrs}
    ds.attrs["flashmm_kind"] = "MultiLMMResults"
    if fitted.recipe is not None:
        with contextlib.suppress(InputError):
            text = recipe_to_text(fitted.recipe)
            recipe_from_text(text)  # what loading would refuse is not written
            ds = ds.assign(recipe=("recipes", np.array([text], dtype=object)))
    save_dataset(ds, path)


def load_results(path: str | PathLike[str]) -> FittedModel:
    """Read what `save_results` wrote; see `MultiLMMResults.load`."""
    merged = load_dataset(path, kind="MultiLMMResults")
    with reading(path):
        return _fitted_model(merged)


def _fitted_model(merged: xr.Dataset) -> FittedModel:
    stats = any_from_dataset(merged)
    options = _options(merged.attrs)
    if options.residual_by:
        stats = _with_residual_groups(stats, options)
    names = [*RESULTS, *(name for name in OPTIONAL if name in merged)]
    ds = merged[names]
    ds = ds.drop_vars([name for name in ds.coords if name not in ("feature", "coef", "param")])
    ds = ds.assign_coords({name: pd.Index(ds[name].to_numpy()) for name in ds.coords})
    for name, expected in (
        ("coef", stats.coef_names),
        ("param", stats.structure.param_names),
    ):
        if list(ds[name].to_numpy()) != list(expected):
            raise InputError(f"{name!r} does not name those of the statistics beside it.")
    if not np.isin(ds["status"], [int(status) for status in Status]).all():
        raise InputError(f"'status' holds a verdict that is none: {int(ds['status'].max())}.")
    if (ds["n_iter"] < 0).any():
        raise InputError("'n_iter' holds a negative number of iterations.")
    _check_theta(ds, options, sizes_by_group(stats))
    ds["n_iter"], ds["status"] = ds["n_iter"].astype(np.int64), ds["status"].astype(np.int8)
    ds.attrs = attributes(stats, options)
    recipe = None
    if "recipe" in merged:
        recipe = recipe_from_text(str(merged["recipe"].to_numpy()[0]))
        _check_recipe(recipe, stats)
    if "nobs" in ds:
        ds["nobs"] = ds["nobs"].astype(np.int64)
    return FittedModel(ds, stats, options, recipe=recipe)


def _check_theta(ds: xr.Dataset, options: FitOptions, sizes: IntArray | None) -> None:
    """Raise for a theta that no fit ends at; ``sizes`` of groups with residual variances, (m, H).

    That of a group without samples is NaN.
    """
    theta = ds["theta"].to_numpy().copy()
    if sizes is not None:
        own = theta[:, -sizes.shape[1] :]
        if np.isfinite(own[sizes == 0]).any():
            raise InputError("'theta' holds a residual variance of a group without samples.")
        own[sizes == 0] = 1.0
    theta = theta[ds["status"].to_numpy() <= Status.INDEFINITE]
    if not np.isfinite(theta).all() or not (theta != 0).any(axis=1).all():
        raise InputError("'theta' is missing, infinite or zero where there is a fit.")
    if options.parameter_space == "psd" and (theta[:, -1] < 0).any():
        raise InputError("'theta' holds a negative residual variance in the psd space.")


def _with_residual_groups(
    stats: SummaryStats | PatternedStats, options: FitOptions
) -> SummaryStats | PatternedStats:
    """The statistics with a residual variance for each of their groups, as they were fitted."""
    groups = stats.groups
    if groups is None or groups.name != options.residual_by:
        raise InputError(
            "It has residual variances by the groups of "
            f"{options.residual_by[:80]!r}, and no sums by them."
        )
    if options.residual_groups:
        within = finer_groups(options.residual_groups)[1]
        if set(within.values()) != set(groups.labels):
            raise InputError("Its groups with a residual variance are made of others.")
    return with_residual_groups(stats, options.residual_by)


def _options(attrs: dict[Any, Any]) -> FitOptions:
    """The options of a fit, each of the type and among the values that it can have."""
    known: dict[str, Any] = {
        "method": ("REML", "ML"),
        "parameter_space": ("psd", "unconstrained"),
        "residual_variance": ("estimated", "known"),
        "engine": ("auto", "groups", "patterned", *ENGINES),
    }
    values: dict[str, Any] = {}
    for field in fields(FitOptions):
        name, value = field.name, attrs.get(field.name)
        if value is None and name in _LATER:
            value = _LATER[name]
        if name in known and value not in known[name]:
            raise InputError(f"{name!r} is {str(value)[:80]!r}, not one of {list(known[name])}.")
        if name in ("max_iter", "memory", "n_dropped"):
            value = _whole(name, value)
        elif name == "epsilon":
            if not isinstance(value, (float, int, np.floating)) or not 0 < value < np.inf:
                raise InputError(f"'epsilon' is {str(value)[:80]!r}, no positive number.")
            value = float(value)
        elif not isinstance(value, str):
            raise InputError(f"{name!r} is {str(value)[:80]!r}, which is no text.")
        values[name] = value
    return FitOptions(**values)


def _whole(name: str, value: Any) -> int:
    number = isinstance(value, (int, float, np.integer, np.floating))
    if not number or not np.isfinite(value) or value != int(value) or value < 0:
        raise InputError(f"{name!r} is {str(value)[:80]!r}, no whole number.")
    return int(value)


def _check_recipe(recipe: DesignRecipe, stats: SummaryStats | PatternedStats) -> None:
    """Raise unless a recipe makes the columns that the statistics are of."""
    absent = [name for name in stats.coef_names if name not in recipe.fixed.names]
    if absent:
        raise InputError(f"Its recipe makes no column {absent[0]!r:.80}.")
    terms = {term.name: term for term in recipe.terms}
    for term in stats.structure.terms:
        own = terms.get(term.name)
        if own is None:
            raise InputError(f"Its recipe makes no random term {term.name!r:.80}.")
        made = own.effects.names if own.group else term.effects
        fits = set(term.effects) <= set(made)
        if not (len(made) == len(term.effects) if term.positions else fits):  # with own names
            raise InputError(f"Its recipe makes other effects of {term.name!r:.80}.")
