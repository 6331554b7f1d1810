"""Where likelihoods are awkward: several maxima, none, variances at their bounds, units."""

from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from problems import estimator_of
from stress.designs import draw
from stress.maxima import drawn
from stress.responses import responses

import flashmm as fm
from flashmm.likelihood.moments import contrast_moments
from flashmm.likelihood.profile_grid import fine_grid, profile_grid
from flashmm.likelihood.signed_grid import signed_grid

EDGES = Path(__file__).parent / "reference" / "edges"
GOOD = ["converged", "boundary", "indefinite"]


def model(formula, data, Y):
    return fm.MultiLMM.from_formula(formula, data=data, Y=Y)


# ---- several maxima --------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["psd", "unconstrained"])
@pytest.mark.parametrize(("method", "llf"), [("REML", 291.570163), ("ML", 297.072450)])
def test_two_components_that_could_stand_for_each_other(space, method, llf):
    data, Y = pd.read_csv(EDGES / "d114.csv"), pd.read_csv(EDGES / "y114.csv")
    crossed = model("~ 0 + x1 + (1 | f1) + (1 | f2)", data, Y[["y0"]].T)
    result = crossed.fit(method, parameter_space=space)
    assert result.llf.item() == pytest.approx(llf, abs=2e-6)
    assert result.status.item() == "converged"
    # Joint with other features, and whatever the engine, the answer is the same.
    joint = model("~ 0 + x1 + (1 | f1) + (1 | f2)", data, Y.T).fit(method, parameter_space=space)
    np.testing.assert_allclose(joint.llf.iloc[0], result.llf.iloc[0], rtol=1e-10)
    for engine in ("general", "bordered", "blocked"):
        other = crossed.fit(method, parameter_space=space, engine=engine)
        np.testing.assert_allclose(other.llf, result.llf, rtol=1e-9)


def test_a_start_that_is_given_chooses_the_maximum():
    data, Y = pd.read_csv(EDGES / "d114.csv"), pd.read_csv(EDGES / "y114.csv")[["y0"]].T
    crossed = model("~ 0 + x1 + (1 | f1) + (1 | f2)", data, Y)
    lower = crossed.fit(parameter_space="psd", theta0=[0.016, 0.0014, 0.0003])
    assert lower.llf.item() == pytest.approx(289.190745, abs=1e-5)


@pytest.mark.parametrize(("seed", "index"), [(7, 169), (7, 175), (7, 219), (7, 244)])
def test_no_start_finds_a_higher_maximum(seed, index):
    """Designs on which a search from zero variances alone stops at a lower one."""
    problem, method = draw(seed, index), "REML" if index % 2 else "ML"
    drawn = responses(problem, np.random.default_rng([seed, index, 99]))
    kinds = ["Gaussian", "Gaussian, again", "noise alone", "groups alike", "counts"]
    Y = np.array([drawn[kind] for kind in kinds])
    fitted = fm.MultiLMM.from_arrays(Y, problem.X, problem.Z, components=problem.structure)
    found = fitted.fit(method, parameter_space="psd")
    scale = fitted.projection.scale[:, None] * fitted.projection.param_scale
    rng = np.random.default_rng(3)
    for _ in range(12):
        ratios = 10.0 ** rng.uniform(-3, 2.5, size=scale.shape)
        ratios[:, -1] = 1.0
        start = ratios * 10.0 ** rng.uniform(-2, 0.1, size=(len(Y), 1)) * scale
        other = fitted.fit(method, parameter_space="psd", theta0=start)
        both = (other.converged & found.converged).to_numpy()
        assert (other.llf - found.llf)[both].max() < 1e-4


@pytest.mark.parametrize(("case", "llf"), [(0, -27.711377), (1, -86.728323)])
def test_maxima_between_the_rays_of_the_coarse_grid(case, llf):
    """Lower by 0.658 and 0.380 where the coarse grid alone was looked at."""
    case = json.loads((EDGES / "lower_maxima.json").read_text())[case]
    data, Y = pd.DataFrame(case["data"]), np.array([case["y"]])
    small = fm.MultiLMM.from_formula(case["fixed"], case["random"], data, Y)
    psd = small.fit(case["method"], parameter_space="psd")
    assert psd.converged.all()
    assert psd.llf.item() == pytest.approx(llf, abs=1e-5)
    assert small.fit(case["method"]).llf.item() > llf - 1e-6


@pytest.mark.parametrize(
    ("seed", "index", "small", "method", "feature", "higher"),
    [
        (2029, 38, True, "ML", 1, [9.3613, 0.2199, 1.4346, 0.0, 0.0532]),
        (2029, 40, True, "REML", 5, [3.996, 0.0, 3.5848, 0.0557]),
        (2029, 42, True, "ML", 1, [2.5558, 0.0312, 4.6563, 0.0264]),
        (2029, 132, True, "REML", 11, [0.0, 0.7448, 1.3679, 0.4725]),
        (2029, 147, True, "REML", 7, [0.3169, 0.0685, -0.1473, 3.3193, 0.0169]),
        (2030, 134, False, "ML", 0, [1.28944258, 0.0]),
        (6101, 137, False, "REML", 0, [8.3355, 0.4397, 4.6684, 1.1632, 0.025]),
        (6101, 148, False, "ML", 0, [0.0, 0.8333]),
    ],
)
def test_maxima_that_share_a_summit_of_the_grid(seed, index, small, method, feature, higher):
    """Lower by 0.003 to 2.6 before parts of the grid counted; the last three were found later.

    At sigma2 = 0; between rays of a grid that lies 3.8 below the maximum that was found; at no
    variances, in a dip of 0.0006, where `no maximum` was the verdict.
    """
    problem, Y = drawn(seed, index, small)
    fitted = fm.MultiLMM.from_arrays(
        Y[[feature]], problem.X, problem.Z, components=problem.structure
    )
    likelihood = estimator_of(fitted.stats, method)
    features, projection = np.array([0]), fitted.projection
    llf = projection.natural_loglik(
        likelihood.evaluate(np.array([higher]), features).loglik, method, features
    )
    found = fitted.fit(method, parameter_space="psd")
    assert found.converged.item()
    assert found.llf.item() > llf[0] - 1e-4


def test_a_maximum_with_v_indefinite_is_not_preferred_to_a_lower_one():
    """REML: higher by 0.64 at [-1.1423, 2.0128], where V is no covariance."""
    problem, Y = drawn(6103, 1, False)
    fitted = fm.MultiLMM.from_arrays(Y[[1]], problem.X, problem.Z, components=problem.structure)
    found, scale = fitted.fit(), fitted.projection.scale[0] * fitted.projection.param_scale
    assert found.status.item() == "converged"
    assert found.llf.item() == pytest.approx(fitted.fit(parameter_space="psd").llf.item(), abs=1e-8)
    with pytest.warns(fm.ConvergenceWarning, match="1 indefinite"):
        other = fitted.fit(theta0=np.array([-1.1423, 2.0128]) * scale)
    assert other.llf.item() > found.llf.item() + 0.6


@pytest.mark.parametrize(
    ("seed", "index", "feature", "method", "space", "maximum"),
    [
        (6104, 1, 4, "REML", "unconstrained", [0.1647, -2.0083, 1.8297]),
        (6104, 55, 0, "REML", "unconstrained", [-0.418, 0.2433, -1.169, 2.047]),
        (6104, 70, 10, "REML", "unconstrained", [0.6666, 0.2431, 0.6263, 3.1305, 0.4052]),
        (2026, 54, 11, "ML", "psd", [2.4765, 0.0, 0.0397, 0.0599]),
    ],
)
def test_a_maximum_of_ratios_of_any_sign_beside_an_unbounded_edge(
    seed, index, feature, method, space, maximum
):
    """`no maximum` where variances were searched one at a time, or on a coarse grid."""
    problem, Y = drawn(seed, index, True)
    fitted = fm.MultiLMM.from_arrays(
        Y[[feature]], problem.X, problem.Z, components=problem.structure
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)  # some are `indefinite`
        found = fitted.fit(method, parameter_space=space)
    assert found.converged.item()
    scale = fitted.projection.scale[0] * fitted.projection.param_scale
    np.testing.assert_allclose(found.theta.to_numpy()[0] / scale, maximum, atol=2e-4)


def test_a_maximum_below_that_of_the_psd_space_is_none():
    """By 0.021 (it was `converged`): from the psd maximum the way is to the edge."""
    problem, Y = drawn(6104, 15, True)
    fitted = fm.MultiLMM.from_arrays(Y[[9]], problem.X, problem.Z, components=problem.structure)
    psd = fitted.fit("ML", parameter_space="psd")
    assert psd.llf.item() == pytest.approx(-52.839122, abs=1e-5)
    with pytest.warns(fm.ConvergenceWarning, match="1 no maximum"):
        assert np.isnan(fitted.fit("ML").llf.item())


def test_a_signed_grid_ends_at_the_edge_of_the_domain():
    """Values on it are log-likelihoods; beyond the last point of a ray V is soon singular."""
    problem, Y = drawn(6104, 1, True)
    fitted = fm.MultiLMM.from_arrays(Y, problem.X, problem.Z, components=problem.structure)
    host = fitted.projection.in_numpy
    for method in ("REML", "ML"):
        likelihood = estimator_of(fitted.stats, method)
        for fineness in ("coarse", "fine")[: 1 + (method == "ML")]:
            grid = signed_grid(host, method, profile_grid(host, method), fineness)
            values, sigma2 = grid.profile(host.u[:2], host.rss[:2])
            theta = grid.theta * sigma2[:, [1]]
            every = np.ones(len(theta), dtype=int)
            loglik = likelihood.evaluate(theta, every).loglik
            assert np.isfinite(loglik).all()
            np.testing.assert_allclose(values[:, 1], loglik, rtol=1e-8, atol=1e-6)
            last = grid.outermost & (values[:, 1] < np.inf)
            beyond = theta[last]
            beyond[:, :-1] *= 1.0 + 2e-6
            exists = np.isfinite(likelihood.evaluate(beyond, every[last]).loglik)
            assert not exists[(grid.theta[last, :-1] <= 0).all(axis=1)].any()
            summits = grid.summits(values)
            around = values[grid.neighbours].max(axis=1)
            np.testing.assert_array_equal(summits, values >= around)
            climbed = grid.climb(np.arange(2), values)
            assert summits[climbed, [0, 1]].all()


def test_a_grid_knows_which_points_are_next_to_each_other():
    data = pd.read_csv(EDGES / "d114.csv")
    crossed = model("~ 1 + (1 | f1) + (x1 | f2)", data, np.cos(np.arange(len(data)))[None])
    for grid in (profile_grid(crossed.projection, "REML"), fine_grid(crossed.projection, "ML")()):
        rays, _, radii = grid.weight.shape
        theta, each = grid.theta, np.arange(len(grid.theta))[:, None]
        assert len(theta) == rays * radii + 1
        near = [set(row) - {i} for i, row in enumerate(grid.neighbours)]
        assert all(i in near[j] for i, row in enumerate(near) for j in row)
        assert near[-1] == set(range(0, rays * radii, radii))
        unique = np.where(grid.neighbours == each, -1, grid.neighbours)
        assert [len(row) for row in near] == (unique >= 0).sum(axis=1).tolist()
        values = np.random.default_rng(1).normal(size=(len(theta), 2))
        top = (values[:, None] >= values[grid.neighbours]).all(axis=1)
        np.testing.assert_array_equal(grid.summits(values), top)
        # Every point is in the psd space.
        for block in crossed.projection.structure.blocks():
            assert np.linalg.eigvalsh(theta[:, block]).min() > -1e-9 * theta.max()


def test_no_eigenbasis_is_made_for_a_grid_that_a_design_does_not_have():
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"g": np.arange(900) % 151, "x": rng.normal(size=900)})
    slopes = model("~ x + (x | g)", data, rng.normal(size=(2, 900)) + data.x.to_numpy())
    slopes.fit(parameter_space="psd", engine="blocked")
    assert "basis" not in vars(slopes.projection)


# ---- no maximum ------------------------------------------------------------------------------


def test_a_maximum_inside_is_found_though_the_likelihood_is_unbounded_at_the_edge():
    with gzip.open(EDGES / "no_maximum_d03.json.gz") as file:
        case = json.load(file)
    arrays = (np.array(case[name]) for name in "YXZ")
    fitted = fm.MultiLMM.from_arrays(*arrays, components=case["d"])
    reml, psd = fitted.fit(), fitted.fit(parameter_space="psd")
    assert reml.status.iloc[5] == "converged"
    assert reml.llf.iloc[5] == pytest.approx(-217.4466508, abs=1e-6)
    assert (reml.theta.iloc[5] > 0).all()
    with pytest.warns(fm.ConvergenceWarning, match="1 no maximum"):
        ml = fitted.fit("ML")
    ml_psd = fitted.fit("ML", parameter_space="psd")
    for j in (4, 5):
        assert ml.status.iloc[j] == "converged"
        assert ml.llf.iloc[j] == pytest.approx(ml_psd.llf.iloc[j], abs=1e-6)
    np.testing.assert_allclose(reml.theta.iloc[5], psd.theta.iloc[5], rtol=1e-5)


def test_a_maximum_at_negative_variances_is_found_from_somewhat_larger_ones():
    """The psd estimate has both variances at zero, from where the search runs to the edge."""
    problem = draw(7, 5)
    y = responses(problem, np.random.default_rng([7, 5, 99]))["noise alone"]
    fitted = fm.MultiLMM.from_arrays(y[None], problem.X, problem.Z, components=problem.structure)
    with pytest.warns(fm.ConvergenceWarning, match="1 indefinite"):
        result = fitted.fit()
    assert result.llf.item() == pytest.approx(-54.379968, abs=1e-5)
    assert np.abs(result.score.to_numpy()).max() < 1e-3


# ---- a residual variance of zero -------------------------------------------------------------


def two_occasions():
    rng = np.random.default_rng(6)
    data = pd.DataFrame({"id": np.repeat(np.arange(30), 2), "t": np.tile([0.0, 1.0], 30)})
    u = rng.normal(size=(30, 2))
    data["y"] = u[data.id, 0] + u[data.id, 1] * data.t + rng.normal(0, 0.05, 60)
    return data


@pytest.mark.parametrize("engine", ["auto", "general", "blocked"])
@pytest.mark.parametrize("df", ["satterthwaite", "kenward-roger"])
def test_tests_where_the_residual_variance_is_zero(engine, df):
    """The slopes' differences are 30 numbers, their t-test has 29 df."""
    data = two_occasions()
    result = model("~ t + (t || id)", data, data[["y"]].T).fit(parameter_space="psd", engine=engine)
    assert result.theta["Residual"].item() == 0.0
    table = result.t_test(df=df)
    np.testing.assert_allclose(table.df.iloc[0], 29.0, rtol=1e-6)
    assert table.tvalue["t"].item() == pytest.approx(1.5509, abs=1e-4)
    np.testing.assert_allclose(table.pvalue.iloc[0], [0.82156, 0.13177], atol=1e-5)
    page = result.sel("y")  # ratios to a residual variance of zero, without raw warnings
    assert "Residual" in str(page.summary())
    assert page.bse.iloc[-2:].isna().all()


def test_moments_are_continuous_to_a_residual_variance_of_zero():
    """Unbalanced: at zero they are the limits, whatever the likelihood knows of Z'RZ."""
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"id": np.repeat(np.arange(12), 2), "t": rng.normal(size=24)})
    fitted = model("~ t + (t || id)", data, rng.normal(size=(1, 24))).fit(engine="general")
    likelihood, L = fitted.fitted.likelihood, np.eye(2)[None]
    theta = np.array([[0.7, 0.4, 0.0]])

    class Bare:
        apply_T = staticmethod(likelihood.apply_T)
        projection = type("Bare", (), {})()

    for name in ("structure", "H", "XX_inverse"):
        setattr(Bare.projection, name, getattr(likelihood.projection, name))
    exact = contrast_moments(likelihood, theta, L, adjustment=True)
    for other, rtol in ((Bare, 2e-3), (likelihood, 1e-3)):
        at = theta if other is Bare else theta + np.array([0.0, 0.0, 1e-7])
        found = contrast_moments(other, at, L, adjustment=True)
        for name in ("variance", "gradient", "adjustment"):
            value = getattr(exact, name)
            assert np.abs(getattr(found, name) - value).max() < rtol * np.abs(value).max()
    # Just below and above the value from which the residual's entries are divided by sigma2.
    low, high = (
        contrast_moments(likelihood, theta + np.array([0.0, 0.0, s]), L, adjustment=True)
        for s in (0.01 - 1e-9, 0.01 + 1e-9)
    )
    np.testing.assert_allclose(low.gradient, high.gradient, rtol=1e-6)
    np.testing.assert_allclose(low.adjustment, high.adjustment, rtol=1e-5, atol=1e-9)


# ---- units -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("power", [-200, -161, -155, -150, -100, 100, 150, 200])
def test_units_change_nothing_or_the_verdict_says_so(power, missing):
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"g": np.repeat(np.arange(10), 6).astype(str)})
    Y = rng.normal(size=(3, 60)) + rng.normal(size=(3, 10))[:, data.g.astype(int)]
    if missing:
        Y[0, 3], Y[1, 30] = np.nan, np.nan
    options = {"missing": "feature" if missing else "raise"}
    one = fm.MultiLMM.from_formula("~ 1 + (1 | g)", data=data, Y=Y, **options)
    other = fm.MultiLMM.from_formula("~ 1 + (1 | g)", data=data, Y=Y * 10.0**power, **options)
    plain = one.fit(parameter_space="psd")
    if abs(power) > 154:
        with pytest.warns(fm.ConvergenceWarning, match="3 zero variance|3 non finite"):
            scaled = other.fit(parameter_space="psd")
        assert not scaled.converged.any()
        return
    scaled = other.fit(parameter_space="psd")
    ratio = plain.theta["g"] / plain.theta["Residual"]
    np.testing.assert_allclose(scaled.theta["g"] / scaled.theta["Residual"], ratio, rtol=1e-9)
    np.testing.assert_allclose(scaled.params, plain.params * 10.0**power, rtol=1e-9)


@pytest.mark.parametrize("random", ["(x | g)", "cs(0 + t | g)"])
@pytest.mark.parametrize("missing", [False, True])
def test_shares_and_correlations_have_no_units(random, missing):
    """Squares of theta had no room: errors of zero at 1e-100, NaN and raw warnings at 1e150."""
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"g": np.repeat(list("abcdefghij"), 6), "x": rng.normal(size=60)})
    data["t"] = np.tile(["u", "v"], 30)
    units = np.array([1.0, 1e-40, 1e-100, 1e-150, 1e80, 1e150])
    y = rng.normal(size=60) + np.repeat(rng.normal(size=10), 6) * (1.0 + data.x.to_numpy())
    if missing:
        y[3] = np.nan
    Y, options = units[:, None] * y, {"missing": "feature" if missing else "raise"}
    model = fm.MultiLMM.from_formula("~ x", random, data, Y, **options)
    result = model.fit(parameter_space="psd")
    assert result.converged.all()
    shares = [result.icc(), result.variance_fractions()]
    found = [*shares, result.r_squared()[["marginal", "conditional", "marginal_se"]]]
    parameters = result.random_parameters()
    found += [parameters[["estimate"]].isel(param=[0]) ** 2 / units[:, None] ** 2]
    if random == "(x | g)":
        found += [result.random_correlations()[["estimate", "se"]]]
    else:
        found += [parameters[["se"]].isel(param=[0]) / units[:, None]]
    for each in found:
        for values in each.data_vars.values():
            assert np.isfinite(values).all()
            np.testing.assert_allclose(
                values, np.tile(values[:1], (6,) + (1,) * (values.ndim - 1)), rtol=1e-8
            )


@pytest.mark.parametrize("missing", [False, True])
def test_a_feature_in_units_of_its_own_among_others(missing):
    """Raw warnings of overflow in seven methods, and no posterior, for one feature at 1e150."""
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"g": np.repeat(list("abcdefghij"), 6), "x": rng.normal(size=60)})
    Y = rng.normal(size=(8, 60)) + np.repeat(rng.normal(size=(8, 10)), 6, axis=1)
    Y[:3] = Y[0] * np.array([[1.0], [1e150], [1e-150]])
    if missing:
        Y[3, 0] = np.nan
    options = {"missing": "feature" if missing else "raise"}
    result = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y, **options).fit()
    assert result.converged.all()
    for df in ("integrated", "satterthwaite", "residual"):
        table = result.t_test(df=df).ds
        assert np.isfinite(table["p"]).all()
        np.testing.assert_allclose(table["estimate"][1] / 1e150, table["estimate"][0], rtol=1e-8)
    assert np.isfinite(result.posterior_variances()["mean"]).all()
    information = result.fim()["FIM_theta"].to_numpy()
    assert np.isnan(information[1:3]).all()  # no room for the fourth power of the units
    assert np.isfinite(np.delete(information, [1, 2], axis=0)).all()
    moderated = result.t_test(moderated=True).ds
    assert np.isfinite(moderated["p"][3:]).all()
    result.moderate()


# ---- profiles --------------------------------------------------------------------------------


def test_profiles_report_and_stop():
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"g": np.repeat(np.arange(8), 6).astype(str), "x": rng.normal(size=48)})
    Y = rng.normal(size=(2, 48)) + rng.normal(size=(2, 8))[:, data.g.astype(int)]
    result = model("~ x + (x || g)", data, Y).fit(parameter_space="psd")
    seen = []
    full = result.conf_int_theta(
        method="profile", progress=lambda done, of: seen.append((done, of))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert np.isfinite(full).all()
    with pytest.warns(fm.ConvergenceWarning, match="`max_seconds` have passed"):
        stopped = result.conf_int_theta(method="profile", max_seconds=1e-9)
    assert stopped.shape == full.shape
    np.testing.assert_allclose(
        result.conf_int_theta(method="profile", max_seconds=1e6), full, rtol=1e-12
    )
    with pytest.raises(fm.InputError, match="max_seconds"):
        result.conf_int_theta(method="profile", max_seconds=0)


# ---- effects that are almost collinear -------------------------------------------------------


def calendar_years():
    return pd.read_csv(EDGES / "calendar_years.csv")


def both_ways(method="REML", space="psd", engine="auto", origin=2004.0):
    """Fits with the years as they are and with years since an origin."""
    data = calendar_years()
    data["c"] = data["yr"] - 2004.0
    data["x"] = data["c"] + origin
    Y = np.vstack([data["y"], 2.0 + np.cos(np.arange(len(data)))])
    options = {"parameter_space": space, "engine": engine}
    fits = [model(f"~ {v} + ({v} | p)", data, Y).fit(method, **options) for v in ("x", "c")]
    return data, *fits, np.array([[1.0, -origin], [0.0, 1.0]])


def matrix(theta):
    return np.array([[theta[0], theta[2]], [theta[2], theta[1]]])


@pytest.mark.parametrize("engine", ["auto", "general"])
@pytest.mark.parametrize("space", ["psd", "unconstrained"])
def test_calendar_years(space, engine):
    data = calendar_years()
    fitted = model("~ yr + (yr | p)", data, data[["y"]].T)
    result = fitted.fit(parameter_space=space, engine=engine)
    assert result.llf.item() == pytest.approx(-102.38084, abs=1e-5)
    assert result.tvalues["yr"].item() == pytest.approx(4.96872, abs=1e-5)
    assert result.t_test().df["yr"].item() == pytest.approx(10.981, abs=1e-3)


@pytest.mark.parametrize("origin", [100.0, 2004.0, 10000.0])
@pytest.mark.parametrize("method", ["REML", "ML"])
def test_everything_about_almost_collinear_effects_is_that_of_centred_ones(method, origin):
    data, result, centred, A = both_ways(method, origin=origin)
    rtol = 1e-6 * (origin / 1000.0) ** 2 + 1e-6
    # Z'Z holds squares of the years: digits go with the square of mean over spread. Libraries of
    # linear algebra round differently: up to 1e-9 (origin / 3000)^2 was seen.
    np.testing.assert_allclose(result.llf, centred.llf, rtol=2e-9 * (1.0 + (origin / 4000.0) ** 2))
    np.testing.assert_allclose(result.theta["Residual"], centred.theta["Residual"], rtol=rtol)
    for j in range(2):
        turned = A @ matrix(centred.theta.to_numpy()[j]) @ A.T
        np.testing.assert_allclose(matrix(result.theta.to_numpy()[j]), turned, rtol=rtol)
    effects = result.blup(se="conditional")["blup"].to_numpy().reshape(2, -1, 2)
    others = centred.blup(se="conditional")["blup"].to_numpy().reshape(2, -1, 2)
    np.testing.assert_allclose(effects, others @ A.T, rtol=1e-4, atol=1e-6)
    for se in ("conditional", "prediction"):
        pair = [r.blup(se=se)["se"].to_numpy().reshape(2, -1, 2) for r in (result, centred)]
        np.testing.assert_allclose(pair[0][..., 1], pair[1][..., 1], rtol=1e-5, atol=1e-7)
        assert np.isfinite(pair[0]).all()
    J = np.eye(4)
    for column, (a, b) in enumerate([(0, 0), (1, 1), (0, 1)]):
        E = np.zeros((2, 2))
        E[a, b] = E[b, a] = 1.0
        image = A @ E @ A.T
        J[:3, column] = image[0, 0], image[1, 1], image[0, 1]
    inside = J @ np.linalg.inv(centred.fim()["FIM_theta"].to_numpy()[0]) @ J.T
    np.testing.assert_allclose(result.bse_theta.iloc[0], np.sqrt(np.diag(inside)), rtol=1e-5)
    new = data.head(7)
    one, other = (r.predict(new, se=True) for r in (result, centred))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6)
    for df in ("satterthwaite", "kenward-roger")[: 1 + (method == "REML")]:
        tables = [r.t_test(df=df).ds.isel(contrast=1) for r in (result, centred)]
        for name in ("t", "df", "p"):
            np.testing.assert_allclose(tables[0][name], tables[1][name], rtol=1e-5)


def test_files_tests_and_limits_of_almost_collinear_effects(tmp_path):
    data, result, centred, _ = both_ways()
    result.save(tmp_path / "years.nc")
    again = fm.MultiLMMResults.load(tmp_path / "years.nc")
    np.testing.assert_array_equal(again.blup(), result.blup())
    np.testing.assert_array_equal(again.pvalues, result.pvalues)
    tests = [r.variance_test()["statistic"].to_numpy() for r in (result, centred)]
    np.testing.assert_allclose(tests[0][:, 1], tests[1][:, 1], rtol=1e-3, atol=1e-6)
    Y = np.vstack([data["y"], 2.0 + np.cos(np.arange(len(data)))])
    smaller = model("~ x + (0 + x | p)", data, Y).fit(parameter_space="psd")
    np.testing.assert_allclose(tests[0][:, 0], 2.0 * (result.llf - smaller.llf), atol=1e-5)
    with pytest.warns(fm.ConvergenceWarning, match="centre the variable"):
        limits = [r.conf_int_theta(method="profile", features=[0]) for r in (result, centred)]
    np.testing.assert_allclose(limits[0][:, 1], limits[1][:, 1], rtol=1e-4, atol=1e-9)
    assert np.isnan(limits[0][:, 0]).all()
    with pytest.raises(fm.InputError, match="centre"):
        result.t_test(df="integrated")
    result.draw(2, rng=1)
    str(result.sel(0).random_effects_cov)


def test_a_constant_slope_is_still_refused():
    data = calendar_years()
    data["yr"] = 2004.0
    with pytest.raises(fm.InputError, match="cannot be told apart"):
        model("~ 1 + (yr | p)", data, data[["y"]].T).fit()


def test_what_no_centred_basis_can_help_names_the_variable_to_centre():
    data = calendar_years()
    Y = np.vstack([data["y"], np.cos(np.arange(len(data)))])
    with pytest.raises(fm.InputError, match=r"yr of p.*centre it"):
        model("~ yr + (yr + I(yr**2) | p)", data, Y).fit()
    data["c"], data["z"] = data["yr"] - data["yr"].mean(), np.sin(np.arange(len(data)))
    Y = np.vstack([data["y"], np.cos(np.arange(len(data)))])
    years, centred = (
        model(f"~ {v} + ({v} * z | p)", data, Y).fit(parameter_space="psd") for v in ("yr", "c")
    )
    np.testing.assert_allclose(years.llf, centred.llf, rtol=1e-8)


@pytest.mark.parametrize("engine", ["auto", "general", "blocked"])
def test_degrees_of_freedom_do_not_hang_on_the_rounding_of_scores(engine):
    """A score of 1e-8 made the curvature indefinite: 15.82 and 8.50 for 15.44 and 9.71."""
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"p": np.repeat(np.arange(20), 5), "c": np.tile(np.arange(5.0), 20)})
    data["g"], data["x"] = np.tile(np.arange(10), 10), data["c"] + 1e5
    b = rng.normal(size=(20, 2))
    Y = [b[data.p, 0] + 0.3 * b[data.p, 1] * data.c + rng.normal(size=100) for _ in range(4)]
    fits = [
        model(f"~ {v} + ({v} | p) + (1 | g)", data, np.array(Y)).fit(
            parameter_space="psd", engine=engine
        )
        for v in ("x", "c")
    ]
    found, right = (r.t_test(df="satterthwaite").df.iloc[:, 1] for r in fits)
    np.testing.assert_allclose(found, right, rtol=1e-6)
    np.testing.assert_allclose(right, [19.0, 15.438111, 19.0, 9.705135], rtol=1e-6)


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_calendar_years_of_features_that_lack_samples(method, tmp_path):
    """Refused before; weights of their own, rare patterns and ones that many features share."""
    data = calendar_years()
    data["c"], n = data["yr"] - 2004.0, len(data)
    rng = np.random.default_rng(1)
    Y = data["y"].to_numpy() + rng.normal(size=(14, n))
    for j in range(14):
        Y[j, [0, 5, 9] if j > 4 else rng.choice(n, j, replace=False)] = np.nan
    weights = np.vstack([rng.uniform(0.5, 2.0, (5, n)), np.ones((9, n))])
    options = {"missing": "feature", "weights": weights}
    result, centred = (
        fm.MultiLMM.from_formula(f"~ {v}", f"({v} | p)", data, Y, **options).fit(
            method, parameter_space="psd"
        )
        for v in ("yr", "c")
    )
    assert result.converged.all()
    np.testing.assert_allclose(result.llf, centred.llf, rtol=1e-8)
    np.testing.assert_allclose(result.theta["Residual"], centred.theta["Residual"], rtol=1e-6)
    A = np.array([[1.0, -2004.0], [0.0, 1.0]])
    for j in range(14):
        turned = A @ matrix(centred.theta.to_numpy()[j]) @ A.T
        np.testing.assert_allclose(matrix(result.theta.to_numpy()[j]), turned, rtol=1e-6)
    both = [r.blup().to_numpy().reshape(14, -1, 2) for r in (result, centred)]
    np.testing.assert_allclose(both[0], both[1] @ A.T, rtol=1e-4, atol=1e-6)
    pair = [r.blup(se="prediction")["se"].to_numpy().reshape(14, -1, 2) for r in (result, centred)]
    np.testing.assert_allclose(pair[0][..., 1], pair[1][..., 1], rtol=1e-5)
    slopes = [r.bse_theta.iloc[:, [1, 3]] for r in (result, centred)]
    np.testing.assert_allclose(*slopes, rtol=1e-5)
    for df in ("satterthwaite", "kenward-roger")[: 1 + (method == "REML")]:
        tables = [r.t_test(df=df).ds.isel(contrast=1) for r in (result, centred)]
        for name in ("t", "df", "p"):
            np.testing.assert_allclose(tables[0][name], tables[1][name], rtol=1e-5)
    one, other = (r.predict(data.head(7), se=True) for r in (result, centred))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6)
    tests = [r.variance_test()["statistic"].to_numpy()[:, 1] for r in (result, centred)]
    np.testing.assert_allclose(*tests, rtol=1e-4, atol=1e-6)
    assert np.isfinite(result.variance_test()["statistic"]).all()
    np.testing.assert_allclose(result.icc()["estimate"], centred.icc()["estimate"], rtol=1e-5)
    with pytest.raises(fm.InputError, match="centre"):
        result.t_test(df="integrated")
    result.save(tmp_path / "years.nc")
    again = fm.MultiLMMResults.load(tmp_path / "years.nc")
    np.testing.assert_array_equal(again.blup(), result.blup())


def small_residuals(m: int = 16):
    """Two samples of each of 12 people, with residuals from almost none to large ones."""
    rng = np.random.default_rng(4)
    data = pd.DataFrame(
        {"id": np.repeat(np.arange(12), 2).astype(str), "t": np.tile([0.0, 1.0], 12)}
    )
    people = np.repeat(np.arange(12), 2)
    Y = 2 * rng.normal(size=(m, 12))[:, people]
    Y += 1.5 * rng.normal(size=(m, 12))[:, people] * data.t.to_numpy()
    Y += np.linspace(0.001, 2, m)[:, None] * rng.normal(size=(m, 24))
    return data, Y


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_moderated_tests_where_some_residual_variances_are_zero(method):
    data, Y = small_residuals()
    result = fm.MultiLMM.from_formula("~ t", "(t || id)", data, Y).fit(
        method, parameter_space="psd"
    )
    at_zero = (result.theta["Residual"] == 0).to_numpy()
    assert 0 < at_zero.sum() < len(Y) / 2
    plain, moderated = result.t_test("t"), result.t_test("t", moderated=True)
    assert np.isfinite(moderated.pvalue.to_numpy()).all()
    for name in ("sd", "df", "pvalue"):  # of such a variance nothing is known by itself
        pd.testing.assert_frame_equal(
            getattr(moderated, name)[at_zero], getattr(plain, name)[at_zero], check_exact=False
        )
    assert (moderated.df.to_numpy() != plain.df.to_numpy())[~at_zero].all()


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(("y", "x"), [(1e-100, 1e100), (1e100, 1e-100), (1e150, 1e-30)])
def test_a_slopes_variance_that_no_number_holds_is_a_verdict(y, x, missing):
    rng = np.random.default_rng(8)
    data = pd.DataFrame({"x": rng.normal(size=48), "g": np.repeat(list("abcdefgh"), 6)})
    Y = rng.normal(size=(3, 48)) + rng.normal(size=(3, 8))[:, np.repeat(np.arange(8), 6)]
    options = {}
    if missing:
        Y[0, 3], options["missing"] = np.nan, "feature"
    data["x"] *= x
    model = fm.MultiLMM.from_formula("~ 1", "(x | g)", data, Y * y, **options)
    with pytest.warns(fm.ConvergenceWarning, match="non finite"):
        result = model.fit(parameter_space="psd")
    assert (result.status == "non finite").all()
    assert result.theta.isna().all(axis=None)
    assert result.params.isna().all(axis=None)


def test_a_maximum_of_the_psd_space_is_found_though_the_likelihood_is_unbounded():
    """ML of 11 samples: a start that is given ends at these maxima, the search ran to the edge."""
    case = json.loads((EDGES / "unbounded_ml.json").read_text())
    crossed = fm.MultiLMM.from_formula(
        "~ c", "(1 | a) + (x || b)", pd.DataFrame(case["data"]), np.array(case["Y"])
    )
    found = crossed.fit("ML", parameter_space="psd")
    assert (found.status == "boundary").all()
    np.testing.assert_allclose(found.llf, [-24.285911, -17.373005, -20.313845], atol=1e-5)


def test_a_maximum_below_that_of_the_psd_space_gives_way_to_one_with_v_indefinite():
    """By 0.052, `converged`: from the psd maximum the way leads where V is no covariance."""
    problem, Y = drawn(6104, 35, True)
    fitted = fm.MultiLMM.from_arrays(Y[[7]], problem.X, problem.Z, components=problem.structure)
    with pytest.warns(fm.ConvergenceWarning, match="1 indefinite"):
        found = fitted.fit()
    assert found.llf.item() > fitted.fit(parameter_space="psd").llf.item() + 0.5
