"""AnnData stores broken on disk: InputError that names the file. Masked values are missing."""

from __future__ import annotations

import json
import os
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import xarray as xr

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.results import MultiLMMResults
from flashmm.stats.summary_stats import SummaryStats

N, M = 12, 3
RNG = np.random.default_rng(0)
DATA = pd.DataFrame(
    {
        "x": RNG.normal(size=N),
        "f": pd.Categorical(list("ab") * 6),
        "b": RNG.random(N) > 0.5,
        "g": [f"s{i // 3}" for i in range(N)],
    },
    index=[f"c{i}" for i in range(N)],
)
COUNTS = RNG.poisson(2.0, (N, M)).astype(float)
FIXED = "~ x + f + b + (1 | g)"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    anndata = pytest.importorskip("anndata")
    pytest.importorskip("zarr")
    folder = tmp_path_factory.mktemp("stores")
    for name, X in (("dense", COUNTS), ("csr", sp.csr_matrix(COUNTS))):
        adata = anndata.AnnData(X, obs=DATA, var=pd.DataFrame(index=["u", "v", "w"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata.write_h5ad(folder / f"{name}.h5ad")
            adata.write_zarr(folder / f"{name}.zarr")
    return folder


def put(name, value):
    def change(file):
        attributes = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, data=value)
        file[name].attrs.update(attributes)

    return change


def drop(name):
    return lambda file: file.__delitem__(name)


def attribute(name, key, value):
    return lambda file: file[name].attrs.__setitem__(key, value)


def no_attributes(name):
    return lambda file: [file[name].attrs.__delitem__(key) for key in list(file[name].attrs)]


RECORDS = np.zeros(N, dtype=[("a", "f8"), ("b", "i4")])
BROKEN = {
    **{f"no {name}": ("csr", drop(name)) for name in ("X", "obs", "var", "obs/_index", "obs/x")},
    **{f"no {name}": ("csr", drop(f"X/{name}")) for name in ("data", "indices", "indptr")},
    **{
        f"{name} is a table": ("csr", put(f"X/{name}", np.ones((4, 2))))
        for name in ("data", "indptr")
    },
    "indices are halves": ("csr", put("X/indices", np.full(20, 0.5))),
    "values are text": ("csr", put("X/data", np.array([b"x"] * 20))),
    "X has a sample less": ("dense", put("X", COUNTS[:-1])),
    "X has a gene more": ("dense", put("X", np.hstack([COUNTS, COUNTS]))),
    "X is one number": ("dense", put("X", 3.0)),
    "X is complex": ("dense", put("X", COUNTS * 1j)),
    "X is records": ("dense", put("X", np.zeros((N, M), dtype=RECORDS.dtype))),
    "shape is larger": ("csr", attribute("X", "shape", [N + 1, M])),
    "shape is huge": ("csr", attribute("X", "shape", [2**40, 2**40])),
    "another encoding": ("csr", attribute("X", "encoding-type", "evil")),
    "no attributes of X": ("csr", no_attributes("X")),
    "no attributes of obs": ("csr", no_attributes("obs")),
    "no attributes of var": ("csr", no_attributes("var")),
    "one number for a column": ("dense", put("obs/x", 2.0)),
    "a short column": ("dense", put("obs/x", np.zeros(N - 1))),
    "codes out of range": ("dense", put("obs/f/codes", np.full(N, 99, dtype="i1"))),
    "obs is an array": ("dense", put("obs", np.zeros(N))),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files(what, stores, tmp_path):
    h5py = pytest.importorskip("h5py")
    name, change = BROKEN[what]
    path = tmp_path / "broken.h5ad"
    shutil.copy(stores / f"{name}.h5ad", path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=r"broken\.h5ad|'x', which is not a column"):
        fm.MultiLMM.from_anndata(path, FIXED)


def test_columns_of_records(stores, tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "broken.h5ad"
    shutil.copy(stores / "dense.h5ad", path)
    with h5py.File(path, "r+") as file:
        put("obs/x", RECORDS)(file)
    with pytest.raises(InputError, match="'x' of `data` holds records"):
        fm.MultiLMM.from_anndata(path, FIXED)


def test_bytes_of_a_file(stores, tmp_path):
    """Cut short, or bits turned over: refused, or read as numbers that may be other ones."""
    pytest.importorskip("h5py")
    raw = (stores / "csr.h5ad").read_bytes()
    rng = np.random.default_rng(5)
    path = tmp_path / "broken.h5ad"
    refused = 0
    for i in range(60):
        content = bytearray(raw[: len(raw) * i // 20] if i < 20 else raw)
        if i >= 20:
            for at in rng.integers(len(raw), size=6):
                content[at] ^= 1 << int(rng.integers(8))
            start = int(rng.integers(len(raw) - 64))
            content[start : start + 64] = rng.bytes(64)
        path.write_bytes(content)
        try:
            fm.MultiLMM.from_anndata(path, FIXED)
        except InputError:
            refused += 1
    assert refused >= 20


def test_broken_zarr(stores, tmp_path):
    path = tmp_path / "broken.zarr"
    for file, change in (
        ("obs/.zgroup", {"zarr_format": None}),
        ("obs/.zgroup", {"zarr_format": "evil"}),
        ("X/data/.zarray", {"dtype": "evil"}),
        ("X/data/.zarray", {"compressor": {"id": "evil"}}),
        ("X/indptr/.zarray", {"shape": [3]}),
        ("X/.zattrs", {"shape": [N, M + 2]}),
        ("X/data/0", None),
        ("obs/x/0", None),
        ("obs/.zattrs", None),
    ):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(stores / "csr.zarr", path)
        target = path / file
        if not target.exists():
            pytest.skip("another version of the zarr format")
        (path / ".zmetadata").unlink(missing_ok=True)
        if change is None:
            target.write_bytes(b"\xff{\x00")
        else:
            target.write_text(json.dumps(json.loads(target.read_text()) | change))
        with pytest.raises(InputError):
            fm.MultiLMM.from_anndata(path, FIXED)


# ---- names of files ----------------------------------------------------------------------


@pytest.mark.parametrize("load", [MultiLMMResults.load, SummaryStats.load])
def test_what_is_no_saved_file(load, tmp_path):
    xr.Dataset({"a": ("x", [1.0, 2.0])}).to_netcdf(tmp_path / "foreign.nc", engine="scipy")
    for path in (None, 3, b"r.nc", [], {}, "a\0b.nc"):
        with pytest.raises(InputError, match="must be the name of a file"):
            load(path)
    with pytest.raises(InputError, match="is a directory"):
        load(tmp_path)
    with pytest.raises(InputError, match="flashmm did not write"):
        load(tmp_path / "foreign.nc")


@pytest.mark.parametrize("path", [None, 3, b"r.nc", [], "a\0b.nc"])
def test_names_that_nothing_can_be_saved_under(path):
    stats = SummaryStats.from_arrays(np.eye(3, 8), np.ones((8, 1)), np.eye(8)[:, :3])
    with pytest.raises(InputError, match="must be the name of a file"):
        stats.save(path)


def test_negative_sums_of_squares(tmp_path):
    from flashmm.storage.checksum import fingerprint  # noqa: PLC0415

    pytest.importorskip("h5netcdf")
    stats = SummaryStats.from_arrays(np.eye(3, 8), np.ones((8, 1)), np.eye(8)[:, :3])
    for name in ("XX", "ZZ_value"):
        stats.save(tmp_path / "s.nc")
        ds = xr.load_dataset(tmp_path / "s.nc", engine="h5netcdf")
        ds[name] = -ds[name]
        ds.attrs.pop("flashmm_checksum")
        ds.attrs["flashmm_checksum"] = fingerprint(ds)
        os.remove(tmp_path / "s.nc")
        ds.to_netcdf(tmp_path / "s.nc", engine="h5netcdf")
        with pytest.raises(InputError, match="negative sum of squares"):
            SummaryStats.load(tmp_path / "s.nc")


# ---- masked values -----------------------------------------------------------------------

MASK = np.eye(M, N) > 0


def masked(kind: str, chunks=(2, 5)):
    Y = COUNTS.T
    if kind == "array":
        return np.ma.array(Y, mask=MASK)
    if kind == "rows":
        return [np.ma.array(y, mask=mask) for y, mask in zip(Y, MASK, strict=True)]
    da = pytest.importorskip("dask.array")
    Y = Y if kind == "dask" else Y.astype(int)
    return da.ma.masked_array(da.from_array(Y, chunks=chunks), da.from_array(MASK, chunks=chunks))


@pytest.mark.filterwarnings("ignore::flashmm.exceptions.MissingSamplesWarning")
@pytest.mark.parametrize("kind", ["array", "rows", "dask", "dask of whole numbers"])
def test_masked_values_are_missing(kind):
    """A mask on chunks of dask was ignored, and what it covers taken for data."""
    with pytest.raises(InputError, match="Y has a missing value: feature"):
        fm.MultiLMM.from_formula(FIXED, data=DATA, Y=masked(kind))
    kept = DATA.iloc[M:]
    found = fm.MultiLMM.from_formula(FIXED, data=DATA, Y=masked(kind), missing="drop").stats
    expected = fm.MultiLMM.from_formula(FIXED, data=kept, Y=COUNTS[M:].T).stats
    assert found.n == N - M
    np.testing.assert_allclose(found.XY, expected.XY, rtol=1e-12)
    np.testing.assert_allclose(found.yy, expected.yy, rtol=1e-12)


def test_masked_weights_of_dask_are_refused():
    da = pytest.importorskip("dask.array")
    weights = da.ma.masked_array(da.ones((M, N)), da.from_array(MASK))
    with pytest.raises(InputError, match="`weights` must be zero or positive"):
        fm.MultiLMM.from_formula(FIXED, data=DATA, Y=COUNTS.T, weights=weights)
