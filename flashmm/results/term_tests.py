"""Tests of the terms of a model, fixed and random, and what share of the variance they explain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import ConvergenceWarning, InputError, check_option, listing, warn
from flashmm.formulas.fixed_terms import treatment_coded
from flashmm.formulas.sequential_terms import (
    FixedTerm,
    columns_of_its_own,
    fixed_terms,
    sequential_contrasts,
)
from flashmm.inference.degrees_of_freedom import DEFAULT_DF, INTEGRATED, resolve_df
from flashmm.inference.tails import chi2_sf
from flashmm.inference.variance_tests import ZeroHypothesis, asymptotic_null, zero_hypotheses
from flashmm.progress import Progress, counted, counting_on
from flashmm.results.cluster_robust import MODEL, sandwich_of
from flashmm.results.estimability import Hypothesis
from flashmm.results.fitted import FittedModel
from flashmm.results.fixed_effects import f_tests, type3_terms
from flashmm.results.joint_results import FTestResults
from flashmm.results.refit import refit
from flashmm.results.variance_tests import all_gains
from flashmm.solvers.verdict_texts import Status
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["anova", "drop1", "ranova"]

_TYPES = {1: 1, 2: 2, 3: 3, "1": 1, "2": 2, "3": 3, "I": 1, "II": 2, "III": 3}


def anova(
    fitted: FittedModel,
    positions: IntArray,
    *,
    type: Any = 3,
    df: str = DEFAULT_DF,
    moderated: bool | xr.Dataset = False,
    prior: Any = None,
    cov: str = MODEL,
    cluster: Any = None,
) -> FTestResults:
    """F tests of the terms; see `MultiLMMResults.anova`."""
    if isinstance(type, bool) or not isinstance(type, (int, str)) or type not in _TYPES:
        raise InputError(f"Unknown type={type!r}. Types of tests are 1, 2 and 3.")
    kind = _TYPES[type]
    method = resolve_df(df, fitted.options.method)
    sandwich = sandwich_of(fitted, cov, cluster, method, moderated, prior)
    hypotheses = _hypotheses(fitted, kind)
    tests = f_tests(fitted, positions, hypotheses, method, moderated, prior, sandwich)
    tests.ds.attrs["type"] = kind
    plain = moderated is False and method != INTEGRATED and sandwich is None
    return _with_sums(tests, fitted, positions, plain=plain)


def _with_sums(
    tests: FTestResults, fitted: FittedModel, positions: IntArray, *, plain: bool
) -> FTestResults:
    """The same with sums of squares where F is over the fit's own residual variance."""
    if plain and not fitted.options.residual_by:
        sigma2 = fitted.values("theta", positions)[:, -1:]
        mean = tests.ds["F"].to_numpy() * sigma2
        total = mean * tests.ds["df_num"].to_numpy()
        dims = ("feature", "contrast")
        tests.ds["sum_sq"], tests.ds["mean_sq"] = (dims, total), (dims, mean)
    return tests


def _terms_of_fit(fitted: FittedModel) -> list[FixedTerm]:
    """The terms by the formula if it is known and made these columns, else each coefficient."""
    stats, recipe = fitted.stats, fitted.recipe
    if recipe is not None and recipe.fixed.names == fitted.columns:
        return fixed_terms(recipe.fixed.spec, stats.p, stats.aliased)
    terms = [
        FixedTerm("1" if name in ("Intercept", "(Intercept)") else name, np.array([i]))
        for i, name in enumerate(stats.coef_names)
    ]
    if stats.aliased is not None:  # each column left out is a term too, of which nothing is tested
        terms += [
            FixedTerm("1", np.zeros(0, dtype=np.intp), left_out=weights[:, None])
            for weights in stats.aliased.weights.T
        ]
    return terms


def _hypotheses(fitted: FittedModel, kind: int) -> dict[str, Hypothesis]:
    """Hypotheses of each term by type."""
    if kind == 3:
        return type3_terms(fitted)
    terms = _terms_of_fit(fitted)
    tested = [term for term in terms if not term.is_intercept]
    contained = any(other.contains(term) for term in tested for other in tested)
    aliased = fitted.stats.aliased is not None and isinstance(fitted.stats, SummaryStats)
    XX = None
    if kind == 1 or contained or aliased:
        XX = fitted.one_design(f"anova(type={kind}), whose hypotheses depend on X'X,").XX
    found = _in_treatment_coding(fitted, terms, XX, kind)
    return {name: Hypothesis(L, np.zeros(len(L)), len(L) > 0) for name, L in found.items()}


def _in_treatment_coding(
    fitted: FittedModel, terms: list[FixedTerm], XX: FloatArray | None, kind: int
) -> dict[str, FloatArray]:
    """Contrasts of types I and II, found in treatment coding whatever the coding of X."""
    recipe = fitted.recipe
    known = recipe is not None and recipe.fixed.names == fitted.columns
    change = None
    if recipe is not None and known and fitted.stats.aliased is None:
        change = treatment_coded(recipe.fixed.spec)
    if change is None or (change == np.eye(len(change))).all():
        return sequential_contrasts(terms, XX, kind)
    if XX is not None:
        inverse = np.linalg.inv(change)
        XX = inverse.T @ XX @ inverse
    return {name: L @ change for name, L in sequential_contrasts(terms, XX, kind).items()}


def drop1(
    fitted: FittedModel,
    positions: IntArray,
    *,
    test: str = "F",
    df: str = DEFAULT_DF,
    progress: Progress = None,
) -> FTestResults | xr.Dataset:
    """Tests of the terms that no other contains; see `MultiLMMResults.drop1`."""
    check_option("test", test, ("F", "LRT"))
    terms = _terms_of_fit(fitted)
    alone = [
        term
        for term in terms
        if not term.is_intercept
        and term.columns.size
        and not any(other.contains(term) for other in terms)
    ]
    if test == "F":
        names = {term.name for term in alone}
        chosen = {n: h for n, h in type3_terms(fitted).items() if n in names}
        method = resolve_df(df, fitted.options.method)
        tests = f_tests(fitted, positions, chosen, method, False, None)
        return _with_sums(tests, fitted, positions, plain=method != INTEGRATED)
    if df != DEFAULT_DF:
        raise InputError('`df` belongs to test="F": a likelihood-ratio test has none.')
    lost = [term.name for term in alone if not columns_of_its_own(term, terms)]
    if lost:
        raise InputError(
            f"Columns of other terms were left out of X because they depend on {listing(lost)}: a "
            'model without these terms would lack them too. Use test="F", or fit the smaller model '
            "by its own formula and call compare_lr_test."
        )
    return _likelihood_ratios(fitted, positions, alone, progress)


def _likelihood_ratios(
    fitted: FittedModel, positions: IntArray, terms: list[FixedTerm], progress: Progress
) -> xr.Dataset:
    """ML fits with and without each term."""
    fitted.one_residual("A likelihood-ratio test of terms", "Use compare_lr_test of two fits.")
    options = replace(fitted.options, method="ML", engine="auto")
    stats = fitted.stats.at(positions)
    theta = fitted.values("theta", positions)
    shape = positions.size, len(terms)
    loglik = np.full(shape, np.nan)
    total = positions.size * (1 + len(terms))
    with counted(progress, total, unit="fit", desc="fits without a term") as done:
        full = _loglik(stats, options, theta, done)
        for column, term in enumerate(terms):
            smaller = stats.drop(fixed=[stats.coef_names[i] for i in term.columns])
            loglik[:, column] = _loglik(smaller, options, theta, done)
    statistic = np.maximum(2.0 * (full[:, None] - loglik), 0.0)
    count = np.array([term.columns.size for term in terms], dtype=np.intp)
    lost = int((np.isnan(statistic).any(axis=1) & fitted.converged[positions]).sum())
    if lost:
        warn(
            f"A fit by ML did not converge for {lost} of {positions.size} features: their tests "
            "are NaN.",
            ConvergenceWarning,
        )
    dims = ("feature", "term")
    own = fitted.n_estimated_of(positions)
    parameters = own[:, None] - count
    return xr.Dataset(
        {
            "statistic": (dims, statistic),
            "df": (("term",), count),
            "p": (dims, chi2_sf(statistic, count)),
            "loglik": (dims, loglik),
            "aic": (dims, -2.0 * loglik + 2.0 * parameters),
            "aic_full": (("feature",), -2.0 * full + 2.0 * own),
        },
        coords={
            "feature": fitted.features[positions],
            "term": pd.Index([term.name for term in terms], dtype=object),
        },
        attrs={"method": "ML"},
    )


def _loglik(stats: Any, options: Any, theta: FloatArray, done: Callable[[int], None]) -> FloatArray:
    """Maximised log-likelihoods (B,); NaN without a regular fit."""
    usable, told = np.isfinite(theta).all(axis=1), 0

    def more(count: int) -> None:
        nonlocal told
        told += count
        done(count)

    found = np.full(usable.size, np.nan)
    if usable.any():
        chosen = stats.at(np.flatnonzero(usable))
        ds, _ = refit(chosen, options, theta[usable], progress=counting_on(more))
        good = ds["status"].to_numpy() <= Status.INDEFINITE
        found[usable] = np.where(good, ds["loglik"].to_numpy(), np.nan)
    done(usable.size - told)  # what is not fitted at all
    return found


def ranova(
    fitted: FittedModel,
    positions: IntArray,
    *,
    reduce_terms: bool = True,
    progress: Progress = None,
) -> xr.Dataset:
    """Likelihood-ratio tests of the random terms; see `MultiLMMResults.ranova`."""
    hypotheses = _random_hypotheses(fitted, reduce_terms)
    shape = positions.size, len(hypotheses)
    statistic, p, mixed, loglik = (np.full(shape, np.nan) for _ in range(4))
    labels, removed, lost = [], [], 0
    gains = all_gains(fitted, positions, hypotheses, progress)
    for column, (hypothesis, found) in enumerate(zip(hypotheses, gains, strict=True)):
        statistic[:, column], loglik[:, column] = found.statistic, found.loglik_null
        df = len(hypothesis.zeros)
        null = asymptotic_null(hypothesis, fitted.options.parameter_space)
        with np.errstate(invalid="ignore"):
            p[:, column] = chi2_sf(np.maximum(found.statistic, 0.0), df)
            mixed[:, column] = null.sf(found.statistic)
        labels.append(str(null))
        removed.append(df)
        lost = max(lost, found.lost)
    if lost:
        warn(
            f"A fit without a random term did not converge for {lost} of {positions.size} "
            "features: its test is NaN.",
            ConvergenceWarning,
        )
    dims = ("feature", "component")
    df_removed = np.array(removed, dtype=np.intp)
    own = fitted.n_estimated_of(positions)[:, None]
    return xr.Dataset(
        {
            "statistic": (dims, statistic),
            "df": (("component",), df_removed),
            "p": (dims, p),
            "p_mixture": (dims, mixed),
            "loglik": (dims, loglik),
            "aic": (dims, -2.0 * loglik + 2.0 * (own - df_removed)),
        },
        coords={
            "feature": fitted.features[positions],
            "component": pd.Index([h.label for h in hypotheses], dtype=object),
            "null": (("component",), np.array(labels, dtype=object)),
        },
        attrs={"method": fitted.options.method, "parameter_space": fitted.options.parameter_space},
    )


def _random_hypotheses(fitted: FittedModel, reduce_terms: bool) -> list[ZeroHypothesis]:
    """What is taken out: whole terms, or the slopes of those that have any."""
    structure = fitted.stats.structure
    names = []
    for position, term in enumerate(structure.terms):
        owned = [p for p in structure.parameters if p.term == position and p.is_variance]
        slopes = [p.name for p in owned if p.row >= 0 and term.effects[p.row] != "Intercept"]
        if reduce_terms and len(owned) > 1 and term.covariance != "cs":
            names += slopes if len(slopes) < len(owned) else [p.name for p in owned]
        else:
            names.append(term.name)
    return zero_hypotheses(structure, names) if names else []
