"""Draws and bootstrap of features with rows of their own: exact moments, and pattern by pattern."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import problems as pb
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats as distributions
from test_own_rows import FIXED, RANDOM, data

import flashmm as fm
from flashmm.inference.draws import FeatureStreams
from flashmm.inference.own_draws import OwnSampler
from flashmm.results.bootstrap import restricted


@lru_cache
def fitted(random, space="psd"):
    frame, Y, weights = data()
    model = fm.MultiLMM.from_formula(FIXED, RANDOM[random], frame, Y, weights=weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        return model.fit(parameter_space=space)


def weighted(problem, theta, rng):
    """Weights of two features, some zero, and theta of each with V positive definite."""
    weights = rng.lognormal(sigma=0.5, size=(2, problem.n))
    weights[:, ::5] = 0.0
    found = []
    for w in weights:
        Z = problem.Z * np.sqrt(w)[:, None]
        D = problem.D(theta)
        lowest = np.linalg.eigvalsh(Z @ D @ Z.T)[0] / theta[-1]
        own = theta.copy()
        own[:-1] *= min(1.0, -0.9 / lowest) if lowest < 0 else 1.0
        found.append(own)
    return weights, np.array(found)


@pytest.mark.parametrize("where", ["inside", "singular", "negative"])
@pytest.mark.parametrize(
    "kind", ["slope_and_crossed", "within_treatment", "correlated", "saturated"]
)
def test_draws_have_the_moments_of_the_model(kind, where):
    problem, rng = pb.PROBLEMS[kind], np.random.default_rng(1)
    weights, theta = weighted(problem, problem.theta(rng, where), rng)
    Y = np.zeros((2, problem.n))
    stats = fm.MultiLMM.from_arrays(
        Y, problem.X, problem.Z, components=problem.structure, weights=weights
    ).stats
    R = 10_000
    beta = np.stack([np.arange(1.0, problem.p + 1.0), np.zeros(problem.p)])
    streams = FeatureStreams.spawn(np.random.default_rng(2), 2)
    drawn = OwnSampler(stats).draw(theta, beta, R, streams)
    assert_array_equal(drawn.nobs, np.repeat((weights > 0).sum(axis=1), R))
    error = 5 / np.sqrt(R)
    for j, (w, own) in enumerate(zip(weights, theta, strict=True)):
        root, here = np.sqrt(w)[:, None], slice(j * R, (j + 1) * R)
        X, Z = root * problem.X, root * problem.Z
        W, there = np.column_stack([X, Z]), w > 0
        V = Z @ problem.D(own) @ Z.T + own[-1] * np.diag(there)
        mean = W.T @ X @ beta[j]
        WY = np.concatenate([drawn.sums.XY, drawn.sums.ZY])[:, here]
        WU, VW = WY - mean[:, None], V @ W
        XU, b = WU[: problem.p], beta[j]
        uu = drawn.sums.yy[here] - 2 * b @ XU - b @ X.T @ X @ b
        covariance = W.T @ VW
        size = np.sqrt(np.diag(covariance))
        size = np.where(size > 0, size, 1.0)
        standard = WU / size[:, None]
        assert_allclose(standard.mean(axis=1), 0.0, atol=error)
        expected = covariance / np.outer(size, size)
        assert_allclose(standard @ standard.T / R, expected, atol=1.5 * error)
        variance = 2 * np.trace(V @ V)
        assert abs(uu.mean() - np.trace(V)) < error * np.sqrt(variance)
        assert abs(uu.var() / variance - 1) < 6 * error
        squared = (WU**2 - np.diag(covariance)[:, None]) * (uu - np.trace(V))
        mixed = 2 * (VW * VW).sum(axis=0) / size**2
        scaled = squared.mean(axis=1) / size**2
        assert_allclose(scaled, mixed, atol=4 * error * np.sqrt(variance))


@pytest.mark.parametrize("random", ["one", "crossed", "slopes"])
def test_hypotheses_are_fitted_as_with_one_design(random):
    result = fitted(random)
    positions = np.arange(3)
    theta, beta = restricted(result.fitted, positions, "age = 0.5")
    assert_allclose(beta[:, list(result.params).index("age")], 0.5, rtol=1e-9)
    for j in positions:
        one = result.of_pattern(result.params.index[j])
        same, its = restricted(one.fitted, np.arange(1), "age = 0.5")
        scale = same[0, -1]
        assert_allclose(theta[j] / scale, same[0] / scale, atol=1e-4)
        assert_allclose(beta[j], its[0], rtol=1e-4, atol=1e-5 * np.sqrt(scale))


def test_replicates_depend_neither_on_batches_nor_on_company():
    frame, Y, weights = data()
    Y.iloc[5] -= 1e7
    model = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, weights=weights)
    whole, calls = model.fit(parameter_space="psd").bootstrap(3, rng=3), []
    small = model.fit(parameter_space="psd", memory=30_000)
    parts = small.bootstrap(3, rng=3, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) > 3
    scale = np.abs(whole.replicates).mean("replicate")
    assert_allclose(parts.replicates / scale, whole.replicates / scale, atol=1e-5)
    some = small.bootstrap(3, rng=3, features=["gene5", "gene2"]).replicates / scale
    assert_allclose(some, (whole.replicates / scale).sel(feature=some["feature"]), atol=1e-5)


def test_bootstrap_of_weighted_features_agrees_with_the_theory():
    result = fitted("one")
    names = ["gene0", "gene2", "gene5"]
    boot = result.bootstrap(300, rng=1, features=names, statistic=["age", "trt[T.b]", "Residual"])
    found = boot.se.to_numpy()
    expected = result.bse.loc[names, ["age", "trt[T.b]"]].to_numpy()
    assert_allclose(found[:, :2], expected, rtol=0.2)
    assert_allclose(found[:, 2], result.bse_theta.loc[names, "Residual"], rtol=0.25)
    tested = result.bootstrap_test("age", n=199, rng=1, features=names)
    p = result.t_test("age", df="kenward-roger").pvalue.loc[names, "age"].to_numpy()
    assert_allclose(tested["p"], np.maximum(p, 0.005), atol=0.13)
    without = result.bootstrap_test(component="subject", n=19, rng=1, features=names)
    one = result.of_pattern("gene0").bootstrap_test(component="subject", n=2, rng=1)
    assert_allclose(without["statistic"][0], one["statistic"][0], rtol=1e-6)


def test_missing_values_and_own_covariates():
    frame, Y, _ = data()
    rng = np.random.default_rng(7)
    Y = Y.mask(rng.random(Y.shape) < 0.1)
    dosage = rng.integers(0, 3, Y.shape).astype(float)
    model = fm.MultiLMM.from_formula(
        f"{FIXED} + dosage", RANDOM["one"], frame, Y, missing="feature",
        feature_covariates={"dosage": dosage},
    )  # fmt: skip
    result = model.fit(parameter_space="psd")
    drawn = result.draw(200, rng=1, features=["gene1", "gene3"])
    assert drawn.feature_names[[0, 200]].tolist() == ["gene1#0", "gene3#0"]
    assert set(drawn.nobs) == set(result.nobs[["gene1", "gene3"]])
    again = fm.MultiLMM(drawn).fit(parameter_space="psd")
    z = (again.params.iloc[:200] - result.params.loc["gene1"]) / again.bse.iloc[:200]
    assert distributions.kstest(z["dosage"], "norm").pvalue > 0.01
    test = result.bootstrap_test("dosage", n=9, rng=1)
    assert np.isfinite(test["p"]).all()


def test_features_without_a_distribution_have_no_replicates():
    frame, Y, weights = data()
    weights.iloc[1, 4:] = 0.0
    Y.iloc[2] = 3.0
    model = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, weights=weights)
    with pytest.warns(fm.ConvergenceWarning):
        result = model.fit(parameter_space="psd")
    boot = result.bootstrap(2, rng=1)
    assert np.isnan(boot.replicates[[1, 2]]).all()
    assert np.isfinite(boot.replicates[[0, 3, 4]]).all()
    assert result.draw(1, rng=1).m == 6
    with pytest.raises(fm.exceptions.InputError, match="'gene1' has no estimate"):
        result.draw(1, rng=1, features=["gene1"])


def test_the_exact_null_of_each_pattern():
    frame, Y, weights = data()
    weights.iloc[3] = weights.iloc[4]
    weights.iloc[1, 4:] = 0.0
    model = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, weights=weights)
    with pytest.warns(fm.ConvergenceWarning):
        result = model.fit(parameter_space="psd")
    found = result.variance_test(null="exact", n_sim=200, rng=1)
    assert found["feature"].to_numpy().tolist() == result.params.index.tolist()
    assert np.isnan(found["p"][1]).all()
    assert np.isfinite(found["p"]).all("component").to_numpy().sum() == 7
    asymptotic = result.variance_test()
    assert_allclose(found["statistic"], asymptotic["statistic"], atol=1e-6)
    some = result.variance_test(null="exact", n_sim=200, rng=1, features=["gene6", "gene3"])
    assert_allclose(some["p"], found["p"].sel(feature=["gene6", "gene3"]))


@pytest.mark.parametrize(("fixed", "random"), [(FIXED, None), ("~ 0", RANDOM["one"])])
def test_without_random_or_without_fixed_effects(fixed, random):
    frame, Y, weights = data()
    Y.iloc[5] -= 1e7
    result = fm.MultiLMM.from_formula(fixed, random, frame, Y, weights=weights).fit(
        parameter_space="psd"
    )
    boot = result.bootstrap(20, rng=1, features=["gene0", "gene1"])
    residual = boot.replicates.sel(statistic="Residual").mean("replicate")
    assert_allclose(residual / result.theta.loc[["gene0", "gene1"], "Residual"], 1.0, atol=0.2)
    if random is not None:
        assert np.isfinite(result.posterior_variances()["mean"]).all()
