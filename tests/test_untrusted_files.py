"""Files with a right checksum and wrong content: refused, and nothing large is allocated."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from test_storage import assert_identical, model, responses

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.results import MultiLMMResults
from flashmm.stats.summary_stats import SummaryStats
from flashmm.storage import files as storage
from flashmm.storage.checksum import fingerprint

h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file of results, and one of statistics whose sums are shifted."""
    folder = tmp_path_factory.mktemp("saved")
    model().fit(parameter_space="psd").save(folder / "r.nc")
    far = np.array([[0.0], [1e8], [0.0]])
    model(Y=responses() + far).stats.save(folder / "s.nc")
    return {"results": folder / "r.nc", "stats": folder / "s.nc"}


@pytest.fixture(scope="module")
def read(saved):
    """What the two files hold."""
    return {kind: storage._read(path) for kind, path in saved.items()}


def changed(ds: xr.Dataset, change) -> xr.Dataset:
    """The content of a file with something changed and the checksum made right again."""
    ds = change(ds.copy(deep=True))
    ds.attrs.pop("flashmm_checksum", None)
    try:
        ds.attrs["flashmm_checksum"] = fingerprint(storage._from_netcdf3(ds.copy()))
    except TypeError:  # a list among the attributes, which has no fingerprint
        ds.attrs["flashmm_checksum"] = "none"
    except (ValueError, KeyError, AttributeError, RecursionError):  # what loading meets too
        ds.attrs["flashmm_checksum"] = fingerprint(ds)
    return ds


def load_as(kind, ds, monkeypatch):
    """Load as if a file held this: reading and writing HDF5 takes a hundred times longer."""
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_read", lambda _path: ds)
        return load(kind, f"{kind}.nc")


def load(kind, path):
    return (MultiLMMResults if kind == "results" else SummaryStats).load(path)


def put(name, value, where=0):
    def change(ds):
        array = ds.variables[name]
        values = array.to_numpy().copy()
        values[(where,) * values.ndim] = value
        return ds.assign({name: (array.dims, values)})

    return change


def attribute(**values):
    return lambda ds: ds.assign_attrs(values)


def cast(name, dtype):
    return lambda ds: ds.assign({name: (ds[name].dims, ds[name].to_numpy().astype(dtype))})


ANY = {
    "n is text": attribute(n="many"),
    "n is negative": attribute(n=-1),
    "n is half": attribute(n=60.5),
    "n is infinite": attribute(n=np.inf),
    "weights are text": attribute(log_weights="x"),
    "kind is a list": attribute(flashmm_kind=np.array([1, 2, 3])),
    "weights are a list": attribute(log_weights=np.array([1.0, 2.0])),
    "numbered is text": attribute(numbered="evil"),
    "format 1": attribute(flashmm_format=1),
    "format 0": attribute(flashmm_format=0),
    "format -1": attribute(flashmm_format=-1),
    "format 99": attribute(flashmm_format=99),
    "format of text": attribute(flashmm_format="two"),
    "format 2.5": attribute(flashmm_format=2.5),
    "empty arrays": attribute(flashmm_empty="[" * 100_000),
    "empty arrays that are full": attribute(
        flashmm_empty='{"big": [["x"], [1000000000000], "<f8"]}'
    ),
    "empty arrays of objects": attribute(flashmm_empty='{"big": [["x"], [0], "V1000000000"]}'),
    "empty arrays of nonsense": attribute(flashmm_empty="nonsense"),
    "empty arrays in a list": attribute(flashmm_empty="[1]"),
    "integers of nothing": attribute(flashmm_integers='["nothing"]'),
    "integers of nonsense": attribute(flashmm_integers="{"),
    **{
        f"no {name}": (lambda ds, name=name: ds.drop_vars(name))
        for name in (
            "XX",
            "XY",
            "ZX",
            "ZY",
            "yy",
            "ZZ_row",
            "ZZ_column",
            "ZZ_value",
            "term_name",
            "term_covariance",
            "term_effects",
            "term_columns",
            "coef",
            "coef_",
            "level",
            "group",
            "effect",
            "group_level",
            "shift_a",
            "shift_feature",
            "shift_yy",
        )
    },
    "turned": lambda ds: ds.assign(XY=(("feature", "coef"), ds["XY"].to_numpy().T)),
    "other dims": lambda ds: ds.assign(yy=(("other",), ds["yy"].to_numpy())),
    "whole numbers for sums": cast("XX", np.int64),
    "text for sums": cast("yy", str),
    "halves for rows": cast("ZZ_row", float),
    "a row far out": put("ZZ_row", 10**6),
    "a negative column": put("ZZ_column", -1),
    "a shift of no feature": put("shift_feature", 99),
    "a covariance of another kind": put("term_covariance", "evil"),
    "no effects": put("term_effects", 0),
    "many effects": put("term_effects", 10**9),
    "many columns": put("term_columns", 10**9),
    "negative columns": put("term_columns", -1),
    "missing sums": put("XX", np.nan),
    "a sum that is not symmetric": lambda ds: ds.assign(
        XX=(ds["XX"].dims, np.triu(ds["XX"].to_numpy()))
    ),
    "features alike": lambda ds: ds.assign_coords(
        feature=np.array(["a"] * ds.sizes["feature"], dtype=object)
    ),
}
RESULTS = {
    "n is zero": attribute(n=0),
    "n leaves no degrees of freedom": lambda ds: ds.assign_attrs(n=ds.sizes["coef"]),
    "status 99": put("status", 99),
    "status -1": put("status", -1),
    "halves for status": cast("status", float),
    "negative iterations": put("n_iter", -5),
    "engine evil": attribute(engine="evil"),
    "method evil": attribute(method="evil"),
    "another space": attribute(parameter_space="evil"),
    "epsilon 0": attribute(epsilon=0.0),
    "epsilon of text": attribute(epsilon="small"),
    "no memory": attribute(memory=-1),
    "half an iteration": attribute(max_iter=0.5),
    "dropped text": attribute(n_dropped="none"),
    "a solver that is a number": attribute(solver=3),
    **{
        f"no {name}": (lambda ds, name=name: ds.drop_vars(name))
        for name in (
            "beta",
            "se_beta",
            "theta",
            "se_theta",
            "score",
            "loglik",
            "n_iter",
            "status",
            "param",
        )
    },
    "no options": lambda ds: ds.assign_attrs(
        dict.fromkeys(("method", "engine", "parameter_space"), "")
    ),
    "other coefficients": put("coef", "other"),
    "other parameters": put("param", "other"),
    "no variances at all": lambda ds: ds.assign(theta=0.0 * ds["theta"]),
    "infinite variances": lambda ds: ds.assign(theta=np.inf * ds["theta"]),
    "a negative residual variance": lambda ds: ds.assign(theta=-ds["theta"]).assign_attrs(
        parameter_space="psd"
    ),
    "two recipes": lambda ds: ds.drop_vars("recipe").assign(
        recipe=(("recipes",), np.array(["{}", "{}"], dtype=object))
    ),
    "an empty recipe": lambda ds: ds.assign(recipe=("recipes", np.array([""], dtype=object))),
    "a deep recipe": lambda ds: ds.assign(
        recipe=("recipes", np.array(["[" * 100_000], dtype=object))
    ),
    "a recipe of another model": lambda ds: ds.assign(
        recipe=(
            "recipes",
            np.array([ds["recipe"].to_numpy()[0].replace("\\u00e2ge", "age")], object),
        )
    ),
}


# Through a file: attributes that are lists or long, and changes of type.
WRITTEN = {
    "stats": [
        *("kind is a list", "weights are a list", "format 2.5", "empty arrays", "n is infinite"),
        *("empty arrays that are full", "text for sums", "whole numbers for sums", "no XX"),
    ],
    "results": ["a deep recipe", "an empty recipe", "halves for status", "status 99"],
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_files(kind, read, tmp_path):
    for what in WRITTEN[kind]:
        ds = changed(read[kind], (ANY if kind == "stats" else RESULTS)[what])
        ds.to_netcdf(tmp_path / "changed.nc", engine="h5netcdf")
        with pytest.raises(InputError, match=r"changed\.nc"):
            load(kind, tmp_path / "changed.nc")


@pytest.mark.parametrize("what", ANY)
def test_statistics(what, read, monkeypatch):
    ds = changed(read["stats"], ANY[what])
    with pytest.raises(InputError, match=r"stats\.nc"):
        load_as("stats", ds, monkeypatch)


@pytest.mark.parametrize("what", RESULTS)
def test_results(what, read, monkeypatch):
    ds = changed(read["results"], RESULTS[what])
    with pytest.raises(InputError, match=r"results\.nc"):
        load_as("results", ds, monkeypatch)


def test_what_is_not_changed_is_read(read, tmp_path, monkeypatch):
    for kind, ds in read.items():
        same = changed(ds, lambda ds: ds)
        load_as(kind, same, monkeypatch)
        same.to_netcdf(tmp_path / "same.nc", engine="h5netcdf")
        load(kind, tmp_path / "same.nc")


@pytest.fixture(scope="module")
def kinds():
    """Content of files of every kind, and what reads it: few samples, few features."""
    rng = np.random.default_rng(0)
    data = pd.DataFrame(
        {"x": rng.normal(size=12), "f": list("abc") * 4, "g": np.repeat(list("stuv"), 3)}
    )
    Y = rng.normal(size=(2, 12))
    gaps = np.where(np.arange(12) < [[0], [1]], np.nan, Y)
    found = {}
    for name, options in {
        "shared": {"Y": Y + np.array([[0.0], [1e8]])},
        "missing": {"Y": gaps, "missing": "feature"},
        "groups": {"Y": Y, "sums_by": "g"},
    }.items():
        built = fm.MultiLMM.from_formula("~ x + f + (1 | g)", data=data, **options)
        found[name] = type(built.stats), built.stats.to_dataset()
    return found


def tampered(ds):
    """What can be wrong with a variable, for every one: a name and the changed Dataset."""
    for name, array in ds.variables.items():
        values = array.to_numpy()

        def put(values, array=array, name=name, dims=None):
            if dims is None and name in ds.coords:
                return ds.assign_coords({name: (array.dims, values)})
            return ds.drop_vars(name).assign({name: (dims or array.dims, values)})

        yield f"no {name}", ds.drop_vars(name)
        yield f"{name} is complex", put(np.zeros(values.shape, complex))
        yield f"{name} has another axis", put(values[..., None], dims=(*array.dims, "another"))
        if values.dtype.kind in "iu" and values.size:
            for value in (-1, 2**31 - 1):
                yield f"{name} = {value}", put(np.full_like(values, value))
        if values.dtype.kind == "f" and values.size:
            for value in (np.nan, -1.0, 1e308):
                yield f"{name} = {value}", put(np.full_like(values, value))
        if values.dtype.kind in "OU":
            yield f"{name} holds a number", put(np.full(values.shape, 3.5, object))


@pytest.mark.parametrize("kind", ["shared", "missing", "groups"])
def test_every_variable_of_statistics(kind, kinds, monkeypatch):
    """Refused with the name of the file, or used: nothing else is raised."""
    cls, ds = kinds[kind]
    refused = 0
    for what, wrong in tampered(ds):
        wrong.attrs["flashmm_checksum"] = fingerprint(wrong)
        monkeypatch.setattr(storage, "_read", lambda _path, wrong=wrong: wrong)
        try:
            found = cls.load("tampered.nc")
        except InputError as error:
            refused += "tampered.nc" in str(error)
            continue
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                fm.MultiLMM.from_summary_stats(found).fit(parameter_space="psd").t_test("x")
                found + found
        except InputError:
            continue
        except Exception as error:
            error.add_note(what)
            raise
    assert refused > 100


# ---- larger than the file ----------------------------------------------------------------


def test_arrays_that_say_they_are_huge(saved, tmp_path):
    for name in ("XY", "new"):
        path = tmp_path / "huge.nc"
        path.write_bytes(saved["stats"].read_bytes())
        with h5py.File(path, "r+") as file:
            if name in file:
                del file[name]
            file.create_dataset(name, shape=(10**7, 10**5), dtype="f8", chunks=(100, 100))
        assert path.stat().st_size < 10**6
        with pytest.raises(InputError, match="more than the whole file"):
            load("stats", path)


def test_arrays_that_are_elsewhere(saved, tmp_path):
    def link(file):
        file["new"] = h5py.ExternalLink(str(saved["results"]), "/beta")

    def soft(file):
        file["new"] = h5py.SoftLink("/XY")

    def outside(file):
        file.create_dataset("new", shape=(8,), dtype="u1", external=[(str(saved["results"]), 0, 8)])

    def virtual(file):
        layout = h5py.VirtualLayout(shape=(3,), dtype="f8")
        layout[:] = h5py.VirtualSource(str(saved["results"]), "loglik", shape=(3,))
        file.create_virtual_dataset("new", layout)

    for add in (link, soft, outside, virtual, lambda file: file.create_group("new")):
        path = tmp_path / "elsewhere.nc"
        path.write_bytes(saved["stats"].read_bytes())
        with h5py.File(path, "r+") as file:
            add(file)
        with pytest.raises(InputError, match="is refused: 'new'"):
            load("stats", path)


def test_zarr_that_says_it_is_huge(saved, tmp_path):
    pytest.importorskip("zarr")
    path = tmp_path / "s.zarr"
    SummaryStats.load(saved["stats"]).save(path)
    for file in (path / ".zmetadata", path / "XY" / ".zarray"):
        values = json.loads(file.read_text())
        array = values["metadata"]["XY/.zarray"] if file.name == ".zmetadata" else values
        array["shape"] = [10**7, 10**6]
        file.write_text(json.dumps(values))
    with pytest.raises(InputError, match="more than the whole file"):
        SummaryStats.load(path)


# ---- saving ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["x.csv", "x", "x.txt", "x.zip", "x.h5ad", ".nc", "x.nc.gz", "x.pkl", "x.zarr.csv"]
)
def test_names_that_do_not_say_a_format(name, tmp_path):
    with pytest.raises(InputError, match="does not say in which format to save"):
        model().stats.save(tmp_path / name)
    with pytest.raises(InputError, match="does not say in which format to save"):
        model().fit(parameter_space="psd").save(tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="symbolic links")
def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    for name in ("s.nc", "s.zarr.zip"):
        if "zarr" in name:
            pytest.importorskip("zarr")
        there, here = tmp_path / f"there {name}", tmp_path / f"here {name}"
        there.mkdir()
        here.mkdir()
        target, link = there / name, here / name
        link.symlink_to(os.path.relpath(target, here))
        model().stats.save(link)  # the target is made
        target.chmod(0o640)
        model("integers").stats.save(link)
        assert link.is_symlink()
        assert not target.is_symlink()
        assert target.stat().st_mode & 0o777 == 0o640
        assert_identical(SummaryStats.load(target), model("integers").stats)
        assert_identical(SummaryStats.load(link), model("integers").stats)
        assert os.listdir(here) == os.listdir(there) == [name]
        again = here / f"again {name}"
        again.symlink_to(link)
        model().stats.save(again)
        assert_identical(SummaryStats.load(target), model().stats)
        assert again.is_symlink()
    loop = tmp_path / "loop.nc"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="leads back to itself"):
        model().stats.save(loop)
    nowhere = tmp_path / "nowhere.nc"
    nowhere.symlink_to(tmp_path / "absent" / "s.nc")
    with pytest.raises(InputError, match="There is no directory"):
        model().stats.save(nowhere)


SCRIPT = """
import gc, os, resource, sys
sys.path.insert(0, {root!r})
import numpy as np, pandas as pd, flashmm as fm
from flashmm.storage import files
rng = np.random.default_rng(0)
data = pd.DataFrame({{"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)}})
model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=rng.normal(size=(2000, 40)))
result = model.fit(parameter_space="psd")
before = result.params.to_numpy().copy()
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
has_hdf5 = files._has_hdf5
for name, old, size in {cases!r}:
    files._has_hdf5 = (lambda: False) if old else has_hdf5
    folder = os.path.join({folder!r}, name + str(old))
    target = os.path.join(folder, name)
    os.mkdir(folder)
    print(name)
    for what in (result, model.stats):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            what.save(target)
        except OSError as error:
            print("full", error.errno)
            assert repr(target) in str(error), error
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        del what
    gc.collect()
    print(os.listdir(folder))
    assert (result.params.to_numpy() == before).all()
    result.t_test("x")
    result.save(target)
    assert (fm.MultiLMMResults.load(target).params.to_numpy() == before).all()
    print("alive", os.listdir(folder) == [name])
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_full_disk_costs_nothing_but_the_file(tmp_path):
    cases = [("r.nc", False, 4096), ("r.nc", True, 4096)]
    if find_spec("zarr"):
        cases += [("r.zarr", False, 4096), ("r.zarr.zip", False, 9000)]
    script = SCRIPT.format(
        root=str(Path(fm.__file__).parents[1]), folder=str(tmp_path), cases=cases
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = [
        line for name, _, _ in cases for line in (name, "full 27", "full 27", "[]", "alive True")
    ]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
@pytest.mark.parametrize("file", ["s.nc", "s.zarr.zip"])
def test_text_that_no_file_keeps(name, file, tmp_path):
    if "zarr" in file:
        pytest.importorskip("zarr")
    Y = pd.DataFrame(responses(), index=[name, "b", "c"])
    stats = model("none", Y).stats
    with pytest.raises(InputError, match="in 'feature' holds a character"):
        stats.save(tmp_path / file)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".nc", ".zarr.zip"])
def test_names_as_long_as_they_may_be(suffix, tmp_path):
    if "zarr" in suffix:
        pytest.importorskip("zarr")
    for stem in ("x" * (255 - len(suffix)), "\N{PILE OF POO}" * 60):
        model().stats.save(tmp_path / (stem + suffix))
        assert_identical(SummaryStats.load(tmp_path / (stem + suffix)), model().stats)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OSError, match="name too long"):
        model().stats.save(tmp_path / ("x" * 300 + suffix))
    with pytest.raises(InputError, match="There is no file"):
        SummaryStats.load(tmp_path / ("x" * 300 + suffix))
    assert sorted(os.listdir(tmp_path)) == before


def test_a_directory_that_takes_no_files(tmp_path, monkeypatch):
    """The message names the file that was asked for, not the hidden directory beside it."""

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".s.nc.abc"))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(PermissionError, match=r"nothing can be written.*'[^']*/s\.nc'$"):
        model().stats.save(tmp_path / "s.nc")
    assert os.listdir(tmp_path) == []


def test_saves_at_once_leave_one_of_them_whole(tmp_path):
    """Three threads into one place: flock tells them apart as it does processes."""
    pair = [model().stats, model("integers").stats]
    target = tmp_path / "s.nc"
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: pair[i % 2].save(target), range(6)))
    found = SummaryStats.load(target)
    assert os.listdir(tmp_path) == ["s.nc"]
    assert found.feature_names.tolist() in [one.feature_names.tolist() for one in pair]


KILLED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import numpy as np
from flashmm.stats.summary_stats import SummaryStats
def stop(*args):
    if {how!r} == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("waiting", flush=True)
    sys.stdin.read()
    go(*args)
go, os.replace = os.replace, stop
SummaryStats.from_arrays(np.eye(3, 8), np.ones((8, 1)), np.eye(8)[:, :3]).save({target!r})
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_what_a_killed_save_leaves_goes_with_the_next(tmp_path):
    root, target = str(Path(fm.__file__).parents[1]), str(tmp_path / "s.nc")
    foreign = [".hidden", ".s.nc.mine", ".other.flashmm.txt"]
    for name in foreign:
        (tmp_path / name).mkdir()
    (tmp_path / ".file.flashmm").touch()
    script = KILLED.format(root=root, target=target, how="killed")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 5
    # Another save at work: its directory stays, and it ends as it should.
    script = KILLED.format(root=root, target=str(tmp_path / "other.nc"), how="waiting")
    at_work = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert at_work.stdout.readline() == b"waiting\n"
    model().stats.save(target)
    here = set(os.listdir(tmp_path)) - {*foreign, ".file.flashmm", "s.nc"}
    assert len(here) == 1
    assert here.pop().startswith(".other.nc.")
    at_work.communicate(b"")
    assert at_work.returncode == 0
    assert sorted(os.listdir(tmp_path)) == sorted([*foreign, ".file.flashmm", "other.nc", "s.nc"])
    assert SummaryStats.load(tmp_path / "other.nc").m == 3
