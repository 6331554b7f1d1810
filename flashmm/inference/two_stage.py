"""Two-stage tests: features screened at a false discovery rate, contrasts confirmed within them.

A feature that passes counts as false if any of its hypotheses, the screened one included, is
rejected falsely. Screening R of G features by Benjamini and Hochberg at level alpha and
testing within each of the R at family-wise level R alpha / G keeps the expected share of false ones
(the overall false discovery rate) at alpha (Heller, Manduchi, Grant & Ewens 2009; Van den Berge,
Soneson, Robinson & Clement 2017, stageR).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray
from flashmm.inference.multiplicity import adjust_pvalues

__all__ = ["WITHIN", "TwoStage", "two_stage"]

WITHIN = ("holm", "shaffer", "none")


@dataclass(frozen=True)
class TwoStage:
    """Two-stage tests of c contrasts for m features.

    Parameters
    ----------
    screened
        Adjusted p-values of the first stage, shape (m,).
    passed
        Features that passed it, shape (m,).
    p
        p-values of the contrasts, adjusted within the feature and times G / R, which are to be
        compared with alpha; NaN for features that did not pass; shape (m, c).
    rejected
        Hypotheses that are rejected, shape (m, c).
    """

    screened: FloatArray
    passed: BoolArray
    p: FloatArray
    rejected: BoolArray


def two_stage(screen: FloatArray, p: FloatArray, alpha: float, within: str = "holm") -> TwoStage:
    """Screen features, then test the contrasts of those that pass.

    Parameters
    ----------
    screen
        p-values of the features' overall hypotheses, shape (m,). NaN does not count.
    p
        p-values of their contrasts, shape (m, c).
    alpha
        Overall false discovery rate.
    within
        How p is adjusted within a feature: ``"holm"``; ``"shaffer"``, Holm's steps with at most
        c - 1 true hypotheses, which is all that can be true where the screened hypothesis is
        false and says that all c are true; ``"none"``, for p-values that are adjusted already.

    Returns
    -------
    TwoStage

    Examples
    --------
    >>> import numpy as np
    >>> found = two_stage(np.array([0.001, 0.6]), np.array([[0.001, 0.2], [0.01, 0.9]]), 0.05)
    >>> found.p
    array([[0.004, 0.4  ],
           [  nan,   nan]])
    """
    screened = adjust_pvalues(screen, "bh")
    passed = np.asarray(screened <= alpha)
    G, R = int(np.isfinite(screen).sum()), int(passed.sum())
    inside = p
    if within == "holm":
        inside = adjust_pvalues(p, "holm", axis=1)
    elif within == "shaffer":
        inside = _shaffer(p)
    found = np.where(passed[:, None], np.minimum(inside * (G / max(R, 1)), 1.0), np.nan)
    return TwoStage(screened, passed, found, np.asarray(found <= alpha))


def _shaffer(p: FloatArray) -> FloatArray:
    """Holm's steps with the factors c - 1, c - 1, c - 2, ..., 1 (Shaffer 1986)."""
    order = np.argsort(p, axis=1)
    ranked = np.take_along_axis(p, order, axis=1)
    count = np.isfinite(p).sum(axis=1, keepdims=True)
    factor = np.clip(count - np.arange(p.shape[1]), 1, np.maximum(count - 1, 1))
    steps = np.minimum(np.maximum.accumulate(ranked * factor, axis=1), 1.0)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, steps, axis=1)
    return np.asarray(adjusted)
