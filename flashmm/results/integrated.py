"""Tests, limits and variances that integrate over the ratios, with labels.

The numbers are those of `flashmm.inference.integrated`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import InputError, SlowWarning, warn
from flashmm.inference.degrees_of_freedom import INTEGRATED
from flashmm.inference.integrated.integration import (
    AnyPart,
    Integration,
    Part,
    integrate,
)
from flashmm.inference.integrated.learning import learn
from flashmm.inference.integrated.own_rows import OwnPart
from flashmm.inference.integrated.shared import refuse_turned
from flashmm.inference.margins import interval_tests
from flashmm.inference.statistics import Alternative, TStatistics, check_alpha
from flashmm.inference.variance_fractions import component_weights
from flashmm.likelihood import PatternedProjection, project
from flashmm.likelihood.own_rows.own_rows import OwnRowsLikelihood
from flashmm.likelihood.own_rows.stacked_designs import StackedProjection
from flashmm.progress import Progress
from flashmm.results.contrast_results import TTestResults
from flashmm.results.estimability import EstimableContrasts, Hypothesis
from flashmm.results.fitted import FittedModel
from flashmm.results.interval_nulls import IntervalNull, with_interval
from flashmm.results.joint_results import FTestResults
from flashmm.results.moderation import feature_means, trend_values
from flashmm.results.ratio_prior import RatioPrior, prior_of
from flashmm.results.simultaneous import Family, JointContrasts
from flashmm.stats.own_rows import PatternedStats

__all__ = [
    "default_ratio_prior",
    "integrated_f_tests",
    "integrated_predictions",
    "integrated_t_tests",
    "learn_ratio_prior",
    "posterior_variances",
]

# With more patterns of rows than so many a word of warning is due.
_MANY_PATTERNS = 2000


def learn_ratio_prior(
    fitted: FittedModel, trend: Any = False, robust: bool = False, progress: Progress = None
) -> RatioPrior:
    """The prior that the features share; see `MultiLMMResults.learn_ratio_prior`."""
    fitted.one_residual("df='integrated'", "Use df='satterthwaite' or 'kenward-roger'.")
    fitted.estimated_residual("df='integrated'", "Use df='satterthwaite' or 'knapp-hartung'.")
    covariate = trend_values(fitted, trend)
    where = learn(
        _parts(fitted),
        fitted.stats.m,
        fitted.options.memory,
        covariate=covariate,
        robust=robust,
        progress=progress,
    )
    kind = "" if covariate is None else "mean" if trend is True else "given"
    params = fitted.stats.structure.param_names[:-1]
    return prior_of(where, fitted.names, params, covariate, kind)


def integrated_t_tests(
    fitted: FittedModel,
    positions: IntArray,
    read: EstimableContrasts,
    side: Alternative,
    prior: Any = None,
    interval: IntervalNull | None = None,
    progress: Progress = None,
) -> TTestResults:
    """T tests of contrasts; see `MultiLMMResults.t_test`."""
    where, contrasts = _integration(fitted, prior, progress), read.contrasts
    L, values = contrasts.matrix, contrasts.values
    found = where.contrasts(positions, L, values, side)

    def known(values: FloatArray) -> FloatArray:
        return np.where(read.estimable, values, np.nan)

    with np.errstate(invalid="ignore", divide="ignore"):
        t = (found.estimate - values) / found.se
    table = TStatistics(t, found.p)
    if interval is not None:
        margin = interval.margin

        def end_of_interval(end: float, toward: Alternative) -> TStatistics:
            one = where.contrasts(positions, L, values + end * margin, toward)
            return TStatistics((one.estimate - values - end * margin) / one.se, one.p)

        with np.errstate(invalid="ignore", divide="ignore"):
            table = interval_tests(end_of_interval, interval.null, side)
    dims = ("feature", "contrast")
    ds = xr.Dataset(
        {
            "estimate": (dims, known(found.estimate)),
            "se": (dims, known(found.se)),
            "t": (dims, known(table.t)),
            "df": (dims, known(found.df)),
            "p": (dims, known(table.p)),
            "value": (("contrast",), values),
            "estimable": (("contrast",), read.estimable),
            "status": (("feature",), fitted.verdicts[positions]),
        },
        coords={
            "feature": fitted.names[positions],
            "contrast": np.array(contrasts.labels, dtype=object),
        },
        attrs={"alternative": side, "df": INTEGRATED},
    )
    return TTestResults(
        with_interval(ds, interval),
        alternative=side,
        df_method=INTEGRATED,
        limits=lambda alpha: np.where(
            read.estimable[:, None], where.limits(positions, L, alpha), np.nan
        ),
        joint=JointContrasts(
            L,
            lambda here, rows: where.covariance(positions[here], rows),
            (Family(np.arange(len(L))),),
        ),
    )


def integrated_f_tests(
    fitted: FittedModel,
    positions: IntArray,
    hypotheses: dict[str, Hypothesis],
    prior: Any = None,
) -> FTestResults:
    """F tests of labelled hypotheses; see `MultiLMMResults.f_test`."""
    where = _integration(fitted, prior)
    shape = positions.size, len(hypotheses)
    F, df, p = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    for column, hypothesis in enumerate(hypotheses.values()):
        if hypothesis.estimable:
            found = where.joint(positions, hypothesis.L, hypothesis.values)
            F[:, column], df[:, column], p[:, column] = found.F, found.df, found.p
    df_num = np.array([float(hypothesis.L.shape[0]) for hypothesis in hypotheses.values()])
    estimable = np.array([hypothesis.estimable for hypothesis in hypotheses.values()], dtype=bool)
    dims = ("feature", "contrast")
    ds = xr.Dataset(
        {
            "F": (dims, F),
            "df_num": (dims, np.broadcast_to(df_num, shape).copy()),
            "df_denom": (dims, df),
            "p": (dims, p),
            "estimable": (("contrast",), estimable),
            "status": (("feature",), fitted.verdicts[positions]),
        },
        coords={
            "feature": fitted.names[positions],
            "contrast": np.array(list(hypotheses), dtype=object),
        },
        attrs={"df": INTEGRATED},
    )
    return FTestResults(ds, df_method=INTEGRATED)


def integrated_predictions(
    fitted: FittedModel,
    positions: IntArray,
    X: FloatArray,
    Z: FloatArray | None,
    independent: FloatArray,
    *,
    interval: str | None,
    alpha: float,
    prior: Any = None,
) -> xr.Dataset:
    """Predictions X beta + Z b with their errors and limits; see `MultiLMMResults.predict`.

    Row i adds ``independent[i] @ theta`` to the variance.
    """
    where = _integration(fitted, prior, effects=Z is not None)
    added = independent if independent.any() else None
    found = where.predictions(positions, X, Z, added)
    dims = ("feature", "sample")
    ds = xr.Dataset(
        {"prediction": (dims, found.estimate), "se": (dims, found.se)},
        coords={"feature": fitted.names[positions]},
    )
    if interval is not None:
        check_alpha(alpha)
        limits = where.prediction_limits(positions, X, Z, added, alpha)
        ds = ds.assign(lower=(dims, limits[..., 0]), upper=(dims, limits[..., 1]))
        ds = ds.assign(df=(dims, found.df))
        ds.attrs.update(interval=interval, alpha=alpha, df_method=INTEGRATED)
    return ds


def posterior_variances(
    fitted: FittedModel,
    positions: IntArray,
    alpha: float = 0.05,
    prior: Any = None,
    progress: Progress = None,
) -> xr.Dataset:
    """Variances and their shares; see `MultiLMMResults.posterior_variances`."""
    check_alpha(alpha)
    where = _integration(fitted, prior, progress)
    theta = where.variances(positions, alpha)
    where = replace(where, progress=False)  # the rest is a matter of moments
    stats = fitted.independent
    stats = stats.sums if isinstance(stats, PatternedStats) else stats
    components, weights = component_weights(stats)
    ratios = where.shared[0].grid.ratios
    parts = np.hstack([ratios, np.ones((len(ratios), 1))]) @ weights.T
    shares = where.shares(positions, parts / parts.sum(axis=1, keepdims=True), alpha)
    dims, wide = ("feature", "param"), ("feature", "component")
    return xr.Dataset(
        {
            "mean": (dims, theta.mean),
            "lower": (dims, theta.limits[..., 0]),
            "upper": (dims, theta.limits[..., 1]),
            "share": (wide, shares.mean),
            "share_lower": (wide, shares.limits[..., 0]),
            "share_upper": (wide, shares.limits[..., 1]),
        },
        coords={
            "feature": fitted.names[positions],
            "param": fitted.params,
            "component": np.array(components, dtype=object),
        },
        attrs={"alpha": alpha},
    )


# ---- the posterior of a fit -------------------------------------------------------------------


def _integration(
    fitted: FittedModel, prior: Any, progress: Progress = None, *, effects: bool = False
) -> Integration:
    """The posterior of a fit under its own prior or another; ``effects``: with random effects."""
    if prior is None:  # a function is told of the question alone
        prior = default_ratio_prior(fitted, None if callable(progress) else progress)
    elif not isinstance(prior, RatioPrior):
        prior = getattr(prior, "ratio_prior", None)
        if not isinstance(prior, RatioPrior):
            raise InputError(
                "`prior` must be a RatioPrior, as result.ratio_prior is, or the results of a fit."
            )
    prior.check(fitted.stats.structure.param_names[:-1])
    _refuse_indefinite(prior, fitted.stats.structure)
    covariate = None
    if prior.ds.attrs.get("trend") == "mean":
        covariate = feature_means(fitted)
    return integrate(
        _parts(fitted, effects=effects),
        fitted.stats.m,
        fitted.options.memory,
        prior.grid,
        prior.weights,
        prior.of_features(fitted.names, covariate),
        prior.following,
        progress,
    )


def _refuse_indefinite(prior: RatioPrior, structure: CovarianceStructure) -> None:
    """Raise for a prior, of a file say, with ratios that no covariance of random effects has."""
    ratios = prior.grid.ratios
    for block in structure.blocks():
        if block.max() >= ratios.shape[1]:
            continue  # the residual variance of a group
        D = np.where(block < 0, 0.0, ratios[:, block])
        if np.linalg.eigvalsh(D).min(initial=0.0) < -1e-6 * np.abs(D).max(initial=1.0):
            raise InputError(
                "`prior` has ratios at which the covariance of the random effects is not positive "
                "semi-definite: it is damaged, or not one of a fit."
            )


def default_ratio_prior(fitted: FittedModel, progress: Progress = None) -> RatioPrior:
    """The prior of a fit, learned once; of features with one pattern of samples, that of all."""
    whole = fitted if fitted.whole is None else fitted.whole
    known = whole.kept.get(INTEGRATED)
    if known is None:
        known = whole.kept[INTEGRATED] = learn_ratio_prior(whole, progress=progress)
    assert isinstance(known, RatioPrior)
    return known


def _parts(fitted: FittedModel, *, effects: bool = False) -> tuple[AnyPart, ...]:
    """The designs of a fit with their features; those that cannot be fitted are left out.

    ``effects``: so that predictions of random effects can be had.
    """
    stats = fitted.independent
    if not isinstance(stats, PatternedStats):
        projection: Any = fitted.projection
        return (Part(projection, np.arange(stats.m)),)
    whole: Any = fitted.projection
    refuse_turned(whole.turn)
    together = not effects and whole.layout is not None
    kept = "parts" if together else "parts by pattern"
    if kept not in fitted.kept:
        fitted.kept[kept] = _own_parts(fitted) if together else _parts_of_patterns(stats)
    parts: tuple[AnyPart, ...] = fitted.kept[kept]
    return parts


def _own_parts(fitted: FittedModel) -> tuple[AnyPart, ...]:
    """Features with rare patterns together, others pattern by pattern."""
    stats, projection = fitted.independent, fitted.projection
    assert isinstance(stats, PatternedStats)
    assert isinstance(projection, PatternedProjection)
    parts: list[AnyPart] = []
    for group in projection.groups:
        here = group.features
        if isinstance(group.projection, StackedProjection):
            assert projection.layout is not None
            likelihood = OwnRowsLikelihood(group.projection, "REML", projection.layout)
            known = projection.varies[here] & ~likelihood.perfect_fit
            parts.append(OwnPart(likelihood, here, projection.param_scale[here, :-1], known))
        else:
            alone = project(stats.of_pattern(int(stats.pattern[here[0]])))
            parts.append(Part(alone, here))
    if not parts:
        raise InputError("No feature has samples enough for a fit.")
    return tuple(parts)


def _parts_of_patterns(stats: PatternedStats) -> tuple[AnyPart, ...]:
    if stats.n_patterns > _MANY_PATTERNS:
        warn(
            f"df='integrated' takes the {stats.n_patterns:,} patterns of samples, weights and "
            "covariates that features have one after the other here, some milliseconds each, which "
            "can take minutes: it predicts random effects, or no factor of the model falls into "
            "levels that share no samples. df='satterthwaite' takes all at once.",
            SlowWarning,
        )
    parts: list[AnyPart] = []
    for pattern in range(stats.n_patterns):
        with suppress(InputError):  # features without a fit: NaN, as in every other test
            parts.append(Part(project(stats.of_pattern(pattern)), stats.members(pattern)))
    if not parts:
        raise InputError("No feature has samples enough for a fit.")
    return tuple(parts)
