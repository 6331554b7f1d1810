"""One feature: statsmodels' names and shapes, and the second fit by statsmodels itself."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from small_fit import model, responses, samples
from statsmodels.regression.mixed_linear_model import MixedLM

import flashmm as fm
from flashmm import InputError

NAME = "gene 3"
# What MixedLMResults has and a fit without its samples, its optimiser or its hessian cannot have.
ABSENT = {
    *("model", "hist", "params_object", "freepat", "cov_pen"),
    *("hessv", "use_sqrt", "k_constant", "initialize", "remove_data", "get_nlfun"),
    *("covjac", "covjhj", "bsejac", "bsejhj", "score_obsv"),  # raise there
    *("save", "load", "bootstrap", "profile_re"),  # of all features: MultiLMMResults
    *("wald_test_terms", "t_test_pairwise"),
}
METHODS = {"fittedvalues", "resid"}  # properties there


@pytest.fixture(scope="module")
def both():
    """Intercepts and slopes of one grouping factor, by either package."""
    ours = model("(age | donor)").fit(parameter_space="psd").sel(NAME)
    data = samples()
    X = np.column_stack([np.ones(len(data)), data["age"], data["trt"] == "B"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = MixedLM(
            responses().loc[NAME].to_numpy(),
            pd.DataFrame(X, columns=ours.fe_params.index),
            groups=data["donor"].to_numpy(),
            exog_re=pd.DataFrame({"Intercept": X[:, 0], "age": X[:, 1]}),
        ).fit(method=["bfgs", "lbfgs"], gtol=1e-8)
    return ours, theirs


def test_every_public_name_of_statsmodels_is_here(both):
    ours, theirs = both
    assert set(dir(theirs)) >= ABSENT
    names = {name for name in dir(theirs) if not name.startswith("_")} - ABSENT
    assert names <= set(dir(ours)), names - set(dir(ours))
    for name in names - METHODS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert callable(getattr(theirs, name)) == callable(getattr(ours, name)), name


@pytest.mark.parametrize(
    "name",
    [
        *("fe_params", "params", "bse", "bse_fe", "bse_re", "tvalues", "pvalues", "cov_re"),
        *("cov_re_unscaled", "normalized_cov_params", "scale", "llf", "nobs", "k_fe", "k_re"),
        *("k_re2", "k_vc", "vcomp", "df_modelwc", "reml", "converged", "method"),
    ],
)
def test_shapes_are_those_of_statsmodels(both, name):
    ours, theirs = (getattr(fit, name) for fit in both)
    assert np.shape(ours) == np.shape(theirs)
    assert isinstance(ours, pd.Series) == isinstance(theirs, pd.Series)
    assert isinstance(ours, pd.DataFrame) == isinstance(theirs, pd.DataFrame)


def test_values_are_those_of_statsmodels(both):
    ours, theirs = both
    for name in ("scale", "llf", "nobs", "k_fe", "k_re", "k_re2", "df_modelwc", "reml"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-5), name
    assert_allclose(ours.fe_params, theirs.fe_params, rtol=1e-5)
    assert_allclose(ours.cov_re, theirs.cov_re, rtol=1e-4, atol=1e-5)
    assert_allclose(ours.cov_re_unscaled, theirs.cov_re_unscaled, rtol=1e-4, atol=1e-5)
    assert ours.random_effects.keys() == theirs.random_effects.keys()
    assert ours.random_effects_cov.keys() == theirs.random_effects_cov.keys()
    for level, effects in theirs.random_effects.items():
        own, covariance = ours.random_effects[level], ours.random_effects_cov[level]
        assert own.index.tolist() == effects.index.tolist()
        assert_allclose(own, effects, rtol=1e-4, atol=1e-5)
        assert_allclose(covariance, theirs.random_effects_cov[level], rtol=1e-4, atol=1e-6)
    assert ours.conf_int().shape == theirs.conf_int().shape
    assert ours.conf_int().columns.tolist() == theirs.conf_int().columns.tolist()
    assert ours.cov_params().shape == theirs.cov_params().shape
    data, Y = samples(), responses()
    assert_allclose(ours.fittedvalues(data), theirs.fittedvalues, atol=1e-4)
    assert_allclose(ours.resid(Y, data), theirs.resid, atol=1e-4)
    assert ours.fittedvalues(data).index.tolist() == data.index.tolist()
    head, coefficients, *_ = ours.summary().tables
    theirs_head, theirs_coefficients, *_ = theirs.summary().tables
    assert head.shape[1] == theirs_head.shape[1]
    assert coefficients.index.tolist() == theirs_coefficients.index.tolist()[: ours.k_fe]
    own = coefficients.drop(columns="df")
    assert own.shape[1] == theirs_coefficients.shape[1]


@pytest.mark.parametrize("random", ["(age | donor)", "(age || donor)", "(1 | donor) + (1 | batch)"])
def test_conditional_covariances_have_the_conditional_errors(random):
    results = model(random).fit(parameter_space="psd")
    one = results.sel(NAME)
    variance = np.concatenate([np.diag(block) for block in one.random_effects_cov.values()])
    se = results.blup(se="conditional")["se"].sel(feature=NAME)
    order = [
        i
        for _, _, columns in one._groups
        for i in columns.ravel()  # terms of one grouping factor stand side by side
    ]
    assert_allclose(np.sqrt(variance), se.to_numpy()[order], rtol=1e-8)


def test_several_grouping_factors_label_their_levels():
    results = model().fit(parameter_space="psd")
    one = results.sel(NAME)
    assert list(one.random_effects)[:2] == ["donor[d0]", "donor[d1]"]
    assert list(one.random_effects)[-1] == "batch[x]"
    tables = one.ranef()
    assert_allclose(one.random_effects["donor[d1]"], tables["donor"].loc["d1"])
    assert_allclose(one.random_effects["batch[x]"], tables["batch"].loc["x"])


def test_predictions_are_those_of_the_fit():
    data = samples()
    results = model("(1 | donor)").fit(parameter_space="psd")
    one = results.sel(NAME).predict(data, level="conditional")
    assert_allclose(one, results.predict(data, level="conditional").sel(feature=NAME), rtol=1e-12)
    assert one.dims == ("sample",)


# ---- the second fit --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "random",
    ["(1 | donor)", "(age | donor)", "(age || donor)", "(1 | donor) + (1 | batch)", "~ 0 + donor"],
)
@pytest.mark.parametrize("method", ["REML", "ML"])
def test_the_second_fit_agrees(random, method):
    one = model(random).fit(method, parameter_space="psd").sel(NAME)
    for Y in (responses(), responses().loc[NAME], responses().loc[NAME].to_numpy()):
        check = one.to_statsmodels(Y, samples())
        assert check.largest_difference < 1e-4
        assert check.llf[0] == pytest.approx(check.llf[1], abs=1e-7)
    assert check.table.index.tolist() == [*one.fe_params.index, *one.theta.index]
    assert "largest difference" in repr(check)


def test_the_second_fit_of_matrices():
    data, Y = samples(), responses()
    X = np.column_stack([np.ones(len(data)), data["age"]])
    Z = pd.get_dummies(data["donor"]).to_numpy(dtype=float)
    results = fm.MultiLMM.from_arrays(Y, X, Z).fit(parameter_space="psd")
    check = results.sel(NAME).to_statsmodels(Y, X=X, Z=Z)
    assert check.largest_difference < 1e-4
    results = fm.MultiLMM.from_arrays(Y, X, Z + 0.1).fit(parameter_space="psd")
    with pytest.raises(InputError, match="each belong to one level"):
        results.sel(NAME).to_statsmodels(Y, X=X, Z=Z + 0.1)


def test_what_statsmodels_cannot_do_is_said(monkeypatch):
    data, Y = samples(), responses()
    with pytest.raises(InputError, match=r"cannot express the covariance 'donor\[Intercept,age\]'"):
        model().fit(parameter_space="psd").sel(NAME).to_statsmodels(Y, data)
    weights = np.linspace(1, 2, len(data))
    weighted = fm.MultiLMM.from_formula("~ age", "(1 | donor)", data, Y, weights=weights)
    with pytest.raises(InputError, match="weighted"):
        weighted.fit(parameter_space="psd").sel(NAME).to_statsmodels(Y, data)
    one = model("(1 | donor)").fit(parameter_space="psd").sel(NAME)
    monkeypatch.setitem(sys.modules, "statsmodels.regression.mixed_linear_model", None)
    with pytest.raises(InputError, match="pip install statsmodels"):
        one.to_statsmodels(Y, data)


@pytest.mark.parametrize("error", [np.linalg.LinAlgError("Singular matrix"), ValueError("NaN")])
def test_a_fit_that_statsmodels_itself_gives_up_is_said(monkeypatch, error):
    """Design 155 of the fuzz against lme4: statsmodels inverts a singular Hessian."""

    def gives_up(*args, **kwargs):
        raise error

    monkeypatch.setattr(MixedLM, "fit", gives_up)
    for random in ("(1 | donor)", "(1 | donor) + (1 | batch)"):
        one = model(random).fit(parameter_space="psd").sel(NAME)
        with pytest.raises(InputError, match=f"statsmodels.*'{NAME}'.*{error}"):
            one.to_statsmodels(responses(), samples())
