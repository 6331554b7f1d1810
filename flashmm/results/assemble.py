"""From a solution in internal units to results in the units of Y, verdicts included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.inference.curved_covariance import covariance_along
from flashmm.likelihood import AnyEstimator, AnyProjection, PatternedProjection
from flashmm.likelihood.base import rows_of
from flashmm.likelihood.elimination.indefinite import covariance_is_definite
from flashmm.likelihood.known_residual import known_residual_of
from flashmm.likelihood.own_rows.patterned import PatternedLikelihood
from flashmm.likelihood.residual_groups.groups import ResidualGroups
from flashmm.likelihood.residual_groups.present_groups import PresentGroups
from flashmm.results.deferred import Deferred
from flashmm.results.fitted import FitOptions, attributes
from flashmm.results.on_request import scaled_inverse
from flashmm.solvers.base import Solution
from flashmm.solvers.batches import over_batches
from flashmm.solvers.verdict_texts import Status
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.stored import feature_coordinate
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["assemble", "without_maximum"]

# An unfinished fit this close to the edge of the likelihood's domain may be on its way to an
# infinite likelihood: where the matrix turns singular in a direction that y does not have (under
# REML most often with two components or more, which leave a choice of directions), log |V| falls
# without bound, and each factor of ten in the distance adds at least log(10) / 2.
_AT_THE_EDGE = 1e-6
_RISE = 0.5
# Closer to the edge than this, distances and rises drown in rounding.
_RESOLVED = 1e-12
# Before a maximum close to the edge the rise slackens, to six tenths of the one before.
_STEADY = 0.9


def assemble(
    stats: SummaryStats | PatternedStats,
    projection: AnyProjection,
    likelihood: AnyEstimator,
    solution: Solution,
    options: FitOptions,
    *,
    n_jobs: int | None = 1,
) -> Deferred:
    """Scale a solution back, add the fixed effects and settle the verdicts, to be labelled."""
    known_residual = known_residual_of(likelihood)
    spread = None
    if stats.structure.curved is None:
        se_theta = _standard_errors(solution.evaluation.expected)
    else:
        spread, _ = covariance_along(stats.structure, solution.theta, solution.evaluation)
        se_theta = _roots_of_diagonal(spread)
    spoilt = np.asarray(~np.isfinite(se_theta).all(axis=1))
    theta = solution.theta.copy()
    if len(stats.structure.residuals) > 1:
        grouped: Any = likelihood
        lost = grouped.lost_in_rounding(solution.theta, solution.evaluation.expected)
        spoilt |= lost
        theta[lost] = np.nan  # neither the likelihood nor what follows from it has digits there
    status = _verdicts(projection, likelihood, solution, spoilt)
    theta[status == Status.NO_MAXIMUM] = np.nan
    beta, se_beta, indefinite = _fixed_effects(
        stats, projection, likelihood, theta, options, n_jobs
    )
    several = len(stats.structure.residuals) > 1  # then V may be singular at the boundary too
    good = status <= (Status.BOUNDARY if several else Status.CONVERGED)
    status[indefinite & np.asarray(good)] = Status.INDEFINITE

    known = np.asarray(np.isfinite(theta).all(axis=1))
    natural_loglik = projection.natural_loglik(solution.evaluation.loglik, options.method)
    loglik = np.where(known, natural_loglik, np.nan)
    with np.errstate(invalid="ignore"):
        score = np.where(
            known[:, None], projection.natural_score(solution.evaluation.score), np.nan
        )
    se_theta = np.where(known[:, None], se_theta * projection.units(), np.nan)
    if projection.turn is not None:
        if spread is None:
            spread = scaled_inverse(solution.evaluation.expected)
        se_theta = _turned_errors(projection, spread, known)
    natural = projection.to_natural(theta)
    natural[status == Status.ZERO_VARIANCE] = 0.0
    if projection.absent is not None:
        natural[projection.absent] = np.nan
        se_theta[projection.absent], score[projection.absent] = np.nan, np.nan
    if known_residual is not None:
        se_theta[:, -1], score[:, -1] = np.nan, np.nan  # nothing that was estimated

    nobs = {"nobs": stats.nobs} if isinstance(stats, PatternedStats) else {}
    arrays = {
        "beta": beta,
        "se_beta": se_beta,
        "theta": natural,
        "se_theta": se_theta,
        "score": score,
        "loglik": loglik,
        "n_iter": solution.n_iter,
        "status": status,
        **nobs,
    }
    return Deferred(arrays, partial(_labelled, arrays, stats, options))


def _labelled(
    arrays: Mapping[str, NDArray[Any]], stats: SummaryStats | PatternedStats, options: FitOptions
) -> xr.Dataset:
    second = dict.fromkeys(("beta", "se_beta"), "coef") | dict.fromkeys(
        ("theta", "se_theta", "score"), "param"
    )
    return xr.Dataset(
        {
            name: (("feature", second[name]) if name in second else ("feature",), values)
            for name, values in arrays.items()
        },
        coords={
            "feature": pd.Index(feature_coordinate(stats.feature_names)),
            "coef": pd.Index(list(stats.coef_names)),
            "param": pd.Index(list(stats.structure.param_names)),
        },
        attrs=attributes(stats, options),
    )


def _turned_errors(projection: AnyProjection, spread: FloatArray, known: BoolArray) -> FloatArray:
    """Standard errors of theta in the units of Y, (m, k), where the effects have been turned."""
    features = np.flatnonzero(known)
    result = np.full(spread.shape[:2], np.nan)
    result[features] = _roots_of_diagonal(projection.natural_covariance(spread[features], features))
    return result


def _roots_of_diagonal(covariance: FloatArray) -> FloatArray:
    """Standard errors (B, k) from covariances (B, k, k)."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)))


def _standard_errors(expected: FloatArray) -> FloatArray:
    """Sqrt diag E^-1, shape (B, k), NaN where rounding has left E indefinite."""
    with np.errstate(all="ignore"):  # rounding may have spoilt E at the edge of the domain
        length = np.sqrt(np.diagonal(expected, axis1=-2, axis2=-1))
        scaled = expected / (length[:, :, None] * length[:, None, :])
        known = np.isfinite(scaled).all(axis=(1, 2))
        scaled[~known] = 0.0
        values, vectors = np.linalg.eigh(scaled)
        values[~(values[:, 0] > 0.0)] = np.nan
        return np.asarray(np.sqrt((vectors**2 / values[:, None, :]).sum(axis=2)) / length)


def _fixed_effects(
    stats: SummaryStats | PatternedStats,
    projection: AnyProjection,
    likelihood: AnyEstimator,
    theta: FloatArray,
    options: FitOptions,
    n_jobs: int | None,
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Beta and its standard errors (m, p), and where V is not positive definite."""
    m, p = stats.m, stats.p
    beta, se = np.full((m, p), np.nan), np.full((m, p), np.nan)
    indefinite = np.zeros(m, dtype=bool)
    explained = projection.zero_variance
    beta[explained] = projection.beta_ols[:, explained].T
    fitted = np.flatnonzero(np.isfinite(theta).all(axis=1))
    negative = np.asarray(((theta < 0) & stats.structure.is_variance).any(axis=1))
    identity, several = np.eye(p), len(stats.structure.residuals)
    # With D positive semi-definite only rounding takes a variance of zero below it.
    not_positive = 0.0 if options.parameter_space == "psd" else np.nan

    def estimate(batch: IntArray) -> None:
        if isinstance(likelihood, PatternedLikelihood | ResidualGroups | PresentGroups):
            beta[batch], variance = likelihood.fixed_effects(theta[batch], batch)
        else:
            beta[batch] = likelihood.beta(theta[batch], batch)
            variance = likelihood.contrast_variance(theta[batch], batch, identity)
        zero = np.where(several > 1, np.nan, not_positive)
        se[batch] = np.sqrt(np.where(variance > 0, variance, zero))
        definite = covariance_is_definite(stats.structure.blocks(), theta[batch])
        if several > 1:  # a residual variance of zero may leave V singular
            definite &= (theta[batch, -several:] > 0).all(axis=1)
        suspects = batch[negative[batch] | ~definite]
        if suspects.size:
            indefinite[suspects] = ~rows_of(likelihood, suspects).is_definite(theta[suspects])

    over_batches(estimate, likelihood, fitted, memory=options.memory, n_jobs=n_jobs)
    return beta, se, indefinite


def _verdicts(
    projection: AnyProjection, likelihood: AnyEstimator, solution: Solution, spoilt: BoolArray
) -> NDArray[np.int8]:
    """The solver's verdicts and those that the data give; ``spoilt`` (m,): no standard errors."""
    status = np.array(solution.status)
    # Where V counts as singular, rounding leaves neither a score nor information to go by.
    status[spoilt & (status <= Status.INDEFINITE)] = Status.STALLED
    if known_residual_of(likelihood) is None:
        status[projection.zero_variance] = Status.ZERO_VARIANCE
    status[likelihood.perfect_fit] = Status.PERFECT_FIT
    status[projection.non_finite] = Status.NON_FINITE
    if isinstance(projection, PatternedProjection):
        status[projection.not_estimable] = Status.NOT_ESTIMABLE
    status[without_maximum(likelihood, replace(solution, status=status))] = Status.NO_MAXIMUM
    return status


def without_maximum(likelihood: AnyEstimator, solution: Solution) -> IntArray:
    """Which unfinished features end at the edge and still rise towards it as they came near."""
    status = solution.status
    unfinished = np.flatnonzero((status == Status.ITERATION_LIMIT) | (status == Status.STALLED))
    if unfinished.size == 0:
        return unfinished
    theta = solution.theta[unfinished]
    with np.errstate(all="ignore"):  # a fit without a maximum may have gone far
        distance = rows_of(likelihood, unfinished).distance_to_edge(theta)
    near = np.flatnonzero(distance < _AT_THE_EDGE)
    if near.size == 0:
        return unfinished[near]
    features, distance = unfinished[near], distance[near]
    inside, known = np.zeros((near.size, theta.shape[1])), known_residual_of(likelihood)
    several = len(likelihood.projection.structure.residuals)
    inside[:, -several:] = 1.0 if known is None else known[features, None]
    way = inside - theta[near]
    length = np.maximum(distance, _RESOLVED)
    values = [solution.evaluation.loglik[features]]
    with np.errstate(all="ignore"):
        farther = theta[near] + length[:, None] * way
        slope = (rows_of(likelihood, features).distance_to_edge(farther) - distance) / length
        for tens in (10.0, 100.0):  # on the way back to the start, at such multiples of length
            back = (tens * length - distance) / np.maximum(slope, 1.0)
            values.append(likelihood.evaluate(theta[near] + back[:, None] * way, features).loglik)
        last, before = values[0] - values[1], values[1] - values[2]
    return features[(last > _RISE) & (last > _STEADY * before)]
