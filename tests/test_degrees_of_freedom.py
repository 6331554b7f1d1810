"""Degrees of freedom, joint tests and type III tables, against lmerTest and pbkrtest."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.inference.degrees_of_freedom import fai_cornelius_df

REFERENCE = Path(__file__).parent / "reference"
LME4 = json.loads((REFERENCE / "lme4" / "lme4.json").read_text(encoding="utf-8"))
TESTS = json.loads((REFERENCE / "tests" / "tests.json").read_text(encoding="utf-8"))
SUFFIX = {"satterthwaite": "satterthwaite", "kenward-roger": "kr"}
CASES = [
    (key, df)
    for key, model in LME4.items()
    for df in SUFFIX
    if model["method"] == "REML" or df == "satterthwaite"
]


@lru_cache
def lme4_fit(key):
    model = LME4[key]
    data = pd.read_csv(REFERENCE / "lme4" / f"{key.split('_')[0]}.csv")
    for name in {"Subject", "plate", "sample", "batch", "cask", "Batch"} & set(data.columns):
        data[name] = data[name].astype(str)
    response, formula = (part.strip() for part in model["formula"].split("~"))
    built = fm.MultiLMM.from_formula(f"~ {formula}", data=data, Y=data[response].to_numpy()[None])
    return built.fit(model["method"], parameter_space="psd")


@pytest.mark.parametrize(("key", "df"), CASES)
def test_tests_of_coefficients_equal_lmertest_and_pbkrtest(key, df):
    """Interior and boundary fits (dyestuff2) alike; lme4's own stopping is the tolerance."""
    found = lme4_fit(key).t_test(df=df)
    for j, expected in enumerate(LME4[key]["coef"]):
        suffix = SUFFIX[df]
        assert found.df.iloc[0, j] == pytest.approx(expected[f"df_{suffix}"], rel=1e-6)
        assert found.pvalue.iloc[0, j] == pytest.approx(expected[f"p_{suffix}"], rel=2e-5)
        error = expected["se_kr"] if df == "kenward-roger" else expected["se"]
        assert found.sd.iloc[0, j] == pytest.approx(error, rel=3e-7)


@lru_cache
def factors_fit(key):
    data = pd.read_csv(REFERENCE / "emmeans" / "factors.csv")
    data["week"] = data["week"].astype(str)
    formula = TESTS["models"][key]["formula"].split("~")[1]
    model = fm.MultiLMM.from_formula(f"~ {formula}", data=data, Y=data["y"].to_numpy()[None])
    return model.fit(parameter_space="psd")


@pytest.mark.parametrize("df", SUFFIX)
@pytest.mark.parametrize("key", TESTS["models"])
def test_type_3_tables_equal_lmertest(key, df):
    found = factors_fit(key).anova(df=df)
    expected = TESTS["models"][key][f"anova_{SUFFIX[df]}"]
    assert found.contrasts == [row["term"] for row in expected]
    for position, row in enumerate(expected):
        if (key, row["term"]) == ("no_intercept", "site"):
            # Without an intercept lmerTest tests the sites at the first treatment, not averaged.
            result = factors_fit(key)
            first = [n.startswith("site[") and "trt" not in n for n in result.stats.coef_names]
            table, column = result.f_test(np.eye(result.stats.p)[first], df=df), 0
        else:
            table, column = found, position
        assert table.df_num.iloc[0, column] == row["NumDF"]
        assert table.df_denom.iloc[0, column] == pytest.approx(row["DenDF"], rel=1e-4)
        assert table.fvalue.iloc[0, column] == pytest.approx(row["F value"], rel=1e-4)
        assert table.pvalue.iloc[0, column] == pytest.approx(row["Pr(>F)"], rel=1e-4)


@pytest.mark.parametrize("df", SUFFIX)
@pytest.mark.parametrize("key", TESTS["models"])
def test_joint_tests_equal_lmertest(key, df):
    """The second to fourth coefficient at once."""
    result = factors_fit(key)
    by_meaning = {_r_name(name): i for i, name in enumerate(result.stats.coef_names)}
    names = TESTS["models"][key]["coef"][1:4]
    L = np.eye(result.stats.p)[[by_meaning[name] for name in names]]
    found = result.f_test(L, df=df)
    (expected,) = TESTS["models"][key][f"joint_{SUFFIX[df]}"]
    assert found.df_num.iloc[0, 0] == expected["NumDF"]
    assert found.df_denom.iloc[0, 0] == pytest.approx(expected["DenDF"], rel=1e-4)
    assert found.fvalue.iloc[0, 0] == pytest.approx(expected["F value"], rel=1e-4)
    # Any other rows that span the same hypotheses give the same test, repeated ones too.
    mixed = np.vstack([[[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, -1.0]] @ L, L[:1]])
    again = result.f_test(mixed, df=df)
    assert again.fvalue.iloc[0, 0] == pytest.approx(found.fvalue.iloc[0, 0], rel=1e-8)
    assert again.df_denom.iloc[0, 0] == pytest.approx(found.df_denom.iloc[0, 0], rel=1e-7)


def _r_name(name: str) -> str:
    return (
        name.replace("[T.", "")
        .replace("[", "")
        .replace("]", "")
        .replace("Intercept", "(Intercept)")
    )


@pytest.mark.parametrize("coding", ["contr.treatment(base='west')", "contr.sum", "contr.helmert"])
def test_type_3_tables_do_not_depend_on_coding(coding):
    data = pd.read_csv(REFERENCE / "emmeans" / "factors.csv")
    Y = data["y"].to_numpy()[None]
    plain = fm.MultiLMM.from_formula("~ trt * site + site * age + (1 | subject)", data=data, Y=Y)
    other = fm.MultiLMM.from_formula(
        f"~ trt * C(site, {coding}) + C(site, {coding}) * age + (1 | subject)", data=data, Y=Y
    )
    # Fai and Cornelius's df depend a little on how a hypothesis is written; these do not.
    fits = [model.fit(parameter_space="psd") for model in (plain, other)]
    tables = [fit.anova(df="kenward-roger") for fit in fits]
    np.testing.assert_allclose(tables[0].fvalue, tables[1].fvalue, rtol=1e-7)
    np.testing.assert_allclose(tables[0].df_denom, tables[1].df_denom, rtol=1e-6)


def test_varpart_features():
    """200 features, 126 of them on the boundary, all at once."""
    folder = REFERENCE / "varpart"
    samples = pd.read_csv(folder / "samples.csv", index_col=0)
    reference = pd.read_csv(folder / "lme4_reml.csv.gz", index_col=0)
    expression = pd.read_csv(folder / "expression.csv.gz", index_col=0)
    for name in ("Individual", "Tissue", "Batch"):
        samples[name] = samples[name].astype(str)
    result = fm.MultiLMM.from_formula(
        "~ Age + (1 | Individual) + (1 | Tissue) + (1 | Batch)", data=samples, Y=expression
    ).fit(parameter_space="psd")
    reference = reference.loc[result.params.index]
    stopped_short = reference["logLik"].to_numpy() < result.llf.to_numpy() - 1e-8
    assert stopped_short.sum() <= 2
    for df, suffix in (("satterthwaite", "satt"), ("kenward-roger", "kr")):
        found = result.t_test("Age", df=df)
        for table, column in ((found.df, "df"), (found.pvalue, "p")):
            difference = table.iloc[:, 0] / reference[f"{column}_{suffix}_age"] - 1.0
            assert np.abs(difference[~stopped_short]).max() < 1e-4, (df, column)


def test_pooled_denominator_degrees_of_freedom():
    """By hand: E = 10/8 + 6/4 = 2.75, 2 E / (E - 2) = 22/3."""
    assert fai_cornelius_df(np.array([10.0, 6.0])) == pytest.approx(22.0 / 3.0)
    assert fai_cornelius_df(np.array([1.5, 6.0])) == 2.0
    assert fai_cornelius_df(np.array([7.0, 7.0])) == 7.0
    assert fai_cornelius_df(np.array([np.inf, np.inf])) == np.inf


def test_chi_square_wald_tests():
    result = factors_fit("crossed")
    F = result.f_test(["trt[T.B]", "age"], df="residual")
    wald = result.wald_test(["trt[T.B]", "age"])
    assert wald.fvalue.iloc[0, 0] == pytest.approx(F.fvalue.iloc[0, 0])
    assert np.isinf(wald.df_denom.iloc[0, 0])
    beta, C = result.params.iloc[0], result.cov_params().to_numpy()[0]
    index = [list(beta.index).index(name) for name in ("trt[T.B]", "age")]
    statistic = beta.iloc[index] @ np.linalg.solve(C[np.ix_(index, index)], beta.iloc[index])
    assert wald.pvalue.iloc[0, 0] == pytest.approx(np.exp(-statistic / 2.0))  # chi-square, 2 df
    same = result.wald_test(["trt[T.B]", "age"], use_f=True, df="kenward-roger")
    assert same.df_method == "kenward-roger"


def test_refusals():
    result = factors_fit("crossed")
    with pytest.raises(InputError, match="Unknown df='satterthwait'"):
        result.t_test("age", df="satterthwait")
    with pytest.raises(InputError, match="contradict"):
        result.f_test(["age = 1", "2 * age = 3"])
    with pytest.raises(InputError, match="type"):
        result.anova(type=4)
    ml = lme4_fit("penicillin_crossed_ml")
    with pytest.raises(InputError, match="REML"):
        ml.t_test(df="kenward-roger")
