"""Residual variances by group: saved, extended, predicted under names; families as clusters."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm.stats.groups import finer_groups

COARSER = {"u": "calm", "v": "calm", "w": "loud"}


@cache
def samples():
    rng = np.random.default_rng(4)
    g = rng.choice(list("abcdefgh"), 80)
    data = pd.DataFrame({"g": g, "batch": rng.choice(list("uvw"), 80), "x": rng.normal(size=80)})
    noise = data["batch"].map({"u": 0.6, "v": 0.8, "w": 2.0}).to_numpy()
    effects = {level: rng.normal(size=4) for level in "abcdefgh"}
    Y = noise * rng.normal(size=(4, 80)) + np.stack([effects[level] for level in g], axis=1)
    return data, pd.DataFrame(Y, index=[f"gene{j}" for j in range(4)])


def fitted(by="batch", sums_by="batch", rows=slice(None), **options):
    data, Y = samples()
    model = fm.MultiLMM.from_formula(
        "~ x + (1 | g)", data=data.iloc[rows], Y=Y.iloc[:, rows], sums_by=sums_by
    )
    return model.fit(residual_by=by, parameter_space="psd", **options)


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
@pytest.mark.parametrize("by", ["batch", COARSER], ids=["name", "mapping"])
def test_a_saved_fit_is_the_same(by, suffix, tmp_path):
    """Refused before; what its statistics kept did not say which variances were fitted."""
    data, _ = samples()
    result = fitted(by)
    result.save(tmp_path / f"fit.{suffix}")
    again = fm.load(tmp_path / f"fit.{suffix}")
    pd.testing.assert_frame_equal(again.theta, result.theta)
    pd.testing.assert_frame_equal(again.params, result.params)
    for df in ("satterthwaite", "kenward-roger"):
        assert_allclose(again.t_test(df=df).pvalue, result.t_test(df=df).pvalue, rtol=1e-10)
    assert_allclose(again.blup(), result.blup(), rtol=1e-10)
    ranges = [r.predict(data, interval="prediction")["upper"] for r in (again, result)]
    assert_allclose(*ranges, rtol=1e-10)
    assert str(again.summary()) == str(result.summary())
    with pytest.raises(fm.InputError, match="one for each group of"):
        again.influence()
    assert_allclose(again.icc()["estimate"], result.icc()["estimate"], rtol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        plain = fm.MultiLMM.from_summary_stats(again.stats).fit(parameter_space="psd")
    assert plain.theta.columns.tolist() == ["g", "Residual"]
    assert (again.compare_lr_test(plain)["statistic"] > 0).all()


@pytest.mark.parametrize("text", ["", "[]", '{"by": 1}', '{"by": "b", "groups": {"u": 2}}', "{"])
def test_a_broken_record_of_groups(text):
    with pytest.raises(fm.InputError, match="cannot be read"):
        finer_groups(text)


def test_samples_are_added():
    first, second, whole = (fitted(rows=rows) for rows in (slice(0, 50), slice(50, 80), slice(80)))
    joined = fm.MultiLMM.from_summary_stats(first.stats + second.stats)
    result = joined.fit(residual_by="batch", parameter_space="psd")
    assert_allclose(result.llf, whole.llf, rtol=1e-9)
    assert_allclose(result.theta[whole.theta.columns], whole.theta, rtol=1e-4)


def test_prediction_finds_the_groups_of_a_mapping():
    """A column called 'group' was asked for, whatever the model's columns were called."""
    data, _ = samples()
    named = pd.Series(COARSER, name="noise")
    direct = fitted("noise", sums_by=data["batch"].map(COARSER).rename("noise"))
    new = data.head(6)
    expected = direct.predict(new.assign(noise=new["batch"].map(COARSER)), interval="prediction")
    for by in (COARSER, named):
        found = fitted(by).predict(new, interval="prediction")
        assert_allclose(found["lower"], expected["lower"], rtol=1e-6)
    found = fitted(named).predict(
        new.drop(columns="batch").assign(noise=new["batch"].map(COARSER)), interval="prediction"
    )
    assert_allclose(found["lower"], expected["lower"], rtol=1e-6)
    result = fitted(COARSER)
    with pytest.raises(fm.InputError, match="'z'"):
        result.predict(new.assign(batch="z"), interval="prediction")
    with pytest.raises(fm.InputError, match="'batch'"):
        result.predict(new.drop(columns="batch"), interval="prediction")
    nameless = fitted("group", sums_by=data["batch"].to_numpy())
    with pytest.raises(fm.InputError, match="had no name"):
        nameless.predict(new, interval="prediction")
    found = nameless.predict(new.assign(group=new["batch"]), interval="prediction")
    assert_allclose(found["se"], fitted().predict(new, interval="prediction")["se"], rtol=1e-6)


def test_each_group_is_moderated_by_its_own():
    """Without random effects the groups' fits are separate, and so are limma's of each."""
    rng = np.random.default_rng(6)
    data = pd.DataFrame({"batch": np.repeat(list("uvw"), [5, 8, 12]), "x": rng.normal(size=25)})
    noise = np.sqrt(np.repeat([0.5, 1.0, 4.0], [5, 8, 12]))
    spread = np.sqrt(8.0 / rng.chisquare(8.0, size=(60, 3)))[:, np.repeat([0, 1, 2], [5, 8, 12])]
    Y = pd.DataFrame(noise * spread * rng.normal(size=(60, 25)))
    model = fm.MultiLMM.from_formula("~ 0 + batch + batch:x", data=data, Y=Y, sums_by="batch")
    result = model.fit(residual_by="batch")
    table = result.moderate()
    assert table["sigma2"].dims == ("feature", "param")
    tests = result.t_test(["batch[u]", "batch[v]:x"], moderated=True)
    for label, column in (("u", "Intercept"), ("v", "x")):
        here = (data["batch"] == label).to_numpy()
        alone = fm.MultiLMM.from_formula("~ x", data=data[here], Y=Y.loc[:, here]).fit()
        other = alone.moderate()
        mine = table.sel(param=f"Residual[{label}]")
        for name in ("sigma2", "df", "sigma2_prior", "df_prior", "sigma2_moderated"):
            assert_allclose(mine[name], other[name], rtol=1e-6)
        expected = alone.t_test(column, moderated=True)
        position = 0 if label == "u" else 1
        for name in ("t", "df", "p"):
            assert_allclose(tests.ds[name][:, position], expected.ds[name][:, 0], rtol=1e-5)
    with pytest.raises(fm.InputError, match="other residual variances"):
        fitted().t_test("x", moderated=other)
    assert (fitted().t_test("x", moderated=True).pvalue.to_numpy() > 0).all()


def test_residuals_about_the_mean_have_the_variance_of_their_level():
    """The mean diagonal of K stood for every level's own."""
    data, Y = samples()
    levels = sorted(set(data["g"]))
    root = np.random.default_rng(2).normal(size=(8, 8))
    K = pd.DataFrame(root @ root.T / 8.0, levels, levels)
    model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y, covariances={"g": K})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = model.fit(parameter_space="psd")
    found = result.resid(Y, data, kind="standardized", level="population")
    X = np.column_stack([np.ones(80), data["x"]])
    Z = (data["g"].to_numpy()[:, None] == np.array(levels)).astype(float)
    theta = result.theta.iloc[0].to_numpy()
    V = theta[0] * Z @ K.to_numpy() @ Z.T + theta[1] * np.eye(80)
    C = np.linalg.inv(X.T @ np.linalg.solve(V, X))
    left = Y.to_numpy()[0] - X @ result.params.iloc[0].to_numpy()
    expected = left / np.sqrt(np.diagonal(V - X @ C @ X.T))
    assert_allclose(found[0], expected, rtol=1e-6)


@pytest.mark.parametrize("form", ["frame", "sparse"])
def test_families_are_clusters(form):
    """Levels of a family with one effect: the model with an effect of the family, refused before.

    A K that relates everyone is refused still.
    """
    data, Y = samples()
    levels = sorted(set(data["g"]))
    data = data.assign(family=data["g"].map(dict(zip(levels, "AABBCCDD", strict=True))))
    J = np.kron(np.eye(4), np.ones((2, 2)))
    K = pd.DataFrame(J, levels, levels)
    if form == "sparse":
        K = fm.Covariance(sp.csr_array(J), levels=levels)
    options = {"data": data, "Y": Y, "sums_by": "family"}
    known = fm.MultiLMM.from_formula("~ x + (1 | g)", covariances={"g": K}, **options)
    plain = fm.MultiLMM.from_formula("~ x + (1 | family)", **options).fit(parameter_space="psd")
    result = known.fit(parameter_space="psd")
    for kind in ("CR0", "CR2"):
        mine, other = (r.t_test("x", cov=kind, cluster="family") for r in (result, plain))
        assert_allclose(mine.ds["se"], other.ds["se"], rtol=1e-6)
        assert_allclose(mine.pvalue, other.pvalue, rtol=1e-4)
    related = pd.DataFrame(0.5 * np.eye(8) + 0.5, levels, levels)
    everyone = fm.MultiLMM.from_formula("~ x + (1 | g)", covariances={"g": related}, **options)
    with pytest.raises(fm.InputError, match="whole families"):
        everyone.fit(parameter_space="psd").t_test("x", cov="CR2", cluster="family")
