"""The profile of the likelihood of one variance parameter, for a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.inference.tails import norm_isf
from flashmm.results.fitted import FittedModel
from flashmm.results.variance_components import conf_int_theta, profile_maximiser
from flashmm.solvers.space import PSD

__all__ = ["ProfileCurve", "profile_curve"]


@dataclass(frozen=True)
class ProfileCurve:
    """Twice the fall of the log-likelihood by the value of one parameter.

    Parameters
    ----------
    value, fall
        In squared units of Y, and a number, shape (g,); empty where nothing was fitted.
    estimate
        The estimate.
    limits
        Of the interval, shape (2,).
    quantile
        The fall at the limits.
    """

    value: FloatArray
    fall: FloatArray
    estimate: float
    limits: FloatArray
    quantile: float


def profile_curve(
    fitted: FittedModel, position: IntArray, param: int, alpha: float, points: int = 33
) -> ProfileCurve:
    """The profile of one parameter of one feature.

    Parameters
    ----------
    fitted
        The fitted models.
    position
        Of the feature, shape (1,).
    param
        Position of the parameter in theta.
    alpha
        One minus the coverage of the interval.
    points
        Values at which the likelihood is maximised over the other parameters.
    """
    quantile = float(norm_isf(alpha / 2.0)) ** 2
    estimate = float(fitted.values("theta", position)[0, param])
    name = str(fitted.params[param])
    nothing = np.zeros(0)
    turn = getattr(fitted.projection, "turn", None)
    turned = turn is not None and not turn.keeps(np.array([param]))
    if not (fitted.on_request.known & fitted.converged)[position[0]] or turned:
        return ProfileCurve(nothing, nothing, estimate, np.full(2, np.nan), quantile)
    limits = conf_int_theta(fitted, position, alpha, method="profile", params=name).to_numpy()[0, 0]
    se = float(fitted.values("se_theta", position)[0, param])
    spread = se if np.isfinite(se) and se > 0 else abs(estimate) or 1.0
    ends = np.where(np.isfinite(limits), limits, estimate + np.array([-2.0, 2.0]) * spread)
    low, high = estimate + 1.5 * (ends - estimate)
    held = profile_maximiser(fitted, 1)
    bounded = isinstance(held.space, PSD) and bool(fitted.stats.structure.is_variance[param])
    low = max(low, 0.0) if bounded else low
    unit = float(fitted.projection.units(position)[0, param])
    value = np.linspace(low, high, points)
    if bounded and low == 0.0:  # the end itself is another space; just inside is close enough
        value[0] = 1e-6 * high
    start = np.repeat(fitted.on_request.theta[position], points, axis=0)
    at = np.repeat(position, points)
    top = held.loglik(fitted.on_request.theta[position], position)[0]
    start[:, param] = value / unit
    found = held.at(start, at, values=(param,))
    fall = 2.0 * (top - found.loglik)
    fall = np.where(np.isfinite(fall), np.maximum(fall, 0.0), np.nan)
    return ProfileCurve(value, fall, estimate, limits, quantile)
