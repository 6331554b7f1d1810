"""Designs from matrices: the gate for X, Z and the components of Z."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.arrays.labels import (
    as_pandas,
    axis_labels,
    by_name,
    checked_labels,
    in_order,
    is_default,
    label_positions,
)
from flashmm.arrays.numeric import float_array
from flashmm.arrays.sparse import check_sparse
from flashmm.arrays.types import FloatArray
from flashmm.designs.design import INTERCEPT, CovarianceStructure, Design, RandomTerm
from flashmm.designs.per_sample import positive
from flashmm.exceptions import InputError, listing
from flashmm.sources import Source, Transform, make_source

__all__ = [
    "as_matrix",
    "as_structure",
    "check_rows_are_known",
    "columns_like",
    "design_and_source",
    "design_from_arrays",
    "matched_columns",
    "named_levels",
    "row_labels",
    "weights_of",
]


def design_from_arrays(
    X: Any, Z: Any, *, components: Any = None, coef_names: Sequence[str] | None = None
) -> Design:
    """Design from matrices: X (n, p), Z (n, q), and the components of Z.

    The columns of a labelled Z name the levels. Those of a compound symmetric term are the columns
    of its effects; the design has them in the directions in which their covariance is diagonal.
    """
    X = as_matrix(X)
    Z = _no_columns(X) if Z is None else as_matrix(Z)
    _check_same_rows(X, Z)
    columns = axis_labels(X, 1)
    if coef_names is None:
        coef_names = None if columns is None else list(columns)
    elif columns is not None:
        coef_names = in_order(coef_names, columns, "`coef_names`", of="columns of X", by_text=True)
    components = named_levels(components, axis_labels(Z, 1))
    X = _finite_matrix(X, "X")
    Z = _finite_sparse(Z) if sp.issparse(Z) else sp.csr_array(_finite_matrix(Z, "Z"))
    if X.shape[0] != Z.shape[0]:
        raise InputError(f"X has {X.shape[0]} rows (samples), but Z has {Z.shape[0]}.")
    p = X.shape[1]
    default = np.array([f"x{i + 1}" for i in range(p)], dtype=object)
    names = checked_labels(coef_names, p, "coefficient", default=default)
    structure = as_structure(components, Z.shape[1])
    if structure.turned:
        Z = sp.csr_array(Z @ structure.turn())
    return Design(X, Z, tuple(str(x) for x in names), structure)


def _no_columns(X: Any) -> Any:
    """Z of a model without random effects: the rows of X, no column."""
    rows = np.shape(X)[0] if np.ndim(X) else 0
    return pd.DataFrame(index=X.index) if isinstance(X, pd.DataFrame) else np.empty((rows, 0))


def as_structure(components: Any, q: int) -> CovarianceStructure:
    """A covariance structure over q columns from sizes, a dict of sizes or a structure."""
    if isinstance(components, CovarianceStructure):
        if components.q != q:
            raise InputError(f"The components own {components.q} columns, but Z has {q}.")
        return components
    if components is None:
        components = [q] if q else []
    sizes_by_name = by_name(components)
    if sizes_by_name is not None:
        labels = checked_labels(list(sizes_by_name), len(sizes_by_name), "component")
        names, given = [str(name) for name in labels], list(sizes_by_name.values())
    else:
        given = list(np.atleast_1d(np.asarray(components)))
        names = [f"Z{i + 1}" for i in range(len(given))]
    try:
        sizes = [operator.index(size.item() if hasattr(size, "item") else size) for size in given]
    except TypeError:
        raise InputError(
            f"`components` must be whole numbers, the sizes of the components; not "
            f"{listing(given)}."
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


def matched_columns(Z: Any, structure: CovarianceStructure) -> Any:
    """Z with its columns in the order of a structure, by label where it has labels.

    Labels are the levels, where no two terms share one, or the names of the columns,
    ``Subject[308]``.

    Raises
    ------
    InputError
        If Z lacks a column, or has one more.
    """
    Z = as_matrix(Z)
    columns = axis_labels(Z, 1)
    if columns is None:
        return Z
    levels = [
        level for term in structure.terms for level in term.levels for _ in range(len(term.effects))
    ]
    own = {str(name) for name in columns}
    wanted = structure.column_names
    if len(set(levels)) == len(levels) and len(own & set(levels)) > len(own & set(wanted)):
        wanted = tuple(levels)
    extra = [name for name in columns if str(name) not in set(wanted)]
    if extra:
        raise InputError(
            f"Z has columns that the model does not know by name: {listing(extra)}. Its columns "
            f"are {listing(wanted, 3)}."
        )
    return Z.iloc[:, label_positions(columns, wanted, "Z", of="columns of the model", by_text=True)]


def columns_like(Z: Any, structure: CovarianceStructure) -> tuple[Any, CovarianceStructure]:
    """Z with its columns as some random terms have them, and the terms that they make.

    The columns of a single component may be new levels; others are matched by label.
    """
    columns, terms = axis_labels(Z, 1), structure.terms
    if columns is None:
        return Z, structure
    if len(terms) == 1 and terms[0].covariance == "identity" and terms[0].effects == (INTERCEPT,):
        own = dict(zip(terms[0].column_names, terms[0].levels, strict=True))
        levels = tuple(own.get(str(name), str(name)) for name in columns)
        return Z, CovarianceStructure((replace(terms[0], levels=levels),))
    return matched_columns(Z, structure), structure


def _check_same_rows(X: Any, Z: Any) -> None:
    """Raise if X and Z both label their rows, and differently."""
    if not (isinstance(X, pd.DataFrame) and isinstance(Z, pd.DataFrame)) or len(X) != len(Z):
        return
    if X.index.equals(Z.index):
        return
    # Rows that count 0, 1, 2, ... are labelled beside the same numbers in another order.
    if (is_default(X.index) or is_default(Z.index)) and not X.index.isin(Z.index).all():
        return
    row = int(np.flatnonzero(np.asarray(X.index != Z.index))[0])
    raise InputError(
        f"The rows of X and Z carry different labels: row {row} is {X.index[row]!r} in X and "
        f"{Z.index[row]!r} in Z. Bring them into the same order."
    )


def row_labels(X: Any, Z: Any) -> pd.Index | None:
    """Labels of the rows of X and Z; those that just count only where there are no others."""
    matrices = (as_matrix(part) for part in (X, Z))
    frames = [part.index for part in matrices if isinstance(part, pd.DataFrame)]
    return next((index for index in frames if not is_default(index)), next(iter(frames), None))


def as_matrix(values: Any) -> Any:
    """What carries labels as a DataFrame, everything else as it is."""
    if isinstance(values, list | tuple) and any(np.ndim(part) == 2 for part in values):
        raise InputError(
            "X and Z are one matrix each. Put the blocks of Z side by side, "
            "numpy.hstack([Z1, Z2]), and say where they end: components=[10, 5], or a dict of "
            "their names."
        )
    values = as_pandas(values)
    return values.to_frame() if isinstance(values, pd.Series) else values


def named_levels(components: Any, columns: Any) -> Any:
    """Components of a Z with named columns, whose levels have these names.

    A structure keeps the names that it has; without names of columns nothing changes.
    """
    if columns is None or isinstance(components, CovarianceStructure):
        return components
    levels = tuple(str(name) for name in checked_labels(columns, len(columns), "column of Z"))
    structure = as_structure(components, len(levels))
    terms = (
        replace(term, levels=levels[start : start + term.n_columns])
        for term, start in zip(structure.terms, structure.offsets, strict=False)
    )
    return CovarianceStructure(tuple(terms))


def _finite_matrix(values: Any, name: str) -> FloatArray:
    columns = list(values.columns) if isinstance(values, pd.DataFrame) else None
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy(dtype=object if _has_extension(values) else None)
    try:
        matrix = float_array(values, name)
    except InputError as error:
        if "must be numeric" not in str(error):
            raise
        raise InputError(
            f"{error} Make indicator columns of levels, pandas.get_dummies(...), or write a "
            "formula: MultiLMM.from_formula."
        ) from None
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
    check_sparse(Z, "Z")
    Z = sp.csr_array(Z).astype(np.float64)
    if not np.isfinite(Z.data).all():
        entries = Z.tocoo()
        first = int(np.flatnonzero(~np.isfinite(entries.data))[0])
        raise InputError(
            f"Z is missing or infinite in row {entries.row[first]}, column {entries.col[first]}."
        )
    Z.sum_duplicates()
    return Z


def check_rows_are_known(source: Source, **matrices: Any) -> None:
    """Raise if Y has the samples of one labelled matrix in another order, beside one unlabelled."""
    if source.position is None:
        return
    labelled = {name: isinstance(as_matrix(part), pd.DataFrame) for name, part in matrices.items()}
    for name, silent in ((name, not known) for name, known in labelled.items()):
        if silent:
            other = next(name for name, known in labelled.items() if known)
            raise InputError(
                f"Y and {other} label the samples in different orders, and {name} has no labels "
                f"that tell which order its rows are in. Make {name} a DataFrame with the labels "
                f"of its rows, or bring Y and {other} into the same order."
            )


def design_and_source(
    Y: Any,
    X: Any,
    Z: Any,
    components: Any,
    coef_names: Sequence[str] | None,
    transform: Transform,
    feature_names: Sequence[object] | None,
) -> tuple[Design, Source, pd.Index | None]:
    """The design that matrices make, Y with its samples in the same order, and their labels.

    Raises
    ------
    InputError
        If labels contradict each other, or leave open which samples belong together.
    """
    X = as_matrix(X)
    Z = _no_columns(X) if Z is None else as_matrix(Z)
    design = design_from_arrays(X, Z, components=components, coef_names=coef_names)
    samples = row_labels(X, Z)
    source = make_source(Y, transform=transform, samples=samples, n=design.n)
    check_rows_are_known(source, X=X, Z=Z)
    if feature_names is not None:
        source = source.renamed(feature_names)
    if samples is None and source.sample_names is not None:
        samples = pd.Index(source.sample_names)
    return design, source, samples


def weights_of(weights: Any, design: Design, samples: pd.Index | None) -> FloatArray | None:
    """Weights of the samples of a design, (n,), by label where they have labels."""
    return None if weights is None else positive(weights, design.n, "weights", samples)
