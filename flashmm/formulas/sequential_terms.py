"""Type I and type II hypotheses of the terms of a fixed formula, from X'X.

A type I hypothesis is of a term given those before it, what comes after left out; type II of a
term given all that do not contain it (SAS/STAT, "The Four Types of Estimable Functions"). With the
columns in that order and X'X = U'DU, U unit upper triangular, the rows of U that belong to the term
are its contrasts: they say what the term's columns add to those before. A term F contains E if both
have the same numeric factors and F has more categorical ones, those of E among them. A term that no
other contains is tested by its own coefficients under type II, as type III tests it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.formulas.fixed_terms import factors_of

__all__ = ["FixedTerm", "fixed_terms", "sequential_contrasts"]

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
    """

    name: str
    columns: IntArray
    numeric: frozenset[str] = frozenset()
    categorical: frozenset[str] = frozenset()

    @property
    def is_intercept(self) -> bool:
        """Whether it is the constant, which is not tested."""
        return self.name == _INTERCEPT

    def contains(self, other: FixedTerm) -> bool:
        """Whether the term is an interaction of another, by the same numeric factors."""
        return self.numeric == other.numeric and self.categorical > other.categorical


def fixed_terms(spec: Any, kept: IntArray) -> list[FixedTerm]:
    """The terms of a formula, by its columns that a fit has kept (their positions among all)."""
    place = {int(column): i for i, column in enumerate(kept)}
    terms, start = [], 0
    for term in spec.structure:
        stop = start + len(term.columns)
        columns = [place[i] for i in range(start, stop) if i in place]
        numeric, categorical = factors_of(spec, term)
        name = str(term.term)
        numeric = frozenset() if name == _INTERCEPT else numeric
        own = np.array(columns, dtype=np.intp)
        terms.append(FixedTerm(name, own, numeric, frozenset(categorical)))
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
    found = {}
    for number, term in enumerate(terms):
        if term.is_intercept:
            continue
        after = [other for other in terms if other.contains(term)]
        if type_ == 1:
            after = terms[number + 1 :]
        elif not after:
            found[term.name] = np.eye(p)[term.columns]
            continue
        assert XX is not None
        last = [int(i) for other in (term, *after) for i in other.columns]
        first = np.setdiff1d(np.arange(p), last)
        order = np.concatenate([first, np.array(last, dtype=np.intp)])
        rows = np.zeros((p, p))
        rows[:, order] = _unit_upper(XX[np.ix_(order, order)])
        found[term.name] = rows[first.size : first.size + term.columns.size]
    return found


def _unit_upper(XX: FloatArray) -> FloatArray:
    """U of X'X = U'DU."""
    length = np.sqrt(np.diag(XX))
    root = np.linalg.cholesky(XX / np.outer(length, length)).T * length
    return np.asarray(root / np.diag(root)[:, None])
