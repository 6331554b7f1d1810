"""The reference data is what tests/reference/README.md says it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import references as ref
from scipy import stats

LME4_SHAPES = {
    "sleepstudy": (180, 3),
    "penicillin": (144, 3),
    "pastes": (60, 4),
    "dyestuff": (30, 2),
    "dyestuff2": (30, 2),
}
FITS = ("1comp_reml", "1comp_ml", "2comp_reml", "2comp_ml")


def is_text(column: pd.Series) -> bool:
    return all(isinstance(value, str) for value in column)


@pytest.mark.parametrize("dataset", LME4_SHAPES)
def test_lme4_data_have_text_factors_and_numeric_variables(dataset):
    data = ref.lme4_data(dataset)
    assert data.shape == LME4_SHAPES[dataset]
    for column in data:
        assert is_text(data[column]) == (column in ref.FACTORS)


def test_there_are_ten_lme4_models():
    assert len(ref.lme4_cases()) == 10
    assert {ref.lme4_case(name)["dataset"] for name in ref.lme4_cases()} == set(LME4_SHAPES)


@pytest.mark.parametrize("name", ref.lme4_cases())
def test_lme4_case_agrees_with_its_data_and_itself(name):
    case = ref.lme4_case(name)
    data = ref.lme4_data(case["dataset"])
    assert case["nobs"] == len(data)
    assert case["response"] in data
    assert case["method"] == name.rsplit("_", 1)[1].upper()
    np.testing.assert_allclose(
        np.sqrt(np.diag(case["vcov"])), case["coef"]["se"].to_numpy(), rtol=1e-12
    )
    n_parameters = len(case["coef"]) + len(case["varcomp"])
    assert case["AIC"] == pytest.approx(2 * n_parameters - 2 * case["logLik"], rel=1e-12)
    assert case["varcomp"]["grp"].iloc[-1] == "Residual"
    assert set(case["ranef"]["grpvar"]) <= set(case["varcomp"]["grp"])
    assert (case["anova_kr"] is None) == (case["method"] == "ML")


def test_varpart_is_200_features_by_100_samples():
    samples, expression, reference = ref.varpart()
    assert expression.shape == (200, 100)
    assert list(expression.columns) == list(samples.index)
    assert list(expression.index) == list(reference.index)
    assert all(is_text(samples[column]) for column in ("Individual", "Tissue", "Batch"))
    assert reference["singular"].sum() == 126


def test_simulated_is_60_genes_by_3000_cells():
    cells, counts = ref.simulated()
    assert counts.shape == (60, 3000)
    assert list(counts.columns) == list(cells.index)
    assert all(is_text(cells[column]) for column in ("sam", "cls", "trt", "location"))
    assert cells[["sam", "cls", "trt", "location"]].nunique().tolist() == [25, 4, 2, 8]
    assert (cells.groupby("sam")["trt"].nunique() == 1).all()
    assert set(ref.simulated_de_genes()["gene"]) <= set(counts.index)


@pytest.mark.parametrize("name", FITS)
def test_simulated_fit_is_labelled_and_consistent(name):
    fit = ref.simulated_fit(name)
    components = ["var1", "var2", "var0"] if name.startswith("2") else ["var1", "var0"]
    _, counts = ref.simulated()
    for part in ("coef", "se", "t", "p"):
        assert fit[part].shape == (60, 9)
        assert list(fit[part].columns) == list(fit["coef"].columns)
        assert list(fit[part].index) == list(counts.index)
    for part in ("theta", "setheta", "dlogL"):
        assert list(fit[part].columns) == components
    np.testing.assert_allclose(fit["t"], fit["coef"] / fit["se"], rtol=1e-12)
    np.testing.assert_allclose(fit["p"], 2 * stats.t.sf(fit["t"].abs(), 3000 - 9), rtol=1e-8)
    assert fit["logLik"].shape == fit["niter"].shape == (60,)


@pytest.mark.parametrize(("name", "n_levels"), [("1comp_reml", 25), ("2comp_reml", 33)])
def test_simulated_blup_has_one_column_per_level(name, n_levels):
    blup = ref.simulated_blup(name)
    cells, counts = ref.simulated()
    assert blup.shape == (60, n_levels)
    assert list(blup.index) == list(counts.index)
    levels = {f"sam{level}" for level in cells["sam"]}
    if name.startswith("2"):
        levels |= {f"location{level}" for level in cells["location"]}
    assert set(blup.columns) == levels


def test_simulated_matrices_belong_to_the_two_component_fit():
    matrices = ref.simulated_matrices()
    fit = ref.simulated_fit("2comp_reml")
    genes = matrices["features"]
    assert matrices["FIM_theta"].shape == (3, 3, 3)
    assert matrices["FIM_beta"].shape == matrices["cov_beta"].shape == (3, 9, 9)
    standard_error = np.sqrt(np.diagonal(matrices["cov_beta"], axis1=1, axis2=2))
    np.testing.assert_allclose(standard_error, fit["se"].loc[genes], rtol=1e-10)
    variance = np.diagonal(np.linalg.inv(matrices["FIM_theta"]), axis1=1, axis2=2)
    np.testing.assert_allclose(np.sqrt(variance), fit["setheta"].loc[genes], rtol=1e-8)


def test_simulated_lmmtests_are_three_views_of_the_one_component_fit():
    coef = ref.simulated_fit("1comp_reml")["coef"]
    tests = {side: ref.simulated_lmmtest(side) for side in ("two.sided", "greater", "less")}
    for test in tests.values():
        np.testing.assert_allclose(
            test["coef"]["c1v2"], coef["cls1:trtB"] - coef["cls2:trtB"], atol=1e-14
        )
        np.testing.assert_allclose(
            test["coef"]["BvsA"], coef.filter(like=":trtB").mean(axis=1), atol=1e-14
        )
    np.testing.assert_allclose(tests["greater"]["p"] + tests["less"]["p"], 1.0, rtol=1e-12)
    smaller = np.minimum(tests["greater"]["p"], tests["less"]["p"])
    np.testing.assert_allclose(tests["two.sided"]["p"], 2 * smaller, rtol=1e-12)


def test_kang_is_1267_genes_by_1556_cells():
    cells, counts, genes = ref.kang()
    assert counts.shape == (1267, 1556)
    assert counts.nnz == 585_251
    assert len(genes) == len(set(genes)) == 1267
    assert cells.index.is_unique
    np.testing.assert_array_equal(counts.sum(axis=0), cells["libsize"])
    assert cells[["cluster_id", "sample_id", "group_id"]].nunique().tolist() == [5, 4, 2]
    assert "ISG15" in genes


def test_kang_fit_is_labelled_and_misses_seven_genes():
    fit = ref.kang_fit()
    assert list(fit["coef"].index) == ref.kang().genes
    assert fit["coef"].shape == fit["se"].shape == fit["t"].shape == fit["p"].shape == (1267, 11)
    assert fit["theta"].shape == fit["setheta"].shape == fit["dlogL"].shape == (1267, 2)
    assert (fit["dlogL"].abs().max(axis=1) > 1e-5).sum() == 7
