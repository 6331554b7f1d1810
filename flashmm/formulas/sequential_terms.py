"""Type I and type II hypotheses of the terms of a fixed formula, from X'X.

A type I hypothesis is of a term given those before it, what comes after left out; type II of a
term given all that do not contain it (SAS/STAT, "The Four Types of Estimable Functions"). With the
columns in that order and X'X = U'DU, U unit upper triangular, the rows of U that belong to the term
are its contrasts: they say what the term's columns add to those before. A term F contains E if both
have the same numeric factors and F has more categorical ones, those of E among them. A term that no
other contains is tested by its own coefficients under type II, as type III tests it.

Where a fit left columns out, what they span counts under type II: of ``x + x2`` with x2 a multiple
of x, x adds nothing to x2, whichever of the two was left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.aliasing import Aliasing
from flashmm.formulas.fixed_terms import factors_of

__all__ = ["FixedTerm", "columns_of_its_own", "fixed_terms", "sequential_contrasts"]

_INTERCEPT = "1"


@dataclass(frozen=True)
class FixedTerm:
    """A term of the fixed effects.

    Parameters
    ----------
    name
        As in the formula; ``"1"`` for the intercept.
    columns
        Positions of its columns among the coefficients of the fit; none where all depend on others.
    numeric, categorical
        Its factors.
    left_out
        Its columns that the fit left out, as combinations of those kept, shape (p, d).
    """

    name: str
    columns: IntArray
    numeric: frozenset[str] = frozenset()
    categorical: frozenset[str] = frozenset()
    left_out: FloatArray | None = None

    @property
    def is_intercept(self) -> bool:
        """Whether it is the constant, which is not tested."""
        return self.name == _INTERCEPT

    def contains(self, other: FixedTerm) -> bool:
        """Whether the term is an interaction of another, by the same numeric factors."""
        return self.numeric == other.numeric and self.categorical > other.categorical


def fixed_terms(spec: Any, p: int, aliased: Aliasing | None) -> list[FixedTerm]:
    """The terms of a formula, by the p columns of it that a fit has kept."""
    kept = np.arange(p) if aliased is None else aliased.kept
    place = {int(column): i for i, column in enumerate(kept)}
    lost = {} if aliased is None else {int(column): i for i, column in enumerate(aliased.dropped)}
    terms, start = [], 0
    for term in spec.structure:
        stop = start + len(term.columns)
        columns = [place[i] for i in range(start, stop) if i in place]
        numeric, categorical = factors_of(spec, term)
        name = str(term.term)
        numeric = frozenset() if name == _INTERCEPT else numeric
        own = np.array(columns, dtype=np.intp)
        out = [lost[i] for i in range(start, stop) if i in lost]
        left_out = aliased.weights[:, out] if aliased is not None and out else None
        terms.append(FixedTerm(name, own, numeric, frozenset(categorical), left_out))
        start = stop
    return terms


def sequential_contrasts(
    terms: list[FixedTerm], XX: FloatArray | None, type_: int
) -> dict[str, FloatArray]:
    """Contrasts (r, p) of each term but the intercept; r is 0 where no column is left.

    Parameters
    ----------
    terms
        In the order of the formula.
    XX
        X'X, shape (p, p); None where it is not one for all features and, for type II, no
        term contains another.
    type_
        1 or 2.
    """
    p = sum(term.columns.size for term in terms)
    left_out = any(term.left_out is not None for term in terms)
    found = {}
    for number, term in enumerate(terms):
        if term.is_intercept:
            continue
        after = [other for other in terms if other.contains(term)]
        if type_ == 1:
            after = terms[number + 1 :]
        rows = _of_columns_kept(term, after, p, XX if type_ == 1 or after else None)
        if left_out and type_ != 1:
            others = [other for other in terms if other is not term and other not in after]
            beyond = _beyond(term, others, p, XX)
            rows = rows if _same_span(rows, beyond, XX) else beyond
        found[term.name] = rows
    return found


def columns_of_its_own(term: FixedTerm, terms: list[FixedTerm]) -> bool:
    """Whether a model without the term's columns has what all other terms span, and no less."""
    p = sum(other.columns.size for other in terms)
    others = [other for other in terms if other is not term]
    if all(other.left_out is None for other in others):
        return True
    return len(_beyond(term, others, p, None)) == term.columns.size


def _of_columns_kept(
    term: FixedTerm, after: list[FixedTerm], p: int, XX: FloatArray | None
) -> FloatArray:
    """Contrasts (r, p) of what a term's columns add to those of the terms not in ``after``."""
    if XX is None:
        return np.eye(p)[term.columns]
    last = [int(i) for other in (term, *after) for i in other.columns]
    first = np.setdiff1d(np.arange(p), last)
    order = np.concatenate([first, np.array(last, dtype=np.intp)])
    rows = np.zeros((p, p))
    rows[:, order] = _unit_upper(XX[np.ix_(order, order)])
    return rows[first.size : first.size + term.columns.size]


def _unit_upper(XX: FloatArray) -> FloatArray:
    """U of X'X = U'DU."""
    length = np.sqrt(np.diag(XX))
    root = np.linalg.cholesky(XX / np.outer(length, length)).T * length
    return np.asarray(root / np.diag(root)[:, None])


# Relative size of what is rounding; the dependences of X may be known to six digits.
_ROUNDING = 1e-6


def _beyond(term: FixedTerm, others: list[FixedTerm], p: int, XX: FloatArray | None) -> FloatArray:
    """Contrasts (r, p) of what a term adds to others, columns left out included.

    Their rows are orthonormal by the inverse of X'X, which no coding changes. Without X'X the
    others and the term are the whole model, and what is orthogonal to the others is it.
    """
    length = np.ones(p) if XX is None else np.sqrt(np.diag(XX))
    root = np.eye(p) if XX is None else np.linalg.cholesky(XX / np.outer(length, length)).T
    root = root * length
    columns = [np.empty((p, 0)), *(_span(other, p) for other in others)]
    base = _orthonormal(root @ np.concatenate(columns, axis=1))
    if XX is None:
        return np.asarray(np.linalg.svd(base)[0][:, base.shape[1] :].T)
    own = root @ _span(term, p)
    size = np.linalg.norm(own, axis=0)
    own = own / np.where(size > 0, size, 1.0)  # of an empty cell there is no sample
    return _orthonormal(own - base @ (base.T @ own)).T @ root


def _same_span(rows: FloatArray, others: FloatArray, XX: FloatArray | None) -> bool:
    """Whether two sets of independent rows span the same space."""
    if rows.shape != others.shape:
        return False
    unit = 1.0 if XX is None else np.sqrt(np.diag(XX))
    both = np.concatenate([rows, others]) / unit
    return int(_orthonormal(both.T).shape[1]) == len(rows)


def _span(term: FixedTerm, p: int) -> FloatArray:
    """A term's columns as combinations of those kept, shape (p, columns)."""
    own = np.eye(p)[:, term.columns]
    return own if term.left_out is None else np.concatenate([own, term.left_out], axis=1)


def _orthonormal(columns: FloatArray) -> FloatArray:
    """An orthonormal basis of what columns span, those of zero length aside."""
    size = np.linalg.norm(columns, axis=0)
    left, sizes, _ = np.linalg.svd(columns[:, size > _ROUNDING] / size[size > _ROUNDING])
    return np.asarray(left[:, : int((sizes > _ROUNDING).sum())])
