"""Tests of terms, fixed and random, and R2: equal to lmerTest, and by identities."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from test_after_the_fit import DATA, LME4, MISSING, N, Y, fit, rows

import flashmm as fm
from flashmm.exceptions import InputError

FORMULA = "~ A * B + x + (1 | g) + (1 | h)"


@pytest.fixture(scope="module")
def reml():
    return fit(FORMULA)


@pytest.fixture(scope="module")
def ml():
    return fit(FORMULA, "ML")


@pytest.fixture(scope="module")
def slopes():
    return fit("~ A * B + x + (1 + x | g) + (1 | h)")


def check(tests, table, rtol=1e-4):
    table = rows(table)
    assert tests.contrasts == list(table)
    for name, row in table.items():
        for mine, theirs in (
            ("F", "F value"), ("df_num", "NumDF"), ("df_denom", "DenDF"), ("p", "Pr(>F)"),
            ("sum_sq", "Sum Sq"), ("mean_sq", "Mean Sq"),
        ):  # fmt: skip
            value = float(tests.ds[mine].sel(feature="y", contrast=name))
            np.testing.assert_allclose(value, row[theirs], rtol=rtol, err_msg=f"{name} {mine}")


@pytest.mark.parametrize(("type_", "key"), [(1, "I"), (2, "II"), (3, "III")])
def test_anova_equals_lmertest(type_, key, reml, ml, slopes):
    """Largest relative difference 1e-6 (F), 3e-6 (df), crossed; lmerTest's df are numerical."""
    check(reml.anova(type=type_), LME4["anova"][key])
    check(ml.anova(type=key), LME4["anova_ml"][key])
    check(slopes.anova(type=str(type_)), LME4["anova_slopes"][key], rtol=5e-4)


def test_weighted_type_three_equals_lmertest_and_the_others_weigh():
    weighted = fit(FORMULA, weights="w")
    check(weighted.anova(), LME4["anova_weighted"]["III"])
    sm = pytest.importorskip("statsmodels.api")
    ols = fm.MultiLMM.from_formula("~ A * B + x", None, DATA, Y, weights="w").fit()
    X = np.column_stack([np.ones(N), DATA["A"] == "a2", DATA["B"] == "b2", DATA["B"] == "b3"])
    X = np.column_stack([X, DATA["x"]]).astype(float)
    both = X[:, [1]] * X[:, 2:4]
    first = ols.anova(type=1).ds.sel(feature="y")
    ssr = [
        sm.WLS(DATA["y"], design, DATA["w"]).fit().ssr
        for design in (X[:, :1], X[:, :2], X[:, :4], X, np.hstack([X, both]))
    ]
    np.testing.assert_allclose(first["sum_sq"], -np.diff(ssr), rtol=1e-7)
    # Type II of A: given B and x, the interaction left out.
    second = ols.anova(type=2).ds.sel(feature="y", contrast="A")
    without = sm.WLS(DATA["y"], np.delete(X, 1, axis=1), DATA["w"]).fit().ssr
    np.testing.assert_allclose(second["sum_sq"], without - ssr[3], rtol=1e-7)


def test_types_elsewhere(reml):
    assert reml.anova().ds.attrs["type"] == 3
    assert "sum_sq" not in reml.anova(df="integrated").ds
    assert "sum_sq" not in reml.anova(moderated=True).ds
    own = fit("~ A + x + (1 | g)", values=MISSING, missing="feature")
    two, three = own.anova(type=2), own.anova()
    pd.testing.assert_frame_equal(two.fvalue, three.fvalue)
    with pytest.raises(InputError, match="of_pattern"):
        own.anova(type=1)
    with pytest.raises(InputError, match="of_pattern"):
        fit(FORMULA, values=MISSING, missing="feature").anova(type=2)
    for wrong in (4, "IV", True, None):
        with pytest.raises(InputError, match="Unknown type"):
            reml.anova(type=wrong)
    arrays = fm.MultiLMM.from_arrays(Y, np.column_stack([np.ones(N), DATA["x"], DATA["w"]])).fit()
    one = arrays.anova(type=1).ds.sel(feature="y")
    assert one["contrast"].values.tolist() == ["x1", "x2", "x3"]
    assert reml.anova(type=1, features=["more"]).fvalue.shape == (1, 4)


def test_types_where_columns_depend():
    """An empty cell: type I of each term is the reduction of the residual sum of squares."""
    data = DATA[(DATA["A"] != "a2") | (DATA["B"] != "b3")]
    values = Y.loc[:, data.index.to_numpy()]
    values.columns = data.index
    with pytest.warns(fm.exceptions.RankWarning):
        model = fm.MultiLMM.from_formula("~ A * B + x", None, data, values, rank="drop")
    tests = model.fit().anova(type=1).ds.sel(feature="y")
    assert tests["df_num"].values.tolist() == [1.0, 2.0, 1.0, 1.0]
    total = float(
        (tests["sum_sq"]).sum() + model.fit().theta.loc["y", "Residual"] * (len(data) - 6)
    )
    y = values.loc["y"].to_numpy()
    np.testing.assert_allclose(total, ((y - y.mean()) ** 2).sum(), rtol=1e-9)


def test_type_2_with_an_empty_cell_and_no_other_term():
    """The column left out is zero (raw division), and there may be nothing to adjust for."""
    data = DATA[(DATA["A"] != "a2") | (DATA["B"] != "b3")]
    values = Y.loc[:, data.index.to_numpy()]
    values.columns = data.index
    for fixed, expected in {
        "~ A * B": [1, 2, 1],
        "~ 0 + A:B": [5],
        "~ 0 + A + A:B": [2, 3],
    }.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fm.exceptions.RankWarning)
            model = fm.MultiLMM.from_formula(fixed, "(1 | g)", data, values, rank="drop")
        tests = model.fit(parameter_space="psd").anova(type=2)
        assert tests.ds.sel(feature="y")["df_num"].values.tolist() == expected


@pytest.mark.parametrize("type_", [1, 2])
@pytest.mark.parametrize("coding", ["contr.sum", "contr.helmert", "contr.treatment('b3')"])
def test_sequential_tests_do_not_depend_on_coding(reml, type_, coding):
    """Satterthwaite's df of type I and II tests did: 82.2, 82.3 and 82.5 in another design."""
    other = fit(f"~ A * C(B, {coding}) + x + (1 | g) + (1 | h)").anova(type=type_)
    usual = reml.anova(type=type_)
    np.testing.assert_allclose(other.df_denom, usual.df_denom, rtol=1e-6)
    np.testing.assert_allclose(other.fvalue, usual.fvalue, rtol=1e-7)


def test_type_2_where_terms_depend_on_terms():
    """What other terms span counts, whichever columns were left out: x adds nothing to 2 x."""
    data = DATA.assign(x2=2.0 * DATA["x"] + 1.0, AB=DATA["A"].astype(str) + DATA["B"].astype(str))
    expected = {  # term -> numerator df
        "~ x + x2 + A": {"x": 0, "x2": 0, "A": 1},
        "~ x2 + x + A": {"x2": 0, "x": 0, "A": 1},
        "~ A + AB": {"A": 0, "AB": 4},
        "~ AB + A + B": {"AB": 2, "A": 0, "B": 0},
    }
    for fixed, df_num in expected.items():
        with pytest.warns(fm.exceptions.RankWarning):
            model = fm.MultiLMM.from_formula(fixed, "(1 | g)", data, Y, rank="drop")
        result = model.fit(parameter_space="psd")
        found = result.anova(type=2).ds.sel(feature="y")
        assert dict(zip(found["contrast"].values, found["df_num"].values, strict=True)) == df_num
        if "AB + A" in fixed:  # the interaction, as anyone would write it
            plain = fm.MultiLMM.from_formula("~ A * B", "(1 | g)", data, Y)
            F = (
                plain.fit(parameter_space="psd")
                .anova(type=2)
                .ds["F"]
                .sel(feature="y", contrast="A:B")
            )
            np.testing.assert_allclose(found["F"].sel(contrast="AB"), F, rtol=1e-6)
        if fixed.startswith("~ x"):
            alone = fm.MultiLMM.from_summary_stats(result.stats).fit(parameter_space="psd")
            number = (
                alone.anova(type=2).ds["df_num"].sel(feature="y", contrast=result.params.columns[1])
            )
            assert number == 0  # a term of its own, that the column left out spans
            with pytest.raises(InputError, match="left out of X because they depend on 'x"):
                result.drop1(test="LRT")
        elif fixed == "~ A + AB":
            assert np.isnan(result.drop1().ds["F"].sel(contrast="A")).all()


# ---- drop1, ranova ---------------------------------------------------------------------------


def test_drop1_equals_lmertest(reml):
    """F of terms with several coefficients is lmerTest's; its df there depend on coding."""
    table, tests = rows(LME4["drop1_F"]), reml.drop1()
    assert tests.contrasts == ["x", "A:B"] or tests.contrasts == list(table)
    for name, row in table.items():
        one = tests.ds.sel(feature="y", contrast=name)
        np.testing.assert_allclose(one["F"], row["F value"], rtol=1e-5)
        np.testing.assert_allclose(one["sum_sq"], row["Sum Sq"], rtol=1e-4)
        if row["NumDF"] == 1:
            np.testing.assert_allclose(one["df_denom"], row["DenDF"], rtol=1e-4)
    additive = fit("~ A + B + x + (1 | g)").drop1()
    check_names = rows(LME4["drop1_F_additive"])
    np.testing.assert_allclose(
        additive.fvalue.loc["y"], [check_names[n]["F value"] for n in additive.contrasts], rtol=1e-5
    )


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_likelihood_ratios_of_fixed_terms_equal_lme4(method):
    result = fit("~ A + B + x + (1 | g)", method)
    found, table = result.drop1(test="LRT").sel(feature="y"), rows(LME4["drop1_LRT"])
    np.testing.assert_allclose(found["aic_full"], table["<none>"]["AIC"], rtol=1e-8)
    for name in ("A", "B", "x"):
        one = found.sel(term=name)
        np.testing.assert_allclose(one["aic"], table[name]["AIC"], rtol=1e-8)
        np.testing.assert_allclose(one["statistic"], table[name]["LRT"], atol=1e-5)
        np.testing.assert_allclose(one["p"], table[name]["Pr(Chi)"], rtol=1e-4)
        assert int(one["df"]) == table[name]["npar"]


def test_drop1_elsewhere():
    own = fit("~ A + x + (1 | g)", values=MISSING, missing="feature")
    whole = fit("~ A + x + (1 | g)")
    one, other = own.drop1(test="LRT"), whole.drop1(test="LRT", features=["y", "more"])
    np.testing.assert_allclose(
        one["statistic"].sel(feature=["y", "more"]), other["statistic"], atol=1e-6
    )
    assert np.isfinite(one["p"]).all()
    with pytest.raises(InputError, match="Unknown test"):
        whole.drop1(test="Chisq")
    with pytest.raises(InputError, match="belongs to test"):
        whole.drop1(test="LRT", df="residual")
    least = fm.MultiLMM.from_formula("~ A + x", None, DATA, Y).fit()
    gain = least.drop1(test="LRT")["statistic"].sel(feature="y", term="x")
    X = np.column_stack([np.ones(N), DATA["A"] == "a2", DATA["x"]]).astype(float)
    ssr = [np.linalg.lstsq(D, DATA["y"], rcond=None)[1][0] for D in (X[:, :2], X)]
    np.testing.assert_allclose(gain, N * np.log(ssr[0] / ssr[1]), rtol=1e-8)


def test_ranova_equals_lmertest(reml, slopes):
    for result, key, names in (
        (reml, "ranova_crossed", {"(1 | g)": "g", "(1 | h)": "h"}),
        (slopes, "ranova", {"x in (1 + x | g)": "g[x]", "(1 | h)": "h"}),
    ):
        found, table = result.ranova().sel(feature="y"), rows(LME4[key])
        assert found["component"].values.tolist() == list(names.values())
        for theirs, mine in names.items():
            one, row = found.sel(component=mine), table[theirs]
            np.testing.assert_allclose(one["loglik"], row["logLik"], rtol=1e-7)
            np.testing.assert_allclose(one["statistic"], row["LRT"], atol=1e-5)
            np.testing.assert_allclose(one["p"], row["Pr(>Chisq)"], rtol=1e-4)
            np.testing.assert_allclose(one["aic"], row["AIC"], rtol=1e-7)
            assert int(one["df"]) == row["Df"]
    whole = slopes.ranova(reduce_terms=False)
    assert whole["component"].values.tolist() == ["g", "h"]
    assert whole["df"].values.tolist() == [3, 1]
    test = slopes.variance_test("h")
    np.testing.assert_allclose(whole["p_mixture"].sel(component="h"), test["p"][:, 0])


def test_ranova_elsewhere():
    least = fm.MultiLMM.from_formula("~ x", None, DATA, Y).fit()
    assert least.ranova()["statistic"].shape == (3, 0)
    own = fit("~ x + (1 | g)", values=MISSING, missing="feature").ranova()
    assert np.isfinite(own["p"]).all()


# ---- R2 -----------------------------------------------------------------------------------------


def test_r_squared_equals_the_formulas_in_r(reml, slopes):
    for result, key in ((reml, "r2"), (slopes, "r2_slopes")):
        found = result.r_squared().sel(feature="y")
        for name, value in LME4[key].items():
            np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)


def test_r_squared_of_least_squares_and_its_errors(reml):
    least = fm.MultiLMM.from_formula("~ A + x", None, DATA, Y).fit("ML")
    found = least.r_squared(divisor="n")
    sm = pytest.importorskip("statsmodels.api")
    X = np.column_stack([np.ones(N), DATA["A"] == "a2", DATA["x"]]).astype(float)
    for name in Y.index:
        np.testing.assert_allclose(
            found["marginal"].sel(feature=name), sm.OLS(Y.loc[name], X).fit().rsquared, rtol=1e-9
        )
    np.testing.assert_allclose(found["conditional"], found["marginal"])
    shares = reml.variance_fractions()
    fixed = shares["estimate"][:, :-3].sum("component")
    np.testing.assert_allclose(reml.r_squared(divisor="n")["marginal"], fixed, rtol=1e-10)
    left = shares.isel(component=-1)
    np.testing.assert_allclose(reml.r_squared(divisor="n")["conditional_se"], left["se"], rtol=1e-8)
    own = fit("~ A + x + (1 | g)", values=MISSING, missing="feature").r_squared()
    whole = fit("~ A + x + (1 | g)").r_squared()
    np.testing.assert_allclose(own["marginal"][:2], whole["marginal"][:2], rtol=1e-5)
    with pytest.raises(InputError, match="Unknown divisor"):
        reml.r_squared(divisor="n-2")


def test_semi_partial_r_squared(reml):
    found = reml.r_squared(by="term")
    tests = reml.anova()
    x = tests.df_num * tests.fvalue
    np.testing.assert_allclose(found["r_squared"], x / (x + tests.df_denom))
    # Of least squares: what the term takes off the residual sum of squares of the rest.
    least = fm.MultiLMM.from_formula("~ A + x", None, DATA, Y).fit()
    X = np.column_stack([np.ones(N), DATA["A"] == "a2", DATA["x"]]).astype(float)
    ssr = [np.linalg.lstsq(D, DATA["y"], rcond=None)[1][0] for D in (X[:, :2], X)]
    one = least.r_squared(by="term")["r_squared"].sel(feature="y", term="x")
    np.testing.assert_allclose(one, 1.0 - ssr[1] / ssr[0], rtol=1e-8)
