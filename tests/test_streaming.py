"""What is done to Y on the way, and that no way of reading it changes the statistics."""

from __future__ import annotations

import logging
import sys
import warnings
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources import FEATURES, SAMPLES, N, assert_same_sums, counts, frame, samples, stats_of

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.formulas.build import build_design
from flashmm.sources import make_source
from flashmm.stats import from_source
from flashmm.stats.summary_stats import SummaryStats

# ---- every source, block size, order and number of workers ------------------------------


def csr_cells(Y):
    return sp.csr_matrix(Y.T)


def blocks_of_samples(Y, size=7):
    order = np.random.default_rng(1).permutation(N)
    pieces = [order[i : i + size] for i in range(0, N, size)]
    return iter([(pd.Index(SAMPLES)[piece], Y[:, piece]) for piece in pieces])


def in_file(kind):
    def make(Y, directory):
        h5py = pytest.importorskip("h5py")
        rows = Y if kind == "features" else Y.T
        file = h5py.File(directory / f"{kind}.h5", "w")
        return file.create_dataset("Y", data=rows, chunks=(2, 5))

    return make


def zarr_array(Y, directory):
    zarr = pytest.importorskip("zarr")
    return zarr.array(Y, chunks=(Y.shape[0], 6))


def memory_map(Y, directory):
    np.save(directory / "Y.npy", Y)
    return np.load(directory / "Y.npy", mmap_mode="r")


def dask_chunks(*chunks, sparse=False):
    def make(Y, directory):
        da = pytest.importorskip("dask.array")
        array = da.from_array(Y, chunks=chunks)
        return array.map_blocks(sp.csr_matrix) if sparse else array

    return make


def dask_dataarray(Y, directory):
    da = pytest.importorskip("dask.array")
    return xr.DataArray(da.from_array(Y.T, chunks=(7, 2)), dims=("cell", "gene"))


# name -> (rows, make)
SOURCES = {
    "array": ("features", lambda Y, _: Y),
    "array of samples": ("samples", lambda Y, _: np.ascontiguousarray(Y.T)),
    "CSR": ("features", lambda Y, _: sp.csr_array(Y)),
    "CSR of samples": ("samples", lambda Y, _: csr_cells(Y)),
    "COO of samples": ("samples", lambda Y, _: sp.coo_array(Y.T)),
    "DataFrame of samples": ("samples", lambda Y, _: pd.DataFrame(Y.T, SAMPLES)),
    "memory map": ("features", memory_map),
    "HDF5": ("features", in_file("features")),
    "HDF5 of samples": ("samples", in_file("samples")),
    "zarr": ("features", zarr_array),
    "dask": ("features", dask_chunks(2, 9)),
    "dask, sparse": ("features", dask_chunks(5, 9, sparse=True)),
    "dask by features": ("features", dask_chunks(2, N)),
    "DataArray of dask": ("features", dask_dataarray),
    "blocks": ("features", lambda Y, _: blocks_of_samples(Y)),
    "sparse blocks": ("features", lambda Y, _: blocks_of_samples(sp.csc_array(Y))),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transform": "log2p1", "size_factors": "total", "target_sum": 10.0},
        {"weights": "w", "min_count": 25, "features": [0, 2, 3, 4]},
    ],
)
def test_every_source_gives_the_same_statistics(name, options, tmp_path, monkeypatch):
    monkeypatch.setattr("flashmm.sources.cache_sized.ELEMENTS", 20)  # portions of several samples
    rows, make = SOURCES[name]
    data = samples().assign(w=np.random.default_rng(2).gamma(2.0, size=N))
    expected = stats_of(counts().astype(float), data, **options)
    stats = stats_of(make(counts().astype(float), tmp_path), data, rows=rows, **options)
    assert_same_sums(stats, expected)
    assert stats.feature_names.tolist() == expected.feature_names.tolist()


CHEAP = [name for name in SOURCES if not name.startswith(("HDF5", "zarr", "dask", "DataArray"))]


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from([name for name in CHEAP if "blocks" not in name]),
    seed=st.integers(0, 2**32 - 1),
    block_bytes=st.integers(1, 4000),
    workers=st.integers(1, 4),
    transform=st.sampled_from([None, "log2p1", "log1p", np.sqrt, np.cos]),
    far=st.booleans(),
    elements=st.sampled_from([3, 20, 2**20]),
)
def test_blocks_order_and_workers_change_nothing(
    name, seed, block_bytes, workers, transform, far, elements, tmp_path_factory
):
    rng = np.random.default_rng(seed)
    Y = rng.poisson(0.7, size=(5, N)).astype(float)
    if far:
        Y[1] += 1e9  # needs shifted sums
    rows, make = SOURCES[name]
    order = rng.permutation(N)
    data = samples()
    expected = SummaryStats.from_design(
        make_source(Y, transform=transform), build_design("~ x + (1 | g)", None, data).design
    )
    source = make_source(
        make(Y[:, order], tmp_path_factory.mktemp("map")), transform=transform, rows=rows, n=N
    )
    design = build_design("~ x + (1 | g)", None, data.iloc[order]).design
    with mock.patch("flashmm.sources.cache_sized.ELEMENTS", elements):
        stats = SummaryStats.from_design(source, design, block_bytes=block_bytes, workers=workers)
    assert_same_sums(stats, expected)
    assert (stats.shift is None) == (expected.shift is None)
    if stats.shift is not None:
        np.testing.assert_array_equal(stats.shift.features, expected.shift.features)
        if transform is None:  # the others leave few digits of a spread of 1 at 1e9
            np.testing.assert_allclose(stats.shift.yy, expected.shift.yy, rtol=1e-6)


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_the_number_of_workers_changes_no_bit(workers):
    Y = sp.csr_array(np.random.default_rng(0).poisson(0.4, size=(N, 50)).astype(np.float32))
    design = build_design("~ x + (1 | g)", None, samples()).design

    def sums(count):
        source = make_source(Y, transform="log2p1", rows="samples")
        return SummaryStats.from_design(source, design, block_bytes=400, workers=count)

    one, several = sums(1), sums(workers)
    for field in ("XY", "ZY", "yy"):
        np.testing.assert_array_equal(getattr(one, field), getattr(several, field))


def test_far_off_features_of_blocks_had_once_keep_their_digits():
    Y = np.random.default_rng(0).normal(size=(3, N)) + np.array([[0.0], [1e8], [1e8]])
    stats, expected = stats_of(blocks_of_samples(Y)), stats_of(Y)
    np.testing.assert_array_equal(stats.shift.features, [1, 2])
    np.testing.assert_allclose(stats.shift.yy, expected.shift.yy, rtol=1e-5)


# ---- size factors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [np.asarray, sp.csr_array, sp.csc_array, lambda Y: pd.DataFrame(Y, FEATURES, SAMPLES)]
)
def test_size_factors(make):
    Y = counts().astype(float)
    factors = np.random.default_rng(3).gamma(5.0, size=N)
    expected = stats_of(np.log2(1 + Y / factors))
    data = samples().assign(size=factors)
    for given_factors in (factors, "size", pd.Series(factors, SAMPLES)[::-1]):
        stats = stats_of(make(Y), data, transform="log2p1", size_factors=given_factors)
        assert_same_sums(stats, expected)
    totals = Y.sum(axis=0)
    for target in (None, 10.0):
        goal = np.median(totals) if target is None else target
        stats = stats_of(make(Y), transform="log1p", size_factors="total", target_sum=target)
        assert_same_sums(stats, stats_of(np.log1p(Y / totals * goal)))


def test_totals_are_over_all_features_and_empty_samples_stay_empty():
    Y = counts().astype(float)
    Y[:, 4] = 0.0
    totals = np.where(Y.sum(axis=0) == 0, 1.0, Y.sum(axis=0))
    held = Y.sum(axis=0)[Y.sum(axis=0) > 0]
    for target in (None, 5.0):
        goal = np.median(held) if target is None else target
        expected = stats_of(np.log1p(Y / totals * goal)[[1, 3]])
        for make in (np.asarray, sp.csc_array, sp.csr_array):
            stats = stats_of(
                make(Y),
                transform="log1p",
                size_factors="total",
                target_sum=target,
                features=[1, 3],
            )
            np.testing.assert_allclose(stats.yy, expected.yy, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_factors": "siez"}, r"names 'siez', which is no column of `data`. .*size"),
        ({"size_factors": np.ones(3)}, r"has shape \(3,\), but there are 24 samples"),
        ({"size_factors": np.zeros(N)}, r"must be positive and finite; it is 0 for sample 0 \(24"),
        ({"weights": np.full(N, np.nan)}, "must be positive and finite; it is nan"),
        ({"weights": pd.Series(np.ones(N))}, "do not match by label"),
        ({"target_sum": 1e4}, "goes with size_factors='total'"),
        ({"size_factors": "total", "target_sum": -1}, "`target_sum` must be positive"),
        ({"min_fraction": 2}, "must lie between 0 and 1"),
        ({"rows": "cells"}, "Unknown rows='cells'. Available: 'features', 'samples'"),
        ({"features": ["g9"]}, "Unknown feature: 'g9'"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        stats_of(frame(), samples().assign(size=1.0), **options)


# ---- selection ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array, sp.csc_array])
def test_features_are_selected_in_the_same_pass(make, monkeypatch):
    Y = counts().astype(float)
    Y[0], Y[3] = 0.0, 0.0
    Y[3, 5] = 40.0
    passes = []
    original = from_source.sum_source

    def counted(*args, **kwargs):
        passes.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr("flashmm.stats.from_source.sum_source", counted)
    whole = stats_of(Y, transform="log2p1")
    passes.clear()
    for options, kept in (
        ({"min_count": 1}, [1, 2, 3, 4]),
        ({"min_fraction": 0.2}, [1, 2, 4]),
        ({"min_count": 41, "min_fraction": 1 / N}, [i for i in (1, 2, 4) if Y[i].sum() >= 41]),
        ({"features": np.array([True, True, False, True, False]), "min_count": 1}, [1, 3]),
    ):
        stats = stats_of(make(Y), transform="log2p1", **options)
        assert stats.feature_names.tolist() == kept
        assert_same_sums(stats, whole.take(kept))
    assert len(passes) == 4


def test_features_by_name_and_values_that_are_not_used_may_be_missing():
    Y = frame().astype(float)
    Y.loc["g3", "cell 4"] = np.nan
    for make in (lambda Y: Y, lambda Y: pd.DataFrame(Y.to_numpy(), FEATURES, SAMPLES)):
        stats = stats_of(make(Y), features=["g5", "g2"])
        assert stats.feature_names.tolist() == ["g2", "g5"]
        assert_same_sums(stats, stats_of(frame()).take(["g2", "g5"]))
    csc = stats_of(sp.csc_array(Y.to_numpy()), feature_names=FEATURES, features=["g5", "g2"])
    assert_same_sums(csc, stats_of(frame()).take(["g2", "g5"]))


# ---- weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array, sp.csc_array])
def test_weights_scale_x_z_and_y_by_their_roots(make):
    data, Y = samples(), counts().astype(float)
    w = np.random.default_rng(5).gamma(2.0, size=N)
    design = build_design("~ x + (1 | g)", None, data).design
    X, Z = design.X, design.Z.toarray()
    root = np.sqrt(w)
    expected = SummaryStats.from_arrays(Y * root, X * root[:, None], Z * root[:, None])
    for stats in (
        stats_of(make(Y), data.assign(w=w), weights="w"),
        SummaryStats.from_arrays(make(Y), X, Z, weights=w),
        fm.MultiLMM.from_arrays(make(Y), X, Z, weights=w).stats,
    ):
        assert_same_sums(stats, expected)
        assert stats.log_weights == pytest.approx(np.log(w).sum())
    halves = [
        SummaryStats.from_arrays(Y[:, s], X[s], Z[s], weights=w[s])
        for s in (slice(10), slice(10, N))
    ]
    assert sum(halves).log_weights == pytest.approx(np.log(w).sum())
    assert (sum(halves) - halves[0]).log_weights == pytest.approx(np.log(w[10:]).sum())


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_the_likelihood_of_weighted_samples_is_that_of_the_dense_model(method):
    data = samples()
    rng = np.random.default_rng(6)
    w = rng.gamma(2.0, size=N)
    design = build_design("~ x + (1 | g)", None, data).design
    X, Z = design.X, design.Z.toarray()
    Y = rng.normal(size=(3, 6)) @ Z.T + rng.normal(size=(3, N)) / np.sqrt(w)
    model = fm.MultiLMM.from_formula("~ x + (1 | g)", None, data, Y, weights=w)
    results = model.fit(method)
    for j, y in enumerate(Y):
        variance, residual = results.theta.iloc[j]
        V = variance * Z @ Z.T + residual * np.diag(1.0 / w)
        inverse = np.linalg.inv(V)
        C = np.linalg.inv(X.T @ inverse @ X)
        beta = C @ X.T @ inverse @ y
        r = y - X @ beta
        loglik = -0.5 * (N * np.log(2 * np.pi) + np.linalg.slogdet(V)[1] + r @ inverse @ r)
        if method == "REML":
            loglik += 0.5 * (2 * np.log(2 * np.pi) + np.linalg.slogdet(C)[1])
        assert results.llf.iloc[j] == pytest.approx(loglik, rel=1e-10)
        np.testing.assert_allclose(results.params.iloc[j], beta, rtol=1e-8)
        np.testing.assert_allclose(results.bse.iloc[j] ** 2, np.diag(C), rtol=1e-8)


def test_tests_of_a_variance_have_no_use_for_the_constant_of_the_weights():
    """Both fits of a likelihood-ratio test carry 1/2 sum log w, which is lost in between."""
    data, rng = samples(), np.random.default_rng(6)
    w = rng.gamma(2.0, size=N)
    design = build_design("~ x + (1 | g)", None, data).design
    Y = rng.normal(size=(3, 6)) @ design.Z.T + rng.normal(size=(3, N)) / np.sqrt(w)
    root = np.sqrt(w)
    Z = design.Z.toarray() * root[:, None]
    weighted = fm.MultiLMM.from_formula("~ x + (1 | g)", None, data, Y, weights=w).fit()
    scaled = fm.MultiLMM.from_arrays(Y * root, design.X * root[:, None], Z).fit()
    np.testing.assert_allclose(weighted.llf, scaled.llf + 0.5 * np.log(w).sum(), rtol=1e-10)
    statistics = [results.variance_test()["statistic"].to_numpy() for results in (weighted, scaled)]
    np.testing.assert_allclose(*statistics, rtol=1e-6)
    assert (statistics[0] > 0.1).any()


def test_whole_numbers_as_weights_are_samples_repeated():
    """A weight of k on a sample's mean stands for k samples, but for their spread."""
    data, Y = samples(), counts().astype(float)
    w = np.random.default_rng(7).integers(1, 4, N)
    weighted = stats_of(Y, data, weights=w.astype(float))
    repeated = stats_of(np.repeat(Y, w, axis=1), data.loc[data.index.repeat(w)])
    for name in ("XX", "XY", "ZX", "ZY", "yy"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), rtol=1e-12)


def test_far_off_features_keep_their_digits_under_weights():
    data, w = samples(), np.random.default_rng(5).gamma(2.0, size=N)
    Y = np.random.default_rng(0).normal(size=(2, N))
    near, far = (stats_of(Y + offset, data, weights=w) for offset in (0.0, 1e8))
    assert far.shift is not None
    left, right = (fm.MultiLMM(s).fit(parameter_space="psd") for s in (far, near))
    np.testing.assert_allclose(left.theta, right.theta, rtol=1e-5, atol=1e-7)


def test_dropped_samples_take_their_weights_and_factors_along():
    data = samples().assign(w=np.arange(1.0, N + 1), size=np.arange(2.0, N + 2))
    Y = counts().astype(float)
    Y[2, 7] = np.nan
    kept = [i for i in range(N) if i != 7]
    with pytest.warns(fm.MissingSamplesWarning):
        stats = stats_of(Y, data, missing="drop", weights="w", size_factors="size")
    expected = stats_of(Y[:, kept], data.iloc[kept], weights="w", size_factors="size")
    assert_same_sums(stats, expected)


# ---- blocks had once ---------------------------------------------------------------------


def two_blocks():
    Y = counts()
    return [(SAMPLES[:10], Y[:, :10]), (SAMPLES[10:], Y[:, 10:])]


def test_blocks_may_carry_labels_positions_or_frames():
    expected = stats_of(counts())
    assert_same_sums(stats_of(two_blocks()), expected)
    assert_same_sums(stats_of(iter(two_blocks())), expected)
    Y = frame()
    labelled = [(Y.columns[s], Y.iloc[:, s]) for s in (slice(5, N), slice(5))]
    stats = stats_of(labelled)
    assert_same_sums(stats, expected)
    assert stats.feature_names.tolist() == FEATURES
    data = samples().reset_index(drop=True)
    positions = ((np.arange(i, N, 3), counts()[:, i::3]) for i in range(3))
    assert_same_sums(stats_of(positions, data), expected)
    assert_same_sums(stats_of([(slice(0, N), counts())]), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:1], "lack 14 samples of `data`: 'cell 10', 'cell 11'"),
        (lambda b: [*b, b[0]], "Block 2 of Y repeats samples that came before: 'cell 0'"),
        (lambda b: [b[0], (b[1][0], b[1][1][:4])], r"Block 1 of Y has shape \(4, 14\)"),
        (lambda b: [b[0], (["cell x"] * 14, b[1][1])], "without a row in `data`: 'cell x'"),
        (
            lambda b: [b[0], (b[1][0], frame().iloc[::-1, 10:])],
            "Block 1 of Y labels its features unlike",
        ),
        (lambda b: iter([b[0][1]]), "must be a pair"),
        (lambda _: iter([]), "an iterable without a block"),
    ],
)
def test_blocks_that_do_not_add_up_to_the_data(change, message):
    with pytest.raises(InputError, match=message):
        stats_of(change(two_blocks()))


def test_what_needs_a_second_look_is_refused_for_blocks_had_once():
    with pytest.raises(InputError, match="missing='drop' reads Y twice"):
        stats_of(two_blocks(), missing="drop")
    with pytest.raises(InputError, match="needs a `target_sum` here"):
        stats_of(two_blocks(), size_factors="total")


def test_a_bad_value_in_a_block_is_named():
    blocks = two_blocks()
    blocks[1][1][2, 3] = -1
    with pytest.raises(InputError, match=r"turns -1 into .*feature 2, sample 'cell 13' \(block 1"):
        stats_of(blocks, transform="log2p1")


# ---- metadata ----------------------------------------------------------------------------


def test_a_row_of_metadata_that_is_missing_is_named(tmp_path):
    data = samples().drop("cell 9")
    with pytest.raises(InputError, match="columns of Y without a row in `data`: 'cell 9'"):
        stats_of(frame(), data)
    with pytest.raises(InputError, match="without a row in `data`: 'cell 9'"):
        stats_of(two_blocks(), data)


# ---- manners -----------------------------------------------------------------------------


def test_an_error_or_an_interrupt_stops_the_threads():
    import threading  # noqa: PLC0415

    Y = sp.csc_array(counts())
    Y.data = Y.data.astype(float)
    Y.data[-1] = np.nan

    def interrupt(values):
        raise KeyboardInterrupt

    design = build_design("~ x + (1 | g)", None, samples()).design
    for transform, error in ((None, InputError), (interrupt, KeyboardInterrupt)):
        source = make_source(Y, transform=transform)
        with pytest.raises(error):
            SummaryStats.from_design(source, design, block_bytes=60, workers=3)
    assert not [t for t in threading.enumerate() if t.name.startswith("flashmm")]


def test_progress_is_silent_without_a_terminal_and_counts_on_one(capsys, monkeypatch):
    stats_of(counts(), progress=True)
    assert capsys.readouterr().err == ""
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about notebook widgets
        stats_of(counts(), progress=True)
    assert "1/1" in capsys.readouterr().err


def test_progress_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(InputError, match=r"pip install 'multilmm\[progress\]'"):
        stats_of(counts(), progress=True)


def test_what_was_chosen_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="flashmm"):
        stats_of(sp.csc_array(counts()), n_jobs=2)
        model = fm.MultiLMM.from_formula("~ x + (1 | g)", None, samples(), counts())
        model.fit(parameter_space="psd")
    assert "CSC matrix in memory, 5 features x 24 samples" in caplog.text
    assert "2 threads" in caplog.text
    assert "REML of 5 features: engine 'spectral'" in caplog.text


def test_memory_does_not_grow_with_the_stored_elements(tmp_path, monkeypatch):
    """Four times the cells of a file take what their metadata takes, not what their counts do."""
    import tracemalloc  # noqa: PLC0415

    anndata = pytest.importorskip("anndata")
    monkeypatch.setattr("flashmm.stats.streaming.BLOCK_BYTES", 2**18)
    peaks, sizes = [], []
    for n in (5_000, 20_000):
        Y = sp.random(n, 400, 0.1, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
        data = pd.DataFrame({"x": np.arange(n) % 7.0, "g": np.arange(n) % 5}, dtype=float)
        anndata.AnnData(Y).write_h5ad(tmp_path / f"{n}.h5ad")
        design = build_design("~ x + (1 | g)", None, data.astype({"g": str})).design
        source = make_source(tmp_path / f"{n}.h5ad", transform="log2p1", n=n)
        sizes.append(Y.data.nbytes + Y.indices.nbytes)
        del Y
        tracemalloc.start()
        SummaryStats.from_design(source, design, workers=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 0.2 * (sizes[1] - sizes[0])
    assert peaks[1] < sizes[1]
