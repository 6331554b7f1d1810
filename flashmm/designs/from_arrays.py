"""Designs from matrices: the gate for X, Z and the components of Z."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.arrays.labels import checked_labels, is_default
from flashmm.arrays.numeric import float_array
from flashmm.designs.design import CovarianceStructure, Design, RandomTerm
from flashmm.exceptions import InputError
from flashmm.sources import Source, Transform, make_source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["as_structure", "design_and_source", "design_from_arrays"]


def design_from_arrays(
    X: Any, Z: Any, *, components: Any = None, coef_names: Sequence[str] | None = None
) -> Design:
    """Design from matrices: X (n, p), Z (n, q), and the components of Z."""
    if coef_names is None and isinstance(X, pd.DataFrame) and not is_default(X.columns):
        coef_names = list(X.columns)
    _check_same_rows(X, Z)
    if components is None and isinstance(Z, pd.DataFrame):
        labels = checked_labels(list(Z.columns), Z.shape[1], "column of Z", default=np.array([]))
        levels = tuple(str(name) for name in labels)
        components = CovarianceStructure((RandomTerm("Z1", "Z1", levels, covariance="identity"),))
    X = _finite_matrix(X, "X")
    Z = _finite_sparse(Z) if sp.issparse(Z) else sp.csr_array(_finite_matrix(Z, "Z"))
    if X.shape[0] != Z.shape[0]:
        raise InputError(f"X has {X.shape[0]} rows (samples), but Z has {Z.shape[0]}.")
    p = X.shape[1]
    default = np.array([f"x{i + 1}" for i in range(p)], dtype=object)
    names = checked_labels(coef_names, p, "coefficient", default=default)
    return Design(X, Z, tuple(str(x) for x in names), as_structure(components, Z.shape[1]))


def as_structure(components: Any, q: int) -> CovarianceStructure:
    """A covariance structure over q columns from sizes, a dict of sizes or a structure."""
    if isinstance(components, CovarianceStructure):
        if components.q != q:
            raise InputError(f"The components own {components.q} columns, but Z has {q}.")
        return components
    if components is None:
        components = [q]
    if isinstance(components, Mapping):
        labels = checked_labels(
            list(components), len(components), "component", default=np.array([])
        )
        names, given = [str(name) for name in labels], list(components.values())
    else:
        given = list(np.atleast_1d(np.asarray(components)))
        names = [f"Z{i + 1}" for i in range(len(given))]
    try:
        sizes = [operator.index(size.item() if hasattr(size, "item") else size) for size in given]
    except TypeError:
        raise InputError(
            f"`components` must be whole numbers, the sizes of the components; not {given!r}."
        ) from None
    if any(size < 1 for size in sizes) or sum(sizes) != q:
        raise InputError(
            f"`components` gives the sizes {sizes}, which must be positive and sum to the {q} "
            "columns of Z."
        )
    return CovarianceStructure(
        tuple(
            RandomTerm(name, name, tuple(str(i + 1) for i in range(size)), covariance="identity")
            for name, size in zip(names, sizes, strict=True)
        )
    )


def _check_same_rows(X: Any, Z: Any) -> None:
    """Raise if X and Z both label their rows, and differently."""
    if not (isinstance(X, pd.DataFrame) and isinstance(Z, pd.DataFrame)):
        return
    labelled = not (is_default(X.index) or is_default(Z.index))
    if labelled and len(X) == len(Z) and not X.index.equals(Z.index):
        row = int(np.flatnonzero(np.asarray(X.index != Z.index))[0])
        raise InputError(
            f"The rows of X and Z carry different labels: row {row} is {X.index[row]!r} in X and "
            f"{Z.index[row]!r} in Z. Bring them into the same order."
        )


def _finite_matrix(values: Any, name: str) -> FloatArray:
    columns = list(values.columns) if isinstance(values, pd.DataFrame) else None
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy(dtype=object if _has_extension(values) else None)
    matrix = float_array(values, name)
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2:
        raise InputError(f"{name} must have two dimensions; it has {matrix.ndim}.")
    if not np.isfinite(matrix).all():
        row, column = (int(x) for x in np.argwhere(~np.isfinite(matrix))[0])
        label = column if columns is None else repr(str(columns[column]))
        raise InputError(f"{name} is missing or infinite in row {row}, column {label}.")
    return matrix


def _has_extension(frame: pd.DataFrame) -> bool:
    return any(pd.api.types.is_extension_array_dtype(dtype) for dtype in frame.dtypes)


def _finite_sparse(Z: Any) -> sp.csr_array:
    if Z.dtype.kind not in "iufb":
        raise InputError(f"Z must be numeric; its dtype is {Z.dtype}.")
    Z = sp.csr_array(Z).astype(np.float64)
    if not np.isfinite(Z.data).all():
        entries = Z.tocoo()
        first = int(np.flatnonzero(~np.isfinite(entries.data))[0])
        raise InputError(
            f"Z is missing or infinite in row {entries.row[first]}, column {entries.col[first]}."
        )
    Z.sum_duplicates()
    return Z


def design_and_source(
    Y: Any,
    X: Any,
    Z: Any,
    components: Any,
    coef_names: Sequence[str] | None,
    transform: Transform,
    feature_names: Sequence[object] | None,
) -> tuple[Design, Source]:
    """The design that matrices make, and Y with its samples in the order of theirs."""
    design = design_from_arrays(X, Z, components=components, coef_names=coef_names)
    labelled = next((part for part in (X, Z) if isinstance(part, pd.DataFrame)), None)
    samples = None if labelled is None else labelled.index
    source = make_source(Y, transform=transform, samples=samples, n=design.n)
    return design, source if feature_names is None else source.renamed(feature_names)
