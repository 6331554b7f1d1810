"""The columns that a formula makes, some rows at a time.

formulaic makes all rows at once, with the dense products of all factors in memory. Of many
samples only the factors are evaluated at once, each as often as the formula names it: what a
transform such as scale(x) learns, it learns from all samples, and an expression such as
x - x.mean() sees them all. Dummies and products are then made of the rows asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from formulaic import ModelSpec, SimpleFormula
from formulaic.materializers.types import EvaluatedFactor, FactorValues

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.compact import many, steps
from flashmm.exceptions import InputError
from flashmm.formulas.coded_rows import CodedRows, coded_rows, combined_levels, to_settle
from flashmm.formulas.column_kinds import explained, refuse_as_numbers
from flashmm.formulas.materializer import Materializer
from flashmm.formulas.plain_numbers import plain_numbers
from flashmm.formulas.sample_table import Columns, evaluating, numbers

__all__ = ["FormulaRows", "formula_rows"]

log = logging.getLogger("flashmm")


@dataclass(frozen=True)
class FormulaRows:
    """A formula applied to the data of a `Columns`.

    Parameters
    ----------
    spec
        formulaic's model spec.
    rows
        Gives the columns of some samples, finite float64: dense (n_b, c), or sparse CSR.
    dense
        All columns, shape (n, c), where they are at hand; None elsewhere.
    coded
        The columns of many samples by their levels, where they can be had so; None elsewhere.
    """

    spec: Any
    rows: Callable[[slice | IntArray], Any]
    dense: FloatArray | None = None
    coded: CodedRows | None = None


def formula_rows(
    columns: Columns, formula: SimpleFormula, source: str, output: Literal["numpy", "sparse"]
) -> FormulaRows:
    """Prepare a formula so that its columns can be had for some rows at a time.

    Parameters
    ----------
    columns
        The data.
    formula, source
        The formula, and where it stands, for messages.
    output
        Dense or sparse.

    Returns
    -------
    FormulaRows
        Of few samples with all columns in memory, and so where a factor is of a kind that cannot
        be taken apart by rows.
    """
    refuse_as_numbers(columns.data, formula, source)
    try:
        if many(len(columns.data)):
            try:
                return _by_rows(columns, formula, source, output)
            except _NotByRowsError as factor:
                log.info("%s: %s is evaluated for all samples at once", source, factor)
        elif plain := plain_numbers(columns.data, formula, output):
            return _of_numbers(*plain, output)
        values, spec = columns.build(formula, source, output)
    except InputError as error:
        raise explained(error, columns.data, source) from error
    return FormulaRows(spec, (values if output == "numpy" else sp.csr_array(values)).__getitem__)


def _of_numbers(values: FloatArray, spec: Any, output: Literal["numpy", "sparse"]) -> FormulaRows:
    if output == "numpy":
        return FormulaRows(spec, values.__getitem__, values)
    return FormulaRows(spec, lambda samples: sp.csr_array(values[samples]), values)


class _NotByRowsError(Exception):
    """A factor whose values or dummies cannot be had for some rows alone."""


def _by_rows(
    columns: Columns, formula: SimpleFormula, source: str, output: Literal["numpy", "sparse"]
) -> FormulaRows:
    n = len(columns.data)
    materializer = Materializer(columns.data, context=columns.context)
    spec = ModelSpec.from_spec(formula, output=output, na_action="ignore", materializer="flashmm")
    with evaluating(source):
        for factor in dict.fromkeys(factor for term in formula for factor in term.factors):
            materializer._evaluate_factor(factor, spec, set())
    factors = materializer.factor_cache

    def made(spec: Any, samples: slice | IntArray) -> tuple[Any, Any]:
        count = np.arange(n)[samples].size
        part = Materializer(pd.DataFrame(index=range(count)), context=columns.context)
        for name, factor in factors.items():
            part.factor_cache[name] = factor.replace(values=_taken(factor.values, samples, n, name))
        with evaluating(source):
            matrix = part.get_model_matrix(spec)
            return matrix.model_spec, numbers(matrix, count, output)

    # Rows that show all levels settle the columns.
    shown = [_first_of_levels(factor) for factor in factors.values()]
    codes = combined_levels(factors, n)
    first = np.zeros(1, dtype=np.intp)
    some = np.unique(np.concatenate([first, *shown, to_settle(codes)]))
    settled, values = made(spec, some)

    def rows(samples: slice | IntArray) -> Any:
        values = made(settled, samples)[1]
        if not np.isfinite(values.data if sp.issparse(values) else values).all():
            parts = ((here.start, made(settled, here)[1]) for here in steps(n))
            columns.refuse_non_finite(parts, settled.column_names, source)
        return values if output == "numpy" else sp.csr_array(values)

    coded = None if codes is None else coded_rows(factors, settled, codes, some, values)
    if coded is not None:
        rows = coded.dense if output == "numpy" else coded.sparse
    return FormulaRows(settled, rows, coded=coded)


def _first_of_levels(factor: EvaluatedFactor) -> IntArray:
    """Positions where the levels of a factor occur first; none for numbers."""
    if factor.metadata.kind.value != "categorical":
        return np.empty(0, dtype=np.intp)
    encoder = factor.metadata.encoder
    # The encoder of C() takes its levels from the data or its arguments; others may do anything.
    if encoder is not None and not str(encoder.__module__).startswith("formulaic.transforms.contr"):
        raise _NotByRowsError(factor.expr)
    values = factor.values.__wrapped__
    if np.ndim(values) != 1:
        raise _NotByRowsError(factor.expr)
    return np.flatnonzero(~np.asarray(pd.Series(values).duplicated()))


def _taken(values: Any, samples: slice | IntArray, n: int, expression: str) -> Any:
    """The values of a factor for some samples, with what formulaic notes about them."""
    if isinstance(values, FactorValues):
        inner = _taken(values.__wrapped__, samples, n, expression)
        return FactorValues(inner, metadata=values.__formulaic_metadata__)
    if isinstance(values, Mapping):
        return {
            key: value if str(key).startswith("__") else _taken(value, samples, n, expression)
            for key, value in values.items()
        }
    if np.isscalar(values):
        return values
    shape: tuple[int, ...] = getattr(values, "shape", ())
    if len(shape) not in (1, 2) or shape[0] != n:
        raise _NotByRowsError(expression)
    if isinstance(values, (pd.Series, pd.DataFrame)):
        return values.iloc[samples].reset_index(drop=True)
    if isinstance(values, (np.ndarray, pd.Categorical)) or sp.issparse(values):
        return values[samples]
    raise _NotByRowsError(expression)
