"""All features of a fit, batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flashmm.likelihood.base import Evaluation, Likelihood
from flashmm.solvers.base import Solution, Solver, maximise
from flashmm.solvers.status import Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.solvers.space import ParameterSpace

    FloatArray = NDArray[np.float64]
    BoolArray = NDArray[np.bool_]

__all__ = ["maximise_in_batches"]


def maximise_in_batches(
    likelihood: Likelihood,
    space: ParameterSpace,
    solver: Solver,
    theta0: FloatArray,
    usable: BoolArray,
    *,
    max_iter: int,
    memory: int,
) -> Solution:
    """Maximise every usable feature, as many at once as ``memory`` bytes allow.

    Features that are not usable keep NaN and `Status.RUNNING`; their verdict is the caller's.
    """
    m, k = theta0.shape
    total = Solution(
        np.full((m, k), np.nan),
        Evaluation.empty(m, k),
        np.zeros(m, dtype=np.int64),
        np.full(m, Status.RUNNING, dtype=np.int8),
    )
    features = np.flatnonzero(usable)
    size = likelihood.batch_size(memory)
    for start in range(0, features.size, size):
        batch = features[start : start + size]
        part = maximise(likelihood, space, solver, theta0[batch], batch, max_iter=max_iter)
        total.theta[batch], total.n_iter[batch] = part.theta, part.n_iter
        total.status[batch] = part.status
        total.evaluation.put(batch, part.evaluation)
    return total
