"""Blocks of Y that hold nothing: chunks that a filter emptied, samples that a site lacks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from test_sources import FEATURES, assert_same_sums, counts, samples, stats_of

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.sources import make_source

FORMS = {"dense": np.asarray, "csr": sp.csr_array, "csc": sp.csc_array}
PATTERNS = {
    "first": lambda size: (0, size // 2, size - size // 2),
    "middle": lambda size: (size // 2, 0, 0, size - size // 2),
    "last": lambda size: (size // 2, size - size // 2, 0),
    "all over": lambda size: (0, 0, 1, 0, size - 2, 0, 1, 0, 0),
    "beside one": lambda size: (0, size, 0),
}


@pytest.fixture
def da():
    return pytest.importorskip("dask.array")


def chunked(da, values: np.ndarray, form: str, rows: str, chunks):
    if rows == "samples":
        values, chunks = values.T, chunks[::-1]
    Y = da.from_array(values, chunks=chunks)
    return Y if form == "dense" else Y.map_blocks(FORMS[form])


# ---- dask --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axis", ["features", "samples", "both"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rows", ["features", "samples"])
def test_empty_chunks_change_nothing(da, form, axis, pattern, rows):
    values = counts()
    m, n = values.shape
    sizes = PATTERNS[pattern]
    chunks = (
        sizes(m) if axis != "samples" else (2, m - 2),
        sizes(n) if axis != "features" else (n // 2, n // 2),
    )
    Y = chunked(da, values, form, rows, chunks)
    for options in (
        {},
        {"transform": "log2p1"},
        {"transform": np.cos},
        {"min_count": values.sum(axis=1).mean()},
        {"features": [0, 3]},
        {"size_factors": "total"},
        {"size_factors": "total", "target_sum": 10.0},
    ):
        assert_same_sums(stats_of(Y, rows=rows, **options), stats_of(values, **options))
    read = make_source(Y, rows=rows).blocks(8)
    found = np.zeros((m, n))
    for block in read:
        part = block.values.toarray() if sp.issparse(block.values) else block.values
        found[block.features, block.samples] = part
    np.testing.assert_array_equal(found, values)


def test_the_usual_filter_of_features(da):
    values = counts()
    big = np.vstack([np.zeros((4, values.shape[1])), values])
    Y = da.from_array(big, chunks=(4, 6))
    Y = Y[Y.sum(axis=1) > 1]
    Y.compute_chunk_sizes()
    assert Y.chunks[0][0] == 0
    assert_same_sums(stats_of(Y), stats_of(values))
    result = fm.MultiLMM.from_formula("~ x + (1 | g)", None, samples(), Y).fit()
    np.testing.assert_allclose(
        result.resid(Y, samples()), result.resid(values, samples()), rtol=1e-12
    )


@pytest.mark.parametrize("missing", ["drop", "feature"])
@pytest.mark.parametrize("rows", ["features", "samples"])
def test_empty_chunks_beside_missing_values(da, missing, rows):
    values = counts().astype(float)
    values[1, [0, 5]] = np.nan
    Y = chunked(da, values, "dense", rows, ((0, 3, 0, 2), (0, 6, 18, 0)))
    options = {"missing": missing}
    if missing == "drop":
        with pytest.warns(fm.exceptions.MissingSamplesWarning):
            found = stats_of(Y, rows=rows, **options)
        with pytest.warns(fm.exceptions.MissingSamplesWarning):
            expected = stats_of(values, **options)
        assert_same_sums(found, expected)
    else:
        found, expected = stats_of(Y, rows=rows, **options), stats_of(values, **options)
        np.testing.assert_array_equal(found.nobs, expected.nobs)
        assert_same_sums(found.sums, expected.sums)


def test_a_filter_that_leaves_no_feature(da):
    Y = da.from_array(counts(), chunks=((0, 2, 3), 6))
    nothing = Y[Y.sum(axis=1) > 1e9]
    nothing.compute_chunk_sizes()
    stats = stats_of(nothing)
    assert (stats.m, stats.XY.shape[1]) == (0, 0)
    assert_same_sums(stats, stats_of(np.zeros((0, 24))))


def test_a_bad_value_behind_empty_chunks_is_named(da):
    values = counts().astype(float)
    values[3, 7] = np.inf
    Y = da.from_array(values, chunks=((0, 2, 0, 3), (0, 6, 18)))
    with pytest.raises(InputError, match=r"infinite: feature 3, sample 'cell 7' \(block"):
        stats_of(Y)


# ---- iterables ---------------------------------------------------------------------------


def blocks_of(form: str, rows: str, edges: list[tuple[int, int]], frames: bool = False):
    data, values = samples(), counts()
    for start, stop in edges:
        block = values[:, start:stop]
        labels = data.index[start:stop]
        if frames:
            block = pd.DataFrame(block, index=FEATURES, columns=labels)
        block = block.T if rows == "samples" else block
        yield labels, block if frames else FORMS[form](block)


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", ["features", "samples"])
@pytest.mark.parametrize(
    "edges",
    [
        [(0, 0), (0, 9), (9, 24)],
        [(0, 9), (9, 9), (9, 24)],
        [(0, 9), (9, 24), (24, 24)],
        [(0, 0), (0, 0), (0, 24)],
    ],
)
def test_empty_blocks_change_nothing(form, rows, edges, frames):
    found = stats_of(blocks_of(form, rows, edges, frames), rows=rows)
    assert_same_sums(found, stats_of(counts()))


@pytest.mark.parametrize("labels", [[], (), np.array([]), pd.Index([]), slice(0, 0), range(0)])
def test_the_labels_of_an_empty_block(labels):
    blocks = [(labels, np.zeros((5, 0))), (slice(0, 24), counts())]
    assert_same_sums(stats_of(blocks), stats_of(counts()))
    assert_same_sums(stats_of(blocks[::-1]), stats_of(counts()))


def test_blocks_without_samples_or_features():
    with pytest.raises(InputError, match="lack 24 samples"):
        stats_of([([], np.zeros((5, 0)))])
    with pytest.raises(InputError, match=r"Block 1 of Y has shape \(4, 0\)"):
        stats_of([(slice(0, 24), counts()), ([], np.zeros((4, 0)))])
    empty = stats_of([(slice(0, 9), np.zeros((0, 9))), (slice(9, 24), np.zeros((0, 15)))])
    assert (empty.m, empty.n) == (0, 24)
    assert_same_sums(empty, stats_of(np.zeros((0, 24))))


# ---- blocks whose samples are all left out -----------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_blocks_whose_samples_are_all_dropped(form, monkeypatch):
    """A small block of samples that `missing` or the labels leave out."""
    values = counts().astype(float)
    source = make_source(FORMS[form](values.T), rows="samples", n=24)
    keep = np.arange(24) >= 8
    for block_bytes in (1, 300, 2**20):
        found = np.zeros((5, 16))
        for block in source.restricted(keep).blocks(block_bytes):
            part = block.values.toarray() if sp.issparse(block.values) else block.values
            found[block.features, block.samples] = part
        np.testing.assert_array_equal(found, values[:, keep])


# ---- blocks of another size than dask knows ---------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", ["features", "samples"])
@pytest.mark.parametrize("part", [np.s_[:-1], np.s_[:, :-1], np.s_[:0], np.s_[:1, :1]])
def test_chunks_of_another_shape_than_dask_says_are_refused(da, form, rows, part):
    values = counts()
    if rows == "samples":
        values = values.T
    Y = da.from_array(values, chunks=(max(2, values.shape[0] // 3), values.shape[1] // 2))
    make = FORMS[form]
    Y = Y.map_blocks(lambda block: make(block[part]), meta=make(np.empty((0, 0))))
    with pytest.raises(InputError, match="the dask array says"):
        list(make_source(Y, rows=rows).blocks())
    with pytest.raises(InputError, match="the dask array says"):
        stats_of(Y, rows=rows)
