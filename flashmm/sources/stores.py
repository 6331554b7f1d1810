"""Stores on disk, opened for reading: HDF5 files, zarr directories and archives, places inside.

``cells.zarr/tables/table`` is the group ``tables/table`` of the store ``cells.zarr``, where
SpatialData keeps its tables; HDF5 files (``cells.h5mu/mod/rna``) work alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashmm.exceptions import InputError, listing, nearest

__all__ = ["open_store", "without_table"]

_HDF5 = (".h5ad", ".h5mu", ".h5", ".hdf5")


def open_store(path: Path) -> Any:
    """The group of h5py or zarr that a path leads to.

    Raises
    ------
    InputError
        If there is nothing, the store is damaged, or its package is not installed.
    """
    store = _store_of(path)
    if store is None:
        raise InputError(
            f"{str(path)!r} is neither an .h5ad nor a .zarr file, nor a place inside one."
        )
    if not store.exists():
        raise InputError(f"There is no file {str(store)!r}.")
    root = _open_hdf5(store) if store.suffix in _HDF5 else _open_zarr(store)
    if store == path:
        return root
    try:
        return _inside(root, path.relative_to(store).as_posix(), store)
    except InputError:
        raise
    except Exception as error:  # whatever h5py and zarr meet in a damaged file
        raise InputError(f"{str(store)!r} cannot be read; it may be damaged: {error}") from error


def _inside(root: Any, place: str, store: Path) -> Any:
    found: Any = root
    steps: list[str] = []
    for step in place.split("/"):
        names = [] if hasattr(found, "shape") else list(found)
        if step not in names:
            here = f"{'/'.join(steps)!r} of {str(store)!r}" if steps else repr(str(store))
            hint = nearest(step, names) if names else ""
            raise InputError(f"There is no {step!r} in {here}. {hint}".rstrip())
        found = found[step]
        steps.append(step)
    return found


def _store_of(path: Path) -> Path | None:
    """The store that a path names or leads into; the innermost one that exists, if any does."""
    named = [
        part
        for part in (path, *path.parents)
        if part.suffix in (*_HDF5, ".zarr") or part.name.endswith(".zarr.zip")
    ]
    return next((part for part in named if part.exists()), named[0] if named else None)


def _tables_inside(group: Any, depth: int = 3) -> list[str]:
    """Places inside a group that hold an AnnData table, at most ``depth`` levels down."""
    found = []
    for name in group:
        try:
            inner = group[name]
        except Exception:  # a link that leads nowhere
            continue
        if hasattr(inner, "shape"):
            continue
        if "obs" in inner and "var" in inner:
            found.append(name)
        elif depth > 1:
            found += [f"{name}/{place}" for place in _tables_inside(inner, depth - 1)]
    return found


def _open_hdf5(path: Path) -> Any:
    try:
        import h5py  # noqa: PLC0415  (an optional package, which anndata requires)
    except ImportError:
        raise InputError(f"Reading {path.name!r} needs h5py: pip install 'multilmm[io]'.") from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read; it may be damaged: {error}") from error


def _open_zarr(path: Path) -> Any:
    try:
        import zarr  # noqa: PLC0415  (an optional package)
    except ImportError:
        raise InputError(
            f"Reading {path.name!r} needs zarr: pip install 'multilmm[zarr]'."
        ) from None
    try:
        store = zarr.storage.ZipStore(path, mode="r") if path.suffix == ".zip" else path
        return zarr.open_group(store, mode="r")
    except Exception as error:  # zarr's errors for what is no group vary with its version
        raise InputError(f"{str(path)!r} cannot be read as zarr: {error}") from error


def without_table(group: Any, name: str) -> InputError:
    """Why a group is no AnnData, with the tables that are inside it."""
    inside = _tables_inside(group)
    if inside:
        return InputError(
            f"{name!r} is no AnnData table, but holds {listing(inside)}. Add that to the path: "
            f"{name.rstrip('/') + '/' + inside[0]!r}."
        )
    absent = [part for part in ("obs", "var") if part not in group]
    return InputError(f"{name!r} is no AnnData file: it has no {listing(absent)}.")
