"""Moderation of variances against limma (tests/reference/limma), and its edges."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import references

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.inference.lowess import lowess
from flashmm.inference.moderation import moderate, variance_prior

LIMMA = json.loads((references.REFERENCE / "limma" / "reference.json").read_text())
LEVEL = np.array(LIMMA["covariate"])
# limma finds d0 with uniroot(tol = 1e-8) on d0 / (1 + d0), and integrates in another variable.
ROBUST, PLAIN = 2e-6, 1e-9


def numbers(values):
    return np.array([float(value) for value in values])  # "Inf" is text in JSON


def label(case):
    return f"{case.get('set', 'fit')}-trend{case['trend']}-robust{case['robust']}"


@pytest.mark.parametrize("case", LIMMA["squeeze"], ids=label)
def test_given_variances_are_moderated_as_by_limma(case):
    given = LIMMA[case["set"]]
    s2, df = numbers(given["s2"]), numbers(given["df"])
    prior = variance_prior(
        s2, df, covariate=LEVEL if case["trend"] else None, robust=case["robust"]
    )
    rtol = ROBUST if case["robust"] else PLAIN
    np.testing.assert_allclose(prior.variance, numbers(case["s2_prior"]), rtol=rtol)
    np.testing.assert_allclose(prior.df, numbers(case["df_prior"]), rtol=rtol)
    np.testing.assert_allclose(
        moderate(s2, df, prior).variance, numbers(case["s2_post"]), rtol=rtol
    )


def test_lowess_equals_r():
    x, y = LEVEL, np.log(numbers(LIMMA["unequal"]["s2"]))
    np.testing.assert_allclose(
        np.sort(lowess(x, y, span=0.4)), np.sort(numbers(LIMMA["lowess"])), rtol=1e-10
    )


# ---- fits ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear_models():
    """limma's linear models as fits whose one variance component is zero.

    The features have limma's coefficients and residual variances; their residuals are orthogonal
    to Z, so that every estimate between groups is as small as it can be.
    """
    Y, X = np.array(LIMMA["Y"]), np.array(LIMMA["X"])
    Z = np.kron(np.ones((2, 1)), np.eye(6))
    beta = np.linalg.lstsq(X, Y.T, rcond=None)[0]
    rss = ((Y.T - X @ beta) ** 2).sum(axis=0)
    direction = np.linalg.svd(np.hstack([X, Z]))[0][:, -1]
    responses = (X @ beta + np.sqrt(rss) * direction[:, None]).T
    model = fm.MultiLMM.from_arrays(responses, X, Z, coef_names=["Intercept", "group", "age"])
    result = model.fit(parameter_space="psd")
    assert (result.theta.iloc[:, 0] == 0).all()
    return result


@pytest.mark.parametrize("case", LIMMA["cases"], ids=label)
def test_without_random_effects_tests_equal_limma(linear_models, case):
    rtol = 2e-6 if case["robust"] else 1e-7
    table = linear_models.moderate(trend=case["trend"], robust=case["robust"])
    np.testing.assert_allclose(table["df"], 9.0, rtol=1e-9)
    np.testing.assert_allclose(table["sigma2_prior"], numbers(case["s2_prior"]), rtol=rtol)
    np.testing.assert_allclose(table["df_prior"], numbers(case["df_prior"]), rtol=rtol)
    np.testing.assert_allclose(table["sigma2_moderated"], numbers(case["s2_post"]), rtol=rtol)
    one = linear_models.t_test("group", df="satterthwaite", moderated=table)
    np.testing.assert_allclose(one.tvalue["group"], numbers(case["t"]), rtol=rtol)
    np.testing.assert_allclose(one.df["group"], numbers(case["df_total"]), rtol=rtol)
    np.testing.assert_allclose(one.pvalue["group"], numbers(case["p"]), rtol=10 * rtol)
    joint = linear_models.f_test(["group", "age"], df="satterthwaite", moderated=table)
    np.testing.assert_allclose(joint.fvalue.iloc[:, 0], numbers(case["F"]), rtol=10 * rtol)
    np.testing.assert_allclose(joint.pvalue.iloc[:, 0], numbers(case["F_p"]), rtol=100 * rtol)


def test_true_is_the_plain_moderation(linear_models):
    plain = linear_models.t_test("group", df="satterthwaite", moderated=True)
    case = LIMMA["cases"][0]
    np.testing.assert_allclose(plain.pvalue["group"], numbers(case["p"]), rtol=1e-6)
    assert plain.df_method == "satterthwaite, moderated"
    top = linear_models.top_table("group", df="satterthwaite", moderated=True, n=3)
    assert top["p"].iloc[0] == plain.pvalue["group"].min()


@pytest.fixture(scope="module")
def paired():
    """60 features of 10 subjects in two groups, each with and without treatment."""
    rng = np.random.default_rng(8)
    subject, treated = np.repeat(np.arange(10), 2), np.tile([0.0, 1.0], 10)
    group = (subject >= 5).astype(float)
    X = np.stack([np.ones(20), group, treated], axis=1)
    Z = np.eye(10)[subject]
    sigma = np.sqrt(6.0 / rng.chisquare(6, size=(60, 1)))
    Y = sigma * rng.normal(size=(60, 20)) + 1.5 * rng.normal(size=(60, 10))[:, subject]
    names = ["Intercept", "group", "treated"]
    return fm.MultiLMM.from_arrays(Y, X, Z, coef_names=names).fit(epsilon=1e-9), Y


def test_a_contrast_within_subjects_is_that_of_a_linear_model_of_differences(paired):
    result, Y = paired
    difference = Y[:, 1::2] - Y[:, ::2]
    mean, s2 = difference.mean(axis=1), difference.var(axis=1, ddof=1)
    df = np.full(60, 9.0)
    shrunk = moderate(s2, df, variance_prior(s2, df))
    test = result.t_test("treated", df="satterthwaite", moderated=True)
    np.testing.assert_allclose(
        test.tvalue["treated"], mean / np.sqrt(shrunk.variance / 10), rtol=1e-6
    )
    np.testing.assert_allclose(test.df["treated"], shrunk.df, rtol=1e-6)
    assert (shrunk.df > 12).all()


def test_a_contrast_between_subjects_gains_nothing(paired):
    result, _ = paired
    plain = result.t_test("group", df="satterthwaite")
    moderated = result.t_test("group", df="satterthwaite", moderated=True)
    np.testing.assert_allclose(plain.df["group"], 8.0, rtol=1e-6)
    np.testing.assert_allclose(moderated.df["group"], 8.0, rtol=1e-6)
    np.testing.assert_allclose(moderated.tvalue["group"], plain.tvalue["group"], rtol=1e-6)


def test_joint_tests_within_and_between_agree_with_single_ones(paired):
    result, _ = paired
    single = result.t_test("treated", df="satterthwaite", moderated=True)
    joint = result.f_test("treated", df="satterthwaite", moderated=True)
    np.testing.assert_allclose(joint.fvalue.iloc[:, 0], single.tvalue["treated"] ** 2, rtol=1e-9)
    np.testing.assert_allclose(joint.df_denom.iloc[:, 0], single.df["treated"], rtol=1e-9)
    table = result.anova(df="satterthwaite", moderated=True)
    np.testing.assert_allclose(table.pvalue["treated"], single.pvalue["treated"], rtol=1e-9)


def test_moderation_ignores_units_and_order(paired):
    result, Y = paired
    stats = result.stats
    order = np.random.default_rng(1).permutation(60)
    scaled = fm.MultiLMM(stats.take(order)).fit(epsilon=1e-9)
    left = scaled.t_test("treated", df="satterthwaite", moderated=True).pvalue
    right = result.t_test("treated", df="satterthwaite", moderated=True).pvalue
    np.testing.assert_allclose(left["treated"], right["treated"].iloc[order], rtol=1e-6)
    table, again = result.moderate(trend=True), result.moderate(trend=Y.mean(axis=1))
    np.testing.assert_allclose(table["sigma2_prior"], again["sigma2_prior"], rtol=1e-9)


def test_a_feature_without_a_fit_stays_out(paired):
    result, _ = paired
    yy = result.stats.yy.copy()
    yy[4] = np.nan
    with pytest.warns(fm.ConvergenceWarning):
        broken = fm.MultiLMM(replace(result.stats, yy=yy)).fit(epsilon=1e-9)
    rest = fm.MultiLMM(result.stats.take(np.arange(60) != 4)).fit(epsilon=1e-9)
    p = broken.t_test("treated", df="satterthwaite", moderated=True).pvalue["treated"]
    expected = rest.t_test("treated", df="satterthwaite", moderated=True).pvalue["treated"]
    assert np.isnan(p[4])
    np.testing.assert_allclose(p.drop(4), expected, rtol=1e-6)


def test_features_may_be_chosen_after_moderation(paired):
    result, _ = paired
    every = result.t_test("treated", df="satterthwaite", moderated=True).pvalue
    some = result.t_test("treated", df="satterthwaite", moderated=True, features=[7, 3]).pvalue
    np.testing.assert_allclose(some["treated"], every["treated"].iloc[[7, 3]], rtol=1e-12)


def test_what_cannot_be_moderated_is_refused(paired):
    result, Y = paired
    with pytest.raises(InputError, match=r"not df='residual'"):
        result.t_test("group", df="residual", moderated=True)
    with pytest.raises(InputError, match="what `moderate` returns"):
        result.t_test("group", df="satterthwaite", moderated=result.ds)
    with pytest.raises(InputError, match="60 numbers, one per feature"):
        result.moderate(trend=[1.0, 2.0])
    with pytest.raises(InputError, match="only 1 feature has one"):
        variance_prior(np.array([1.0, np.nan]), np.array([3.0, 3.0]))
    with pytest.raises(InputError, match="variance of zero"):
        variance_prior(np.array([0.0, 0.0, 1.0]), np.full(3, 4.0))
    other = fm.MultiLMM.from_arrays(Y, np.ones((20, 1)) * 2.0, np.eye(20)[:, :9]).fit()
    with pytest.raises(InputError, match="means do not follow"):
        other.moderate(trend=True)


def test_moderated_tests_hold_their_level_and_gain_power():
    """Within- and between-subject contrasts of null features with varying variances."""
    rng = np.random.default_rng(21)
    m, subject = 4000, np.repeat(np.arange(6), 2)
    X = np.stack([np.ones(12), (subject >= 3).astype(float), np.tile([0.0, 1.0], 6)], axis=1)
    sigma = np.sqrt(5.0 / rng.chisquare(5, size=(m, 1)))
    Y = sigma * rng.normal(size=(m, 12)) + rng.normal(size=(m, 6))[:, subject]
    Y[: m // 2] += 2.0 * X[:, 2]
    names = ["Intercept", "group", "treated"]
    result = fm.MultiLMM.from_arrays(Y, X, np.eye(6)[subject], coef_names=names).fit()
    moderated = result.t_test(["group", "treated"], df="satterthwaite", moderated=True).pvalue
    plain = result.t_test("treated", df="satterthwaite").pvalue["treated"]
    noise = np.sqrt(0.05 * 0.95 / (m // 2))
    for name in ("group", "treated"):
        level = float((moderated[name].iloc[m // 2 :] < 0.05).mean())
        assert abs(level - 0.05) < 4 * noise
    changed = moderated["treated"].iloc[: m // 2]
    assert (changed < 0.001).mean() > (plain.iloc[: m // 2] < 0.001).mean() + 4 * noise


def test_means_that_one_feature_dwarfs():
    """Its knots coincide: 0/0 in the spline, and LinAlgError for all features."""
    level = np.concatenate([[-1e20], np.arange(1.0, 12.0)])
    s2 = np.random.default_rng(2).chisquare(6, size=12) / 6
    for robust in (False, True):
        prior = variance_prior(s2, np.full(12, 6.0), covariate=level, robust=robust)
        assert np.isfinite(prior.variance).all()
