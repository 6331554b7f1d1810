"""Covariates of each feature's own in the formula of the fixed effects.

The design is built with ones in their place. A column that a covariate multiplies is then the
rest of that column; which do is found by putting other numbers in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from flashmm.designs.design import Design
from flashmm.exceptions import InputError
from flashmm.formulas.build import build_design
from flashmm.formulas.coding import said_before
from flashmm.formulas.sample_table import check_data

__all__ = ["covariates_of_columns", "refuse_in_factor", "with_ones"]

# Rows that tell on what a column depends.
_PROBED = 2000


def with_ones(data: Any, names: Sequence[str]) -> pd.DataFrame:
    """The samples' table with a column of ones for each covariate."""
    table = check_data(data)
    for name in names:
        if name in table.columns:
            raise InputError(
                f"{name!r} is a covariate of each feature's own (`feature_covariates`) and a "
                "column of `data` too. Rename one of them."
            )
    return table.assign(**dict.fromkeys(names, 1.0))


def refuse_in_factor(factor: str, names: Sequence[str]) -> None:
    """Raise if a factor that has one level where covariates are one is made of a covariate."""
    for name in names:
        if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", factor):
            raise InputError(_misused(name)) from None


def covariates_of_columns(
    fixed: Any,
    random: Any,
    data: pd.DataFrame,
    design: Design,
    names: Sequence[str],
    context: Mapping[str, Any] | None,
) -> tuple[tuple[int, ...], ...]:
    """For each column of X the positions of the covariates that multiply it.

    Parameters
    ----------
    fixed, random, context
        As in `build_design`.
    data
        The samples' table, ones in place of the covariates, no value missing.
    design
        Its design.
    names
        The covariates.

    Raises
    ------
    InputError
        If one is not used, is used in a function or a power, or in a random effect.
    """
    n = len(data)
    found: list[tuple[int, ...]] = [()] * len(design.coef_names)
    X, Z = np.asarray(design.X[:n]), design.Z[:n]
    known = [term.name for term in design.structure.terms]  # what is allowed has been seen to
    some = np.random.default_rng(0).uniform(0.5, 1.5, size=n)
    rows = slice(0, min(n, _PROBED))
    for position, name in enumerate(names):
        with said_before():
            some_data = data.assign(**{name: some})
            other = build_design(fixed, random, some_data, context=context, known=known).design
        if other.structure != design.structure or abs(other.Z[:n] - Z).sum() > 0:
            raise InputError(
                f"{name!r}, a covariate of each feature's own, stands in a random effect; it can "
                "only be one of the fixed effects."
            )
        probed, times = np.asarray(other.X[:n])[rows], some[rows, None]
        if probed.shape[1] != X.shape[1]:
            raise InputError(_misused(name))
        same = (probed == X[rows]).all(axis=0)
        linear = np.isclose(probed, X[rows] * times, rtol=1e-12, atol=0.0).all(axis=0) & ~same
        if not (same | linear).all():
            raise InputError(_misused(name))
        if not linear.any():
            raise InputError(f"`fixed` does not use the covariate {name!r}.")
        for column in np.flatnonzero(linear):
            found[column] = (*found[column], position)
    return tuple(found)


def _misused(name: str) -> str:
    return (
        f"{name!r}, a covariate of each feature's own, may stand in `fixed` alone and in "
        "interactions, not in a function or a power. Transform it before, and pass the result."
    )
