"""Checks of what the simulators are given, and its alignment by label."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from flashmm.arrays.labels import by_name
from flashmm.arrays.sparse import check_sparse
from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError, listing, nearest

COLUMNS = ["sam", "cls", "trt"]


def whole_number(name: str, value: object, least: int) -> int:
    """Check an integer argument."""
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise InputError(f"{name} must be an integer of at least {least}, not {value!r}")


def generator(rng: int | np.random.Generator | None) -> np.random.Generator:
    """Make a source of random numbers."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError):
        raise InputError(f"rng must be an integer seed, a Generator or None, not {rng!r}") from None


def check_effects(direction: str, low: float, high: float, variance: float) -> None:
    """Check the direction and the range of the effects, and the random effects' variance."""
    given = {"min_beta": low, "max_beta": high, "var_random_effects": variance}
    for name, value in given.items():
        if not isinstance(value, Real) or not np.isfinite(value):
            raise InputError(f"{name} must be a finite number, not {value!r}")
    if variance < 0:
        raise InputError(f"var_random_effects must not be negative, but is {variance!r}")
    options = ["both", "up", "down"]
    if direction not in options:
        raise InputError(f"unknown direction {direction!r}. {nearest(str(direction), options)}")
    if low >= high:
        raise InputError(f"min_beta ({low!r}) must be less than max_beta ({high!r})")
    if direction == "both" and low * high <= 0:
        raise InputError(
            f"direction 'both' needs min_beta and max_beta of the same sign, not {low!r} and "
            f"{high!r}: the sign of each effect is drawn"
        )
    if direction == "up" and low <= 0:
        raise InputError(f"direction 'up' needs min_beta > 0, not {low!r}")
    if direction == "down" and high >= 0:
        raise InputError(
            f"direction 'down' needs max_beta < 0, not {high!r}: give negative effects, such as "
            "min_beta=-1, max_beta=-0.25"
        )


def _unique(index: pd.Index, what: str) -> pd.Index:
    """Refuse repeated labels."""
    if not index.is_unique:
        raise InputError(f"{what} occur more than once: {listing(index[index.duplicated()])}")
    return index


def checked_counts(counts: Any) -> tuple[Any, pd.Index, pd.Index | None]:
    """Return the counts (float array or CSR), the gene labels and the cell labels, if any."""
    matrix: Any
    values: Any
    labels: pd.Index | None = None
    if isinstance(counts, pd.DataFrame):
        genes = _unique(counts.index, "genes of the reference counts")
        labels = _unique(counts.columns, "cells of the reference counts")
    if sparse.issparse(counts):
        check_sparse(counts, "the matrix of reference counts")
    try:
        if sparse.issparse(counts):
            given: Any = counts
            matrix = sparse.csr_array(given, dtype=np.float64, copy=True)
            matrix.sum_duplicates()
            values = matrix.data
        else:
            matrix = values = np.asarray(counts, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("the reference counts are not numbers") from None
    if matrix.ndim != 2 or matrix.shape[0] < 1 or matrix.shape[1] < 2:
        raise InputError(
            "the reference counts must be genes x cells, with at least 2 cells, but have shape "
            f"{matrix.shape}"
        )
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise InputError("the reference counts hold negative, missing or infinite values")
    if not isinstance(counts, pd.DataFrame):
        genes = pd.Index([f"Gene{i + 1}" for i in range(matrix.shape[0])])
    return matrix, genes, labels


def checked_metadata(metadata: pd.DataFrame) -> pd.DataFrame:
    """Check the columns; returns a copy."""
    if not isinstance(metadata, pd.DataFrame):
        raise InputError(f"metadata must be a DataFrame, not {type(metadata).__name__}")
    absent = [name for name in COLUMNS if name not in metadata.columns]
    if absent:
        raise InputError(
            f"metadata lacks {listing(absent)}: it needs the columns {listing(COLUMNS)}"
        )
    for name in COLUMNS:
        if metadata[name].isna().any():
            cells = metadata.index[metadata[name].isna()]
            raise InputError(f"metadata column {name!r} is missing for cells {listing(cells)}")
    _unique(metadata.index, "cells of the metadata")
    return metadata.copy()


def matched_metadata(metadata: pd.DataFrame, cells: pd.Index) -> pd.DataFrame:
    """Put the metadata into the order of the cells."""
    if len(metadata) != len(cells):
        raise InputError(
            f"metadata describes {len(metadata)} cells, but the reference counts have {len(cells)}"
        )
    absent = cells.difference(metadata.index, sort=False)
    if len(absent):
        raise InputError(f"metadata lacks cells of the reference counts: {listing(absent)}")
    return metadata.loc[cells]


def default_cells(n_cells: int, metadata: pd.DataFrame | None) -> pd.Index:
    """Label cells that carry no labels, by the metadata when it describes as many."""
    if metadata is not None and len(metadata) == n_cells:
        return metadata.index
    return pd.Index([f"Cell{i + 1}" for i in range(n_cells)])


def distinct_values(values: pd.Series) -> list[Any]:
    """The distinct values, sorted: strings by code point, numbers by size, a mixture as strings."""
    distinct = list(values.unique())
    try:
        return sorted(distinct)
    except TypeError:
        return sorted(distinct, key=str)


def check_treatment(treatment: Any, conditions: pd.Series) -> None:
    """Check that the treated condition exists."""
    options = distinct_values(conditions)
    if treatment not in options:
        names = [str(option) for option in options]
        raise InputError(f"unknown treatment {treatment!r}. {nearest(str(treatment), names)}")


def by_cluster(name: str, given: Any, clusters: Sequence[Any]) -> FloatArray:
    """Align numbers given by cluster label, or in sorted order, with the clusters."""
    table = by_name(given)
    if table is not None:
        unknown = [label for label in table if label not in clusters]
        if unknown:
            options = [str(label) for label in clusters]
            raise InputError(
                f"{name} names {listing(unknown)}, which is no cluster of the simulated cells. "
                f"{nearest(str(unknown[0]), options)}"
            )
        given = [table.get(label, 0) for label in clusters]
    try:
        values = np.asarray(given, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{name} holds something that is not a number: {given!r}") from None
    if values.shape != (len(clusters),):
        raise InputError(
            f"{name} must have one number for each of the {len(clusters)} clusters of "
            f"the simulated cells: {listing(clusters)}"
        )
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise InputError(f"{name} holds negative or non-finite numbers: {given!r}")
    return values
