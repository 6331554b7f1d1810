"""Saving and loading Datasets as netCDF or zarr, whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from flashmm.exceptions import InputError, listing
from flashmm.storage.checksum import fingerprint
from flashmm.storage.format_version import check_mark
from flashmm.storage.places import as_path, resolved, working_directory
from flashmm.storage.schema import check_file
from flashmm.storage.sizes import check_hdf5
from flashmm.storage.zarr import is_zarr, read_zarr, write_zarr

__all__ = [
    "kind_of",
    "load_dataset",
    "reading",
    "save_dataset",
    "text",
]

_CHECKSUM = "flashmm_checksum"
_EMPTY = "flashmm_empty"
_INTEGERS = "flashmm_integers"
_NETCDF = (".nc", ".nc4", ".cdf", ".h5", ".hdf5")


def text(values: Any) -> np.ndarray[Any, Any]:
    """Labels as an array of text."""
    return np.array([str(value) for value in values], dtype=object)


def _has_hdf5() -> bool:
    return all(find_spec(name) is not None for name in ("h5netcdf", "h5py"))


def save_dataset(ds: xr.Dataset, path: str | PathLike[str]) -> None:
    """Write a Dataset under a temporary name, then rename it into place.

    ``.zarr`` and ``.zarr.zip`` are zarr; ``.nc``, ``.nc4``, ``.cdf``, ``.h5`` and ``.hdf5`` are
    netCDF, HDF5-based when h5netcdf is installed (the ``io`` extra), else netCDF 3 through scipy;
    other names are refused. A link stays, its target is replaced.

    Raises
    ------
    InputError
        If nothing can be saved under that name.
    OSError
        If the file cannot be written: the disk is full, say, the directory is not yours to write
        in, or the name too long. What was there before stays.
    """
    path = as_path(path)
    target = resolved(path)
    if not target.parent.is_dir():
        raise InputError(
            f"There is no directory {str(target.parent)!r} to save {target.name!r} in."
        )
    if target.is_dir():
        hint = (
            " A directory cannot be replaced in one step: remove it first, or save to a "
            f"{path.name + '.zip'!r}."
            if path.suffix == ".zarr"
            else " Give the name of a file."
        )
        raise InputError(f"{str(path)!r} is a directory.{hint}")
    if not (is_zarr(path) or path.suffix.lower() in _NETCDF):
        raise InputError(
            f"{path.name!r} does not say in which format to save. Give it one of the suffixes "
            f"{', '.join((*_NETCDF, '.zarr', '.zarr.zip'))}."
        )
    _check_text(ds)
    ds = ds.assign_attrs({_CHECKSUM: fingerprint(ds)})
    with _naming(path), working_directory(target) as directory:
        temporary = directory / path.name
        if is_zarr(path):
            write_zarr(ds, temporary, directory)
        else:
            # First into memory: a write that fails inside HDF5 leaves objects whose end ends
            # the interpreter.
            temporary.write_bytes(_hdf5(ds) if _has_hdf5() else _netcdf3(ds))
        if temporary.is_file():
            _flush(temporary)
            os.chmod(temporary, _permissions(target))
        os.replace(temporary, target)


def _check_text(ds: xr.Dataset) -> None:
    """Raise for text that netCDF does not take: with a null character or half a character."""
    texts = [("attributes", value) for value in ds.attrs.values() if isinstance(value, str)]
    for name, variable in ds.variables.items():
        attributes = [value for value in variable.attrs.values() if isinstance(value, str)]
        labels = variable.to_numpy().ravel().tolist() if variable.dtype.kind in "OU" else []
        texts += [(str(name), str(text)) for text in (*labels, *attributes)]
    for name in dict.fromkeys(name for name, _ in texts):
        odd = dict.fromkeys(text for own, text in texts if own == name and not _is_storable(text))
        if odd:
            raise InputError(
                f"{listing([text[:80] for text in odd])} in {name!r} holds a character that not "
                "every file format can keep (a null, or half of a pair). Rename it."
            )


def _is_storable(label: str) -> bool:
    try:
        return b"\0" not in label.encode()
    except UnicodeEncodeError:
        return False


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in what the system says of a write, as of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _hdf5(ds: xr.Dataset) -> memoryview:
    """The content of an HDF5-based netCDF file."""
    buffer: Any = BytesIO()
    try:
        ds.to_netcdf(buffer, engine="h5netcdf", format="NETCDF4")
    except ValueError:  # older versions of xarray write to paths alone
        import h5netcdf  # noqa: PLC0415  (an optional package)

        buffer = BytesIO()
        with h5netcdf.File(buffer, "w") as file:
            ds.dump_to_store(xr.backends.H5NetCDFStore(file))
    return memoryview(buffer.getbuffer())


def _netcdf3(ds: xr.Dataset) -> bytes | memoryview:
    """The content of a netCDF 3 file."""
    content: Any = _for_netcdf3(ds).to_netcdf(engine="scipy", format="NETCDF3_64BIT")
    return content if isinstance(content, (bytes, memoryview)) else bytes(content)


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
        {name: (array.dims, text(array.to_numpy())) for name, array in wide.items()}
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
        if not any(size == 0 for size in shape) or np.dtype(dtype).kind not in "biufO":
            raise InputError(f"It says that {str(name)[:80]!r}, which holds nothing, is {shape}.")
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


def kind_of(path: str | PathLike[str]) -> str:
    """What a file says that it holds, empty if nothing that `save_dataset` wrote; not checked."""
    return str(_read(as_path(path)).attrs.get("flashmm_kind", ""))[:80]


def load_dataset(path: str | PathLike[str], *, kind: str) -> xr.Dataset:
    """Read a file that `save_dataset` wrote and check what it is.

    Raises
    ------
    InputError
        If there is no such file, it is damaged or altered, holds another kind of thing, or is not
        made as files of its kind are; see `flashmm.storage.schema`.
    """
    path = as_path(path)
    ds = _read(path)
    check_mark(path, ds, kind)
    with reading(path):
        ds = _from_netcdf3(ds)
        if "feature" in ds and ds["feature"].dtype.kind in "iu":
            ds = ds.assign_coords(feature=ds["feature"].astype(np.int64))
        checksum = ds.attrs.pop(_CHECKSUM, None)
        altered = checksum != fingerprint(ds)
    if altered:
        raise InputError(
            f"{str(path)!r} was altered after it was saved: its content does not match its "
            "checksum. Use an intact copy, or make the statistics afresh."
        )
    with reading(path):
        check_file(ds, kind)
    return ds


@contextmanager
def reading(path: str | PathLike[str]) -> Iterator[None]:
    """Say which file it is whose content is not what it should be."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{str(path)!r} does not hold what it should. {error}") from error
    except (
        *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError),
        *(RecursionError, TypeError, ValueError),
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{str(path)!r} does not hold what it should: {reason}") from error


def _read(path: Path) -> xr.Dataset:
    """Everything in a file, whatever its format."""
    try:
        os.stat(path)
    except FileNotFoundError:
        pass  # said below
    except OSError as error:  # too long a name, no permission, a file taken for a directory
        raise InputError(f"There is no file {str(path)!r} to read: {error.strerror}.") from error
    if path.is_dir() and path.suffix != ".zarr":
        raise InputError(f"There is no file {str(path)!r}: that is a directory.")
    if not (path.is_dir() if path.suffix == ".zarr" else path.is_file()):
        what = ": a .zarr is a directory, and that is a file" if path.is_file() else ""
        raise InputError(f"There is no file {str(path)!r}{what}.")
    engine: Any = None
    if not is_zarr(path):
        with path.open("rb") as file:
            magic = file.read(4)
        if magic.startswith(b"CDF"):
            engine = "scipy"
        elif magic == b"\x89HDF":
            if not _has_hdf5():
                raise InputError(
                    f"{str(path)!r} is HDF5-based; reading it needs h5netcdf and h5py: "
                    "pip install 'multilmm[io]'."
                )
            engine = "h5netcdf"
        else:
            raise InputError(f"{str(path)!r} is not a netCDF file.")
    try:
        if engine is None:
            return read_zarr(path)
        if engine == "h5netcdf":
            check_hdf5(path)
        return xr.load_dataset(path, engine=engine, decode_times=False)
    except InputError:
        raise
    except Exception as error:  # whatever the reader meets in a file that is cut short
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{str(path)!r} cannot be read; it may be damaged: {error}")
