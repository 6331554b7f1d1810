"""Derivatives of functions that can only be evaluated, with their own choice of step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flashmm.arrays.types import FloatArray

__all__ = ["derivative"]

# Steps relative to the size of x, and the stencil of four points whose error is of order h^4.
_STEPS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_AT, _WEIGHTS = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([1.0, -8.0, 8.0, -1.0]) / 12.0


def derivative(function: Callable[[FloatArray], FloatArray], x: FloatArray) -> FloatArray:
    """Derivatives of the columns of a function of one number at some points.

    Central differences of order four with steps from a tenth of x down. Those of two neighbouring
    steps that agree best are taken, column by column: large steps are exact for polynomials, small
    ones stay inside where the function is defined and on one side of a kink.

    Parameters
    ----------
    function
        ``function(values)`` gives rows (n t, p) for values (n t,), t of them for each point; NaN
        where it is not defined.
    x
        The points, shape (n,).

    Returns
    -------
    ndarray
        Shape (n, p); NaN where the function is not defined on both sides of a point.

    Examples
    --------
    >>> import numpy as np
    >>> derivative(lambda x: np.column_stack([x**2, np.log(x)]), np.array([2.0])).round(8)
    array([[4. , 0.5]])
    """
    x = np.asarray(x, dtype=float)
    function(x)  # an error at the points themselves is the caller's
    largest = np.abs(x).max()
    size = np.where(x == 0.0, largest if largest > 0 else 1.0, np.abs(x))
    found = []
    for step in _STEPS:
        h = step * size
        values = function((x[:, None] + h[:, None] * _AT).ravel())
        there = values.reshape(x.size, _AT.size, -1)
        found.append(np.matmul(_WEIGHTS, there) / h[:, None])
    each = np.stack(found)
    apart = np.abs(np.diff(each, axis=0))
    apart[np.isnan(apart)] = np.inf
    best = np.argmin(apart, axis=0)
    return np.asarray(np.take_along_axis(each, best[None], axis=0)[0])
