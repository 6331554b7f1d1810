"""The parametric bootstrap: draws against exact moments and against y itself, tests, power."""

from __future__ import annotations

import numpy as np
import pandas as pd
import problems as pb
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats as distributions
from small_fit import FEATURES, model

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.inference.draws import FeatureStreams, Sampler
from flashmm.results.bootstrap import restricted


def moments(problem, theta):
    """Covariance of W'u, mean and variance of u'u, and cov(u'u, (w'u)^2) for each column w."""
    W, V = np.column_stack([problem.X, problem.Z]), problem.V(theta)
    VW = V @ W
    return W.T @ VW, np.trace(V), 2 * np.trace(V @ V), 2 * (VW * VW).sum(axis=0)


@pytest.mark.parametrize("where", ["inside", "singular", "negative"])
@pytest.mark.parametrize("kind", ["slope_and_crossed", "within_treatment", "saturated", "dense"])
def test_draws_have_the_moments_of_the_model(kind, where):
    problem = pb.PROBLEMS[kind]
    theta = problem.theta(np.random.default_rng(1), where)
    stats = problem.stats(np.zeros((1, problem.n)))
    R = 40_000
    streams = FeatureStreams.spawn(np.random.default_rng(2), 1)
    beta = np.arange(1.0, problem.p + 1.0)[None, :]
    drawn = Sampler(stats).draw(theta[None, :], beta, R, streams)
    # u = y - X beta, from the drawn sums themselves.
    XX, ZX = stats.XX, stats.ZX
    XU, ZU = drawn.XY - (XX @ beta.T), drawn.ZY - (ZX @ beta.T)
    uu = drawn.yy - 2 * (beta @ XU)[0] - (beta @ XX @ beta.T)[0, 0]
    WU = np.concatenate([XU, ZU])
    covariance, mean, variance, mixed = moments(problem, theta)
    size = np.sqrt(np.diag(covariance))
    standard = WU / size[:, None]
    error = 5 / np.sqrt(R)
    assert_allclose(standard.mean(axis=1), 0.0, atol=error)
    found = standard @ standard.T / R
    assert_allclose(found, covariance / np.outer(size, size), atol=1.5 * error)
    assert abs(uu.mean() - mean) < error * np.sqrt(variance)
    assert abs(uu.var() / variance - 1) < 6 * error
    assert_allclose((WU * uu).mean(axis=1) / size, 0.0, atol=error * np.sqrt(variance + mean**2))
    scaled = ((WU**2 - np.diag(covariance)[:, None]) * (uu - mean)).mean(axis=1) / size**2
    assert_allclose(scaled, mixed / size**2, atol=4 * error * np.sqrt(variance))


def test_fits_of_draws_are_distributed_like_fits_of_data():
    problem = pb.PROBLEMS["crossed"]
    theta = np.array([1.0, 0.5, 1.0])
    rng = np.random.default_rng(3)
    Y = problem.simulate(theta, 1000, rng)
    stats = problem.stats(Y)
    streams = FeatureStreams.spawn(np.random.default_rng(4), 1)
    drawn = Sampler(stats).draw(theta[None, :], np.zeros((1, problem.p)), 1000, streams)
    real, new = (fm.MultiLMM(s).fit(parameter_space="psd") for s in (stats, drawn))
    for column in real.theta:
        p = distributions.ks_2samp(real.theta[column], new.theta[column]).pvalue
        assert p > 0.005, column
    assert distributions.ks_2samp(real.bse.iloc[:, 1], new.bse.iloc[:, 1]).pvalue > 0.005
    # The coefficients of the data vary with the simulated truth; their errors do not.
    z = new.params.iloc[:, 1] / new.bse.iloc[:, 1]
    assert abs((z.abs() > 1.96).mean() - 0.07) < 0.03


def test_draws_keep_the_digits_of_a_feature_with_a_huge_mean():
    rng = np.random.default_rng(5)
    Z = np.kron(np.eye(10), np.ones((4, 1)))
    Y = 1e9 + rng.normal(size=(1, 40))
    result = fm.MultiLMM.from_arrays(Y, np.ones((40, 1)), Z).fit(parameter_space="psd")
    drawn = fm.MultiLMM(result.draw(400, rng=1)).fit(parameter_space="psd")
    total, truth = drawn.theta.sum(axis=1).mean(), result.theta.sum(axis=1).iloc[0]
    assert 0.9 < total / truth < 1.1


# ---- batches, labels, progress -----------------------------------------------------------


def test_replicates_depend_neither_on_batches_nor_on_company():
    result = model("(1 | donor) + (1 | batch)").fit(parameter_space="psd")
    whole = result.bootstrap(4, rng=3)
    small = fm.MultiLMM(result.stats).fit(parameter_space="psd", memory=10_000)
    calls = []
    parts = small.bootstrap(4, rng=3, progress=lambda done, total: calls.append((done, total)))
    assert_allclose(parts.replicates, whole.replicates, rtol=1e-6, atol=1e-8)
    assert len(calls) >= 12
    assert calls[-1] == (48, 48)
    some = result.bootstrap(4, rng=3, features=["gene 5", "gene 2"])
    assert_allclose(
        some.replicates, whole.replicates.sel(feature=["gene 5", "gene 2"]), rtol=1e-6, atol=1e-8
    )
    again = result.bootstrap(4, rng=np.random.default_rng(3))
    assert_array_equal(again.replicates, whole.replicates)


def test_drawn_statistics_are_labelled():
    result = model("(1 | donor) + (1 | batch)").fit(parameter_space="psd")
    drawn = result.draw(2, rng=1, features=["gene 1", "gene 0"])
    assert drawn.feature_names.tolist() == ["gene 1#0", "gene 1#1", "gene 0#0", "gene 0#1"]
    assert drawn.coef_names == result.stats.coef_names
    assert drawn.n == result.stats.n
    refitted = fm.MultiLMM(drawn).fit(parameter_space="psd")
    replicates = result.bootstrap(2, rng=1, features=["gene 1", "gene 0"]).replicates
    assert_allclose(replicates[:, :, :3].to_numpy().reshape(4, 3), refitted.params, rtol=1e-6)


# ---- statistics and intervals ------------------------------------------------------------


def test_statistics_by_name_by_contrast_and_by_function():
    result = model("(1 | donor) + (1 | batch)").fit(parameter_space="psd")
    full = result.bootstrap(9, rng=1)
    names = ["Intercept", "age", "trt[T.B]", "donor", "batch", "Residual"]
    assert full.ds["statistic"].values.tolist() == names
    assert_allclose(full.estimate[:, :3], result.params)
    assert_allclose(full.estimate[:, 3:], result.theta)
    named = result.bootstrap(9, rng=1, statistic=["donor", "trt[T.B] - age"])
    assert_array_equal(named.replicates[..., 0], full.replicates.sel(statistic="donor"))
    difference = full.replicates.sel(statistic="trt[T.B]") - full.replicates.sel(statistic="age")
    assert_allclose(named.replicates[..., 1], difference)
    share = result.bootstrap(9, rng=1, statistic=lambda fit: fit.icc()["estimate"][:, 0])
    parts = full.replicates[..., 3:].to_numpy()
    assert_allclose(share.replicates[..., 0], parts[..., 0] / parts.sum(axis=-1))
    assert share.ds["feature"].values.tolist() == FEATURES


def test_intervals_are_quantiles_of_the_replicates():
    result = model("(1 | donor) + (1 | batch)").fit(parameter_space="psd")
    boot = result.bootstrap(99, rng=1, statistic="donor")
    replicates = boot.replicates.to_numpy()[:, :, 0]
    ordered = np.sort(replicates, axis=1)
    limits = boot.conf_int(0.1, method="percentile")
    assert_allclose(limits[:, 0], ordered[:, [4, 94]])  # ranks 5 and 95 of 99
    estimate = result.theta["donor"].to_numpy()[:, None]
    assert_allclose(boot.conf_int(0.1)[:, 0], 2 * estimate - ordered[:, [94, 4]])
    half = distributions.norm.isf(0.05) * replicates.std(axis=1, ddof=1)
    centre = 2 * estimate[:, 0] - replicates.mean(axis=1)
    normal = boot.conf_int(0.1, method="normal")[:, 0]
    assert_allclose(normal, np.stack([centre - half, centre + half], axis=1))
    assert (boot.n_failed == 0).all()


def test_coverage_of_bootstrap_intervals():
    rng = np.random.default_rng(6)
    Z = np.kron(np.eye(50), np.ones((3, 1)))
    X = np.column_stack([np.ones(150), np.repeat(rng.normal(size=50), 3)])
    Y = rng.normal(size=(250, 150)) + rng.normal(size=(250, 50)) @ Z.T
    result = fm.MultiLMM.from_arrays(Y, X, Z).fit(parameter_space="psd")
    boot = result.bootstrap(199, rng=1, statistic=["x2", "Residual"])
    error = np.sqrt(0.9 * 0.1 / 250)
    for method in ("percentile", "basic", "normal"):
        limits = boot.conf_int(0.1, method=method).to_numpy()
        truth = np.array([0.0, 1.0])
        covered = ((limits[..., 0] <= truth) & (limits[..., 1] >= truth)).mean(axis=0)
        assert (np.abs(covered - 0.9) < 3 * error).all(), method


# ---- tests -------------------------------------------------------------------------------


def between(groups, each, slope=0.0, m=1, seed=0, variance=0.5):
    """A balanced design with a treatment of half of the groups."""
    rng = np.random.default_rng(seed)
    Z = np.kron(np.eye(groups), np.ones((each, 1)))
    treated = np.repeat(np.arange(groups) % 2, each).astype(float)
    X = np.column_stack([np.ones(groups * each), treated])
    Y = rng.normal(size=(m, groups * each)) + slope * treated
    Y += np.sqrt(variance) * rng.normal(size=(m, groups)) @ Z.T
    return fm.MultiLMM.from_arrays(Y, X, Z)


def test_a_component_has_the_exact_null_distribution():
    result = between(10, 4, m=3, seed=1).fit(parameter_space="psd")
    test = result.bootstrap_test(component="Z1", n=2000, rng=1)
    exact = result.variance_test(null="exact", n_sim=100_000, rng=2)
    assert_allclose(test["statistic"], exact["statistic"][:, 0])
    assert (np.abs(test["p"] - exact["p"][:, 0]) < 4 * test["p_se"] + 0.003).all()
    assert (test["p"] < 0.2).any()
    assert (test["n_replicates"] == 2000).all()


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_a_contrast_has_the_exact_distribution_where_it_is_known(alternative):
    """Balanced groups: t of a between-group effect has Student's t on groups - 2 df."""
    result = between(8, 4, slope=0.7, m=4, seed=2).fit()
    test = result.bootstrap_test("x2", n=3000, alternative=alternative, rng=1)
    t = result.tvalues["x2"].to_numpy()
    exact = {
        "two-sided": 2 * distributions.t.sf(np.abs(t), 6),
        "greater": distributions.t.sf(t, 6),
        "less": distributions.t.cdf(t, 6),
    }[alternative]
    assert (np.abs(test["p"].to_numpy() - exact) < 4 * test["p_se"].to_numpy() + 1e-3).all()
    naive = 2 * distributions.t.sf(np.abs(t), 30)
    assert (np.abs(exact - naive) > 0.005).any()


@pytest.mark.parametrize("mean", [0.0, 1e8])
def test_the_restricted_fit_is_the_fit_of_a_model_with_the_contrast_fixed(mean):
    rng = np.random.default_rng(8)
    Z = np.kron(np.eye(9), np.ones((5, 1)))
    X = np.column_stack([np.ones(45), rng.normal(size=(45, 2))])
    Y = mean + rng.normal(size=(3, 45)) + rng.normal(size=(3, 9)) @ Z.T
    result = fm.MultiLMM.from_arrays(Y, X, Z).fit(parameter_space="psd")
    theta, beta = restricted(result.fitted, np.arange(3), "x2 - 2*x3 = 1.5")
    # With x2 = 1.5 + 2 x3 the model is y - 1.5 X2 = b1 + b3 (X3 + 2 X2).
    own = np.column_stack([X[:, 0], X[:, 2] + 2 * X[:, 1]])
    other = fm.MultiLMM.from_arrays(Y - 1.5 * X[:, 1], own, Z).fit(parameter_space="psd")
    digits = 1e-7 if mean == 0 else 1e-5
    assert_allclose(theta, other.theta, rtol=digits, atol=1e-6)
    assert_allclose(beta[:, 0], other.params["x1"], rtol=1e-9)
    assert_allclose(beta[:, 2], other.params["x2"], rtol=1e-6)
    assert_allclose(beta[:, 1] - 2 * beta[:, 2], 1.5, atol=1e-9 + 1e-15 * mean)


def test_features_without_a_distribution_have_no_replicates():
    Y = np.random.default_rng(0).normal(size=(3, 40))
    Y[1] = 2.0
    X, Z = np.ones((40, 1)), np.kron(np.eye(8), np.ones((5, 1)))
    with pytest.warns(fm.ConvergenceWarning):
        result = fm.MultiLMM.from_arrays(Y, X, Z).fit(parameter_space="psd")
    boot = result.bootstrap(5, rng=1)
    assert np.isnan(boot.replicates.to_numpy()).all(axis=(1, 2)).tolist() == [False, True, False]
    test = result.bootstrap_test(component="Z1", n=5, rng=1)
    assert np.isnan(test["p"]).values.tolist() == [False, True, False]
    assert result.draw(1, rng=1).m == 2
    with pytest.raises(InputError, match="'1' has no estimate"):
        result.draw(1, features=[1])


# ---- power -------------------------------------------------------------------------------


def test_power_is_that_of_the_noncentral_t():
    """Balanced, unconstrained: t is noncentral t on groups - 2, compared with t on n - p."""
    groups, each, variance = 12, 5, 0.4
    slopes = [0.0, 0.8, 1.4]
    found = fm.power(
        between(groups, each),
        theta=[variance, 1.0],
        beta=[[5.0, b] for b in slopes],
        contrast="x2",
        n_sim=4000,
        rng=1,
    )
    critical = distributions.t.isf(0.025, groups * each - 2)
    se = np.sqrt((variance + 1 / each) * 4 / groups)
    for j, slope in enumerate(slopes):
        exact = distributions.nct.sf(critical, groups - 2, slope / se)
        exact += distributions.nct.cdf(-critical, groups - 2, slope / se)
        error = np.sqrt(exact * (1 - exact) / 4000)
        assert abs(found["power"][j, 0].item() - exact) < 4 * error
    assert (found["n_fits"] == 4000).all()
    assert found["power"][0, 0] > 0.065  # too liberal, which the simulation shows


def test_power_of_a_design_without_data():
    data = pd.DataFrame({"g": np.repeat(np.arange(12), 5).astype(str)})
    data["trt"] = np.where(data["g"].astype(int) % 2 == 1, "B", "A")
    options = {"contrast": "trt[T.B]", "n_sim": 300, "rng": 3, "parameter_space": "psd"}
    theta = {"Residual": 1.0, "g": 0.4}
    named = fm.power(
        fixed="~ trt", random="(1 | g)", data=data, theta=theta, beta={"trtB": 1.0}, **options
    )
    model = fm.MultiLMM.from_formula("~ trt", "(1 | g)", data, np.arange(60.0))
    built = fm.power(model, theta=[0.4, 1.0], beta=[0.0, 1.0], **options)
    assert_array_equal(named["power"], built["power"])
    assert named["contrast"].values.tolist() == ["trt[T.B]"]
    everything = fm.power(model, theta=theta, beta=[7.0, 1.0], n_sim=300, rng=3)
    assert everything["contrast"].values.tolist() == ["Intercept", "trt[T.B]"]
    assert everything["power"][0, 0] == 1.0


# ---- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.bootstrap(0), "`n` must be a positive"),
        (lambda r: r.bootstrap(3, statistic=[]), "`statistic` must be"),
        (lambda r: r.bootstrap(3, statistic="weight"), "unknown coefficient"),
        (lambda r: r.bootstrap(3, statistic=np.size), "one row of numbers per feature"),
        (lambda r: r.bootstrap_test("age", component="batch"), "one of the two"),
        (lambda r: r.bootstrap_test(), "one of the two"),
        (lambda r: r.bootstrap_test(["age", "trt[T.B]"]), "one contrast at a time"),
        (lambda r: r.bootstrap_test(component="cage"), "No variance component"),
        (lambda r: fm.power(r, theta={"donor": 1.0}, beta={}), "lacks 'batch', 'Residual'"),
        (lambda r: fm.power(r, theta={"door": 1.0}, beta={}), "Did you mean 'donor'"),
        (lambda r: fm.power(r, theta=[1, 1, 0], beta={}), "must be positive"),
        (lambda r: fm.power(r, theta=[1, 1], beta={}), "3 finite numbers"),
        (lambda r: fm.power(r, theta=[1, 1, 1], beta=[[0, 0]] * 2), "3 finite numbers"),
        (lambda _: fm.power(theta=[1], beta=[1]), "Give a `design`"),
        (lambda _: fm.power("~ x", theta=[1], beta=[1]), "not str"),
    ],
)
def test_wrong_calls_are_refused(call, message):
    result = model("(1 | donor) + (1 | batch)").fit(parameter_space="psd")
    with pytest.raises(InputError, match=message):
        call(result)


def test_wrong_interval_options_are_refused():
    boot = model("(1 | donor)").fit(parameter_space="psd").bootstrap(3, rng=1, statistic="age")
    with pytest.raises(InputError, match="percentile"):
        boot.conf_int(method="percentiles")
    with pytest.raises(InputError, match="between 0 and 1"):
        boot.conf_int(2)


def test_limits_beside_a_feature_without_estimates():
    """One constant feature: NaN for it, and no warning of numpy's about what it lacks."""
    rng = np.random.default_rng(0)
    Y = rng.normal(size=(2, 24))
    Y[1] = 2.0
    model = fm.MultiLMM.from_arrays(Y, np.ones((24, 1)), np.kron(np.eye(6), np.ones((4, 1))))
    with pytest.warns(fm.ConvergenceWarning):
        result = model.fit(parameter_space="psd")
    drawn = result.bootstrap(5, rng=1)
    for method in ("percentile", "basic", "normal"):
        limits = drawn.conf_int(method=method)
        assert np.isfinite(limits[0]).all()
        assert np.isnan(limits[1]).all()
    assert np.isnan(drawn.se[1]).all()
