"""AnnData, in memory, backed, lazy or a file: cells x genes, so samples are rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.arrays.labels import as_pandas, feature_positions, in_order
from flashmm.arrays.types import BoolArray
from flashmm.exceptions import InputError, listing, nearest
from flashmm.sources.dask_arrays import dask_reader, is_dask
from flashmm.sources.disk import disk_reader, is_on_disk
from flashmm.sources.memory import array_reader, sparse_reader
from flashmm.sources.readers import Labelled, Reader
from flashmm.sources.stores import open_store, without_table

__all__ = ["OpenedAnnData", "is_anndata", "matrix_reader", "open_anndata", "read_anndata"]


@dataclass(frozen=True)
class OpenedAnnData:
    """What flashmm uses of an AnnData object.

    Parameters
    ----------
    obs, var
        Annotations of cells and genes, in memory.
    reader
        Its matrix as features x samples.
    """

    obs: pd.DataFrame
    var: pd.DataFrame
    reader: Reader

    def mask(self, mask_var: Any) -> BoolArray | None:
        """Genes to use as a mask over ``var``, by label where it has labels; None for all."""
        if mask_var is None:
            return None
        what = "`mask_var`"
        if isinstance(mask_var, str):
            if mask_var not in self.var:
                columns = [str(column) for column in self.var.columns]
                raise InputError(
                    f"`mask_var` names {mask_var!r}, which is no column of var. "
                    f"{nearest(mask_var, columns)}"
                )
            what, mask_var = f"The column {mask_var!r} of var", self.var[mask_var]
        values = in_order(mask_var, self.var.index, what, of="genes", by_text=True)
        if isinstance(values, list):
            values = np.asarray(values)
        if not pd.api.types.is_bool_dtype(getattr(as_pandas(mask_var), "dtype", values.dtype)):
            raise InputError(f"{what} must hold booleans, one per gene.")
        if pd.isna(values).any():
            raise InputError(f"{what} holds missing values; it must say True or False.")
        mask = np.asarray(values, dtype=bool)
        if mask.shape != (len(self.var),):
            raise InputError(f"{what} has shape {mask.shape}, but there are {len(self.var)} genes.")
        return mask

    def chosen(self, mask_var: Any, features: Any) -> Any:
        """Genes to use by both ways to say it: names, a mask over ``var``, or None for all."""
        mask = self.mask(mask_var)
        if features is None:
            return mask
        names = np.asarray(self.var.index, dtype=object)
        positions = feature_positions(names, features)
        return names[positions if mask is None else positions[mask[positions]]]


def is_anndata(Y: Any) -> bool:
    """Whether this is an AnnData object, the path of one, or an open group that holds one."""
    if isinstance(Y, (str, PathLike)) or _is_group(Y):
        return True
    return type(Y).__name__ == "AnnData" and hasattr(Y, "obs_names")


def _is_group(Y: Any) -> bool:
    """Whether this is a group of h5py or zarr, other than one that holds a sparse matrix."""
    if not is_on_disk(Y) or hasattr(Y, "shape"):
        return False
    if "obs" in Y and "var" in Y:
        return True
    return "encoding-type" not in Y.attrs and not {"data", "indices", "indptr"} <= set(Y)


def read_anndata(Y: Any) -> Labelled:
    """The matrix X of an AnnData object or file, with the names of its genes and cells."""
    opened = open_anndata(Y)
    return Labelled(opened.reader, opened.var.index, opened.obs.index)


def open_anndata(adata: Any, layer: str | None = None) -> OpenedAnnData:
    """Open an AnnData object, a path or an open group, without reading its matrix."""
    if isinstance(adata, (str, PathLike)):
        return _open_path(Path(fspath(adata)), layer)
    if is_on_disk(adata) and not hasattr(adata, "shape"):
        return _open_group(adata, layer, str(getattr(adata, "name", None) or "/"))
    if not is_anndata(adata):
        raise InputError(
            "`adata` must be an AnnData object or the path of an .h5ad or .zarr, or of a table "
            f"inside one, or an open group; it is {type(adata).__name__}."
        )
    values = adata.X if layer is None else _layer(adata.layers, layer)
    if values is None:
        raise InputError(
            f"`adata` has no X. Name one of its layers: {listing(_named(adata.layers))}."
        )
    return OpenedAnnData(
        _in_memory(adata.obs), _in_memory(adata.var), matrix_reader(values, transposed=True)
    )


def _layer(layers: Mapping[str, Any], layer: str) -> Any:
    if layer not in layers:
        raise InputError(f"`adata` has no layer {layer!r}. {nearest(layer, _named(layers))}")
    return layers[layer]


def _named(layers: Iterable[Any]) -> list[str]:
    """Names of layers; since anndata 0.13 X is among them, as None."""
    return [str(name) for name in layers if name is not None]


def _in_memory(frame: Any) -> pd.DataFrame:
    """A frame; AnnData's lazy frames are loaded."""
    return frame if isinstance(frame, pd.DataFrame) else frame.to_memory()


def matrix_reader(values: Any, *, transposed: bool) -> Reader:
    """A matrix without labels, of whatever kind; ``transposed``: it is samples x features."""
    if is_dask(values):
        return dask_reader(values, transposed=transposed)
    if hasattr(values, "group") and hasattr(values, "format"):  # a backed sparse dataset
        values = values.group
    if is_on_disk(values):
        return disk_reader(values, transposed=transposed)
    if sp.issparse(values):
        return sparse_reader(values, transposed=transposed)
    return array_reader(values.T if transposed else values)


def _open_path(path: Path, layer: str | None) -> OpenedAnnData:
    return _open_group(open_store(path), layer, str(path))


def _open_group(group: Any, layer: str | None, name: str) -> OpenedAnnData:
    """An AnnData table in an open group; ``name`` for messages."""
    try:
        from anndata.io import read_elem  # noqa: PLC0415  (an optional package)
    except ImportError:
        raise InputError(
            f"Reading {name!r} needs anndata: pip install 'multilmm[anndata]'."
        ) from None
    if hasattr(group, "shape"):
        raise InputError(f"{name!r} is an array, not an AnnData table.")
    try:
        if not ("obs" in group and "var" in group):
            raise without_table(group, name)
        if layer is not None:
            values = _layer(group.get("layers", {}), layer)
        elif "X" in group:
            values = group["X"]
        else:
            layers = listing(group.get("layers", {}))
            raise InputError(f"{name!r} has no X. Name one of its layers: {layers}.")
        obs, var = (_frame(group[axis], axis, read_elem) for axis in ("obs", "var"))
        reader = disk_reader(values, transposed=True)
    except InputError as error:
        message = str(error)
        raise InputError(message if name in message else f"{name!r}: {message}") from error
    except Exception as error:  # whatever the reader meets in a damaged file
        raise InputError(f"{name!r} cannot be read; it may be damaged: {error}") from error
    if reader.shape != (len(var), len(obs)):
        raise InputError(
            f"{name!r} does not fit together: {layer or 'X'} has {reader.shape[1]} rows and "
            f"{reader.shape[0]} columns, obs {len(obs)} and var {len(var)} rows."
        )
    return OpenedAnnData(obs, var, reader)


def _frame(group: Any, axis: str, read_elem: Callable[[Any], Any]) -> pd.DataFrame:
    """The table ``obs`` or ``var``, every column of its length."""
    frame = read_elem(group)
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"{axis} is no table.")
    if hasattr(group, "shape"):  # one array of records, in old files
        return frame
    for name in frame.columns:
        shape = getattr(group[name], "shape", None) if name in group else None
        if shape is not None and shape != (len(frame),):
            raise InputError(
                f"Column {name!r} of {axis} has the shape {shape}; {axis} has {len(frame)} rows."
            )
    return frame
