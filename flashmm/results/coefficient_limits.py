"""Confidence limits of the fixed effects: Wald's, and of the profile likelihood.

A coefficient is held at a value by taking its column off y: with u = y - X beta_hat the statistics
of u - delta x_j on the other columns follow from those of y, and a fit of them is the profile at
beta_hat_j + delta. The likelihood is that of all data (ML), as restricted likelihoods with
different fixed effects are not comparable; lme4 takes the same for its REML fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import ConvergenceWarning, InputError, check_option, warn
from flashmm.inference.degrees_of_freedom import DEFAULT_DF
from flashmm.inference.names import coefficients_of
from flashmm.inference.roots import profile_roots
from flashmm.inference.statistics import check_alpha
from flashmm.inference.tails import norm_isf
from flashmm.progress import Progress, counted
from flashmm.results.cluster_robust import MODEL
from flashmm.results.fitted import FitOptions, FittedModel
from flashmm.results.fixed_effects import t_test
from flashmm.results.refit import refit
from flashmm.solvers.verdict_texts import Status
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["conf_int"]

METHODS = ("wald", "profile")


def conf_int(
    fitted: FittedModel,
    positions: IntArray,
    alpha: float = 0.05,
    *,
    df: str = DEFAULT_DF,
    prior: Any = None,
    cov: str = MODEL,
    cluster: Any = None,
    method: str = "wald",
    coefs: Any = None,
    progress: Progress = None,
) -> xr.DataArray:
    """Limits of the fixed effects; see `MultiLMMResults.conf_int`."""
    check_option("method", method, METHODS)
    names = [str(name) for name in fitted.coefs]
    chosen = np.arange(len(names))
    if coefs is not None:
        asked = coefficients_of(coefs, fitted.stats.coef_names)
        chosen = np.array([names.index(str(name)) for name in asked], dtype=np.intp)
    if method == "wald":
        options: dict[str, Any] = {"cov": cov, "cluster": cluster, "progress": progress}
        tests = t_test(fitted, positions, None, df=df, prior=prior, **options)
        found = tests.conf_int(alpha).rename({"contrast": "coef"}).isel(coef=chosen)
        return found.assign_attrs(method=method)
    check_alpha(alpha)
    if df != DEFAULT_DF or prior is not None or cov != MODEL or cluster is not None:
        raise InputError(
            '`df`, `prior`, `cov` and `cluster` belong to method="wald": a profile has none.'
        )
    quantile = float(norm_isf(alpha / 2.0)) ** 2

    def of_design(one: FittedModel, here: IntArray) -> xr.Dataset:
        limits = _profile_limits(one, here, chosen, quantile, done)
        coords = {
            "feature": one.features[here],
            "coef": pd.Index(fitted.coefs[chosen]),
            "bound": ["lower", "upper"],
        }
        return xr.Dataset({"limits": (("feature", "coef", "bound"), limits)}, coords=coords)

    total = positions.size * chosen.size
    with counted(progress, total, unit="profile", desc="profiles") as done:
        if isinstance(fitted.stats, PatternedStats):
            if fitted.stats.own.names:
                fitted.one_design("A profile of a fixed effect")
            ds = fitted.by_pattern(positions, of_design)
        else:
            ds = of_design(fitted, positions)
    limits = ds["limits"].rename(None)
    known = fitted.on_request.known[positions] & fitted.converged[positions]
    lost = int(np.isnan(limits.to_numpy()[known]).any(axis=(1, 2)).sum())
    if lost:
        warn(
            f"For {lost} of {int(known.sum())} features a profile limit was not found and is NaN: "
            "their likelihood has no regular maximum with the coefficient held.",
            ConvergenceWarning,
        )
    return limits.assign_attrs(method=method, alpha=float(alpha))


def _profile_limits(
    fitted: FittedModel,
    positions: IntArray,
    coefs: IntArray,
    quantile: float,
    done: Callable[[int], None],
) -> FloatArray:
    """Limits of some coefficients, (B, c, 2), of features that share one design."""
    limits = np.full((positions.size, coefs.size, 2), np.nan)
    known = np.flatnonzero(fitted.on_request.known[positions] & fitted.converged[positions])
    done((positions.size - known.size) * coefs.size)
    if known.size == 0:
        return limits
    fitted.one_residual("A profile of a fixed effect")
    stats = fitted.one_design("A profile of a fixed effect").at(positions[known])
    options = replace(fitted.options, method="ML", engine="auto")
    ds, _ = refit(stats, options, fitted.values("theta", positions[known]))
    centre = _Centre.of(stats, ds)
    goal = float(np.sqrt(quantile))
    sides = np.tile([-1.0, 1.0], (known.size, 1))
    for column, j in enumerate(coefs):
        held = _Held(stats, centre, options, int(j))
        first = sides * goal * centre.se[:, j, None]
        found = profile_roots(held.distance, first.ravel(), goal).reshape(first.shape)
        limits[known, column] = centre.beta[:, j, None] + found
        done(known.size)
    return limits


@dataclass(frozen=True)
class _Centre:
    """ML fits of F features and the sums of what they leave, u = y - X beta.

    Parameters
    ----------
    beta, se
        Shape (F, p).
    theta
        Shape (F, k).
    loglik
        Shape (F,); NaN without a regular fit.
    Xu, Zu, uu
        X'u (p, F), Z'u (q, F), u'u (F,).
    """

    beta: FloatArray
    se: FloatArray
    theta: FloatArray
    loglik: FloatArray
    Xu: FloatArray
    Zu: FloatArray
    uu: FloatArray

    @classmethod
    def of(cls, stats: SummaryStats, ds: xr.Dataset) -> _Centre:
        """The sums at the estimates of a fit."""
        XY, ZY, yy, a = stats.centred()
        beta = ds["beta"].to_numpy()
        c = beta.T - a
        Xc = stats.XX @ c
        loglik = np.where(ds["status"] <= Status.INDEFINITE, ds["loglik"].to_numpy(), np.nan)
        return cls(
            beta,
            ds["se_beta"].to_numpy(),
            ds["theta"].to_numpy(),
            loglik,
            XY - Xc,
            ZY - stats.ZX @ c,
            yy - 2.0 * (c * XY).sum(axis=0) + (c * Xc).sum(axis=0),
        )


class _Held:
    """The profile of one coefficient: rows 2 f and 2 f + 1 are the two sides of feature f."""

    def __init__(self, stats: SummaryStats, centre: _Centre, options: FitOptions, j: int) -> None:
        self.centre, self.options, self.j = centre, options, j
        self.stats = stats
        self.smaller = stats.drop(fixed=[stats.coef_names[j]])
        self.theta = np.repeat(centre.theta, 2, axis=0)

    def distance(self, rows: IntArray, delta: FloatArray) -> FloatArray:
        """Signed root of twice the fall of the log-likelihood at beta_hat_j + delta."""
        c, j, stats = self.centre, self.j, self.stats
        f = rows // 2
        rest = np.delete(np.arange(stats.p), j)
        held = replace(
            self.smaller,
            XY=c.Xu[np.ix_(rest, f)] - stats.XX[rest, j, None] * delta,
            ZY=c.Zu[:, f] - stats.ZX[:, j, None] * delta,
            yy=c.uu[f] - 2.0 * delta * c.Xu[j, f] + delta**2 * stats.XX[j, j],
            feature_names=np.arange(rows.size),
            shift=None,
        )
        ds, _ = refit(held, self.options, self.theta[rows])
        good = np.asarray(ds["status"] <= Status.INDEFINITE)
        self.theta[rows[good]] = ds["theta"].to_numpy()[good]
        fall = 2.0 * (c.loglik[f] - ds["loglik"].to_numpy())
        return np.where(good, np.sqrt(np.maximum(fall, 0.0)), np.nan)
