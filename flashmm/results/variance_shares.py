"""Shares of the variance: of the random effects alone, and of all terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from flashmm.arrays.numeric import float_array
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError, check_option
from flashmm.inference.names import by_coefficient, term_name
from flashmm.inference.variance_fractions import (
    column_sums,
    component_weights,
    fixed_shares,
    own_component_weights,
    own_sample_covariances,
    sample_covariance,
    weight_total,
)
from flashmm.inference.variance_fractions import variance_fractions as fractions
from flashmm.results.fitted import FittedModel
from flashmm.stats.own_rows import PatternedStats

__all__ = ["chunks", "covariances_of_columns", "icc", "variance_fractions", "weights_of_components"]


def icc(fitted: FittedModel, positions: IntArray) -> xr.Dataset:
    """Intra-class correlations; see `MultiLMMResults.icc`."""
    fitted.shared_samples("icc", "See `theta`.")
    names, weights = weights_of_components(fitted, positions)
    transposed = np.swapaxes(weights, -1, -2)
    scale = fitted.projection.scale[positions]  # shares have no units, squares of theta no room
    theta = fitted.values("theta", positions) / scale[:, None]
    parts = np.matmul(theta[:, None, :], transposed)[:, 0]
    spread = fitted.on_request.theta_covariance(positions, relative=True)
    covariance = np.matmul(np.matmul(weights, spread), transposed)
    shares = fractions(parts, covariance, np.ones(len(names)))
    return _shares(fitted, positions, names, shares.estimate, shares.se)


def variance_fractions(
    fitted: FittedModel,
    positions: IntArray,
    *,
    by: str = "term",
    column_means: ArrayLike | None = None,
) -> xr.Dataset:
    """Shares of the total variance; see `MultiLMMResults.variance_fractions`."""
    fitted.shared_samples("variance_fractions", "See `theta`.")
    check_option("by", by, ("term", "coef"))
    S = covariances_of_columns(fitted, positions, column_means)
    terms: dict[str, list[int]] = {}
    for i, name in enumerate(fitted.stats.coef_names):
        if (S[..., i, i] > 0).any():
            terms.setdefault(term_name(name) if by == "term" else name, []).append(i)
    names, weights = weights_of_components(fitted, positions)
    transposed = np.swapaxes(weights, -1, -2)
    repeated = set(names) & set(terms)
    labels = [f"{name} (fixed)" if name in repeated else name for name in terms]
    scale = fitted.projection.scale[positions]  # shares have no units, squares of theta no room
    theta = fitted.values("theta", positions) / scale[:, None]
    beta = fitted.values("beta", positions) / np.sqrt(scale)[:, None]
    fixed = fixed_shares(beta, S, list(terms.values()))
    parts = np.concatenate([fixed.value, np.matmul(theta[:, None, :], transposed)[:, 0]], axis=1)
    c, t, p = parts.shape[1], len(terms), fitted.stats.p
    covariance = np.zeros((positions.size, c, c))
    random = np.matmul(
        np.matmul(weights, fitted.on_request.theta_covariance(positions, relative=True)), transposed
    )
    covariance[:, t:, t:] = random
    for rows in chunks(positions.size, p**2 + t * p, fitted.options.memory):
        g = fixed.gradient[rows]
        C = fitted.on_request.covariance(positions[rows]) / scale[rows, None, None]
        covariance[rows, :t, :t] = np.matmul(np.matmul(g, C), np.swapaxes(g, 1, 2))
    shares = fractions(parts, covariance, np.ones(c))
    return _shares(fitted, positions, (*labels, *names), shares.estimate, shares.se)


def weights_of_components(
    fitted: FittedModel, positions: IntArray
) -> tuple[tuple[str, ...], FloatArray]:
    """What each parameter adds to each component of variance, shape (c, k) or (B, c, k)."""
    stats = fitted.independent
    if isinstance(stats, PatternedStats):
        designs = stats.designs.at(stats.pattern[positions])
        return own_component_weights(stats.structure, designs)
    return component_weights(stats, _total(fitted))


def covariances_of_columns(
    fitted: FittedModel, positions: IntArray, column_means: ArrayLike | None
) -> FloatArray:
    """Covariances of the columns of X over the samples, shape (p, p) or (B, p, p)."""
    stats = fitted.stats
    if isinstance(stats, PatternedStats):
        if column_means is not None:
            fitted.one_design("`column_means`")
        return own_sample_covariances(stats.designs.at(stats.pattern[positions]))
    return sample_covariance(stats.XX, _column_sums(fitted, column_means), _total(fitted))


def chunks(count: int, numbers: int, memory: int) -> list[slice]:
    """Slices of ``count`` rows of so many numbers each, to the memory budget."""
    size = int(max(1, memory // (32 * max(numbers, 1))))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _column_sums(fitted: FittedModel, column_means: ArrayLike | None) -> FloatArray:
    if column_means is not None:
        given = by_coefficient(column_means, fitted.stats.coef_names, "`column_means`")
        means = float_array(given, "`column_means`")
        if means.shape != (fitted.stats.p,) or not np.isfinite(means).all():
            raise InputError(
                f"`column_means` must be {fitted.stats.p} finite numbers, one for each column of "
                f"X; its shape is {means.shape}."
            )
        return means * _total(fitted)
    sums = column_sums(fitted.one_design("Column sums"))
    if sums is None:
        raise InputError(
            "The variance of a fixed effect needs the means of the columns of X, which these "
            "statistics do not tell: the model has no intercept, no full set of indicators of "
            "a factor and no random intercept. Give `column_means`, X.mean(axis=0)."
        )
    return sums


def _total(fitted: FittedModel) -> float:
    """Sum of the samples' weights, n without."""
    total = weight_total(fitted.one_design("The sum of the weights"))
    if total is None:
        raise InputError(
            "Shares of the variance of weighted samples need the sum of the weights, which these "
            "statistics do not tell: the model has no intercept and no random intercept. Compute "
            "them from `theta` for the weight you mean."
        )
    return total


def _shares(
    fitted: FittedModel,
    positions: IntArray,
    names: Sequence[str],
    estimate: FloatArray,
    se: FloatArray,
) -> xr.Dataset:
    dims = ("feature", "component")
    return xr.Dataset(
        {"estimate": (dims, estimate), "se": (dims, se)},
        coords={"feature": fitted.features[positions], "component": pd.Index(names)},
    )
