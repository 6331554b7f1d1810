"""Sums by compiled loops: equal to the others, whatever Y, its storage, and what is done to it.

Most tests call the loops as the Python that they are, so that they run without numba and nothing
is compiled; one compiles them.
"""

from __future__ import annotations

import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from flashmm.arrays import jit
from flashmm.arrays.fused_loops import (
    DISORDER,
    FRACTIONS,
    NOT_FINITE,
    add_features,
    add_samples,
    inspected,
)
from flashmm.exceptions import InputError
from flashmm.formulas.build import build_design
from flashmm.sources import make_source
from flashmm.sources.disk_arrays import Buffers, DiskArray, disk_array
from flashmm.sources.scans import normalised
from flashmm.stats import fused
from flashmm.stats.summary_stats import SummaryStats

N, M = 60, 9
FIELDS = ("XY", "ZY", "yy")


@pytest.fixture
def loops(monkeypatch):
    """Sum everything by loops of Python; gives the number of passes that were."""
    passes = []
    run = fused.sum_fused

    def counted(*args, **kwargs):
        passes.append(1)
        return run(*args, **kwargs)

    monkeypatch.setattr("flashmm.stats.streaming.sum_fused", counted)
    monkeypatch.setattr(fused, "LEAST", 0)
    monkeypatch.setattr(fused, "have_numba", lambda: True)
    monkeypatch.setattr(fused, "compiled", lambda function: function)
    return passes


def cells(n=N):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "u": rng.normal(size=n),
            "v": rng.normal(size=n),
            "t": rng.choice(list("abcdef"), n),
            "g": rng.choice([f"g{i}" for i in range(7)], n),
            "h": rng.choice(["h0", "h1", "h2"], n),
        },
        index=[f"cell {i}" for i in range(n)],
    )


def matrix(dtype=np.float32, *, whole=True):
    """Cells x genes."""
    rng = np.random.default_rng(1)
    Y = rng.poisson(0.6, size=(N, M)) * (1.0 if whole else 0.7)
    return sp.csr_array(Y.astype(dtype))


DESIGNS = {
    "grouped, two columns": ("~ 0 + x + u + t", "(1 | g)"),
    "three columns": ("~ x + u + v", "(1 | g) + (1 | h)"),
    "slopes": ("~ x", "(u | g)"),
    "no random effects": ("~ t", None),
}
TREATED = {
    "as stored": {},
    "log2p1": {"transform": "log2p1"},
    "log1p of fractions": {"transform": "log1p", "whole": False},
    "a function": {"transform": np.sqrt},
    "whole numbers": {"transform": "log1p", "dtype": np.int64},
    "another type": {"transform": "log1p", "dtype": np.uint8},
    "some samples": {"without": [0, 7, 8, 30, 59], "transform": "log2p1"},
    "weights and selection": {"weights": True, "min_fraction": 0.3, "transform": "log2p1"},
    "size factors": {"target_sum": 5.0, "transform": "log1p"},
    "small blocks, sorted": {"block_bytes": 100, "transform": "log2p1", "sorted": True},
}


def summed(Y, design, treated, workers=1, rows="samples"):
    fixed, random = DESIGNS[design]
    keep = np.ones(N, dtype=bool)
    keep[treated.get("without", [])] = False
    built = build_design(fixed, random, cells()[keep]).design
    source = make_source(Y, transform=treated.get("transform"), n=N, rows=rows)
    source = source.restricted(keep) if "without" in treated else source
    if "target_sum" in treated:
        source = normalised(source, treated["target_sum"])
    weights = np.random.default_rng(3).gamma(4.0, size=N) if treated.get("weights") else None
    options = {key: treated[key] for key in ("min_fraction", "block_bytes") if key in treated}
    return SummaryStats.from_design(source, built, weights=weights, workers=workers, **options)


@pytest.mark.parametrize("treated", TREATED)
@pytest.mark.parametrize("design", DESIGNS)
def test_the_sums_are_the_same(design, treated, request, monkeypatch):
    options = TREATED[treated]
    Y = matrix(options.get("dtype", np.float32), whole=options.get("whole", True))
    stored = {"samples": (Y, Y.tocsc()), "features": (Y.T.tocsr(), Y.T.tocsc())}
    expected = summed(Y, design, options)
    passes = request.getfixturevalue("loops")
    if options.get("sorted"):
        monkeypatch.setattr(fused, "_CACHE", 0)
        monkeypatch.setattr(fused, "_SAMPLES_OF_A_RUN", 0)
        monkeypatch.setattr(fused, "_SHARE", 0)
    for rows, kinds in stored.items():
        for kind, workers in zip(kinds, (1, 2), strict=True):
            stats = summed(kind, design, options, workers, rows)
            for field in FIELDS:
                one, other = getattr(stats, field), getattr(expected, field)
                np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
            assert stats.feature_names.tolist() == expected.feature_names.tolist()
    assert passes


@pytest.mark.parametrize("share", [0, 2**24])
def test_the_number_of_threads_changes_no_bit(share, loops, monkeypatch):
    monkeypatch.setattr(fused, "_SHARE", share)
    for Y in (matrix(), matrix().tocsc()):
        options = {"transform": "log2p1", "block_bytes": 400}
        one, *others = (summed(Y, "three columns", options, k) for k in (1, 2, 3, 5))
        for other in others:
            for field in FIELDS:
                np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    assert loops


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("transform", [None, "log2p1"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"missing value: feature 4, sample 'cell 31' \(block 1\)"),
        (np.inf, r"infinite: feature 4, sample 'cell 31' \(block 1\)"),
        (-1.0, r"turns -1 into .*feature 4, sample 'cell 31' \(block 1\)"),
    ],
)
def test_bad_values_are_named(value, message, transform):
    Y = matrix().toarray()
    Y[31, 4] = value
    design = build_design("~ x", "(1 | g)", cells()).design
    source = make_source(
        sp.csr_array(Y), transform=transform, samples=cells().index, n=N, rows="samples"
    )
    block_bytes = 8 * int((Y[:30] != 0).sum())
    if value == -1.0 and transform is None:
        SummaryStats.from_design(source, design, block_bytes=block_bytes)  # a number like others
        return
    with pytest.raises(InputError, match=message):
        SummaryStats.from_design(source, design, block_bytes=block_bytes)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("wrong", [-1, M])
def test_indices_outside_are_refused(wrong):
    Y = matrix()
    Y.indices[5] = wrong
    with pytest.raises(
        InputError, match=re.escape(f"Block 0 of Y is no sound sparse matrix: index {wrong}")
    ):
        summed(Y, "slopes", {})


def test_elements_stored_twice_or_out_of_order(loops):
    Y = matrix()
    parts = [np.repeat(x, 2) for x in (Y.data / 2, Y.indices)]
    twice = sp.csr_array((parts[0], parts[1], 2 * Y.indptr), shape=Y.shape)
    for at in range(N):
        here = slice(twice.indptr[at], twice.indptr[at + 1])
        twice.indices[here] = twice.indices[here][::-1]
        twice.data[here] = twice.data[here][::-1]
    expected = summed(Y, "slopes", {"transform": "log2p1"})
    for kind, rows in ((twice, "samples"), (twice.T, "features")):
        stats = summed(kind, "slopes", {"transform": "log2p1"}, rows=rows)
        for field in FIELDS:
            np.testing.assert_allclose(getattr(stats, field), getattr(expected, field), rtol=1e-12)
    assert loops


def test_what_is_looked_for():
    def found(data, indices, indptr):
        return inspected(np.array(data), np.array(indices), np.array(indptr), 4, 7)

    assert found([1.0, 7.0, 3.0], [0, 3, 0], [0, 2, 3]) == 0
    assert found([1, 7, 3], [0, 3, 0], [0, 2, 2, 3]) == 0
    assert found([1.0, 7.0, 3.0], [3, 0, 0], [0, 2, 3]) == DISORDER
    assert found([1.0, 7.0, 3.0], [0, 0, 0], [0, 2, 3]) == DISORDER
    assert found([1.0, 7.0, 3.0], [0, 4, 0], [0, 2, 3]) == DISORDER
    assert found([1.0, 7.0, 3.0], [-1, 3, 0], [0, 2, 3]) == DISORDER
    assert found([1.0, 8.0, 3.0], [0, 3, 0], [0, 2, 3]) == FRACTIONS
    assert found([1.5, 7.0, 3.0], [0, 3, 0], [0, 2, 3]) == FRACTIONS
    assert found([-1.0, 7.0, 3.0], [0, 3, 0], [0, 2, 3]) == FRACTIONS
    assert found([np.inf, 7.0, 3.0], [0, 3, 0], [0, 2, 3]) == FRACTIONS + NOT_FINITE
    assert found([2**40, 7, 3], [0, 3, 0], [0, 2, 3]) == FRACTIONS


def test_small_sources_do_not_wait_for_numba(monkeypatch):
    monkeypatch.setattr(fused, "have_numba", lambda: pytest.fail("asked for"))
    summed(matrix(), "slopes", {})


def test_without_numba_or_without_compiling(monkeypatch):
    pytest.importorskip("numba")
    jit.have_numba.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "numba.core", None)
        assert not jit.have_numba()
    jit.have_numba.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr("numba.core.config.DISABLE_JIT", 1)
        assert not jit.have_numba()
    jit.have_numba.cache_clear()
    assert jit.have_numba()


def test_compiled_loops_give_what_those_of_python_give(monkeypatch):
    """Largest difference seen: none."""
    pytest.importorskip("numba")
    Y = matrix()
    expected = summed(Y, "grouped, two columns", {"transform": "log2p1"})
    monkeypatch.setattr(fused, "LEAST", 0)
    for kind in (Y, Y.tocsc()):
        stats = summed(kind, "grouped, two columns", {"transform": "log2p1"}, 2)
        for field in FIELDS:
            np.testing.assert_allclose(
                getattr(stats, field), getattr(expected, field), rtol=1e-12, atol=1e-12
            )
    for loop in (inspected, add_samples, add_features):
        made = jit.compiled(loop)
        assert getattr(made, "__wrapped__", made).signatures


def test_loops_are_compiled_again_where_there_is_no_room_to_keep_them(monkeypatch):
    def njit(*, nogil, cache=False):
        def full(*_):
            raise OSError(27, "File too large")

        return lambda function: full if cache else function

    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace(njit=njit))
    assert jit.compiled(lambda x: x + 1)(1) == 2


# ---- reading -----------------------------------------------------------------------------


def test_memory_is_used_again_once_nobody_looks_at_it():
    buffers = Buffers()
    first = buffers.take(10, np.int32)
    address = first.ctypes.data
    first[:] = np.arange(10)
    part = first[3:7].view(np.uint32)
    del first
    second = buffers.take(10, np.int32)
    second[:] = -1
    assert part.tolist() == [3, 4, 5, 6]
    del part
    third = buffers.take(5, np.float64)
    assert third.ctypes.data == address
    assert third.size == 5
    assert buffers.take(0, np.float32).size == 0


STORED = {
    "contiguous": ({}, True),
    "chunks": ({"chunks": (7,)}, True),
    "chunks of a growing array": ({"chunks": (7,), "maxshape": (None,)}, True),
    "compressed": ({"chunks": (7,), "compression": "gzip"}, False),
    "checked": ({"chunks": (7,), "fletcher32": True}, False),
    "the other byte order": ({"dtype": ">i4"}, False),
}


@pytest.mark.parametrize("stored", STORED)
def test_slices_of_datasets(stored, tmp_path):
    h5py = pytest.importorskip("h5py")
    made, direct = STORED[stored]
    values = np.arange(50, dtype=made.get("dtype", np.int32))
    with h5py.File(tmp_path / "Y.h5", "w") as file:
        file.create_dataset("Y", data=values, **{k: v for k, v in made.items() if k != "dtype"})
        open_for_writing = disk_array(file["Y"])
        assert open_for_writing.extents is None
        np.testing.assert_array_equal(open_for_writing[3:40], values[3:40])
    with h5py.File(tmp_path / "Y.h5") as file:
        array = disk_array(file["Y"])
        assert isinstance(array, DiskArray)
        assert (array.extents is not None) == (direct and hasattr(os, "preadv"))
        for low, high in ((0, 50), (0, 0), (50, 50), (6, 8), (7, 14), (13, 50), (49, 50)):
            np.testing.assert_array_equal(array[low:high], values[low:high])


def test_chunks_that_were_never_written_are_left_to_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "Y.h5", "w") as file:
        file.create_dataset("Y", (50,), np.float32, chunks=(10,), fillvalue=2.0)[20:30] = 5.0
        file.create_dataset("Z", (50,), np.float32, fillvalue=2.0)
    with h5py.File(tmp_path / "Y.h5") as file:
        assert disk_array(file["Y"])[15:25].tolist() == [2.0] * 5 + [5.0] * 5
        assert disk_array(file["Z"])[15:17].tolist() == [2.0] * 2


def test_a_file_that_was_cut_is_damaged(tmp_path):
    h5py = pytest.importorskip("h5py")
    Y, path = matrix(), tmp_path / "Y.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "shape": Y.shape})
        for name in ("indptr", "indices", "data"):
            group[name] = getattr(Y, name)
    with h5py.File(path) as file:
        end = file["X"]["data"].id.get_offset()
        data = cells()
        source = make_source(file["X"], n=N, rows="samples")
        design = build_design("~ x", "(1 | g)", data).design
        stats = SummaryStats.from_design(source, design)
        np.testing.assert_array_equal(stats.yy, summed(Y, "slopes", {}).yy)
        os.truncate(path, end + 8)
        with pytest.raises(
            InputError, match="Block 0 of Y cannot be read; the file may be damaged"
        ):
            SummaryStats.from_design(source, design)
