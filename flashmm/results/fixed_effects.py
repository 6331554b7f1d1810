"""Inference on the fixed effects: tests, covariances, information."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.types import IntArray
from flashmm.designs.design import INTERCEPT
from flashmm.exceptions import InputError
from flashmm.formulas.estimable_terms import estimable_hypotheses
from flashmm.formulas.fixed_terms import type3_hypotheses
from flashmm.inference.degrees_of_freedom import DEFAULT_DF, INTEGRATED, resolve_df
from flashmm.inference.margins import interval_tests, one_sided_of
from flashmm.inference.statistics import chi2_pvalues, f_pvalues, resolve_alternative, t_statistics
from flashmm.progress import Progress
from flashmm.results.cluster_robust import MODEL, RobustCovarianceOf, Sandwich, sandwich_of
from flashmm.results.contrast_results import TTestResults
from flashmm.results.deferred import Deferred
from flashmm.results.estimability import Hypothesis, estimable_contrasts, estimable_rows
from flashmm.results.fitted import FittedModel
from flashmm.results.hypotheses import CovarianceOf
from flashmm.results.integrated import integrated_f_tests, integrated_t_tests
from flashmm.results.interval_nulls import interval_null, with_interval
from flashmm.results.joint_hypotheses import joint_hypotheses, refuse_terms
from flashmm.results.joint_results import FTestResults
from flashmm.results.moderation import moderated_hypotheses
from flashmm.results.simultaneous import Family, JointContrasts
from flashmm.results.trust import doubt
from flashmm.slips.answers import answered

if TYPE_CHECKING:
    Moderated = bool | xr.Dataset

__all__ = ["cov_params", "f_test", "f_tests", "fim", "t_test", "type3_terms", "wald_test"]


@answered
def t_test(
    fitted: FittedModel,
    positions: IntArray,
    contrast: Any = None,
    *,
    alternative: str = "two-sided",
    df: str = DEFAULT_DF,
    moderated: Moderated = False,
    prior: Any = None,
    margin: Any = None,
    null: str | None = None,
    cov: str = MODEL,
    cluster: Any = None,
    progress: Progress = None,
) -> TTestResults:
    """Tests of linear contrasts; see `MultiLMMResults.t_test`."""
    side = resolve_alternative(alternative)
    method = resolve_df(df, fitted.options.method)
    refuse_terms(fitted.stats, contrast)
    read = estimable_contrasts(fitted.stats, contrast)
    contrasts, L = read.contrasts, read.contrasts.matrix
    interval = interval_null(margin, null, contrasts.labels)
    sandwich = sandwich_of(fitted, cov, cluster, method, moderated, prior)
    if _is_integrated(method, moderated, prior):
        return integrated_t_tests(fitted, positions, read, side, prior, interval, progress)
    estimate = fitted.values("beta", positions) @ L.T
    found: Any
    covariance: CovarianceOf | RobustCovarianceOf
    if sandwich is None:
        tests = moderated_hypotheses(fitted, moderated, method)
        found = tests.contrasts(positions, L, method)
        covariance = CovarianceOf(tests, positions, method)
    else:
        found = sandwich.contrasts(positions, L)
        covariance = RobustCovarianceOf(sandwich, positions)
    with np.errstate(invalid="ignore"):
        se = np.sqrt(np.where(found.variance > 0, found.variance, np.nan))
    freedom = np.where(read.estimable, found.df, np.nan)
    estimate, se = (np.where(read.estimable, values, np.nan) for values in (estimate, se))
    difference = estimate - contrasts.values
    if interval is None:
        table = t_statistics(difference, se, freedom, side)
    else:
        ends = one_sided_of(difference, se, freedom, interval.margin)
        table = interval_tests(ends, interval.null, side)
    shown = method if moderated is False else f"{method}, moderated"
    shown = shown if sandwich is None else sandwich.name
    dims = ("feature", "contrast")
    arrays = {"estimate": estimate, "se": se, "t": table.t, "df": freedom, "p": table.p}

    def labelled() -> xr.Dataset:
        ds = xr.Dataset(
            {
                **{name: (dims, values) for name, values in arrays.items()},
                "value": (("contrast",), contrasts.values),
                "estimable": (("contrast",), read.estimable),
                "status": (("feature",), fitted.verdicts[positions]),
            },
            coords={
                "feature": fitted.features[positions],
                "contrast": pd.Index(contrasts.labels),
            },
            attrs={
                "alternative": side,
                "df": shown,
                "note": "" if sandwich is not None else doubt(fitted, method, L),
            },
        )
        return with_interval(ds, interval)

    joint = JointContrasts(L, covariance, (Family(np.arange(len(L))),))
    found = Deferred(arrays, labelled)
    return TTestResults(found, alternative=side, df_method=shown, joint=joint)


def _is_integrated(method: str, moderated: Moderated, prior: Any) -> bool:
    """Whether tests integrate over the ratios; raises for options that do not go together."""
    if method != INTEGRATED:
        if prior is not None:
            raise InputError(f"`prior` belongs to df='integrated'; these tests have df={method!r}.")
        return False
    if moderated is not False:
        raise InputError(
            "df='integrated' moderates residual variances itself. For a trend or robustness pass "
            "prior=result.learn_ratio_prior(trend=True, robust=True), and no `moderated`."
        )
    return True


@answered
def f_test(
    fitted: FittedModel,
    positions: IntArray,
    contrast: Any = None,
    *,
    df: str = DEFAULT_DF,
    moderated: Moderated = False,
    prior: Any = None,
    cov: str = MODEL,
    cluster: Any = None,
) -> FTestResults:
    """One joint test of contrasts; see `MultiLMMResults.f_test`."""
    method = resolve_df(df, fitted.options.method)
    hypotheses = joint_hypotheses(fitted.stats, contrast)
    sandwich = sandwich_of(fitted, cov, cluster, method, moderated, prior)
    return f_tests(fitted, positions, hypotheses, method, moderated, prior, sandwich)


@answered
def wald_test(
    fitted: FittedModel,
    positions: IntArray,
    contrast: Any = None,
    *,
    use_f: bool = False,
    df: str = DEFAULT_DF,
    prior: Any = None,
    cov: str = MODEL,
    cluster: Any = None,
) -> FTestResults:
    """Wald test that contrasts hold jointly; see `MultiLMMResults.wald_test`."""
    if use_f:
        return f_test(fitted, positions, contrast, df=df, prior=prior, cov=cov, cluster=cluster)
    if cov != MODEL or cluster is not None:
        raise InputError(
            "A chi-square test takes the covariance as known, which a cluster-robust one is not: "
            "pass use_f=True."
        )
    result = f_test(fitted, positions, contrast, df="residual")
    ds = result.ds
    ds["df_denom"] = ds["df_denom"] * np.inf
    ds["p"] = (
        ds["p"].dims,
        chi2_pvalues(ds["F"].to_numpy() * ds["df_num"].to_numpy(), ds["df_num"].to_numpy()),
    )
    ds.attrs["df"] = "none (chi-square)"
    return FTestResults(ds, df_method="none (chi-square)")


def type3_terms(fitted: FittedModel) -> dict[str, Hypothesis]:
    """Hypotheses of each term, by the formula if it is known and made these columns of X."""
    stats, recipe = fitted.stats, fitted.recipe
    if recipe is not None and recipe.fixed.names == fitted.columns:
        spec, aliased = recipe.fixed.spec, stats.aliased
        if aliased is None:
            terms = type3_hypotheses(spec)
        else:
            terms = estimable_hypotheses(spec, aliased.null_space)
            terms = {name: L[:, aliased.kept] for name, L in terms.items()}
        return {name: Hypothesis(L, np.zeros(len(L)), len(L) > 0) for name, L in terms.items()}
    found = {}
    for i, name in enumerate(stats.coef_names):
        if name != INTERCEPT:
            one = np.eye(stats.p)[[i]]
            whole = one if stats.aliased is None else stats.aliased.completed(one)
            known = bool(estimable_rows(stats, whole).estimable[0])
            found[name] = Hypothesis(one, np.zeros(1), known)
    return found


def f_tests(
    fitted: FittedModel,
    positions: IntArray,
    hypotheses: dict[str, Hypothesis],
    method: str,
    moderated: Moderated,
    prior: Any,
    sandwich: Sandwich | None = None,
) -> FTestResults:
    """F tests of labelled hypotheses; NaN where the samples do not determine what they say."""
    if _is_integrated(method, moderated, prior):
        return integrated_f_tests(fitted, positions, hypotheses, prior)
    beta = fitted.values("beta", positions)
    shape = positions.size, len(hypotheses)
    F, df = np.full(shape, np.nan), np.full(shape, np.nan)
    tests: Any = sandwich
    if sandwich is None:
        tests = moderated_hypotheses(fitted, moderated, method)
    rows = np.concatenate([np.zeros((0, fitted.stats.p)), *(h.L for h in hypotheses.values())])
    for column, hypothesis in enumerate(hypotheses.values()):
        if hypothesis.estimable:
            L = hypothesis.L
            found = tests.joint(positions, beta @ L.T - hypothesis.values, L, method)
            F[:, column], df[:, column] = found.F, found.df
    df_num = np.array([float(hypothesis.L.shape[0]) for hypothesis in hypotheses.values()])
    shown = method if moderated is False else f"{method}, moderated"
    shown = shown if sandwich is None else sandwich.name
    dims = ("feature", "contrast")
    estimable = np.array([hypothesis.estimable for hypothesis in hypotheses.values()], dtype=bool)
    ds = xr.Dataset(
        {
            "F": (dims, F),
            "df_num": (dims, np.broadcast_to(df_num, shape).copy()),
            "df_denom": (dims, df),
            "p": (dims, f_pvalues(F, df_num, df)),
            "estimable": (("contrast",), estimable),
            "status": (("feature",), fitted.verdicts[positions]),
        },
        coords={
            "feature": fitted.features[positions],
            "contrast": pd.Index(list(hypotheses)),
        },
        attrs={
            "df": shown,
            "note": "" if sandwich is not None else doubt(fitted, method, rows),
        },
    )
    return FTestResults(ds, df_method=shown)


def cov_params(
    fitted: FittedModel, positions: IntArray, *, cov: str = MODEL, cluster: Any = None
) -> xr.DataArray:
    """Covariance matrices of the fixed effects; see `MultiLMMResults.cov_params`."""
    names = pd.Index(fitted.coefs)
    sandwich = sandwich_of(fitted, cov, cluster, DEFAULT_DF, moderated=False, prior=None)
    chosen = fitted.on_request if sandwich is None else sandwich
    return xr.DataArray(
        chosen.covariance(positions),
        dims=("feature", "coef", "coef_"),
        coords={"feature": fitted.features[positions], "coef": names, "coef_": names},
        name="cov_params",
    )


def fim(fitted: FittedModel, positions: IntArray) -> xr.Dataset:
    """Fisher information matrices; see `MultiLMMResults.fim`."""
    information = fitted.on_request.information(positions)
    coefs, params = pd.Index(fitted.coefs), pd.Index(fitted.params)
    return xr.Dataset(
        {
            "FIM_theta": (("feature", "param", "param_"), information.theta),
            "FIM_beta": (("feature", "coef", "coef_"), information.beta),
        },
        coords={
            "feature": fitted.features[positions],
            "param": params,
            "param_": params,
            "coef": coefs,
            "coef_": coefs,
        },
    )
