"""Likelihood-ratio tests of the variance components: fits without them, null distributions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.types import IntArray
from flashmm.exceptions import (
    ConvergenceWarning,
    InputError,
    SlowWarning,
    check_option,
    warn,
)
from flashmm.inference.constrained import Maximiser
from flashmm.inference.exact_lrt import SimulatedNull, simulate_exact_null
from flashmm.inference.variance_tests import (
    Gain,
    ZeroHypothesis,
    asymptotic_null,
    likelihood_ratio,
    zero_hypotheses,
)
from flashmm.likelihood import Projection
from flashmm.progress import Progress, counted
from flashmm.results.fitted import FittedModel
from flashmm.results.refit import refit
from flashmm.solvers import FisherScoring
from flashmm.solvers.space import make_space
from flashmm.solvers.verdict_texts import Status
from flashmm.stats.own_rows import PatternedStats

__all__ = ["all_gains", "exact_null", "gain", "maximiser", "variance_test"]

NULLS = ("asymptotic", "exact")
# With more patterns of rows than so many a word of warning is due.
_MANY_PATTERNS = 500


def variance_test(
    fitted: FittedModel,
    positions: IntArray,
    components: str | Sequence[str] | None = None,
    *,
    null: str = "asymptotic",
    n_sim: int = 10_000,
    rng: Any = None,
    progress: Progress = None,
) -> xr.Dataset:
    """Tests that random effects are absent; see `MultiLMMResults.variance_test`."""
    hypotheses = zero_hypotheses(fitted.stats.structure, components)
    check_option("null", null, NULLS)
    if null == "exact" and isinstance(fitted.stats, PatternedStats):
        return _exact_by_pattern(fitted, positions, components, n_sim, rng, progress)
    exact = exact_null(fitted, n_sim, rng) if null == "exact" else None
    shape = (positions.size, len(hypotheses))
    statistic, p, p_se, loglik_null = (np.full(shape, np.nan) for _ in range(4))
    labels = []
    gains = all_gains(fitted, positions, hypotheses, progress)
    for j, (hypothesis, found) in enumerate(zip(hypotheses, gains, strict=True)):
        statistic[:, j], loglik_null[:, j] = found.statistic, found.loglik_null
        _warn_of_lost(hypothesis.label, found.lost, positions.size)
        if exact is not None:
            negative = fitted.ds["theta"].to_numpy()[positions, 0] < 0
            statistic[negative, j] = np.minimum(statistic[negative, j], 0.0)
            p[:, j], p_se[:, j] = exact.sf(statistic[:, j])
            labels.append(f"exact, {n_sim} draws")
        else:
            mixture = asymptotic_null(hypothesis, fitted.options.parameter_space)
            p[:, j] = mixture.sf(statistic[:, j])
            labels.append(str(mixture))
    dims = ("feature", "component")
    table = {"statistic": (dims, statistic), "p": (dims, p), "loglik_null": (dims, loglik_null)}
    if exact is not None:
        table["p_se"] = (dims, p_se)
    return xr.Dataset(
        table,
        coords={
            "feature": fitted.features[positions],
            "component": pd.Index([h.label for h in hypotheses]),
            "null": (("component",), np.array(labels, dtype=object)),
        },
        attrs={"method": fitted.options.method, "parameter_space": fitted.options.parameter_space},
    )


def _warn_of_lost(label: str, lost: int, count: int) -> None:
    if lost:
        warn(
            f"The fit without {label!r} did not converge for {lost} of {count} features: their "
            "test is NaN.",
            ConvergenceWarning,
        )


def _exact_by_pattern(
    fitted: FittedModel,
    positions: IntArray,
    components: str | Sequence[str] | None,
    n_sim: int,
    rng: Any,
    progress: Progress,
) -> xr.Dataset:
    """Exact tests, each pattern of rows with draws of its own."""
    stats = fitted.stats
    assert isinstance(stats, PatternedStats)
    _check_exact(fitted, n_sim)
    patterns = np.unique(stats.pattern[positions]).size
    if patterns > _MANY_PATTERNS:
        warn(
            f"null='exact' draws the null distribution of each of the {patterns:,} patterns of "
            "samples, weights and covariates that features have, a tenth of a second each. "
            "null='asymptotic' draws nothing.",
            SlowWarning,
        )
    streams = np.random.default_rng(rng).spawn(stats.n_patterns)

    def test(one: FittedModel, own: IntArray) -> xr.Dataset:
        assert one.members is not None
        stream = streams[stats.pattern[one.members[0]]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = variance_test(
                one, own, components, null="exact", n_sim=n_sim, rng=stream, progress=False
            )
        done(own.size)
        return found

    with counted(progress, positions.size, unit="feature", desc="exact tests") as done:
        found = fitted.by_pattern(positions, test)
    fitted_here = fitted.on_request.known[positions] & fitted.converged[positions]
    for component in found["component"].to_numpy():
        null = found["loglik_null"].sel(component=component).to_numpy()
        _warn_of_lost(component, int((fitted_here & np.isnan(null)).sum()), positions.size)
    return found


def maximiser(fitted: FittedModel) -> Maximiser:
    """What fits again with some of theta held."""
    fitted.linear(
        "A fit with some parameters held, as tests of variances and profiles need,",
        "`random_parameters()` has limits by the delta method, and AIC or BIC compare structures.",
    )
    options, structure = fitted.options, fitted.stats.structure
    # Refits start near their maximum, where the observed information serves from the start.
    solver = FisherScoring(epsilon=options.epsilon, newton_within=10.0)
    return Maximiser(
        fitted.likelihood,
        make_space(options.parameter_space, structure.blocks(), len(structure.param_names)),
        solver,
        max(options.max_iter, 100),
        options.memory,
    )


def all_gains(
    fitted: FittedModel,
    positions: IntArray,
    hypotheses: Sequence[ZeroHypothesis],
    progress: Progress,
) -> list[Gain]:
    """`gain` of several components, counted."""
    total = positions.size * len(hypotheses)
    with counted(progress, total, unit="fit", desc="fits without a term") as done:
        return [gain(fitted, positions, hypothesis, done) for hypothesis in hypotheses]


def gain(
    fitted: FittedModel,
    positions: IntArray,
    hypothesis: ZeroHypothesis,
    done: Callable[[int], None] = lambda _: None,
) -> Gain:
    """What the features at ``positions`` gain by a component in log-likelihood."""
    request = fitted.on_request
    known = np.flatnonzero(request.known[positions] & fitted.converged[positions])
    chosen = positions[known]
    turn = getattr(fitted.projection, "turn", None)
    if turn is not None and not turn.keeps(np.array(hypothesis.zeros)):
        found = _gain_by_refit(fitted, positions, known, hypothesis)
        done(positions.size)
        return found
    done(positions.size - chosen.size)
    null = maximiser(fitted).at(request.theta[chosen], chosen, zeros=hypothesis.zeros, done=done)
    fine = np.asarray(null.status <= Status.INDEFINITE) | (null.status == Status.STALLED)
    natural = fitted.projection.natural_loglik(null.loglik, fitted.options.method, chosen)
    loglik = np.where(fine, natural, np.nan)
    statistic, loglik_null = np.full(positions.size, np.nan), np.full(positions.size, np.nan)
    statistic[known] = likelihood_ratio(fitted.ds["loglik"].to_numpy()[chosen], loglik)
    loglik_null[known] = loglik
    return Gain(statistic, loglik_null, int((~fine).sum()))


def _gain_by_refit(
    fitted: FittedModel, positions: IntArray, known: IntArray, hypothesis: ZeroHypothesis
) -> Gain:
    """The same by a fit of the smaller model, where its parameters have other coordinates."""
    smaller = fitted.stats.drop(random=hypothesis.label)
    residual = fitted.ds["theta"].to_numpy()[:, -1]
    ds, _ = refit(smaller, replace(fitted.options, engine="auto"), residual=residual)
    found = ds["status"].to_numpy()[positions[known]] <= Status.INDEFINITE
    loglik = np.where(found, ds["loglik"].to_numpy()[positions[known]], np.nan)
    statistic, loglik_null = np.full(positions.size, np.nan), np.full(positions.size, np.nan)
    full = fitted.ds["loglik"].to_numpy()[positions[known]]
    statistic[known], loglik_null[known] = likelihood_ratio(full, loglik), loglik
    return Gain(statistic, loglik_null, int((~found).sum()))


def exact_null(fitted: FittedModel, n_sim: int, rng: Any) -> SimulatedNull:
    """Draws from the finite-sample null distribution of the only component."""
    _check_exact(fitted, n_sim)
    fitted.one_design("null='exact'")
    p = fitted.projection
    assert isinstance(p, Projection)
    eigenvalues = np.diag(p.A[0])
    reml = fitted.options.method == "REML"
    return simulate_exact_null(
        eigenvalues,
        p.n - p.p * reml,
        p.n - p.p - p.r,
        eigenvalues if reml else np.diag(p.A_full[0]),
        int(n_sim),
        np.random.default_rng(rng),
    )


def _check_exact(fitted: FittedModel, n_sim: int) -> None:
    fitted.one_residual("null='exact'", "Use null='asymptotic'.")
    fitted.estimated_residual("null='exact'", "Use null='asymptotic' or a parametric bootstrap.")
    if len(fitted.stats.structure.parameters) != 1:
        raise InputError(
            "null='exact' is known for models with one variance component; this one has "
            f"{len(fitted.stats.structure.parameters)}. Use null='asymptotic' or a parametric "
            "bootstrap."
        )
    if isinstance(n_sim, bool) or not isinstance(n_sim, (int, np.integer)) or n_sim < 1:
        raise InputError(f"`n_sim` must be a positive whole number, not {n_sim!r}.")
