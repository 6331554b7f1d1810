"""Adjustment of p-values for multiple testing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flashmm.exceptions import InputError, nearest
from flashmm.slips.answers import answered

__all__ = ["adjust_pvalues"]

_METHODS = {
    "bh": "bh",
    "fdr_bh": "bh",
    "fdr": "bh",
    "by": "by",
    "fdr_by": "by",
    "holm": "holm",
    "bonferroni": "bonferroni",
    "none": "none",
}


@answered
def adjust_pvalues(
    pvalues: npt.ArrayLike, method: str = "bh", axis: int | None = 0
) -> npt.NDArray[np.float64]:
    """Adjust p-values for multiple testing along one axis.

    Parameters
    ----------
    pvalues : array_like of any shape
        Raw p-values in [0, 1]. NaN (a feature without a test) stays NaN and does not count
        as a test.
    method : str
        ``"bh"``, ``"fdr_bh"`` or ``"fdr"`` (Benjamini and Hochberg, 1995), ``"by"`` or ``"fdr_by"``
        (Benjamini and Yekutieli, 2001), ``"holm"`` (Holm, 1979), ``"bonferroni"``, or ``"none"``.
        Upper case is understood.
    axis : int or None
        The axis along which the tests of one family lie: 0, the default, adjusts every column
        of a (features, coefficients) array on its own. None takes all values as one family.

    Returns
    -------
    numpy.ndarray
        Adjusted p-values, of the shape of `pvalues`.

    Raises
    ------
    InputError
        If the method is unknown, the axis does not exist, or a value lies outside [0, 1].

    Examples
    --------
    >>> adjust_pvalues([0.01, 0.04, float("nan"), 0.03])
    array([0.03, 0.04,  nan, 0.04])
    """
    name = _METHODS.get(method.lower()) if isinstance(method, str) else None
    if name is None:
        raise InputError(
            f"unknown p-value adjustment {method!r}. {nearest(str(method), list(_METHODS))}"
        )
    try:
        p = np.asarray(pvalues, dtype=float)
    except (TypeError, ValueError):
        raise InputError("the p-values are not numbers") from None
    outside = ~((p >= 0) & (p <= 1)) & ~np.isnan(p)
    if outside.any():
        raise InputError(
            f"{np.count_nonzero(outside)} p-value(s) lie outside [0, 1], such as "
            f"{float(p[outside].flat[0])!r}"
        )
    if axis is None or p.ndim == 0:
        return _adjust_last_axis(p.reshape(1, -1), name).reshape(p.shape)
    if not -p.ndim <= axis < p.ndim:
        raise InputError(f"axis {axis} does not exist: the p-values have {p.ndim} dimension(s)")
    moved = np.moveaxis(p, axis, -1)
    return np.ascontiguousarray(np.moveaxis(_adjust_last_axis(moved, name), -1, axis))


def _adjust_last_axis(p: npt.NDArray[np.float64], method: str) -> npt.NDArray[np.float64]:
    """Adjust along the last axis; `method` is one of the values of ``_METHODS``."""
    if method == "none" or p.size == 0:
        return p.copy()
    n_tests = np.count_nonzero(~np.isnan(p), axis=-1, keepdims=True)
    if method == "bonferroni":
        return np.minimum(p * n_tests, 1.0)
    order = np.argsort(p, axis=-1)  # NaN sorts last, so the tests hold ranks 1..n_tests
    ranked = np.take_along_axis(p, order, axis=-1)
    rank = np.arange(1, p.shape[-1] + 1)
    if method == "holm":
        # A running maximum from the smallest value up; the NaN at the end touch nothing else.
        steps = np.maximum.accumulate(ranked * (n_tests - rank + 1), axis=-1)
    else:
        # A running minimum from the largest value down, which must step over the NaN.
        factor = n_tests / rank
        if method == "by":
            harmonic = np.concatenate([[0.0], np.cumsum(1.0 / rank)])
            factor = factor * harmonic[n_tests]
        scaled = np.where(np.isnan(ranked), np.inf, ranked * factor)
        steps = np.flip(np.minimum.accumulate(np.flip(scaled, axis=-1), axis=-1), axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(steps, 1.0), axis=-1)
    adjusted[np.isnan(p)] = np.nan
    return adjusted
