"""Contrast families, interaction contrasts and slopes: R's emmeans and emtrends, and identities."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from references import REFERENCE

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.inference.contrast_families import contrast_weights
from flashmm.inference.derivatives import derivative

FOLDER = REFERENCE / "multiplicity"
CASES = json.loads((FOLDER / "contrasts.json").read_text("utf-8"))
FAMILIES = {
    "pairwise": "all pairs",
    "revpairwise": "reverse pairwise",
    "trt.vs.ctrl": "treatment vs control",
    "trt.vs.ctrlk": "against last",
    "consec": "consecutive",
    "mean_chg": "mean change",
    "poly": "polynomial",
    "eff": "effect",
    "del.eff": "effect against others",
}
INTERACTIONS = {
    "interaction pairwise poly": ["pairwise", "poly"],
    "interaction consec": "consec",
    "interaction eff trt.vs.ctrl": {"temp": "dunnett", "recipe": "effects"},
}
# Case: formula of the fit, variable, options.
SLOPES = {
    "age by trt": ("poly", "age", {"by": "trt"}),
    "age by trt pairs": ("poly", "age", {"by": "trt", "contrast": "pairwise"}),
    "age at by trt": ("poly", "age", {"by": ["trt", "age"], "at": {"age": [30, 60]}}),
    "size by site": ("poly", "size", {"by": "site"}),
    "size by site consec": ("poly", "size", {"by": "site", "contrast": "consec"}),
    "age powers": ("powers", "age", {"by": "trt", "at": {"age": 40}}),
    "age overall": ("powers", "age", {}),
}


def cake() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "cake.csv", dtype={"replicate": str, "temp": str})


@pytest.fixture(scope="module")
def fits():
    data, factors = cake(), pd.read_csv(REFERENCE / "emmeans" / "factors.csv")
    subject = "(1 | subject)"
    models = {
        "cake": ("~ recipe * temp", "(1 | recipe:replicate)", data, data["angle"]),
        "poly": ("~ trt * poly(age, 2) + site * log(size)", subject, factors, factors["y"]),
        "powers": ("~ trt * (age + I(age^2)) + smoker", subject, factors, factors["y"]),
    }
    return {
        name: fm.MultiLMM.from_formula(fixed, random, table, y.to_numpy(float)[None]).fit(
            parameter_space="psd", epsilon=1e-9
        )
        for name, (fixed, random, table, y) in models.items()
    }


def equal_emmeans(tests, case, label=lambda text: text):
    """The table of tests against one of emmeans, whose rows may stand in another order."""
    labels = [label(text) for text in case["label"]]
    assert sorted(tests.contrasts) == sorted(labels)
    found = tests.to_frame("none").loc[0].loc[labels]
    se = np.atleast_1d(case["se"])
    assert_allclose(found["estimate"] / se, np.atleast_1d(case["estimate"]) / se, atol=3e-6)
    assert_allclose(found["se"], se, rtol=3e-6)
    assert_allclose(found["df"], np.atleast_1d(case["df"]), rtol=2e-4)
    assert_allclose(found["p"], np.atleast_1d(case["p"]), rtol=1e-3, atol=1e-12)
    limits = tests.conf_int().isel(feature=0).sel(contrast=labels).to_numpy()
    right = np.column_stack([np.atleast_1d(case["lower"]), np.atleast_1d(case["upper"])])
    assert_allclose((limits - right) / se[:, None], 0.0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_equal_emmeans_under_both_names(fits, family):
    for name in (family, FAMILIES[family]):
        tests = fits["cake"].marginal_means("temp", contrast=name)
        equal_emmeans(tests, CASES[family], lambda text: text.replace("temp", ""))


def test_any_level_may_be_the_control(fits):
    for reference in ("195", 195):
        tests = fits["cake"].marginal_means("temp", contrast="dunnett", reference=reference)
        equal_emmeans(tests, CASES["ref"], lambda text: text.replace("temp", ""))


@pytest.mark.parametrize("name", INTERACTIONS)
def test_interaction_contrasts_equal_emmeans(fits, name):
    tests = fits["cake"].marginal_means(["recipe", "temp"], interaction=INTERACTIONS[name])
    equal_emmeans(tests, CASES[name], lambda text: text.replace(" ; ", " : "))


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_equal_emtrends(fits, name):
    """The references are emtrends' quotients at two steps, extrapolated to none (contrasts.R)."""
    model, variable, options = SLOPES[name]
    tests = fits[model].marginal_slopes(variable, **options)

    def label(text):
        if "contrast" in options:
            return text
        names = np.atleast_1d(options.get("by", []))
        values = zip(names, text.split(" ; "), strict=bool(len(names)))
        return ", ".join(f"{name}={value}" for name, value in values) or variable

    equal_emmeans(tests, CASES[name], label)


def test_slopes_of_orthodont_equal_emtrends():
    data = pd.read_csv(REFERENCE / "formulas" / "orthodont.csv")
    data["Sex"] = np.where(data["female"], "Female", "Male")
    data["Sex"] = pd.Categorical(data["Sex"], ["Male", "Female"])
    result = fm.MultiLMM.from_formula(
        "~ age * Sex", "(age | Subject)", data, data["distance"].to_numpy(float)[None]
    ).fit(parameter_space="psd", epsilon=1e-9)
    known = json.loads((FOLDER / "emtrends.json").read_text("utf-8"))
    keys = {"estimate": "age.trend", "se": "SE", "p": "p.value", "lower": "lower.CL"}
    keys |= {"upper": "upper.CL", "df": "df"}
    case = {key: known["trends"][name] for key, name in keys.items()}
    case["label"] = [f"Sex={sex}" for sex in known["trends"]["Sex"]]
    equal_emmeans(result.marginal_slopes("age", by="Sex"), case)
    pairs = result.marginal_slopes("age", by="Sex", contrast="pairwise").to_frame().loc[0]
    assert pairs.index.tolist() == known["pairs"]["contrast"]
    assert_allclose(pairs["estimate"], known["pairs"]["estimate"], rtol=1e-6)
    assert_allclose(pairs["se"], known["pairs"]["SE"], rtol=1e-6)
    assert_allclose(pairs["p"], known["pairs"]["p.value"], rtol=1e-5)


@pytest.fixture(scope="module")
def curved():
    """Three features of a design with all that a formula makes of numbers."""
    rng = np.random.default_rng(3)
    n = 60
    data = pd.DataFrame(
        {
            "x": rng.uniform(1, 5, n),
            "w": rng.normal(size=n),
            "k": rng.integers(1, 9, n),
            "f": np.tile(list("abc"), 20),
            "h": np.repeat(list("uv"), 30),
            "g": np.repeat(range(12), 5),
        }
    )
    Y = rng.normal(size=(3, n)) + rng.normal(size=(3, 12))[:, data["g"]]
    Y[2] = 2.0 * data["w"]  # the offset itself: no fit
    fixed = "~ f * log(x) + h + bs(w, df=4) + np.sqrt(k) + I(k^2) + x:h + offset(2 * w)"
    with pytest.warns(fm.ConvergenceWarning):
        return fm.MultiLMM.from_formula(fixed, "(1 | g)", data, Y).fit(parameter_space="psd"), data


def test_slopes_are_differences_of_means(curved):
    """Whatever the formula: a mean a small step higher minus one a step lower."""
    result, data = curved
    for variable, by in (("x", "f"), ("w", "h"), ("k", "f")):
        at = float(data[variable].mean())
        h = 1e-5
        means = result.marginal_means(
            [by, variable], at={variable: [at - h, at + h]}
        ).effect.to_numpy()
        slopes = result.marginal_slopes(variable, by)
        assert_allclose(
            slopes.effect.to_numpy()[:2], np.diff(means.reshape(3, -1, 2))[:2, :, 0] / (2 * h),
            rtol=1e-6, atol=1e-7,
        )  # fmt: skip
        assert slopes.pvalue.iloc[2].isna().all()


def test_slopes_within_groups_and_of_an_offset(curved):
    result, _ = curved
    tests = result.marginal_slopes("x", by="f", within="h", contrast="pairwise")
    assert tests.contrasts[3:] == ["a - b | h=v", "a - c | h=v", "b - c | h=v"]
    table = tests.simultaneous("tukey")
    assert table["family"].to_numpy().tolist() == [0, 0, 0, 1, 1, 1]
    crossed = result.marginal_slopes("x", by="f", interaction="pairwise")
    assert_allclose(crossed.pvalue, result.marginal_slopes("x", "f", contrast="pairwise").pvalue)
    # The slopes differ between f and between h, but not one by the other; those along k by none.
    with pytest.raises(InputError, match=r"The formula itself fixes 'a - b : u - v'.*interaction"):
        result.marginal_slopes("x", by=["f", "h"], interaction="pairwise")
    with pytest.raises(InputError, match="The formula itself fixes 'b - a'"):
        result.marginal_slopes("k", by="f", contrast="consec")
    plain = fm.MultiLMM.from_formula(
        "~ 1 + offset(2 * w)", "(1 | g)", curved[1], np.random.default_rng(0).normal(size=(2, 60))
    ).fit()
    with pytest.raises(InputError, match="The formula itself fixes 'w'"):
        plain.marginal_slopes("w")


def test_loaded_results_and_missing_values(fits, tmp_path, curved):
    fits["powers"].save(tmp_path / "fit.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    options = {"by": "trt", "contrast": "consec"}
    pd.testing.assert_frame_equal(
        loaded.marginal_slopes("age", **options).to_frame(),
        fits["powers"].marginal_slopes("age", **options).to_frame(),
    )
    data = curved[1]
    Y = np.random.default_rng(1).normal(size=(4, 60))
    Y[0, :7] = np.nan
    by_feature = fm.MultiLMM.from_formula("~ f * x", "(1 | g)", data, Y, missing="feature").fit()
    alone = fm.MultiLMM.from_formula("~ f * x", "(1 | g)", data[7:], Y[:1, 7:]).fit()
    for table in ("effect", "pvalue"):
        assert_allclose(
            getattr(by_feature.marginal_slopes("x", by="f", at={"x": 2.0}), table).iloc[0],
            getattr(alone.marginal_slopes("x", by="f", at={"x": 2.0}), table).iloc[0],
            rtol=1e-6,
        )


def test_own_contrasts_by_label(fits):
    levels = ["175", "185", "195", "205", "215", "225"]
    row = [1.0, 0, 0, 0, 0, -1.0]
    table = pd.DataFrame({"ends": row, "first": [1.0, -1.0, 0, 0, 0, 0]}, index=levels)
    expected = contrast_weights({"ends": row, "first": table["first"].tolist()}, levels)
    for own in (table, table.iloc[::-1], lambda names: table.loc[names], table.to_dict()):
        labels, weights = contrast_weights(own, levels)
        assert labels == expected[0]
        assert_allclose(weights, expected[1])
    found = fits["cake"].marginal_means("temp", contrast=table.iloc[[3, 1, 0, 2, 5, 4]])
    assert_allclose(found.effect["ends"], [CASES["pairwise"]["estimate"][4]], rtol=1e-6)


def test_polynomials_are_orthogonal_whole_numbers():
    for L in (2, 3, 7, 12):
        _, weights = contrast_weights("poly", [str(i) for i in range(L)])
        assert len(weights) == min(6, L - 1)
        gram = weights @ weights.T
        assert_allclose(gram - np.diag(np.diag(gram)), 0.0, atol=1e-9)
        assert_allclose(weights.sum(axis=1), 0.0, atol=1e-9)
        assert (weights == np.round(weights)).all()
        assert (weights[:, -1] > 0).all()


def test_derivatives_stay_where_the_function_is():
    x = np.array([1e-3, 2.0, 0.0, -4.0])
    with np.errstate(invalid="ignore", divide="ignore"):
        found = derivative(
            lambda v: np.column_stack([np.log(v + 5), np.exp(v / 3), np.abs(v - 2.02)]), x
        )
    assert_allclose(found[:, 0], 1 / (x + 5), rtol=1e-8)
    assert_allclose(found[:, 1], np.exp(x / 3) / 3, rtol=1e-8)
    assert_allclose(found[:, 2], -1.0, rtol=1e-8)


WRONG = {
    "slope of a factor": (lambda r: r.marginal_slopes("trt"), "'trt' is a factor"),
    "slope of nothing": (lambda r: r.marginal_slopes("aeg"), "Did you mean 'age'"),
    "slope of a number": (lambda r: r.marginal_slopes(3), "3 is not a column"),
    "both": (
        lambda r: r.marginal_means("trt", contrast="eff", interaction="eff"),
        "`contrast`, or `interaction`",
    ),
    "control of nothing": (
        lambda r: r.marginal_means("trt", contrast="pairwise", reference="A"),
        "`reference` is the control",
    ),
    "control of means": (lambda r: r.marginal_means("trt", reference="A"), "`reference`"),
    "families": (
        lambda r: r.marginal_means(["trt", "smoker"], interaction=["eff"]),
        "has 1 families, but there are 2 factors",
    ),
    "factor": (
        lambda r: r.marginal_means(["trt", "smoker"], interaction={"trt": "eff", "sm": "eff"}),
        "`interaction` names 'sm'",
    ),
    "zero": (lambda r: r.marginal_means("trt", contrast={"none": [0, 0]}), "all zero"),
    "empty": (lambda r: r.marginal_means("trt", contrast={}), "empty"),
    "numbers": (lambda r: r.marginal_means("trt", contrast=3), "Unknown contrast=3"),
    "level": (
        lambda r: r.marginal_means("trt", contrast={"c": {"A": 1, "C": -1}}),
        "names 'C', which is none of the means",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(fits, name):
    call, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        call(fits["powers"])
