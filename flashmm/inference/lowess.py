"""Locally weighted straight lines, robust to outliers (Cleveland 1979, JASA 74:829)."""

from __future__ import annotations

import numpy as np

from flashmm.arrays.types import FloatArray

__all__ = ["lowess", "weighted_lowess"]

# Lines are fitted at points this share of the range apart and joined in between.
_STEP = 0.01


def lowess(x: FloatArray, y: FloatArray, *, span: float, repeats: int = 3) -> FloatArray:
    """Smooth y along x.

    Parameters
    ----------
    x, y
        Points, shape (m,).
    span
        Share of the points that each local line is fitted to.
    repeats
        Further rounds, each with less weight on the points that the last one missed by much.

    Returns
    -------
    ndarray
        Fitted values, shape (m,).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(10.0)
    >>> bool(np.allclose(lowess(x, 2 * x, span=0.5), 2 * x))
    True
    """
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    m, width = x.size, float(x[-1] - x[0])
    result = np.empty(m)
    if width == 0.0:
        return np.full(m, y.mean())
    window = min(max(int(span * m + 1e-7), 2), m)
    points = _fit_points(x, _STEP * width)
    starts = np.searchsorted(x[: m - window] + x[window:], 2.0 * x[points], side="left")
    robustness = np.ones(m)
    fitted = y
    for _ in range(repeats + 1):
        at = np.array(
            [
                _line(x, y, robustness, x[i], start, window, width)
                for i, start in zip(points, starts, strict=True)
            ]
        )
        fitted = np.interp(x, x[points], at)
        missed = np.abs(y - fitted)
        limit = 6.0 * float(np.median(missed))
        if limit < 1e-7 * float(missed.mean()) or limit == 0.0:
            break
        share = missed / limit
        robustness = np.where(share <= 0.001, 1.0, (1.0 - np.minimum(share, 1.0) ** 2) ** 2)
        robustness[share > 0.999] = 0.0
    result[order] = fitted
    return result


def _fit_points(x: FloatArray, step: float) -> list[int]:
    """Positions in sorted x where lines are fitted: as far apart as ``step`` allows."""
    points, last = [0], 0
    while last < x.size - 1:
        tied = int(np.searchsorted(x, x[last], side="right")) - 1
        within = int(np.searchsorted(x, x[last] + step, side="right")) - 1
        if tied == x.size - 1:
            break
        last = max(tied + 1, within)
        points.append(last)
    return points


def _line(
    x: FloatArray,
    y: FloatArray,
    robustness: FloatArray,
    at: float,
    start: int,
    window: int,
    width: float,
) -> float:
    """Value at one point of the straight line through its neighbours, tricube weights."""
    reach = max(at - x[start], x[start + window - 1] - at)
    stop = int(np.searchsorted(x, at + 0.999 * reach, side="right"))  # ties on the right count
    here, value = x[start:stop], y[start:stop]
    share = np.abs(here - at) / reach if reach > 0 else np.zeros(here.size)
    weight = np.where(share <= 0.001, 1.0, (1.0 - np.minimum(share, 1.0) ** 3) ** 3)
    weight = np.where(share <= 0.999, weight, 0.0) * robustness[start:stop]
    total = weight.sum()
    if total <= 0:
        return float(np.interp(at, x, y))
    weight = weight / total
    centre = weight @ here
    spread = weight @ (here - centre) ** 2
    if np.sqrt(spread) > 0.001 * width:
        weight = weight * (1.0 + (at - centre) / spread * (here - centre))
    return float(weight @ value)


def weighted_lowess(
    x: FloatArray, y: FloatArray, weights: FloatArray, *, span: float, points: int = 200
) -> FloatArray:
    """Smooth y along x by local lines whose neighbours have weights; not robust.

    Parameters
    ----------
    x, y, weights
        Points and how much each counts, positive, shape (m,).
    span
        Share of the sum of weights that the nearest neighbours in each line reach.
    points
        With more points than so many, lines are fitted at that many of them and joined.

    Returns
    -------
    ndarray
        Fitted values, shape (m,).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(10.0)
    >>> smooth = weighted_lowess(x, 2 * x, 1.0 + x, span=0.5)
    >>> bool(np.allclose(smooth, 2 * x))
    True
    """
    order = np.argsort(x, kind="stable")
    xs, ys, ws = x[order], y[order], weights[order]
    result = np.empty(x.size)
    width = float(xs[-1] - xs[0])
    if width == 0.0:
        return np.full(x.size, float(ws @ ys) / float(ws.sum()))
    at = np.arange(x.size)
    if x.size > points:
        at = np.unique(np.searchsorted(xs, np.linspace(xs[0], xs[-1], points)))
    fitted = np.array([_weighted_line(xs, ys, ws, xs[i], span, width) for i in at])
    # Ties have one value.
    knots, first = np.unique(xs[at], return_index=True)
    result[order] = np.interp(xs, knots, fitted[first])
    return result


def _weighted_line(
    x: FloatArray, y: FloatArray, weights: FloatArray, at: float, span: float, width: float
) -> float:
    """Value at one point of the line through its nearest neighbours."""
    distance = np.abs(x - at)
    near = np.argsort(distance, kind="stable")
    reached = np.cumsum(weights[near])
    last = int(np.searchsorted(reached, span * reached[-1] * (1.0 - 1e-12)))
    reach = float(distance[near[min(last, x.size - 1)]])
    if reach <= 1e-7 * width:
        here = distance <= reach
        return float(np.average(y[here], weights=weights[here]))
    w = weights * np.maximum(1.0 - (distance / reach) ** 3, 0.0) ** 3
    total = float(w.sum())
    mean = float(w @ x) / total
    spread = float(w @ (x - mean) ** 2)
    level = float(w @ y) / total
    if spread <= (1e-7 * width) ** 2 * total:
        return level
    return level + (at - mean) * float(w @ ((x - mean) * y)) / spread
