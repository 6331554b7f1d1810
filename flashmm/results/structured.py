"""Standard deviations and correlations of the random effects, whatever the structure is fitted in.

A compound symmetric term is fitted in the eigenvalues of its covariance matrix, v (1 + (s - 1) rho)
of the mean of a level's s effects and v (1 - rho) of the deviations from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.curves import CURVED
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import check_option
from flashmm.inference.correlations import CommonCorrelation, CommonVariance
from flashmm.inference.statistics import check_alpha
from flashmm.inference.tails import norm_isf
from flashmm.results.correlations import profiled, random_correlations
from flashmm.results.fitted import FittedModel
from flashmm.results.own_parameters import own_estimates, shown_own
from flashmm.results.variance_components import conf_int_theta

__all__ = ["CommonParameters", "common_parameters", "random_parameters", "shown_parameters"]


@dataclass(frozen=True)
class CommonParameters:
    """The parameters of a compound symmetric term: where its eigenvalues are, and its name."""

    name: str
    mean: int
    deviation: int
    s: int

    def variance(self, theta: FloatArray) -> FloatArray:
        """The variance of each effect, theta (B, k): (B,)."""
        mean, deviation = theta[:, self.mean], theta[:, self.deviation]
        return np.asarray((mean + (self.s - 1) * deviation) / self.s)

    def covariance(self, theta: FloatArray) -> FloatArray:
        """The covariance of two effects, (B,)."""
        return np.asarray((theta[:, self.mean] - theta[:, self.deviation]) / self.s)

    def correlation(self, theta: FloatArray) -> FloatArray:
        """The correlation of two effects, (B,); NaN where the variance is not positive."""
        v = self.variance(theta)
        return np.asarray(self.covariance(theta) / np.where(v > 0, v, np.nan))


def common_parameters(structure: CovarianceStructure) -> list[CommonParameters]:
    """The compound symmetric terms."""
    return [
        CommonParameters(
            structure.terms[p.term].name, i, i + 1, len(structure.terms[p.term].effects)
        )
        for i, p in enumerate(structure.parameters)
        if structure.terms[p.term].covariance == "cs" and p.row == 0
    ]


def shown_parameters(
    structure: CovarianceStructure, theta: FloatArray
) -> tuple[list[str], FloatArray]:
    """Names and values (B, k) of theta (B, k) as pages show it: cs by variance and correlation."""
    names, values = list(structure.param_names), theta.copy()
    for common in common_parameters(structure):
        names[common.mean], names[common.deviation] = common.name, f"{common.name}[rho]"
        values[:, common.mean] = common.variance(theta)
        values[:, common.deviation] = common.correlation(theta)
    return shown_own(structure, names, values)


def random_parameters(
    fitted: FittedModel, positions: IntArray, alpha: float = 0.05, *, method: str = "delta"
) -> xr.Dataset:
    """Standard deviations and correlations; see `MultiLMMResults.random_parameters`."""
    check_option("method", method, ("delta", "profile"))
    check_alpha(alpha)
    if method == "profile":
        fitted.linear("method='profile'", "Use method='delta'.")
    columns = [
        *_deviations(fitted, positions, alpha, method),
        *_pairs(fitted, positions, alpha, method),
    ]
    structure = fitted.stats.structure
    for common in common_parameters(structure):
        columns += _common(fitted, positions, alpha, method, common)
    columns += [
        _Column(own.name, own.kind, own.term, own.values, own.unit)
        for own in own_estimates(fitted, positions, alpha)
    ]
    residual = [column for column in columns if not column.term]
    order = {term.name: i for i, term in enumerate(structure.terms)}
    columns = sorted((column for column in columns if column.term), key=lambda c: order[c.term])
    columns += residual
    dims = ("feature", "param")
    table = np.stack([column.values for column in columns], axis=1)
    units = np.array([column.unit for column in columns], dtype=object)
    told = {"unit": ("param", units)} if units.any() else {}
    return xr.Dataset(
        {
            name: (dims, table[:, :, i])
            for i, name in enumerate(("estimate", "se", "lower", "upper"))
        },
        coords={
            "feature": fitted.features[positions],
            "param": pd.Index([column.name for column in columns], dtype=object),
            "kind": ("param", np.array([column.kind for column in columns], dtype=object)),
            **told,
        },
        attrs={"method": method, "alpha": float(alpha)},
    )


@dataclass(frozen=True)
class _Column:
    """One parameter: estimate, standard error and limits, (B, 4)."""

    name: str
    kind: str
    term: str
    values: FloatArray
    unit: str = ""


def _deviations(
    fitted: FittedModel, positions: IntArray, alpha: float, method: str
) -> Iterator[_Column]:
    """Standard deviations that are the root of one entry of theta."""
    structure = fitted.stats.structure
    own = [
        i
        for i, p in enumerate(structure.parameters)
        if p.is_variance and structure.terms[p.term].covariance not in ("cs", *CURVED)
    ]
    of_effects = len(own)
    own += range(len(structure.parameters), len(fitted.params))  # residual variances, by group
    theta = fitted.values("theta", positions)[:, own]
    error = fitted.values("se_theta", positions)[:, own]
    names = [str(fitted.params[i]) for i in own]
    sd, se = _root(theta, error)
    if method == "profile":
        found = conf_int_theta(
            fitted, positions, alpha, method="profile", scale="sd", params=names
        ).to_numpy()
    else:
        found = _log_limits(sd, se, alpha)
    for j, i in enumerate(own):
        values = np.concatenate([np.stack([sd[:, j], se[:, j]], axis=1), found[:, j]], axis=1)
        term = "" if j >= of_effects else structure.terms[structure.parameters[i].term].name
        yield _Column(names[j], "sd", term, values)


def _pairs(
    fitted: FittedModel, positions: IntArray, alpha: float, method: str
) -> Iterator[_Column]:
    """Correlations of the pairs of effects of unstructured terms."""
    structure = fitted.stats.structure
    linear = [p for p in structure.parameters if structure.terms[p.term].curve is None]
    covariances = [p for p in linear if not p.is_variance]
    if not covariances:
        return
    found = random_correlations(fitted, positions, alpha, method=method)
    for j, parameter in enumerate(covariances):
        values = np.stack(
            [found[name].to_numpy()[:, j] for name in ("estimate", "se", "lower", "upper")], axis=1
        )
        term = structure.terms[parameter.term].name
        yield _Column(parameter.name, "correlation", term, values)


def _common(
    fitted: FittedModel, positions: IntArray, alpha: float, method: str, at: CommonParameters
) -> list[_Column]:
    """The standard deviation and the correlation of a compound symmetric term."""
    scale = fitted.projection.scale[positions]
    theta = fitted.values("theta", positions) / scale[:, None]  # squares of theta may have no room
    places = [at.mean, at.deviation]
    covariance = fitted.on_request.theta_covariance(positions, relative=True)
    covariance = covariance[:, places][:, :, places]
    s = at.s
    v, rho = at.variance(theta), at.correlation(theta)
    sd, se = _root(v, _error(np.broadcast_to([1.0 / s, (s - 1.0) / s], (v.size, 2)), covariance))
    unit = np.sqrt(scale)
    sd, se = sd * unit, se * unit
    with np.errstate(invalid="ignore", divide="ignore"):
        # Of rho = c / v: (dc - rho dv) / v.
        gradient = np.stack([(1.0 - rho) / s / v, (-1.0 - (s - 1.0) * rho) / s / v], axis=1)
        rho_se = _error(gradient, covariance)
        # z = log((1 + (s - 1) rho) / (1 - rho)) / 2 has this derivative by rho.
        slope = 0.5 * s / ((1.0 + (s - 1.0) * rho) * (1.0 - rho))
        z_se, sd_se = rho_se * slope, se / sd
    correlated = CommonCorrelation(at.mean, at.deviation, s)
    if method == "profile":
        bounded = fitted.options.parameter_space == "psd"
        common = CommonVariance(at.mean, at.deviation, s, bounded)
        of_sd = profiled(fitted, positions, sd_se, common, alpha)
        of_rho = profiled(fitted, positions, z_se, correlated, alpha)
    else:
        of_sd = _log_limits(sd, se, alpha)
        half = norm_isf(alpha / 2.0) * z_se
        edge = np.isclose(rho, 1.0, atol=1e-12) | np.isclose(rho, -1.0 / (s - 1), atol=1e-12)
        centre = np.where(edge, np.nan, correlated.z(theta))
        of_rho = np.stack(
            [correlated.value(centre - half), correlated.value(centre + half)], axis=1
        )
    first, second = np.stack([sd, se], axis=1), np.stack([rho, rho_se], axis=1)
    return [
        _Column(at.name, "sd", at.name, np.concatenate([first, of_sd], axis=1)),
        _Column(
            f"{at.name}[rho]", "correlation", at.name, np.concatenate([second, of_rho], axis=1)
        ),
    ]


def _error(gradient: FloatArray, covariance: FloatArray) -> FloatArray:
    """Standard errors (B,) of functions with gradients (B, k) of what has covariances (B, k, k)."""
    variance = np.matmul(np.matmul(gradient[:, None, :], covariance), gradient[:, :, None])
    return np.asarray(np.sqrt(np.maximum(variance[:, 0, 0], 0.0)))


def _root(variance: FloatArray, error: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Standard deviations and their errors; NaN for a negative variance, no error at zero."""
    sd = np.sqrt(np.where(variance >= 0, variance, np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        return sd, np.where(sd > 0, error / (2.0 * sd), np.nan)


def _log_limits(sd: FloatArray, se: FloatArray, alpha: float) -> FloatArray:
    """Limits symmetric on the log scale, one more axis of two; NaN for zero."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # far beyond numbers: inf
        half = norm_isf(alpha / 2.0) * se / sd
        return np.stack([sd * np.exp(-half), sd * np.exp(half)], axis=-1)
