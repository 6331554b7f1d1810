"""Hypotheses that are intervals: limma's treat, equivalence, non-inferiority."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from references import REFERENCE
from scipy import stats

import flashmm as fm
from flashmm.exceptions import InputError

TREAT = json.loads((REFERENCE / "multiplicity" / "treat.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def linear():
    """limma's two groups of six as fits whose one variance component is zero.

    The features have limma's coefficients and residual variances; their residuals are orthogonal
    to Z, so that every estimate between groups is as small as it can be.
    """
    Y = pd.read_csv(REFERENCE / "multiplicity" / "treat_y.csv").to_numpy()
    X = np.column_stack([np.ones(12), np.repeat([0.0, 1.0], 6)])
    Z = np.kron(np.ones((2, 1)), np.eye(6))
    beta = np.linalg.lstsq(X, Y.T, rcond=None)[0]
    rss = ((Y.T - X @ beta) ** 2).sum(axis=0)
    direction = np.linalg.svd(np.hstack([X, Z]))[0][:, -1]
    responses = (X @ beta + np.sqrt(rss) * direction[:, None]).T
    names = ["Intercept", "group"]
    result = fm.MultiLMM.from_arrays(responses, X, Z, coef_names=names).fit(parameter_space="psd")
    assert (result.theta.iloc[:, 0] == 0).all()
    return result


@pytest.fixture(scope="module")
def mixed():
    """Forty features of twelve subjects; the last has no fit."""
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"g": np.repeat(range(12), 4), "x": np.tile([0.0, 1.0, 2.0, 3.0], 12)})
    data["trt"] = np.where(data["g"] < 6, "A", "B")
    Y = rng.normal(size=(40, 48)) + np.repeat(rng.normal(size=(40, 12)), 4, axis=1)
    Y[:10] += 1.5 * data["x"].to_numpy()
    Y[-1] = 3.0
    model = fm.MultiLMM.from_formula("~ x + trt", "(1 | g)", data, Y)
    with pytest.warns(fm.ConvergenceWarning):
        return model.fit(parameter_space="psd")


def test_treat(linear):
    tests = linear.t_test("group", margin=TREAT["lfc"], null="inside", moderated=True)
    assert_allclose(tests.pvalue["group"], TREAT["p"], rtol=1e-6)
    assert_allclose(tests.tvalue["group"], TREAT["t"], rtol=1e-6, atol=1e-7)
    assert_allclose(tests.df["group"], TREAT["df_total"], rtol=1e-6)
    assert "margin" in repr(tests)
    same = linear.top_table("group", n=None, margin=TREAT["lfc"], moderated=True)["p"]
    assert_allclose(np.sort(same), np.sort(TREAT["p"]), rtol=1e-6)


DF = [{}, {"df": "residual"}, {"df": "kenward-roger"}, {"moderated": True}, {"df": "integrated"}]


@pytest.mark.parametrize("options", DF, ids=str)
@pytest.mark.parametrize("margin", [0.4, 1.6])
def test_all_are_made_of_one_sided_tests(mixed, options, margin):
    """Equivalence is the larger of two one-sided tests, treat's p-value a sum of two."""

    def p(**others):
        return mixed.t_test("x", **options, **others).pvalue["x"].to_numpy()

    def one(value, side):
        return mixed.t_test(f"x = {value}", alternative=side, **options).pvalue.to_numpy()[:, 0]

    up, down = one(-margin, "greater"), one(margin, "less")
    assert_allclose(p(margin=margin, null="outside"), np.maximum(up, down), rtol=1e-12)
    assert_allclose(p(margin=margin, null="outside", alternative="greater"), up, rtol=1e-12)
    assert_allclose(p(margin=margin, null="outside", alternative="less"), down, rtol=1e-12)
    far_up, far_down = one(margin, "greater"), one(-margin, "less")
    assert_allclose(p(margin=margin, alternative="greater"), far_up, rtol=1e-12)
    assert_allclose(p(margin=margin, alternative="less"), far_down, rtol=1e-12)
    assert_allclose(p(margin=margin), np.minimum(up + far_up, down + far_down), rtol=1e-12)
    assert_allclose(p(margin=0.0), p(), rtol=1e-9)
    assert np.isnan(p(margin=margin)[-1])


@pytest.mark.parametrize("options", DF, ids=str)
def test_equivalence_is_limits_within_the_margin(mixed, options):
    tests = mixed.t_test("trt[T.B]", margin=1.4, null="outside", **options)
    limits = tests.conf_int(0.1).isel(contrast=0)
    within = np.abs(limits).max("bound").to_numpy() < 1.4
    known = np.isfinite(tests.pvalue.to_numpy()[:, 0])
    assert ((tests.pvalue.to_numpy()[:, 0] < 0.05) == within)[known].all()
    assert within.any()
    assert not within[known].all()


def test_t_is_that_of_the_deciding_end(mixed):
    plain = mixed.t_test("x")
    d, se, df = (plain.ds[name].to_numpy()[:, 0] for name in ("estimate", "se", "df"))
    inside = mixed.t_test("x", margin=0.3)
    t = np.sign(d) * np.maximum(np.abs(d) - 0.3, 0.0) / se
    assert_allclose(inside.tvalue["x"], t, atol=1e-12)
    outside = mixed.t_test("x", margin=0.3, null="outside")
    assert_allclose(outside.pvalue["x"], stats.t.sf((0.3 - np.abs(d)) / se, df), rtol=1e-9)
    assert_allclose(outside.effect, plain.effect)


def test_level_at_the_end_of_the_interval():
    """A true effect of exactly the margin: 5 % of 4,000 features are rejected, or fewer."""
    rng = np.random.default_rng(7)
    g = np.repeat(np.arange(10), 4)
    X = np.column_stack([np.ones(40), np.tile([0.0, 1.0], 20)])
    Y = rng.normal(size=(4000, 40)) + rng.normal(size=(4000, 10))[:, g] + 0.5 * X[:, 1]
    names = ["one", "x"]
    result = fm.MultiLMM.from_arrays(Y, X, np.eye(10)[g], coef_names=names).fit()
    treat = (result.t_test("x", margin=0.5).pvalue["x"] < 0.05).mean()
    inferior = result.t_test("x", margin=0.5, null="outside", alternative="less")
    assert 0.04 < (inferior.pvalue["x"] < 0.05).mean() < 0.06
    assert 0.02 < treat < 0.06


def test_margins_by_label_and_of_marginal_means(mixed):
    names = ["x", "trt[T.B]"]
    by_label = mixed.t_test(names, margin={"trt[T.B]": 0.2, "x": 0.7})
    assert by_label.ds["margin"].to_numpy().tolist() == [0.7, 0.2]
    for margin in ([0.7, 0.2], pd.Series([0.2, 0.7], index=names[::-1]), np.array([0.7, 0.2])):
        assert_allclose(mixed.t_test(names, margin=margin).pvalue, by_label.pvalue)
    means = mixed.marginal_means("trt", contrast="revpairwise", margin=0.2)
    assert_allclose(means.pvalue["B - A"], by_label.pvalue["trt[T.B]"], rtol=1e-9)
    adjusted = by_label.simultaneous("sidak")["p"]
    assert_allclose(adjusted, 1 - (1 - by_label.pvalue) ** 2, rtol=1e-9, atol=1e-14)
    one = mixed.sel(3).t_test("x", margin=0.7)
    assert_allclose(one.pvalue["x"], by_label.pvalue["x"].iloc[[3]])


WRONG = {
    "null alone": ({"null": "outside"}, "pass `margin`"),
    "null": ({"margin": 1, "null": "between"}, "Unknown null='between'"),
    "negative": ({"margin": -1.0}, "not negative"),
    "nothing": ({"margin": np.nan}, "finite"),
    "no room": ({"margin": 0.0, "null": "outside"}, "positive"),
    "too many": ({"margin": [1.0, 2.0]}, "one for each of the 1 contrasts"),
    "label": ({"margin": {"xx": 1.0}}, "`margin` names 'xx'.*'x'"),
    "text": ({"margin": "wide"}, "`margin`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(mixed, name):
    options, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        mixed.t_test("x", **options)


def test_a_margin_for_each_contrast_is_there(mixed):
    with pytest.raises(InputError, match=r"`margin` lacks 'trt\[T.B\]'"):
        mixed.t_test(["x", "trt[T.B]"], margin={"x": 1.0})
