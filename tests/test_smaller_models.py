"""Smaller models from the same statistics, and their comparison."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import references
from scipy.stats import chi2

import flashmm as fm
from flashmm.exceptions import InputError

NESTED = json.loads((references.REFERENCE / "nested" / "reference.json").read_text())["tests"]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(11)
    n = 150
    return pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "cls": rng.choice(list("abc"), n),
            "trt": rng.choice(["A", "B"], n),
            "g": rng.choice([f"g{i}" for i in range(12)], n),
            "h": rng.choice([f"h{i}" for i in range(7)], n),
        }
    )


@pytest.fixture(scope="module")
def Y(data):
    rng = np.random.default_rng(12)
    g, h, x = pd.factorize(data["g"])[0], pd.factorize(data["h"])[0], data["x"].to_numpy()
    Y = rng.normal(size=(6, len(data))) + 2 * rng.normal(size=(6, 12))[:, g]
    Y += x * rng.normal(size=(6, 12))[:, g] + rng.normal(size=(6, 7))[:, h]
    Y[5] += 1e7 + 1e5 * x  # its variation drowns in the raw sums
    return pd.DataFrame(Y, index=[f"f{i}" for i in range(6)])


FULL = "~ x + cls * trt"


def build(data, Y, fixed=FULL, random="(1 + x | g) + (1 | h)"):
    return fm.MultiLMM.from_formula(fixed, random, data, Y)


def same_fit(left, right, rtol=1e-7):
    pd.testing.assert_frame_equal(left.params, right.params, rtol=rtol, check_like=True)
    pd.testing.assert_frame_equal(left.theta, right.theta, rtol=rtol, atol=1e-6)
    pd.testing.assert_series_equal(left.llf, right.llf, rtol=1e-8)


@pytest.mark.parametrize(
    ("dropped", "fixed", "random"),
    [
        ({"fixed": "cls:trt"}, "~ x + cls + trt", "(1 + x | g) + (1 | h)"),
        ({"fixed": ["cls", "cls:trt"]}, "~ x + trt", "(1 + x | g) + (1 | h)"),
        ({"random": "h"}, FULL, "(1 + x | g)"),
        ({"random": "g[x]"}, FULL, "(1 | g) + (1 | h)"),
        ({"random": "g[Intercept]"}, FULL, "(0 + x | g) + (1 | h)"),
        ({"fixed": "cls:trt", "random": ["h", "g[x]"]}, "~ x + cls + trt", "(1 | g)"),
    ],
)
def test_a_smaller_model_equals_the_one_built_from_the_data(data, Y, dropped, fixed, random):
    smaller, fresh = build(data, Y).drop(**dropped), build(data, Y, fixed, random)
    assert smaller.stats.coef_names == fresh.stats.coef_names
    assert smaller.stats.structure.param_names == fresh.stats.structure.param_names
    options = {"parameter_space": "psd", "epsilon": 1e-7}
    same_fit(smaller.fit(**options), fresh.fit(**options))


def test_smaller_models_keep_the_digits_of_shifted_features(data, Y):
    stats = build(data, Y).stats
    assert stats.shift is not None
    assert stats.drop(fixed="cls[T.b]").shift is not None
    assert stats.drop(fixed="x").shift is None  # 1e5 x is variation now
    assert stats.keep(features=["f0", "f5"], random="h").shift.ZY.shape == (7, 1)


def test_keep_is_the_complement_of_drop(data, Y):
    model = build(data, Y)
    kept = model.keep(fixed=["Intercept", "x"], random="g", features=["f3", "f1"]).stats
    dropped = model.drop(fixed=["cls", "trt", "cls:trt"], random="h").stats.take(["f3", "f1"])
    for name in ("XX", "XY", "ZX", "ZY", "yy"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(dropped, name))
    assert (kept.ZZ != dropped.ZZ).nnz == 0
    assert kept.structure == dropped.structure
    assert model.drop(features=["f0"]).stats.feature_names.tolist() == [
        "f1",
        "f2",
        "f3",
        "f4",
        "f5",
    ]


def test_a_smaller_model_says_so_and_predicts(data, Y):
    smaller = build(data, Y).drop(fixed="cls:trt", random="g[x]")
    assert smaller.fixed == "~ x + cls * trt, without 'cls[T.b]:trt[T.B]', 'cls[T.c]:trt[T.B]'"
    result = smaller.fit(parameter_space="psd", epsilon=1e-7)
    fresh = build(data, Y, "~ x + cls + trt", "(1 | g) + (1 | h)")
    expected = fresh.fit(parameter_space="psd", epsilon=1e-7).predict(data.head(9))
    np.testing.assert_allclose(result.predict(data.head(9)), expected, rtol=1e-6)


def test_unknown_effects_are_refused(data, Y):
    model = build(data, Y)
    with pytest.raises(InputError, match=r"'gg'\. Did you mean 'g'"):
        model.drop(random="gg")
    with pytest.raises(InputError, match="Unknown coefficient: 'y'"):
        model.stats.drop(fixed="y")
    with pytest.raises(InputError, match="Residual"):
        model.drop(random="Residual")


# ---- comparisons -------------------------------------------------------------------------


@pytest.mark.parametrize("case", NESTED, ids=lambda case: f"{case['small']}, {case['REML']}")
def test_likelihood_ratios_equal_lme4(case):
    data = references.lme4_data("sleepstudy")
    Y = data["Reaction"].to_numpy()[None]

    def fit(formula):
        model = fm.MultiLMM.from_formula(formula.removeprefix("Reaction "), None, data, Y)
        method = "REML" if case["REML"] else "ML"
        return model.fit(method, parameter_space="psd", epsilon=1e-9)

    test = fit(case["large"]).compare_lr_test(fit(case["small"]))
    np.testing.assert_allclose(test["statistic"], case["statistic"], rtol=1e-7)
    assert test["df"].tolist() == [case["df"]]
    if "(1 |" in case["small"]:  # a variance is tested: lme4's chi-square is not the null here
        mixture = 0.5 * chi2.sf(case["statistic"], 1) + 0.5 * chi2.sf(case["statistic"], 2)
        np.testing.assert_allclose(test["p"], mixture, rtol=1e-6)
        assert test.attrs["null"] == "0.5 chi2_1 + 0.5 chi2_2"
    else:
        np.testing.assert_allclose(test["p"], case["p"], rtol=1e-6)


def test_comparison_agrees_with_the_test_of_a_component(data, Y):
    model = build(data, Y)
    result = model.fit(epsilon=1e-7)
    test = result.compare_lr_test(model.drop(random="h").fit(epsilon=1e-7), features=["f1", "f3"])
    expected = result.variance_test("h", features=["f1", "f3"])
    np.testing.assert_allclose(test["statistic"], expected["statistic"][:, 0], atol=1e-6)
    np.testing.assert_allclose(test["p"], expected["p"][:, 0], atol=1e-6)


def test_features_are_matched_by_name(data, Y):
    model = build(data, Y, random="(1 | g)")
    full, small = model.fit("ML"), model.drop(fixed="cls:trt")
    plain = full.compare_lr_test(small.fit("ML"))
    turned = full.compare_lr_test(small.keep(features=list(Y.index[::-1])).fit("ML"))
    pd.testing.assert_frame_equal(plain, turned, rtol=1e-9)


def test_a_failed_fit_has_no_test(data, Y):
    stats = build(data, Y, random="(1 | g)").stats
    yy = stats.yy.copy()
    yy[2] = np.nan
    model = fm.MultiLMM(replace(stats, yy=yy))
    with pytest.warns(fm.ConvergenceWarning):
        full, small = model.fit("ML"), model.drop(fixed="x").fit("ML")
    p = full.compare_lr_test(small)["p"].isna()
    assert p.tolist() == [False, False, True, False, False, False]


OTHERS = {
    "REML fits with different fixed effects": lambda model, _: model.drop(fixed="x").fit(),
    "differ in method": lambda model, _: model.fit("ML"),
    "differ in parameter_space": lambda model, _: model.fit(parameter_space="psd"),
    "same parameters": lambda model, _: model.fit(),
    "only the other one has the fixed effects 'h": lambda _, data: build(
        *data, "~ x + h", "(1 | g)"
    ).fit(),
    "only the other one has the variance components 'trt:g'": lambda _, data: build(
        *data, random="(1 | trt:g)"
    ).fit(),
    "y'y of the same features": lambda _, data: build(
        data[0], data[1] + 1.0, random="(1 | g)"
    ).fit(),
    "150 and 140 samples": lambda _, data: build(
        data[0][:140], data[1].iloc[:, :140], random="(1 | g)"
    ).fit(),
    "it is SummaryStats": lambda model, _: model.stats,
}


@pytest.mark.parametrize("message", OTHERS)
def test_what_cannot_be_compared_is_refused(data, Y, message):
    model = build(data, Y, random="(1 | g) + (1 | h)")
    other = OTHERS[message](model, (data, Y))
    with pytest.raises(InputError, match=message):
        model.fit().compare_lr_test(other)


def test_the_larger_fit_is_the_one_asked(data, Y):
    model = build(data, Y, random="(1 | g)")
    with pytest.raises(InputError, match="called on the fit of the larger model"):
        model.drop(fixed="x").fit("ML").compare_lr_test(model.fit("ML"))


def test_permuted_samples_are_different_data(data, Y):
    model = build(data, Y, random="(1 | g)")
    shuffled = pd.DataFrame(Y.to_numpy()[:, ::-1], index=Y.index)
    other = build(data, shuffled, "~ x + cls + trt", "(1 | g)")
    with pytest.raises(InputError, match="X'y of the same features"):
        model.fit("ML").compare_lr_test(other.fit("ML"))


def test_null_distribution_under_simulation(data):
    rng = np.random.default_rng(5)
    Y = rng.normal(size=(2000, len(data)))
    Y += 1.5 * rng.normal(size=(2000, 12))[:, pd.factorize(data["g"])[0]]
    model = build(data, Y, "~ x + trt", "(1 | g)")
    test = model.fit("ML").compare_lr_test(model.drop(fixed=["x", "trt"]).fit("ML"))
    rate = float((test["p"] < 0.05).mean())
    assert abs(rate - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 2000)
