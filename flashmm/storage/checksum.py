"""A fingerprint of a Dataset: the same after any file format, another after any change."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["fingerprint"]


def fingerprint(ds: xr.Dataset) -> str:
    """SHA-256 over names, dims, shapes and contents of all variables, and the attrs.

    Formats change the width of integers and the type of text, so both are brought to one form.
    """
    digest = hashlib.sha256()
    for name in sorted(str(name) for name in ds.variables):
        array = ds.variables[name]
        digest.update(repr((name, array.dims, array.shape)).encode())
        digest.update(_content(array.to_numpy()))
    for name in sorted(str(name) for name in ds.attrs):
        value = ds.attrs[name]
        text = value if isinstance(value, str) else repr(float(value))
        digest.update(repr((name, text)).encode())
    return digest.hexdigest()


def _content(values: np.ndarray[Any, Any]) -> bytes:
    if values.size == 0:  # whose type formats do not keep
        return b""
    if values.dtype.kind in "iub":
        return np.ascontiguousarray(values, dtype="<i8").tobytes()
    if values.dtype.kind == "f":
        return np.ascontiguousarray(values, dtype="<f8").tobytes()
    return repr([str(value) for value in values.ravel().tolist()]).encode()
