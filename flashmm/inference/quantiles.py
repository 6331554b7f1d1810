"""Where a falling probability reaches a level, for many at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray

__all__ = ["threshold"]

_MAX_STEPS = 60


def threshold(
    tail: Callable[[FloatArray, IntArray], FloatArray],
    alpha: float,
    start: FloatArray,
    *,
    tolerance: float = 1e-9,
) -> FloatArray:
    """The x with tail(x) = alpha.

    By safeguarded secant steps of log tail in x^2, in which tails of normal and Student's
    distributions are nearly straight; those that have converged are not evaluated again.

    Parameters
    ----------
    tail
        ``tail(x, chosen)``: decreasing probabilities of the elements at the positions ``chosen``,
        shape of x.
    alpha
        Between 0 and 1.
    start
        First guess, positive, shape (B,).
    tolerance
        Relative error of x.

    Returns
    -------
    ndarray
        Shape (B,).
    """
    x = np.asarray(start, dtype=float).copy()
    low, high = np.zeros_like(x), np.full_like(x, np.inf)
    before, value = np.full_like(x, np.nan), np.full_like(x, np.nan)
    left = np.arange(x.size)
    goal = np.log(alpha)
    for _ in range(_MAX_STEPS):
        with np.errstate(divide="ignore"):
            now = np.log(tail(x[left], left)) - goal
        here = x[left]
        low[left] = np.where(now > 0, here, low[left])
        high[left] = np.where(now > 0, high[left], here)
        first = np.isnan(before[left])
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = (now - value[left]) / (here**2 - before[left] ** 2)
            slope = np.where(first | ~(slope < 0) | np.isinf(slope), -0.5, slope)
            square = here**2 - now / slope
        inside = (square > low[left] ** 2) & (square < high[left] ** 2)
        middle = np.where(np.isinf(high[left]), 2.0 * here, 0.5 * (low[left] + high[left]))
        after = np.where(inside, np.sqrt(np.maximum(square, 0.0)), middle)
        before[left], value[left], x[left] = here, now, after
        done = ~(np.abs(after - here) > tolerance * np.abs(here))
        left = left[~done]
        if left.size == 0:
            break
    return x
