"""Limits of a profile: where a standardised distance from the estimate reaches its goal.

The distance r(x), the signed root of twice the fall of a log-likelihood, is almost straight in x,
so secant steps find its root in a few evaluations; a bracket keeps them safe. All rows advance
together and leave when they are done.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray

__all__ = ["profile_roots"]

_ITERATIONS = 30
_TOLERANCE = 1e-7
_ROUNDING = 1e-4


def profile_roots(
    distance: Callable[[IntArray, FloatArray], FloatArray],
    first: FloatArray,
    goal: float,
    most: FloatArray | None = None,
) -> FloatArray:
    """Where distances that rise from 0 at x = 0 reach a goal.

    Parameters
    ----------
    distance
        Gives r >= 0 for some rows (their positions) at x; NaN where it cannot be had.
    first
        First guess of each row's x; its sign is the side that is searched; shape (R,).
    goal
        Of r.
    most
        The largest |x| of each row, shape (R,), at which r is below the goal or the root lies
        before; such rows end there. None for no bound.

    Returns
    -------
    ndarray
        Shape (R,); NaN where no root was found.
    """
    side = np.sign(first)
    bound = np.full(first.size, np.inf) if most is None else most
    x = np.minimum(np.abs(first), 0.5 * bound)
    inner, outer = np.zeros(first.size), bound.copy()
    before, r_before = np.zeros(first.size), np.zeros(first.size)
    found = np.full(first.size, np.nan)
    active = np.flatnonzero(np.isfinite(x) & (x > 0))
    for _ in range(_ITERATIONS):
        if active.size == 0:
            break
        at = x[active]
        r = distance(active, side[active] * at)
        known = np.isfinite(r)
        close = np.abs(r - goal) <= _TOLERANCE
        found[active[close]] = at[close]
        beyond = r > goal
        outer[active[beyond]] = at[beyond]
        inner[active[known & ~beyond]] = at[known & ~beyond]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            step = at + (goal - r) * (at - before[active]) / (r - r_before[active])
        lower, upper = inner[active], outer[active]
        # A step that triples the distance is far enough while there is no bracket.
        step = np.minimum(step, 3.0 * at)
        middle = np.where(np.isfinite(upper), 0.5 * (lower + upper), 2.0 * at)
        sound = (step > lower) & (step < upper)
        with np.errstate(invalid="ignore"):
            closed = np.isfinite(upper) & (upper - lower <= 1e-12 * np.abs(upper)) & ~close
        ended = closed & ((np.abs(r - goal) <= _ROUNDING) | (upper >= bound[active]))
        found[active[ended]] = at[ended]
        before[active], r_before[active] = at, r
        x[active] = np.where(sound, step, middle)
        active = active[known & ~close & ~closed]
    return np.asarray(side * found)
