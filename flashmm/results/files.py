"""Results in one netCDF file: estimates, statistics, options and recipe."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.exceptions import InputError
from flashmm.formulas.recipe_text import recipe_from_text, recipe_to_text
from flashmm.results.fitted import FitOptions, FittedModel, attributes
from flashmm.stats.own_rows import any_from_dataset
from flashmm.storage.files import load_dataset, save_dataset
from flashmm.storage.schema import OPTIONAL, RESULTS

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["load_results", "save_results"]


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
    stats = any_from_dataset(merged)
    attrs = merged.attrs
    values = {field.name: attrs[field.name] for field in fields(FitOptions)}
    for name in ("max_iter", "memory", "n_dropped"):
        values[name] = int(values[name])
    options = FitOptions(**values)
    ds = merged[[*RESULTS, *(name for name in OPTIONAL if name in merged)]]
    ds = ds.drop_vars([name for name in ds.coords if name not in ("feature", "coef", "param")])
    ds = ds.assign_coords({name: pd.Index(ds[name].to_numpy()) for name in ds.coords})
    ds["n_iter"], ds["status"] = ds["n_iter"].astype(np.int64), ds["status"].astype(np.int8)
    ds.attrs = attributes(stats, options)
    recipe = None
    if "recipe" in merged:
        recipe = recipe_from_text(str(merged["recipe"].to_numpy()[0]))
    if "nobs" in ds:
        ds["nobs"] = ds["nobs"].astype(np.int64)
    return FittedModel(ds, stats, options, recipe=recipe)
