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

__all__ = ["OwnParameters", "along", "covariance_along", "free_directions"]

# A correlation this close to its bounds, a variance this small beside the others, do not vary.
_AT_BOUND = 1e-10


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

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Evaluate own parameters (B, k) for the features at the positions ``features`` (B,)."""
        by_directions = getattr(self.inner, "evaluate_along", None)
        direct = None if by_directions is None else by_directions(self.curved, theta, features)
        if direct is None:
            return self._by_theta(theta, features)
        found, known = direct
        J = self.curved.jacobian(theta)
        settled(found, ~(np.abs(J) > 0).any(axis=1))
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
    settled(found, ~(np.abs(J) > 0).any(axis=1))
    return found


def settled(at: Evaluation, dead: BoolArray) -> None:
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


def free_directions(curved: CurvedParameters, u: FloatArray) -> BoolArray:
    """Own parameters (B, k) that are not at a bound: what a bound holds does not vary."""
    lower, upper = curved.bounds
    free = np.ones(u.shape, dtype=bool)
    with np.errstate(invalid="ignore"):
        for curve, _, own in curved.parts():
            if curve is None:
                free[:, own] = u[:, own] > 0  # those of other terms are settled elsewhere
            else:
                cone = curve.is_cone
                values = u[:, own]
                free[:, own] = np.where(
                    cone,
                    values > _AT_BOUND,
                    (values > lower[own] + _AT_BOUND) & (values < upper[own] - _AT_BOUND),
                )
    return free & np.isfinite(u)


def covariance_along(
    curved: CurvedParameters,
    theta: FloatArray,
    at: Evaluation,
    *,
    observed: bool = False,
    held: BoolArray | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Asymptotic covariance of theta on its curve, J I^-1 J', and of the own parameters, I^-1.

    Parameters
    ----------
    curved
        The curve.
    theta
        On the curve, shape (B, k_theta).
    at
        The likelihood there, by theta.
    observed
        Whether I is the observed information; where it is not positive definite the expected one.
    held
        Own parameters that do not vary, shape (B, k); by default those at a bound.

    Returns
    -------
    tuple of ndarray
        Shapes (B, k_theta, k_theta) and (B, k, k); zeros for what is held, NaN where unknown.
    """
    u = curved.own(theta)
    free = free_directions(curved, u) if held is None else ~held & np.isfinite(u)
    safe = np.where(np.isfinite(u), u, 0.0)
    J = curved.jacobian(safe)
    here = along(curved, safe, at)
    both = free[:, :, None] & free[:, None, :]
    one = np.eye(u.shape[1])
    information = np.where(both, here.expected, one)
    if observed:
        sharper = np.where(both, here.observed, one)
        unit = np.sqrt(np.abs(np.diagonal(information, axis1=1, axis2=2)))
        scaled = sharper / (unit[:, :, None] * unit[:, None, :])
        fine = np.isfinite(scaled).all(axis=(1, 2))
        lowest = np.linalg.eigvalsh(np.where(fine[:, None, None], scaled, one))[:, 0]
        information = np.where(((lowest > 1e-9) & fine)[:, None, None], sharper, information)
    own = np.where(both, _inverse(information), 0.0)
    own[~np.isfinite(information).all(axis=(1, 2))] = np.nan
    return J @ own @ np.swapaxes(J, 1, 2), own


def _inverse(information: FloatArray) -> FloatArray:
    """Inverses of symmetric matrices (B, k, k), scaled to unit diagonal meanwhile; NaN of none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        length = np.sqrt(np.abs(np.diagonal(information, axis1=1, axis2=2)))
        scale = length[:, :, None] * length[:, None, :]
        scaled = information / scale
    known = np.isfinite(scaled).all(axis=(1, 2))
    result = np.full(information.shape, np.nan)
    result[known] = np.linalg.pinv(scaled[known], hermitian=True) / scale[known]
    return result
