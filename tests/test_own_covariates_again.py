"""Predictions, fitted values and residuals of models with covariates of each feature's own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm.exceptions import InputError, MissingSamplesWarning

M, N = 6, 40
RANDOM = "(1 | subject)"
FIXED = "~ trt * dosage + age"


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "subject": [f"s{i // 5}" for i in range(N)],
            "trt": np.tile(["a", "b"], N // 2),
            "age": rng.normal(size=N),
        },
        index=[f"c{i}" for i in range(N)],
    )
    names = [f"gene{j}" for j in range(M)]
    Y = pd.DataFrame(rng.normal(size=(M, N)), names, frame.index)
    Y += rng.normal(size=(M, 8))[:, np.arange(N) // 5]
    dosage = pd.DataFrame(rng.integers(0, 3, (M, N)).astype(float), names, frame.index)
    model = fm.MultiLMM.from_formula(FIXED, RANDOM, frame, Y, feature_covariates={"dosage": dosage})
    return frame, Y, dosage, model.fit(parameter_space="psd")


def alone(given, name):
    frame, Y, dosage, _ = given
    mine = frame.assign(dosage=dosage.loc[name])
    model = fm.MultiLMM.from_formula(FIXED, RANDOM, mine, Y.loc[[name]])
    return model.fit(parameter_space="psd"), mine


@pytest.mark.parametrize("level", ["conditional", "population"])
def test_each_feature_as_if_alone(given, level):
    frame, Y, dosage, result = given
    shuffled = dosage.iloc[::-1, ::-1]
    found = result.fittedvalues(frame, level=level, feature_covariates={"dosage": shuffled})
    rest = result.resid(Y, frame, level=level, feature_covariates={"dosage": shuffled})
    new = result.predict(
        frame.iloc[5:9], level=level, feature_covariates={"dosage": dosage.iloc[:, 5:9]}
    )
    for name in Y.index:
        one, mine = alone(given, name)
        expected = one.fittedvalues(mine, level=level)[0]
        assert_allclose(found.sel(feature=name), expected, atol=1e-5)
        assert_allclose(
            rest.sel(feature=name), one.resid(Y.loc[[name]], mine, level=level)[0], atol=1e-5
        )
        assert_allclose(new.sel(feature=name), expected[5:9], atol=1e-5)


def test_some_features_and_plain_arrays(given):
    frame, _, dosage, result = given
    every = result.fittedvalues(frame, feature_covariates={"dosage": dosage})
    some = result.fittedvalues(
        frame, features=["gene4", "gene1"], feature_covariates={"dosage": dosage.to_numpy()}
    )
    assert_allclose(some, every.sel(feature=["gene4", "gene1"]))


def test_missing_values_are_missing_in_what_follows(given):
    frame, _, dosage, result = given
    holes = dosage.copy()
    holes.iloc[2, 3] = np.nan
    found = result.fittedvalues(frame, feature_covariates={"dosage": holes}).to_numpy()
    assert np.isnan(found).sum() == 1
    assert np.isnan(found[2, 3])


def test_one_value_for_all_features_may_be_a_column(given):
    frame, _, dosage, result = given
    same = np.tile(dosage.iloc[0].to_numpy(), (M, 1))
    by_column = result.predict(frame.assign(dosage=same[0]), interval="confidence")
    found = result.predict(frame, feature_covariates={"dosage": same})
    assert_allclose(found, by_column["prediction"])


def test_dropped_samples_are_missing(given):
    frame, Y, dosage, _ = given
    gap = frame.copy()
    gap.iloc[7, 2] = np.nan
    with pytest.warns(MissingSamplesWarning):
        model = fm.MultiLMM.from_formula(
            FIXED, RANDOM, gap, Y, missing="drop", feature_covariates={"dosage": dosage}
        )
    result = model.fit(parameter_space="psd")
    found = result.fittedvalues(gap, feature_covariates={"dosage": dosage})
    assert np.isnan(found[:, 7]).all()
    assert np.isfinite(np.delete(found.to_numpy(), 7, axis=1)).all()


def test_matrices(given):
    frame, Y, dosage, _ = given
    X = np.stack([np.ones(N), frame["age"]], axis=1)
    Z = pd.get_dummies(frame["subject"]).to_numpy(float)
    values = {"dosage": dosage.to_numpy()}
    result = fm.MultiLMM.from_arrays(Y.to_numpy(), X, Z, feature_covariates=values).fit(
        parameter_space="psd"
    )
    formula = fm.MultiLMM.from_formula(
        "~ age + dosage", RANDOM, frame, Y, feature_covariates={"dosage": dosage}
    ).fit(parameter_space="psd")
    found = result.fittedvalues(X=X, Z=Z, feature_covariates=values)
    expected = formula.fittedvalues(frame, feature_covariates={"dosage": dosage})
    assert_allclose(found, expected, atol=1e-5)
    for twice in (
        np.hstack([X, X[:, 1:]]),
        pd.DataFrame({"x0": 1.0, "x1": X[:, 1], "dosage": 1.0}),
    ):
        with pytest.raises(InputError, match="X has no columns of 'dosage'"):
            result.fittedvalues(X=twice, Z=Z, feature_covariates=values)


def test_what_is_refused(given):
    frame, Y, dosage, result = given
    with pytest.raises(InputError, match=r"lacks 'dosage'.*`feature_covariates`"):
        result.fittedvalues(frame)
    with pytest.raises(InputError, match=r"lacks 'dosage'.*`feature_covariates`"):
        result.resid(Y, frame)
    with pytest.raises(InputError, match=r"has 'copies'; the covariates .* are 'dosage'"):
        result.predict(frame, feature_covariates={"copies": dosage})
    with pytest.raises(InputError, match="'dosage' lacks the features 'gene0'"):
        result.predict(frame, feature_covariates={"dosage": dosage.iloc[1:]})
    with pytest.raises(InputError, match="a column of `data` too"):
        result.predict(frame.assign(dosage=1.0), feature_covariates={"dosage": dosage})
    with pytest.raises(InputError, match="need samples that all features share"):
        result.predict(frame, se=True, feature_covariates={"dosage": dosage})
    with pytest.raises(InputError, match="must be a dict"):
        result.predict(frame, feature_covariates=dosage.to_numpy())
    with pytest.raises(InputError):  # other samples
        result.predict(
            frame, feature_covariates={"dosage": dosage.rename(columns={"c0": "another"})}
        )
    plain = fm.MultiLMM.from_formula("~ age", RANDOM, frame, Y).fit(parameter_space="psd")
    with pytest.raises(InputError, match="in this model are none"):
        plain.predict(frame, feature_covariates={"dosage": dosage})
