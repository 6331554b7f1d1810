"""Distribution functions of Student's t and F, for many values on few different df.

In s = sqrt(df log(1 + t^2 / df)) the logarithm of Student's upper tail is nearly that of the normal
one in s, and as smooth. So one table of it serves all values on the same degrees of freedom: cubic
Hermite interpolation at steps of 0.01 leaves a relative error below 1e-10.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import special

from flashmm.arrays.types import FloatArray

__all__ = ["f_tail", "student_cdf", "student_density"]

_STEP, _END = 0.01, 36.0
# Tables pay where this many values share them; on fewer df they would leave the range of numbers.
_SHARED_BY, _FEWEST_DF = 20_000, 4.0


def student_cdf(df: FloatArray, t: FloatArray) -> FloatArray:
    """Distribution function at t (B, ...) on df (B,); the normal one where df is infinite."""
    different = np.unique(df)
    if t.size < _SHARED_BY * different.size or different[0] < _FEWEST_DF:
        return _direct(df.reshape(-1, *(1,) * (t.ndim - 1)), t)
    if different.size == 1:
        return _by_table(float(different[0]), t)
    result = np.empty_like(t)
    for each in different:
        here = df == each
        result[here] = _by_table(float(each), t[here])
    return result


def _direct(df: FloatArray, t: FloatArray) -> FloatArray:
    known = np.isinf(df)
    if not known.any():
        return np.asarray(special.stdtr(df, t))
    return np.asarray(np.where(known, special.ndtr(t), special.stdtr(np.where(known, 1.0, df), t)))


def _by_table(df: float, t: FloatArray) -> FloatArray:
    if np.isinf(df):
        return np.asarray(special.ndtr(t))
    s = np.sqrt(df * np.log1p(t * t / df))
    far = ~(s < _END)  # True for NaN
    at = np.where(far, 0.0, s / _STEP)
    node = at.astype(np.intp)
    x = at - node
    c = _table(df)
    tail = np.exp(c[0][node] + x * (c[1][node] + x * (c[2][node] + x * c[3][node])))
    if far.any():
        tail[far] = special.stdtr(df, -np.abs(t[far]))
    return np.asarray(np.where(t > 0, 1.0 - tail, tail))


@lru_cache(maxsize=64)
def _table(df: float) -> tuple[FloatArray, ...]:
    """Coefficients of the cubics between nodes, four of shape (nodes,)."""
    s = np.arange(0.0, _END + 2 * _STEP, _STEP)
    square = s * s / df
    t = np.sqrt(df * np.expm1(square))
    tail = special.stdtr(df, -t)
    with np.errstate(invalid="ignore"):
        stretch = np.where(s > 0, np.exp(square) * s / t, 1.0)
    value = np.log(tail)
    slope = -student_density(np.array([df]), t[None])[0] * stretch / tail * _STEP
    rise = np.diff(value)
    left, right = slope[:-1], slope[1:]
    return value[:-1], left, 3.0 * rise - 2.0 * left - right, left + right - 2.0 * rise


def student_density(df: FloatArray, t: FloatArray) -> FloatArray:
    """Density at t (B, ...) on df (B,); the normal one where df is infinite."""
    df = df.reshape(-1, *(1,) * (t.ndim - 1))
    finite = np.minimum(df, 1e12)
    # lgamma((df + 1) / 2) - lgamma(df / 2) loses its digits where df is large
    ratio = np.where(
        finite > 1e6,
        0.5 * np.log(finite / 2.0),
        special.gammaln(0.5 * (finite + 1.0)) - special.gammaln(0.5 * finite),
    )
    body = -0.5 * (finite + 1.0) * np.log1p(t * t / finite)
    return np.asarray(np.exp(ratio - 0.5 * np.log(finite * np.pi) + body))


def f_tail(F: FloatArray, r: float, df: FloatArray) -> FloatArray:
    """Upper tail of F at (B, G) on r and df (B,); chi-square over r where df is infinite."""
    df = df[:, None]
    known = np.isinf(df)
    tail = special.fdtrc(r, np.where(known, 1.0, df), F)
    return np.asarray(np.where(known, special.chdtrc(r, r * F), tail)) if known.any() else tail
