"""Files: what is loaded equals what was saved, and a file is whole or not there."""

from __future__ import annotations

import os
import stat

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.results import MultiLMMResults
from flashmm.stats.summary_stats import SummaryStats
from flashmm.storage import files as storage

N = 60


@pytest.fixture(params=["HDF5", "netCDF 3"])
def kind(request, monkeypatch) -> str:
    """Both file formats."""
    if request.param == "HDF5":
        pytest.importorskip("h5netcdf")
    else:
        monkeypatch.setattr(storage, "_has_hdf5", lambda: False)
    return request.param


@pytest.fixture
def netcdf3(monkeypatch) -> None:
    """The format that is quicker to write, where the format does not matter."""
    monkeypatch.setattr(storage, "_has_hdf5", lambda: False)


def data() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "âge": rng.normal(size=N),
            "donneur à": [f"niveau {i % 6} ü" for i in range(N)],
            "lot": [f"b/{i // 15}" for i in range(N)],
        }
    )


def responses(m: int = 3) -> np.ndarray:
    """Features with a clear effect of every component."""
    rng = np.random.default_rng(1)
    group, batch = np.arange(N) % 6, np.arange(N) // 15
    x = data()["âge"].to_numpy()
    return (
        2.0 * rng.normal(size=(m, 6))[:, group]
        + 2.0 * rng.normal(size=(m, 6))[:, group] * x
        + 2.0 * rng.normal(size=(m, 4))[:, batch]
        + rng.normal(size=(m, N))
    )


LABELS = {
    "unicode and spaces": ["gène 1", "β<b>2</b>", "名前"],
    "integers": [7, 3, 12],
    "wide integers": [2**40, -5, 0],
    "none": None,
}


def model(
    labels: str = "unicode and spaces", Y=None, formula="~ âge + (âge | `donneur à`) + (1 | lot)"
):
    Y = responses() if Y is None else Y
    if LABELS[labels] is not None:
        Y = pd.DataFrame(Y, index=LABELS[labels])
    return fm.MultiLMM.from_formula(formula, None, data(), Y)


def assert_identical(loaded: SummaryStats, stats: SummaryStats) -> None:
    assert (loaded.n, type(loaded.n)) == (stats.n, int)
    for name in ("XX", "XY", "ZX", "ZY", "yy"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(stats, name), err_msg=name)
    np.testing.assert_array_equal(loaded.ZZ.toarray(), stats.ZZ.toarray())
    assert loaded.feature_names.tolist() == stats.feature_names.tolist()
    assert loaded.feature_names.dtype == stats.feature_names.dtype
    assert loaded.coef_names == stats.coef_names
    assert loaded.structure == stats.structure
    assert (loaded.shift is None) == (stats.shift is None)
    if stats.shift is not None:
        for name in ("features", "a", "XY", "ZY", "yy"):
            np.testing.assert_array_equal(getattr(loaded.shift, name), getattr(stats.shift, name))


@pytest.mark.parametrize("labels", LABELS)
def test_statistics_come_back_exactly(kind, labels, tmp_path):
    stats = model(labels).stats
    path = tmp_path / "dossier é" / "statistics of 名前.nc"
    path.parent.mkdir()
    stats.save(path)
    assert path.read_bytes()[:3] == (b"CDF" if kind == "netCDF 3" else b"\x89HD")
    loaded = SummaryStats.load(str(path))
    assert_identical(loaded, stats)
    assert_identical(loaded + loaded, stats + stats)


@pytest.mark.parametrize(
    "formula",
    [
        "~ âge + (1 | lot)",
        "~ 0 + lot + (1 + âge | `donneur à`)",
        "~ âge + (0 + âge || `donneur à`) + (1 | lot/`donneur à`)",
        "~ âge + diag(1 + âge | lot)",
    ],
)
def test_covariance_structures_come_back(netcdf3, formula, tmp_path):
    stats = model(formula=formula).stats
    stats.save(tmp_path / "s.nc")
    assert_identical(SummaryStats.load(tmp_path / "s.nc"), stats)


def test_shifts_and_no_features_come_back(kind, tmp_path):
    shifted = model(Y=responses() + np.array([[0.0], [1e8], [1e9]])).stats
    assert shifted.shift is not None
    shifted.save(tmp_path / "shifted.nc")
    assert_identical(SummaryStats.load(tmp_path / "shifted.nc"), shifted)
    empty = model("none", Y=np.zeros((0, N))).stats
    empty.save(tmp_path / "empty.nc")
    assert_identical(SummaryStats.load(tmp_path / "empty.nc"), empty)


def test_arrays_components_come_back(netcdf3, tmp_path):
    stats = fm.MultiLMM.from_arrays(
        responses(), np.ones((N, 1)), np.eye(6)[np.arange(N) % 6], components={"a b": 2, "c": 4}
    ).stats
    stats.save(tmp_path / "s.nc")
    assert_identical(SummaryStats.load(tmp_path / "s.nc"), stats)


# ---- results -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "method"),
    [("unicode and spaces", "REML"), ("wide integers", "ML"), ("none", "REML")],
)
def test_loaded_results_can_do_all_that_the_originals_could(kind, labels, method, tmp_path):
    results = model(labels).fit(method, parameter_space="psd", memory=2**33)
    path = tmp_path / "results.nc"
    results.save(path)
    loaded = MultiLMMResults.load(path)
    xr.testing.assert_identical(loaded.ds, results.ds)
    assert loaded.options == results.options
    assert_identical(loaded.stats, results.stats)
    # Sums may be taken in another order: equal to rounding.
    close = {"rtol": 1e-10, "atol": 1e-12}
    table = results.t_test("âge").top_table()
    pd.testing.assert_frame_equal(loaded.t_test("âge").top_table(), table, **close)
    pd.testing.assert_frame_equal(loaded.to_frame(), results.to_frame(), **close)
    xr.testing.assert_allclose(loaded.cov_params(), results.cov_params(), **close)
    xr.testing.assert_allclose(loaded.fim(), results.fim(), **close)
    xr.testing.assert_allclose(loaded.blup(se=True), results.blup(se=True), **close)
    xr.testing.assert_allclose(loaded.conf_int(0.1), results.conf_int(0.1), **close)
    for name, effects in results.random_effects.items():
        xr.testing.assert_allclose(loaded.random_effects[name], effects, **close)
    feature = results.ds["feature"].to_numpy()[1]
    assert str(loaded.summary()) == str(results.summary())
    assert str(loaded.summary(feature)) == str(results.summary(feature))
    pd.testing.assert_series_equal(loaded.sel(feature).bse, results.sel(feature).bse, **close)


def test_verdicts_and_nan_come_back(kind, tmp_path):
    Y = np.vstack([responses(2), np.zeros(N), np.full(N, 3.0)])
    with pytest.warns(fm.ConvergenceWarning, match="2 zero variance"):
        results = model("none", Y=Y).fit(parameter_space="psd")
    results.save(tmp_path / "r.nc")
    loaded = MultiLMMResults.load(tmp_path / "r.nc")
    xr.testing.assert_identical(loaded.ds, results.ds)
    assert loaded.status.tolist()[2:] == ["zero variance"] * 2


def test_results_of_no_features_come_back(kind, tmp_path):
    results = model("none", Y=np.zeros((0, N))).fit()
    results.save(tmp_path / "r.nc")
    xr.testing.assert_identical(MultiLMMResults.load(tmp_path / "r.nc").ds, results.ds)


def test_files_are_plain_netcdf_for_others(kind, tmp_path):
    results = model().fit(parameter_space="psd")
    results.save(tmp_path / "r.nc")
    with xr.open_dataset(tmp_path / "r.nc") as ds:
        np.testing.assert_array_equal(ds["beta"], results.ds["beta"])
        assert ds["feature"].to_numpy().tolist() == LABELS["unicode and spaces"]


# ---- whole or not at all -----------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["writing", "renaming"])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    kind, error, when, tmp_path, monkeypatch
):
    path = tmp_path / "stats.nc"
    model().stats.save(path)
    before = path.read_bytes()

    def broken(write):
        def breaks(*args, **kwargs):
            if when == "writing":
                write(*args, **kwargs)  # the content is there when the error comes
            raise error

        return breaks

    if when == "writing":
        for name in ("to_netcdf", "dump_to_store"):  # the latter by older versions of xarray
            monkeypatch.setattr(xr.Dataset, name, broken(getattr(xr.Dataset, name)))
    else:
        monkeypatch.setattr(os, "replace", broken(os.replace))
    with pytest.raises(type(error)):
        model("integers").stats.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["stats.nc"]


def test_nothing_is_left_of_a_failed_first_save(netcdf3, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        model().fit(parameter_space="psd").save(tmp_path / "r.nc")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_are_those_of_any_file(netcdf3, tmp_path):
    path, other = tmp_path / "s.nc", tmp_path / "other"
    other.touch()
    model().stats.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    path.chmod(0o640)
    model().stats.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# ---- refused -----------------------------------------------------------------------------


def test_the_wrong_kind_is_refused(kind, tmp_path):
    path = tmp_path / "file.nc"
    model().stats.save(path)
    with pytest.raises(InputError, match="holds SummaryStats, not MultiLMMResults"):
        MultiLMMResults.load(path)
    model().fit(parameter_space="psd").save(path)
    with pytest.raises(InputError, match="holds MultiLMMResults, not SummaryStats"):
        SummaryStats.load(path)
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(path, engine="scipy")
    with pytest.raises(InputError, match="something that flashmm did not write"):
        SummaryStats.load(path)


def test_a_later_format_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("flashmm.stats.stored.FORMAT", 7)
    model().stats.save(tmp_path / "s.nc")
    with pytest.raises(InputError, match=r"has format 7, but this flashmm reads up to 6.*Update"):
        SummaryStats.load(tmp_path / "s.nc")


def test_files_that_are_no_netcdf_are_refused(kind, tmp_path):
    path = tmp_path / "file.nc"
    with pytest.raises(InputError, match=r"There is no file '.*file.nc'"):
        SummaryStats.load(path)
    with pytest.raises(InputError, match="There is no file"):
        SummaryStats.load(tmp_path)
    path.write_text("gene,beta\n")
    with pytest.raises(InputError, match="is not a netCDF file"):
        SummaryStats.load(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is not a netCDF file"):
        SummaryStats.load(path)


def test_a_file_cut_short_is_refused(kind, tmp_path):
    path = tmp_path / "file.nc"
    model().stats.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(InputError, match="cannot be read; it may be damaged"):
        SummaryStats.load(path)


def test_hdf5_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    pytest.importorskip("h5netcdf")
    model().stats.save(tmp_path / "s.nc")
    monkeypatch.setattr(storage, "_has_hdf5", lambda: False)
    with pytest.raises(InputError, match=r"pip install 'multilmm\[io\]'"):
        SummaryStats.load(tmp_path / "s.nc")


def test_places_where_nothing_can_be_saved(tmp_path):
    with pytest.raises(InputError, match=r"There is no directory '.*absent'"):
        model().stats.save(tmp_path / "absent" / "s.nc")
    with pytest.raises(InputError, match="is a directory"):
        model().stats.save(tmp_path)
