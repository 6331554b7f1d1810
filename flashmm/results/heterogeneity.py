"""How far the samples of a fit with known residual variances differ: Q, I2 and H2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.design import INTERCEPT
from flashmm.exceptions import InputError
from flashmm.inference.statistics import chi2_pvalues
from flashmm.results.fitted import FittedModel
from flashmm.stats.own_rows import PatternedStats

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
    variances, sums = _intercepts(fitted), _Levels.of(fitted)
    mean_diagonal, trace = _mean_diagonals(fitted, variances, sums), _trace(fitted, variances, sums)
    typical = df[positions] * theta[:, -1] / trace[sums.design[positions]]
    components = theta[:, variances]
    shares = components * mean_diagonal[sums.design[positions]]
    total = shares.sum(axis=1) + typical
    share = 100.0 * shares / total[:, None]
    I2, H2 = share.sum(axis=1), total / typical
    if not variances.size:
        I2 = np.full(positions.size, np.nan)
    if len(fitted.params) == 1:  # Higgins and Thompson's (2002) own, equations 5 and 10
        H2 = Q / df[positions]
        with np.errstate(divide="ignore", invalid="ignore"):
            I2 = np.where(np.isnan(Q), np.nan, 100.0 * np.fmax(0.0, 1.0 - 1.0 / H2))
    dims = ("feature", "component")
    found = xr.Dataset(
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
    return found if variances.size else found.drop_dims("component")


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


@dataclass(frozen=True)
class _Levels:
    """Sums of the designs D that features have.

    Parameters
    ----------
    design
        Position of the design of each feature, shape (m,).
    n
        Samples, shape (D,).
    weight
        Weight of the samples of each column of Z, shape (D, q).
    ZX
        Shape (D, q, p).
    """

    design: IntArray
    n: FloatArray
    weight: FloatArray
    ZX: FloatArray

    @classmethod
    def of(cls, fitted: FittedModel) -> _Levels:
        """Those of a fit."""
        stats = fitted.stats
        if not isinstance(stats, PatternedStats):
            one = np.array([float(stats.n)])
            none = np.zeros(stats.m, dtype=np.intp)
            return cls(none, one, stats.ZZ.diagonal()[None], stats.ZX[None])
        designs = stats.designs
        weight = np.zeros((designs.count, designs.q))
        diagonal = designs.rows == designs.columns
        weight[:, designs.rows[diagonal]] = designs.ZZ[:, diagonal]
        return cls(stats.pattern, designs.n, weight, designs.ZX)


def _mean_diagonals(fitted: FittedModel, variances: IntArray, sums: _Levels) -> FloatArray:
    """Mean diagonals of known covariances over the levels with samples, else one, (D, c)."""
    structure = fitted.stats.structure
    result = np.ones((sums.n.size, variances.size))
    for c, i in enumerate(variances):
        root = structure.terms[structure.parameters[i].term].root
        if root is not None:
            seen = sums.weight[:, structure.columns(structure.parameters[i])[0]] > 0
            with np.errstate(invalid="ignore"):
                result[:, c] = (seen * root.diagonal).sum(axis=1) / seen.sum(axis=1)
    return result


def _trace(fitted: FittedModel, variances: IntArray, sums: _Levels) -> FloatArray:
    """Tr P at tau2 = 0 and a residual variance of one, shape (D,).

    Higgins and Thompson's (2002) typical sampling variance is n - p over it. Z'PZ of a component
    that has a level of its own for every sample is P, its samples in another order; NaN without.
    """
    structure = fitted.stats.structure
    result = np.full(sums.n.size, np.nan)
    for i in variances:
        columns = structure.columns(structure.parameters[i])[0]
        weight = sums.weight[:, columns]
        alone = np.isnan(result) & ((weight > 0).sum(axis=1) == sums.n)
        if not alone.any():
            continue
        weight = weight[alone]
        # Levels are samples: these are the rows of X, times the roots of their weights.
        rows = sums.ZX[alone][:, columns] / np.sqrt(np.where(weight > 0, weight, 1.0))[:, :, None]
        length = np.sqrt((rows**2).sum(axis=1, keepdims=True))
        Q = np.linalg.qr(rows / np.where(length > 0, length, 1.0))[0]
        result[alone] = (weight * np.maximum(1.0 - (Q**2).sum(axis=2), 0.0)).sum(axis=1)
    return result
