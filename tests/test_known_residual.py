"""A known residual variance: metafor's answers, the dense likelihood, and what is refused."""

from __future__ import annotations

import json
import warnings
from functools import cache

import numpy as np
import pandas as pd
import problems as pb
import pytest
from numpy.testing import assert_allclose
from references import REFERENCE

import flashmm as fm
from flashmm.likelihood.known_residual import hold_residual

META = json.loads((REFERENCE / "meta" / "metafor.json").read_text())
BCG = META["bcg"]
N = len(BCG["yi"])


def trials():
    return pd.DataFrame({"study": [f"s{i}" for i in range(N)], "ablat": BCG["ablat"]})


def effects():
    y = np.array(BCG["yi"])
    return pd.DataFrame([y, y / 8.0], index=["bcg", "hom"])


@cache
def analysis(fixed="~ 1", method="REML", space="psd"):
    model = fm.MultiLMM.from_formula(
        f"{fixed} + (1 | study)", data=trials(), Y=effects(), weights=1.0 / np.array(BCG["vi"])
    )
    return model.fit(method, residual_variance=1.0, parameter_space=space)


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("mods", ["~1", "~ablat"])
def test_rma_uni(method, mods):
    """Largest relative difference measured: 2e-10, of p-values; of tau2 2e-11."""
    result = analysis(mods.replace("~", "~ "), method)
    z, t = (META["uni"][f"{method} {test} {mods}"] for test in ("z", "knha"))
    X = np.column_stack([np.ones(N)] + [BCG["ablat"]] * (mods != "~1"))
    assert result.status.tolist() == ["converged", "boundary"]
    assert_allclose(result.theta.loc["bcg"], [z["tau2"], 1.0], rtol=1e-9)
    assert_allclose(result.bse_theta.loc["bcg", "study"], z["se_tau2"], rtol=1e-9)
    assert_allclose(result.params.loc["bcg"], np.ravel(z["beta"]), rtol=1e-9)
    constant = 0.5 * np.linalg.slogdet(X.T @ X)[1] if method == "REML" else 0.0
    assert_allclose(result.llf["bcg"] + constant, z["llf"], atol=1e-9)
    assert_allclose(result.aic["bcg"] - 2.0 * constant, z["aic"], atol=1e-9)
    found = result.heterogeneity().sel(feature="bcg")
    for mine, theirs in {"Q": "QE", "p": "QEp", "I2": "I2", "H2": "H2"}.items():
        assert_allclose(float(found[mine]), z[theirs], rtol=1e-9)
    tests = list(result.params.columns[1:]) or ["Intercept"]
    new = trials().iloc[:1].assign(study="new", ablat=30)
    for df, reference in (("normal", z), ("knapp-hartung", t)):
        table = result.t_test(df=df).ds.sel(feature="bcg")
        assert_allclose(table["se"], np.ravel(reference["se"]), rtol=1e-9)
        assert_allclose(table["p"], np.ravel(reference["pval"]), rtol=1e-9)
        joint = result.f_test(tests, df=df).ds.sel(feature="bcg")
        assert_allclose(np.ravel(joint["p"]), reference["QMp"], rtol=1e-9)
        predicted = result.predict(new, interval="prediction", df=df).sel(feature="bcg")
        for mine, theirs in {"prediction": "pred", "lower": "pi_lb", "upper": "pi_ub"}.items():
            assert_allclose(predicted[mine].item(), reference[theirs], rtol=1e-9)
        se = result.predict(new, se=True, df=df).sel(feature="bcg")["se"].item()
        assert_allclose(se, reference["pred_se"], rtol=1e-9)


def test_no_heterogeneity():
    """tau2 is zero in the psd space, and free to be negative without it."""
    result, reference = analysis(), META["hom"]
    assert result.theta.loc["hom"].tolist() == [0.0, 1.0]
    assert_allclose(result.params.loc["hom", "Intercept"], reference["beta"], rtol=1e-12)
    assert_allclose(result.t_test(df="normal").pvalue.loc["hom"], reference["pval"], rtol=1e-12)
    with pytest.warns(fm.ConvergenceWarning):
        free = analysis("~ ablat", "REML", "unconstrained")
    assert free.theta.loc["hom", "study"] < 0.0
    assert free.theta.loc["bcg", "study"] == pytest.approx(
        META["uni"]["REML z ~ablat"]["tau2"], rel=1e-9
    )


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_rma_mv(method):
    """Schools within districts: differences of 1e-8, of metafor's optimiser."""
    data = META["konst"]
    samples = pd.DataFrame({"district": data["district"], "school": data["school"]}).astype(str)
    model = fm.MultiLMM.from_formula(
        "~ 1 + (1 | district/school)",
        data=samples,
        Y=[data["yi"]],
        weights=1 / np.array(data["vi"]),
    )
    result, reference = model.fit(method, residual_variance=1.0), META["mv"][method]
    assert_allclose(result.theta.iloc[0, :2], reference["sigma2"], rtol=1e-6)
    assert_allclose(result.params.iloc[0], reference["beta"], rtol=1e-6)
    assert_allclose(result.bse.iloc[0], reference["se"], rtol=1e-6)
    constant = 0.5 * np.log(len(samples)) if method == "REML" else 0.0
    assert_allclose(result.llf.iloc[0] + constant, reference["llf"], atol=1e-8)
    assert_allclose(result.t_test(df="normal").pvalue.iloc[0], reference["pval"], rtol=1e-5)
    found = result.heterogeneity()
    assert_allclose(found["Q"].item(), reference["QE"], rtol=1e-10)
    assert_allclose(found["I2_component"].sum().item(), found["I2"].item())


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("kind", pb.KINDS)
def test_every_engine_holds_it(kind, method):
    """Log-likelihood, score and both informations of D are those of n x n matrices."""
    problem, rng = pb.PROBLEMS[kind], np.random.default_rng(3)
    theta = problem.theta(rng, "inside")
    Y = problem.simulate(theta, 2, rng)
    stats, features = problem.stats(Y), np.arange(2)
    projection = pb.projection_of(stats)
    wrong = projection.to_internal(np.tile(np.append(theta[:-1], 7.0 * theta[-1]), (2, 1)))
    for engine in pb.engines(problem):
        inner = pb.estimator_of(stats, method, engine)
        held = hold_residual(inner, projection, np.full(2, theta[-1]))
        at = held.evaluate(wrong, features)
        loglik, score = (
            projection.natural_loglik(at.loglik, method),
            projection.natural_score(at.score),
        )
        for j in range(2):
            truth = pb.dense(problem, Y[j], theta, method)
            unit = np.sqrt(np.diag(truth.expected))[:-1]
            units = np.outer(unit, unit)
            assert loglik[j] == pytest.approx(truth.loglik, abs=1e-9)
            assert_allclose(score[j, :-1] / unit, truth.score[:-1] / unit, atol=1e-9)
            assert score[j, -1] == 0.0
            for mine, theirs in ((at.expected, truth.expected), (at.average, truth.average)):
                natural = projection.natural_information(mine, features)[j]
                assert_allclose(natural[:-1, :-1] / units, theirs[:-1, :-1] / units, atol=1e-9)
                assert not natural[-1, :-1].any()


def several():
    """Effects of 24 studies on 9 features, sampling variances of their own, values missing."""
    rng = np.random.default_rng(4)
    n, m = 24, 9
    names = [f"v{j}" for j in range(m)]
    s2 = pd.DataFrame(rng.uniform(0.05, 0.4, size=(m, n)), names)
    lab = np.repeat([f"l{i}" for i in range(6)], 4)
    data = pd.DataFrame({"lab": lab, "study": [f"s{i}" for i in range(n)], "x": rng.normal(size=n)})
    tau = rng.normal(scale=0.4, size=(m, n)) + rng.normal(scale=0.5, size=(m, 6)).repeat(4, axis=1)
    Y = pd.DataFrame(1.0 + tau + np.sqrt(s2.to_numpy()) * rng.normal(size=(m, n)), names)
    Y.iloc[2, 5] = Y.iloc[7, :3] = np.nan
    return data, Y, s2


@cache
def of_several(random="(1 | lab/study)", space="psd"):
    data, Y, s2 = several()
    model = fm.MultiLMM.from_formula(
        f"~ x + {random}", data=data, Y=Y, weights=1.0 / s2, missing="feature"
    )
    return model, model.fit(residual_variance=1.0, parameter_space=space)


def restricted(data, y, v, tau2):
    """The REML log-likelihood, dense."""
    keep = y.notna().to_numpy()
    X = np.column_stack([np.ones(len(data)), data["x"]])[keep]
    same = (data["lab"].to_numpy()[:, None] == data["lab"].to_numpy())[np.ix_(keep, keep)]
    V = np.diag(v[keep] + tau2[1]) + tau2[0] * same
    W = np.linalg.inv(V)
    C = np.linalg.inv(X.T @ W @ X)
    y = y.to_numpy()[keep]
    beta = C @ X.T @ W @ y
    left = y - X @ beta
    value = (keep.sum() - 2) * np.log(2 * np.pi) + np.linalg.slogdet(V)[1]
    return -0.5 * (value - np.linalg.slogdet(C)[1] + left @ W @ left), beta, C


def test_sampling_variances_of_each_feature():
    """Each is a maximum of its own dense likelihood; the values of one are those alone."""
    data, Y, s2 = several()
    _, result = of_several()
    assert result.converged.all()
    for name in Y.index:
        tau2 = result.theta.loc[name].to_numpy()[:2]
        at = restricted(data, Y.loc[name], s2.loc[name].to_numpy(), tau2)
        assert_allclose(result.llf[name], at[0], atol=1e-9)
        assert_allclose(result.params.loc[name], at[1], atol=1e-9)
        assert_allclose(result.cov_params(features=[name])[0], at[2], atol=1e-9)
        for other in np.maximum(tau2 + 0.02 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]), 0.0):
            beside = restricted(data, Y.loc[name], s2.loc[name].to_numpy(), other)
            assert beside[0] <= at[0] + 1e-9
    table = result.heterogeneity(features=["v7"])
    assert table["df"].item() == 21 - 2
    assert_allclose(table["I2"].item(), result.heterogeneity()["I2"].sel(feature="v7").item())
    one = result.sel("v7")
    assert one.theta.iloc[-1] == 1.0


def test_one_for_each_feature_by_label_and_by_scale(tmp_path):
    data, Y, s2 = several()
    _, result = of_several()
    four = fm.MultiLMM.from_formula(
        "~ x + (1 | lab/study)", data=data, Y=Y, weights=4.0 / s2, missing="feature"
    )
    given = pd.Series(4.0, index=Y.index[::-1])
    given["v1"] = 2.0
    again = four.fit(residual_variance=given, parameter_space="psd")
    others = Y.index.drop("v1")
    assert_allclose(
        again.theta.loc[others].iloc[:, :2],
        result.theta.loc[others].iloc[:, :2],
        rtol=1e-6,
        atol=1e-9,
    )
    assert again.theta.loc["v1", "Residual"] == 2.0
    assert again.llf["v1"] != pytest.approx(result.llf["v1"], abs=1e-3)
    again.save(tmp_path / "fit.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    assert loaded.options.residual_variance == "known"
    for df in ("satterthwaite", "knapp-hartung", "kenward-roger"):
        mine, theirs = loaded.t_test(df=df), again.t_test(df=df)
        pd.testing.assert_frame_equal(mine.pvalue, theirs.pvalue)
        assert np.isfinite(mine.pvalue.to_numpy()).all()


def test_a_constant_feature_and_refits():
    """What X explains has tau2 = 0 and standard errors; replicates keep the known variance."""
    rng = np.random.default_rng(1)
    Y = np.vstack([np.full(12, 3.0), rng.normal(size=12)])
    v = rng.uniform(0.1, 0.5, size=12)
    model = fm.MultiLMM.from_arrays(Y, np.ones((12, 1)), np.eye(12), weights=1 / v)
    result = model.fit(residual_variance=1.0, parameter_space="psd")
    assert result.theta.iloc[0].tolist() == [0.0, 1.0]
    assert_allclose(result.bse.iloc[0, 0], (1 / v).sum() ** -0.5)
    dense = -0.5 * (11 * np.log(2 * np.pi) + np.log(v).sum() + np.log((1 / v).sum()))
    assert_allclose(result.llf.iloc[0], dense, atol=1e-10)
    assert result.heterogeneity()["Q"][0] == 0.0
    drawn = result.bootstrap(5, rng=1, statistic=lambda fit: fit.theta["Residual"])
    assert (drawn.ds["replicates"] == 1.0).all()
    assert not result.fim()["FIM_theta"].to_numpy()[:, -1].any()
    assert np.isnan(result.conf_int_theta(method="profile")[1, -1]).all()
    assert np.isfinite(result.conf_int_theta(method="profile")[1, 0]).all()


ODD = {
    "text": ("one", "positive number"),
    "zero": (0.0, "positive and finite; it is 0.0"),
    "nan": (np.nan, "positive and finite"),
    "bool": (True, "positive number"),
    "length": ([1.0, 2.0], "each of 9 features"),
    "negative": (np.r_[np.ones(8), -1.0], "feature 'v8'"),
    "labels": (pd.Series(1.0, index=["a", "b"]), "'v0'"),
}


@pytest.mark.parametrize("name", ODD)
def test_refused_values(name):
    value, message = ODD[name]
    with pytest.raises(fm.InputError, match=message):
        of_several()[0].fit(residual_variance=value)


def test_refused_where_it_means_nothing():
    _, result = of_several()
    for call in (
        result.moderate,
        lambda: result.t_test(df="integrated"),
        result.learn_ratio_prior,
    ):
        with pytest.raises(fm.InputError, match="they are known"):
            call()
    with pytest.raises(fm.InputError, match="'knapp-hartung'"):
        result.predict(several()[0], level="conditional", se=True, df="knapp-hartung")
    data, Y, s2 = several()
    model = fm.MultiLMM.from_formula(
        "~ x + (1 | lab)", data=data, Y=Y, weights=1.0 / s2, missing="feature"
    )
    estimated = model.fit(parameter_space="psd")
    with pytest.raises(fm.InputError, match=r"residual_variance=1\.0"):
        estimated.heterogeneity()
    with pytest.raises(fm.InputError, match="here it is estimated"):
        estimated.t_test(df="knapp-hartung")
    with pytest.raises(fm.InputError, match="known in one"):
        result.compare_lr_test(estimated)
    smaller = model.fit(residual_variance=1.0, parameter_space="psd")
    assert np.isfinite(result.compare_lr_test(smaller)["p"]).all()
    with pytest.raises(fm.InputError, match="other known residual"):
        result.compare_lr_test(model.fit(residual_variance=2.0, parameter_space="psd"))


def spread(decades, seed):
    """Effects of studies whose sampling variances differ by powers of ten, of 30 features."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 11))
    data = pd.DataFrame({"study": [f"s{i}" for i in range(n)], "x": rng.normal(size=n)})
    s2 = 10.0 ** rng.uniform(-decades, 0.0, size=(30, n))
    tau = 10.0 ** rng.uniform(-4.0, 1.0, size=(30, 1))
    Y = np.sqrt(tau) * rng.normal(size=s2.shape) + np.sqrt(s2) * rng.normal(size=s2.shape)
    return data, Y, s2


def best_of_many(data, y, s2, method):
    """The highest log-likelihood over many values of tau2, dense."""
    X = np.column_stack([np.ones(len(data)), data["x"]])
    root = 1.0 / np.sqrt(s2 + np.r_[0.0, np.geomspace(1e-8, 1e3, 80)][:, None])
    Q, R = np.linalg.qr(X * root[:, :, None])
    z = y * root
    left = z - (Q @ (np.swapaxes(Q, 1, 2) @ z[:, :, None]))[:, :, 0]
    n = y.size - (2 if method == "REML" else 0)
    value = np.log(root).sum(axis=1) - 0.5 * (n * np.log(2.0 * np.pi) + (left**2).sum(axis=1))
    if method == "REML":
        value -= np.log(abs(np.diagonal(R, axis1=1, axis2=2))).sum(axis=1)
    return value.max()


@pytest.mark.parametrize(
    ("method", "own", "seed", "decades"),
    [("REML", False, 6, 4), ("ML", False, 18, 9), ("REML", True, 2, 6), ("ML", True, 11, 4)],
)
def test_no_higher_maximum_where_sampling_variances_are_far_apart(method, own, seed, decades):
    """Precise studies that agree make a maximum at zero; the others may make a higher one."""
    data, Y, s2 = spread(decades, seed)
    s2 = s2 if own else np.broadcast_to(s2[0], s2.shape)
    weights = 1 / s2 if own else 1 / s2[0]
    model = fm.MultiLMM.from_formula("~ x + (1 | study)", data=data, Y=Y, weights=weights)
    best = [best_of_many(data, y, s2[j], method) for j, y in enumerate(Y)]
    for space in ("psd", "unconstrained"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fm.ConvergenceWarning)  # V indefinite at some
            result = model.fit(method, residual_variance=1.0, parameter_space=space)
        inside = result.status.isin(["converged", "boundary"])
        assert inside.sum() > 10
        assert (result.llf > np.array(best) - 1e-6)[inside].all()


def test_no_higher_maximum_of_several_variances():
    """A known covariance between labs, and labs themselves: a maximum without one of the two."""
    rng = np.random.default_rng(6)
    lab = np.repeat(np.arange(5), 3)
    root = rng.normal(size=(5, 2))
    K = pd.DataFrame(root @ root.T, [f"l{i}" for i in range(5)], [f"l{i}" for i in range(5)])
    K /= np.diag(K).mean()
    data = pd.DataFrame({"lab": K.index[lab], "x": rng.normal(size=15)})
    s2 = 10.0 ** rng.uniform(-4.0, 0.0, size=15)
    tau2 = 10.0 ** rng.uniform(-3.0, 1.0, size=(40, 2))
    X = np.column_stack([np.ones(15), data["x"]])
    known, same = K.to_numpy()[np.ix_(lab, lab)], (lab[:, None] == lab).astype(float)
    Y = np.stack(
        [
            np.linalg.cholesky(a * known + b * same + np.diag(s2)) @ rng.normal(size=15)
            for a, b in tau2
        ]
    )
    random = {"kin": "(1 | lab)", "lab": "(1 | lab)"}
    result = fm.MultiLMM.from_formula(
        "~ x", random, data, Y, weights=1 / s2, covariances={"kin": K}
    ).fit(residual_variance=1.0, parameter_space="psd")
    sizes = np.r_[0.0, np.geomspace(1e-5, 1e2, 15)]
    for a in sizes:
        for b in sizes:
            root = np.linalg.cholesky(a * known + b * same + np.diag(s2))
            Q, R = np.linalg.qr(np.linalg.solve(root, X))
            z = np.linalg.solve(root, Y.T)
            left = ((z - Q @ (Q.T @ z)) ** 2).sum(axis=0)
            at = -0.5 * (13 * np.log(2 * np.pi) + left) - np.log(np.diag(root)).sum()
            assert (result.llf > at - np.log(abs(np.diag(R))).sum() - 1e-6).all()


def test_fixed_effect_meta_analysis():
    """metafor's rma(yi, vi, method="FE"), and with mods = ~ x; the last has Q below df."""
    y = [[0.3, 0.9, 0.5, 0.2], [0.3, 0.31, 0.5, 0.2]]
    data = pd.DataFrame({"study": list("abcd"), "x": [1.0, 2.0, 3.0, 5.0]})
    weights = 1.0 / np.array([0.1, 0.05, 0.1, 0.2])
    for fixed, expected in (
        ("~ 1", [[3.6, 100 * 0.6 / 3.6, 1.2], [0.387777777777778, 0.0, 0.129259259259259]]),
        ("~ x", [[10 / 3, 40.0, 5 / 3]]),
    ):
        model = fm.MultiLMM.from_formula(fixed, data=data, Y=y, weights=weights)
        for space in ("psd", "unconstrained"):
            found = model.fit(residual_variance=1.0, parameter_space=space).heterogeneity()
            for j, row in enumerate(expected):
                values = [found[name][j].item() for name in ("Q", "I2", "H2")]
                assert_allclose(values, row, rtol=1e-10)


def test_pages_say_that_the_residual_variance_is_known():
    result = analysis()
    for page in (result.summary(), result.sel("bcg").summary()):
        assert "The residual variance is known" in " ".join(str(page).split())
        assert "Scale is the residual variance" not in " ".join(str(page).split())


def test_typical_variance_beside_a_known_covariance():
    """(n - p) / tr P whatever terms there are; a covariance counts with its mean diagonal.

    K has a level more than the data, features have weights of their own, and one lacks a study.
    """
    rng = np.random.default_rng(2)
    n, names = 12, [f"sp{i}" for i in range(13)]
    root = rng.normal(size=(13, 16))
    K = pd.DataFrame(root @ root.T / 11.0, names, names)
    data = pd.DataFrame({"sp": names[:n], "id": [f"i{i}" for i in range(n)]})
    data["x"] = rng.normal(size=n)
    Y = np.linalg.cholesky(K)[:n] @ rng.normal(size=(13, 3)) + rng.normal(size=(n, 3))
    v = rng.uniform(0.1, 0.4, size=(3, n))
    Y[4, 1] = np.nan
    for random in ("(1 | sp)", "(1 | sp) + (1 | id)", "(1 | id) + (1 | sp)"):
        for weights in (1.0 / v, 1.0 / v[0]):
            model = fm.MultiLMM.from_formula(
                f"~ x + {random}",
                data=data,
                Y=Y.T,
                weights=weights,
                covariances={"sp": K},
                missing="feature",
            )
            result = model.fit(residual_variance=2.0, parameter_space="psd")
            found = result.heterogeneity()
            for j in range(3):
                keep = np.isfinite(Y[:, j])
                X = np.column_stack([np.ones(n), data["x"]])[keep]
                W = np.diag(np.broadcast_to(weights, (3, n))[j][keep] / 2.0)
                P = W - W @ X @ np.linalg.inv(X.T @ W @ X) @ X.T @ W
                typical = (keep.sum() - 2) / np.trace(P)
                assert_allclose(found["typical_variance"][j], typical, rtol=1e-10)
                theta = result.theta.iloc[j].drop("Residual")
                theta["sp"] *= np.diag(K)[:n][keep].mean()
                assert_allclose(found["I2_component"][j], 100 * theta / (theta.sum() + typical))


def test_no_share_is_told_of_what_is_no_random_intercept():
    """Effects of slopes and structures have no typical share: NaN, not zero."""
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"study": np.repeat(list("abcdefgh"), 3), "f": list("uvw") * 8})
    Y = rng.normal(size=(2, 24))
    model = fm.MultiLMM.from_formula(
        "~ f + cs(0 + f | study)", data=data, Y=Y, weights=np.full(24, 4.0)
    )
    found = model.fit(residual_variance=1.0, parameter_space="psd").heterogeneity()
    assert np.isfinite(found["Q"]).all()
    assert np.isnan(found["I2"]).all()


@pytest.mark.parametrize("structure", ["ar1(t | g)", "exp(t | g)", "cs(0 + f | g, hom=FALSE)"])
@pytest.mark.parametrize("method", ["REML", "ML"])
def test_structures_that_are_not_linear_hold_it_too(structure, method):
    """The engine of blocks has derivatives along own parameters, which estimated the residual."""
    rng = np.random.default_rng(6)
    data = pd.DataFrame({"g": np.repeat(np.arange(14), 3).astype(str), "t": np.tile(range(3), 14)})
    data["f"] = data["t"].map(dict(enumerate("abc")))
    v = rng.uniform(0.05, 2.0, len(data))
    Y = np.sqrt(v) * rng.normal(size=(6, len(data))) + rng.normal(size=(6, 14)).repeat(3, axis=1)
    model = fm.MultiLMM.from_formula(f"~ 1 + {structure}", data=data, Y=Y, weights=1 / v)
    options = {"parameter_space": "psd", "residual_variance": 1.0}
    result = model.fit(method, **options)
    general = model.fit(method, engine="general", **options)
    assert_allclose(result.theta["Residual"], 1.0, rtol=1e-14)
    assert_allclose(result.llf, general.llf, atol=1e-6)


def test_a_feature_named_twice_is_refused():
    """1 and "1" are one feature; 1.0 is it too."""
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"g": np.repeat(list("abcdef"), 4)})
    Y = pd.DataFrame(rng.normal(size=(2, 24)), index=[1, 2])
    model = fm.MultiLMM.from_formula("~ 1 + (1 | g)", data=data, Y=Y)
    with pytest.raises(fm.InputError, match="more than once"):
        model.fit(residual_variance={1: 1.0, "1": 9.0, 2: 1.0})
    same = model.fit(residual_variance={1.0: 2.0, 2.0: 3.0})
    assert_allclose(same.theta["Residual"], [2.0, 3.0])
