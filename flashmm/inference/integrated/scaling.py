"""Ratios that follow the residual variance: one prior, moved along the logarithm by feature.

That a ratio says nothing of sigma2 is an assumption: where the variance between subjects has
nothing to do with the residual variance, ratios fall as 1 / sigma2. So the prior is one of
gamma / c_j, with c_j = (s_j^2 / s^2)^slope of the feature's moderated residual variance s_j^2 and
its median s^2 over the features. s_j^2 is made of error contrasts, of which the estimates of beta
are independent, so tests are as exact as before.

On the grid, which all features share, the prior of a feature is the common one moved by log c_j:
each point's weight goes to the two points next to where it would be, what lies beyond the ends of
the grid to the ends, and the weight of zero stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.inference.integrated.grid import RatioGrid
from flashmm.inference.integrated.prior import learn_weights

__all__ = [
    "FEWEST_FOLLOWED",
    "NOT_FOLLOWING",
    "Following",
    "learn_slope",
    "moved_likelihood",
    "moved_weights",
]

# Slopes that are tried; -1 is a variance that has nothing to do with the residual's.
_SLOPES = (-1.5, -1.25, -1.0, -0.75, -0.5, -0.25, 0.25, 0.5)
# How much likelier (in logarithms) than no slope the features must be.
_EVIDENCE = 3.0
# Fewer features do not tell a slope; more than the second number are not looked at for one.
FEWEST_FOLLOWED, _MOST = 200, 4000
_ITERATIONS = 100
# Logarithms are moved by multiples of this, so that many features share their weights.
_STEP = 0.05
_FURTHEST = 20.0


@dataclass(frozen=True)
class Following:
    """How ratios follow the residual variance: in proportion to (s_j^2 / at)^slope.

    Parameters
    ----------
    slope
        Zero where they do not.
    at
        Residual variance at which the prior is that of the ratios themselves, in the units of Y.
    """

    slope: float = 0.0
    at: float = 1.0

    def steps(self, variance: FloatArray) -> IntArray:
        """What features with residual variances (m,) are moved by, in units of the step, (m,)."""
        if self.slope == 0.0:
            return np.zeros(variance.size, dtype=np.intp)
        with np.errstate(divide="ignore", invalid="ignore"):
            log = self.slope * np.log(variance / self.at)
        log = np.where(np.isfinite(log), np.clip(log, -_FURTHEST, _FURTHEST), 0.0)
        return np.asarray(np.rint(log / _STEP).astype(np.intp))


NOT_FOLLOWING = Following()


def moved_weights(
    grid: RatioGrid, weights: FloatArray, steps: IntArray
) -> tuple[FloatArray, IntArray]:
    """Weights (G,) moved: a row for each different step, (S, G), and the rows of features, (m,)."""
    different, which = np.unique(steps, return_inverse=True)
    move = _mover(grid)
    return np.stack([weights @ move(step) for step in different]), which.reshape(-1)


def moved_likelihood(grid: RatioGrid, likelihood: FloatArray, steps: IntArray) -> FloatArray:
    """Likelihoods (B, G) of the points before they are moved."""
    move = _mover(grid)
    result = np.empty_like(likelihood)
    for step in np.unique(steps):
        here = steps == step
        result[here] = (move(step) @ likelihood[here].T).T
    return result


def learn_slope(
    grid: RatioGrid, likelihood: Sequence[FloatArray], variance: FloatArray, added: float
) -> Following:
    """The slope under which the features are likeliest; none where that is not evident.

    Parameters
    ----------
    grid
        The ratios.
    likelihood
        Chunks (B, G), the features in the order of ``variance``.
    variance
        Moderated residual variances of the features, NaN where unknown, shape (m,).
    added
        As in `learn_weights`.
    """
    known = np.isfinite(variance) & (variance > 0)
    if known.sum() < FEWEST_FOLLOWED or grid.size < 2:
        return NOT_FOLLOWING
    at = float(np.median(variance[known]))
    chosen = np.flatnonzero(known)
    chosen = chosen[:: -(-chosen.size // _MOST)]
    # Taken chunk by chunk: all likelihoods at once may not fit beside themselves.
    taken, start = [], 0
    for part in likelihood:
        here = chosen[(chosen >= start) & (chosen < start + len(part))]
        taken.append(part[here - start])
        start += len(part)
    values = np.concatenate(taken)

    def support(slope: float) -> float:
        steps = Following(slope, at).steps(variance[chosen])
        if slope and not steps.any():  # residual variances are all the same
            return -np.inf
        moved = moved_likelihood(grid, values, steps) if slope else values
        weights = learn_weights([moved], grid.base, added=added, max_iter=_ITERATIONS)
        return float(np.log(moved @ weights).sum())

    none = support(0.0)
    found = [support(slope) for slope in _SLOPES]
    best = int(np.argmax(found))
    return Following(_SLOPES[best], at) if found[best] > none + _EVIDENCE else NOT_FOLLOWING


def _mover(grid: RatioGrid) -> Callable[[Any], Any]:
    """For each step a sparse matrix (G, G): where the weight of each point goes."""
    axes = _axes(grid)
    known: dict[int, Any] = {}

    def move(step: Any) -> Any:
        if int(step) not in known:
            log = float(step) * _STEP
            if axes is not None:
                matrix = sp.csr_array(np.ones((1, 1)))
                for axis in axes:
                    matrix = sp.kron(matrix, _along(axis, log), format="csr")
            else:
                matrix = _along_rays(grid, log)
            known[int(step)] = matrix
        return known[int(step)]

    return move


def _axes(grid: RatioGrid) -> list[FloatArray] | None:
    """Ratios of each axis, ascending, where the grid is a product of axes."""
    k = grid.ratios.shape[1]
    axes = [np.unique(column) for column in grid.ratios.T]
    if k == 0 or int(np.prod([axis.size for axis in axes])) != grid.size:
        return None
    product = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, k)
    return axes if np.array_equal(product, grid.ratios) else None


def _along(axis: FloatArray, log: float) -> Any:
    """Matrix (T, T) for ratios (T,) in ascending order."""
    T = axis.size
    first = int(axis[0] == 0)
    if T - first < 2:
        return sp.eye_array(T, format="csr")
    x = np.log(axis[first:])
    to = np.clip(x + log, x[0], x[-1])
    left = np.clip(np.searchsorted(x, to, side="right") - 1, 0, x.size - 2)
    share = (to - x[left]) / (x[left + 1] - x[left])
    rows = np.arange(first, T)
    matrix = sp.coo_array(
        (
            np.concatenate([np.ones(first), 1.0 - share, share]),
            (
                np.concatenate([np.arange(first), rows, rows]),
                np.concatenate([np.arange(first), left + first, left + first + 1]),
            ),
        ),
        shape=(T, T),
    )
    return matrix.tocsr()


def _along_rays(grid: RatioGrid, log: float) -> Any:
    """The same where points lie on rays from zero, each line by itself."""
    blocks = []
    for line in grid.lines():
        # Points of a ray have one direction, so any ratio that varies tells how far out they are.
        size = np.abs(grid.ratios[line.columns]).max(axis=1, initial=0.0)
        ascending = (np.diff(size) > 0).all()
        blocks.append(_along(size, log) if ascending else sp.eye_array(size.size))
    return sp.block_diag(blocks, format="csr")
