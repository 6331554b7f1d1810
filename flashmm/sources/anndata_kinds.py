"""AnnData, in memory, backed, lazy or a file: cells x genes, so samples are rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.arrays.labels import as_pandas, in_order
from flashmm.exceptions import InputError, listing, nearest
from flashmm.sources.dask_arrays import dask_reader, is_dask
from flashmm.sources.disk import disk_reader, is_on_disk
from flashmm.sources.memory import array_reader, sparse_reader
from flashmm.sources.pieces import Labelled, Reader

if TYPE_CHECKING:
    from numpy.typing import NDArray

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

    def mask(self, mask_var: Any) -> NDArray[np.bool_] | None:
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


def is_anndata(Y: Any) -> bool:
    """Whether this is an AnnData object or the path of one."""
    if isinstance(Y, (str, PathLike)):
        return True
    return type(Y).__name__ == "AnnData" and hasattr(Y, "obs_names")


def read_anndata(Y: Any) -> Labelled:
    """The matrix X of an AnnData object or file, with the names of its genes and cells."""
    opened = open_anndata(Y)
    return Labelled(opened.reader, opened.var.index, opened.obs.index)


def open_anndata(adata: Any, layer: str | None = None) -> OpenedAnnData:
    """Open an AnnData object, or a path to an .h5ad or .zarr, without reading its matrix."""
    if isinstance(adata, (str, PathLike)):
        return _open_path(Path(fspath(adata)), layer)
    if not is_anndata(adata):
        raise InputError(
            "`adata` must be an AnnData object or the path of an .h5ad or .zarr; it is "
            f"{type(adata).__name__}."
        )
    values = adata.X if layer is None else _layer(adata.layers, layer)
    if values is None:
        raise InputError(
            f"`adata` has no X. Name one of its layers: {listing(list(adata.layers))}."
        )
    return OpenedAnnData(
        _in_memory(adata.obs), _in_memory(adata.var), matrix_reader(values, transposed=True)
    )


def _layer(layers: Mapping[str, Any], layer: str) -> Any:
    if layer not in layers:
        raise InputError(f"`adata` has no layer {layer!r}. {nearest(layer, list(layers))}")
    return layers[layer]


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
    if transposed:
        values = values.T
    return sparse_reader(values) if sp.issparse(values) else array_reader(values)


def _open_path(path: Path, layer: str | None) -> OpenedAnnData:
    if path.suffix not in (".h5ad", ".zarr"):
        raise InputError(f"{str(path)!r} is neither an .h5ad nor a .zarr file.")
    if not path.exists():
        raise InputError(f"There is no file {str(path)!r}.")
    try:
        from anndata.io import read_elem  # noqa: PLC0415  (an optional package)
    except ImportError:
        raise InputError(
            f"Reading {path.name!r} needs anndata: pip install 'flashmm[anndata]'."
        ) from None
    root = _open_hdf5(path) if path.suffix == ".h5ad" else _open_zarr(path)
    absent = [name for name in ("obs", "var") if name not in root]
    if absent:
        raise InputError(f"{str(path)!r} is no AnnData file: it has no {listing(absent)}.")
    if layer is not None:
        values = _layer(root.get("layers", {}), layer)
    elif "X" in root:
        values = root["X"]
    else:
        layers = listing(root.get("layers", {}))
        raise InputError(f"{str(path)!r} has no X. Name one of its layers: {layers}.")
    try:
        obs, var = read_elem(root["obs"]), read_elem(root["var"])
    except Exception as error:  # whatever the reader meets in a damaged file
        raise InputError(f"{str(path)!r} cannot be read; it may be damaged: {error}") from error
    return OpenedAnnData(obs, var, disk_reader(values, transposed=True))


def _open_hdf5(path: Path) -> Any:
    import h5py  # noqa: PLC0415  (an optional package, which anndata requires)

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read; it may be damaged: {error}") from error


def _open_zarr(path: Path) -> Any:
    try:
        import zarr  # noqa: PLC0415  (an optional package)
    except ImportError:
        raise InputError(
            f"Reading {path.name!r} needs zarr: pip install 'flashmm[zarr]'."
        ) from None
    try:
        return zarr.open_group(path, mode="r")
    except Exception as error:  # zarr's errors for what is no group vary with its version
        raise InputError(f"{str(path)!r} cannot be read as zarr: {error}") from error
