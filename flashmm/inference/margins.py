"""Tests of hypotheses that are intervals: minimum effects, equivalence and non-inferiority."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.inference.statistics import Alternative, TStatistics, t_statistics

__all__ = ["NULLS", "interval_tests", "one_sided_of"]

OneSided = Callable[[float, Alternative], TStatistics]

NULLS = ("inside", "outside")


def one_sided_of(
    difference: FloatArray, se: FloatArray, df: FloatArray, margin: FloatArray
) -> OneSided:
    """One-sided t tests against an end of the interval, for `interval_tests`.

    Parameters
    ----------
    difference
        Estimates minus the middle of the interval, shape (m, c).
    se, df
        Standard errors and degrees of freedom, shape (m, c).
    margin
        Half the length of the interval, shape (c,).
    """
    return lambda end, side: t_statistics(difference - end * margin, se, df, side)


def interval_tests(test: OneSided, null: str, alternative: Alternative) -> TStatistics:
    """Tests whether an effect d lies in the interval from -margin to margin.

    ==========  ===========  ============================  ===================================
    null        alternative  hypothesis                    p-value
    ==========  ===========  ============================  ===================================
    inside      two-sided    -margin <= d <= margin        P(T > (|d|-margin)/se) +
                                                           P(T > (|d|+margin)/se), that of
                                                           treat (McCarthy & Smyth 2009)
    inside      greater      d <= margin                   one-sided: superiority by a margin
    inside      less         d >= -margin                  one-sided
    outside     two-sided    d <= -margin or d >= margin   the larger of two one-sided ones:
                                                           equivalence (Schuirmann 1987)
    outside     greater      d <= -margin                  one-sided: non-inferiority
    outside     less         d >= margin                   one-sided
    ==========  ===========  ============================  ===================================

    Parameters
    ----------
    test
        ``test(end, side)``: the one-sided test against ``end`` (-1 or 1) times the margin.
    null
        ``"inside"`` or ``"outside"``: where the hypothesis lies.
    alternative
        ``"two-sided"``, ``"greater"`` or ``"less"``.

    Returns
    -------
    TStatistics
        t is that of the end that decides; of treat 0 where the estimate lies inside, as in limma.
    """
    if alternative == "greater":
        return test(1.0 if null == "inside" else -1.0, "greater")
    if alternative == "less":
        return test(-1.0 if null == "inside" else 1.0, "less")
    above, below = test(-1.0, "greater"), test(1.0, "less")
    if null == "outside":
        upper = above.p < below.p  # the test against the upper end has the larger p-value
        return TStatistics(np.where(upper, below.t, above.t), np.maximum(above.p, below.p))
    far_above, far_below = test(1.0, "greater"), test(-1.0, "less")
    p = np.minimum(above.p + far_above.p, below.p + far_below.p)
    t = np.where(far_above.t > 0, far_above.t, np.minimum(far_below.t, 0.0))
    return TStatistics(np.where(np.isnan(far_above.t), np.nan, t), np.minimum(p, 1.0))
