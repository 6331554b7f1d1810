"""Residual variances by group: nlme's answers, n x n matrices, and what is refused."""

from __future__ import annotations

import json
import warnings
from functools import cache

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from references import REFERENCE

import flashmm as fm
from flashmm.likelihood import make_likelihood, project_any
from flashmm.stats.groups import with_residual_groups

FOLDER = REFERENCE / "residual"
LOOSE = json.loads((FOLDER / "residual_variance.json").read_text())
TIGHT = json.loads((FOLDER / "nlme_tight.json").read_text())


def orthodont():
    data = pd.read_csv(FOLDER / "orthodont.csv")
    return data.assign(Sex=pd.Categorical(data["Sex"], ["Male", "Female"]))


@cache
def growth(random="(1 | Subject)", method="REML", by="Sex", space="psd"):
    data = orthodont()
    Y = pd.DataFrame([data["distance"], 3.0 * data["distance"] + 1000.0], index=["y", "z"])
    model = fm.MultiLMM.from_formula(f"~ age * Sex + {random}", data=data, Y=Y, sums_by="Sex")
    return model.fit(method, residual_by=by, parameter_space=space)


CASES = {
    "slope": ("orthodont_sex", "(1 + age | Subject)", "REML"),
    "int": ("orthodont_int", "(1 | Subject)", "REML"),
    "ml": ("orthodont_ml", "(1 | Subject)", "ML"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("space", ["psd", "unconstrained"])
def test_orthodont(name, space):
    """nlme at its default tolerances ends 5e-7 to 6e-6 below these log-likelihoods.

    At 1e-12 the log-likelihoods differ by 1e-9, ratios by 1e-6 (nlme's optimiser).
    """
    loose, random, method = CASES[name]
    result, tight = growth(random, method, space=space), TIGHT[name]
    theta = result.theta.loc["y"]
    assert result.status.tolist() == ["converged", "converged"]
    assert LOOSE[loose]["logLik"] < result.llf["y"] < LOOSE[loose]["logLik"] + 1e-5
    assert_allclose(result.llf["y"], tight["logLik"], atol=1e-6)
    assert_allclose(result.params.loc["y"], tight["beta"], rtol=1e-5)
    assert_allclose(result.bse.loc["y"], tight["se"], rtol=1e-5)
    ratio = np.sqrt(theta["Residual[Male]"] / theta["Residual[Female]"])
    assert_allclose(ratio, tight["ratio"], rtol=1e-4)
    assert_allclose(np.sqrt(theta["Residual[Female]"]), tight["sigma"], rtol=1e-4)
    assert_allclose(theta.iloc[0], np.ravel(tight["D"])[0], rtol=1e-4)
    scaled = result.theta.loc["z"] / 9.0
    assert_allclose(scaled, theta, rtol=1e-6)
    test = result.compare_lr_test(growth(random, method, None, space))
    assert_allclose(test["statistic"], 2.0 * (tight["logLik"] - tight["equal"]), rtol=1e-5)
    assert test["df"].tolist() == [1, 1]
    assert test.attrs["null"] == "chi2_1"


def samples():
    rng = np.random.default_rng(2)
    n = 30
    return pd.DataFrame(
        {
            "g": pd.Categorical(rng.choice(list("abcdef"), n)),
            "h": pd.Categorical(rng.choice(list("pqr"), n)),
            "batch": pd.Categorical(rng.choice(["u", "v", "w"], n)),
            "x": rng.normal(size=n),
        }
    )


def dense(data, random, theta, y, weights, method):
    """Log-likelihood, score, E, A, beta, C and its derivatives by n x n matrices."""
    n = len(data)
    X = np.column_stack([np.ones(n), data["x"]])

    def same(name):
        return np.equal.outer(data[name].to_numpy(), data[name].to_numpy()).astype(float)

    x = data["x"].to_numpy()
    G = {
        "(1 | g)": [same("g")],
        "(1 | g) + (1 | h)": [same("g"), same("h")],
        "(1 + x | g)": [same("g"), np.outer(x, x) * same("g"), (x[:, None] + x) * same("g")],
        "": [],
    }[random]
    G += [np.diag((data["batch"] == b) / weights) for b in "uvw"]
    V = sum(t * g for t, g in zip(theta, G, strict=True))
    W = np.linalg.inv(V)
    C = np.linalg.inv(X.T @ W @ X)
    P = W - W @ X @ C @ X.T @ W
    Q = P if method == "REML" else W
    loglik = -0.5 * (np.linalg.slogdet(V)[1] + y @ P @ y)
    loglik -= 0.5 * (n - 2 * (method == "REML")) * np.log(2 * np.pi)
    if method == "REML":
        loglik += 0.5 * np.linalg.slogdet(C)[1]
    score = np.array([0.5 * (y @ P @ g @ P @ y - np.trace(Q @ g)) for g in G])
    E = np.array([[0.5 * np.trace(Q @ a @ Q @ b) for b in G] for a in G])
    A = np.array([[0.5 * y @ P @ a @ P @ b @ P @ y for b in G] for a in G])
    Ci = np.array([C @ X.T @ W @ g @ W @ X @ C for g in G])
    KR = np.array([[C @ X.T @ W @ a @ P @ b @ W @ X @ C for b in G] for a in G])
    return loglik, score, E, A, C @ X.T @ W @ y, C, Ci, KR


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("random", ["(1 | g)", "(1 | g) + (1 | h)", "(1 + x | g)", ""])
def test_equals_n_by_n_matrices(random, method):
    """Everything the likelihood says, inside the cone and where a variance is negative."""
    data, rng = samples(), np.random.default_rng(5)
    Y, weights = rng.normal(size=(2, 30)) + 50.0, rng.uniform(0.5, 2.0, 30)
    formula = "~ x" + (f" + {random}" if random else "")
    model = fm.MultiLMM.from_formula(formula, data=data, Y=Y, weights=weights, sums_by="batch")
    stats = with_residual_groups(model.stats, "batch")
    projection = project_any(stats)
    likelihood = make_likelihood(projection, method)
    k = len(stats.structure.parameters)
    features, L = np.arange(2), np.array([[[1.0, 0.0]], [[0.5, -2.0]]])
    D = {3: [0.8, 0.5, 0.3], 2: [0.8, 0.4], 1: [0.8], 0: []}[k]
    for D_of in (D, [-0.05 * v for v in D]):
        theta = np.array([*D_of, 0.7, 1.3, 2.1])
        inside = projection.to_internal(np.tile(theta, (2, 1)))
        at = likelihood.evaluate(inside, features)
        loglik = projection.natural_loglik(at.loglik, method)
        score = projection.natural_score(at.score)
        moments = likelihood.contrast_moments(inside, L, adjustment=True)
        for j in features:
            truth = dense(data, random, theta, Y[j], weights, method)
            unit = np.sqrt(np.diag(truth[2]))
            pairs, units = np.outer(unit, unit), projection.units(features)[j]
            assert loglik[j] == pytest.approx(truth[0], abs=1e-9)
            assert_allclose(score[j] / unit, truth[1] / unit, atol=1e-9)
            for mine, theirs in ((at.expected, truth[2]), (at.average, truth[3])):
                natural = projection.natural_information(mine, features)[j]
                assert_allclose(natural / pairs, theirs / pairs, atol=1e-9)
            assert_allclose(likelihood.beta(inside, features)[j], truth[4], rtol=1e-9)
            assert_allclose(
                likelihood.covariance(inside, features)[j], truth[5], rtol=1e-8, atol=1e-12
            )
            scale = projection.scale[j]
            for h, row in enumerate(L):
                first = np.einsum("rp,kpq,sq->krs", row, truth[6], row)
                second = np.einsum("rp,ijpq,sq->ijrs", row, truth[7], row)
                mine = moments.gradient[j, h] * (scale / units)[:, None, None]
                assert_allclose(mine, first, rtol=1e-8, atol=1e-11)
                both = scale / np.outer(units, units)
                mine = moments.adjustment[j, h] * both[:, :, None, None]
                assert_allclose(mine, second, rtol=1e-7, atol=1e-11)
    if k:
        outside = np.array([*[-3.0] * k, 0.7, 1.3, 2.1])
        inside = projection.to_internal(np.tile(outside, (2, 1)))
        assert likelihood.evaluate(inside, features).loglik[0] == -np.inf


@cache
def fitted(method="REML", space="psd"):
    data, rng = samples(), np.random.default_rng(8)
    noise = np.array([0.5, 1.0, 2.0])[data["batch"].cat.codes] * rng.normal(size=(5, 30))
    Y = noise + rng.normal(size=(5, 6))[:, data["g"].cat.codes]
    Y[3] = 4.0
    Y[4, 2] = 1e300
    names = [f"gene{j}" for j in range(5)]
    model = fm.MultiLMM.from_formula(
        "~ x + (1 | g)", data=data, Y=pd.DataFrame(Y, names), sums_by="batch"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        return model, model.fit(method, residual_by="batch", parameter_space=space)


def test_a_fit_beside_features_that_fail():
    _, result = fitted()
    good = ["gene0", "gene1", "gene2"]
    assert result.status[good].isin(["converged", "boundary"]).all()
    assert result.status[["gene3", "gene4"]].tolist() == ["zero variance", "non finite"]
    for df in ("satterthwaite", "kenward-roger", "residual", "normal"):
        p = result.t_test(df=df).pvalue
        assert np.isfinite(p.loc[good].to_numpy()).all()
        one = result.t_test(df=df, features=["gene1"]).pvalue
        assert_allclose(one.loc["gene1"], p.loc["gene1"])
        assert np.isfinite(result.f_test(["Intercept", "x"], df=df).ds["p"][:3]).all()
    assert result.blup(features=good).notnull().all()
    for call in (
        lambda: result.variance_components(features=good),
        result.variance_test,
        result.summary,
        result.ranova,
        result.anova,
        result.fim,
        result.to_frame,
        lambda: result.summary("gene0"),
        lambda: result.sel("gene0").t_test(),
    ):
        str(call())
    limits = result.conf_int_theta(features=good, method="profile", params="Residual[w]")
    assert (limits[:, 0, 0] < result.theta.loc[good, "Residual[w]"].to_numpy()).all()


def test_predictions_have_the_variance_of_their_group():
    data = samples()
    _, result = fitted()
    new = data.iloc[[0, 0]].assign(batch=["u", "w"], g="new")
    found = result.predict(new, interval="prediction", df="normal", features=["gene0"])
    mean = result.predict(new, se=True, df="normal", features=["gene0"])
    theta = result.theta.loc["gene0"]
    expected = mean["se"][0] ** 2 + theta["g"] + theta[["Residual[u]", "Residual[w]"]].to_numpy()
    assert_allclose(found["se"][0] ** 2, expected, rtol=1e-9)
    with pytest.raises(fm.InputError, match="'z'"):
        result.predict(new.assign(batch="z"), interval="prediction")
    with pytest.raises(fm.InputError, match="batch"):
        result.predict(new.drop(columns="batch"), interval="prediction")


def test_coarser_and_crossed_groups():
    model, result = fitted()
    with pytest.warns(fm.ConvergenceWarning):
        coarser = model.fit(residual_by={"u": "one", "v": "one", "w": "w"}, parameter_space="psd")
    assert coarser.theta.columns.tolist() == ["g", "Residual[one]", "Residual[w]"]
    assert (coarser.llf.iloc[:3] <= result.llf.iloc[:3] + 1e-8).all()
    data = samples().assign(half=np.where(samples()["x"] > 0, "i", "j"))
    Y = np.random.default_rng(1).normal(size=(2, 30))
    model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y, sums_by="batch:half")
    names = model.fit(residual_by="batch:half", parameter_space="psd").theta.columns
    assert "Residual[u:i]" in names
    assert len(names) == 7
    listed = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y, sums_by=["batch", "half"])
    assert listed.stats.groups.name == "batch:half"
    own = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y, sums_by="batch")
    batch = own.fit(residual_by="batch", parameter_space="psd")
    for by in ("batch", ["batch"]):
        coarser = model.fit(residual_by=by, parameter_space="psd")
        pd.testing.assert_frame_equal(coarser.theta[batch.theta.columns], batch.theta, rtol=1e-6)
        new = coarser.predict(data.iloc[:3], interval="prediction")
        np.testing.assert_allclose(
            new["se"], batch.predict(data.iloc[:3], interval="prediction")["se"], rtol=1e-6
        )
    turned = model.fit(residual_by=["half", "batch"], parameter_space="psd")
    assert "Residual[i:u]" in turned.theta.columns
    with pytest.raises(fm.InputError, match="Sums are kept by 'batch:half'"):
        model.fit(residual_by="cask")
    colons = data.assign(half="a:" + data["half"])
    model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=colons, Y=Y, sums_by="batch:half")
    with pytest.raises(fm.InputError, match="a mapping from its groups"):
        model.fit(residual_by="batch")


REFUSED = {
    "dream": lambda r: r.moderate(df="dream"),
    "integrated": lambda r: r.t_test(df="integrated"),
    "flips": lambda r: r.flip_test("x"),
    "trend": lambda r: r.plot.trend(),
    "influence": lambda r: r.influence(),
    "robust": lambda r: r.t_test(cov="CR2"),
    "profile": lambda r: r.conf_int(method="profile"),
    "scale": lambda r: r.sel("gene0").scale,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_takes_one_residual_variance(name):
    with pytest.raises(fm.InputError, match="one for each group of 'batch'"):
        REFUSED[name](fitted()[1])


def test_bad_groups():
    model, result = fitted()
    data = samples()
    with pytest.raises(fm.InputError, match="sums_by="):
        model.fit(residual_by="h")
    with pytest.raises(fm.InputError, match="says nothing of the groups"):
        model.fit(residual_by={"u": "one"})
    with pytest.raises(fm.InputError, match="one group"):
        model.fit(residual_by=dict.fromkeys("uvw", "all"))
    with pytest.raises(fm.InputError, match="one of the two"):
        model.fit(residual_by="batch", residual_variance=1.0)
    with pytest.raises(fm.InputError, match="engine of its own"):
        model.fit(residual_by="batch", engine="spectral")
    Y = np.random.default_rng(1).normal(size=(2, 30))
    plain = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y)
    with pytest.raises(fm.InputError, match="sums_by='batch'"):
        plain.fit(residual_by="batch")
    Y[0, 0] = np.nan
    own = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y, missing="feature")
    with pytest.raises(fm.InputError, match="sums_by='batch'"):
        own.fit(residual_by="batch")
    lone = data["batch"].astype(str).where(data.index > 0, "lone")
    single = fm.MultiLMM.from_formula(
        "~ x + (1 | g)", data=data.assign(batch=lone), Y=np.nan_to_num(Y), sums_by="batch"
    )
    with pytest.raises(fm.InputError, match="one sample, 'lone'"):
        single.fit(residual_by="batch")
    with pytest.warns(fm.ConvergenceWarning):
        equal = model.fit(parameter_space="psd")
    with pytest.raises(fm.InputError, match="not nested"):
        equal.compare_lr_test(result)


def test_what_groups_and_variances_are_called_by():
    """Columns called by numbers; a label of each sample, which belongs to the model; a dict."""
    data, rng = samples(), np.random.default_rng(3)
    numbered = data.rename(columns={"batch": 7})
    Y = pd.DataFrame(rng.normal(size=(2, 30)), ["y", "z"])
    expected = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y, sums_by="batch")
    expected = expected.fit(residual_by="batch", parameter_space="psd")
    for by in (7, "7"):
        model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=numbered, Y=Y, sums_by=by)
        result = model.fit(residual_by=by, parameter_space="psd")
        assert_allclose(result.llf, expected.llf, rtol=1e-12)
    assert np.isfinite(result.predict(numbered.iloc[:2], interval="prediction")["se"]).all()
    for labels in (data["batch"], data["batch"].to_numpy(), list(data["batch"])):
        with pytest.raises(fm.InputError, match="pass them as sums_by="):
            model.fit(residual_by=labels)
    known = [{"z": 2.0, "y": 1.0}, pd.Series([2.0, 1.0], ["z", "y"]), [1.0, 2.0]]
    fits = [model.fit(residual_variance=values, parameter_space="psd").llf for values in known]
    assert_allclose(fits[0], fits[1])
    assert_allclose(fits[0], fits[2])
    with pytest.raises(fm.InputError, match="says nothing of the features 'y'"):
        model.fit(residual_variance={"z": 2.0})


def test_beside_other_capabilities():
    """What has no one residual variance says so, and what needs none works."""
    result, data = growth(), orthodont()
    Y = pd.DataFrame([data["distance"], 3.0 * data["distance"] + 1000.0], index=["y", "z"])
    assert result.glance()["sigma"].isna().all()
    assert "by group" in str(result.sel("y").summary())
    terms = result.tidy(effects="all").query("feature == 'y'")["term"]
    assert {"Residual[Male]", "Residual[Female]"} <= set(terms)
    labels = sorted(data["Subject"].astype(str).unique())
    K = pd.DataFrame(0.5 * np.eye(len(labels)) + 0.5, index=labels, columns=labels)
    data["Subject"] = data["Subject"].astype(str)
    known = fm.MultiLMM.from_formula(
        "~ age + (1 | Subject)", data=data, Y=Y, sums_by="Sex", covariances={"Subject": K}
    ).fit(residual_by="Sex", parameter_space="psd")
    assert np.isfinite(known.blup(se="conditional")["se"]).all()


def test_groups_without_random_effects():
    data = orthodont()
    data["Subject"] = data["Subject"].astype(str)
    Y = pd.DataFrame([data["distance"]], index=["y"])
    result = fm.MultiLMM.from_formula("~ age", data=data, Y=Y, sums_by="Subject").fit()
    coarser = {name: name[0] for name in data["Subject"]}
    gone = data["Subject"] != data["Subject"].iloc[0]
    alone = fm.MultiLMM.from_formula("~ age", data=data[gone], Y=Y.loc[:, gone.to_numpy()]).fit()
    left_out = result.influence().ds["params"].sel(group=data["Subject"].iloc[0])
    assert_allclose(left_out.to_numpy(), alone.params.to_numpy(), rtol=1e-9)
    assert np.isfinite(result.t_test("age", cov="CR2", cluster=coarser).pvalue.to_numpy()).all()
    nothing = fm.MultiLMM.from_formula("~ 0", data=data, Y=Y, sums_by="Sex")
    with pytest.raises(fm.InputError, match="need a fixed or a random effect"):
        nothing.fit(residual_by="Sex")
