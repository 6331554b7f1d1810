"""offset(x): a fixed coefficient of one, the model of Y - offset."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import references
import scipy.sparse as sp

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.formulas.recipe_text import recipe_from_text, recipe_to_text

RNG = np.random.default_rng(11)
N = 60
DATA = pd.DataFrame(
    {
        "x": RNG.normal(size=N),
        "known": RNG.uniform(1, 5, N),
        "my known": RNG.normal(size=N),
        "trt": np.tile(list("AB"), N // 2),
        "g": np.repeat(list("abcdefghij"), N // 10),
    }
)
COUNTS = RNG.poisson(1.0, size=(4, N)).astype(float)


def model(fixed: str, Y: object = COUNTS, data: pd.DataFrame = DATA, **options):
    return fm.MultiLMM.from_formula(fixed, "(1 | g)", data, Y, **options)


def assert_same_fit(one: fm.MultiLMM, two: fm.MultiLMM, rtol: float = 1e-9) -> None:
    for name in ("XX", "XY", "ZX", "ZY", "yy"):
        left, right = getattr(one.stats, name), getattr(two.stats, name)
        np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * np.abs(right).max())
    a, b = one.fit(parameter_space="psd"), two.fit(parameter_space="psd")
    np.testing.assert_allclose(a.params, b.params, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(a.llf, b.llf, rtol=1e-9)


def kinds():
    anndata = pytest.importorskip("anndata")
    dask = pytest.importorskip("dask.array")
    halves = [slice(0, 25), slice(25, N)]
    return {
        "dense": COUNTS,
        "csr": sp.csr_array(COUNTS),
        "csc": sp.csc_array(COUNTS),
        "frame": pd.DataFrame(COUNTS),
        "dask": dask.from_array(COUNTS, chunks=(2, 17)),
        "blocks": ((np.arange(N)[s], COUNTS[:, s]) for s in halves),
        "anndata": anndata.AnnData(sp.csr_matrix(COUNTS.T)),
    }


@pytest.mark.parametrize("kind", ["dense", "csr", "csc", "frame", "dask", "blocks", "anndata"])
@pytest.mark.parametrize("transform", [None, "log1p"])
def test_an_offset_is_taken_off_y(kind, transform):
    values = COUNTS if transform is None else np.log1p(COUNTS)
    expected = model("~ x + trt", values - np.log(DATA.known.to_numpy()))
    got = model("~ x + trt + offset(log(known))", kinds()[kind], transform=transform)
    assert got.stats.coef_names == expected.stats.coef_names
    assert_same_fit(got, expected)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("offset(known)", DATA.known),
        ("offset(known) + offset(x)", DATA.known + DATA.x),
        ("offset(`my known`)", DATA["my known"]),
        ("offset(known^2)", DATA.known**2),
        ("offset(2 * known - x)", 2 * DATA.known - DATA.x),
        ("offset(scale(known))", (DATA.known - DATA.known.mean()) / DATA.known.std()),
        ("offset(np.log(known + 1))", np.log(DATA.known + 1)),
    ],
)
def test_what_an_offset_may_hold(written, value):
    fixed = "~ x + known" if written.startswith("known") else "~ x"
    got = model(f"~ x + {written}")
    assert_same_fit(got, model(fixed, COUNTS - value.to_numpy()))
    assert got.fixed == f"~ x + {written}"


def test_with_anndata_weights_size_factors_and_dropped_samples():
    anndata = pytest.importorskip("anndata")
    obs = DATA.set_index(pd.Index([f"cell{i}" for i in range(N)])).assign(w=RNG.uniform(1, 2, N))
    obs.iloc[3, 1] = np.nan
    kept = obs.known.notna().to_numpy()
    adata = anndata.AnnData(sp.csr_matrix(COUNTS.T), obs=obs)
    factors = COUNTS.sum(axis=0) + 1.0
    with pytest.warns(fm.MissingSamplesWarning):
        got = fm.MultiLMM.from_anndata(
            adata, "~ x + offset(known)", "(1 | g)", missing="drop", weights="w",
            size_factors=factors, transform="log1p",
        )  # fmt: skip
    values = np.log1p(COUNTS / factors) - obs.known.to_numpy()
    expected = model(
        "~ x", values[:, kept], obs[kept].reset_index(drop=True), weights=obs.w[kept].to_numpy()
    )
    assert_same_fit(got, expected)


def test_features_with_values_of_their_own():
    Y = COUNTS.copy()
    Y[0, :4] = np.nan
    Y[2, 10:12] = np.nan
    got = model("~ x + offset(known)", Y, missing="feature").fit(parameter_space="psd")
    left = Y - DATA.known.to_numpy()
    expected = model("~ x", left, missing="feature").fit(parameter_space="psd")
    np.testing.assert_allclose(got.params, expected.params, rtol=1e-8)
    np.testing.assert_allclose(got.llf, expected.llf, rtol=1e-10)


def test_an_offset_that_dwarfs_what_is_left():
    far = DATA.assign(known=1e6 * DATA.known)
    left = RNG.normal(size=(3, N))
    got = model("~ x + offset(known)", left + far.known.to_numpy(), far).fit(parameter_space="psd")
    expected = model("~ x", left, far).fit(parameter_space="psd")
    np.testing.assert_allclose(got.params, expected.params, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("fixed", "random", "message"),
    [
        ("~ x:offset(known)", "(1 | g)", "cannot be part of an interaction"),
        ("~ x * offset(known)", "(1 | g)", "cannot be part of an interaction"),
        ("~ I(offset(known))", "(1 | g)", "term of its own"),
        ("~ offset(known, x)", "(1 | g)", "one expression"),
        ("~ offset()", "(1 | g)", "one expression"),
        ("~ offset(trt)", "(1 | g)", "one number per sample"),
        ("~ offset(x > 0)", "(1 | g)", "one number per sample"),
        ("~ offset(poly(x, 2))", "(1 | g)", "one number per sample"),
        ("~ offset(unknown)", "(1 | g)", "'unknown', which is not a column"),
        ("~ x", "(offset(known) | g)", "belongs in `fixed`"),
        ("~ x", "~ 0 + offset(known)", "belongs in `fixed`"),
        ("~ offset(log(known - 10))", "(1 | g)", "not finite in rows"),
        ("~ x - offset(known)", "(1 | g)", "taken away"),
        ("~ x +-offset( known )", "(1 | g)", "taken away"),
        ("~ x - (x + offset(known))", "(1 | g)", "taken away"),
        ("~ offset(x) + offset(known) - offset(x)", "(1 | g)", "taken away"),
        ("~ x + 0:offset(known)", "(1 | g)", "number 0 stands outside"),
        ("~ x + 2:offset(known)", "(1 | g)", "number 2 stands outside"),
        ("~ x + offset(1)", "(1 | g)", "one value for all samples"),
    ],
)
def test_offsets_without_a_meaning_are_refused(fixed, random, message):
    with pytest.raises(InputError, match=message):
        fm.MultiLMM.from_formula(fixed, random, DATA, COUNTS)


def test_missing_values_of_an_offset_are_missing():
    with pytest.raises(InputError, match="1 in 'known'"):
        model("~ x + offset(log(known))", data=DATA.assign(known=[np.nan, *DATA.known[1:]]))


def test_a_column_called_offset_is_a_column():
    assert model("~ offset", data=DATA.assign(offset=DATA.known)).stats.coef_names[1] == "offset"


# --- Results ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "fixed"),
    [("offset", "~ a + offset(log(x))"), ("offset_two", "~ b + offset(x^2) + offset(0.5 * x)")],
)
def test_fits_equal_lme4(case, fixed):
    expected, data = references.formulas()[case], references.empty_cell()
    result = fm.MultiLMM.from_formula(fixed, "(1 | id)", data, data["y"].to_numpy()).fit(
        parameter_space="psd"
    )
    np.testing.assert_allclose(result.params.iloc[0], expected["beta"], rtol=1e-6)
    np.testing.assert_allclose(result.bse.iloc[0], expected["se"], rtol=1e-5)
    np.testing.assert_allclose(result.theta.iloc[0], expected["variances"], rtol=1e-5)
    np.testing.assert_allclose(result.llf.iloc[0], expected["llf"][0], rtol=1e-9)
    np.testing.assert_allclose(result.anova().fvalue.iloc[0], expected["anova"]["F"], rtol=1e-4)


def test_marginal_means_hold_the_offset_at_its_mean():
    expected, data = references.formulas()["offset"]["means"], references.empty_cell()
    result = fm.MultiLMM.from_formula(
        "~ a + offset(log(x))", "(1 | id)", data, data["y"].to_numpy()
    ).fit(parameter_space="psd")
    table = result.marginal_means("a").to_frame()
    np.testing.assert_allclose(table["estimate"], expected["mean"], rtol=1e-6)
    np.testing.assert_allclose(table["se"], expected["se"], rtol=1e-5)
    np.testing.assert_allclose(table["df"], expected["df"], rtol=1e-4)
    np.testing.assert_allclose(table["p"], expected["p"], rtol=1e-4)
    pairs = result.marginal_means("a", contrast="pairwise")
    params = result.params.iloc[0]
    np.testing.assert_allclose(pairs.effect["p - q"].iloc[0], -params["a[T.q]"], rtol=1e-9)
    at = result.marginal_means("a", at={"x": 1.0})  # log(1) = 0
    np.testing.assert_allclose(at.effect["a=p"].iloc[0], params["Intercept"], rtol=1e-9)
    by = result.marginal_means("a", by="x", at={"x": [1.0, np.e]})
    np.testing.assert_allclose(by.effect.iloc[0, 3] - by.effect.iloc[0, 0], 1.0)
    limits = result.marginal_means("a").conf_int()
    assert (limits.mean("bound") - table["estimate"].to_numpy()).max() < 1e-9


def test_predictions_hold_the_offset(tmp_path):
    values = np.log(DATA.known.to_numpy())
    result = model("~ x + trt + offset(log(known))").fit(parameter_space="psd")
    other = model("~ x + trt", COUNTS - values).fit(parameter_space="psd")
    result.save(tmp_path / "fit.nc")
    again = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    for each in (result, again):
        for options in ({}, {"level": "conditional"}):
            np.testing.assert_allclose(
                each.predict(DATA, **options), other.predict(DATA, **options) + values, rtol=1e-8
            )
        np.testing.assert_allclose(
            each.fittedvalues(DATA), other.fittedvalues(DATA) + values, rtol=1e-8
        )
        np.testing.assert_allclose(
            each.resid(COUNTS, DATA), other.resid(COUNTS - values, DATA), rtol=1e-7, atol=1e-9
        )
        wide, plain = (
            r.predict(DATA, interval="prediction", level="conditional") for r in (each, other)
        )
        np.testing.assert_allclose(wide["upper"], plain["upper"] + values, rtol=1e-7)
        np.testing.assert_allclose(wide["se"], plain["se"], rtol=1e-7)
        one = each.sel(0)
        np.testing.assert_allclose(one.predict(DATA), each.predict(DATA)[0])
        np.testing.assert_array_equal(
            each.marginal_means("trt").effect, result.marginal_means("trt").effect
        )
    with pytest.raises(InputError, match="needs the column 'known'"):
        result.predict(DATA.drop(columns="known"))
    with pytest.raises(InputError, match="has an offset, which X does not hold"):
        result.predict(X=np.ones((2, 3)))


def test_statsmodels_fits_the_same_model():
    pytest.importorskip("statsmodels")
    Y = pd.DataFrame(COUNTS, index=list("abcd"))
    result = model("~ x + offset(log(known))", Y).fit(parameter_space="psd")
    assert result.sel("b").to_statsmodels(Y, DATA).largest_difference < 1e-3


def test_transforms_in_an_offset_keep_their_state():
    result = model("~ x + offset(scale(known))").fit(parameter_space="psd")
    whole = result.predict(DATA)
    np.testing.assert_allclose(result.predict(DATA.iloc[:3]), whole[:, :3])


def test_models_with_other_offsets_are_other_data():
    large = model("~ x + trt + offset(known)").fit(method="ML")
    small = model("~ x").fit(method="ML")
    with pytest.raises(InputError, match="different data"):
        large.compare_lr_test(small)


def test_integrated_tests_hold_the_offset():
    Y = RNG.normal(size=(40, N)) + RNG.normal(size=(40, 10))[:, np.repeat(np.arange(10), 6)]
    values = DATA.known.to_numpy()
    one = model("~ x + trt + offset(known)", Y + values).fit(parameter_space="psd")
    two = model("~ x + trt", Y).fit(parameter_space="psd")
    for options in ({}, {"level": "conditional"}):
        a, b = (
            r.predict(DATA, df="integrated", interval="confidence", **options) for r in (one, two)
        )
        for name in ("prediction", "lower", "upper"):
            np.testing.assert_allclose(a[name], b[name] + values, rtol=1e-6, atol=1e-6)
    a, b = (r.marginal_means("trt", df="integrated") for r in (one, two))
    np.testing.assert_allclose(a.effect, b.effect + values.mean(), rtol=1e-6)
    np.testing.assert_allclose(a.conf_int(), b.conf_int() + values.mean(), rtol=1e-5)


def test_an_offset_of_a_file_is_no_program(tmp_path):
    result = model("~ x + offset(log(known))").fit(parameter_space="psd")
    saved = json.loads(recipe_to_text(result.recipe))
    assert recipe_from_text(json.dumps(saved)).offset.names == ("log(known)",)
    marker = tmp_path / "ran"
    for text in (f"0 + open({str(marker)!r}, 'w')", "0 + {known.__class__}", "0 + offset(known)"):
        saved["offset"]["text"] = text
        with pytest.raises(InputError, match="The saved offset"):
            recipe_from_text(json.dumps(saved))
    assert not marker.exists()
    saved = json.loads(recipe_to_text(result.recipe)) | {"offset_mean": "1"}
    with pytest.raises(InputError, match="no number"):
        recipe_from_text(json.dumps(saved))


def test_offsets_beside_weights_and_covariates_of_each_feature():
    rng = np.random.default_rng(2)
    W, G = rng.uniform(1, 2, COUNTS.shape), rng.normal(size=COUNTS.shape)
    options = {"weights": W, "feature_covariates": {"dose": G}}
    one = model("~ x + dose + offset(known)", **options).fit(parameter_space="psd")
    two = model("~ x + dose", COUNTS - DATA.known.to_numpy(), **options)
    np.testing.assert_allclose(one.params, two.fit(parameter_space="psd").params, rtol=1e-7)
