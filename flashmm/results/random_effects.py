"""Predictions of the random effects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.types import IntArray
from flashmm.designs.design import INTERCEPT
from flashmm.exceptions import InputError, check_option, listing
from flashmm.results.fitted import FittedModel
from flashmm.stats.stored import level_coordinates

__all__ = ["blup", "coefficients_by_group", "random_effects"]


def blup(
    fitted: FittedModel, positions: IntArray, se: str | bool | None = None
) -> xr.DataArray | xr.Dataset:
    """Best linear unbiased predictions; see `MultiLMMResults.blup`."""
    kind: Any = {True: "conditional", False: None}.get(se, se) if isinstance(se, bool) else se
    if kind is not None:
        check_option("se", kind, ("conditional", "prediction"))
    effects, errors = fitted.on_request.level_effects(positions, kind)
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


class _ByTerm(dict[str, xr.DataArray]):
    """Random effects by term, which says so to who asks for a level or a feature."""

    def __missing__(self, name: object) -> xr.DataArray:
        term = next(iter(self), "g")
        raise KeyError(
            f"{name!r} is no random term; those are {listing(list(self))}. A level is "
            f"random_effects[{term!r}].sel(group_level=...), a feature "
            "result['GENE'].random_effects."
        )


def random_effects(fitted: FittedModel) -> dict[str, xr.DataArray]:
    """Predictions by random term; see `MultiLMMResults.random_effects`."""
    values, _ = fitted.on_request.level_effects(fitted.positions(), None)
    structure = fitted.stats.structure
    result = _ByTerm()
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


def coefficients_by_group(fitted: FittedModel, positions: IntArray) -> dict[str, xr.DataArray]:
    """Fixed plus random effects of each level; see `MultiLMMResults.coef`."""
    structure, names = fitted.stats.structure, [str(name) for name in fitted.coefs]
    values, _ = fitted.on_request.level_effects(positions, None)
    beta = fitted.values("beta", positions)
    known = [i for i in range(len(structure.terms)) if _has_effects(fitted, i)]
    if structure.terms and not known:
        raise InputError(
            "The columns of Z are not known to be effects of groups: the model was built from "
            "matrices. Add `random_effects` to `params` as the columns mean it."
        )
    factors: dict[str, list[int]] = {}
    for i in known:
        factors.setdefault(structure.terms[i].group, []).append(i)
    result = {}
    for group, members in factors.items():
        levels = max((structure.terms[i].levels for i in members), key=len)
        effects = [effect for i in members for effect in structure.terms[i].effects]
        coefs = [*names, *(effect for effect in effects if effect not in names)]
        table = np.zeros((positions.size, len(levels), len(coefs)))
        table[..., : len(names)] = beta[:, None, :]
        table[np.isnan(beta).any(axis=1)] = np.nan
        for i in members:
            term, start = structure.terms[i], structure.offsets[i]
            shape = positions.size, len(term.levels), len(term.effects)
            own = values[:, start : start + term.n_columns].reshape(shape)
            places = np.array([coefs.index(effect) for effect in term.effects])
            if term.levels == levels:
                table[..., places] += own
            else:  # a term with a known covariance has levels that another lacks
                here = pd.Index(levels).get_indexer(pd.Index(term.levels))
                table[:, here[:, None], places] += own
        result[group] = xr.DataArray(
            table,
            dims=("feature", "group_level", "coef"),
            coords={
                "feature": fitted.features[positions],
                "group_level": pd.Index(levels),
                "coef": pd.Index(coefs),
            },
            name=group,
        )
    return result


def _has_effects(fitted: FittedModel, position: int) -> bool:
    """Whether a term's columns are effects of the levels of a factor."""
    term = fitted.stats.structure.terms[position]
    if term.covariance != "identity" or len(term.effects) > 1:
        return True
    recipe = fitted.recipe
    if recipe is None or term.effects != (INTERCEPT,):
        return False
    return any(made.name == term.name and made.group for made in recipe.terms)
