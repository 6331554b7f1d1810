"""Tails of Student's t, F, chi-square and the normal distribution.

They are scipy.stats' own (the same special functions, the same values outside their range), without
scipy.stats, which takes longer to import than everything else together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from flashmm.arrays.types import FloatArray

__all__ = ["chi2_sf", "f_sf", "norm_isf", "norm_sf", "t_isf", "t_sf"]


def t_sf(t: ArrayLike, df: ArrayLike) -> FloatArray:
    """Upper tail of Student's t; broadcast. The lower tail at t is the upper one at -t."""
    return np.asarray(special.stdtr(df, np.negative(t)))


def t_isf(tail: ArrayLike, df: ArrayLike) -> FloatArray:
    """Student's t with the given upper tail; broadcast."""
    return np.asarray(np.negative(special.stdtrit(df, tail)))


def f_sf(F: ArrayLike, df_num: ArrayLike, df_denom: ArrayLike) -> FloatArray:
    """Upper tail of F at finite denominator degrees of freedom; broadcast."""
    F, df_num, df_denom = (np.asarray(x, dtype=np.float64) for x in (F, df_num, df_denom))
    tail = special.fdtrc(df_num, df_denom, F)
    return np.asarray(np.where((F <= 0) & (df_num > 0) & (df_denom > 0), 1.0, tail))


def chi2_sf(x: ArrayLike, df: ArrayLike) -> FloatArray:
    """Upper tail of chi-square; broadcast; NaN where there are no degrees of freedom."""
    x, df = np.asarray(x, dtype=np.float64), np.asarray(df, dtype=np.float64)
    tail = np.where(x <= 0, 1.0, np.where(x == np.inf, 0.0, special.chdtrc(df, np.fmax(x, 0.0))))
    return np.asarray(np.where((df > 0) & ~np.isnan(x), tail, np.nan))


def norm_sf(z: ArrayLike) -> FloatArray:
    """Upper tail of the standard normal distribution."""
    return np.asarray(special.ndtr(np.negative(z)))


def norm_isf(tail: ArrayLike) -> FloatArray:
    """Standard normal deviate with the given upper tail."""
    return np.asarray(np.negative(special.ndtri(tail)))
