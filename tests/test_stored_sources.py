"""Files, zarr and dask arrays of any shape and chunks: the sums of the same numbers in memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_sources import assert_same_sums

import flashmm as fm
from flashmm.designs.from_arrays import design_from_arrays
from flashmm.exceptions import InputError
from flashmm.sources import make_source, scans
from flashmm.stats.summary_stats import SummaryStats

numbers = itertools.count()


def hdf5_root():
    h5py = pytest.importorskip("h5py")
    return h5py.File(f"in memory {next(numbers)}.h5", "w", driver="core", backing_store=False)


def zarr_root():
    zarr = pytest.importorskip("zarr")
    return zarr.group(store={}, zarr_format=2)


def stored(root, values, chunks):
    """An array, or the group in which AnnData holds a sparse matrix."""

    def put(place, name, array, sizes):
        if hasattr(place, "create_array"):  # zarr
            made = place.create_array(name, shape=array.shape, dtype=array.dtype, chunks=sizes)
            if array.size:
                made[...] = array
            return made
        return place.create_dataset(name, data=array, chunks=sizes if array.size else None)

    if not sp.issparse(values):
        return put(root, "Y", values, tuple(map(min, chunks, values.shape)))
    group = root.create_group("Y")
    group.attrs["encoding-type"] = f"{values.format}_matrix"
    group.attrs["shape"] = list(values.shape)
    for name in ("data", "indices", "indptr"):
        array = getattr(values, name)
        put(group, name, array, (max(1, min(chunks[0] * chunks[1], array.size)),))
    return group


def dask_chunks(values, chunks):
    da = pytest.importorskip("dask.array")
    if not sp.issparse(values):
        return da.from_array(values, chunks=chunks)
    return da.from_array(values.toarray(), chunks=chunks).map_blocks(type(values))


MAKERS = {
    "HDF5": lambda values, chunks: stored(hdf5_root(), values, chunks),
    "zarr": lambda values, chunks: stored(zarr_root(), values, chunks),
    "dask": dask_chunks,
}
FORMS = {"dense": np.ascontiguousarray, "csr": sp.csr_array, "csc": sp.csc_array}


@pytest.mark.parametrize("maker", MAKERS)
@example(  # chunks of whole samples that are read a feature at a time
    form="csc",
    rows="samples",
    shape=(2, 8),
    chunks=(1, 2),
    block_bytes=1,
    workers=1,
    dtype=np.float64,
    transform=None,
    far=False,
    weighted=False,
    normalised=20.0,
    some=False,
    seed=0,
)
@settings(max_examples=40)
@given(
    form=st.sampled_from(list(FORMS)),
    rows=st.sampled_from(["features", "samples"]),
    shape=st.tuples(st.integers(1, 7), st.integers(8, 30)),
    chunks=st.tuples(st.integers(1, 9), st.integers(1, 40)),
    block_bytes=st.integers(1, 3000),
    workers=st.integers(1, 3),
    dtype=st.sampled_from([np.float64, np.float32, np.uint16]),
    transform=st.sampled_from([None, "log2p1", np.sqrt, np.cos]),
    far=st.booleans(),
    weighted=st.booleans(),
    normalised=st.sampled_from([None, "median", 20.0]),
    some=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_chunks_blocks_order_and_workers_change_nothing(
    maker,
    form,
    rows,
    shape,
    chunks,
    block_bytes,
    workers,
    dtype,
    transform,
    far,
    weighted,
    normalised,
    some,
    seed,
):
    rng = np.random.default_rng(seed)
    m, n = shape
    Y = rng.poisson(0.8, size=shape).astype(dtype)
    far = far and transform is None and normalised is None
    if far:
        Y[m // 2] += 50_000  # needs shifted sums: exact in every dtype
    X = np.column_stack([np.ones(n), rng.normal(size=n), np.eye(6)[rng.integers(6, size=n)][:, :5]])
    Z = sp.csr_array(np.eye(4)[np.arange(n) % 4] * rng.choice([0.0, 1.0, 2.5], size=(n, 1)))
    weights = rng.gamma(2.0, size=n) if weighted else None

    def statistics(Y, order, **options):
        source = make_source(Y, transform=transform, n=n, rows=options.pop("rows", "features"))
        if normalised is not None:
            source = scans.normalised(source, None if normalised == "median" else normalised)
        if some:
            source = source.taking(np.arange(m) % 3 != 1)
        return SummaryStats.from_design(
            source,
            design_from_arrays(X[order], Z[order]),
            weights=None if weights is None else weights[order],
            min_fraction=0.3,
            **options,
        )

    expected = statistics(Y.astype(float), np.arange(n))
    order = rng.permutation(n)
    values = Y[:, order] if rows == "features" else Y[:, order].T
    made = MAKERS[maker](FORMS[form](values), chunks)
    stats = statistics(made, order, rows=rows, block_bytes=block_bytes, workers=workers)
    assert_same_sums(stats, expected)
    np.testing.assert_array_equal(stats.feature_names, expected.feature_names)
    assert (stats.shift is None) == (expected.shift is None)


def test_files_that_are_closed():
    root = hdf5_root()
    Y, group = stored(root, np.ones((3, 4)), (3, 4)), root.create_group("group")
    root.close()
    for closed in (Y, group, root):
        with pytest.raises(InputError, match="HDF5 file that is closed"):
            fm.MultiLMM.from_formula("~ x", data={"x": np.arange(4.0)}, Y=closed)
