"""Statistics on a cluster of processes: as here, and a lost worker costs a retry."""

from __future__ import annotations

import os
import signal

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import xarray as xr

import flashmm as fm
from flashmm.exceptions import InputError, MissingSamplesWarning
from flashmm.likelihood import project
from flashmm.solvers import FisherScoring

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

M, N = 6, 60


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            memory_limit=None,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def counts(*, far: bool = False) -> np.ndarray:
    Y = np.random.default_rng(7).poisson(1.2, size=(M, N)).astype(float)
    if far:
        Y[2] += 1e9  # is summed again after a shift
    return Y


def data() -> pd.DataFrame:
    rng = np.random.default_rng(8)
    return pd.DataFrame(
        {
            "x": rng.normal(size=N),
            "cls": np.tile(list("abcdefghij"), N // 10),
            "w": rng.gamma(2.0, size=N),
            "g": np.repeat(list("uvwxyz"), N // 6),
        },
        index=[f"cell {i}" for i in range(N)],
    )


def stats_of(Y, **options) -> fm.SummaryStats:
    return fm.MultiLMM.from_formula("~ x + cls + (1 + x | g)", None, data(), Y, **options).stats


def assert_same(stats: fm.SummaryStats, expected: fm.SummaryStats) -> None:
    for name in ("XX", "XY", "ZX", "ZY", "yy"):
        found, right = getattr(stats, name), getattr(expected, name)
        np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-12, err_msg=name)
    assert stats.feature_names.tolist() == expected.feature_names.tolist()
    assert (stats.shift is None) == (expected.shift is None)
    if stats.shift is not None:
        assert stats.shift.features.tolist() == expected.shift.features.tolist()
        # What a shift leaves depends on rounding; what is left once X is projected out does not.
        found, right = project(stats), project(expected)
        np.testing.assert_allclose(found.scale, right.scale, rtol=1e-7)
        np.testing.assert_allclose(found.ZRy, right.ZRy, rtol=1e-7, atol=1e-6)


KINDS = {
    "dense": lambda Y: da.from_array(Y, chunks=(4, 17)),
    "sparse": lambda Y: da.from_array(Y, chunks=(M, 17)).map_blocks(sp.csr_array),
    "DataArray": lambda Y: xr.DataArray(da.from_array(Y.T, chunks=(17, M)), dims=("cell", "gene")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"transform": "log2p1", "size_factors": "total", "min_fraction": 0.7},
        {"weights": "w", "features": [0, 2, 3, 4]},
    ],
)
def test_workers_give_the_same_statistics(client, kind, options):
    Y = counts(far="weights" in options)
    expected = stats_of(Y, **options)
    assert (expected.shift is not None) == ("weights" in options)
    assert_same(stats_of(KINDS[kind](Y), **options), expected)


# Older dask asks whether a scheduler beside the client is meant: here it is.
@pytest.mark.filterwarnings("default:Running on a single-machine scheduler:UserWarning")
def test_sums_are_made_elsewhere_and_no_bit_depends_on_where(client):
    this_process, marker = os.getpid(), []

    def elsewhere(values):
        if os.getpid() == this_process and not marker:
            raise AssertionError("summed by the client")
        return np.sqrt(values)

    Y = da.from_array(counts(), chunks=(4, 7))
    there = stats_of(Y, transform=elsewhere)
    marker.append("here")
    with dask.config.set(scheduler="synchronous"):
        here = stats_of(Y, transform=elsewhere)
    for name in ("XY", "ZY", "yy"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))


def test_a_bad_value_is_named_by_feature_sample_and_block(client):
    Y = counts()
    Y[3, 25] = np.nan
    bad = da.from_array(Y, chunks=(M, 10))
    with pytest.raises(InputError, match=r"missing value: feature 3, sample 'cell 25' \(block 0\)"):
        stats_of(bad)
    with pytest.raises(InputError, match=r"Y looks transposed"):
        stats_of(bad.T)


def test_missing_samples_are_dropped(client):
    Y = counts()
    Y[3, 25] = np.nan
    with pytest.warns(MissingSamplesWarning, match="1 of 60"):
        found = stats_of(da.from_array(Y, chunks=(4, 10)), missing="drop", weights="w")
    with pytest.warns(MissingSamplesWarning, match="1 of 60"):
        assert_same(found, stats_of(Y, missing="drop", weights="w"))


def test_features_that_lack_different_samples(client):
    Y = counts(far=True)
    Y[[0, 0, 2, 3], [4, 25, 25, 59]] = np.nan
    expected = stats_of(Y, missing="feature", weights="w")
    found = stats_of(da.from_array(Y, chunks=(4, 10)), missing="feature", weights="w")
    np.testing.assert_array_equal(found.nobs, np.isfinite(Y).sum(axis=1))
    assert found.sums.shift.features.tolist() == [2]
    for k in range(found.n_patterns):
        members = found.members(k)
        (theirs,) = {int(pattern) for pattern in expected.pattern[members]}
        right = expected.of_pattern(theirs)
        assert_same(found.of_pattern(k), right.take(list(found.of_pattern(k).feature_names)))


def lethal(directory):
    """A transform whose fourth call kills its process."""

    def transform(values):
        number = 0
        while True:
            try:
                os.close(os.open(directory / str(number), os.O_CREAT | os.O_EXCL))
                break
            except FileExistsError:
                number += 1
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.sqrt(values)

    return transform


def test_a_lost_worker_costs_a_retry_and_not_the_result(client, tmp_path):
    before = set(client.scheduler_info()["workers"])
    Y = da.from_array(counts(), chunks=(4, 7))
    stats = stats_of(Y, transform=lethal(tmp_path))
    assert_same(stats, stats_of(counts(), transform=np.sqrt))
    assert len(list(tmp_path.iterdir())) > 2 * 9  # more calls than there are chunks
    client.wait_for_workers(2)
    assert set(client.scheduler_info()["workers"]) != before  # one of them is new


# ---- fits --------------------------------------------------------------------------------


def many() -> fm.MultiLMM:
    """Features of every kind: regular, on the boundary, constant, not finite, far off."""
    rng = np.random.default_rng(3)
    Y = rng.normal(size=(150, N)) + np.repeat(rng.normal(size=(150, 6)), N // 6, axis=1)
    Y[5] = 1.0
    Y[17] += 1e9
    stats = stats_of(pd.DataFrame(Y, [f"gene {i}" for i in range(150)], data().index))
    stats.yy[40] = np.nan
    return fm.MultiLMM.from_summary_stats(stats)


def assert_same_fit(found: fm.MultiLMMResults, expected: fm.MultiLMMResults) -> None:
    assert found.status.tolist() == expected.status.tolist()
    assert found.ds.attrs == expected.ds.attrs
    for name in ("beta", "se_beta", "theta", "se_theta", "loglik"):
        np.testing.assert_allclose(
            found.ds[name], expected.ds[name], rtol=1e-6, atol=1e-8, err_msg=name
        )
        assert found.ds[name].dims == expected.ds[name].dims
    assert found.ds.indexes["feature"].equals(expected.ds.indexes["feature"])


OPTIONS = [
    {"parameter_space": "psd"},
    {"method": "ML", "solver": "newton_raphson", "engine": "general"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_workers_give_the_same_fit(client, options):
    model = many()
    if "engine" in options:  # one feature at a time: two partitions will do
        model = model.keep(features=[f"gene {i}" for i in range(66)])
    with pytest.warns(fm.ConvergenceWarning) as here:
        expected = model.fit(**options)
    with pytest.warns(fm.ConvergenceWarning) as there:
        found = model.fit(**options, client=client)
    assert len(there) == 1  # counted over all partitions
    assert str(there[0].message) == str(here[0].message)
    assert_same_fit(found, expected)
    np.testing.assert_allclose(found.blup(), expected.blup(), rtol=1e-6, atol=1e-6)


def test_workers_compute_on_a_device(client):
    pytest.importorskip("torch")
    model = many().drop(features=["gene 5", "gene 40"])
    found = model.fit(parameter_space="psd", client=client, device="cpu")
    assert_same_fit(found, model.fit(parameter_space="psd"))


def test_starting_values_go_to_their_features(client):
    model = many().drop(features=["gene 5", "gene 40"])
    first = model.fit(parameter_space="psd")
    again = model.fit(parameter_space="psd", theta0=first.theta.iloc[::-1], client=client)
    regular = (first.status == "converged").to_numpy()
    assert regular.sum() > 20
    assert again.ds["n_iter"].to_numpy()[regular].max() <= 1
    assert first.ds["n_iter"].to_numpy()[regular].min() > 1


def lethal_solver(directory):
    """Fisher scoring that kills its process on the second of all partitions."""

    class Lethal(FisherScoring):
        def init(self, likelihood, theta0):
            marker = directory / str(len(list(directory.iterdir())))
            marker.touch()
            if marker.name == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().init(likelihood, theta0)

    return Lethal()


def test_a_worker_lost_in_a_fit_costs_a_retry(client, tmp_path):
    model = many().drop(features=["gene 5", "gene 40"])
    found = model.fit(parameter_space="psd", solver=lethal_solver(tmp_path), client=client)
    assert len(list(tmp_path.iterdir())) > 3  # there are three partitions
    expected = model.fit(parameter_space="psd", solver=FisherScoring())
    np.testing.assert_allclose(found.ds["theta"], expected.ds["theta"], rtol=1e-6, atol=1e-8)
    assert found.status.tolist() == expected.status.tolist()


def test_what_cannot_be_fitted_on_workers_is_refused(client):
    with pytest.raises(InputError, match=r"must be a distributed.Client .*not str"):
        many().fit(client="tcp://somewhere")


@pytest.mark.parametrize("m", [130, 1])
def test_features_with_rows_of_their_own_are_fitted_on_workers(client, m):
    rng = np.random.default_rng(3)
    Y = rng.normal(size=(m, N)) + np.repeat(rng.normal(size=(m, 6)), N // 6, axis=1)
    Y[:, 4] += 1e9
    Y[rng.random(Y.shape) < 0.1] = np.nan
    Y[40:70] = np.where(np.isnan(Y[40]), np.nan, rng.normal(size=(30, N))) if m > 70 else Y[40:70]
    frame = pd.DataFrame(Y, [f"gene {i}" for i in range(m)], data().index)
    model = fm.MultiLMM.from_formula("~ x + (1 | g)", None, data(), frame, missing="feature")
    expected = model.fit(parameter_space="psd")
    found = model.fit(parameter_space="psd", client=client)
    assert_same_fit(found, expected)
    np.testing.assert_array_equal(found.nobs, expected.nobs)
    again = model.fit(parameter_space="psd", client=client, theta0=expected.theta.iloc[::-1])
    np.testing.assert_allclose(again.theta, expected.theta, rtol=1e-5, atol=1e-6)
