"""Refits without each group: equal to lme4's, and to fits of the data without the group."""

from __future__ import annotations

import json
import warnings
from functools import cache

import numpy as np
import pandas as pd
import pytest
from references import REFERENCE

import flashmm as fm

GROUPS = REFERENCE / "groups"


def sleepstudy(name):
    path = REFERENCE / "lme4" / "sleepstudy.csv" if name == "sleepstudy" else GROUPS / f"{name}.csv"
    return pd.read_csv(path, dtype={"Subject": str})


@cache
def fitted(name):
    """The reference as one feature beside others."""
    reference = json.loads((GROUPS / "influence.json").read_text())[name]
    data = sleepstudy(name)
    y = data["Reaction"].to_numpy()
    rng = np.random.default_rng(1)
    Y = pd.DataFrame([y, 250 + 40 * rng.normal(size=y.size), np.ones_like(y)], index=list("abc"))
    model = fm.MultiLMM.from_formula(
        "~" + reference["formula"].split("~")[1], data=data, Y=Y.to_numpy(), sums_by="Subject",
        feature_names=list("abc"),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)  # a constant feature
        return model.fit(parameter_space="psd"), reference, data, Y


@pytest.mark.parametrize("name", ["sleepstudy", "sleepstudy_unbalanced"])
def test_lme4_without_each_subject(name):
    """Largest relative differences: 2e-10 of the coefficients, 3e-7 of Cook's distances."""
    result, reference, _, _ = fitted(name)
    found = result.influence(by="Subject")
    assert found.groups == reference["levels"]
    one = found.ds.sel(feature="a")
    np.testing.assert_allclose(one["params"], reference["beta"], rtol=1e-5)
    np.testing.assert_allclose(one["cooks_distance"], reference["cooks"], rtol=1e-5)
    assert np.isnan(found.ds.sel(feature="c")["params"]).all()  # a constant feature


def test_a_fit_of_the_data_without_the_group_says_the_same():
    result, _, data, Y = fitted("sleepstudy_unbalanced")
    found = result.influence(features=["b", "a"])
    keep = (data["Subject"] != "335").to_numpy()
    alone = fm.MultiLMM.from_formula(
        "~ Days + (1 | Subject)", data=data[keep], Y=Y.to_numpy()[:2, keep]
    ).fit(parameter_space="psd")
    one = found.ds.sel(group="335", feature=["a", "b"])
    np.testing.assert_allclose(one["params"], alone.params, rtol=1e-7)
    np.testing.assert_allclose(one["theta"], alone.theta, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one["se"], alone.bse, rtol=1e-5)
    tests = found.t_test("Days").sel(group="335", feature=["a", "b"], contrast="Days")
    np.testing.assert_allclose(tests["p"], alone.t_test("Days").pvalue["Days"], rtol=1e-4)
    np.testing.assert_allclose(
        found.dfbetas.sel(group="335", feature="a"),
        (result.params.loc["a"] - alone.params.iloc[0]) / alone.bse.iloc[0],
        rtol=1e-5,
    )


def test_which_group_drives_which_hits(tmp_path):
    """One subject alone carries an effect: its hits go with it; also after loading."""
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"x": rng.normal(size=80), "g": np.repeat(list("abcdefgh"), 10)})
    Y = rng.normal(size=(30, 80))
    Y[:10] += 3.0 * data["x"].to_numpy() * (data["g"] == "c").to_numpy()
    model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y, sums_by="g")
    result = model.fit(parameter_space="psd")
    result.save(tmp_path / "fit.nc")
    for fit in (result, fm.MultiLMMResults.load(tmp_path / "fit.nc")):
        found = fit.influence()
        hits = found.hits("x")
        assert hits.index[0] == "c"
        assert hits.loc["c", "lost"] >= 5
        assert hits.loc["c", "without"] == hits.loc["c", "hits"] - hits.loc["c", "lost"]
        assert found.summary().index[0] == "c"
        assert found.summary()["first"].sum() == 30
    pytest.importorskip("matplotlib").use("Agg")
    assert len(found.plot().get_yticks()) == 8
    assert "hits" in found.plot("x", alpha=0.1).get_xlabel()
    with pytest.raises(fm.InputError, match="name a contrast"):
        found.plot(adjust="holm")
    with pytest.raises(fm.InputError, match="one contrast"):
        found.hits(["x", "Intercept"])
    with pytest.raises(fm.InputError, match="integrated"):
        found.t_test("x", df="integrated")


@cache
def crossed():
    rng = np.random.default_rng(4)
    n = 96
    data = pd.DataFrame(
        {
            "centre": np.repeat(list("pqrs"), n // 4),
            "g": np.repeat([f"s{i:02d}" for i in range(12)], n // 12),
            "item": np.tile(list("abcd"), n // 4),
            "x": rng.normal(size=n),
        }
    )
    Y = rng.normal(size=(3, n)) + rng.normal(size=(3, 12))[:, np.repeat(np.arange(12), 8)]
    return data, Y


def test_coarser_groups_and_crossed_factors():
    data, Y = crossed()
    formula = "~ x + (1 | centre) + (1 | g) + (1 | item)"
    result = fm.MultiLMM.from_formula(formula, data=data, Y=Y, sums_by="g").fit(
        parameter_space="psd"
    )
    found = result.influence("centre")
    assert found.groups == list("pqrs")
    keep = (data["centre"] != "q").to_numpy()
    alone = fm.MultiLMM.from_formula(formula, data=data[keep], Y=Y[:, keep]).fit(
        parameter_space="psd"
    )
    np.testing.assert_allclose(found.ds["params"].sel(group="q"), alone.params, rtol=1e-5)
    mapping = dict(zip(data["g"], data["centre"], strict=True))
    again = result.influence(pd.Series(mapping, name="centre"))
    np.testing.assert_allclose(again.ds["params"], found.ds["params"], rtol=1e-9)
    for by, message in [
        ("item", "several levels"),
        ("age", "not what the sums are kept by"),
        ({"s00": "p"}, "says nothing of"),
        (3, "name of a factor"),
    ]:
        with pytest.raises(fm.InputError, match=message):
            result.influence(by)


def test_single_samples_in_one_step_and_exactly():
    """Near the full fit one scoring step is most of the way."""
    data, Y = crossed()
    data, Y = data[:32], Y[:, :32]
    model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y, sums_by=np.arange(32))
    result = model.fit(parameter_space="psd")
    exact, step = result.influence(), result.influence(exact=False)
    assert (exact.ds.attrs["refits"], step.ds.attrs["refits"]) == ("exact", "one step")
    change = np.abs(exact.ds["params"] - result.params.to_numpy()[:, None, :])
    assert float(np.abs(exact.ds["params"] - step.ds["params"]).max()) < 0.02 * float(change.max())


def test_groups_that_cannot_be_left_out_are_nan_and_counted():
    data, Y = crossed()
    data = data.assign(lone=np.where(data["g"] == "s03", "yes", "no"))
    model = fm.MultiLMM.from_formula("~ lone + (1 | g)", data=data, Y=Y, sums_by="g")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        result = model.fit(parameter_space="psd")
    with pytest.warns(fm.ConvergenceWarning, match="'s03'|s03"):
        found = result.influence()
    assert np.isnan(found.ds["params"].sel(group="s03")).all()
    assert np.isfinite(found.ds["params"].sel(group="s04")).all()
    assert np.isnan(found.hits("lone[T.yes]").loc["s03", "without"])
    assert found.summary().loc["s03", "refitted"] == 0
