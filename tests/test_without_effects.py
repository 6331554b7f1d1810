"""Models without random effects (least squares, moderated as limma) and without fixed effects."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from references import REFERENCE
from scipy import stats

import flashmm as fm
from flashmm.exceptions import InputError

sm = pytest.importorskip("statsmodels.api")

LIMMA = json.loads((REFERENCE / "after" / "limma.json").read_text())
SAMPLES = pd.DataFrame(LIMMA["samples"])
Y = pd.DataFrame(np.array(LIMMA["Y"], dtype=float), index=[f"f{i}" for i in range(1, 13)])
W, w = np.array(LIMMA["W"]), np.array(LIMMA["w"])
N = pd.DataFrame(np.array(LIMMA["N"], dtype=float), index=Y.index)
X = np.column_stack(
    [np.ones(16), SAMPLES["group"] == "b", SAMPLES["group"] == "c", SAMPLES["x"]]
).astype(float)
KINDS = {
    "plain": (Y, {}),
    "samples_weighted": (Y, {"weights": w}),
    "weighted": (Y, {"weights": W}),
    "missing": (N, {"missing": "feature"}),
}


def model(kind="plain", fixed="~ group + x"):
    values, options = KINDS[kind]
    return fm.MultiLMM.from_formula(fixed, None, SAMPLES, values, **options)


@pytest.fixture(scope="module", params=list(KINDS))
def fitted(request):
    return request.param, model(request.param).fit()


# ---- limma -------------------------------------------------------------------------------


def test_lmfit(fitted):
    """Largest relative difference 1e-13, all kinds."""
    kind, result = fitted
    limma = LIMMA[kind]
    assert result.theta.columns.tolist() == ["Residual"]
    np.testing.assert_allclose(result.params, limma["beta"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.bse, limma["se"], rtol=1e-9)
    np.testing.assert_allclose(np.sqrt(result.theta["Residual"]), limma["sigma"], rtol=1e-9)
    tests = result.t_test()
    df = np.broadcast_to(np.array(limma["df"])[:, None], tests.df.shape)
    for method in ("satterthwaite", "kenward-roger", "residual"):
        np.testing.assert_allclose(result.t_test(df=method).df, df, rtol=1e-9)
        np.testing.assert_allclose(result.t_test(df=method).sd, limma["se"], rtol=1e-9)
    assert (result.status == "converged").all()


def test_ebayes(fitted):
    """As limma 3.54, which takes moments where degrees of freedom differ too."""
    kind, result = fitted
    limma = LIMMA[kind]
    table = result.moderate(legacy=True)
    np.testing.assert_allclose(table["df_prior"], limma["df_prior"], rtol=1e-6)
    np.testing.assert_allclose(table["sigma2_prior"], limma["s2_prior"], rtol=1e-6)
    np.testing.assert_allclose(table["sigma2_moderated"], limma["s2_post"], rtol=1e-6)
    tests = result.t_test(moderated=table)
    np.testing.assert_allclose(tests.tvalue, limma["t"], rtol=1e-6)
    np.testing.assert_allclose(tests.df.iloc[:, 0], limma["df_total"], rtol=1e-6)
    np.testing.assert_allclose(tests.pvalue, limma["p"], rtol=1e-5)
    joint = result.f_test(moderated=table)
    if kind in ("plain", "samples_weighted"):
        np.testing.assert_allclose(joint.fvalue.iloc[:, 0], limma["F"], rtol=1e-6)
        np.testing.assert_allclose(joint.pvalue.iloc[:, 0], limma["F_p"], rtol=1e-5)
    else:  # where designs differ limma takes the correlations of one for all; these are exact
        values, options = KINDS[kind]
        weights = options.get("weights", np.ones(values.shape)) * values.notna()
        XX = np.einsum("si,fs,sj->fij", X, weights, X)
        beta, s2 = np.array(limma["beta"]), np.array(limma["s2_post"])
        exact = np.einsum("fi,fij,fj->f", beta, XX, beta) / 4 / s2
        np.testing.assert_allclose(joint.fvalue.iloc[:, 0], exact, rtol=1e-6)
    top = result.top_table("x", moderated=table, n=3)
    assert top["p"].tolist() == sorted(np.array(limma["p"])[:, 3])[:3] or np.allclose(
        top["p"], np.sort(np.array(limma["p"])[:, 3])[:3], rtol=1e-5
    )


def test_without_ratios_integrated_tests_are_the_moderated_ones():
    result = model().fit()
    tests, limma = result.t_test(df="integrated"), LIMMA["plain"]
    np.testing.assert_allclose(tests.pvalue, limma["p"], rtol=1e-5)
    np.testing.assert_allclose(tests.df.iloc[:, 0], limma["df_total"], rtol=1e-5)
    F = result.f_test(df="integrated")
    np.testing.assert_allclose(F.pvalue.iloc[:, 0], limma["F_p"], rtol=1e-5)


# ---- statsmodels -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_statsmodels(kind):
    result, ml = model(kind).fit(), model(kind).fit("ML")
    values, options = KINDS[kind]
    weights = np.broadcast_to(options.get("weights", np.ones(16)), values.shape)
    anova, means = result.anova(), result.marginal_means("group", weights="proportional")
    for i, name in enumerate(values.index):
        there = values.loc[name].notna().to_numpy()
        wls = sm.WLS(values.loc[name][there], X[there], weights[i][there]).fit()
        np.testing.assert_allclose(result.params.loc[name], wls.params, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(result.pvalues.loc[name], wls.pvalues, rtol=1e-8)
        np.testing.assert_allclose(result.conf_int().sel(feature=name), wls.conf_int(), rtol=1e-8)
        np.testing.assert_allclose(result.cov_params([name])[0], wls.cov_params(), rtol=1e-8)
        np.testing.assert_allclose(ml.llf[name], wls.llf, rtol=1e-9)
        # One more parameter than statsmodels counts: the residual variance, as lme4 does.
        np.testing.assert_allclose(ml.aic[name], wls.aic + 2.0, rtol=1e-9)
        np.testing.assert_allclose(ml.params.loc[name], wls.params, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            ml.theta.loc[name], wls.scale * wls.df_resid / there.sum(), rtol=1e-9
        )
        joint = wls.f_test(np.eye(4)[1:3])
        np.testing.assert_allclose(anova.fvalue.loc[name, "group"], joint.fvalue, rtol=1e-8)
        np.testing.assert_allclose(anova.pvalue.loc[name, "group"], joint.pvalue, rtol=1e-8)
    assert means.effect.shape == (12, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_restricted_likelihood_is_that_of_error_contrasts(kind):
    result = model(kind).fit()
    values, options = KINDS[kind]
    weights = np.broadcast_to(options.get("weights", np.ones(16)), values.shape)
    for i in (0, 1, 5):
        there = values.iloc[i].notna().to_numpy()
        design, own = X[there], weights[i][there]
        wls = sm.WLS(values.iloc[i][there], design, own).fit()
        df = there.sum() - 4
        logdet = np.linalg.slogdet(design.T @ (own[:, None] * design))[1]
        expected = -0.5 * (df * np.log(2 * np.pi * wls.scale) + logdet + df)
        expected += 0.5 * np.log(own).sum()
        np.testing.assert_allclose(result.llf.iloc[i], expected, rtol=1e-10)


def test_predictions_and_residuals(fitted):
    kind, result = fitted
    values, options = KINDS[kind]
    table = result.predict(SAMPLES, interval="prediction", df="residual")
    conditional = result.predict(SAMPLES, level="conditional")
    residuals = result.resid(values, SAMPLES)
    for i in (0, 4):
        there = values.iloc[i].notna().to_numpy()
        weights = np.broadcast_to(options.get("weights", np.ones(16)), values.shape)[i]
        wls = sm.WLS(values.iloc[i][there], X[there], weights[there]).fit()
        frame = wls.get_prediction(X).summary_frame()
        np.testing.assert_allclose(table["prediction"][i], frame["mean"], rtol=1e-9)
        np.testing.assert_allclose(table["lower"][i], frame["obs_ci_lower"], rtol=1e-8)
        np.testing.assert_allclose(conditional[i], frame["mean"], rtol=1e-9)
        np.testing.assert_allclose(residuals[i][there], wls.resid, rtol=1e-8, atol=1e-12)


# ---- what asks for random effects -----------------------------------------------------------


def test_methods_of_random_effects_are_empty_or_refuse():
    result = model().fit(parameter_space="psd")
    assert result.blup().shape == (12, 0)
    assert result.random_effects == {}
    assert result.icc()["component"].values.tolist() == ["Residual"]
    np.testing.assert_allclose(result.icc()["estimate"], 1.0)
    assert list(result.variance_components()["param"].values) == ["Residual"]
    with pytest.raises(InputError, match="no random effects"):
        result.variance_test()
    with pytest.raises(InputError, match="no random effects"):
        result.variance_test(null="exact")
    for engine in ("spectral", "blocked", "nested", "bordered"):
        with pytest.raises(InputError, match=f"engine='{engine}' needs"):
            model().fit(engine=engine)
    one = result.sel("f3")
    assert one.random_effects == {}
    assert one.ranef() == {}
    assert one.cov_re.shape == (0, 0)
    assert "f3" in str(one.summary())
    assert "none" in str(result.summary()).splitlines()[3]
    assert "median ratio none" in repr(result.ratio_prior)
    shares = result.variance_fractions()
    np.testing.assert_allclose(shares["estimate"].sum("component"), 1.0)
    limits = result.conf_int_theta(method="profile")
    assert bool(((limits[..., 0] < result.theta) & (limits[..., 1] > result.theta)).all())


def test_profile_limits_of_the_residual_variance():
    result = model().fit("ML")
    limits = result.conf_int_theta(method="profile")[0, 0]
    s2, n, fall = result.theta.iloc[0, 0], 16, stats.chi2.ppf(0.95, 1)
    for limit in limits.values:
        np.testing.assert_allclose(n * (np.log(limit / s2) + s2 / limit - 1.0), fall, rtol=1e-5)


def test_round_trips(tmp_path, fitted):
    kind, result = fitted
    result.save(tmp_path / "fit.nc")
    again = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    pd.testing.assert_frame_equal(again.t_test().pvalue, result.t_test().pvalue)
    np.testing.assert_allclose(again.predict(SAMPLES), result.predict(SAMPLES))
    half = SAMPLES.index % 2 == 0
    values, options = KINDS[kind]
    parts = []
    for some in (half, ~half):
        own = {k: (v[..., some] if k == "weights" else v) for k, v in options.items()}
        part = fm.MultiLMM.from_formula("~ x", None, SAMPLES[some], values.loc[:, some], **own)
        parts.append(part.stats)
    whole = fm.MultiLMM.from_formula("~ x", None, SAMPLES, values, **options)
    added = fm.MultiLMM.from_summary_stats(parts[0] + parts[1])
    np.testing.assert_allclose(added.fit().bse, whole.fit().bse, rtol=1e-9)


@pytest.mark.parametrize("random", [None, [], {}, "", "~ 0"])
def test_ways_to_say_it(random):
    result = fm.MultiLMM.from_formula("~ group + x", random, SAMPLES, Y).fit()
    pd.testing.assert_frame_equal(result.params, model().fit().params)


def test_from_matrices_and_sums_and_by_dropping():
    expected = model().fit()
    for made in (
        fm.MultiLMM.from_arrays(Y, X),
        fm.MultiLMM.from_arrays(Y, X, None),
        fm.MultiLMM.from_arrays(Y, X, np.zeros((16, 0))),
        fm.MultiLMM.from_arrays(Y.to_numpy(), pd.DataFrame(X), None),
        fm.MultiLMM.from_summary_stats(expected.stats),
        fm.MultiLMM.from_formula("~ x + group + (1 | group:x)", None, SAMPLES, Y).drop(
            random="group:x"
        ),
    ):
        np.testing.assert_allclose(np.sort(made.fit().bse), np.sort(expected.bse), rtol=1e-9)
    values = Y.to_numpy()
    sums = {
        "n": 16, "XX": X.T @ X, "XY": X.T @ values.T, "ZX": np.zeros((0, 4)),
        "ZY": np.zeros((0, 12)), "ZZ": np.zeros((0, 0)), "yy": (values**2).sum(axis=1),
    }  # fmt: skip
    result = fm.MultiLMM.from_summary_stats(sums).fit()
    np.testing.assert_allclose(result.bse, expected.bse, rtol=1e-9)


def test_a_model_and_its_model_without_random_effects():
    """The likelihood-ratio test of all random effects, by two fits and by one."""
    data = SAMPLES.assign(g=np.tile(list("pqrs"), 4))
    big = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y)
    test = big.fit(parameter_space="psd", epsilon=1e-8)
    small = big.drop(random="g").fit(parameter_space="psd")
    gain = 2.0 * (test.llf - small.llf)
    np.testing.assert_allclose(test.variance_test()["statistic"][:, 0], gain, atol=1e-6)


def test_degenerate_features_do_not_stop_the_others():
    values = Y.copy()
    values.loc["f2"] = 3.0
    values.loc["f5"] = 1.0 + 2.0 * SAMPLES["x"].to_numpy()
    with pytest.warns(fm.ConvergenceWarning):
        result = fm.MultiLMM.from_formula("~ group + x", None, SAMPLES, values).fit()
    expected = model().fit()
    left = [name for name in Y.index if name not in ("f2", "f5")]
    pd.testing.assert_frame_equal(result.params.loc[left], expected.params.loc[left])
    assert (result.status[["f2", "f5"]] != "converged").all()
    assert result.t_test("x").pvalue.loc[["f2", "f5"]].isna().all().all()


def test_bootstrap_and_draw():
    result = model().fit()
    again = result.bootstrap(200, statistic="Residual", rng=1)
    assert again is not None
    drawn = fm.MultiLMM.from_summary_stats(result.draw(400, rng=1, features=["f1"])).fit()
    s2 = drawn.theta["Residual"] * 12 / result.theta.loc["f1", "Residual"]
    assert abs(s2.mean() - 12) < 1.0  # a chi-square on 12, its standard error 0.24


# ---- without fixed effects -----------------------------------------------------------------


GROUPS = pd.DataFrame(
    {"g": np.repeat([f"g{i}" for i in range(8)], 6), "h": np.tile(list("uvwxyz"), 8)}
).assign(x=np.random.default_rng(4).normal(size=48))
CENTRED = (
    np.random.default_rng(3).normal(size=(4, 48))
    + np.random.default_rng(5).normal(size=(4, 8))[:, np.arange(48) // 6]
)


@pytest.mark.parametrize("random", ["(1 | g)", "(1 | g) + (1 | h)", "(1 + x | g)", "(x || g)"])
@pytest.mark.parametrize("engine", ["auto", "general"])
def test_without_fixed_effects(random, engine):
    """REML and ML are the same; the likelihood is that of V itself."""
    made = fm.MultiLMM.from_formula("~ 0", random, GROUPS, CENTRED)
    options = {"engine": engine, "parameter_space": "psd", "epsilon": 1e-8}
    reml, ml = made.fit(**options), made.fit("ML", **options)
    np.testing.assert_allclose(reml.theta, ml.theta, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(reml.llf, ml.llf, rtol=1e-9)
    G = pd.get_dummies(GROUPS["g"]).to_numpy(dtype=float)
    H = pd.get_dummies(GROUPS["h"]).to_numpy(dtype=float)
    S = G * GROUPS["x"].to_numpy()[:, None]
    theta = reml.theta.iloc[0]
    V = theta["Residual"] * np.eye(48)
    for name, part in (
        ("g", G @ G.T), ("h", H @ H.T), ("g[Intercept]", G @ G.T), ("g[x]", S @ S.T),
        ("g[Intercept,x]", G @ S.T + S @ G.T),
    ):  # fmt: skip
        V += theta.get(name, 0.0) * part
    expected = stats.multivariate_normal(np.zeros(48), V).logpdf(CENTRED[0])
    np.testing.assert_allclose(reml.llf.iloc[0], expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["plain", "missing", "weights"])
def test_methods_without_fixed_effects(kind, tmp_path):
    values, options = CENTRED.copy(), {}
    if kind == "missing":
        values[0, :3] = values[1, 7:9] = np.nan
        options = {"missing": "feature"}
    if kind == "weights":
        options = {"weights": np.random.default_rng(0).uniform(0.5, 2.0, (4, 48))}
    made = fm.MultiLMM.from_formula("~ 0", "(1 | g)", GROUPS, values, **options)
    result = made.fit(parameter_space="psd")
    assert result.params.shape == (4, 0)
    assert result.t_test().effect.shape == (4, 0)
    assert result.conf_int().shape == (4, 0, 2)
    assert result.anova().fvalue.shape == (4, 0)
    with pytest.raises(InputError, match="no fixed effects"):
        result.f_test()
    with pytest.raises(InputError):
        result.t_test("x")
    assert "Residual" in str(result.summary())
    assert np.isfinite(result.blup()).all()
    assert (result.predict(GROUPS) == 0.0).all()
    assert np.isfinite(result.predict(GROUPS, level="conditional", se=True)["se"]).all()
    residuals = result.resid(values, GROUPS)
    np.testing.assert_allclose(
        residuals + result.fittedvalues(GROUPS), values, rtol=1e-12, atol=1e-12
    )
    result.save(tmp_path / "fit.nc")
    assert fm.MultiLMMResults.load(tmp_path / "fit.nc").blup().equals(result.blup())
    assert result.moderate()["sigma2_moderated"].notnull().all()


def test_dropping_every_fixed_effect():
    made = fm.MultiLMM.from_formula("~ x + (1 | g)", data=GROUPS, Y=CENTRED)
    fresh = fm.MultiLMM.from_formula("~ 0", "(1 | g)", GROUPS, CENTRED).fit("ML")
    small = made.drop(fixed=["Intercept", "x"]).fit("ML")
    np.testing.assert_allclose(small.llf, fresh.llf, rtol=1e-9)


def test_an_offset_and_nothing_else():
    made = fm.MultiLMM.from_formula("~ 0 + offset(x) + (1 | g)", data=GROUPS, Y=CENTRED)
    shifted = CENTRED - GROUPS["x"].to_numpy()
    fresh = fm.MultiLMM.from_formula("~ 0", "(1 | g)", GROUPS, shifted).fit()
    np.testing.assert_allclose(made.fit().llf, fresh.llf, rtol=1e-9)


def test_nothing_at_all():
    result = fm.MultiLMM.from_formula("~ 0", None, GROUPS, CENTRED).fit()
    np.testing.assert_allclose(result.theta["Residual"], (CENTRED**2).mean(axis=1))


def test_a_projection_leaves_the_statistics_alone():
    """Indices of Z'Z that both share and one sorts would put the entries of the other elsewhere."""
    made = fm.MultiLMM.from_formula("~ x", "(1 | g) + (1 | h)", GROUPS, CENTRED)
    ZZ = made.stats.ZZ
    turned = ZZ.indices.copy()
    for start, stop in zip(ZZ.indptr[:-1], ZZ.indptr[1:], strict=True):
        order = slice(start, stop)
        ZZ.data[order], turned[order] = ZZ.data[order][::-1], ZZ.indices[order][::-1]
    ZZ.indices[:] = turned
    ZZ.has_sorted_indices = False
    before = ZZ.toarray()
    first = made.fit(engine="general").llf
    made.projection.ZZ.sort_indices()
    np.testing.assert_array_equal(made.stats.ZZ.toarray(), before)
    again = fm.MultiLMM.from_summary_stats(made.stats).fit(engine="blocked").llf
    np.testing.assert_allclose(again, first, rtol=1e-8)
