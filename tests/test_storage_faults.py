"""Saved statistics: zarr too, intact or refused, and the old file survives a save that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from test_storage import assert_identical, responses
from test_storage import model as fresh_model

from flashmm.exceptions import InputError
from flashmm.results import MultiLMMResults
from flashmm.stats.summary_stats import SummaryStats
from flashmm.storage import files as storage

# Built once: nothing here changes it.
model = cache(fresh_model)

NAMES = ["s.nc", "s.zarr", "s.zarr.zip"]


@pytest.fixture(params=NAMES)
def name(request) -> str:
    """Every format that can be saved."""
    if "zarr" in request.param:
        pytest.importorskip("zarr")
    return request.param


# ---- zarr --------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["unicode and spaces", "wide integers"])
def test_statistics_come_back(name, labels, tmp_path):
    stats = model(labels).stats
    stats.save(tmp_path / name)
    assert_identical(SummaryStats.load(tmp_path / name), stats)
    assert os.listdir(tmp_path) == [name]


def test_results_come_back(name, tmp_path):
    results = model().fit(parameter_space="psd")
    (tmp_path / "results").mkdir()
    results.save(tmp_path / "results" / name)
    loaded = MultiLMMResults.load(tmp_path / "results" / name)
    xr.testing.assert_identical(loaded.ds, results.ds)


def test_shifts_weights_and_no_features_come_back(name, tmp_path):
    shifted = fresh_model(Y=responses() + np.array([[0.0], [1e8], [1e9]])).stats
    weighted = SummaryStats.from_arrays(
        responses(), np.ones((60, 1)), np.eye(60)[:, :5], weights=np.arange(1.0, 61.0)
    )
    for position, stats in enumerate((shifted, weighted, shifted.take([]))):
        path = tmp_path / f"{position}{name}"
        stats.save(path)
        loaded = SummaryStats.load(path)
        assert_identical(loaded, stats)
        assert loaded.log_weights == stats.log_weights


def test_a_zarr_directory_is_never_replaced(tmp_path):
    pytest.importorskip("zarr")
    path = tmp_path / "s.zarr"
    model().stats.save(path)
    with pytest.raises(InputError, match=r"remove it first, or save to a 's.zarr.zip'"):
        model("integers").stats.save(path)
    assert_identical(SummaryStats.load(path), model().stats)
    model().stats.save(tmp_path / "s.zarr.zip")
    model("integers").stats.save(tmp_path / "s.zarr.zip")
    assert_identical(SummaryStats.load(tmp_path / "s.zarr.zip"), model("integers").stats)


def test_zarr_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(InputError, match=r"pip install 'multilmm\[zarr\]'"):
        model().stats.save(tmp_path / "s.zarr")
    assert os.listdir(tmp_path) == []


# ---- altered -----------------------------------------------------------------------------


@pytest.mark.parametrize("hdf5", [True, False])
@pytest.mark.parametrize(
    "variable", ["XX", "XY", "ZX", "ZY", "ZZ_value", "ZZ_row", "yy", "feature"]
)
def test_a_changed_value_is_refused(variable, hdf5, tmp_path, monkeypatch):
    if not hdf5:
        monkeypatch.setattr(storage, "_has_hdf5", lambda: False)
    path, engine = tmp_path / "s.nc", "h5netcdf" if hdf5 else "scipy"
    model().stats.save(path)
    ds = xr.load_dataset(path, engine=engine)
    changed = ds[variable].to_numpy().copy()
    first = (0,) * changed.ndim
    changed[first] = "gene" if variable == "feature" else changed[first] + 1
    ds = ds.assign({variable: (ds[variable].dims, changed)})
    ds.to_netcdf(path, engine=engine)
    with pytest.raises(InputError, match="was altered after it was saved"):
        SummaryStats.load(path)


def test_a_changed_label_number_or_missing_checksum_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_has_hdf5", lambda: False)
    path = tmp_path / "s.nc"
    for change in (
        lambda ds: ds.assign_attrs(n=61),
        lambda ds: ds.assign_attrs(log_weights=1.0),
        lambda ds: ds.drop_vars("term_effects"),
        lambda ds: ds.drop_attrs().assign_attrs(
            {k: v for k, v in ds.attrs.items() if k != "flashmm_checksum"}
        ),
    ):
        model().stats.save(path)
        change(xr.load_dataset(path, engine="scipy")).to_netcdf(path, engine="scipy")
        with pytest.raises(InputError, match="was altered after it was saved"):
            SummaryStats.load(path)


def test_results_that_were_altered_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_has_hdf5", lambda: False)
    path = tmp_path / "r.nc"
    model().fit(parameter_space="psd").save(path)
    ds = xr.load_dataset(path, engine="scipy")
    ds["beta"][0, 0] += 1e-9
    ds.to_netcdf(path, engine="scipy")
    with pytest.raises(InputError, match="was altered after it was saved"):
        MultiLMMResults.load(path)


def test_a_flipped_bit_on_disk_is_noticed(name, tmp_path):
    model().stats.save(tmp_path / name)
    target = tmp_path / name
    if target.is_dir():
        target = next((target / "XY").glob("0*"))
    content = bytearray(target.read_bytes())
    needle = model().stats.yy.tobytes()[:8]
    at = content.find(needle) if needle in content else len(content) // 2
    content[at] ^= 1
    target.write_bytes(content)
    with pytest.raises(InputError, match=r"altered|damaged"):
        SummaryStats.load(tmp_path / name)


def test_an_archive_cut_short_is_refused(tmp_path):
    pytest.importorskip("zarr")
    path = tmp_path / "s.zarr.zip"
    model().stats.save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be read; it may be damaged"):
        SummaryStats.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(InputError, match="cannot be read; it may be damaged"):
        SummaryStats.load(path)


def test_later_and_first_formats(name, tmp_path, monkeypatch):
    monkeypatch.setattr("flashmm.stats.stored.FORMAT", 7)
    model().stats.save(tmp_path / name)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"has format 7, but this flashmm reads up to 6.*Update"):
        SummaryStats.load(tmp_path / name)
    first = model().stats.to_dataset().assign_attrs(flashmm_format=1)
    first.to_netcdf(tmp_path / "first.nc")
    with pytest.raises(InputError, match="has format 1, which kept no checksum"):
        SummaryStats.load(tmp_path / "first.nc")


# ---- a save that dies --------------------------------------------------------------------

SCRIPT = """
import os, resource, signal, sys
sys.path[:0] = {path!r}
import numpy as np, xarray as xr
from flashmm.stats.summary_stats import SummaryStats
rng = np.random.default_rng(0)
Z = np.eye(6)[np.arange(60) % 6]
stats = SummaryStats.from_arrays(rng.normal(size=(20000, 60)), np.ones((60, 1)), Z)
if {how!r} == "disk full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
else:
    write = xr.Dataset.to_netcdf
    def killed(*args, **kwargs):
        write(*args, **kwargs)
        os.kill(os.getpid(), {how!r})
    xr.Dataset.to_netcdf = killed
stats.save({target!r})
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals and limits")
@pytest.mark.parametrize("how", ["disk full", int(signal.SIGKILL)])
def test_the_old_file_survives(how, tmp_path):
    path = tmp_path / "s.nc"
    model().stats.save(path)
    before = path.read_bytes()
    roots = [str(Path(storage.__file__).parents[1])]
    script = SCRIPT.format(path=roots, how=how, target=str(path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode != 0, done.stderr.decode()
    assert path.read_bytes() == before
    assert_identical(SummaryStats.load(path), model().stats)
    if how == signal.SIGKILL:  # nothing half-written lies about for long
        assert len(os.listdir(tmp_path)) == 2
        model().stats.save(path)
    assert os.listdir(tmp_path) == ["s.nc"]
