"""scipy's loops without the matrices around them, and what stands in where they are missing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from flashmm import SummaryStats
from flashmm.arrays import compiled
from flashmm.formulas.build import build_design
from flashmm.sources import make_source
from flashmm.stats import design_products
from flashmm.stats.block_sums import design_columns


@pytest.fixture(params=["compiled", "public"])
def way(request, monkeypatch):
    if request.param == "public":
        monkeypatch.setattr(compiled, "_loops", None)
    assert compiled.in_place() == (request.param == "compiled")


def matrix(index=np.int32, shape=(7, 9)):
    values = sp.random_array(shape, density=0.4, rng=np.random.default_rng(0), format="csc")
    values.indices, values.indptr = values.indices.astype(index), values.indptr.astype(index)
    return values


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_sums_are_added_to_what_is_there(index):
    values, start = matrix(index), np.arange(63.0).reshape(7, 9)
    dense = values.toarray()
    into = start.T.copy()
    compiled.add_rows(values.indptr, values.indices, values.data, into)
    np.testing.assert_allclose(into, start.T + dense.T)
    into = start.T.copy()
    rows = np.repeat(np.arange(9), np.diff(values.indptr))
    compiled.add_by_row(rows, values.indices, values.data, into)
    np.testing.assert_allclose(into, start.T + dense.T)
    columns = np.random.default_rng(1).normal(size=(9, 3))
    into = start[:, :3].copy()
    compiled.add_products(values, columns[:, ::-1], into)
    np.testing.assert_allclose(into, start[:, :3] + dense @ columns[:, ::-1])
    wide = np.zeros((9, 20))  # a view of some columns is added to as well
    compiled.add_rows(values.indptr, values.indices, values.data, wide[:, 4:11])
    compiled.add_by_row(rows, values.indices, values.data, wide[:, 4:11])
    np.testing.assert_allclose(wide[:, 4:11], 2.0 * dense.T)
    assert not wide[:, :4].any()
    chosen = np.array([8, 0, 0, 3])
    np.testing.assert_array_equal(
        compiled.taken_columns(values, chosen).toarray(), dense[:, chosen]
    )
    parts = values.data, values.indices, values.indptr
    made = compiled.assembled(sp.csc_array, *parts, values.shape)
    assert made.data is values.data
    np.testing.assert_array_equal(made.toarray(), dense)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rows", ["samples", "features"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("random", ["~ 0 + g", "(x | g) + (1 | h)"])
def test_statistics_of_many_groups_are_products(rows, weighted, random):
    rng = np.random.default_rng(3)
    n, m = 2000, 11
    data = {
        "x": rng.normal(size=n),
        "t": rng.normal(size=n),
        "a": np.char.add("a", rng.integers(0, 9, n).astype(str)),
        "g": np.char.add("g", rng.integers(0, 13, n).astype(str)),
        "h": np.char.add("h", rng.integers(0, 5, n).astype(str)),
    }
    Y = sp.random_array((n, m), density=0.1, rng=rng, format="csr", dtype=np.float32)
    Y = Y if rows == "samples" else sp.csr_array(Y.T)
    design = build_design("~ t + a", random, pd.DataFrame(data)).design
    weights = rng.uniform(0.5, 2.0, n) if weighted else None
    source = make_source(Y, rows=rows, n=n)
    stats = SummaryStats.from_design(source, design, weights=weights, block_bytes=4000)
    y = Y.toarray().astype(np.float64)
    y = y.T if rows == "samples" else y
    X, Z, W = design.X[:], design.Z[:].toarray(), np.ones(n) if weights is None else weights
    for name, expected in {
        "XX": (X.T * W) @ X,
        "ZX": (Z.T * W) @ X,
        "XY": (X.T * W) @ y.T,
        "ZY": (Z.T * W) @ y.T,
        "yy": (y * y) @ W,
    }.items():
        np.testing.assert_allclose(getattr(stats, name), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(stats.ZZ.toarray(), (Z.T * W) @ Z, rtol=1e-10, atol=1e-10)
    columns = design_columns(design.X, design.Z)
    assert columns.parts.grouped is not None
    by_codes, by_rows = (
        products(columns, weights)
        for products in (design_products._by_codes, design_products._by_rows)
    )
    np.testing.assert_allclose(by_codes[0], by_rows[0], rtol=1e-12, atol=1e-10)
    assert by_codes[2].nnz == by_rows[2].nnz
