"""Saving and loading: statistics and results as netCDF or zarr, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import xarray as xr

from flashmm.designs.design import CovarianceStructure, RandomTerm
from flashmm.exceptions import InputError
from flashmm.stats.shifts import Shift
from flashmm.stats.summary_stats import SummaryStats
from flashmm.storage.checksum import fingerprint
from flashmm.storage.zarr import is_zarr, read_zarr, write_zarr

if TYPE_CHECKING:
    from os import PathLike

    from flashmm.stats.own_rows import PatternedStats

__all__ = ["FORMAT", "load_dataset", "save_dataset", "stats_from_dataset", "stats_to_dataset"]

FORMAT = 2
PATTERNED_FORMAT = 3
_KIND = "flashmm_kind"
_FORMAT = "flashmm_format"
_CHECKSUM = "flashmm_checksum"
_EMPTY = "flashmm_empty"
_INTEGERS = "flashmm_integers"


def stats_to_dataset(stats: SummaryStats) -> xr.Dataset:
    """The statistics as a Dataset; Z'Z as the row, column and value of its non-zeros."""
    structure: CovarianceStructure = stats.structure
    ZZ = stats.ZZ.tocoo()
    data: dict[str, Any] = {
        "XX": (("coef", "coef_"), stats.XX),
        "XY": (("coef", "feature"), stats.XY),
        "ZX": (("level", "coef"), stats.ZX),
        "ZY": (("level", "feature"), stats.ZY),
        "yy": (("feature",), stats.yy),
        "ZZ_row": (("nonzero",), ZZ.row.astype(np.int32)),
        "ZZ_column": (("nonzero",), ZZ.col.astype(np.int32)),
        "ZZ_value": (("nonzero",), ZZ.data),
        "term_name": (("random_term",), _text([term.name for term in structure.terms])),
        "term_covariance": (("random_term",), _text([t.covariance for t in structure.terms])),
        "term_effects": (
            ("random_term",),
            np.array([len(t.effects) for t in structure.terms], np.int32),
        ),
        "term_columns": (
            ("random_term",),
            np.array([t.n_columns for t in structure.terms], np.int32),
        ),
    }
    if stats.shift is not None:
        shift = stats.shift
        data |= {
            "shift_feature": (("shifted",), shift.features.astype(np.int32)),
            "shift_a": (("coef", "shifted"), shift.a),
            "shift_XY": (("coef", "shifted"), shift.XY),
            "shift_ZY": (("level", "shifted"), shift.ZY),
            "shift_yy": (("shifted",), shift.yy),
        }
    if stats.XX_root is not None:
        data["XX_root"] = (("root", "coef"), stats.XX_root)
    names = list(stats.coef_names)
    coords: dict[str, Any] = {
        "feature": feature_coordinate(stats),
        "coef": _text(names),
        "coef_": _text(names),
        **level_coordinates(structure),
    }
    attrs = {
        _KIND: "SummaryStats",
        _FORMAT: FORMAT,
        "n": stats.n,
        "log_weights": stats.log_weights,
    }
    return xr.Dataset(data, coords=coords, attrs=attrs)


def stats_from_dataset(ds: xr.Dataset) -> SummaryStats:
    """The inverse of `stats_to_dataset`."""
    q = ds.sizes["level"]
    terms, start = [], 0
    for i in range(ds.sizes["random_term"]):
        s, stop = int(ds["term_effects"][i]), start + int(ds["term_columns"][i])
        levels = [str(x) for x in ds["group_level"].to_numpy()[start:stop:s]]
        effects = [str(x) for x in ds["effect"].to_numpy()[start : start + s]]
        covariance: Any = str(ds["term_covariance"].to_numpy()[i])
        terms.append(
            RandomTerm(
                str(ds["term_name"].to_numpy()[i]),
                str(ds["group"].to_numpy()[start]),
                tuple(levels),
                tuple(effects),
                covariance,
            )
        )
        start = stop
    shift = None
    if "shift_feature" in ds:
        shift = Shift(
            ds["shift_feature"].to_numpy().astype(np.intp),
            *(ds[f"shift_{name}"].to_numpy() for name in ("a", "XY", "ZY", "yy")),
        )
    entries = (ds["ZZ_row"].to_numpy(), ds["ZZ_column"].to_numpy())
    return SummaryStats(
        n=int(ds.attrs["n"]),
        XX=ds["XX"].to_numpy(),
        XY=ds["XY"].to_numpy(),
        ZX=ds["ZX"].to_numpy(),
        ZY=ds["ZY"].to_numpy(),
        ZZ=sp.csr_array((ds["ZZ_value"].to_numpy(), entries), shape=(q, q)),
        yy=ds["yy"].to_numpy(),
        feature_names=ds["feature"].to_numpy(),
        coef_names=[str(x) for x in ds["coef"].to_numpy()],
        structure=CovarianceStructure(tuple(terms)),
        shift=shift,
        log_weights=float(ds.attrs.get("log_weights", 0.0)),
        XX_root=ds["XX_root"].to_numpy() if "XX_root" in ds else None,
    )


def set_format(ds: xr.Dataset, kind: str, version: int) -> xr.Dataset:
    """The Dataset marked as holding another kind of thing, in another format."""
    return ds.assign_attrs({_KIND: kind, _FORMAT: version})


def level_coordinates(structure: CovarianceStructure) -> dict[str, Any]:
    """The ``level`` coordinate with the term, group, level and effect of each column of Z."""
    labels = {name: ("level", _text(values)) for name, values in structure.column_labels().items()}
    return {"level": _text(structure.column_names), **labels}


def feature_coordinate(stats: SummaryStats | PatternedStats) -> np.ndarray[Any, Any]:
    """Feature labels as a coordinate: text, or integers when Y had no labels."""
    names = stats.feature_names
    return names if names.dtype.kind in "iu" else _text(names)


def _text(values: Any) -> np.ndarray[Any, Any]:
    return np.array([str(value) for value in values], dtype=object)


def _has_hdf5() -> bool:
    return all(find_spec(name) is not None for name in ("h5netcdf", "h5py"))


def save_dataset(ds: xr.Dataset, path: str | PathLike[str]) -> None:
    """Write a Dataset under a temporary name, then rename it into place.

    ``.zarr`` and ``.zarr.zip`` are zarr; any other name is netCDF, HDF5-based when h5netcdf is
    installed (the ``io`` extra), else netCDF 3 through scipy.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"There is no directory {str(path.parent)!r} to save {path.name!r} in.")
    if path.is_dir():
        hint = (
            " A directory cannot be replaced in one step: remove it first, or save to a "
            f"{path.name + '.zip'!r}."
            if path.suffix == ".zarr"
            else " Give the name of a file."
        )
        raise InputError(f"{str(path)!r} is a directory.{hint}")
    ds = ds.assign_attrs({_CHECKSUM: fingerprint(ds)})
    directory = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary = directory / path.name
        if is_zarr(path):
            write_zarr(ds, temporary, directory)
        elif _has_hdf5():
            ds.to_netcdf(temporary, engine="h5netcdf", format="NETCDF4")
        else:
            _for_netcdf3(ds).to_netcdf(temporary, engine="scipy", format="NETCDF3_64BIT")
        if temporary.is_file():
            _flush(temporary)
            os.chmod(temporary, _permissions(path))
        os.replace(temporary, path)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _flush(path: Path) -> None:
    """Bring a file to the disk before its name is given to it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _for_netcdf3(ds: xr.Dataset) -> xr.Dataset:
    """The Dataset without what netCDF 3 cannot hold: empty arrays and 64-bit integers.

    Empty arrays leave a description; wide integers become text, or floats among the attrs.
    """
    empty = [str(name) for name, array in ds.variables.items() if array.size == 0]
    described = {name: [list(ds[name].dims), ds[name].shape, ds[name].dtype.str] for name in empty}
    limit = np.iinfo(np.int32)
    wide = {
        str(name): array
        for name, array in ds.variables.items()
        if array.dtype.kind in "iu"
        and array.size
        and not limit.min <= array.to_numpy().min() <= array.to_numpy().max() <= limit.max
    }
    kept = ds.drop_vars(empty).assign_coords(
        {name: (array.dims, _text(array.to_numpy())) for name, array in wide.items()}
    )
    attrs = {
        name: float(value)
        if isinstance(value, (int, np.integer)) and not limit.min <= value <= limit.max
        else value
        for name, value in ds.attrs.items()
    }
    if empty:
        attrs[_EMPTY] = json.dumps(described)
    if wide:
        attrs[_INTEGERS] = json.dumps(list(wide))
    return kept.assign_attrs(attrs)


def _from_netcdf3(ds: xr.Dataset) -> xr.Dataset:
    """The inverse of `_for_netcdf3`."""
    coords: dict[str, Any] = {
        name: (ds[name].dims, ds[name].to_numpy().astype(np.int64))
        for name in json.loads(ds.attrs.pop(_INTEGERS, "[]"))
    }
    data: dict[str, Any] = {}
    for name, (dims, shape, dtype) in json.loads(ds.attrs.pop(_EMPTY, "{}")).items():
        values = (dims, np.empty(shape, dtype=dtype))
        (coords if [name] == dims else data)[name] = values
    return ds.assign(data).assign_coords(coords)


def _permissions(path: Path) -> int:
    """Those of the file that is replaced, else what any new file gets (mkstemp: owner only)."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def load_dataset(path: str | PathLike[str], *, kind: str) -> xr.Dataset:
    """Read a file that `save_dataset` wrote and check what it is."""
    path = Path(path)
    ds = _read(path)
    if ds.attrs.get(_KIND) != kind:
        found = ds.attrs.get(_KIND, "something that flashmm did not write")
        raise InputError(f"{str(path)!r} holds {found}, not {kind}.")
    version = int(ds.attrs.get(_FORMAT, 0))
    if version > PATTERNED_FORMAT:
        raise InputError(
            f"{str(path)!r} has format {version}, but this flashmm reads up to "
            f"{PATTERNED_FORMAT}. "
            "Update flashmm."
        )
    ds = _from_netcdf3(ds)
    if ds["feature"].dtype.kind in "iu":
        ds = ds.assign_coords(feature=ds["feature"].astype(np.int64))
    checksum = ds.attrs.pop(_CHECKSUM, None)
    if version > 1 and checksum != fingerprint(ds):  # the first format had none
        raise InputError(
            f"{str(path)!r} was altered after it was saved: its content does not match its "
            "checksum. Use an intact copy, or make the statistics afresh."
        )
    return ds


def _read(path: Path) -> xr.Dataset:
    """Everything in a file, whatever its format."""
    if not (path.is_dir() if path.suffix == ".zarr" else path.is_file()):
        raise InputError(f"There is no file {str(path)!r}.")
    if is_zarr(path):
        try:
            return read_zarr(path)
        except InputError:
            raise
        except Exception as error:  # whatever the reader meets in a damaged file
            raise _damaged(path, error) from error
    with path.open("rb") as file:
        magic = file.read(4)
    if magic.startswith(b"CDF"):
        engine = "scipy"
    elif magic == b"\x89HDF":
        if not _has_hdf5():
            raise InputError(
                f"{str(path)!r} is HDF5-based; reading it needs h5netcdf and h5py: "
                "pip install 'flashmm[io]'."
            )
        engine = "h5netcdf"
    else:
        raise InputError(f"{str(path)!r} is not a netCDF file.")
    try:
        return xr.load_dataset(path, engine=engine)
    except Exception as error:  # whatever the reader meets in a file that is cut short
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{str(path)!r} cannot be read; it may be damaged: {error}")
