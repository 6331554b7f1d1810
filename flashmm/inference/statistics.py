"""t statistics, p-values and confidence limits from estimates and standard errors."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Literal, cast

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError, nearest
from flashmm.inference.tails import chi2_sf, f_sf, t_isf, t_sf

__all__ = [
    "TStatistics",
    "check_alpha",
    "chi2_pvalues",
    "confidence_limits",
    "f_pvalues",
    "resolve_alternative",
    "t_of_pvalues",
    "t_statistics",
    "two_sided_level",
]

Alternative = Literal["two-sided", "greater", "less"]

_SPELLINGS = {
    "two-sided": "two-sided",
    "two.sided": "two-sided",
    "two_sided": "two-sided",
    "greater": "greater",
    "larger": "greater",
    "less": "less",
    "smaller": "less",
}


@dataclass(frozen=True)
class TStatistics:
    """Tests of estimates against hypothesised values; all arrays of one shape.

    Parameters
    ----------
    t
        (estimate - value) / standard error; NaN where the standard error is not positive.
    p
        p-values, from survival functions, so exact far into the tail.
    """

    t: FloatArray
    p: FloatArray


def resolve_alternative(alternative: str) -> Alternative:
    """Bring the spellings of R, scipy and statsmodels to scipy's."""
    if not (isinstance(alternative, str) and alternative in _SPELLINGS):
        options = ["two-sided", "greater", "less"]
        raise InputError(
            f"Unknown alternative {alternative!r}. {nearest(str(alternative), options)}"
        )
    return cast("Alternative", _SPELLINGS[alternative])


def t_statistics(
    difference: FloatArray, se: FloatArray, df: FloatArray | float, alternative: Alternative
) -> TStatistics:
    """T tests of differences with known standard errors and degrees of freedom.

    Parameters
    ----------
    difference, se
        Estimate minus hypothesised value, and its standard error; same shape.
    df
        Degrees of freedom, broadcast.
    alternative
        ``"two-sided"``, ``"greater"`` or ``"less"``.

    Returns
    -------
    TStatistics
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(se > 0, difference / se, np.nan)
    if alternative == "two-sided":
        p = 2.0 * t_sf(np.abs(t), df)
    elif alternative == "greater":
        p = t_sf(t, df)
    else:
        p = t_sf(-t, df)
    return TStatistics(t, np.asarray(p, dtype=np.float64))


def check_alpha(alpha: float) -> None:
    """Refuse what is no level between 0 and 1."""
    if not isinstance(alpha, Real) or not 0.0 < alpha < 1.0:
        raise InputError(f"`alpha` must lie between 0 and 1, not {alpha!r}.")


def confidence_limits(
    estimate: FloatArray, se: FloatArray, df: FloatArray | float, alpha: float
) -> FloatArray:
    """Wald limits estimate -/+ t se, stacked on a last axis of length 2."""
    check_alpha(alpha)
    half = t_isf(alpha / 2.0, df) * se
    return np.stack([estimate - half, estimate + half], axis=-1)


def t_of_pvalues(p: FloatArray, df: FloatArray, *, two_sided: bool) -> FloatArray:
    """The t statistics, positive where two-sided, that have given p-values."""
    t = t_isf(p / 2.0 if two_sided else p, df)
    return np.where(np.isinf(t), np.inf, t)  # where the tail underflows


def two_sided_level(t: FloatArray, df: FloatArray) -> FloatArray:
    """Probability that Student's t exceeds ``t`` on either side."""
    return np.asarray(2.0 * t_sf(t, df))


def f_pvalues(F: FloatArray, df_num: FloatArray, df_denom: FloatArray) -> FloatArray:
    """P-values of F statistics; infinite denominator degrees of freedom make them chi-square.

    Parameters
    ----------
    F, df_num, df_denom
        Statistics and degrees of freedom, broadcast.
    """
    F, df_num, df_denom = np.broadcast_arrays(F, df_num, df_denom)
    known = np.isinf(df_denom)
    p = f_sf(F, df_num, np.where(known, 1.0, df_denom))
    return np.asarray(np.where(known, chi2_sf(F * df_num, df_num), p))


def chi2_pvalues(statistic: FloatArray, df: FloatArray) -> FloatArray:
    """P-values of chi-square statistics."""
    return chi2_sf(statistic, df)
