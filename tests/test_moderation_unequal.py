"""The prior of variances whose degrees of freedom differ: moments and maximum likelihood."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import references
from numpy.testing import assert_allclose
from scipy import optimize, special, stats

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.inference.lowess import weighted_lowess
from flashmm.inference.moderation import moderate, variance_prior
from flashmm.inference.variance_prior import fit_scaled_f

LIMMA = json.loads((references.REFERENCE / "limma" / "reference.json").read_text())
FOUND = json.loads((references.REFERENCE / "limma" / "unequal_df.json").read_text())


def few() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(
        np.array(values, float)
        for values in (LIMMA["unequal"]["s2"], LIMMA["unequal"]["df"], LIMMA["covariate"])
    )


def many() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.array(FOUND["many"][name], float) for name in ("s2", "df", "level"))


@pytest.mark.parametrize(
    ("case", "data", "trend", "rtol"),
    [
        ("plain", few, False, 1e-6),
        ("trend", few, True, 1e-6),
        ("many_plain", many, False, 1e-6),
        # limma joins its local lines at other points.
        ("many_trend", many, True, 2e-3),
    ],
)
def test_likelihood_prior_equals_r(case, data, trend, rtol):
    s2, df, level = data()
    prior = variance_prior(s2, df, covariate=level if trend else None, legacy=False)
    assert_allclose(prior.df_common, FOUND[case]["df_prior"], rtol=rtol)
    assert_allclose(prior.variance, FOUND[case]["s2_prior"], rtol=rtol)


def test_moments_are_the_older_limma():
    s2, df, _ = many()
    prior = variance_prior(s2, df, legacy=True)
    assert_allclose(prior.df_common, FOUND["legacy_many"]["df2"], rtol=1e-9)
    assert abs(variance_prior(s2, df, legacy=False).df_common / prior.df_common - 1) > 0.05


@pytest.mark.parametrize("data", [few, many])
def test_no_other_prior_df_is_more_likely(data):
    """By scipy's density of F, the location moving along."""
    s2, df, _ = data()
    location, d0 = fit_scaled_f(s2, df)

    def loglik(other: float) -> float:
        shift = [special.digamma(x / 2) - np.log(x / 2) for x in (other, d0)]
        s0 = location * np.exp(shift[0] - shift[1])
        return float((stats.f.logpdf(s2 / s0, df, other) - np.log(s0)).sum())

    top = loglik(d0)
    others = [d0 * (1 + step) for step in (-0.9, -0.1, -1e-3, 1e-3, 0.1, 10.0)]
    assert all(loglik(other) < top for other in others)


def test_close_to_the_maximum_over_both_parameters():
    s2, df, _ = many()
    prior = variance_prior(s2, df, legacy=False)

    def minus(at):
        s0, d0 = np.exp(at)
        return -float((stats.f.logpdf(s2 / s0, df, d0) - np.log(s0)).sum())

    start = np.log([prior.variance[0], prior.df_common])
    best = optimize.minimize(minus, start, method="Nelder-Mead", options={"xatol": 1e-8})
    # Inside the 95 % confidence region of the two.
    assert minus(start) - best.fun < stats.chi2.ppf(0.95, 2) / 2
    assert_allclose(start, best.x, atol=0.1)


def test_equal_df_give_what_the_moments_give():
    rng = np.random.default_rng(4)
    df = np.full(50_000, 8.0)
    s2 = 2.0 * 5.0 / rng.chisquare(5, df.size) * rng.chisquare(df) / df
    new, old = (variance_prior(s2, df, legacy=legacy) for legacy in (False, True))
    assert_allclose(new.df_common, old.df_common, rtol=0.03)
    assert_allclose(new.variance, old.variance, rtol=0.01)


def test_variances_that_differ_by_chance_alone_have_an_infinite_prior():
    df = np.tile([2.0, 5.0, 9.0], 200)
    s2 = stats.chi2.ppf((np.arange(600) // 3 + 0.5) / 200, df) / df
    prior = variance_prior(3.0 * s2, df, legacy=False)
    assert np.isinf(prior.df).all()
    assert_allclose(prior.variance, 3.0, rtol=0.02)
    assert_allclose(moderate(3.0 * s2, df, prior).variance, prior.variance)


def test_better_where_df_differ_much():
    """Error of 1 / d0 at the df that missing values leave, root mean square."""
    rng = np.random.default_rng(7)
    errors = []
    for _ in range(40):
        df = rng.choice([1.0, 2.0, 4.0, 9.0, 15.0], 1000)
        s2 = 10.0 / rng.chisquare(10, 1000) * rng.chisquare(df) / df
        d0 = np.array([variance_prior(s2, df, legacy=legacy).df_common for legacy in (True, False)])
        errors.append(10.0 / d0 - 1.0)
    old, new = np.sqrt(np.mean(np.square(errors), axis=0))
    assert new < 0.15
    assert old > 2 * new


@pytest.mark.parametrize("trend", [False, True])
def test_robust_likelihood_prior_resists_outliers(trend):
    s2, df, level = many()
    covariate = level if trend else None
    clean = variance_prior(s2, df, covariate=covariate, legacy=False)
    spoilt = s2.copy()
    spoilt[df == 15] *= np.where(np.arange((df == 15).sum()) < 8, 1e5, 1.0)
    outlying = spoilt != s2
    plain = variance_prior(spoilt, df, covariate=covariate, legacy=False)
    robust = variance_prior(spoilt, df, covariate=covariate, robust=True, legacy=False)
    assert abs(np.log(robust.df_common / clean.df_common)) < 0.2
    assert plain.df_common < 0.8 * robust.df_common
    assert robust.df[outlying].max() < 0.6 * robust.df_common
    assert_allclose(np.median(robust.df), robust.df_common, rtol=1e-3)


def test_hardly_any_df_and_zero_variances_teach_nothing():
    s2, df, level = many()
    expected = variance_prior(s2, df, legacy=False)
    more = variance_prior(np.r_[s2, 1e6], np.r_[df, 1e-4], legacy=False)
    assert_allclose(more.df_common, expected.df_common, rtol=1e-7)
    zero = variance_prior(np.r_[s2, 0.0], np.r_[df, 2.0], legacy=False)
    assert np.isfinite(zero.variance).all()
    for scale in (1e-8, 1e8):
        other = variance_prior(scale * s2, df, covariate=level, legacy=False)
        same = variance_prior(s2, df, covariate=level, legacy=False)
        assert_allclose(other.variance, scale * same.variance, rtol=1e-6)


def test_weighted_local_lines():
    rng = np.random.default_rng(2)
    x, y = rng.uniform(size=60), rng.normal(size=60)
    assert_allclose(weighted_lowess(x, 3 - x, np.ones(60), span=0.3), 3 - x)
    # A point of weight two is two points.
    twice = weighted_lowess(np.r_[x, x[:9]], np.r_[y, y[:9]], np.ones(69), span=0.5)
    weight = np.where(np.arange(60) < 9, 2.0, 1.0)
    assert_allclose(weighted_lowess(x, y, weight, span=0.5), twice[:60], rtol=1e-9)
    assert_allclose(weighted_lowess(np.ones(3), np.arange(3.0), np.ones(3), span=0.5), 1.0)


# ---- fits ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some_missing():
    """Features of which a part misses half of the samples."""
    rng = np.random.default_rng(3)
    m, data = 150, pd.DataFrame({"person": np.repeat(np.arange(8), 3), "x": rng.normal(size=24)})
    sigma = np.sqrt(5 / rng.chisquare(5, (m, 1)))
    Y = sigma * rng.normal(size=(m, 24)) + 0.5 * rng.normal(size=(m, 8))[:, data["person"]]
    whole = fm.MultiLMM.from_formula("~ x", "(1 | person)", data, Y)
    Y[::2, rng.permutation(24)[:10]] = np.nan
    part = fm.MultiLMM.from_formula("~ x", "(1 | person)", data, Y, missing="feature")
    return whole.fit(parameter_space="psd"), part.fit(parameter_space="psd")


@pytest.mark.parametrize("df", ["satterthwaite", "dream"])
def test_default_goes_by_the_number_of_observations(some_missing, df):
    for result, legacy in zip(some_missing, (True, False), strict=True):
        table = result.moderate(df=df)
        assert table.attrs["legacy"] == int(legacy)
        assert table.identical(result.moderate(df=df, legacy=legacy))
        other = result.moderate(df=df, legacy=not legacy)
        assert other.attrs["df_prior"] != table.attrs["df_prior"]
        tests = [result.t_test("x", moderated=one).pvalue["x"] for one in (table, other)]
        assert not np.allclose(*tests, rtol=1e-6)


def test_another_legacy_is_refused(some_missing):
    with pytest.raises(InputError, match="`legacy` must be True, False or None"):
        some_missing[0].moderate(legacy="new")
