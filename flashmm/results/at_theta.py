"""The log-likelihood and its derivatives at a theta of the user's own, for every feature."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd

from flashmm.likelihood import AnyProjection, make_likelihood
from flashmm.likelihood.base import evaluate_in_parts
from flashmm.solvers.start import starting_rows
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["loglike", "score"]


def loglike(
    stats: SummaryStats | PatternedStats,
    projection: AnyProjection,
    theta: Any,
    method: Literal["REML", "ML"],
) -> pd.Series[Any]:
    """Log-likelihoods (m,); see `MultiLMM.loglike`."""
    value, _ = _at(stats, projection, theta, method)
    return pd.Series(value, index=pd.Index(stats.feature_names, name="feature"), name="loglike")


def score(
    stats: SummaryStats | PatternedStats,
    projection: AnyProjection,
    theta: Any,
    method: Literal["REML", "ML"],
) -> pd.DataFrame:
    """Derivatives by theta (m, k); see `MultiLMM.score`."""
    _, found = _at(stats, projection, theta, method)
    index = pd.Index(stats.feature_names, name="feature")
    columns = pd.Index(list(stats.structure.param_names), name="param")
    return pd.DataFrame(found, index=index, columns=columns)


def _at(
    stats: SummaryStats | PatternedStats,
    projection: AnyProjection,
    theta: Any,
    method: Literal["REML", "ML"],
) -> tuple[Any, Any]:
    """Log-likelihoods (m,) and scores (m, k) in the units of Y; NaN where there is no theta."""
    given = starting_rows(theta, stats.m, stats.structure.param_names, stats.feature_names, "theta")
    inside = projection.to_internal(given)
    known = np.flatnonzero(projection.varies & np.isfinite(inside).all(axis=1))
    value, derivatives = np.full(stats.m, np.nan), np.full(given.shape, np.nan)
    found = evaluate_in_parts(make_likelihood(projection, method), inside[known], known)
    value[known] = projection.natural_loglik(found.loglik, method, known)
    derivatives[known] = found.score
    return value, projection.natural_score(derivatives)
