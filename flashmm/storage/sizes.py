"""Whether a file says it holds more than it can: read from its header, before anything is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashmm.exceptions import InputError

__all__ = ["check_hdf5", "check_zarr"]

# What netCDF calls dimensions without a variable; such datasets hold nothing and are not read.
_BARE_DIMENSION = "This is a netCDF dimension but not a netCDF variable"
# Zeros compress well; more than this no compressor of zarr reaches.
_COMPRESSION = 256
_LEAST = 2**16


def check_hdf5(path: Path) -> None:
    """Raise for an HDF5 file whose datasets do not fit into it, or are elsewhere."""
    import h5py  # noqa: PLC0415  (an optional package)

    size, total = path.stat().st_size, 0
    with h5py.File(path, "r") as file:
        for name in file:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{str(path)!r} is refused: {name!r} is a link to elsewhere.")
            dataset = file[name]
            if not isinstance(dataset, h5py.Dataset):
                raise InputError(f"{str(path)!r} is refused: {name!r} is no array.")
            if dataset.is_virtual or dataset.external:
                raise InputError(f"{str(path)!r} is refused: {name!r} is held elsewhere.")
            if dataset.shape is None:
                raise InputError(f"{str(path)!r} is refused: {name!r} has no values.")
            label = dataset.attrs.get("NAME", b"")
            label = label if isinstance(label, bytes) else str(label).encode()
            if not label.startswith(_BARE_DIMENSION.encode()):
                total += math.prod(dataset.shape) * dataset.dtype.itemsize
            if total > size:
                raise _too_large(path, name)


def check_zarr(group: Any, path: Path) -> None:
    """Raise for a zarr store whose arrays cannot be in it."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    total = 0
    for name, array in _arrays(group, path):
        total += math.prod(array.shape) * array.dtype.itemsize
        if total > _COMPRESSION * size + _LEAST:
            raise _too_large(path, name)


def _arrays(group: Any, path: Path) -> Iterator[tuple[str, Any]]:
    for name in group:
        array = group[name]
        if not hasattr(array, "shape"):
            raise InputError(f"{str(path)!r} is refused: {name!r} is no array.")
        yield name, array


def _too_large(path: Path, name: str) -> InputError:
    return InputError(
        f"{str(path)!r} is refused: {name!r} says it holds more than the whole file does."
    )
