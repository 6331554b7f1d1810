"""Type III hypotheses of terms where X has dependent columns, an empty cell of ``a * b`` say.

As SAS defines them (SAS/STAT, "The Four Types of Estimable Functions"): write the model with one
parameter for every level and combination of levels. An estimable function belongs to a term if its
weights vanish for all other terms but those that contain it; its type III functions are those
orthogonal to the functions that belong to the terms that contain it. A term F contains E if
both have the same numeric factors and F has more categorical ones, those of E among them. Nothing
of this depends on the coding of X, and in a complete design it gives what
`flashmm.formulas.fixed_terms` gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.formulas.fixed_terms import (
    INTERCEPT,
    Column,
    columns_of,
    factors_of,
    in_coordinates,
    numeric_widths,
)

__all__ = ["estimable_hypotheses"]

# Relative size of what is rounding; the dependences of X may be known to six digits.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class _Term:
    """A term of the formula: its factors, and its columns in X and with a column per level."""

    name: str
    numeric: frozenset[str]
    categorical: frozenset[str]
    coded: list[Column]
    levels: list[Column]

    def contains(self, other: _Term) -> bool:
        return self.numeric == other.numeric and self.categorical > other.categorical


def estimable_hypotheses(spec: Any, null_space: FloatArray) -> dict[str, FloatArray]:
    """The type III contrasts of each term of a formula, the intercept left out.

    Parameters
    ----------
    spec
        formulaic's model spec of X.
    null_space
        Vectors v with X v = 0, as columns, shape (p, d).

    Returns
    -------
    dict
        Term -> linearly independent estimable contrasts (r, p), in the order of the formula; r is
        zero for a term of which nothing can be estimated.
    """
    terms = _terms(spec)
    coded = [column for term in terms for column in term.coded]
    if all(term.name != INTERCEPT for term in terms):
        one = _Term(INTERCEPT, frozenset(), frozenset(), [], [Column({}, frozenset())])
        if _weights(coded, one.levels) is not None:
            terms = [one, *terms]
    every: list[Column] = []
    owner: list[int] = []
    for number, term in enumerate(terms):
        # Custom contrasts may span less than the levels do; then X's own columns stand for them.
        own = term.levels if _weights(coded, term.levels) is not None else term.coded
        every += own
        owner += [number] * len(own)
    S = _weights(coded, every)
    assert S is not None
    estimable = _left_null(null_space) @ S
    parts = [_belonging(estimable, terms, np.array(owner), term) for term in terms]
    back = np.linalg.pinv(S)
    result = {}
    for term, rows in zip(terms, parts, strict=True):
        if term.name == INTERCEPT or not term.coded:
            continue
        above = [part for other, part in zip(terms, parts, strict=True) if other.contains(term)]
        if above:
            basis = _row_space(np.concatenate(above))
            rows = rows - (rows @ basis.T) @ basis  # noqa: PLW2901
        result[term.name] = _row_space(rows) @ back
    return result


def _terms(spec: Any) -> list[_Term]:
    widths = numeric_widths(spec)
    terms = []
    for term in spec.structure:
        coded = [c for scoped in term.scoped_terms for c in columns_of(spec, scoped, widths)]
        numeric, categorical = factors_of(spec, term)
        if len(coded) != len(term.columns):  # a product of transforms of several columns
            coded = [Column({}, frozenset({(str(c), 0)})) for c in term.columns]
            terms.append(_Term(str(term.term), numeric, frozenset(), coded, coded))
            continue
        if str(term.term) == INTERCEPT:
            numeric = frozenset()
        sizes = {
            name: np.eye(len(spec.factor_contrasts[_named(spec, name)].levels))
            for name in categorical
        }
        levels = [
            Column(dict(zip(sizes, cell, strict=True)), key)
            for key in dict.fromkeys(column.numeric for column in coded)
            for cell in product(*sizes.values())
        ]
        terms.append(_Term(str(term.term), numeric, frozenset(categorical), coded, levels))
    return terms


def _named(spec: Any, name: str) -> Any:
    return next(factor for factor in spec.factor_contrasts if str(factor) == name)


def _weights(coded: list[Column], others: list[Column]) -> FloatArray | None:
    """Columns as combinations of those of X, shape (p, len(others)); None if they are none."""
    _, matrix = in_coordinates([*coded, *others])
    left, right = matrix[:, : len(coded)], matrix[:, len(coded) :]
    weights = np.linalg.lstsq(left, right, rcond=None)[0]
    within = np.abs(left @ weights - right).max(initial=0.0) < _ROUNDING
    return np.where(np.abs(weights) > 1e-12, weights, 0.0) if within else None


def _belonging(
    estimable: FloatArray, terms: list[_Term], owner: IntArray, term: _Term
) -> FloatArray:
    """Estimable functions whose weights vanish outside a term and those that contain it."""
    others = np.array([not (other is term or other.contains(term)) for other in terms])
    return _left_null(estimable[:, others[owner]]) @ estimable


def _left_null(matrix: FloatArray) -> FloatArray:
    """Orthonormal rows v with v matrix = 0."""
    left, sizes, _ = np.linalg.svd(matrix)
    rank = int((sizes > _ROUNDING * sizes[:1].max(initial=1.0)).sum())
    return np.asarray(left[:, rank:].T)


def _row_space(rows: FloatArray) -> FloatArray:
    """Orthonormal rows that span the same space."""
    if rows.size == 0:
        return np.zeros((0, rows.shape[1]))
    _, sizes, right = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(right[sizes > _ROUNDING])
