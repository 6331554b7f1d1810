"""The prior that all features share: weights of the grid points, by maximum likelihood.

The weights maximise the likelihood of all features (Kiefer & Wolfowitz 1956, Ann Math Stat 27:887;
Laird 1978, J Am Stat Assoc 73:805) by EM from equal weights. Weights that say little are mixed in
as if some features more had been seen, so that few features do not decide alone: flat in the
logarithm of the variance of an estimated random effect, as Jeffreys' prior of a variance is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flashmm.arrays.types import FloatArray

__all__ = ["ADDED_FEATURES", "learn_weights"]

# Features that the base weights count as; measured in docs/few-subjects.md.
ADDED_FEATURES = 10.0
_MAX_ITERATIONS, _TOLERANCE = 500, 1e-6


def learn_weights(
    likelihood: Sequence[FloatArray],
    base: FloatArray,
    *,
    added: float = ADDED_FEATURES,
    max_iter: int = _MAX_ITERATIONS,
) -> FloatArray:
    """Weights of the grid points under which the features are likeliest.

    Parameters
    ----------
    likelihood
        Likelihoods of the grid points, any multiple per feature: chunks of shape (B, G).
    base
        Weights that are mixed in, shape (G,).
    added
        Features that they count as.
    max_iter
        Iterations of EM, at most; it stops where no weight changes by 1e-6.

    Returns
    -------
    ndarray
        Shape (G,), summing to one.
    """
    count = sum(part.shape[0] for part in likelihood)
    weights = np.full(base.size, 1.0 / base.size)
    if count + added == 0:
        return base
    for _ in range(max_iter):
        total = np.zeros(base.size)
        for part in likelihood:
            total += (1.0 / (part @ weights)) @ part
        again = (weights * total + added * base) / (count + added)
        done = np.abs(again - weights).max() < _TOLERANCE
        weights = again / again.sum()
        if done:
            break
    return weights
