"""How far the samples of a fit with known residual variances differ: Q, I2 and H2."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.design import INTERCEPT
from flashmm.exceptions import InputError
from flashmm.inference.statistics import chi2_pvalues
from flashmm.likelihood import make_likelihood
from flashmm.results.fitted import FittedModel

__all__ = ["heterogeneity"]


def heterogeneity(fitted: FittedModel, positions: IntArray) -> xr.Dataset:
    """Cochran's Q, I2 and H2; see `MultiLMMResults.heterogeneity`."""
    if not fitted.options.known_residual:
        raise InputError(
            "`heterogeneity` compares how samples differ with their known sampling variances; "
            "here the residual variance was estimated. Fit with weights 1 / s^2 and "
            "residual_variance=1.0."
        )
    df = np.broadcast_to(np.asarray(fitted.nobs - fitted.stats.p, dtype=np.float64), fitted.stats.m)
    known = fitted.on_request.known[positions]
    theta = fitted.values("theta", positions)
    projection = fitted.projection
    scale = np.where(projection.zero_variance, 0.0, projection.scale)[positions]
    Q = np.where(known, df[positions] * scale / theta[:, -1], np.nan)
    variances = _intercepts(fitted)
    typical = _typical_variance(fitted, positions, df[positions])
    components = theta[:, variances]
    total = components.sum(axis=1) + typical
    share = 100.0 * components / total[:, None]
    I2, H2 = share.sum(axis=1), total / typical
    if not len(fitted.params) - 1:  # Higgins and Thompson's (2002) own, equations 5 and 10
        H2 = Q / df[positions]
        with np.errstate(divide="ignore", invalid="ignore"):
            I2 = np.where(np.isnan(Q), np.nan, 100.0 * np.fmax(0.0, 1.0 - 1.0 / H2))
    dims = ("feature", "component")
    return xr.Dataset(
        {
            "Q": ("feature", Q),
            "df": ("feature", np.where(known, df[positions], np.nan)),
            "p": ("feature", chi2_pvalues(Q, np.where(known, df[positions], np.nan))),
            "typical_variance": ("feature", typical),
            "I2": ("feature", I2),
            "H2": ("feature", H2),
            "tau2": (dims, components),
            "I2_component": (dims, share),
        },
        coords={
            "feature": fitted.features[positions],
            "component": pd.Index(fitted.params[variances]),
        },
    )


def _intercepts(fitted: FittedModel) -> IntArray:
    """Positions in theta of the variances of intercepts."""
    structure = fitted.stats.structure
    found = [
        i
        for i, parameter in enumerate(structure.parameters)
        if parameter.is_variance
        and structure.terms[parameter.term].effects[max(parameter.row, 0)] == INTERCEPT
    ]
    return np.array(found, dtype=np.intp)


def _typical_variance(fitted: FittedModel, positions: IntArray, df: FloatArray) -> FloatArray:
    """Higgins and Thompson's (2002) typical sampling variance, (n - p) / tr P at tau2 = 0, (B,).

    tr P is tr(P Z Z') of a component that has a level of its own for every sample; with P = R /
    sigma2 there it is 2 sigma2 times what the expected information has of it and the residual.
    NaN where no component is such.
    """
    structure, n = fitted.stats.structure, fitted.stats.n
    result = np.full(positions.size, np.nan)
    alone = [
        i for i in _intercepts(fitted) if len(structure.columns(structure.parameters[i])[0]) == n
    ]
    if not alone:
        return result
    projection = fitted.projection
    likelihood = make_likelihood(projection, "REML")
    for here, batch in fitted.on_request.batches(positions):
        theta = np.zeros((batch.size, len(structure.param_names)))
        theta[:, -1] = fitted.on_request.theta[batch, -1]
        at = likelihood.evaluate(theta, batch)
        trace = 2.0 * theta[:, -1] * at.expected[:, alone[0], -1]
        unit = projection.units(batch)[:, alone[0]]
        result[here] = df[here] * unit / trace
    return result
