"""Predictions of new samples against V itself, the columns made of new data, fitted values."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import problems as pb
import pytest
import xarray as xr
from numpy.testing import assert_allclose
from scipy.stats import t as student

import flashmm as fm
from flashmm import InputError
from flashmm.formulas.build import build_design
from flashmm.formulas.recipe_text import recipe_from_text, recipe_to_text

KINDS = [
    (kind, engine)
    for kind in ("intercept", "correlated", "nested", "crossed", "slope_and_crossed", "dense")
    for engine in pb.engines(pb.PROBLEMS[kind])
]


# ---- numbers ---------------------------------------------------------------------------------


def truth(problem, y, theta, x, z):
    """x'beta + z'b, the variances of its parts, and var of the sum, from V; C, D and their tie."""
    d = pb.dense(problem, y, theta, "REML")
    V, D = problem.V(theta), problem.D(theta)
    cross = -d.covariance @ problem.X.T @ np.linalg.inv(V) @ problem.Z @ D  # cov(beta, b - b_hat)
    variance = x @ d.covariance @ x + z @ d.prediction @ z + 2 * x @ cross @ z
    return x @ d.beta, x @ d.covariance @ x, x @ d.beta + z @ d.blup, variance, z @ D @ z


@pytest.mark.parametrize(("kind", "engine"), KINDS)
@pytest.mark.parametrize("space", ["psd", "unconstrained"])
def test_predictions_equal_those_from_dense_matrices(kind, engine, space):
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng(5)
    Y = problem.simulate(problem.theta(rng), 3, rng)
    res = problem.fit(Y, parameter_space=space, engine=engine)
    assert res.converged.all()
    X, Z = rng.normal(size=(4, problem.p)), rng.normal(size=(4, problem.structure.q))
    Z[0] = problem.Z[0]
    given = {"X": X, "Z": Z, "se": True}
    population = res.predict(**given)
    new_group = res.predict(**given, interval="prediction")
    conditional = res.predict(**given, level="conditional")
    observation = res.predict(**given, level="conditional", interval="prediction", alpha=0.1)
    for j in range(3):
        theta = res.theta.to_numpy()[j]
        for i in range(4):
            mean, variance, own, own_variance, spread = truth(problem, Y[j], theta, X[i], Z[i])
            unit = np.sqrt(np.abs(own_variance))
            assert_allclose(population.prediction[j, i], mean, rtol=1e-8, atol=1e-8 * unit)
            assert_allclose(conditional.prediction[j, i], own, rtol=1e-8, atol=1e-8 * unit)
            for found, expected in (
                (population, variance),
                (conditional, own_variance),
                (new_group, variance + spread + theta[-1]),
                (observation, own_variance + theta[-1]),
            ):
                if expected > 0:
                    assert_allclose(found.se[j, i] ** 2, expected, rtol=1e-8)
                else:  # a negative variance, in the unconstrained space only
                    assert np.isnan(found.se[j, i])
                    assert (theta[:-1] < 0).any()
    half = student.isf(0.05, observation.df) * observation.se
    assert_allclose(observation.upper, observation.prediction + half, rtol=1e-12)
    assert_allclose(observation.lower, observation.prediction - half, rtol=1e-12)


@pytest.mark.parametrize("kind", ["intercept", "correlated", "crossed"])
def test_degrees_of_freedom_follow_from_the_gradient_of_the_variance(kind):
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng(8)
    Y = problem.simulate(problem.theta(rng), 2, rng)
    res = problem.fit(Y)
    X, Z = rng.normal(size=(3, problem.p)), rng.normal(size=(3, problem.structure.q))
    found = res.predict(X=X, Z=Z, level="conditional", interval="prediction")
    residual = res.predict(X=X, Z=Z, level="conditional", interval="prediction", df="residual")
    np.testing.assert_array_equal(residual.df, problem.n - problem.p)
    for j in range(2):
        theta = res.theta.to_numpy()[j]
        W = np.linalg.inv(problem.evaluate(Y[j], theta, "REML").observed[0])
        assert np.linalg.eigvalsh(W)[0] > 0
        for i in range(3):

            def variance(at, j=j, i=i):
                return truth(problem, Y[j], at, X[i], Z[i])[3] + at[-1]

            steps = 1e-4 * theta[-1] * np.eye(theta.size)
            gradient = [
                (
                    8 * (variance(theta + h) - variance(theta - h))
                    - (variance(theta + 2 * h) - variance(theta - 2 * h))
                )
                / (12 * h.sum())
                for h in steps
            ]
            expected = 2 * variance(theta) ** 2 / (gradient @ W @ gradient)
            assert_allclose(found.df[j, i], expected, rtol=1e-6)


def test_a_small_memory_budget_changes_no_prediction():
    problem = pb.PROBLEMS["crossed"]
    rng = np.random.default_rng(6)
    Y = problem.simulate(problem.theta(rng), 5, rng)
    rows = {"X": problem.X[:7], "Z": problem.Z[:7], "level": "conditional", "se": True}
    whole, frugal = (problem.fit(Y, memory=size).predict(**rows) for size in (2**30, 1))
    xr.testing.assert_allclose(whole, frugal, rtol=1e-9)
    part = problem.fit(Y).predict(**rows, features=[3, 1])
    xr.testing.assert_allclose(part, whole.isel(feature=[3, 1]), rtol=1e-9)


def test_new_samples_of_simulated_groups_are_covered_as_often_as_promised():
    # Known and new groups, 4,000 features: the error of a rate of 0.1 is 0.005.
    m, groups, per = 4000, 30, 6
    rng = np.random.default_rng(7)
    data = pd.DataFrame({"x": rng.normal(size=groups * per), "g": np.repeat(range(groups), per)})
    b = 0.8 * rng.normal(size=(m, groups + 1))
    noise = rng.normal(size=(m, len(data)))
    Y = 1.0 + 0.5 * data["x"].to_numpy() + b[:, data["g"]] + noise
    res = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y).fit(parameter_space="psd")
    new = pd.DataFrame({"x": [0.3, -2.0, 0.3], "g": [0, 7, groups]})
    future = 1.0 + 0.5 * new["x"].to_numpy() + b[:, new["g"]] + rng.normal(size=(m, 3))
    options = {"interval": "prediction", "alpha": 0.1}
    own = res.predict(new, level="conditional", allow_new_levels=True, **options)
    anyone = res.predict(new, **options)
    for limits in (own, anyone):
        covered = ((future > limits.lower) & (future < limits.upper)).mean(axis=0)
        # Variances are estimated from 30 groups: coverage falls short by up to 0.01.
        assert_allclose(covered, 0.9, atol=0.02)
    width = (own.upper - own.lower).mean("feature")
    assert (width[:2] < 0.85 * (anyone.upper - anyone.lower).mean("feature")[:2]).all()
    assert_allclose(own.se[:, 2], anyone.se[:, 2], rtol=1e-10)


# ---- the columns of new samples --------------------------------------------------------------


def samples(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "k": rng.integers(1, 4, n),
            "f": rng.choice(list("abc"), n),
            "c": pd.Categorical(rng.choice(["lo", "hi"], n), ["lo", "hi"]),
            "g": rng.integers(1, 9, n).astype(float),
            "h": rng.choice(list("uvw"), n),
            "b": rng.random(n) > 0.5,
        },
        index=[f"s{i}" for i in range(n)],
    )


@pytest.mark.parametrize("written", [False, True], ids=["kept", "from text"])
@pytest.mark.parametrize(
    ("fixed", "random"),
    [
        ("~ scale(x)*f + C(k) + c + poly(x, 3) + b", "(1 + x | g) + (1 | h)"),
        ("~ 0 + bs(x, df=4) + f:c", "~ 0 + h"),
        ("~ x + C(f, contr.sum)", ["~ 0 + h:x", "(f | g)", "~ 0 + C(k)"]),
        ("~ cr(x, df=3) + center(x):f", "(1 | g:h)"),
        ("~ log(k) + {x*2}", "diag(f | g)"),
        ("~ 1", {"runs": "(1 | h / g)"}),
    ],
)
def test_some_rows_alone_get_the_columns_they_had(fixed, random, written):
    data = samples()
    design = build_design(fixed, random, data).design
    recipe = design.recipe
    if written:
        recipe = recipe_from_text(recipe_to_text(recipe))
    new = data.iloc[[41, 3, 3, 17]]  # scale() and the levels of factors know but these
    assert_allclose(recipe.fixed_rows(new), design.X[[41, 3, 3, 17]], rtol=1e-12, atol=1e-14)
    rows = recipe.random_rows(new, design.structure, known=True)
    assert_allclose(rows.Z.toarray(), design.Z.toarray()[[41, 3, 3, 17]], rtol=1e-12, atol=1e-14)
    assert not rows.unknown
    assert not rows.new.any()


def fitted(fixed="~ scale(x) + f", random="(1 + x | g) + (1 | h)", **options):
    data = samples()
    Y = np.random.default_rng(1).normal(size=(3, len(data)))
    model = fm.MultiLMM.from_formula(fixed, random, data, Y, **options)
    return data, Y, model.fit(parameter_space="psd")


def test_unknown_levels_add_the_variance_of_their_effects():
    data, _, res = fitted()
    new = data.iloc[:2].assign(g=[99.0, data["g"].iloc[1]], h=["u", "new"])
    with pytest.raises(InputError, match=r"'g' has levels that the model does not know: '99'"):
        res.predict(new, level="conditional")
    allowed = res.predict(new, level="conditional", se=True, allow_new_levels=True)
    # The same rows with the unknown levels' columns left empty, and e'De on top.
    recipe, structure = res.recipe, res.stats.structure
    Z = recipe.random_rows(new, structure, known=True).Z.toarray()
    assert (Z != 0).sum(axis=1).tolist() == [1, 2]
    X = recipe.fixed_rows(new)
    bare = res.predict(X=X, Z=Z, level="conditional", se=True)
    assert_allclose(allowed.prediction, bare.prediction, rtol=1e-12)
    theta = res.theta
    x = new["x"].iloc[0]
    one = theta["g[Intercept]"] + 2 * x * theta["g[Intercept,x]"] + x * x * theta["g[x]"]
    added = np.column_stack([one, theta["h"]])
    assert_allclose(allowed.se.to_numpy() ** 2 - bare.se.to_numpy() ** 2, added, atol=1e-12)


def test_the_population_needs_no_groups():
    data, _, res = fitted()
    new = data[["x", "f"]]
    assert_allclose(res.predict(new), res.params @ res.recipe.fixed_rows(data).T, rtol=1e-12)
    wide = res.predict(new, interval="prediction")
    assert (wide.se > res.predict(new, se=True).se).all()
    with pytest.raises(InputError, match="'g' needs the column 'g'"):
        res.predict(new, level="conditional")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f": "d"}, "'f' of the new data has levels that the model does not know: 'd'. It was"),
        ({"x": np.nan}, "'x' of the new data is missing in rows 's0'"),
        ({"x": np.inf}, "'x' of `data` is infinite"),
        ({"x": "a"}, "'x' held numbers when the model was built"),
        ({"f": None}, "'f' of the new data is missing"),
        ({"g": None}, "'g' of the new data is missing"),
    ],
)
def test_rows_that_the_model_cannot_place_are_refused(change, message):
    data, _, res = fitted()
    with pytest.raises(InputError, match=message):
        res.predict(data.iloc[:1].assign(**change), level="conditional")


def test_a_column_that_is_absent_is_named():
    data, _, res = fitted()
    with pytest.raises(InputError, match="needs the column 'f', which the new data do not have"):
        res.predict(data.drop(columns="f"))


def test_levels_of_other_types_are_the_same_levels():
    data, _, res = fitted()
    expected = res.predict(data, level="conditional")
    for g in (data["g"].astype(int), data["g"].astype(int).astype(str), data["g"].astype("Int64")):
        xr.testing.assert_allclose(res.predict(data.assign(g=g), level="conditional"), expected)
    f = data["f"].astype("category")
    xr.testing.assert_allclose(res.predict(data.assign(f=f), level="conditional"), expected)


def test_saved_results_predict(tmp_path):
    data, _, res = fitted("~ poly(x, 2) + f + f:scale(k)")
    res.save(tmp_path / "fit.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    options = {"level": "conditional", "interval": "prediction"}
    new = data.iloc[5:9]
    xr.testing.assert_allclose(
        loaded.predict(new, **options), res.predict(new, **options), rtol=1e-10
    )


def test_functions_of_the_user_are_given_again_after_loading(tmp_path):
    double = {"double": lambda v: 2 * v}
    data, _, res = fitted("~ double(x)", context=double)
    expected = res.predict(data)
    res.save(tmp_path / "fit.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    with pytest.raises(InputError, match="'double' is not defined"):
        loaded.predict(data)
    xr.testing.assert_allclose(loaded.predict(data, context=double), expected)


def test_levels_that_a_file_cannot_keep_leave_matrices(tmp_path):
    data = samples()
    data["day"] = pd.to_datetime("2020-01-01") + pd.to_timedelta(data["k"], unit="D")
    Y = np.random.default_rng(1).normal(size=(3, len(data)))
    res = fm.MultiLMM.from_formula("~ C(day)", "(1 | g)", data, Y).fit()
    expected = res.predict(data)
    res.save(tmp_path / "fit.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    with pytest.raises(InputError, match="do not know how X and Z are made"):
        loaded.predict(data)
    assert_allclose(loaded.predict(X=res.recipe.fixed_rows(data)), expected, rtol=1e-12)


# ---- matrices --------------------------------------------------------------------------------


def test_matrices_are_checked():
    problem = pb.PROBLEMS["crossed"]
    rng = np.random.default_rng(0)
    res = problem.fit(problem.simulate(problem.theta(rng), 2, rng))
    X, Z = problem.X, problem.Z
    for arguments, message in [
        ({}, "Pass the samples to predict"),
        ({"newdata": samples(), "X": X}, "one of the two"),
        ({"newdata": samples()}, "do not know how X and Z are made of data"),
        ({"X": X[:, :1]}, f"X has 1 columns, but the model has p = {problem.p}"),
        ({"X": X, "level": "conditional"}, "Pass Z too"),
        ({"X": X, "interval": "prediction"}, "Pass Z too"),
        ({"X": X, "Z": Z[:, 1:]}, f"own {Z.shape[1]} columns, but Z has {Z.shape[1] - 1}"),
        ({"X": X, "Z": Z[1:]}, "rows"),
        ({"X": pd.DataFrame({"x1": X[:, 0]})}, "X lacks the columns 'x2'"),
        ({"X": X, "level": "conditionl"}, "Unknown level='conditionl'. Did you mean 'conditional'"),
        ({"X": X, "interval": "both"}, "Unknown interval='both'"),
        ({"X": X, "Z": Z, "interval": "prediction", "alpha": 2}, "`alpha` must lie"),
    ]:
        with pytest.raises(InputError, match=message):
            res.predict(**arguments)
    frame = pd.DataFrame(X[:, ::-1], columns=["x2", "x1"])
    assert_allclose(res.predict(X=frame), res.predict(X=X))


# ---- fitted values ---------------------------------------------------------------------------


def test_fitted_values_and_residuals_equal_statsmodels():
    sm = pytest.importorskip("statsmodels.api")
    data = samples(90)
    rng = np.random.default_rng(3)
    group = data["g"].to_numpy().astype(int)
    slopes = 2.0 * rng.normal(size=(2, 9))[:, group] * data["x"].to_numpy()
    Y = 2.0 * rng.normal(size=(2, 9))[:, group] + slopes + rng.normal(size=(2, len(data)))
    res = fm.MultiLMM.from_formula("~ scale(x) + f", "(1 + x | g)", data, Y).fit()
    X = res.recipe.fixed_rows(data)
    Z = np.column_stack([np.ones(len(data)), data["x"]])
    fitted_values, resid = res.fittedvalues(data), res.resid(Y, data)
    for j in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a gradient missed by little
            theirs = sm.MixedLM(Y[j], X, groups=group, exog_re=Z).fit(
                method=["bfgs", "lbfgs"], gtol=1e-8
            )
        assert_allclose(fitted_values[j], theirs.fittedvalues, atol=1e-5)
        assert_allclose(resid[j], theirs.resid, atol=1e-5)
    assert_allclose(fitted_values + resid, Y, rtol=1e-12)
    assert resid.dims == ("feature", "sample")
    assert resid["sample"].to_numpy().tolist() == data.index.tolist()


def test_residuals_follow_names_transforms_and_features():
    data = samples()
    names = ["p", "q", "r"]
    counts = pd.DataFrame(
        np.random.default_rng(2).poisson(5.0, size=(3, len(data))), index=names, columns=data.index
    )
    model = fm.MultiLMM.from_formula("~ x", "(1 | g)", data, counts, transform="log2p1")
    res = model.fit(parameter_space="psd")
    expected = (
        np.log2(1.0 + counts.loc[["r", "p"]])
        - res.fittedvalues(data, features=["r", "p"]).to_pandas()
    )
    shuffled = counts.loc[["q", "r", "p"], data.index[::-1]]
    found = res.resid(shuffled, data, transform="log2p1", features=["r", "p"])
    pd.testing.assert_frame_equal(
        found.to_pandas(), expected, check_names=False, check_column_type=False
    )
    with pytest.raises(InputError, match="Y lacks the features 'q'"):
        res.resid(counts.drop(index="q"), data, transform="log2p1")
    with pytest.raises(InputError, match="Y has 2 features without names; the model has 3"):
        res.resid(counts.to_numpy()[:2], data)
    population = res.fittedvalues(data, level="population")
    xr.testing.assert_allclose(population, res.predict(data).rename("fittedvalues"))
