"""The psd space with bounds on some parameters besides: the correlations of structures.

The quadratic model is concave. Where its maximum without the bounds violates one of them, that over
the interval of one parameter lies at the violated bound, so the parameter goes there and the
others take the best step given that. Several at once are put there together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray
from flashmm.likelihood.base import Evaluation
from flashmm.solvers.space import PSD

__all__ = ["Boxed"]

# A parameter this close to a bound is there, and one that rounding put beyond it.
_THERE = 1e-12
_NEAR = 1e-8


@dataclass(frozen=True)
class Boxed:
    """Own parameters: blocks positive semi-definite, correlations within their bounds.

    Parameters
    ----------
    inner
        The psd space; parameters in none of its blocks are free there.
    lower, upper
        Bounds, infinite for most, each shape (k,).
    """

    inner: PSD
    lower: FloatArray
    upper: FloatArray
    name: str = "psd"

    @property
    def boxed(self) -> BoolArray:
        """Which parameters have bounds, (k,)."""
        return np.isfinite(self.lower) & np.isfinite(self.upper)

    def step(self, theta: FloatArray, score: FloatArray, information: FloatArray) -> FloatArray:
        """The best step within the space."""
        step: FloatArray = self.inner.step(theta, score, information)
        to, held = np.zeros_like(theta), np.zeros(theta.shape, dtype=bool)
        for _ in range(int(self.boxed.sum())):
            after = theta + step
            low, high = (after < self.lower) & ~held, (after > self.upper) & ~held
            rows = np.flatnonzero((low | high).any(axis=1))
            if rows.size == 0:
                break
            to = np.where(low, self.lower - theta, np.where(high, self.upper - theta, to))
            held |= low | high
            step[rows] = self._given(
                theta[rows], score[rows], information[rows], to[rows], held[rows]
            )
        return step

    def _given(
        self,
        theta: FloatArray,
        score: FloatArray,
        information: FloatArray,
        to: FloatArray,
        held: BoolArray,
    ) -> FloatArray:
        """The best step where some parameters take given ones, ``to``."""
        moved = np.where(held, to, 0.0)
        left = np.where(held, 0.0, score - np.matmul(information, moved[:, :, None])[:, :, 0])
        either = held[:, :, None] | held[:, None, :]
        one = np.eye(theta.shape[1]) * np.diagonal(information, axis1=1, axis2=2)[:, None, :]
        step = self.inner.step(theta, left, np.where(either, one, information))
        return np.where(held, to, step)

    def newton(
        self, theta: FloatArray, at: Evaluation, lowest: float
    ) -> tuple[FloatArray, BoolArray]:
        """The best step of the model with the observed information, where that is definite.

        Of parameters that the boundary holds only the expected counts.
        """
        held = self.held(theta, at.score)
        either = held[:, :, None] | held[:, None, :]
        diagonal = np.eye(held.shape[1], dtype=bool)
        observed = np.where(either, np.where(diagonal, at.expected, 0.0), at.observed)
        length = np.sqrt(np.abs(np.diagonal(at.expected, axis1=-2, axis2=-1)))
        scaled = observed / (length[:, :, None] * length[:, None, :])
        fine = np.isfinite(scaled).all(axis=(1, 2))
        values = np.linalg.eigvalsh(np.where(fine[:, None, None], scaled, diagonal))
        definite = fine & (values[:, 0] > lowest)
        step = np.zeros_like(theta)
        step[definite] = self.step(theta[definite], at.score[definite], observed[definite])
        return step, np.asarray(definite)

    def held(self, theta: FloatArray, score: FloatArray) -> BoolArray:
        """Variances that are zero and correlations at a bound that would go beyond, (B, k)."""
        low = (theta <= self.lower + _THERE) & (score <= 0)
        high = (theta >= self.upper - _THERE) & (score >= 0)
        return np.asarray(self.inner.held(theta, score) | low | high)

    def contains(self, theta: FloatArray) -> BoolArray:
        """Which theta lie in the space."""
        within = (theta >= self.lower) & (theta <= self.upper)
        return np.asarray(self.inner.contains(theta) & within.all(axis=1))

    def tidied(self, theta: FloatArray) -> FloatArray:
        """Theta with what rounding put outside the space put back on its boundary."""
        theta = self.inner.tidied(theta)
        below = (theta < self.lower) & (theta > self.lower - _THERE)
        above = (theta > self.upper) & (theta < self.upper + _THERE)
        return np.where(below, self.lower, np.where(above, self.upper, theta))

    def on_boundary(self, theta: FloatArray) -> BoolArray:
        """Which theta lie on the boundary of the space."""
        at_bound = (theta <= self.lower + _NEAR) | (theta >= self.upper - _NEAR)
        variances = np.where(self.boxed, theta[:, -1:], theta)
        return np.asarray(self.inner.on_boundary(variances) | at_bound.any(axis=1))
