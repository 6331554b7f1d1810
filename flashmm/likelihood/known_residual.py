"""A residual variance that is known: the likelihood of the other parameters alone.

With weights 1 / s^2 and a residual variance of one this is the model of random-effects
meta-analysis (Hardy & Thompson 1996; Viechtbauer 2005): y_i ~ N(x_i'beta + z_i'b, s_i^2).
The likelihood of an engine is that of all parameters, with nothing profiled out, so holding its
last one is all: no derivative by it is used, and what is left are the score and the information in
the entries of D. The identities that give the residual's row for free (they sum over all
parameters) are of that full likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.base import Evaluation

__all__ = [
    "KnownResidual",
    "generalised_sum_of_squares",
    "hold_residual",
    "known_residual_of",
]


@dataclass(frozen=True)
class KnownResidual:
    """An `Estimator` whose residual variance is held; what it does not define is the engine's.

    theta keeps its last entry, which is not read: score and information say of it that it is where
    it should be (a score of zero), and that it has nothing to do with the others.

    Parameters
    ----------
    inner
        The likelihood of all parameters.
    residual
        Residual variances in internal units, shape (m,).
    """

    inner: Any
    residual: FloatArray
    # The engine's own would estimate the residual variance.
    evaluate_along = None
    at_one = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":  # asked for while a copy is made
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def perfect_fit(self) -> BoolArray:
        """None: with a known residual variance the likelihood has a maximum there too, (m,)."""
        return np.zeros(self.residual.size, dtype=bool)

    def contrasts(self, features: IntArray) -> FloatArray:
        """Contrasts that the likelihood counts: n - p of REML, n of ML; shape (B,)."""
        p = self.projection
        n = np.broadcast_to(np.asarray(p.n, dtype=np.float64), self.residual.size)[features]
        return np.asarray(n - (p.p if self.method == "REML" else 0))

    def at(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Theta (B, k) with the known residual variances."""
        held = np.array(theta)
        held[:, -1] = self.residual[features]
        return held

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Evaluate ``theta`` (B, k) for the features at the positions ``features`` (B,)."""
        held = self.at(theta, features)
        with np.errstate(all="ignore"):  # values of 1e150 beside a variance of one
            found: Evaluation = self.inner.evaluate(held, features)
        # What X explains to the last digit has no sum of squares, and the scale of one instead.
        constant = self.projection.zero_variance[features]
        if constant.any():
            rows = 2.0 * (held * found.score).sum(axis=1) + self.contrasts(features)
            found.loglik[constant] += 0.5 * rows[constant]
        found.score[:, -1] = np.where(np.isfinite(found.score[:, -1]), 0.0, np.nan)
        with np.errstate(divide="ignore"):
            size = 1.0 / held[:, -1] ** 2  # in the units of an information
        for information in (found.expected, found.average):
            known = np.isfinite(information[:, -1, -1])
            information[:, -1, :] = np.where(known, 0.0, np.nan)[:, None]
            information[:, :, -1] = information[:, -1, :]
            information[:, -1, -1] = np.where(known, size, np.nan)
        return found


def hold_residual(likelihood: Any, projection: Any, residual: FloatArray) -> KnownResidual:
    """The likelihood with residual variances (m,) in the units of Y; features without one get 1."""
    with np.errstate(invalid="ignore"):
        internal = residual / projection.scale
    return KnownResidual(likelihood, np.where(internal > 0, internal, 1.0))


def known_residual_of(likelihood: Any) -> FloatArray | None:
    """Known residual variances in internal units, shape (m,); None where they are estimated."""
    return likelihood.residual if isinstance(likelihood, KnownResidual) else None


def generalised_sum_of_squares(
    likelihood: KnownResidual, theta: FloatArray, features: IntArray
) -> FloatArray:
    """Y'Py at theta (B, k), from 2 sum theta_i score_i = y'Py - (n - p) (n under ML), (B,)."""
    held = likelihood.at(theta, features)
    found = likelihood.inner.evaluate(held, features)
    total = 2.0 * (held * found.score).sum(axis=1) + likelihood.contrasts(features)
    return np.where(likelihood.projection.zero_variance[features], 0.0, total)
