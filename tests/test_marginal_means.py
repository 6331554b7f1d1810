"""Marginal means and their contrasts: R's emmeans, and the identities they obey."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from references import REFERENCE, lme4_data

import flashmm as fm
from flashmm import InputError

EMMEANS = REFERENCE / "emmeans"
CASES = json.loads((EMMEANS / "emmeans.json").read_text("utf-8"))
FORMULAS = {
    "factors": ("y", "~ trt * site + age + log(size) + C(week) + smoker", "(1 | subject)"),
    "sleepstudy": ("Reaction", "~ Days + {Days**2}", "(Days | Subject)"),
    "penicillin": ("diameter", "~ sample", "(1 | plate)"),
    "pastes": ("strength", "~ cask", "(1 | batch)"),
}


def fitted(model: str) -> fm.MultiLMMResults:
    data = pd.read_csv(EMMEANS / "factors.csv") if model == "factors" else lme4_data(model)
    response, fixed, random = FORMULAS[model]
    built = fm.MultiLMM.from_formula(fixed, random, data, data[response].to_numpy())
    return built.fit(epsilon=1e-8)


@pytest.fixture(scope="module")
def fits():
    return {model: fitted(model) for model in FORMULAS}


def label(row: dict, case: dict) -> str:
    """Our label of a row of emmeans' table; it writes week2 where we write 2."""
    by = case["by"]
    group = "" if by is None else f" | {by}={row[by]}"
    if case["contrast"] is not None:
        for name in np.atleast_1d(case["specs"]):
            row = {**row, "contrast": row["contrast"].replace(name, "")}
        return row["contrast"] + group
    names = np.atleast_1d(case["specs"])
    return ", ".join(f"{name}={row[name]}" for name in names) + group


@pytest.mark.parametrize("name", CASES)
def test_means_and_contrasts_equal_emmeans(fits, name):
    case = CASES[name]
    keys = {"by", "at", "weights", "contrast"}
    options = {key: value for key, value in case.items() if key in keys and value is not None}
    value = "emmean" if case["contrast"] is None else "estimate"
    for df, table in case["tables"].items():
        found = fits[case["model"]].marginal_means(case["specs"], df=df, **options)
        labels = [label(row, case) for row in table]
        assert sorted(found.contrasts) == sorted(labels)
        limits = found.conf_int().isel(feature=0)
        for row, name_of_row in zip(table, labels, strict=True):
            se = row["se"]
            assert_allclose(found.effect[name_of_row], row[value], rtol=0, atol=2e-6 * se)
            assert_allclose(found.sd[name_of_row], se, rtol=2e-6)
            assert_allclose(found.df[name_of_row], row["df"], rtol=1e-4)
            assert_allclose(found.pvalue[name_of_row], row["p"], rtol=1e-3)
            bounds = limits.sel(contrast=name_of_row)
            assert_allclose(bounds, [row["lower"], row["upper"]], rtol=0, atol=1e-4 * se)


def test_balanced_means_are_means_of_the_data():
    rng = np.random.default_rng(0)
    data = pd.DataFrame(
        {"a": np.repeat(list("xyz"), 24), "b": np.tile(list("uv"), 36), "g": np.tile(range(12), 6)}
    )
    data["a"] = data["a"].astype("category")
    Y = rng.normal(size=(5, 72)) + rng.normal(size=(5, 12))[:, data["g"]]
    res = fm.MultiLMM.from_formula("~ a * b", "(1 | g)", data, Y).fit()
    means = pd.DataFrame(Y.T).groupby([data["a"], data["b"]], observed=True).mean()
    found = res.marginal_means(["a", "b"]).effect
    assert found.columns.tolist() == [f"a={a}, b={b}" for a in "xyz" for b in "uv"]
    assert_allclose(found, means.to_numpy().T, rtol=1e-9, atol=1e-9)
    by = res.marginal_means("a", by="b", contrast="trt.vs.ctrl", reference="z").effect
    assert by.columns.tolist() == ["x - z | b=u", "y - z | b=u", "x - z | b=v", "y - z | b=v"]
    assert_allclose(by["y - z | b=v"], means.loc["y", "v"] - means.loc["z", "v"], atol=1e-9)
    own = res.marginal_means("a", contrast={"ends": [1, 0, -1]}).effect["ends"]
    ends = means.groupby("a", observed=True).mean()
    assert_allclose(own, ends.loc["x"] - ends.loc["z"], atol=1e-9)


def test_they_are_t_tests_of_contrasts(fits):
    res = fits["factors"]
    found = res.marginal_means("trt", contrast="pairwise", alternative="less")
    names = {n: i for i, n in enumerate(res.params.columns)}
    row = np.zeros(len(names))
    row[names["trt[T.B]"]] = -1
    for site in ("north", "west"):
        row[names[f"trt[T.B]:site[T.{site}]"]] = -1 / 3
    same = res.t_test(row, alternative="less")
    for part in ("effect", "sd", "pvalue", "df"):
        assert_allclose(getattr(found, part), getattr(same, part), rtol=1e-12)


def test_loaded_results_give_them(fits, tmp_path):
    res = fits["factors"]
    res.save(tmp_path / "fit.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    for options in ({}, {"weights": "proportional", "by": "smoker"}):
        pd.testing.assert_frame_equal(
            loaded.marginal_means("week", **options).to_frame(),
            res.marginal_means("week", **options).to_frame(),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trtt",), "'trtt' is not a column of the fixed formula. Did you mean 'trt'"),
        (("subject",), "'subject' is not a column of the fixed formula"),
        (([],), "`specs` is empty"),
        (("trt", {"by": "trt"}), "name 'trt' more than once"),
        (("trt", {"at": {"agee": 3}}), "`at` names 'agee'.*Did you mean 'age'"),
        (("trt", {"at": {"site": "south"}}), "levels that the model does not know: 'south'"),
        (("trt", {"at": {"site": []}}), "`at` gives no value for 'site'"),
        (("trt", {"contrast": "pairwize"}), "Unknown contrast='pairwize'. Did you mean 'pairwise'"),
        (("age", {"contrast": "pairwise"}), "There is one mean"),
        (("trt", {"contrast": {"c": [1, 2, 3]}}), "'c' has 3 weights, but there are 2 means: A, B"),
        (("trt", {"contrast": "trt.vs.ctrl", "reference": "C"}), "Unknown reference='C'"),
        (("trt", {"weights": "outer"}), "Unknown weights='outer'"),
        (("trt", {"at": {"age": range(200_000)}}), "grid has 7200000 points"),
    ],
)
def test_what_cannot_be_averaged_is_said(fits, arguments, message):
    specs, options = (*arguments, {})[:2]
    with pytest.raises(InputError, match=message):
        fits["factors"].marginal_means(specs, **options)


def test_models_of_matrices_have_no_grid():
    rng = np.random.default_rng(0)
    Z = np.kron(np.eye(5), np.ones((6, 1)))
    res = fm.MultiLMM.from_arrays(rng.normal(size=(2, 30)), np.ones((30, 1)), Z).fit()
    with pytest.raises(InputError, match="contrasts to `t_test`"):
        res.marginal_means("trt")
