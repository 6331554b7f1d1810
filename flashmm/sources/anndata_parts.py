"""AnnData inside of MuData and SpatialData objects, told by what they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from flashmm.exceptions import InputError, listing, nearest

__all__ = ["part_of"]


def part_of(adata: Any, modality: str | None) -> Any:
    """The AnnData object that is meant: of MuData a modality, of SpatialData a table.

    The obs of a modality gains the columns of MuData's obs that it lacks, matched by the names of
    its cells, whose order is its own.
    """
    parts = _parts(adata)
    if parts is None:
        if modality is not None:
            raise InputError(
                "`modality` names a part of a MuData or SpatialData object; `adata` is "
                f"{type(adata).__name__}."
            )
        return adata
    names = [str(name) for name in parts]
    if modality is None and len(names) != 1:
        raise InputError(
            f"The {type(adata).__name__} object has {len(names)} parts; say which: modality=... "
            f"Available: {listing(names)}."
            if names
            else f"The {type(adata).__name__} object holds no AnnData."
        )
    name = names[0] if modality is None else modality
    if name not in names:
        raise InputError(
            f"The {type(adata).__name__} object has no part {name!r}. {nearest(str(name), names)}"
        )
    part = parts[name]
    shared = getattr(adata, "obs", None)
    if isinstance(shared, pd.DataFrame):
        return _with_shared(part, shared, name)
    return part


def _parts(adata: Any) -> Mapping[str, Any] | None:
    """The AnnData objects inside, by name; None for another object."""
    for attribute in ("mod", "tables"):
        parts = getattr(adata, attribute, None)
        # MuData has an X too, but no AnnData has parts.
        if isinstance(parts, Mapping) and all(hasattr(part, "obs") for part in parts.values()):
            return parts
    return None


def _with_shared(part: Any, shared: pd.DataFrame, name: str) -> Any:
    """An AnnData object whose obs has the columns of the whole too; the object is not changed."""
    own = part.obs
    added = {
        column: values
        for column, values in shared.items()
        if column not in own.columns and not str(column).startswith(f"{name}:")
    }
    if not added:
        return part
    for index, what in ((shared.index, "The MuData object"), (own.index, f"Its part {name!r}")):
        if not index.is_unique:
            raise InputError(
                f"{what} has cells of the same name: {listing(index[index.duplicated()])}. Make "
                "the names unique, or pass the part itself."
            )
    absent = own.index[~own.index.isin(shared.index)]
    if len(absent):
        raise InputError(
            f"The MuData object lacks cells of its part {name!r}: {listing(absent)}. Call its "
            "update(), or pass the part itself."
        )
    obs = own.assign(**{str(column): values.reindex(own.index) for column, values in added.items()})
    return _Seen(part, obs)


class _Seen:
    """An AnnData object with another obs."""

    def __init__(self, part: Any, obs: pd.DataFrame) -> None:
        self._part, self.obs = part, obs
        self.obs_names = obs.index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


_Seen.__name__ = "AnnData"  # what it stands for, to whoever asks by name
