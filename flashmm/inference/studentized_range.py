"""The studentized range of k independent means, for many values and degrees of freedom at once.

The range W of k standard normal variables exceeds w with probability

    k int phi(z) [Phi(z)^(k-1) - (Phi(z) - Phi(z - w))^(k-1)] dz,

whose integrand is nowhere negative, so that small probabilities keep their digits. It is tabulated
once for each k. The studentized range W / s, s^2 ~ chi2_df / df, exceeds q with the mean of that
probability at q s over s: the trapezoidal rule in log s, about the peak of the integrand, which
converges geometrically.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import special

from flashmm.arrays.types import FloatArray
from flashmm.inference.quantiles import threshold
from flashmm.inference.tails import t_isf

__all__ = ["range_quantile", "range_tail"]

# A table of the range's tail: its last value and its step.
_END, _STEP = 52.0, 0.01
# Nodes of the integral over log s and its ends, in widths of the peak of its integrand; below,
# where it falls like s^df, also this many times 1 / df.
_NODE, _RIGHT, _LEFT, _DECADES = 0.3, 8.0, 9.0, 32.0
# With more degrees of freedom s is 1.
_KNOWN = 1e9
_CHUNK = 2**18


def range_tail(q: FloatArray, k: int, df: FloatArray) -> FloatArray:
    """Probability that the studentized range of k means exceeds q.

    Parameters
    ----------
    q
        Not negative; any shape.
    k
        Number of means, two or more.
    df
        Degrees of freedom of the variance, shape of q; may be infinite.

    Returns
    -------
    ndarray
        Shape of q; NaN where q or df is.

    Examples
    --------
    >>> import numpy as np
    >>> range_tail(np.array([3.0, 3.633]), 3, np.array([10.0, np.inf])).round(4)
    array([0.135 , 0.0275])
    """
    q, df = np.broadcast_arrays(np.asarray(q, dtype=float), np.asarray(df, dtype=float))
    result = np.full(q.shape, np.nan)
    good = np.isfinite(q) & (df > 0)
    known = good & (df > _KNOWN)
    result[known] = np.exp(_log_tail(q[known], k))
    result[good & (q <= 0)] = 1.0
    here = np.flatnonzero((good & ~known & (q > 0)).ravel())
    flat, all_q, all_df = result.reshape(-1), q.reshape(-1), df.reshape(-1)
    for start in range(0, here.size, _CHUNK // 64):
        part = here[start : start + _CHUNK // 64]
        flat[part] = _averaged(all_q[part], k, all_df[part])
    result = flat.reshape(q.shape)
    result[np.isposinf(q) & (df > 0)] = 0.0
    return result


def range_quantile(alpha: float, k: int, df: FloatArray) -> FloatArray:
    """What the studentized range of k means exceeds with probability alpha, shape of df."""
    df = np.asarray(df, dtype=float)
    good = df > 0
    result = np.full(df.shape, np.nan)
    different, place = np.unique(df[good], return_inverse=True)
    start = np.sqrt(2.0) * t_isf(alpha / (k * (k - 1)), different)
    found = threshold(lambda q, chosen: range_tail(q, k, different[chosen]), alpha, start)
    result[good] = found[place]
    return result


def _averaged(q: FloatArray, k: int, df: FloatArray) -> FloatArray:
    """The tail averaged over s; q and df (B,)."""

    def log_integrand(u: FloatArray, q: FloatArray, df: FloatArray) -> FloatArray:
        # density of u = log s, up to its constant: s^df exp(-df s^2 / 2), here over its peak's
        s = np.exp(u)
        return np.asarray(df * (u - 0.5 * (s * s - 1.0)) + _log_tail(q * s, k))

    # The peak lies at s = 1 or below, where q s is of the order of the range itself.
    ratio = np.linspace(0.0, 1.0, 41)[:, None]
    grid = -ratio * (np.log1p(q) + 1.0)
    values = log_integrand(grid, q, df)
    place = np.argmax(values, axis=0)
    width_of_grid = (np.log1p(q) + 1.0) / 40.0
    centre = grid[place, np.arange(q.size)]
    h = np.minimum(width_of_grid, 0.5 / np.sqrt(2.0 * df))
    for _ in range(4):
        low, mid, high = (log_integrand(centre + d, q, df) for d in (-h, 0.0, h))
        curve = (high - 2.0 * mid + low) / h**2
        slope = (high - low) / (2.0 * h)
        step = np.where(curve < 0, -slope / curve, 0.0)
        centre = centre + np.clip(step, -width_of_grid, width_of_grid)
    width = 1.0 / np.sqrt(np.maximum(-curve, 0.5 * df))
    left = np.maximum(_LEFT * width, _DECADES / df)
    right = _RIGHT * width
    count = int(np.ceil(((left + right) / (_NODE * width)).max())) + 1
    step = (left + right) / count
    total = np.zeros(q.shape)
    nodes = max(1, _CHUNK // max(q.size, 1))
    for start in range(0, count + 1, nodes):
        at = np.arange(start, min(start + nodes, count + 1))[:, None]
        total += np.exp(log_integrand(centre - left + at * step, q, df)).sum(axis=0)
    half = 0.5 * df
    # 2 (df/2)^(df/2) / Gamma(df/2) exp(-df/2), without cancellation where df is large
    log_constant = np.log(2.0) + half * np.log(half) - half - special.gammaln(half)
    return np.asarray(np.minimum(total * step * np.exp(log_constant), 1.0))


def _log_tail(w: FloatArray, k: int) -> FloatArray:
    """Log of the probability that the range of k normal variables exceeds w."""
    value, slope, second, third = _table(k)
    at = np.minimum(w, _END) / _STEP
    node = at.astype(np.intp)
    x = at - node
    found = value[node] + x * (slope[node] + x * (second[node] + x * third[node]))
    beyond = np.maximum(w, _END)  # where the range of two of the means is all there is
    return np.asarray(found - 0.25 * (beyond**2 - _END**2) - np.log(beyond / _END))


@lru_cache(maxsize=64)
def _table(k: int) -> tuple[FloatArray, ...]:
    """Coefficients of the cubics between nodes of the log tail, four of shape (nodes,)."""
    w = np.arange(0.0, _END + 2 * _STEP, _STEP)[:, None]
    # The integrand is phi(z) times what falls from 1 to a power of Phi(z - w): nodes about 0 and
    # about w / 2, where it peaks for large w.
    z = np.arange(-9.0, 9.0 + 1e-9, 0.1)
    n = k - 1.0

    def tail(w: FloatArray) -> tuple[FloatArray, FloatArray]:
        at = 0.5 * w + z
        log_a, log_b = special.log_ndtr(at), special.log_ndtr(at - w)
        with np.errstate(divide="ignore"):
            share = np.log1p(-np.exp(np.minimum(log_b - log_a, 0.0)))
        log_phi = -0.5 * at * at
        part = np.exp(log_phi + n * log_a + np.log(-np.expm1(n * share)) + w * w / 4.0)
        # its derivative in w: - n phi(z) phi(z - w) (Phi(z) - Phi(z - w))^(k - 2)
        rest = (n - 1.0) * (log_a + share) if n > 1 else 0.0
        slope = np.exp(log_phi - 0.5 * (at - w) ** 2 + rest + w * w / 4.0) / np.sqrt(2.0 * np.pi)
        constant = k * 0.1 / np.sqrt(2.0 * np.pi)
        return constant * part.sum(axis=1), -n * constant * slope.sum(axis=1)

    value, slope = tail(w)
    log_value = np.log(value) - w[:, 0] ** 2 / 4.0
    log_slope = slope / value * _STEP
    log_value[0] = 0.0
    rise = np.diff(log_value)
    left, right = log_slope[:-1], log_slope[1:]
    return log_value[:-1], left, 3.0 * rise - 2.0 * left - right, left + right - 2.0 * rise
