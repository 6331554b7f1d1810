"""Variance components: z-tests, likelihood-ratio tests, exact null distributions, shares."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import problems as pb
import pytest
import references as ref
from numpy.testing import assert_allclose
from scipy import stats as distributions
from small_fit import model

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.inference.exact_lrt import simulate_exact_null
from flashmm.results.variance_tests import exact_null

REFERENCE = json.loads((ref.REFERENCE / "variances" / "variances.json").read_text("utf-8"))
RESPONSE = {
    "sleepstudy": "Reaction",
    "penicillin": "diameter",
    "pastes": "strength",
    "dyestuff": "Yield",
}


def fit(dataset, right_side, method, space):
    data = ref.lme4_data(dataset)
    y = data[RESPONSE[dataset]].to_numpy()
    right = right_side.replace("Days + (Days ||", "Days + (1 + Days ||")
    return fm.MultiLMM.from_formula(f"~ {right}", None, data, y).fit(method, parameter_space=space)


def our_name(case):
    """lme4 names factors of a nesting the other way round."""
    return {"cask:batch": "batch:cask"}.get(case["component"], case["component"])


# ---- tables ------------------------------------------------------------------------------


def test_z_tests_are_normal_tests_of_estimate_over_se():
    result = model("(1 | donor) + (1 | batch)").fit()
    table = result.variance_components()
    assert_allclose(table["estimate"], result.theta)
    assert_allclose(table["se"], result.bse_theta)
    z = (result.theta / result.bse_theta).to_numpy()
    assert_allclose(table["z"], z)
    assert_allclose(table["p"], 2 * distributions.norm.sf(np.abs(z)))
    greater = result.variance_components(alternative="greater", features=["gene 3"])
    assert_allclose(greater["p"], distributions.norm.sf(z[3:4]))
    assert greater["feature"].values.tolist() == ["gene 3"]


def test_there_is_no_z_test_in_the_psd_space():
    assert list(model().fit(parameter_space="psd").variance_components()) == ["estimate", "se"]


# ---- likelihood-ratio tests --------------------------------------------------------------


@pytest.mark.parametrize("space", ["psd", "unconstrained"])
@pytest.mark.parametrize("case", REFERENCE["tests"], ids=lambda c: f"{c['formula']}-{c['method']}")
def test_log_likelihoods_without_a_component_equal_those_of_lme4(case, space):
    result = fit(case["dataset"], case["formula"], case["method"], space)
    name = our_name(case)
    name = name if name in result.theta.columns else f"{name}[Intercept]"
    test = result.variance_test(name).isel(feature=0, component=0)
    # Without the between-batch variance of pastes lme4 and the psd fit agree; unconstrained the
    # other variance could be negative, but is not.
    assert test["loglik_null"].item() == pytest.approx(case["null"], rel=0, abs=1e-7)
    statistic = 2 * (result.llf.iloc[0] - case["null"])
    assert test["statistic"].item() == pytest.approx(statistic, rel=1e-6, abs=1e-6)


def test_the_unconstrained_test_is_the_one_that_lmertest_prints():
    result = fit("sleepstudy", "Days + (Days | Subject)", "REML", "unconstrained")
    test = result.variance_test("Subject[Days]").isel(feature=0, component=0)
    assert test["null"].item() == "chi2_2"
    assert test["statistic"].item() == pytest.approx(REFERENCE["ranova"]["LRT"], rel=1e-6)
    assert test["p"].item() == pytest.approx(REFERENCE["ranova"]["p"], rel=1e-4)


def test_null_distributions_of_each_space():
    def nulls(space, components=None):
        stats = model("(age | donor) + (1 | batch)").stats.take(["gene 3"])
        test = fm.MultiLMM(stats).fit(parameter_space=space).variance_test(components)
        return dict(zip(test["component"].values, test["null"].values, strict=True))

    assert nulls("psd") == {
        "donor[Intercept]": "0.5 chi2_1 + 0.5 chi2_2",
        "donor[age]": "0.5 chi2_1 + 0.5 chi2_2",
        "batch": "0.5 chi2_0 + 0.5 chi2_1",
    }
    assert nulls("psd", "donor") == {"donor": "0.5 chi2_2 + 0.5 chi2_3 (upper bound)"}
    assert nulls("unconstrained", ["donor", "batch"]) == {"donor": "chi2_3", "batch": "chi2_1"}


def test_a_whole_term_is_removed_like_a_model_without_it():
    result = model("(age | donor) + (1 | batch)").fit(parameter_space="psd")
    without = model("(1 | batch)").fit(parameter_space="psd")
    test = result.variance_test("donor")
    assert_allclose(test["loglik_null"][:, 0], without.llf, rtol=0, atol=1e-8)


def test_p_values_of_the_mixture():
    result = model("(age | donor) + (1 | batch)").fit(parameter_space="psd")
    test = result.variance_test(["donor[age]", "batch"])
    statistic, p = test["statistic"].to_numpy(), test["p"].to_numpy()
    assert_allclose(p[:, 0], distributions.chi2.sf(statistic[:, :1], [1, 2]).mean(axis=1))
    single = 0.5 * distributions.chi2.sf(statistic[:, 1], 1) + 0.5 * (statistic[:, 1] == 0)
    assert_allclose(p[:, 1], single)
    assert (p[statistic[:, 1] == 0, 1] == 1.0).any()


def rejections(p, level):
    """The share of p-values below a level, in Monte Carlo standard errors from it."""
    return ((p < level).mean() - level) / np.sqrt(level * (1 - level) / p.size)


def test_the_mixture_holds_its_level_for_a_slope_with_its_covariance():
    """Stram & Lee's case 3: a random intercept in 150 groups, no slope variance."""
    rng = np.random.default_rng(4)
    m, groups, each = 1500, 150, 4
    data = pd.DataFrame({"g": np.repeat(np.arange(groups), each).astype(str)})
    data["x"] = rng.normal(size=groups * each)
    Y = rng.normal(size=(m, groups * each))
    Y += np.repeat(rng.normal(size=(m, groups)), each, axis=1)
    result = fm.MultiLMM.from_formula("~ x + (1 + x | g)", None, data, Y)
    test = result.fit(parameter_space="psd").variance_test("g[x]")
    p = test["p"].to_numpy()[:, 0]
    assert abs(rejections(p, 0.05)) < 3
    too_strict = distributions.chi2.sf(test["statistic"].to_numpy()[:, 0], 2)
    assert rejections(too_strict, 0.05) < -3


def test_the_unconstrained_test_is_chi_square():
    rng = np.random.default_rng(5)
    Z = np.kron(np.eye(100), np.ones((3, 1)))
    model = fm.MultiLMM.from_arrays(rng.normal(size=(4000, 300)), np.ones((300, 1)), Z)
    p = model.fit().variance_test()["p"].to_numpy()[:, 0]
    assert abs(rejections(p, 0.05)) < 3
    assert abs(rejections(p, 0.5)) < 3
    halves = model.fit(parameter_space="psd").variance_test()["p"].to_numpy()[:, 0]
    assert abs(rejections(halves, 0.05)) < 3
    assert abs((halves == 1.0).mean() - 0.5) < 0.04


# ---- the exact null distribution ---------------------------------------------------------


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize(
    ("dataset", "right"), [("dyestuff", "(1 | Batch)"), ("sleepstudy", "Days + (1 | Subject)")]
)
def test_exact_null_equals_that_of_rlrsim(dataset, right, method):
    theirs = REFERENCE["exact"][dataset]
    result = fit(dataset, right, method, "psd")
    null = exact_null(result.fitted, 50_000, 1)
    n = null.draws.size
    error = np.sqrt(theirs[f"zero_{method.lower()}"] * 0.4 * (1 / n + 1e-6))
    assert abs((null.draws == 0).mean() - theirs[f"zero_{method.lower()}"]) < 4 * error
    for probability, quantile in zip(theirs["probabilities"], theirs[method.lower()], strict=True):
        above = (null.draws > quantile).mean()
        error = np.sqrt(probability * (1 - probability) * (1 / n + 1e-6))
        assert abs(above - (1 - probability)) < 4 * error
    test = result.variance_test(null="exact", rng=1).isel(feature=0, component=0)
    observed = theirs[f"statistic_{method.lower()}"]
    assert test["statistic"].item() == pytest.approx(observed, rel=1e-6)
    expected = (1 + (null.draws >= observed).sum()) / (1 + n)
    assert abs(test["p"].item() - expected) < 4 * test["p_se"].item() + 2e-4


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_exact_null_is_the_distribution_of_fits_to_null_data(method):
    """Six unbalanced groups: the mass at zero is far from the asymptotic half."""
    rng = np.random.default_rng(7)
    sizes = [2, 3, 5, 8, 4, 2]
    Z = np.repeat(np.eye(6), sizes, axis=0)
    X = np.column_stack([np.ones(24), rng.normal(size=24)])
    Y = rng.normal(size=(4000, 24))
    result = fm.MultiLMM.from_arrays(Y, X, Z).fit(method, parameter_space="psd")
    fitted = result.variance_test()["statistic"].to_numpy()[:, 0]
    null = exact_null(result.fitted, 20_000, 3).draws
    zero = (null == 0).mean()
    assert abs((fitted == 0).mean() - zero) < 4 * np.sqrt(zero * (1 - zero) / 4000)
    assert zero > 0.55
    assert distributions.ks_2samp(fitted[fitted > 0], null[null > 0]).pvalue > 0.01
    p = result.variance_test(null="exact", rng=5)["p"].to_numpy()[:, 0]
    assert abs((p <= 0.05).mean() - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 4000)


def test_exact_null_is_the_supremum_on_a_fine_grid():
    mu, xi = np.array([0.3, 2.0, 9.0]), np.array([0.5, 3.0, 11.0])
    null = simulate_exact_null(mu, 17, 10, xi, 50, np.random.default_rng(2))
    rng = np.random.default_rng(2)
    w2, c = rng.standard_normal((50, 3)) ** 2, rng.chisquare(10, 50)
    grid = np.concatenate([[0.0], np.geomspace(1e-7, 1e6, 40_000)])
    D = (w2[:, None, :] / (1 + grid[None, :, None] * mu)).sum(axis=2) + c[:, None]
    f = 17 * np.log((w2.sum(axis=1) + c)[:, None] / D) - np.log1p(grid[:, None] * xi).sum(axis=1)
    assert_allclose(null.draws, np.sort(f.max(axis=1)), atol=1e-7)
    assert (null.draws > 0).any()


def test_exact_test_of_a_negative_variance_has_p_one():
    result = fit("dyestuff", "(1 | Batch)", "REML", "unconstrained")
    rng = np.random.default_rng(0)
    Z = np.kron(np.eye(6), np.ones((5, 1)))
    result = fm.MultiLMM.from_arrays(rng.normal(size=(40, 30)), np.ones((30, 1)), Z).fit()
    test = result.variance_test(null="exact", n_sim=500, rng=1)
    negative = result.theta["Z1"].to_numpy() < 0
    p = test["p"].to_numpy()[:, 0]
    assert (p[negative] == 1.0).all()
    assert (p[~negative] < 1.0).all()
    assert negative.any()
    # Against the psd space: the same statistics, hence the same p-values from the same draws.
    psd = fm.MultiLMM(result.stats).fit(parameter_space="psd")
    assert_allclose(psd.variance_test(null="exact", n_sim=500, rng=1)["p"][:, 0], p)


# ---- shares ------------------------------------------------------------------------------


def test_icc_weighs_slopes_by_their_average_over_the_samples():
    problem = pb.PROBLEMS["slope_and_crossed"]
    Y = problem.simulate(problem.theta(np.random.default_rng(1)), 4, np.random.default_rng(2))
    result = problem.fit(Y, parameter_space="psd")
    icc = result.icc()
    assert icc["component"].values.tolist() == ["g", "h", "Residual"]
    for j, theta in enumerate(result.theta.to_numpy()):
        sizes = [t.n_columns for t in problem.structure.terms]
        D, Z, cut = problem.D(theta), problem.Z, sizes[0]
        parts = [
            np.trace(Z[:, part] @ D[part, part] @ Z[:, part].T) / problem.n
            for part in (slice(0, cut), slice(cut, None))
        ]
        total = sum(parts) + theta[-1]
        assert_allclose(icc["estimate"][j], [*(np.array(parts) / total), theta[-1] / total])


def test_icc_standard_errors_are_those_of_the_delta_method():
    result = fit("penicillin", "(1 | plate) + (1 | sample)", "REML", "unconstrained")
    theta = result.theta.iloc[0].to_numpy()
    covariance = np.linalg.inv(result.fim()["FIM_theta"].to_numpy()[0])
    step = 1e-6 * theta
    jacobian = np.stack(
        [
            ((theta + d) / (theta + d).sum() - (theta - d) / (theta - d).sum()) / (2 * d.sum())
            for d in np.diag(step)
        ],
        axis=1,
    )
    expected = np.sqrt(np.diag(jacobian @ covariance @ jacobian.T))
    assert_allclose(result.icc()["se"][0], expected, rtol=1e-6)


def definition(theta, beta, X, columns):
    """variancePartition's fractions, from the design matrix itself."""
    parts = np.array([np.var(X[:, c] @ beta[c]) for c in columns])
    fixed = parts / parts.sum() * np.var(sum(X[:, c] @ beta[c] for c in columns))
    values = np.concatenate([fixed, theta])
    return values / values.sum()


def test_variance_fractions_are_those_of_variancepartition():
    samples, expression, reference = ref.varpart()
    result = fm.MultiLMM.from_formula(
        "~ Age + (1 | Individual) + (1 | Tissue) + (1 | Batch)", None, samples, expression
    ).fit(parameter_space="psd")
    found = result.variance_fractions()
    assert found["component"].values.tolist() == [
        *("Age", "Individual", "Tissue", "Batch", "Residual")
    ]
    theirs = np.column_stack(
        [
            reference["age"] ** 2 * np.var(samples["Age"].to_numpy()),
            *(reference[f"var_{name}"] for name in ("Individual", "Tissue", "Batch", "Residual")),
        ]
    )
    theirs /= theirs.sum(axis=1, keepdims=True)
    agreed = ~reference.index.isin(["gene24", "gene120"])  # where lme4 stopped short
    assert_allclose(found["estimate"][agreed], theirs[agreed], atol=2e-6)
    assert_allclose(found["estimate"].sum("component"), 1.0)


@pytest.mark.parametrize("by", ["term", "coef"])
def test_variance_fractions_and_errors_with_correlated_fixed_terms(by):
    rng = np.random.default_rng(3)
    n = 90
    data = pd.DataFrame({"x": rng.normal(size=n), "f": rng.choice(list("abc"), n)})
    data["w"] = data["x"] + (data["f"] == "b") + rng.normal(size=n)
    data["g"] = np.repeat(np.arange(15), 6).astype(str)
    Y = rng.normal(size=(3, n)) + 2 * data["x"].to_numpy() - data["w"].to_numpy()
    Y += np.repeat(rng.normal(size=(3, 15)), 6, axis=1)
    result = fm.MultiLMM.from_formula("~ f + x + w", "~ 0 + g", data, Y).fit()
    found = result.variance_fractions(by=by)
    names = ["f", "x", "w"] if by == "term" else ["f[T.b]", "f[T.c]", "x", "w"]
    assert found["component"].values.tolist() == [*names, "g", "Residual"]
    dummies = [(data["f"] == level).to_numpy(float) for level in "bc"]
    X = np.column_stack([np.ones(n), *dummies, data["x"], data["w"]])
    columns = [[1, 2], [3], [4]] if by == "term" else [[1], [2], [3], [4]]
    for j in range(3):
        theta, beta = result.theta.iloc[j].to_numpy(), result.params.iloc[j].to_numpy()
        assert_allclose(found["estimate"][j], definition(theta, beta, X, columns), rtol=1e-9)
        both = np.concatenate([beta, theta])
        V = np.zeros((7, 7))
        V[:5, :5] = result.cov_params(features=[j])[0]
        V[5:, 5:] = np.linalg.inv(result.fim(features=[j])["FIM_theta"].to_numpy()[0])
        J = (
            np.stack(
                [
                    definition(*np.split(both + d, [5])[::-1], X, columns)
                    - definition(*np.split(both - d, [5])[::-1], X, columns)
                    for d in 1e-5 * np.eye(7)
                ],
                axis=1,
            )
            / 2e-5
        )
        assert_allclose(found["se"][j], np.sqrt(np.diag(J @ V @ J.T)), rtol=1e-6)


@pytest.mark.parametrize(
    ("fixed", "random"),
    [
        ("~ x + f", "~ 0 + g"),
        ("~ 0 + f + x", "~ 0 + g"),
        ("~ 0 + x + f:x", "(1 | g)"),
    ],
)
def test_means_of_the_columns_follow_from_the_statistics(fixed, random):
    rng = np.random.default_rng(8)
    data = pd.DataFrame({"x": rng.normal(1.0, 1.0, size=60), "f": rng.choice(list("ab"), 60)})
    data["g"] = np.repeat(np.arange(12), 5).astype(str)
    fitted = fm.MultiLMM.from_formula(fixed, random, data, rng.normal(size=(2, 60))).fit()
    X = {
        "~ x + f": [np.ones(60), data["x"], data["f"] == "b"],
        "~ 0 + f + x": [data["f"] == "a", data["f"] == "b", data["x"]],
        "~ 0 + x + f:x": [data["x"], data["x"] * (data["f"] == "b")],
    }[fixed]
    means = np.array([np.mean(column) for column in X])
    if fixed == "~ x + f":  # formulaic sorts: Intercept, f, x or Intercept, x, f
        means = means[[0, 1, 2]] if fitted.stats.coef_names[1] == "x" else means[[0, 2, 1]]
    given = fitted.variance_fractions(column_means=means)
    assert_allclose(given["estimate"], fitted.variance_fractions()["estimate"], rtol=1e-10)


def test_unknown_means_are_asked_for():
    rng = np.random.default_rng(0)
    X, Z = rng.normal(size=(40, 2)), np.kron(np.eye(8), np.ones((5, 1)))
    result = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), X, Z).fit()
    with pytest.raises(InputError, match="column_means"):
        result.variance_fractions()
    with pytest.raises(InputError, match="2 finite numbers"):
        result.variance_fractions(column_means=[1.0])
    shares = result.variance_fractions(column_means=X.mean(axis=0))
    assert shares["component"].values.tolist() == ["x1", "x2", "Z1", "Residual"]


def test_weighted_samples():
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"g": np.repeat(np.arange(10), 5).astype(str), "x": rng.normal(size=50)})
    Y, weights = rng.normal(size=(3, 50)), rng.uniform(0.5, 2.0, 50)
    result = fm.MultiLMM.from_formula("~ x + (1 | g)", None, data, Y, weights=weights).fit()
    test = result.variance_test()
    gain = 2 * (result.llf.to_numpy() - test["loglik_null"].to_numpy()[:, 0])
    assert_allclose(test["statistic"][:, 0], gain, atol=1e-7)
    # Without the component: weighted least squares.
    root = np.sqrt(weights)
    X = np.column_stack([np.ones(50), data["x"]]) * root[:, None]
    for j, y in enumerate(Y * root):
        rss = np.linalg.lstsq(X, y, rcond=None)[1][0]
        loglik = -0.5 * (48 * (np.log(2 * np.pi * rss / 48) + 1) - np.log(weights).sum())
        loglik -= 0.5 * np.linalg.slogdet(X.T @ X)[1]
        assert test["loglik_null"][j, 0].item() == pytest.approx(loglik, abs=1e-8)
    # Shares weight the samples: the residual's part is sigma2 over the mean weight.
    sigma2, between = result.theta["Residual"], result.theta["g"]
    residual = sigma2 / weights.mean()
    assert_allclose(result.icc()["estimate"][:, 0], between / (between + residual), rtol=1e-12)
    slope = result.params["x"] ** 2 * np.cov(data["x"], aweights=weights, ddof=0)
    parts = np.stack([slope, between, residual], axis=1)
    fractions = result.variance_fractions()
    assert_allclose(fractions["estimate"], parts / parts.sum(axis=1, keepdims=True), rtol=1e-9)
    own = fm.MultiLMM.from_formula(
        "~ x + (1 | g)", None, data, Y, weights=weights * np.array([[1.0], [2.0], [5.0]])
    ).fit()
    assert_allclose(own.variance_fractions()["estimate"], fractions["estimate"], rtol=1e-6)
    assert_allclose(own.variance_fractions()["se"], fractions["se"], rtol=1e-6)
    bare = fm.MultiLMM.from_formula("~ 0 + x", "~ 0 + g", data, Y, weights=weights)
    with pytest.raises(InputError, match="sum of the weights"):
        bare.fit().icc()


# ---- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": "Batch"}, "Did you mean 'batch'"),
        ({"components": "Residual"}, "cannot be tested"),
        ({"components": "donor[Intercept,age]"}, "cannot be tested"),
        ({"components": []}, "is empty"),
        ({"null": "exakt"}, "exact"),
        ({"null": "exact"}, "one variance component"),
    ],
)
def test_wrong_questions_are_refused(options, message):
    result = model().fit(parameter_space="psd")
    with pytest.raises(InputError, match=message):
        result.variance_test(**options)


def test_a_feature_without_a_fit_has_no_test():
    Y = np.random.default_rng(0).normal(size=(3, 40))
    Y[1] = 2.0
    X, Z = np.ones((40, 1)), np.kron(np.eye(8), np.ones((5, 1)))
    with pytest.warns(fm.ConvergenceWarning):
        result = fm.MultiLMM.from_arrays(Y, X, Z).fit(parameter_space="psd")
    for table in (result.variance_test(), result.variance_test(null="exact", rng=1)):
        assert np.isnan(table["p"].to_numpy()[:, 0]).tolist() == [False, True, False]
    assert np.isnan(result.icc()["estimate"].to_numpy()).all(axis=1).tolist() == [
        False,
        True,
        False,
    ]
