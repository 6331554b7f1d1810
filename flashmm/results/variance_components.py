"""The variance components: their table and their limits."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import ConvergenceWarning, InputError, check_option, nearest, warn
from flashmm.inference.constrained import Maximiser
from flashmm.inference.profile import Estimate, profile_limits
from flashmm.inference.statistics import check_alpha, resolve_alternative
from flashmm.inference.tails import norm_isf
from flashmm.inference.variance_tests import wald_limits, z_statistics
from flashmm.likelihood import Projection, make_likelihood
from flashmm.progress import Progress, progress_bar, wanted
from flashmm.results.fitted import FittedModel
from flashmm.results.variance_tests import maximiser
from flashmm.solvers import FisherScoring

__all__ = ["conf_int_theta", "profile_maximiser", "variance_components"]

# Random effects and features up to which the general likelihood evaluates profiles.
_LIGHT = 128
_FEW = 64


def variance_components(
    fitted: FittedModel, positions: IntArray, *, alternative: str = "two-sided"
) -> xr.Dataset:
    """Estimates, standard errors and z-tests; see `MultiLMMResults.variance_components`."""
    side = resolve_alternative(alternative)
    dims = ("feature", "param")
    theta = fitted.values("theta", positions)
    se = fitted.values("se_theta", positions)
    table = {"estimate": (dims, theta), "se": (dims, se)}
    if fitted.options.parameter_space == "unconstrained":
        z, p = z_statistics(theta, se, side)
        table |= {"z": (dims, z), "p": (dims, p)}
    coords = {"feature": fitted.features[positions], "param": pd.Index(fitted.params)}
    return xr.Dataset(table, coords=coords, attrs={"alternative": side})


def conf_int_theta(
    fitted: FittedModel,
    positions: IntArray,
    alpha: float = 0.05,
    *,
    method: str = "wald",
    scale: str = "variance",
    params: str | Sequence[str] | None = None,
    progress: Progress = None,
    max_seconds: float | None = None,
) -> xr.DataArray:
    """Limits of the variances and covariances; see `MultiLMMResults.conf_int_theta`."""
    check_option("method", method, ("wald", "profile"))
    check_option("scale", scale, ("variance", "sd"))
    check_alpha(alpha)
    chosen = _param_positions(fitted, params)
    if scale == "sd":
        chosen = chosen[fitted.stats.structure.is_variance[chosen]]
    if method == "profile":
        clock = _Clock.of(max_seconds)
        limits = _profiled(fitted, positions, chosen, alpha, progress, clock)
    else:
        limits = wald_limits(
            fitted.ds["theta"].to_numpy()[np.ix_(positions, chosen)],
            fitted.ds["se_theta"].to_numpy()[np.ix_(positions, chosen)],
            alpha,
            fitted.stats.structure.is_variance[chosen] & (fitted.options.parameter_space == "psd"),
        )
    if scale == "sd":
        limits = np.sqrt(np.where(np.isnan(limits), np.nan, np.maximum(limits, 0.0)))
    return xr.DataArray(
        limits,
        dims=("feature", "param", "bound"),
        coords={
            "feature": fitted.features[positions],
            "param": pd.Index(fitted.params[chosen]),
            "bound": ["lower", "upper"],
        },
        name="conf_int_theta",
        attrs={"method": method, "scale": scale, "alpha": float(alpha)},
    )


def _param_positions(fitted: FittedModel, params: str | Sequence[str] | None) -> IntArray:
    names = [str(name) for name in fitted.params]
    if params is None:
        return np.arange(len(names))
    asked = [params] if isinstance(params, str) else [str(name) for name in params]
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise InputError(f"No variance parameter {unknown[0]!r}. {nearest(unknown[0], names)}")
    return np.array([names.index(name) for name in asked], dtype=np.intp)


@dataclass(frozen=True)
class _Clock:
    """When a search has to end, by `time.monotonic`; infinity for never."""

    end: float

    @classmethod
    def of(cls, max_seconds: float | None) -> _Clock:
        """The clock that runs from now on."""
        if max_seconds is None:
            return cls(math.inf)
        if isinstance(max_seconds, bool) or not isinstance(max_seconds, Real) or max_seconds <= 0:
            raise InputError(f"`max_seconds` must be a positive number, not {max_seconds!r}.")
        return cls(time.monotonic() + float(max_seconds))

    def over(self) -> bool:
        """Whether it is time to end."""
        return time.monotonic() > self.end


def _profiled(
    fitted: FittedModel,
    positions: IntArray,
    params: IntArray,
    alpha: float,
    progress: Progress,
    clock: _Clock,
) -> FloatArray:
    """Profile limits in the units of Y, shape (B, c, 2); NaN without a regular fit."""
    limits = np.full((positions.size, params.size, 2), np.nan)
    known = np.flatnonzero(fitted.on_request.known[positions] & fitted.converged[positions])
    at = positions[known]
    unit = fitted.projection.units(at)
    at_held = profile_maximiser(fitted, at.size)
    estimate = Estimate(
        fitted.on_request.theta[at],
        fitted.ds["se_theta"].to_numpy()[at] / unit,  # of turned effects a first guess
        at_held.loglik(fitted.on_request.theta[at], at),
        at,
    )
    quantile = float(norm_isf(alpha / 2.0)) ** 2
    bar = progress_bar(
        list(enumerate(params)), params.size, show=wanted(progress), unit="param", desc="profiles"
    )
    turn = getattr(fitted.projection, "turn", None)
    for j, i in bar:
        if fitted.options.known_residual and i == len(fitted.params) - 1:
            continue
        if turn is not None and not turn.keeps(np.array([i])):
            continue  # no coordinate of the basis that the likelihood is maximised in
        found = profile_limits(at_held, estimate, int(i), quantile, clock.over)
        limits[known, j] = found * unit[:, i, None]
        if callable(progress):
            progress(j + 1, params.size)
    estimated = params < len(fitted.params) - fitted.options.known_residual
    absent = np.zeros((known.size, len(fitted.params)), dtype=bool)
    if fitted.absent is not None:  # no parameters of these features
        absent[:, -fitted.absent.shape[1] :] = fitted.absent[at]
    there = estimated & ~absent[:, params]
    lost = int((np.isnan(limits[known]).any(axis=2) & there).any(axis=1).sum())
    if lost:
        why = (
            "`max_seconds` have passed."
            if clock.over()
            else "their likelihood has no regular maximum with the parameter held."
            if turn is None
            else "the effects of a level are almost collinear: centre the variable of the slope."
        )
        warn(
            f"For {lost} of {known.size} features a profile limit was not found and is NaN: {why}",
            ConvergenceWarning,
        )
    return limits


def profile_maximiser(fitted: FittedModel, count: int) -> Maximiser:
    """What maximises with a parameter held: as exactly as limits need, by a light engine.

    A log-likelihood is off by half the square of the distance from its maximum in standard errors.
    An evaluation of few features costs its many small steps, of which the general likelihood
    has fewest.
    """
    held = maximiser(fitted)
    solver = FisherScoring(epsilon=max(fitted.options.epsilon, 3e-4), newton_within=10.0)
    held = replace(held, solver=solver)
    host = fitted.projection
    one = not fitted.options.residual_by
    if one and isinstance(host, Projection) and host.structure.q <= _LIGHT and count <= _FEW:
        general = make_likelihood(host, fitted.options.method, "general")
        held = replace(held, likelihood=fitted.held(general))
    return held
