"""A likelihood in the own parameters of structures that D is not linear in, by the chain rule.

The engine evaluates score and information in theta, the entries of D; with theta = theta(u) and
J = d theta / du the score in u is J'score, the expected information J'E J and the observed one
J'O J - sum_l score_l d2 theta_l / du du' (see `flashmm.designs.curves`). An average information A
with 2 A - E = O is J'A J minus half of that sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.curves import CurvedParameters
from flashmm.likelihood.base import Evaluation

__all__ = ["OwnParameters", "along"]


@dataclass(frozen=True)
class OwnParameters:
    """The likelihood of own parameters u, a `Likelihood`.

    Parameters
    ----------
    inner
        The likelihood of theta.
    curved
        Theta as a function of u, in internal units as in those of Y.
    """

    inner: Any
    curved: CurvedParameters

    @property
    def m(self) -> int:
        """Number of features."""
        return int(self.inner.m)

    @property
    def n_params(self) -> int:
        """Number of own parameters, residual variances included."""
        return self.curved.k

    @property
    def small_products(self) -> bool:
        """Whether products are of small matrices."""
        return bool(getattr(self.inner, "small_products", False))

    def batch_size(self, memory: int) -> int:
        """How many features may be evaluated at once within ``memory`` bytes."""
        return int(self.inner.batch_size(memory))

    def lost_in_rounding(self, u: FloatArray, expected: FloatArray) -> BoolArray:
        """Whose scores of residual variances may be rounding alone, shape (B,)."""
        judge = getattr(self.inner, "lost_in_rounding", None)
        if judge is None or hasattr(self.inner, "of"):  # rows of their own are not judged
            return np.zeros(u.shape[0], dtype=bool)
        return np.asarray(judge(self.curved.theta(u), expected))

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Evaluate own parameters (B, k) for the features at the positions ``features`` (B,)."""
        by_directions = getattr(self.inner, "evaluate_along", None)
        direct = None if by_directions is None else by_directions(self.curved, theta, features)
        if direct is None:
            return self._by_theta(theta, features)
        found: Evaluation = direct[0]
        known: BoolArray = direct[1]
        J = self.curved.jacobian(theta)
        _settled(found, _dead(J))
        rest = np.flatnonzero(~known)
        if rest.size:
            found.put(rest, self._by_theta(theta[rest], features[rest]))
        return found

    def _by_theta(self, u: FloatArray, features: IntArray) -> Evaluation:
        """The same by the chain rule from all of theta."""
        return along(self.curved, u, self.inner.evaluate(self.curved.theta(u), features))


def along(curved: CurvedParameters, u: FloatArray, at: Evaluation) -> Evaluation:
    """An evaluation by theta as one by own parameters u (B, k).

    What theta does not depend on, such as the correlation of effects without variance, has a score
    of zero and an information of one.
    """
    J = curved.jacobian(u)
    transposed = np.swapaxes(J, 1, 2)
    with np.errstate(invalid="ignore"):  # outside the domain
        score = np.matmul(transposed, at.score[:, :, None])[:, :, 0]
        expected = transposed @ at.expected @ J
        average = transposed @ at.average @ J - 0.5 * curved.bend(u, at.score)
    found = Evaluation(at.loglik, score, expected, average, at.rounding)
    _settled(found, _dead(J))
    return found


def _dead(J: FloatArray) -> BoolArray:
    """Own parameters that theta does not depend on, (B, k)."""
    return np.asarray(~(np.abs(J) > 0).any(axis=1))


def _settled(at: Evaluation, dead: BoolArray) -> None:
    """Give parameters that nothing depends on, (B, k), a score of zero and an information of one.

    In place.
    """
    dead = dead & np.isfinite(at.loglik)[:, None]
    if not dead.any():
        return
    either = dead[:, :, None] | dead[:, None, :]
    at.score[dead] = 0.0
    for information in (at.expected, at.average):
        information[:] = np.where(either, np.eye(dead.shape[1]), information)
