"""Starting values: the default, one vector for all, one row per feature, or another fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flashmm.arrays.labels import as_pandas, find_labels, is_default
from flashmm.arrays.types import BoolArray, FloatArray
from flashmm.exceptions import InputError, listing
from flashmm.likelihood.base import Likelihood
from flashmm.likelihood.own_rows.patterned_projection import PatternedProjection
from flashmm.likelihood.projection import Projection
from flashmm.solvers.space import ParameterSpace

__all__ = ["Starts", "starting_rows", "starting_values"]


@dataclass(frozen=True)
class Starts:
    """Where the search for each feature's maximum begins.

    Parameters
    ----------
    theta
        In internal units and inside the space, shape (m, k).
    given
        Features whose start was given to the fit, shape (m,). The others start from the default.
    """

    theta: FloatArray
    given: BoolArray


def starting_values(
    likelihood: Likelihood,
    projection: Projection | PatternedProjection,
    space: ParameterSpace,
    theta0: Any,
    feature_names: NDArray[Any],
) -> Starts:
    """Starting values of all features.

    The default has no random-effect variance and the residual variance of the fixed effects
    alone; zero lies in both spaces. A likelihood may have a better one. Given values outside the
    space, or where the likelihood does not exist, fall back to it feature by feature.
    """
    m, k = likelihood.m, likelihood.n_params
    default = np.zeros((m, k))
    default[:, -len(projection.structure.residuals) :] = 1.0
    first = getattr(likelihood, "first_start", None)
    if first is not None:
        default = np.where(np.isfinite(first).all(axis=1, keepdims=True), first, default)
    if theta0 is None:
        return Starts(default, np.zeros(m, dtype=bool))
    params = projection.structure.param_names
    given = projection.to_internal(starting_rows(theta0, m, params, feature_names))
    alone = is_one_vector(theta0)
    if alone and m and not space.contains(given[:1]).all():
        raise InputError(
            f"`theta0` lies outside the {space.name} space: D must be positive semi-definite "
            "there, with no variance below zero. Give other values, or fit with "
            "parameter_space='unconstrained'."
        )
    usable = np.isfinite(given).all(axis=1) & projection.varies
    usable &= space.contains(np.where(np.isfinite(given), given, 0.0))
    start = np.where(usable[:, None], given, default)
    step = likelihood.batch_size(2**28)
    for first in range(0, m, step):
        features = np.arange(first, min(first + step, m))
        exists = np.isfinite(likelihood.evaluate(start[features], features).loglik)
        usable[features[~exists]] = False
    if alone and not usable.any() and projection.varies.any():
        raise InputError(
            "V is not positive definite at `theta0` for any feature. It holds variances in "
            "squared units of Y, the residual variance last, which must be positive."
        )
    return Starts(np.where(usable[:, None], start, default), np.asarray(usable))


def is_one_vector(theta0: Any) -> bool:
    """Whether theta0 is one vector for all features, and no table or fit of others."""
    if hasattr(theta0, "theta"):
        return False
    return isinstance(theta0, Mapping) or np.ndim(as_pandas(theta0)) == 1


def starting_rows(
    theta0: Any,
    m: int,
    params: tuple[str, ...],
    feature_names: NDArray[Any],
    name: str = "theta0",
) -> FloatArray:
    """Values of theta in the units of Y, shape (m, k); a DataFrame is matched by label."""
    k = len(params)
    if hasattr(theta0, "theta") and isinstance(theta0.theta, pd.DataFrame | pd.Series):
        theta0 = theta0.theta
    theta0 = pd.Series(theta0) if isinstance(theta0, Mapping) else as_pandas(theta0)
    if isinstance(theta0, pd.Series) and not is_default(theta0.index):
        theta0 = _in_columns(theta0.to_frame().T, params, name).iloc[0].to_numpy(dtype=np.float64)
    if isinstance(theta0, pd.DataFrame):
        rows = _rows_of(_in_columns(theta0, params, name), feature_names, name)
    else:
        try:
            rows = np.asarray(theta0, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(
                f"`{name}` must be numbers, a DataFrame or the results of a fit."
            ) from None
        if rows.ndim == 1 and rows.size == k:
            if not np.isfinite(rows).all():
                raise InputError(f"`{name}` must be finite, not {rows.tolist()}.")
            rows = np.tile(rows, (m, 1))
    if rows.shape != (m, k):
        raise InputError(
            f"`{name}` has shape {np.shape(theta0)}; it must have {k} values (variance components, "
            f"the residual last), or be of shape ({m}, {k})."
        )
    return np.asarray(rows)


def _in_columns(theta0: pd.DataFrame, params: tuple[str, ...], what: str) -> pd.DataFrame:
    """The columns in the order of the parameters, by label where they have labels."""
    if is_default(theta0.columns):
        return theta0
    absent = [name for name in params if name not in theta0.columns]
    if absent:
        raise InputError(
            f"The columns of `{what}`, {listing(theta0.columns)}, must be the variance "
            f"parameters {listing(params, 10)}; {listing(absent)} is absent."
        )
    return theta0[list(params)]


def _rows_of(theta0: pd.DataFrame, feature_names: NDArray[Any], what: str) -> FloatArray:
    """Rows of the features by label; NaN for one that has none."""
    values: FloatArray = theta0.to_numpy(dtype=np.float64)
    if is_default(theta0.index) and feature_names.dtype.kind not in "iu":
        return values
    own = pd.Index([str(name) for name in theta0.index], dtype=object)
    if not own.is_unique:
        raise InputError(
            f"`{what}` has more than one row for the features "
            f"{listing(own[own.duplicated()].unique())}."
        )
    names = [str(name) for name in feature_names]
    found = find_labels(own, names)
    if names and (found < 0).all():
        raise InputError(
            f"`{what}` has rows for {listing(own, 3)}, and none for the features that are fitted "
            f"({listing(names, 3)}): they do not match by label."
        )
    return np.where(found[:, None] < 0, np.nan, values[np.maximum(found, 0)])
