"""Residual variances by group of features with rows of their own: each as fitted alone."""

from __future__ import annotations

import json
import warnings
from functools import cache

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from references import REFERENCE
from test_every_method import CALLS, called
from test_residual_groups import dense, orthodont, samples

import flashmm as fm
from flashmm.likelihood import make_likelihood, project_any
from flashmm.stats.groups import with_residual_groups
from flashmm.storage.schema import check_file

NLME = json.loads((REFERENCE / "residual" / "nlme_missing.json").read_text())
# Rows, counted from one, that the features of missing.R lack.
GONE = {"y": [3, 17, 50, 51, 52, 88, 101], "z": list(range(2, 109, 9))}


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("weighted", [False, True])
def test_nlme(method, weighted):
    """Log-likelihoods differ by 2e-9, variances by 3e-6 of themselves (nlme's optimiser)."""
    data = orthodont()
    Y = np.tile(data["distance"].to_numpy(), (2, 1))
    for row, rows in zip(Y, GONE.values(), strict=True):
        row[np.array(rows) - 1] = np.nan
    weights = np.tile(1.0 / (0.5 + np.arange(108) % 5 / 4), (2, 1))
    weights[1] *= np.where(np.isnan(Y[1]), 7.0, 1.0)  # rows of the features' own
    model = fm.MultiLMM.from_formula(
        "~ age + (1 | Subject)",
        data=data,
        Y=pd.DataFrame(Y, ["y", "z"]),
        weights=weights if weighted else None,
        missing="feature",
        sums_by="Sex",
    )
    result = model.fit(method, residual_by="Sex", parameter_space="psd")
    for name in GONE:
        theirs = NLME[f"{name} {method} {'weights' if weighted else 'plain'}"]
        theta = result.theta.loc[name]
        assert_allclose(result.llf[name], theirs["logLik"], atol=1e-8)
        assert_allclose(result.params.loc[name], theirs["beta"], rtol=1e-6)
        assert_allclose(result.bse.loc[name], theirs["se"], rtol=1e-5)
        for sex in ("Male", "Female"):
            assert_allclose(theta[f"Residual[{sex}]"], theirs[sex], rtol=2e-5)
        assert_allclose(theta["Subject"], theirs["subject"], rtol=2e-5)


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("random", ["(1 | g)", "(1 | g) + (1 | h)", "(1 + x | g)", ""])
def test_equals_n_by_n_matrices(random, method):
    """Inside the cone and where a variance is negative, and with all of Z in the border."""
    data, rng = samples(), np.random.default_rng(5)
    Y, weights = rng.normal(size=(3, 30)) + 50.0, rng.uniform(0.5, 2.0, (3, 30))
    Y[0, [3, 8]] = Y[1, [4, 9, 20]] = np.nan
    Y[2, data["batch"] == "v"] = np.nan
    formula = "~ x" + (f" + {random}" if random else "")
    model = fm.MultiLMM.from_formula(
        formula, data=data, Y=Y, weights=weights, missing="feature", sums_by="batch"
    )
    stats = with_residual_groups(model.stats, "batch")
    projection = project_any(stats)
    likelihood = make_likelihood(projection, method)
    k, features = len(stats.structure.parameters), np.arange(3)
    L = np.array([[[1.0, 0.0]], [[0.5, -2.0]]])
    D = {3: [0.8, 0.5, 0.3], 2: [0.8, 0.4], 1: [0.8], 0: []}[k]
    (part,) = likelihood.estimators
    for one in (part, part._dense):
        for D_of in (D, [-0.05 * v for v in D]):
            theta = np.array([*D_of, 0.7, 1.3, 2.1])
            inside = projection.to_internal(np.tile(theta, (3, 1)))
            at = one.evaluate(inside, features)
            loglik = projection.natural_loglik(at.loglik, method)
            score = projection.natural_score(at.score)
            moments = one.of(features).contrast_moments(inside, L, adjustment=True)
            beta, C = one.fixed_effects(inside, features)
            for j in features:
                own = ~np.isnan(Y[j])
                truth = dense(data[own], random, theta, Y[j, own], weights[j, own], method)
                unit, there = np.sqrt(np.diag(truth[2])), np.ones(k + 3, dtype=bool)
                there[k + 1] = j < 2
                pairs = np.ix_(there, there)
                length, units = np.outer(unit, unit)[pairs], projection.units(features)[j]
                assert loglik[j] == pytest.approx(truth[0], abs=1e-9)
                mine, theirs = score[j, there] / unit[there], truth[1][there] / unit[there]
                assert_allclose(mine, theirs, atol=1e-8)
                for mine, theirs in ((at.expected, truth[2]), (at.average, truth[3])):
                    natural = mine[j] / np.outer(units, units)
                    assert_allclose(natural[pairs] / length, theirs[pairs] / length, atol=1e-8)
                assert_allclose(beta[j], truth[4], rtol=1e-9)
                assert_allclose(C[j], truth[5], rtol=1e-8, atol=1e-12)
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
        inside = projection.to_internal(np.tile(outside, (3, 1)))
        assert (likelihood.evaluate(inside, features).loglik == -np.inf).all()


# ---- fits ------------------------------------------------------------------------------------


def data_and_values():
    """Features with few and no common patterns, one without group v, one with u alone, and more."""
    rng, n = np.random.default_rng(7), 60
    data = pd.DataFrame(
        {
            "g": np.repeat([f"g{i}" for i in range(10)], 6),
            "batch": np.tile(["u", "u", "v", "w", "w", "w"], 10),
            "half": np.tile(["i", "j"], 30),
            "x": rng.normal(size=n),
        }
    )
    sd = data["batch"].map({"u": 0.4, "v": 1.0, "w": 1.6}).to_numpy()
    Y = sd * rng.normal(size=(17, n)) + rng.normal(size=(17, 10))[:, np.repeat(np.arange(10), 6)]
    Y[:8][rng.uniform(size=(8, n)) < 0.12] = np.nan  # rows of their own
    Y[2] += 1e6  # a mean that dwarfs the spread
    no_v = (data["batch"] == "v").to_numpy()
    Y[[0, 4], :] = np.where(no_v, np.nan, Y[[0, 4]])
    Y[8:, no_v] = np.nan  # many features that lack the same, all of group v
    Y[1, data["batch"] != "u"] = np.nan
    Y[3, np.flatnonzero(no_v)[1:]] = np.nan  # one sample of group v
    Y[5] = np.where(np.isnan(Y[5]), np.nan, 3.0)
    names = [f"f{j}" for j in range(17)]
    return data, pd.DataFrame(Y, names)


NAMES = ("f0", "f1", "f2", "f7", "f9")
KINDS = {
    "psd": ("REML", "psd", False),
    "unconstrained, weights": ("ML", "unconstrained", True),
}


@cache
def fitted(kind):
    method, space, weighted = KINDS[kind]
    data, Y = data_and_values()
    weights = np.random.default_rng(1).lognormal(sigma=0.4, size=Y.shape) if weighted else None
    model = fm.MultiLMM.from_formula(
        "~ x + (1 | g)", data=data, Y=Y, weights=weights, missing="feature", sums_by="batch"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        warnings.simplefilter("ignore", fm.exceptions.MissingSamplesWarning)
        return model, model.fit(method, residual_by="batch", parameter_space=space), weights


@cache
def alone(kind, name):
    """The same model of one feature's complete rows; one residual variance where it has a group."""
    method, space, weighted = KINDS[kind]
    data, Y = data_and_values()
    own = Y.loc[name].notna().to_numpy()
    weights = fitted(kind)[2]
    model = fm.MultiLMM.from_formula(
        "~ x + (1 | g)",
        data=data[own],
        Y=Y.loc[[name], own],
        weights=weights[Y.index.get_loc(name)][own] if weighted else None,
        sums_by="batch",
    )
    by = "batch" if data["batch"][own].nunique() > 1 else None
    return model.fit(method, residual_by=by, parameter_space=space)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_each_feature_as_fitted_alone(kind, name):
    """To 1e-12 of log-likelihoods and of estimates, 1e-8 where means dwarf spreads (measured)."""
    _, result, _ = fitted(kind)
    one = alone(kind, name)
    assert result.status[name] == one.status[name]
    assert_allclose(result.llf[name], one.llf[name], rtol=1e-8)
    theta = result.theta.loc[name].dropna()
    assert_allclose(theta, one.theta.loc[name], rtol=1e-6)
    assert len(theta) == one.theta.shape[1]
    assert_allclose(result.bse_theta.loc[name].dropna(), one.bse_theta.loc[name], rtol=1e-5)
    assert_allclose(result.params.loc[name], one.params.loc[name], rtol=1e-6)
    assert_allclose(result.bse.loc[name], one.bse.loc[name], rtol=1e-6)
    assert_allclose(result.aic[name], one.aic[name], rtol=1e-8)
    assert_allclose(result.bic[name], one.bic[name], rtol=1e-8)
    assert_allclose(result.sel(name).aic, one.aic[name], rtol=1e-8)
    for df in ["satterthwaite", *(["kenward-roger"] if kind == "psd" else [])]:
        mine, theirs = (r.t_test(df=df, features=[name]).ds for r in (result, one))
        for number in ("df", "se", "p"):
            assert_allclose(mine[number], theirs[number], rtol=1e-5)
        mine, theirs = (r.f_test(["Intercept", "x"], df=df, features=[name]) for r in (result, one))
        assert_allclose(mine.ds["F"], theirs.ds["F"], rtol=1e-5)
    for se in ("conditional", "prediction"):
        theirs = one.blup(se=se)
        mine = result.blup(features=[name], se=se).sel(level=theirs["level"])
        assert_allclose(mine["blup"], theirs["blup"], rtol=1e-6, atol=1e-9)
        assert_allclose(mine["se"], theirs["se"], rtol=1e-5, atol=1e-9)
    if name == "f0":
        options = {"features": [name], "method": "profile", "params": "g"}
        limits = [r.conf_int_theta(**options) for r in (result, one)]
        assert_allclose(*limits, rtol=1e-4, atol=1e-6)


def test_what_follows_of_all(tmp_path):
    kind = "psd"
    model, result, _ = fitted(kind)
    data, _ = data_and_values()
    assert result.status["f3"] == "not estimable"
    assert result.status["f5"] == "zero variance"
    lost = result.theta.isna()
    none = ["f0", "f4", "f1", *(f"f{j}" for j in range(8, 17))]
    assert lost.loc[none, "Residual[v]"].all()
    assert lost.loc[[n for n in NAMES if n != "f1"], "Residual[u]"].sum() == 0
    assert lost.loc["f1", ["Residual[v]", "Residual[w]"]].all()
    # Of the likelihood ratio as many fewer degrees of freedom as groups that are not there.
    with pytest.warns(fm.ConvergenceWarning):
        equal = model.fit(parameter_space="psd")
    test = result.compare_lr_test(equal)
    assert test["df"][["f0", "f2", "f9"]].tolist() == [1, 2, 1]
    assert np.isnan(test["p"]["f1"])
    assert_allclose(test["statistic"]["f0"], 2.0 * (result.llf["f0"] - equal.llf["f0"]), rtol=1e-6)
    moderated = result.moderate()
    assert moderated["sigma2_moderated"].sel(feature="f0").isnull().to_numpy().tolist() == [
        False, True, False
    ]  # fmt: skip
    p = result.t_test("x", moderated=True).pvalue
    assert np.isfinite(p.loc[[*NAMES]].to_numpy()).all()
    new = data.iloc[[0, 2, 3]]
    spread = result.predict(new, interval="prediction", features=["f0", "f2"])["se"]
    assert np.isnan(spread).to_numpy().tolist() == [[False, True, False], [False] * 3]
    theirs = alone(kind, "f2").predict(new, interval="prediction")["se"]
    assert_allclose(spread[1], theirs[0], rtol=1e-6)
    result.save(tmp_path / "fit.nc")
    again = fm.load(tmp_path / "fit.nc")
    pd.testing.assert_frame_equal(again.theta, result.theta)
    assert_allclose(again.t_test().pvalue, result.t_test().pvalue, rtol=1e-9)
    assert_allclose(again.aic, result.aic)
    part = result.of_pattern("f9")
    assert_allclose(part.t_test().pvalue, result.t_test(features=part.feature_names).pvalue)
    assert "'Residual[v]' for 12" in str(result.summary()).replace("\n", " ")
    assert "no samples of the groups" in str(result.summary("f0"))
    matrix = result.fim(features=["f0"])["FIM_theta"][0]
    assert np.isnan(matrix).to_numpy().sum() == 7
    part = model.keep(features=["f0", "f2", "f3", "f5", "f7"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = part.fit(residual_by="batch", parameter_space="psd")
    of_one = {"icc", "variance_fractions", "r_squared", "ratio_prior", "learn_ratio_prior"}
    for name, calls in CALLS.items():
        if name in (*of_one, "posterior_variances"):
            with pytest.raises(fm.InputError, match="one residual variance"):
                called(part, name, (calls or [None])[0])
        elif name not in ("marginal_means", "marginal_slopes"):  # of other names
            str(called(part, name, (calls or [None])[0]))
    for message, call in (
        ("one residual variance", lambda: result.bootstrap(2)),
        ("one residual variance", result.influence),
        ("one residual variance", lambda: result.t_test(cov="CR2")),
        ("all features share", equal.influence),
        ("engine of its own", lambda: model.fit(residual_by="batch", engine="blocked")),
        ("one of the two", lambda: model.fit(residual_by="batch", residual_variance=1.0)),
        ("sums_by='half'", lambda: model.fit(residual_by="half")),
        ("leave out `device`", lambda: model.fit(residual_by="batch", device="cpu")),
    ):
        with pytest.raises(fm.InputError, match=message):
            call()


def test_groups_that_are_lacking_are_counted():
    model, _, _ = fitted("psd")
    few = model.keep(features=["f0", "f2"])
    with pytest.warns(fm.exceptions.MissingSamplesWarning, match=r"'Residual\[v\]' for 1 of 2"):
        few.fit(residual_by="batch", parameter_space="psd")


def test_one_feature_and_others():
    """Neither the others nor how they are taken together change a feature."""
    model, result, _ = fitted("psd")
    some = model.keep(features=["f7", "f2", "f6"])
    fit = some.fit(residual_by="batch", parameter_space="psd")
    assert_allclose(fit.llf, result.llf[["f7", "f2", "f6"]], rtol=1e-12)
    started = some.fit(residual_by="batch", parameter_space="psd", theta0=fit)
    assert (started.n_iter <= 1).all()


def test_crossed_groups_coarser_ones_and_a_mapping():
    data, Y = data_and_values()
    Y = Y.loc[["f2", "f6", "f7"]]
    model = fm.MultiLMM.from_formula(
        "~ x + (1 | g)", data=data, Y=Y, missing="feature", sums_by=["batch", "half"]
    )
    _, result, _ = fitted("psd")
    for by in ("batch", {label: label[0] for label in model.stats.groups.labels}):
        coarse = model.fit(residual_by=by, parameter_space="psd")
        assert_allclose(coarse.llf, result.llf[Y.index], rtol=1e-10)
        assert_allclose(coarse.theta, result.theta.loc[Y.index], rtol=1e-6)
    crossed = model.fit(residual_by="half:batch", parameter_space="psd")
    assert "Residual[i:u]" in crossed.theta.columns
    assert (crossed.llf >= coarse.llf - 1e-8).all()


STRUCTURES = ("ar1(t | g)", "cs(0 + f | g)", "diag(1 + x | g)", "(1 | g) + (1 | h)")


@pytest.mark.parametrize("random", STRUCTURES)
def test_structures(random):
    data, Y = data_and_values()
    data = data.assign(t=np.tile(range(3), 20), h=np.tile(list("pqr"), 20))
    data["f"] = data["t"].map(lambda t: "abc"[t])
    Y = Y.loc[["f0", "f7"]]
    formula = f"~ x + {random}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fm.MultiLMM.from_formula(
            formula, data=data, Y=Y, missing="feature", sums_by="batch"
        ).fit(residual_by="batch", parameter_space="psd")
        for name in Y.index:
            own = Y.loc[name].notna().to_numpy()
            one = fm.MultiLMM.from_formula(
                formula, data=data[own], Y=Y.loc[[name], own], sums_by="batch"
            ).fit(residual_by="batch", parameter_space="psd")
            assert_allclose(result.llf[name], one.llf[name], rtol=1e-8)
            assert_allclose(result.bse.loc[name], one.bse.loc[name], rtol=1e-5)
            mine, theirs = (r.t_test("x", features=[name]).ds["df"] for r in (result, one))
            assert_allclose(mine, theirs, rtol=1e-4)


def test_a_known_covariance():
    data, Y = data_and_values()
    labels = [f"g{i}" for i in range(10)]
    K = {"g": pd.DataFrame(0.5 * np.eye(10) + 0.5, labels, labels)}
    Y = Y.loc[["f2", "f7"]]
    result = fm.MultiLMM.from_formula(
        "~ x + (1 | g)", data=data, Y=Y, missing="feature", sums_by="batch", covariances=K
    ).fit(residual_by="batch", parameter_space="psd")
    for name in Y.index:
        own = Y.loc[name].notna().to_numpy()
        one = fm.MultiLMM.from_formula(
            "~ x + (1 | g)", data=data[own], Y=Y.loc[[name], own], sums_by="batch", covariances=K
        ).fit(residual_by="batch", parameter_space="psd")
        assert_allclose(result.llf[name], one.llf[name], rtol=1e-8)
        mine = result.blup(features=[name], se="conditional")
        theirs = one.blup(se="conditional")
        assert_allclose(mine["se"], theirs["se"], rtol=1e-5)


# ---- statistics ------------------------------------------------------------------------------


def test_statistics_add_select_and_are_kept(tmp_path):
    """Sums by group of two halves of the samples are those of all, smaller models' too."""
    data, Y = data_and_values()
    weights = np.random.default_rng(2).uniform(0.5, 2.0, Y.shape)

    def stats(rows):
        return fm.MultiLMM.from_formula(
            "~ x + (1 | g)", data=data[rows], Y=Y.loc[:, rows], weights=weights[:, rows],
            missing="feature", sums_by="batch",
        ).stats  # fmt: skip

    first = (data.index % 2 == 0) | (data["batch"] == "v").to_numpy()
    whole, both = stats(np.ones(60, dtype=bool)), stats(first) + stats(~first)
    whole.save(tmp_path / "sums.nc")
    kept = fm.PatternedStats.load(tmp_path / "sums.nc")
    names = ["f0", "f2", "f7"]
    fits = []
    less = both.take(names[::2]) - stats(~first).take(names[::2])
    assert_allclose(less.group_designs[0].XX, stats(first).take(names[::2]).group_designs[0].XX)
    for one in (whole, both, kept):
        model = fm.MultiLMM.from_summary_stats(one).keep(features=names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fits.append(model.fit(residual_by="batch", parameter_space="psd"))
            fits.append(model.drop(fixed="x").fit(residual_by="batch", parameter_space="psd"))
    for start in (0, 1):
        for again in fits[start + 2 :: 2]:
            assert_allclose(again.llf, fits[start].llf, rtol=1e-9)
    assert "3 groups of 'batch'" in repr(whole)


def test_broken_files():
    def read(ds):
        check_file(ds, "PatternedStats")
        return fm.PatternedStats.from_dataset(ds)

    model, _, _ = fitted("psd")
    ds = model.stats.to_dataset()
    for name, at, value, message in (
        ("own_group_n", (0, 0), 99.0, "designs by group"),
        ("own_group_row", 0, 10**6, "points outside"),
        ("own_group_XX", (0, 0, 0, 0), np.nan, "missing or infinite"),
        ("own_group_column", 1, 0, "in disorder"),
    ):
        broken = ds.copy(deep=True)
        broken[name][at] = value
        with pytest.raises(fm.InputError, match=message):
            read(broken)
    with pytest.raises(fm.InputError, match="own_group_ZX"):
        read(ds.drop_vars("own_group_ZX"))
