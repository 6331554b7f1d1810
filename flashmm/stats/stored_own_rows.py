"""Rows of the features' own as variables of a Dataset and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import xarray as xr

from flashmm.arrays.types import IntArray
from flashmm.stats.own_designs import (
    DesignSums,
    OwnColumns,
    RowProducts,
    add_design_sums,
    pairs_of_columns,
)
from flashmm.storage.files import text

__all__ = ["own_rows_from_dataset", "own_rows_to_variables"]

_DESIGN_FIELDS = {
    "n": ("design",),
    "log_weights": ("design",),
    "total": ("design",),
    "signature": ("design", "signature_"),
    "X_sums": ("design", "coef"),
    "WX_sums": ("design", "coef"),
    "XX": ("design", "coef", "coef_"),
    "ZX": ("design", "level", "coef"),
    "ZZ": ("design", "pair"),
}


def own_rows_to_variables(
    designs: DesignSums, pattern: IntArray, own: OwnColumns
) -> dict[str, Any]:
    """Designs, who has which (shape (m,)), and own covariates, as variables of a Dataset."""
    variables: dict[str, Any] = {
        f"own_{name}": (dims, getattr(designs, name)) for name, dims in _DESIGN_FIELDS.items()
    }
    variables["own_row"] = (("pair",), designs.rows.astype(np.int32))
    variables["own_column"] = (("pair",), designs.columns.astype(np.int32))
    variables["pattern"] = (("feature",), pattern.astype(np.int32))
    if own.names:
        table = np.array([[i in of for i in range(len(own.names))] for of in own.of], np.int8)
        variables["own_covariate"] = (("covariate",), text(list(own.names)))
        variables["own_of"] = (("coef", "covariate"), table)
    return variables


def own_rows_from_dataset(
    ds: xr.Dataset, p: int, q: int
) -> tuple[DesignSums, IntArray, OwnColumns]:
    """The inverse, for p coefficients and q columns of Z; also where rows of X and Z were kept."""
    pattern = ds["pattern"].to_numpy().astype(np.intp)
    own = OwnColumns.none(p)
    if "observed" in ds:
        return _designs_of_rows(ds, q), pattern, own
    if "own_covariate" in ds:
        names = tuple(str(name) for name in ds["own_covariate"].to_numpy())
        table = ds["own_of"].to_numpy().astype(bool)
        own = OwnColumns(names, tuple(tuple(np.flatnonzero(row).tolist()) for row in table))
    designs = DesignSums(
        **{name: ds[f"own_{name}"].to_numpy() for name in _DESIGN_FIELDS},
        rows=ds["own_row"].to_numpy().astype(np.intp),
        columns=ds["own_column"].to_numpy().astype(np.intp),
    )
    return designs, pattern, own


def _designs_of_rows(ds: xr.Dataset, q: int) -> DesignSums:
    """Sums of designs that were kept as rows of X and Z, weighted, and who has which."""
    n = ds.sizes["sample"]
    entries: Any = (ds["Z_row"].to_numpy(), ds["Z_column"].to_numpy())
    Z = sp.csr_array((ds["Z_value"].to_numpy(), entries), shape=(n, q))
    log_weight = ds["log_weight"].to_numpy()
    root = np.exp(-0.5 * log_weight)[:, None]
    packed = ds["observed"].to_numpy().astype(np.int8).view(np.uint8)
    observed = np.unpackbits(packed, axis=1, count=n).astype(np.float64)
    X = ds["X"].to_numpy() * root
    pairs = pairs_of_columns(Z)
    own = OwnColumns.none(X.shape[1])
    products = RowProducts.of(X, sp.csr_array(Z * root), own, pairs, slice(0, n), n)
    designs = DesignSums.zeros(observed.shape[0], X.shape[1], q, pairs)
    weights = observed * np.exp(log_weight)
    add_design_sums(designs, np.arange(designs.count), products, weights)
    return designs
