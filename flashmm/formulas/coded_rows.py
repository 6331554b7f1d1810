"""Rows of columns that are looked up: a row of dummies depends on nothing but the levels.

Of many samples formulaic makes the dummies and their products once for each combination of levels,
and samples take theirs by a code. Columns of numbers stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from formulaic.materializers.types import EvaluatedFactor, FactorValues

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.compact import CompactMatrix, Layer, LayeredMatrix

__all__ = ["CodedRows", "coded_rows", "combined_levels", "distinct", "to_settle"]

# Sums by combination, combinations x features, must stay small beside the data.
_MOST = 2048
# Rows that are made by formulaic too, for comparison.
_COMPARED = 64


@dataclass(frozen=True)
class CodedRows:
    """The columns of a formula for n samples.

    Parameters
    ----------
    codes
        Combination of levels of each sample, shape (n,).
    table, in_table
        Columns that depend on it alone, shape (combinations, g), and their positions.
    numbers, in_numbers
        The other columns, shape (n, c), and their positions.
    """

    codes: IntArray
    table: FloatArray
    in_table: IntArray
    numbers: FloatArray
    in_numbers: IntArray

    def dense(self, samples: slice | IntArray) -> FloatArray:
        """The columns of some samples, shape (n_b, g + c)."""
        codes = self.codes[samples]
        rows = np.empty((codes.size, self.in_table.size + self.in_numbers.size))
        rows[:, self.in_table] = self.table[codes]
        rows[:, self.in_numbers] = self.numbers[samples]
        return rows

    def sparse(self, samples: slice | IntArray) -> sp.csr_array:
        """The same as a sparse matrix."""
        if self.in_numbers.size:
            return sp.csr_array(self.dense(samples))
        return sp.csr_array(sp.csr_array(self.table)[self.codes[samples]])

    def compact(self) -> CompactMatrix:
        """The same for all samples."""
        n, columns = self.codes.size, self.in_table.size + self.in_numbers.size
        none = LayeredMatrix((), (n, 0))
        empty = np.empty(0, dtype=np.intp)
        return CompactMatrix(
            *((n, columns), Layer(self.codes, self.table.shape[0]), self.table, self.in_table),
            *(none, empty, self.numbers, self.in_numbers),
        )


def combined_levels(factors: Mapping[str, EvaluatedFactor], n: int) -> IntArray | None:
    """A code of the levels of all factors of n samples together; None if they are too many."""
    codes, count = np.zeros(n, dtype=np.intp), 1
    for factor in factors.values():
        if factor.metadata.kind.value != "categorical":
            continue
        own, levels = pd.factorize(factor.values.__wrapped__)
        if (own < 0).any() or len(levels) > _MOST:
            return None
        found, codes = distinct(codes * len(levels) + own)
        count = found.size
        if count > min(_MOST, n // 4):
            return None
    return codes if count > 1 else None


def to_settle(codes: IntArray | None) -> IntArray:
    """Samples whose columns `coded_rows` needs: one of each code, and some for comparison."""
    if codes is None:
        return np.empty(0, dtype=np.intp)
    some = np.linspace(0, codes.size - 1, _COMPARED).astype(np.intp)
    return np.concatenate([_first_of(codes), some])


def coded_rows(
    factors: Mapping[str, EvaluatedFactor],
    spec: Any,
    codes: IntArray,
    samples: IntArray,
    made: Any,
) -> CodedRows | None:
    """The columns of a formula by combinations of levels; None where they are not of that kind.

    Parameters
    ----------
    factors
        Factors of the formula, evaluated for n samples.
    spec
        formulaic's spec, its columns settled.
    codes
        See `combined_levels`.
    samples, made
        Some samples, ascending, those of `to_settle` among them, and their columns as formulaic
        makes them, dense or sparse.
    """
    n = codes.size
    looked_up: list[int] = []
    columns: list[FloatArray] = [np.empty((n, 0))]
    in_numbers: list[int] = []
    for term, positions in spec.term_indices.items():
        own = [factors[factor.expr] for factor in term.factors]
        if all(factor.metadata.kind.value != "numerical" for factor in own):
            looked_up += positions
            continue
        values = _numbers(own[0].values, n) if len(own) == 1 else None
        if values is None or values.shape[1] != len(positions):
            return None
        columns.append(values)
        in_numbers += positions
    if not looked_up:
        return None
    made = np.asarray(made.toarray() if sp.issparse(made) else made, dtype=np.float64)
    table = made[np.searchsorted(samples, _first_of(codes))][:, looked_up]
    numbers = np.hstack(columns)
    coded = CodedRows(
        codes.astype(np.int32),
        table,
        np.array(looked_up, dtype=np.intp),
        np.asfortranarray(numbers),
        np.array(in_numbers, dtype=np.intp),
    )
    same = np.array_equal(coded.dense(samples), made)
    return coded if same and np.isfinite(table).all() and np.isfinite(numbers).all() else None


def _first_of(codes: IntArray) -> IntArray:
    """Position of a sample of each code."""
    first = np.zeros(int(codes.max()) + 1, dtype=np.intp)
    first[codes[::-1]] = np.arange(codes.size)[::-1]
    return first


def distinct(codes: IntArray) -> tuple[IntArray, IntArray]:
    """Whole numbers from 0 on that occur, ascending, and for each code its position among them."""
    size = int(codes.max(initial=0)) + 1
    if size > 16 * codes.size + 1024:
        return np.unique(codes, return_inverse=True)
    there = np.zeros(size, dtype=bool)
    there[codes] = True
    return np.flatnonzero(there), (np.cumsum(there) - 1)[codes]


def _numbers(values: Any, n: int) -> FloatArray | None:
    """The values of a numeric factor, shape (n, c); None where they are no numbers by sample."""
    while isinstance(values, FactorValues):
        values = values.__wrapped__
    if isinstance(values, Mapping) or sp.issparse(values) or np.ndim(values) not in (1, 2):
        return None
    numbers = np.asarray(values)
    if numbers.dtype.kind not in "iufb" or numbers.shape[0] != n:
        return None
    return numbers.reshape(n, -1).astype(np.float64)
