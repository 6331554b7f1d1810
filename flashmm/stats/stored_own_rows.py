"""Rows of the features' own as variables of a Dataset and back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
import xarray as xr

from flashmm.arrays.types import IntArray
from flashmm.exceptions import InputError, listing
from flashmm.stats.fields import GroupSums
from flashmm.stats.own_designs import (
    DesignSums,
    OwnColumns,
    RowProducts,
    add_design_sums,
    pairs_of_columns,
)
from flashmm.storage.files import text

__all__ = [
    "group_designs_from_dataset",
    "group_designs_to_variables",
    "own_rows_from_dataset",
    "own_rows_to_variables",
]

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
_GROUP_FIELDS = tuple(name for name in _DESIGN_FIELDS if name not in ("ZX", "ZZ"))


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


def group_designs_to_variables(designs: Sequence[DesignSums]) -> dict[str, Any]:
    """Designs by group as variables of a Dataset; none where there are no groups.

    Rows of Z'X of all groups stand one below the other, as in `flashmm.stats.stored_groups`.
    """
    if not designs:
        return {}
    start = np.cumsum([0, *(own.q for own in designs)])[:-1]
    variables: dict[str, Any] = {
        f"own_group_{name}": (
            ("sums_group", *_DESIGN_FIELDS[name]),
            np.stack([getattr(own, name) for own in designs]),
        )
        for name in _GROUP_FIELDS
    }
    for name, axis in (("row", "rows"), ("column", "columns")):
        moved = [getattr(own, axis) + first for own, first in zip(designs, start, strict=True)]
        variables[f"own_group_{name}"] = (("sums_pair",), np.concatenate(moved).astype(np.int32))
    for name, dims in (("ZX", ("design", "sums_level", "coef")), ("ZZ", ("design", "sums_pair"))):
        joined = np.concatenate([getattr(own, name) for own in designs], axis=1)
        variables[f"own_group_{name}"] = (dims, joined)
    return variables


def group_designs_from_dataset(
    ds: xr.Dataset, groups: GroupSums | None, designs: DesignSums
) -> tuple[DesignSums, ...]:
    """The inverse, for groups of sums and the designs of all samples."""
    if groups is None:
        return ()
    fields = (*_GROUP_FIELDS, "ZX", "ZZ", "row", "column")
    absent = [f"own_group_{name}" for name in fields if f"own_group_{name}" not in ds]
    if absent:
        raise InputError(f"The designs by group lack {listing(absent)}.")
    value = {name: ds[f"own_group_{name}"].to_numpy() for name in (*_GROUP_FIELDS, "ZX", "ZZ")}
    if not np.array_equal(value["n"].sum(axis=0), designs.n):
        raise InputError("The samples of its designs by group are not those of the designs.")
    row, column = (ds[f"own_group_{name}"].to_numpy().astype(np.intp) for name in ("row", "column"))
    edges = np.cumsum([0, *(part.q for part in groups.parts)])
    if row.size and (row.min() < 0 or row.max() >= edges[-1]):
        raise InputError("The designs by group have rows beyond the columns of Z.")
    result = []
    for i, (first, last) in enumerate(pairwise(edges)):
        here = np.flatnonzero((row >= first) & (row < last))
        rows, columns = row[here] - first, column[here] - first
        keys = rows * (last - first) + columns
        if (columns < rows).any() or (columns >= last - first).any() or (np.diff(keys) <= 0).any():
            raise InputError(f"The design of the group {groups.labels[i]!r:.80} is in disorder.")
        result.append(
            DesignSums(
                **{name: value[name][i] for name in _GROUP_FIELDS},
                ZX=np.ascontiguousarray(value["ZX"][:, first:last]),
                ZZ=np.ascontiguousarray(value["ZZ"][:, here]),
                rows=rows,
                columns=columns,
            )
        )
    return tuple(result)


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
