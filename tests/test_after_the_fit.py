"""After the fit: profiles, correlations, coefficients of groups, subsets of effects, theta."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from references import REFERENCE
from scipy import stats

import flashmm as fm
from flashmm.exceptions import InputError

LME4 = json.loads((REFERENCE / "after" / "lme4.json").read_text())
DATA = pd.read_csv(REFERENCE / "after" / "crossed.csv")
N = len(DATA)
# The response of the references, beside two features that differ from it.
Y = pd.DataFrame(
    np.stack([DATA["y"], DATA["y"] + DATA["x"], np.random.default_rng(0).normal(size=N)]),
    index=["y", "more", "noise"],
)
MISSING = Y.copy()
MISSING.loc["noise", :2] = np.nan
TIGHT = {"parameter_space": "psd", "epsilon": 1e-8}


def fit(formula, method="REML", values=Y, **options):
    return fm.MultiLMM.from_formula(formula, data=DATA, Y=values, **options).fit(method, **TIGHT)


@pytest.fixture(scope="module")
def slopes():
    return fit("~ x + (1 + x | g)")


@pytest.fixture(scope="module")
def slopes_ml():
    return fit("~ x + (1 + x | g)", "ML")


@pytest.fixture(scope="module")
def crossed():
    return fit("~ A * B + x + (1 + x | g) + (1 | h)")


def rows(table):
    return {row["row"]: row for row in table}


def r_names(names):
    """R's names of treatment-coded coefficients."""
    return [name.replace("Intercept", "(Intercept)").replace("[T.", "").replace("]", "")
            for name in names]  # fmt: skip


# ---- profile limits of the fixed effects -----------------------------------------------------


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_profile_limits_equal_lme4(method):
    """lme4 interpolates its profile by splines; largest difference 3e-5 of a limit's width."""
    result = fit("~ A + B + x + (1 | g)", method)
    limits = result.conf_int(method="profile", features=["y"])[0]
    table = rows(LME4["confint_additive"])
    for name, r_name in zip(limits["coef"].values, r_names(limits["coef"].values), strict=True):
        expected = [table[r_name]["2.5 %"], table[r_name]["97.5 %"]]
        width = expected[1] - expected[0]
        np.testing.assert_allclose(limits.sel(coef=name), expected, atol=1e-4 * width)


def test_profile_limits_with_slopes(slopes_ml):
    table, limits = rows(LME4["confint_slopes"]), slopes_ml.conf_int(method="profile")[0]
    for name, r_name in (("Intercept", "(Intercept)"), ("x", "x")):
        expected = [table[r_name]["2.5 %"], table[r_name]["97.5 %"]]
        width = expected[1] - expected[0]
        np.testing.assert_allclose(limits.sel(coef=name), expected, atol=1e-3 * width)


def test_profile_limits_are_where_the_likelihood_has_fallen(slopes_ml):
    """A coefficient held at its limit by an offset: the log-likelihood is lower by 1.92."""
    limits = slopes_ml.conf_int(method="profile", coefs="x")
    assert limits["coef"].values.tolist() == ["x"]
    for i, name in enumerate(Y.index):
        for limit in limits[i, 0].values:
            held = fit("~ 1 + (1 + x | g)", "ML", Y.loc[[name]] - limit * DATA["x"].to_numpy())
            fall = 2.0 * (slopes_ml.llf[name] - held.llf[name])
            np.testing.assert_allclose(fall, stats.chi2.ppf(0.95, 1), atol=1e-5)


def test_profiles_of_least_squares_and_of_a_large_mean():
    model = fm.MultiLMM.from_formula("~ x", None, DATA, Y + 1e6)
    limits = model.fit("ML").conf_int(method="profile")
    X = np.column_stack([np.ones(N), DATA["x"]])
    for i, y in enumerate((Y + 1e6).to_numpy()):
        beta, rss, *_ = np.linalg.lstsq(X, y, rcond=None)
        C = np.linalg.inv(X.T @ X)
        half = np.sqrt(rss[0] * np.diag(C) * np.expm1(stats.chi2.ppf(0.95, 1) / N))
        np.testing.assert_allclose(limits[i, :, 0], beta - half, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(limits[i, :, 1], beta + half, rtol=1e-6, atol=1e-6)


def test_profiles_pattern_by_pattern_and_where_they_do_not_apply():
    result = fit("~ x + (1 | g)", values=MISSING, missing="feature")
    whole = fit("~ x + (1 | g)")
    limits, expected = (r.conf_int(method="profile", coefs="x") for r in (result, whole))
    np.testing.assert_allclose(limits[:2], expected[:2], rtol=1e-6)
    assert np.isfinite(limits[2]).all()
    with pytest.raises(InputError, match="Unknown method"):
        whole.conf_int(method="bootstrap")
    with pytest.raises(InputError, match="belong to method"):
        whole.conf_int(method="profile", df="residual")
    with pytest.raises(InputError):
        whole.conf_int(coefs="z")
    wald = whole.conf_int(coefs=["x"], features=["noise"])
    np.testing.assert_allclose(wald[0, 0], whole.conf_int().sel(feature="noise", coef="x"))


# ---- correlations of random effects -------------------------------------------------------------


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_profiles_of_correlations_equal_lme4s_criterion(method, slopes, slopes_ml):
    result = slopes if method == "REML" else slopes_ml
    expected = LME4["cor_reml" if method == "REML" else "cor_ml"]
    found = result.random_correlations(method="profile").sel(feature="y")
    np.testing.assert_allclose(found["estimate"], expected["estimate"], atol=1e-6)
    np.testing.assert_allclose(found["lower"], expected["limits"][0], atol=2e-6)
    np.testing.assert_allclose(found["upper"], expected["limits"][1], atol=2e-6)


def test_correlations_by_the_delta_method(slopes):
    found = slopes.random_correlations()
    table = LME4["varcorr"]
    np.testing.assert_allclose(found["estimate"].sel(feature="y"), table[2]["sdcor"], atol=1e-6)
    theta = slopes.theta.loc["y"].to_numpy()
    covariance = np.linalg.inv(slopes.fim(["y"])["FIM_theta"].to_numpy()[0])

    def z(t):
        return np.arctanh(t[2] / np.sqrt(t[0] * t[1]))

    gradient = [(z(theta + 1e-6 * e) - z(theta - 1e-6 * e)) / 2e-6 for e in np.eye(4)]
    half = stats.norm.ppf(0.975) * np.sqrt(np.array(gradient) @ covariance @ np.array(gradient))
    one = found.sel(feature="y", param="g[Intercept,x]")
    np.testing.assert_allclose(one["lower"], np.tanh(z(theta) - half), rtol=1e-5)
    np.testing.assert_allclose(one["upper"], np.tanh(z(theta) + half), rtol=1e-5)
    assert (found["lower"] < found["upper"]).sel(feature=["y", "more"]).all()


def test_correlations_elsewhere(crossed, slopes):
    assert crossed.random_correlations()["param"].values.tolist() == ["g[Intercept,x]"]
    none = fit("~ x + (1 | g)").random_correlations()
    assert none["estimate"].shape == (3, 0)
    own = fit("~ x + (1 + x | g)", values=MISSING, missing="feature")
    for method in ("delta", "profile"):
        one = own.random_correlations(method=method).sel(feature=["y", "more"])
        other = slopes.random_correlations(method=method).sel(feature=["y", "more"])
        np.testing.assert_allclose(one["lower"], other["lower"], atol=1e-4)
    three = fit("~ x + (1 + A + x | g)")
    assert three.random_correlations()["estimate"].shape == (3, 3)
    with pytest.raises(InputError, match="two effects"):
        three.random_correlations(method="profile")


# ---- coefficients of groups, predictions with some effects --------------------------------------


def test_coef_equals_lme4(slopes, crossed):
    table = rows(LME4["coef_slopes"])
    found = slopes.coef()["g"].sel(feature="y")
    expected = [[table[g]["(Intercept)"], table[g]["x"]] for g in found["group_level"].values]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert set(crossed.coef()) == {"g", "h"}
    two = fit("~ A * B + x + (1 | g) + (1 | h)").coef(features=["y"])
    for group in ("g", "h"):
        table = rows(LME4["coef_crossed"][group])
        own = two[group][0]
        for level in own["group_level"].values:
            expected = [table[level][name] for name in r_names(own["coef"].values)]
            np.testing.assert_allclose(own.sel(group_level=level), expected, atol=1e-5)


def test_coef_elsewhere(slopes):
    one = slopes.sel("more").coef()["g"]
    np.testing.assert_allclose(one, slopes.coef()["g"].sel(feature="more"))
    no_fixed = fit("~ 0 + (1 + x | g)").coef()["g"]
    assert no_fixed["coef"].values.tolist() == ["Intercept", "x"]
    split = fit("~ x + (1 | g) + (0 + x | g)").coef()
    assert list(split) == ["g"]
    flash = fm.MultiLMM.from_formula("~ x", "~ 0 + g", DATA, Y).fit(**TIGHT)
    bars = fit("~ x + (1 | g)")
    np.testing.assert_allclose(flash.coef()["g"], bars.coef()["g"], atol=1e-6)
    X, Z = np.ones((N, 1)), pd.get_dummies(DATA["g"]).to_numpy(dtype=float)
    with pytest.raises(InputError, match="built from matrices"):
        fm.MultiLMM.from_arrays(Y, X, Z).fit().coef()
    assert fm.MultiLMM.from_arrays(Y, X).fit().coef() == {}


def test_predictions_with_some_random_effects_equal_lme4(crossed):
    """re.form by term and by variance; largest difference 4e-7."""
    expected = LME4["predict"]
    for random, name in (
        (None, "all"), ("g", "g"), ("g[Intercept]", "g_intercept"), (["h"], "h"), ([], "none"),
        (["g", "h"], "all"),
    ):  # fmt: skip
        found = crossed.predict(DATA, level="conditional", random=random).sel(feature="y")
        np.testing.assert_allclose(found, np.ravel(expected[name]), atol=2e-5)
        again = crossed.fittedvalues(DATA, random=random).sel(feature="y")
        np.testing.assert_allclose(again, found)


def test_intervals_with_some_random_effects(crossed):
    new = DATA.head(6)
    options = {"level": "conditional", "interval": "prediction"}
    some = crossed.predict(new, random="g", **options)
    # What is left out counts as an unknown level: the same as asking for one.
    unknown = crossed.predict(new.assign(h="new"), allow_new_levels=True, **options)
    np.testing.assert_allclose(some["se"], unknown["se"], rtol=1e-8)
    np.testing.assert_allclose(some["prediction"], unknown["prediction"], rtol=1e-8)
    none = crossed.predict(new, level="conditional", random=[], se=True)
    np.testing.assert_allclose(none["se"], crossed.predict(new, se=True)["se"], rtol=1e-8)
    # The columns of terms that are not asked for are not needed.
    crossed.predict(new.drop(columns="h"), level="conditional", random="g")
    with pytest.raises(InputError, match='level="conditional"'):
        crossed.predict(new, random="g")
    with pytest.raises(InputError, match="Unknown random effect"):
        crossed.predict(new, level="conditional", random="k")


# ---- the likelihood at a theta, normal tests -------------------------------------------------


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("missing", [False, True])
def test_loglike_and_score(method, missing):
    values, options = (MISSING, {"missing": "feature"}) if missing else (Y, {})
    model = fm.MultiLMM.from_formula("~ x + (1 + x | g) + (1 | h)", data=DATA, Y=values, **options)
    result = model.fit(method, **TIGHT)
    np.testing.assert_allclose(model.loglike(result, method), result.llf, rtol=1e-10)
    names = result.theta.columns
    theta = pd.Series([0.7, 0.5, 0.1, 0.3, 1.1], index=names)
    value, score = model.loglike(theta, method), model.score(theta, method)
    for name in names:
        up, down = theta.copy(), theta.copy()
        up[name] += 1e-5
        down[name] -= 1e-5
        slope = (model.loglike(up, method) - model.loglike(down, method)) / 2e-5
        np.testing.assert_allclose(score[name], slope, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.loglike(theta[::-1], method), value)
    np.testing.assert_allclose(model.loglike(theta.to_dict(), method), value)
    each = pd.DataFrame([theta] * 3, index=values.index)
    each.loc["more"] *= 2.0
    found = model.loglike(each[::-1], method)
    assert found["more"] == pytest.approx(model.loglike(2.0 * theta, method)["more"])
    assert found["y"] == pytest.approx(value["y"])
    few = model.loglike(each.loc[["y"]], method)
    assert np.isnan(few["more"])


def test_loglike_of_v_itself_and_outside_its_domain():
    model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=DATA, Y=Y)
    G = pd.get_dummies(DATA["g"]).to_numpy(dtype=float)
    V = 0.7 * G @ G.T + 1.3 * np.eye(N)
    X = np.column_stack([np.ones(N), DATA["x"]])
    inverse = np.linalg.inv(V)
    y = Y.loc["y"].to_numpy()
    beta = np.linalg.solve(X.T @ inverse @ X, X.T @ inverse @ y)
    expected = stats.multivariate_normal(X @ beta, V).logpdf(y)
    np.testing.assert_allclose(model.loglike([0.7, 1.3], "ML")["y"], expected, rtol=1e-10)
    assert (model.loglike([0.7, -1.0]) == -np.inf).all()
    assert model.score([0.7, -1.0]).isna().all().all()
    with pytest.raises(InputError, match="`theta` has shape"):
        model.loglike([1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="Unknown method"):
        model.loglike([1.0, 2.0], method="WLS")
    with pytest.raises(InputError, match="The columns of `theta`"):
        model.loglike({"h": 1.0, "Residual": 1.0})


def test_normal_tests(slopes):
    tests = slopes.t_test("x", df="normal")
    z = tests.effect / tests.sd
    np.testing.assert_allclose(tests.pvalue, 2.0 * stats.norm.sf(np.abs(z)), rtol=1e-12)
    assert np.isinf(tests.df).all().all()
    q = stats.norm.ppf(0.975)
    np.testing.assert_allclose(tests.conf_int()[:, 0, 1], (tests.effect + q * tests.sd).iloc[:, 0])
    np.testing.assert_allclose(slopes.conf_int(df="normal").sel(coef="x"), tests.conf_int()[:, 0])
    joint, wald = (
        slopes.f_test(["Intercept", "x"], df="normal"),
        slopes.wald_test(["Intercept", "x"]),
    )
    np.testing.assert_allclose(joint.pvalue, wald.pvalue, rtol=1e-8)
    assert np.isinf(slopes.anova(df="normal").df_denom).all().all()
    table = slopes.predict(DATA.head(3), interval="confidence", df="normal")
    np.testing.assert_allclose(table["upper"], table["prediction"] + q * table["se"])
    assert slopes.top_table("x", df="normal", n=1).shape[0] == 1
    with pytest.raises(InputError, match="Moderated"):
        slopes.t_test("x", df="normal", moderated=True)
