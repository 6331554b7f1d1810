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
            dashboard_address=None,
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
    np.testing.assert_array_equal(found.observed[found.pattern], np.isfinite(Y))
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
