"""Roots of known covariances between levels in the Dataset of the statistics, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from flashmm.designs.design import CovarianceStructure, RandomTerm
from flashmm.designs.known_root import KnownRoot, kept_form
from flashmm.exceptions import InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["roots_to_variables", "with_stored_roots"]


def roots_to_variables(structure: CovarianceStructure) -> dict[str, Any]:
    """The non-zeros of all roots with their term, row (a level of it) and column."""
    if not structure.has_roots:
        return {}
    terms, rows, columns, values = [], [], [], []
    for position, term in enumerate(structure.terms):
        if term.root is not None:
            entries = sp.coo_array(term.root.L)
            terms.append(np.full(entries.nnz, position))
            rows.append(entries.row)
            columns.append(entries.col)
            values.append(entries.data)
    dims = ("root_entry",)
    width = [0 if term.root is None else term.root.rank for term in structure.terms]
    return {
        "term_root": (("random_term",), np.array(width, np.int32)),
        "root_term": (dims, np.concatenate(terms).astype(np.int32)),
        "root_row": (dims, np.concatenate(rows).astype(np.int32)),
        "root_column": (dims, np.concatenate(columns).astype(np.int32)),
        "root_value": (dims, np.concatenate(values)),
    }


def with_stored_roots(terms: Sequence[RandomTerm], ds: xr.Dataset) -> list[RandomTerm]:
    """The terms with the roots that a file has for them; a file's word is checked."""
    if "term_root" not in ds:
        return list(terms)
    width = ds["term_root"].to_numpy().astype(np.intp)
    of, row, column = (
        ds[f"root_{name}"].to_numpy().astype(np.intp) for name in ("term", "row", "column")
    )
    value = ds["root_value"].to_numpy()
    if (width < 0).any() or not np.isfinite(value).all():
        raise InputError("The root of a known covariance holds values that are no numbers.")
    result = []
    for position, term in enumerate(terms):
        if width[position] == 0:
            result.append(term)
            continue
        here = of == position
        shape = len(term.levels), int(width[position])
        own = row[here], column[here]
        inside = all(
            part.size and part.min() >= 0 and part.max() < size
            for part, size in zip(own, shape, strict=True)
        )
        if not inside or shape[1] > here.sum():
            raise InputError(f"The root of the covariance of {term.name!r:.80} does not fit it.")
        L = sp.csr_array((value[here], own), shape=shape)
        result.append(replace(term, root=KnownRoot(kept_form(L))))
    return result
