"""Comparison of fits of nested models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from flashmm.arrays.labels import label_positions
from flashmm.arrays.types import IntArray
from flashmm.exceptions import InputError
from flashmm.inference.multiplicity import adjust_pvalues
from flashmm.inference.nesting import check_same_data, nesting
from flashmm.inference.variance_tests import likelihood_ratio
from flashmm.results.fitted import FittedModel
from flashmm.stats.own_rows import PatternedStats, same_rows
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["compare_lr_test"]


def common_sums(
    large: SummaryStats | PatternedStats, small: SummaryStats | PatternedStats
) -> tuple[SummaryStats, SummaryStats]:
    """The sums of two models of the same features, which must lack the same samples."""
    if not isinstance(large, PatternedStats) and not isinstance(small, PatternedStats):
        return large, small
    if (
        isinstance(large, PatternedStats)
        and isinstance(small, PatternedStats)
        and large.n == small.n
        and same_rows(large, small)
    ):
        return large.sums, small.sums
    raise InputError("The models were fitted to different data: their features miss other samples.")


def compare_lr_test(
    fitted: FittedModel, positions: IntArray, other: Any, *, adjust: str = "bh"
) -> pd.DataFrame:
    """Likelihood-ratio test against a nested model; see `MultiLMMResults.compare_lr_test`."""
    if not isinstance(other, FittedModel):
        raise InputError(f"`other` must be the results of a fit; it is {type(other).__name__}.")
    for option in ("method", "parameter_space"):
        mine, theirs = getattr(fitted.options, option), getattr(other.options, option)
        if mine != theirs:
            raise InputError(
                f"The fits differ in {option}: {mine!r} and {theirs!r}. Fit both alike."
            )
    if fitted.options.known_residual != other.options.known_residual:
        raise InputError(
            "The residual variance is known in one of the fits and estimated in the other. Fit "
            "both alike."
        )
    names = fitted.names[positions]
    theirs = label_positions(other.names, names, "`other`", of="features", by_text=True)
    large, small = common_sums(fitted.stats.at(positions), other.stats.at(theirs))
    lacks = nesting(large, small)
    if lacks.df == 0:
        raise InputError("The two models have the same parameters: there is nothing to test.")
    check_same_data(large, small)
    if fitted.options.method == "REML" and lacks.coefficients:
        raise InputError(
            "REML fits with different fixed effects cannot be compared by their likelihoods. "
            "Fit both with method='ML', or test the coefficients with f_test."
        )
    if fitted.options.known_residual:
        mine, own = fitted.values("theta", positions)[:, -1], other.values("theta", theirs)[:, -1]
        if not np.allclose(mine, own, rtol=1e-12, atol=0.0, equal_nan=True):
            raise InputError("The fits have other known residual variances. Fit both alike.")
    good = fitted.converged[positions] & other.converged[theirs]
    full, reduced = fitted.values("loglik", positions), other.values("loglik", theirs)
    statistic = np.where(good, likelihood_ratio(full, reduced), np.nan)
    space = fitted.options.parameter_space
    null, df = lacks.null(space), np.full(positions.size, lacks.df)
    p = null.sf(statistic)
    if lacks.residuals and fitted.absent is not None:
        # Where a feature lacks the samples of groups, fewer variances are equal.
        lost = fitted.absent[positions].sum(axis=1)
        if other.absent is not None:
            lost = lost - other.absent[theirs].sum(axis=1)
        for count in np.unique(lost[lost > 0]).tolist():
            here, fewer = lost == count, replace(lacks, residuals=max(lacks.residuals - count, 0))
            df[here] = fewer.df
            if fewer.df == 0:  # a single group: nothing to compare
                statistic[here] = np.nan
            p[here] = fewer.null(space).sf(statistic[here]) if fewer.df else np.nan
    table = pd.DataFrame(
        {"statistic": statistic, "df": df, "p": p, "p_adjusted": adjust_pvalues(p, adjust)},
        index=pd.Index(names, name="feature"),
    )
    table.attrs["null"] = str(null)
    return table
