"""Datasets as zarr: a directory, or one file that holds it (``.zarr.zip``)."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import xarray as xr

from flashmm.exceptions import InputError
from flashmm.storage.sizes import check_zarr

__all__ = ["is_zarr", "read_zarr", "write_zarr"]


def is_zarr(path: Path) -> bool:
    """Whether a path asks for zarr."""
    return path.name.endswith((".zarr", ".zarr.zip"))


def write_zarr(ds: xr.Dataset, path: Path, directory: Path) -> None:
    """Write to ``path``, a directory or a zip file; ``directory`` is for what is only passing."""
    _require_zarr(path)
    as_file = path.suffix == ".zip"
    target = directory / "content.zarr" if as_file else path
    with warnings.catch_warnings():  # version 2 of the format is what every reader knows
        warnings.simplefilter("ignore")
        ds.to_zarr(target, mode="w", zarr_format=2, consolidated=True)
    if as_file:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(target.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(target).as_posix())


def read_zarr(path: Path) -> xr.Dataset:
    """Read what `write_zarr` wrote, all of it."""
    zarr = _require_zarr(path)
    if path.suffix != ".zip":
        check_zarr(zarr.open_group(path, mode="r"), path)
        return xr.load_dataset(path, engine="zarr", decode_times=False)
    store = zarr.storage.ZipStore(path, mode="r")
    try:
        check_zarr(zarr.open_group(store, mode="r"), path)
        return xr.load_dataset(store, engine="zarr", consolidated=True, decode_times=False)
    finally:
        store.close()


def _require_zarr(path: Path) -> Any:
    try:
        import zarr  # noqa: PLC0415  (an optional package)
    except ImportError:
        raise InputError(f"{path.name!r} needs zarr: pip install 'multilmm[zarr]'.") from None
    return zarr
