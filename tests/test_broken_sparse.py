"""Sparse matrices whose indices or pointers are wrong: refused by name, wherever they come from."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from test_sources import assert_same_sums, counts, samples, stats_of
from test_stored_sources import hdf5_root, stored, zarr_root

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.sources import make_source
from flashmm.stats.summary_stats import SummaryStats


def shifted(pointer):
    pointer[:] = pointer + 1


def first_not_zero(pointer):
    pointer[0] = 2


def falls(pointer):
    pointer[2] = pointer[3] + 1


def negative(pointer):
    pointer[1] = -3


def far(pointer):
    pointer[-1] = 10**6


def far_inside(pointer):
    pointer[2] = 10**6


def short(pointer):
    pointer[-1] = pointer[-1] - 1


POINTERS = [first_not_zero, falls, negative, far, far_inside, short, shifted]
INDICES = {"past the end": 10**6, "one too far": None, "negative": -1, "very negative": -(10**6)}


def broken(values, where: str, how, format: str):
    """A matrix that scipy made and that was spoilt afterwards, in place."""
    matrix = {"csr": sp.csr_array, "csc": sp.csc_array}[format](values.astype(float))
    if where == "indptr":
        how(matrix.indptr)
    else:
        width = values.shape[1 if format == "csr" else 0]
        matrix.indices[len(matrix.indices) // 2] = width if how is None else how
    return matrix


CASES = [
    *(("indptr", how) for how in POINTERS),
    *(("indices", how) for how in INDICES.values()),
]


@pytest.mark.parametrize("format", ["csr", "csc"])
@pytest.mark.parametrize("rows", ["features", "samples"])
@pytest.mark.parametrize(("where", "how"), CASES)
@pytest.mark.parametrize("kind", ["array", "matrix"])
def test_in_memory(format, rows, where, how, kind):
    values = counts() if rows == "features" else counts().T
    Y = broken(values, where, how, format)
    if kind == "matrix":
        spoilt = Y
        Y = {"csr": sp.csr_matrix, "csc": sp.csc_matrix}[format](values.astype(float))
        Y.indices[:], Y.indptr[:] = spoilt.indices, spoilt.indptr
    for options in ({}, {"transform": "log2p1"}, {"transform": np.cos}, {"missing": "drop"}):
        with pytest.raises(InputError, match=r"Block \d+ of Y is no sound sparse matrix"):
            stats_of(Y, rows=rows, **options)


@pytest.mark.parametrize("root", [hdf5_root, zarr_root])
@pytest.mark.parametrize("format", ["csr", "csc"])
@pytest.mark.parametrize(("where", "how"), CASES)
def test_on_disk(root, format, where, how):
    Y = stored(root(), broken(counts().T, where, how, format), (4, 8))
    with pytest.raises(InputError, match=r"Block \d+ of Y is no sound sparse matrix"):
        stats_of(Y, rows="samples")


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("format", ["csr", "csc"])
@pytest.mark.parametrize(("where", "how"), CASES)
def test_files_of_anndata(suffix, format, where, how, tmp_path):
    anndata = pytest.importorskip("anndata")
    path = tmp_path / f"cells{suffix}"
    adata = anndata.AnnData(
        {"csr": sp.csr_matrix, "csc": sp.csc_matrix}[format](counts().T.astype(float)),
        obs=samples(),
    )
    spoilt = broken(counts().T, where, how, format)
    if suffix == ".h5ad":
        h5py = pytest.importorskip("h5py")
        adata.write_h5ad(path)
        with h5py.File(path, "r+") as file:
            file["X/indptr"][:], file["X/indices"][:] = spoilt.indptr, spoilt.indices
    else:
        zarr = pytest.importorskip("zarr")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata.write_zarr(path)
        group = zarr.open_group(path, mode="r+")
        group["X/indptr"][:], group["X/indices"][:] = spoilt.indptr, spoilt.indices
    with pytest.raises(InputError, match=r"Block \d+ of Y is no sound sparse matrix"):
        fm.MultiLMM.from_anndata(str(path), "~ x + (1 | g)")
    in_memory = anndata.AnnData(spoilt, obs=samples())
    with pytest.raises(InputError, match=r"Block \d+ of Y is no sound sparse matrix"):
        fm.MultiLMM.from_anndata(in_memory, "~ x + (1 | g)")


@pytest.mark.parametrize("format", ["csr", "csc"])
@pytest.mark.parametrize("rows", ["features", "samples"])
@pytest.mark.parametrize(("where", "how"), CASES)
def test_chunks_of_dask(format, rows, where, how):
    da = pytest.importorskip("dask.array")
    values = counts() if rows == "features" else counts().T

    def spoil(chunk, block_info=None):
        sound = block_info[0]["chunk-location"] != ((0, 1) if rows == "features" else (1, 0))
        if sound:
            return {"csr": sp.csr_array, "csc": sp.csc_array}[format](chunk)
        return broken(chunk, where, how, format)

    sizes = (5, 8) if rows == "features" else (8, 5)
    Y = da.from_array(values.astype(float), chunks=sizes).map_blocks(
        spoil, meta=sp.csr_array((0, 0)), dtype=float
    )
    with pytest.raises(InputError, match=r"Block \d+ of Y is no sound sparse matrix"):
        stats_of(Y, rows=rows)
    with pytest.raises(InputError, match=r"Block \d+ of Y is no sound sparse matrix"):
        list(make_source(Y, rows=rows).blocks(1))


@pytest.mark.parametrize("format", ["csr", "csc"])
@pytest.mark.parametrize(("where", "how"), CASES)
def test_blocks_of_an_iterable(format, where, how):
    values = counts()
    blocks = [
        (slice(0, 9), sp.csr_array(values[:, :9])),
        (slice(9, 24), broken(values[:, 9:], where, how, format)),
    ]
    with pytest.raises(InputError, match="Block 1 of Y is no sound sparse matrix"):
        stats_of(iter(blocks))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("how", INDICES.values())
def test_other_formats(axis, how):
    values = counts().astype(float)
    coo = sp.coo_array(values)
    coo.coords[axis][3] = values.shape[axis] if how is None else how
    bsr = sp.bsr_array(np.kron(values, np.ones((2, 1))), blocksize=(2, 1))
    bsr.indices[3] = values.shape[1] if how is None else how
    lil = sp.lil_array(values)
    lil.rows[1][0] = values.shape[1] if how is None else how
    for Y in (coo, bsr, lil):
        with pytest.raises(InputError, match="no sound sparse matrix"):
            stats_of(Y)
        with pytest.raises(InputError, match="no sound sparse matrix"):
            stats_of(Y, rows="samples")


def test_arrays_of_different_length():
    Y = sp.csr_array(counts().astype(float))
    Y.data = Y.data[:-2]
    with pytest.raises(InputError, match="no sound sparse matrix"):
        stats_of(Y)
    Y = sp.csr_array(counts().astype(float))
    Y.indptr = Y.indptr[:-1]
    with pytest.raises(InputError, match="no sound sparse matrix"):
        stats_of(Y)


@pytest.mark.parametrize("root", [hdf5_root, zarr_root])
def test_groups_that_lack_something(root):
    for name in ("data", "indices", "indptr"):
        Y = stored(root(), sp.csr_array(counts().astype(float)), (4, 8))
        del Y[name]
        with pytest.raises(InputError, match=f"lacks '{name}'"):
            stats_of(Y)
    for shape in (None, [5], [5, -24], [5.5, 24], "5 x 24", [2**40, 24], [4, 24]):
        Y = stored(root(), sp.csr_array(counts().astype(float)), (4, 8))
        if shape is None:
            del Y.attrs["shape"]
        else:
            Y.attrs["shape"] = shape
        with pytest.raises(InputError, match="Y"):
            stats_of(Y)
    for name in ("indices", "indptr"):
        matrix = sp.csr_array(counts().astype(float))
        setattr(matrix, name, getattr(matrix, name).astype(float))
        with pytest.raises(InputError, match=r"sparse matrix|whole numbers"):
            stats_of(stored(root(), matrix, (4, 8)))


# ---- not only Y --------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["csr", "csc"])
@pytest.mark.parametrize(("where", "how"), CASES)
def test_matrices_of_the_design_and_statistics(format, where, how):
    groups = np.eye(4)[np.arange(24) % 4]
    with pytest.raises(InputError, match="Z is no sound sparse matrix"):
        fm.MultiLMM.from_arrays(
            counts(), np.ones((24, 1)), broken(groups, where, how, format), components=[4]
        )
    stats = stats_of(counts())
    parts = {name: getattr(stats, name) for name in ("n", "XX", "XY", "ZX", "ZY", "ZZ", "yy")}
    parts["ZZ"] = broken(stats.ZZ.toarray(), where, how, format)
    with pytest.raises(InputError, match="ZZ is no sound sparse matrix"):
        SummaryStats(**parts)
    result = fm.MultiLMM.from_arrays(
        counts(), np.ones((24, 1)), sp.csr_array(groups), components=[4]
    ).fit()
    with pytest.raises(InputError, match="Z is no sound sparse matrix"):
        result.predict(
            X=np.ones((24, 1)), Z=broken(groups, where, how, format), level="conditional"
        )


def test_what_is_sound_stays_so():
    """Unsorted indices, elements stored twice and explicit zeros are no fault."""
    values = counts().astype(float)
    Y = sp.csr_array(values)
    for start, stop in zip(Y.indptr[:-1], Y.indptr[1:], strict=True):
        Y.indices[start:stop], Y.data[start:stop] = (
            Y.indices[start:stop][::-1].copy(),
            Y.data[start:stop][::-1].copy(),
        )
    Y.has_sorted_indices = False
    assert_same_sums(stats_of(Y), stats_of(values))
    twice = sp.csr_array(
        (np.repeat(Y.data / 2, 2), np.repeat(Y.indices, 2), Y.indptr * 2), shape=Y.shape
    )
    assert_same_sums(stats_of(twice), stats_of(values))
    wide = sp.csr_array(values)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    assert_same_sums(stats_of(wide), stats_of(values))


def test_the_interpreter_survives():
    """Far indices in a large matrix used to end the process; so this runs in one of its own."""
    script = """
import numpy as np, scipy.sparse as sp, pandas as pd, sys
sys.path.insert(0, {root!r})
import flashmm as fm
rng = np.random.default_rng(0)
data = pd.DataFrame({{"g": np.repeat(np.arange(10).astype(str), 50)}})
for format in ("csr", "csc"):
    for far in (2**30, -(2**30)):
        Y = sp.random(200, 500, 0.2, format=format, random_state=0)
        Y.indices[::7] = far
        try:
            fm.MultiLMM.from_formula("~ 1 + (1 | g)", data=data, Y=Y)
        except fm.exceptions.InputError as error:
            print(error)
"""
    root = str(Path(fm.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script.format(root=root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Block 0 of Y is no sound sparse matrix") == 4
