"""Cluster-robust tests: equal to clubSandwich's, and right where the model is not."""

from __future__ import annotations

import json
import warnings
from functools import cache

import numpy as np
import pandas as pd
import pytest
from references import REFERENCE

import flashmm as fm

GROUPS = REFERENCE / "groups"
CASES = {"sleepstudy_unbalanced": ("Reaction", "Subject"), "cluster": ("y", "id")}
KINDS = ["CR0", "CR1", "CR1S", "CR2", "CR3"]


@cache
def fitted(name):
    """The reference as one feature beside others, in other units and far from zero."""
    y, cluster = CASES[name]
    reference = json.loads((GROUPS / "cluster_robust.json").read_text())[name]
    data = pd.read_csv(GROUPS / f"{name}.csv", dtype={cluster: str})
    values = data[y].to_numpy(dtype=float)
    Y = np.stack([values, 1e3 * values, 1e8 * values.std() + values, np.ones_like(values)])
    formula = "~" + reference["formula"].split("~")[1]
    model = fm.MultiLMM.from_formula(formula, data=data, Y=Y, sums_by=cluster)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)  # a constant feature
        return model.fit(parameter_space="psd"), reference, cluster


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_clubsandwich(name, kind):
    """Largest relative differences: 7e-9 of standard errors, 4e-9 of df, 2e-7 of p-values."""
    result, reference, cluster = fitted(name)
    tests = result.t_test(cov=kind, cluster=cluster)
    for column, wanted in (("se", "se"), ("df", "df"), ("t", "t"), ("p", "p")):
        found = tests.ds[column].to_numpy()
        np.testing.assert_allclose(found[0], reference[kind][wanted], rtol=1e-5)
        factor = 1e3 if column == "se" else 1.0
        np.testing.assert_allclose(found[1], found[0] * factor, rtol=1e-5)
        free = slice(1, None)  # all but the intercept, which moved
        np.testing.assert_allclose(found[2, free], found[0, free], rtol=1e-4)
        assert np.isnan(found[3]).all()
    V = result.cov_params(cov=kind).to_numpy()[0]
    np.testing.assert_allclose(V, reference[kind]["V"], rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_htz(name):
    """The joint test of all coefficients but the intercept, in any basis of the hypothesis."""
    result, reference, _ = fitted(name)
    names = list(result.stats.coef_names)[1:]
    wanted = reference["HTZ"]
    found = result.f_test(names, cov="CR2").ds
    for column, key in (("F", "F"), ("df_num", "df_num"), ("df_denom", "df_denom"), ("p", "p")):
        np.testing.assert_allclose(found[column][0], wanted[key], rtol=1e-5)
    if len(names) > 1:
        again = result.f_test([f"{names[0]} - 3 * {names[1]}", names[1]], cov="CR2").ds
        np.testing.assert_allclose(again["F"][:2], found["F"][:2], rtol=1e-7)
        np.testing.assert_allclose(again["df_denom"][:2], found["df_denom"][:2], rtol=1e-7)
        alone, t = result.anova(cov="CR2"), result.t_test(names, cov="CR2")
        np.testing.assert_allclose(alone.fvalue, t.tvalue**2, rtol=1e-7)
        np.testing.assert_allclose(alone.df_denom, t.df, rtol=1e-7)


def by_hand(y, X, V, codes, kind, n):
    """The covariance from the n x n matrices, feature by feature and cluster by cluster."""
    W = np.linalg.inv(V)
    C = np.linalg.inv(X.T @ W @ X)
    e = y - X @ (C @ X.T @ W @ y)
    meat = np.zeros_like(C)
    k = codes.max() + 1
    for i in range(k):
        here = codes == i
        Xi, Vi = X[here], V[np.ix_(here, here)]
        Wi = np.linalg.inv(Vi)
        H = Xi @ C @ Xi.T @ Wi
        A = np.eye(here.sum())
        if kind == "CR3":
            A = np.linalg.inv(A - H)
        if kind == "CR2":
            D = np.linalg.cholesky(Vi).T
            values, vectors = np.linalg.eigh(D @ (Vi - Xi @ C @ Xi.T) @ D.T)
            A = D.T @ (vectors / np.sqrt(values)) @ vectors.T @ D
        score = Xi.T @ Wi @ A @ e[here]
        meat += np.outer(score, score)
    factor = {"CR1": k / (k - 1), "CR1S": k * (n - 1) / ((k - 1) * (n - X.shape[1]))}
    return factor.get(kind, 1.0) * C @ meat @ C


@cache
def crossed():
    rng = np.random.default_rng(5)
    n = 72
    data = pd.DataFrame(
        {
            "centre": np.repeat(list("pqrstu"), n // 6),
            "g": np.repeat([f"s{i:02d}" for i in range(18)], n // 18),
            "x": rng.normal(size=n),
        }
    )
    Y = rng.normal(size=(3, n)) + rng.normal(size=(3, 18))[:, np.repeat(np.arange(18), 4)]
    return data, Y


@pytest.mark.parametrize("kind", KINDS)
def test_nested_slopes_and_coarser_clusters_against_the_matrices_themselves(kind):
    data, Y = crossed()
    model = fm.MultiLMM.from_formula(
        "~ x + (1 + x | centre) + (1 | g)", data=data, Y=Y, sums_by="g"
    )
    result = model.fit(parameter_space="psd")
    found = result.cov_params(cov=kind, cluster="centre").to_numpy()
    X = np.column_stack([np.ones(len(data)), data["x"]])
    names = list(result.theta.columns)
    same = data["centre"].to_numpy()[:, None] == data["centre"].to_numpy()
    own = data["g"].to_numpy()[:, None] == data["g"].to_numpy()
    codes = data["centre"].factorize()[0]
    x = data["x"].to_numpy()
    for j in range(3):
        theta = dict(zip(names, result.theta.iloc[j], strict=True))
        V = theta["Residual"] * np.eye(len(x)) + theta["g"] * own
        V += same * (
            theta["centre[Intercept]"]
            + theta["centre[x]"] * np.outer(x, x)
            + theta["centre[Intercept,x]"] * (x[:, None] + x)
        )
        np.testing.assert_allclose(found[j], by_hand(Y[j], X, V, codes, kind, len(x)), rtol=1e-6)


def test_what_is_refused():
    data, Y = crossed()
    data = data.assign(item=np.tile(list("abcd"), 18))
    model = fm.MultiLMM.from_formula("~ x + (1 | g) + (1 | item)", data=data, Y=Y, sums_by="g")
    result = model.fit(parameter_space="psd")
    for options, message in [
        ({"cov": "CR2"}, "independent of each other"),
        ({"cov": "CR4"}, "CR2|CR3"),
        ({"cluster": "g"}, "cluster-robust"),
        ({"cov": "CR2", "df": "kenward-roger"}, "leave out"),
        ({"cov": "CR2", "moderated": True}, "moderated"),
        ({"cov": "CR2", "cluster": "item"}, "several levels"),
    ]:
        with pytest.raises(fm.InputError, match=message):
            result.t_test("x", **options)
    with pytest.raises(fm.InputError, match="use_f"):
        result.wald_test("x", cov="CR2")
    with pytest.raises(fm.InputError, match="one"):
        fitted("cluster")[0].t_test(
            cov="CR2", cluster=dict.fromkeys(fitted("cluster")[0].stats.groups.labels, "all")
        )


def test_limits_tables_and_one_feature_follow():
    result, _, _ = fitted("cluster")
    tests = result.t_test(cov="CR2")
    limits = result.conf_int(cov="CR2")
    np.testing.assert_allclose(limits, tests.conf_int(), rtol=1e-12)
    assert tests.df_method == "satterthwaite, CR2 by id"
    table = result.top_table("x", cov="CR2", cluster="id", n=1)
    assert table["p"].iloc[0] == pytest.approx(float(tests.pvalue["x"].min()))
    frame = result.to_frame(cov="CR2")
    assert frame.loc[(0, "x"), "se"] == pytest.approx(float(tests.sd["x"].iloc[0]))
    means = result.marginal_means("trt", cov="CR2")
    assert np.isfinite(means.sd.iloc[0]).all()
    with pytest.raises(fm.InputError, match="sums_by"):
        fm.MultiLMMResults(result.ds, result.stats.ungrouped(), result.options).t_test(cov="CR2")


def test_calibration_where_groups_differ_in_their_variance():
    """Half of the groups vary eight times as much: the model's test is off, CR2's is right.

    Rates at 0.05 of 2,000 features: model 0.091, CR0 0.094, CR2 0.052.
    """
    rng = np.random.default_rng(7)
    k, each, m = 24, 6, 2000
    g = np.repeat(np.arange(k), each)
    trt = (np.arange(k) < 8).astype(float)
    data = pd.DataFrame({"trt": trt[g], "g": g.astype(str)})
    sd = np.where(trt > 0, 3.0, 1.0)
    Y = sd[g] * (rng.normal(size=(m, k))[:, g] + rng.normal(size=(m, k * each)))
    model = fm.MultiLMM.from_formula("~ trt + (1 | g)", data=data, Y=Y, sums_by="g")
    result = model.fit(parameter_space="psd")
    rate = {
        cov: float((result.t_test("trt", cov=cov).pvalue < 0.05).to_numpy().mean())
        for cov in ("model", "CR0", "CR2")
    }
    assert rate["model"] > 0.08
    assert rate["CR0"] > 0.06
    assert 0.04 < rate["CR2"] < 0.06
