"""Averages over a reference grid: weights, as numbers.

The rows of a marginal mean average the grid's rows of X, so every mean and contrast is linear in
beta (Searle, Speed & Milliken 1980; Lenth's emmeans).
"""

from __future__ import annotations

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray

__all__ = ["averaging_weights"]


def averaging_weights(target: IntArray, weight: FloatArray, n_targets: int) -> FloatArray:
    """Weights of the grid's points in each marginal mean; rows sum to one.

    Parameters
    ----------
    target
        The mean that each point of the grid belongs to, shape (n_points,).
    weight
        Weight of each point, not negative, shape (n_points,).
    n_targets
        Number of means.

    Returns
    -------
    ndarray (n_targets, n_points)
        NaN where all weights of a mean are zero.
    """
    weights = np.zeros((n_targets, target.size))
    weights[target, np.arange(target.size)] = weight
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))
