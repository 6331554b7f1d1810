"""Residuals of each kind and their checks: lme4, statsmodels, scipy feature by feature."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats
from test_after_the_fit import DATA, LME4, MISSING, N, Y, fit

import flashmm as fm
from flashmm.exceptions import InputError

FORMULA = "~ A * B + x + (1 | g) + (1 | h)"
W = np.random.default_rng(2).uniform(0.5, 2.0, size=Y.shape)


@pytest.fixture(scope="module")
def weighted():
    return fit(FORMULA, weights="w")


@pytest.fixture(scope="module")
def plain():
    return fit("~ A + x + (1 + x | g)")


def test_kinds_equal_lme4(weighted):
    """Largest difference 1e-6 of a standard deviation."""
    expected = LME4["residuals"]
    for kind, key in (
        (None, "response"), ("conditional", "response"), ("pearson", "pearson"),
        ("standardized", "standardized"),
    ):  # fmt: skip
        options = {} if kind in (None, "conditional") else {"weights": "w"}
        found = weighted.resid(Y, DATA, kind=kind, **options).sel(feature="y")
        np.testing.assert_allclose(found, np.ravel(expected[key]), atol=2e-5)
    marginal = weighted.resid(Y, DATA, kind="marginal")
    np.testing.assert_allclose(marginal, weighted.resid(Y, DATA, level="population"))
    again = weighted.resid(Y, DATA, kind="pearson", weights=DATA["w"].to_numpy())
    np.testing.assert_allclose(again, weighted.resid(Y, DATA, kind="pearson", weights="w"))
    for kind in ("pearson", "standardized"):
        with pytest.raises(InputError, match="pass them again, `weights=`"):
            weighted.resid(Y, DATA, kind=kind)
    with pytest.raises(InputError, match="Unknown kind"):
        weighted.resid(Y, DATA, kind="deviance")


def test_standard_deviations_are_those_of_v(plain):
    G = pd.get_dummies(DATA["g"]).to_numpy(dtype=float)
    S = G * DATA["x"].to_numpy()[:, None]
    X = np.column_stack([np.ones(N), DATA["A"] == "a2", DATA["x"]]).astype(float)
    theta = plain.theta.loc["more"]
    D = (
        theta["g[Intercept]"] * G @ G.T + theta["g[x]"] * S @ S.T
        + theta["g[Intercept,x]"] * (G @ S.T + S @ G.T)
    )  # fmt: skip
    V = D + theta["Residual"] * np.eye(N)
    inverse = np.linalg.inv(V)
    C = np.linalg.inv(X.T @ inverse @ X)
    P = inverse - inverse @ X @ C @ X.T @ inverse
    y = Y.loc["more"].to_numpy()
    conditional = theta["Residual"] * P @ y
    sd = theta["Residual"] * np.sqrt(np.diag(P))
    found = plain.resid(Y, DATA, kind="standardized").sel(feature="more")
    np.testing.assert_allclose(found, conditional / sd, rtol=1e-6, atol=1e-8)
    marginal = y - X @ C @ X.T @ inverse @ y
    sd = np.sqrt(np.diag(V - X @ C @ X.T))
    found = plain.resid(Y, DATA, kind="standardized", level="population").sel(feature="more")
    np.testing.assert_allclose(found, marginal / sd, rtol=1e-6, atol=1e-8)


def test_of_least_squares_they_are_studentised():
    sm = pytest.importorskip("statsmodels.api")
    X = np.column_stack([np.ones(N), DATA["x"]])
    result = fm.MultiLMM.from_formula("~ x", None, DATA, Y, weights=W).fit()
    found = result.resid(Y, DATA, kind="standardized", weights=W)
    for i, name in enumerate(Y.index):
        wls = sm.WLS(Y.loc[name], X, W[i]).fit()
        H = X @ np.linalg.inv(X.T @ (W[i][:, None] * X)) @ X.T * W[i]
        expected = wls.resid_pearson / np.sqrt(1.0 - np.diag(H))
        np.testing.assert_allclose(found[i], expected, rtol=1e-8)
    labelled = pd.DataFrame(W, index=Y.index).iloc[::-1]
    again = result.resid(Y, DATA, kind="standardized", weights=labelled)
    np.testing.assert_allclose(again, found)
    matrices = fm.MultiLMM.from_arrays(Y.to_numpy(), X).fit()
    one = matrices.resid(Y.to_numpy(), X=X, kind="standardized")
    other = fm.MultiLMM.from_formula("~ x", None, DATA, Y).fit()
    np.testing.assert_allclose(one, other.resid(Y, DATA, kind="standardized"), rtol=1e-8)


def test_missing_values_and_loaded_results(plain, tmp_path):
    own = fit("~ A + x + (1 + x | g)", values=MISSING, missing="feature")
    found = own.resid(MISSING, DATA, kind="standardized")
    assert np.isnan(found[2, :3]).all()
    assert np.isfinite(found[2, 3:]).all()
    whole = plain.resid(Y, DATA, kind="standardized")
    np.testing.assert_allclose(found[:2], whole[:2], atol=1e-3)
    plain.save(tmp_path / "fit.nc")
    again = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    np.testing.assert_allclose(again.resid(Y, DATA, kind="standardized"), whole)
    one = plain.sel("more").resid(Y, DATA, kind="standardized")
    np.testing.assert_allclose(one, whole.sel(feature="more"))
    check = own.check_residuals(MISSING, DATA)
    assert check["n"].values.tolist() == [N, N, N - 3]


# ---- checks ----------------------------------------------------------------------------------


def jarque_bera(values):
    return stats.jarque_bera(values).pvalue


def test_checks_equal_scipy(plain):
    check = plain.check_residuals(Y, DATA)
    raw, standard = (plain.resid(Y, DATA, kind=kind) for kind in ("conditional", "standardized"))
    fitted, blup = plain.fittedvalues(DATA), plain.blup()
    for i, name in enumerate(Y.index):
        one = check.sel(feature=name)
        for suffix, values in (("", raw[i].values), ("_standardized", standard[i].values)):
            np.testing.assert_allclose(one[f"skewness{suffix}"], stats.skew(values), rtol=1e-6)
            np.testing.assert_allclose(one[f"kurtosis{suffix}"], stats.kurtosis(values), rtol=1e-6)
            np.testing.assert_allclose(one[f"normality_p{suffix}"], jarque_bera(values), rtol=1e-6)
        size = np.abs(standard[i].values)
        r, p = stats.pearsonr(size, fitted[i].values)
        np.testing.assert_allclose([one["level_correlation"], one["level_p"]], [r, p], rtol=1e-6)
        F = stats.f_oneway(*(size[DATA["g"] == g] for g in DATA["g"].unique()))
        np.testing.assert_allclose([one["levene"], one["levene_p"]], F, rtol=1e-6)
        assert int(one["n_outlying"]) == int((size > 3).sum())
        for effect, param in (("Intercept", "g[Intercept]"), ("x", "g[x]")):
            values = blup[i].values[blup["effect"].values == effect]
            own = one.sel(param=param)
            np.testing.assert_allclose(own["blup_skewness"], stats.skew(values), rtol=1e-6)
            np.testing.assert_allclose(own["blup_normality_p"], jarque_bera(values), rtol=1e-6)
    np.testing.assert_allclose(check["sample_mean_square"], (standard**2).mean("feature"))
    np.testing.assert_allclose(check["sample_outlying"], (np.abs(standard) > 3).mean("feature"))
    assert check.attrs["by"] == "g"


def test_checks_find_what_was_put_there(plain):
    rng = np.random.default_rng(5)
    values = rng.normal(size=(40, N))
    values[:, 7] += 6.0  # a bad sample
    values[0] = rng.exponential(size=N)  # skewed
    values[1] *= np.where(DATA["A"] == "a1", 1.0, 4.0)  # variance by group
    values[2] = 5.0 * DATA["x"] * (1.0 + 0.5 * rng.normal(size=N))  # heavy tails
    model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=DATA, Y=values)
    check = model.fit(parameter_space="psd").check_residuals(values, DATA, by="A")
    assert int(check["sample_mean_square"].argmax("sample")) == 7
    assert check["normality_p"][0] < 1e-3
    assert check["levene_p"].argmin("feature") == 1
    assert check["kurtosis"][2] > 1.0
    labels = pd.Series(DATA["A"].to_numpy(), index=DATA.index)
    again = model.fit(parameter_space="psd").check_residuals(values, DATA, by=labels[::-1])
    np.testing.assert_allclose(again["levene"], check["levene"])


def test_checks_read_every_kind_of_y(plain):
    expected = plain.check_residuals(Y, DATA)
    order = [2, 0]
    some = plain.check_residuals(Y.iloc[::-1], DATA, features=[Y.index[i] for i in order])
    np.testing.assert_allclose(some["levene"], expected["levene"][order])
    counts = np.random.default_rng(1).poisson(0.7, size=(6, N)).astype(float)
    model = fm.MultiLMM.from_formula(
        "~ x + (1 | g)", data=DATA, Y=sp.csr_array(counts), transform="log1p"
    )
    result = model.fit(parameter_space="psd")
    pieces = [(np.arange(N)[i : i + 40], counts[:, i : i + 40]) for i in range(0, N, 40)]
    one = result.check_residuals(sp.csr_array(counts), DATA, transform="log1p")
    two = result.check_residuals(iter(pieces), DATA, transform="log1p")
    for name in ("skewness", "levene", "sample_mean_square", "level_p"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-8)


def test_checks_elsewhere(weighted):
    least = fm.MultiLMM.from_formula("~ x", None, DATA, Y).fit()
    check = least.check_residuals(Y, DATA)
    assert "levene" not in check
    assert check["blup_skewness"].shape == (3, 0)
    with pytest.raises(InputError, match="weights="):
        weighted.check_residuals(Y, DATA)
    check = weighted.check_residuals(Y, DATA, weights="w")
    pearson = weighted.resid(Y, DATA, kind="pearson", weights="w")
    np.testing.assert_allclose(check["skewness"], stats.skew(pearson, axis=1), rtol=1e-6)
    with pytest.raises(InputError, match="no column of `data`"):
        least.check_residuals(Y, DATA, by="G")
    with pytest.raises(InputError, match="96 samples"):
        least.check_residuals(Y, DATA, by=[1, 2])
    values = pd.concat([Y, pd.DataFrame(3.0, index=["flat"], columns=Y.columns)])
    with pytest.warns(fm.ConvergenceWarning):
        result = fm.MultiLMM.from_formula("~ x + (1 | g)", data=DATA, Y=values).fit()
    flat = result.check_residuals(values, DATA)
    assert np.isnan(flat["skewness"].sel(feature="flat"))
    assert np.isfinite(flat["sample_mean_square"]).all()


def test_panels(plain):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    axes = np.ravel(plain.plot_residuals("more", Y, DATA))
    assert len(axes) == 4
    assert axes[0].get_title() == "more"
    shown = np.asarray(axes[0].collections[0].get_offsets())
    np.testing.assert_allclose(shown[:, 1], plain.resid(Y, DATA).sel(feature="more"))
    least = fm.MultiLMM.from_formula("~ x", None, DATA, Y).fit()
    _, given = plt.subplots(1, 4)
    assert least.plot_residuals("y", Y, DATA, axes=given) is given
    plt.close("all")
