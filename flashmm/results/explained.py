"""R2 of mixed models: marginal, conditional, and by fixed term."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from flashmm.arrays.types import IntArray
from flashmm.exceptions import check_option
from flashmm.inference.degrees_of_freedom import DEFAULT_DF
from flashmm.inference.variance_fractions import variance_fractions as fractions
from flashmm.results.fitted import FittedModel
from flashmm.results.term_tests import anova
from flashmm.results.variance_shares import chunks, covariances_of_columns, weights_of_components

__all__ = ["r_squared"]


def r_squared(
    fitted: FittedModel,
    positions: IntArray,
    *,
    by: str = "model",
    divisor: str = "n-1",
    column_means: ArrayLike | None = None,
    type: Any = 3,
    df: str = DEFAULT_DF,
) -> xr.Dataset:
    """Explained variance; see `MultiLMMResults.r_squared`."""
    check_option("by", by, ("model", "term"))
    check_option("divisor", divisor, ("n-1", "n"))
    fitted.shared_samples("r_squared", "See `theta`.")
    if by == "term":
        return _by_term(fitted, positions, type, df)
    S = covariances_of_columns(fitted, positions, column_means)
    if divisor == "n-1":
        n = np.asarray(fitted.nobs, dtype=np.float64)
        n = n[positions] if n.ndim else n
        with np.errstate(divide="ignore", invalid="ignore"):
            S = S * (n / (n - 1.0))[..., None, None]
    scale = fitted.projection.scale[positions]  # ratios have no units, squares of theta no room
    beta = fitted.values("beta", positions) / np.sqrt(scale)[:, None]
    theta = fitted.values("theta", positions) / scale[:, None]
    S = np.broadcast_to(S, (positions.size, *S.shape[-2:]))
    gradient = 2.0 * np.matmul(S, beta[:, :, None])[:, :, 0]
    _, weights = weights_of_components(fitted, positions)
    weights = np.broadcast_to(weights, (positions.size, *weights.shape[-2:]))
    own = np.stack([weights[:, :-1].sum(axis=1), weights[:, -1]], axis=1)
    parts = np.empty((positions.size, 3))
    parts[:, 0] = 0.5 * (gradient * beta).sum(axis=1)
    parts[:, 1:] = np.matmul(own, theta[:, :, None])[:, :, 0]
    covariance = np.zeros((positions.size, 3, 3))
    random = fitted.on_request.theta_covariance(positions, relative=True)
    covariance[:, 1:, 1:] = np.matmul(np.matmul(own, random), np.swapaxes(own, 1, 2))
    for rows in chunks(positions.size, fitted.stats.p**2, fitted.options.memory):
        C = fitted.on_request.covariance(positions[rows]) / scale[rows, None, None]
        g = gradient[rows]
        covariance[rows, 0, 0] = np.matmul(np.matmul(g[:, None, :], C), g[:, :, None])[:, 0, 0]
    found = fractions(parts, covariance, np.ones(3))
    values = {
        "marginal": found.estimate[:, 0],
        "conditional": 1.0 - found.estimate[:, 2],
        "marginal_se": found.se[:, 0],
        "conditional_se": found.se[:, 2],
        **dict(zip(("fixed", "random", "residual"), parts.T * scale, strict=True)),
    }
    return xr.Dataset(
        {name: (("feature",), value) for name, value in values.items()},
        coords={"feature": fitted.features[positions]},
        attrs={"divisor": divisor},
    )


def _by_term(fitted: FittedModel, positions: IntArray, type: Any, df: str) -> xr.Dataset:
    """Edwards et al.'s semi-partial R2 from F tests."""
    tests = anova(fitted, positions, type=type, df=df)
    explained = tests.ds["df_num"].to_numpy() * tests.ds["F"].to_numpy()
    with np.errstate(invalid="ignore"):
        value = explained / (explained + tests.ds["df_denom"].to_numpy())
    return xr.Dataset(
        {"r_squared": (("feature", "term"), value)},
        coords={
            "feature": fitted.features[positions],
            "term": pd.Index(tests.contrasts, dtype=object),
        },
        attrs={"df": tests.df_method, "type": tests.ds.attrs["type"]},
    )
