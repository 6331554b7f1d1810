"""fit(): it changes nothing, repeats itself, and takes starting values of every form."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from small_fit import N, model, responses

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.storage.schema import check_dataset


@pytest.fixture(scope="module")
def results() -> fm.MultiLMMResults:
    return model().fit(parameter_space="psd")


def snapshot(built: fm.MultiLMM) -> list:
    s = built.stats
    return [np.array(v, copy=True) for v in (s.XX, s.XY, s.ZX, s.ZY, s.ZZ.toarray(), s.yy)]


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_fitting_changes_nothing_and_repeats_itself(method):
    built = model()
    before = snapshot(built)
    first = built.fit(method, parameter_space="psd")
    other = built.fit("ML" if method == "REML" else "REML", parameter_space="psd", max_iter=40)
    other.summary(), other.blup(se="prediction"), other.fim(), other.t_test()
    second = built.fit(method, parameter_space="psd")
    xr.testing.assert_identical(first.ds, second.ds)
    for old, new in zip(before, snapshot(built), strict=True):
        np.testing.assert_array_equal(old, new)
    built_afresh = model().fit(method, parameter_space="psd")
    xr.testing.assert_identical(first.ds, built_afresh.ds)


def start_forms(results) -> dict[str, object]:
    theta = results.theta
    outside = theta.to_numpy(copy=True)
    outside[::2] = [-1.0, 1.0, 0.0, -2.0, 1.0]
    return {
        "vector": theta.mean().to_numpy(),
        "list": theta.mean().tolist(),
        "array": theta.to_numpy(),
        "DataFrame": theta,
        "DataFrame in another order": theta.iloc[::-1, [4, 3, 1, 2, 0]],
        "results": results,
        "rows outside the space": outside,
    }


@pytest.mark.parametrize("form", start_forms(model().fit(parameter_space="psd")))
def test_starting_values_of_every_form_lead_to_the_same_maximum(results, form):
    again = model().fit(parameter_space="psd", theta0=start_forms(results)[form])
    assert again.converged.all()
    np.testing.assert_allclose(again.llf, results.llf, atol=1e-8)
    scale = results.theta["Residual"].to_numpy()[:, None]
    np.testing.assert_allclose(again.theta / scale, results.theta / scale, atol=1e-5)
    if form in ("array", "DataFrame", "DataFrame in another order", "results"):
        assert (again.n_iter <= 1).all()  # the start is the maximum


@pytest.mark.parametrize(
    ("theta0", "message"),
    [
        ([1.0, 1.0], r"`theta0` has shape \(2,\); it must have 5 values"),
        (np.ones((3, 5)), r"shape \(3, 5\)"),
        ("zero", "`theta0` must be numbers"),
        ([np.nan, 1.0, 0.0, 1.0, 1.0], "theta0"),
        ([1.0, 1.0, 0.0, 1.0, np.inf], "theta0"),
    ],
)
def test_starting_values_that_are_refused(theta0, message):
    with pytest.raises(InputError, match=message):
        model().fit(theta0=theta0)


def test_starting_values_for_some_of_the_features(results):
    again = model().fit(parameter_space="psd", theta0=results.theta.drop(index="gene 3"))
    np.testing.assert_allclose(again.llf, results.llf, atol=1e-8)
    assert again.n_iter["gene 3"] == results.n_iter["gene 3"]  # from the default start


def test_only_the_default_start_is_followed_by_a_second_search():
    """A feature without a usable start of its own is fitted as it would be without any."""
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(6), 4)
    built = fm.MultiLMM.from_arrays(rng.normal(size=(12, 24)), np.ones((24, 1)), np.eye(6)[group])
    first = built.fit(parameter_space="psd")
    boundary = first.status == "boundary"
    given = boundary & (np.arange(12) % 2 == 0)
    assert 2 <= given.sum() < boundary.sum()
    again = built.fit(parameter_space="psd", theta0=first.theta.where(given, np.nan))
    assert (again.n_iter[~given] == first.n_iter[~given]).all()
    np.testing.assert_array_equal(again.theta[~given], first.theta[~given])
    assert (again.n_iter[given] < first.n_iter[given]).all()


def test_starting_values_of_another_parameter_are_refused(results):
    with pytest.raises(InputError, match="run"):
        model().fit(theta0=results.theta.rename(columns={"batch": "run"}))


def test_one_counted_warning_for_all_features():
    Y = responses()
    Y.iloc[:3] = 0.0
    Y.iloc[3] = 7.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = model(Y=Y).fit(parameter_space="psd")
    assert [str(w.message) for w in caught] == [
        "4 of 12 features ended without a regular fit: 4 zero variance. See results.status."
    ]
    assert caught[0].filename == __file__
    assert repr(results) == "<MultiLMMResults: REML, 12 features, 8 converged; n=96, p=3, q=20>"


def test_no_features():
    results = model(Y=np.zeros((0, N))).fit()
    assert results.params.shape == (0, 3)
    assert results.to_frame().shape == (0, 7)
    assert results.blup().shape == (0, 20)
    assert "Features (m):" in str(results.summary())
    check_dataset(results.ds)
