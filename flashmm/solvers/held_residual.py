"""Other maxima of likelihoods whose residual variance is known.

There the scale is no free parameter, and the grid of variance ratios in `other_maxima` does not
serve. With sampling variances far apart the likelihood of a variance may have a maximum beside each
of their sizes: at zero, where the precise samples agree, and far above, where the others do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.known_residual import KnownResidual
from flashmm.solvers.gains import GAIN
from flashmm.solvers.space import ParameterSpace

__all__ = ["HeldLandscape"]

# Variances that are looked at: from this share of the residual variance of a sample of mean weight,
# to so many times the larger of it and of the variance of such samples.
_LEAST, _MOST = 1e-3, 1e8
_POINTS, _POINTS_OF_SEVERAL = 24, 18
# Points this far below the maximum that was found may belong to a higher one; with several
# variances the rays pass beside it.
_FLAT, _FLAT_OF_SEVERAL = 1.5, 0.5
_STARTS = 2
# Variances up to which each by itself is looked at.
_MOST_AT_A_TIME = 4


@dataclass(frozen=True)
class HeldLandscape:
    """The likelihood along rays from no variance, for features whose residual variance is known.

    Starts are in the psd space, for either; methods as those of
    `flashmm.solvers.other_maxima.Landscape`.

    Parameters
    ----------
    likelihood
        The likelihood.
    chosen
        Features whose start was not given to the fit, shape (m,).
    variances
        Positions in theta of the random effects' variances.
    """

    likelihood: KnownResidual
    chosen: BoolArray
    variances: IntArray
    psd: ParameterSpace | None = None
    replaces_second_start = False
    few = False

    def starts(
        self, theta: FloatArray, loglik: FloatArray, features: IntArray
    ) -> tuple[IntArray, FloatArray]:
        """Where else to start, see `flashmm.solvers.other_maxima.Landscape.starts`."""
        residual = self.likelihood.residual[features]
        several = self.variances.size > 1
        count = _POINTS_OF_SEVERAL if several else _POINTS
        size = np.geomspace(_LEAST * residual, _MOST * np.maximum(residual, 1.0), count)
        found = []
        for ray in self._rays(theta.shape[1]):
            points = size[:, :, None] * ray  # (g, B, k)
            points[:, :, -1] = residual
            values = np.stack([self.likelihood.evaluate(at, features).loglik for at in points])
            values = np.where(np.isfinite(values), values, -np.inf)
            top = _summits(values, loglik) & (
                values > loglik - (_FLAT_OF_SEVERAL if several else _FLAT)
            )
            if not several:
                _leave_out_own(top, values, size, theta[:, self.variances[0]], loglik)
            point, which = np.nonzero(top)
            found.append((values[point, which], which, points[point, which]))
        height, rows, start = (np.concatenate(each) for each in zip(*found, strict=True))
        order = np.lexsort([-height, rows])  # by feature, its highest first
        rows, start = rows[order], start[order]
        first = np.searchsorted(rows, rows)
        few = np.arange(rows.size) - first < _STARTS
        return rows[few], start[few]

    def one_at_a_time(self, theta: FloatArray) -> tuple[IntArray, FloatArray]:
        """None: starts have no negative variance."""
        return np.empty(0, dtype=np.intp), np.empty((0, theta.shape[1]))

    def below_zero(
        self,
        theta: FloatArray,
        loglik: FloatArray,  # noqa: ARG002
        features: IntArray,  # noqa: ARG002
    ) -> tuple[IntArray, FloatArray]:
        """None: starts have no negative variance."""
        return self.one_at_a_time(theta)

    def _rays(self, k: int) -> FloatArray:
        """All variances alike, then each by itself, shape (rays, k)."""
        count = self.variances.size
        rays = np.zeros((1 + count if 1 < count <= _MOST_AT_A_TIME else 1, k))
        rays[0, self.variances] = 1.0
        rays[np.arange(1, len(rays)), self.variances[: len(rays) - 1]] = 1.0
        return rays


def _summits(values: FloatArray, loglik: FloatArray) -> BoolArray:
    """Local maxima of values (g, B) along the first axis; the least only if above ``loglik``."""
    top = np.zeros(values.shape, dtype=bool)
    top[0] = (values[0] >= values[1]) & (values[0] > loglik + GAIN)
    top[1:-1] = (values[1:-1] > values[:-2]) & (values[1:-1] >= values[2:])
    return top


def _leave_out_own(
    top: BoolArray, values: FloatArray, size: FloatArray, variance: FloatArray, loglik: FloatArray
) -> None:
    """Take from ``top`` (g, B) the summit of the hill whose maximum was found; in place.

    Unless a point of it is higher than what was found at ``variance`` (B,).
    """
    every = np.arange(variance.size)
    # What was found below the grid, at nothing say, is on none of its hills.
    own = variance >= size[0]
    distance = np.abs(np.log(size / np.where(own, variance, 1.0)))
    at = np.argmin(distance, axis=0)
    edge = np.full((1, variance.size), -np.inf)
    padded = np.concatenate([edge, values, edge])
    for _ in range(values.shape[0]):
        around = np.stack([padded[at, every], padded[at + 2, every]])
        step = np.where(around.max(axis=0) > values[at, every], 2 * around.argmax(axis=0) - 1, 0)
        if not step.any():
            break
        at = at + step
    left_out = own & (values[at, every] <= loglik + GAIN)
    top[at[left_out], every[left_out]] = False
