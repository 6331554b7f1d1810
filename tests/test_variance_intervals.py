"""Limits of the variance components: Wald, and profile likelihood against lme4 and its definition.

lme4 interpolates its profiles. On its own grid the largest difference is 1e-5 relative, but for
two limits: the upper one of sleepstudy's correlated intercept (1.4e-4) and a lower one
(9e-6); there `test_a_limit_is_where_the_profile_has_fallen` is the judge.
"""

from __future__ import annotations

import numpy as np
import problems as pb
import pytest
import references as ref
from numpy.testing import assert_allclose
from scipy import optimize
from scipy import stats as distributions
from small_fit import model
from test_variance_components import REFERENCE, fit

import flashmm as fm
from flashmm.exceptions import InputError

CHI2 = distributions.chi2.isf(0.05, 1)
NAMES = {
    "sd_(Intercept)|Subject": "Subject",
    "sd_Days|Subject": "Subject[Days]",
    "sd_(Intercept)|cask:batch": "batch:cask",
    "sigma": "Residual",
}


@pytest.mark.parametrize("case", REFERENCE["profiles"], ids=lambda c: c["formula"])
def test_profiles_of_standard_deviations_equal_those_of_lme4(case):
    result = fit(case["dataset"], case["formula"], "ML", "psd")
    limits = result.conf_int_theta(method="profile", scale="sd").isel(feature=0)
    compared = 0
    for name, *theirs in zip(case["parameter"], case["lower"], case["upper"], strict=True):
        if name.startswith("cor_"):
            continue
        ours = NAMES.get(name, name.removeprefix("sd_(Intercept)|"))
        if ours == "Subject" and "Subject" not in limits["param"]:
            ours = "Subject[Intercept]"
        interpolated = ours == "Subject[Intercept]"
        assert_allclose(limits.sel(param=ours), theirs, rtol=2e-4 if interpolated else 1e-5)
        compared += 1
    assert compared == limits.sizes["param"]


def best(problem, Y, method, name, value):
    """The log-likelihood maximised over all parameters but one, by BFGS on other coordinates.

    The parameters of slope_and_crossed: two variances and a covariance of g, h, the residual.
    """
    free = [i for i in ("v", "w", "h", "s") if i != name]
    stats = problem.stats(Y)

    def theta(z):
        values = dict(zip(free, np.exp(z), strict=False))
        if name != "c":
            values[name] = value
            values["c"] = np.tanh(z[-1]) * np.sqrt(values["v"] * values["w"])
        else:
            values["c"] = value
            values["w"] += value**2 / values["v"]
        return np.array([values[i] for i in ("v", "w", "c", "h", "s")])

    def loss(z):
        return -pb.evaluate(stats, theta(z), method).loglik[0]

    return -optimize.minimize(loss, np.zeros(4), method="BFGS").fun


@pytest.mark.parametrize("method", pb.METHODS)
def test_a_limit_is_where_the_profile_has_fallen(method):
    problem = pb.PROBLEMS["slope_and_crossed"]
    rng = np.random.default_rng(5)
    Y = problem.simulate(np.array([1.0, 0.8, 0.3, 0.7, 1.0]), 1, rng)
    result = problem.fit(Y, method=method, parameter_space="psd")
    limits = result.conf_int_theta(method="profile")[0].to_numpy()
    checked = 0
    for name, (lower, upper) in zip(("v", "w", "c", "h", "s"), limits, strict=True):
        for value in (lower, upper):
            if value == 0.0:
                continue
            fall = 2 * (result.llf.iloc[0] - best(problem, Y, method, name, value))
            assert fall == pytest.approx(CHI2, rel=0, abs=1e-4), (name, value)
            checked += 1
    assert checked >= 9


def test_a_profile_on_the_boundary_ends_at_zero():
    Y = np.random.default_rng(2).normal(size=(30, 40))
    Z = np.kron(np.eye(8), np.ones((5, 1)))
    stats = fm.SummaryStats.from_arrays(Y, np.ones((40, 1)), Z)
    psd, free = (
        fm.MultiLMM(stats).fit(parameter_space=space) for space in ("psd", "unconstrained")
    )
    limits = psd.conf_int_theta(method="profile", params="Z1").to_numpy()[:, 0]
    zero = psd.theta["Z1"].to_numpy() == 0
    assert 5 < zero.sum() < 25
    assert (limits[zero, 0] == 0).all()
    assert np.isfinite(limits).all()
    assert (limits[:, 1] > psd.theta["Z1"]).all()
    # Where the unconstrained limits are positive, both spaces have the same.
    other = free.conf_int_theta(method="profile", params="Z1").to_numpy()[:, 0]
    assert np.isfinite(other).all()
    both = ~zero
    assert_allclose(limits[both, 1], other[both, 1], rtol=1e-6)
    assert_allclose(limits[both, 0], np.maximum(other[both, 0], 0.0), rtol=1e-5, atol=1e-8)
    assert (other[:, 0] < free.theta["Z1"]).all()
    assert (other[zero, 0] < 0).all()


def test_limits_do_not_depend_on_units_or_company():
    s = model().stats.take(["gene 3", "gene 5"])
    result = fm.MultiLMM(s).fit(parameter_space="psd")
    params = ["donor[age]", "batch"]
    limits = result.conf_int_theta(method="profile", params=params)
    assert np.isfinite(limits.to_numpy()).all()
    alone = result.conf_int_theta(method="profile", params="batch", features=["gene 3"])
    assert_allclose(alone[0, 0], limits.sel(feature="gene 3", param="batch"), rtol=1e-9)
    hundredfold = fm.SummaryStats(
        **{name: getattr(s, name) for name in ("n", "XX", "ZX", "ZZ", "structure")},
        **{name: 100 * getattr(s, name) for name in ("XY", "ZY")},
        yy=1e4 * s.yy,
    )
    again = fm.MultiLMM(hundredfold).fit(parameter_space="psd")
    again = again.conf_int_theta(method="profile", params=params)
    assert_allclose(again, 1e4 * limits, rtol=1e-6, atol=1e-6)


def test_coverage_of_the_profile():
    """In 100 groups the limits cover the truth as often as they claim, to Monte Carlo error."""
    rng = np.random.default_rng(9)
    Z = np.kron(np.eye(100), np.ones((3, 1)))
    Y = rng.normal(size=(2000, 300)) + rng.normal(size=(2000, 100)) @ Z.T
    result = fm.MultiLMM.from_arrays(Y, np.ones((300, 1)), Z).fit(parameter_space="psd")
    limits = result.conf_int_theta(method="profile").to_numpy()
    covered = ((limits[:, :, 0] <= 1) & (limits[:, :, 1] >= 1)).mean(axis=0)
    assert (np.abs(covered - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 2000)).all()


def test_a_limit_that_does_not_exist_is_nan_and_counted():
    """Unconstrained, with three crossed factors: some features run to the edge of the domain."""
    samples, expression, _ = ref.varpart()
    genes = expression.iloc[50:90]
    fitted = fm.MultiLMM.from_formula(
        "~ Age + (1 | Individual) + (1 | Tissue) + (1 | Batch)", None, samples, genes
    )
    with pytest.warns(fm.ConvergenceWarning, match="without a regular fit"):
        result = fitted.fit()
    with pytest.warns(fm.ConvergenceWarning, match="a profile limit was not found"):
        limits = result.conf_int_theta(method="profile", params="Batch").to_numpy()[:, 0]
    theta = result.theta["Batch"].to_numpy()
    known = np.isfinite(limits).all(axis=1)
    assert 30 < known.sum() < 40
    assert (limits[known, 0] < theta[known]).all()
    assert (limits[known, 1] > theta[known]).all()
    psd = fitted.fit(parameter_space="psd").conf_int_theta(method="profile", params="Batch")
    assert np.isfinite(psd.to_numpy()).all()


def test_wald_limits():
    result = model("(1 | donor) + (1 | batch)").fit()
    z = distributions.norm.isf(0.05)
    theta, se = result.theta.to_numpy(), result.bse_theta.to_numpy()
    limits = result.conf_int_theta(0.1)
    assert_allclose(limits, np.stack([theta - z * se, theta + z * se], axis=-1))
    roots = result.conf_int_theta(0.1, scale="sd", params="donor")
    assert_allclose(roots[:, 0, 1], np.sqrt(theta[:, 0] + z * se[:, 0]))
    psd = model("(1 | donor) + (1 | batch)").fit(parameter_space="psd")
    theta, se = psd.theta.to_numpy(), psd.bse_theta.to_numpy()
    limits = psd.conf_int_theta(0.1).to_numpy()
    positive = theta > 0
    expected = np.exp(np.log(theta[positive]) + z * se[positive] / theta[positive])
    assert_allclose(limits[positive, 1], expected)
    assert np.isnan(limits[~positive]).all()
    assert (~positive).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "profiled"}, "Did you mean 'profile'"),
        ({"scale": "log"}, "Available: 'variance', 'sd'"),
        ({"params": "Batch"}, "Did you mean 'batch'"),
        ({"alpha": 5}, "between 0 and 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        model().fit(parameter_space="psd").conf_int_theta(**options)
