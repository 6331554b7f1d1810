"""Predictions of the random effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from flashmm.exceptions import check_option
from flashmm.stats.stored import level_coordinates

if TYPE_CHECKING:
    from flashmm.arrays.types import IntArray
    from flashmm.results.fitted import FittedModel

__all__ = ["blup", "random_effects"]


def blup(
    fitted: FittedModel, positions: IntArray, se: str | bool | None = None
) -> xr.DataArray | xr.Dataset:
    """Best linear unbiased predictions; see `MultiLMMResults.blup`."""
    kind: Any = {True: "conditional", False: None}.get(se, se) if isinstance(se, bool) else se
    if kind is not None:
        check_option("se", kind, ("conditional", "prediction"))
    effects, errors = fitted.on_request.random_effects(positions, kind)
    dims = ("feature", "level")
    coords = {
        **level_coordinates(fitted.stats.structure),
        "feature": fitted.features[positions],
        "level": pd.Index(fitted.stats.structure.column_names),
    }
    if kind is None:
        return xr.DataArray(effects, dims=dims, coords=coords, name="blup")
    return xr.Dataset(
        {"blup": (dims, effects), "se": (dims, errors)}, coords=coords, attrs={"se": kind}
    )


def random_effects(fitted: FittedModel) -> dict[str, xr.DataArray]:
    """Predictions by random term; see `MultiLMMResults.random_effects`."""
    values, _ = fitted.on_request.random_effects(fitted.positions(), None)
    structure = fitted.stats.structure
    result = {}
    for term, start in zip(structure.terms, structure.offsets, strict=False):
        shape = (values.shape[0], len(term.levels), len(term.effects))
        result[term.name] = xr.DataArray(
            values[:, start : start + term.n_columns].reshape(shape),
            dims=("feature", "group_level", "effect"),
            coords={
                "feature": fitted.features,
                "group_level": pd.Index(term.levels),
                "effect": pd.Index(term.effects),
            },
            name=term.name,
        )
    return result
