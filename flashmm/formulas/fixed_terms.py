"""Terms of a fixed formula and the hypotheses that test them, whatever the coding of factors.

A column of X is a product of columns of its factors. For the coefficients that share numeric
columns, the linear predictor is a function on the cells of the categorical factors, a sum of parts
that each depend on a subset of the factors. A term owns the subsets of its factors that no term
before it owns; the constant belongs to the intercept, written or not. The type III hypothesis of
a term says that its parts of that function vanish: the function averaged, with equal weights, over
the levels of the factors outside the subset and taken about its mean along each factor of it. In
a complete design these are the hypotheses of SAS type III tables. They do not depend on coding, nor
on whether ``0 +`` is written where a factor stands in for the intercept.

Hypotheses, those of types I and II too, are found for treatment coding, first level as reference,
with an intercept, and brought to the coding of X afterwards. So degrees of freedom that depend on
how a hypothesis is written do not depend on the coding either.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import Any, TypeAlias

import numpy as np

from flashmm.arrays.types import FloatArray

__all__ = [
    "INTERCEPT",
    "Column",
    "columns_of",
    "factors_of",
    "in_coordinates",
    "numeric_widths",
    "treatment_coded",
    "type3_hypotheses",
]

INTERCEPT = "1"
# Numeric columns, and levels of factors: a product of them.
_Cell: TypeAlias = "tuple[frozenset[tuple[str, int]], frozenset[tuple[str, int]]]"


@dataclass(frozen=True)
class Column:
    """One column of X: codes of its categorical factors by level, and its numeric columns."""

    codes: dict[str, FloatArray]
    numeric: frozenset[tuple[str, int]]


def type3_hypotheses(spec: Any) -> dict[str, FloatArray]:
    """The contrasts of each term of a formula, the intercept left out.

    Parameters
    ----------
    spec
        formulaic's model spec of X.

    Returns
    -------
    dict
        Term -> linearly independent contrasts (r, p), in the order of the formula.
    """
    widths = numeric_widths(spec)
    columns: list[Column] = []
    subsets: dict[str, list[tuple[str, ...]]] = {}
    members: dict[str, list[int]] = {}
    owned: set[tuple[frozenset[str], tuple[str, ...]]] = {
        (frozenset(), ())
    }  # numeric and categorical factors; first the intercept's
    for term in spec.structure:
        name, start = str(term.term), len(columns)
        own, known = _columns_of_term(spec, term, widths)
        columns += own
        numeric, categorical = factors_of(spec, term)
        if not known:
            subsets[name] = [()]
        else:
            new = [s for s in _subsets(categorical) if (numeric, s) not in owned]
            owned |= {(numeric, s) for s in new}
            subsets[name] = new
        members[name] = list(range(start, len(columns)))
    reference, change = _treatment_coded(columns)
    result = {}
    for name, positions in members.items():
        if name != INTERCEPT and positions and subsets[name]:
            keys = dict.fromkeys(columns[i].numeric for i in positions)
            parts = [_projected(reference, key, s) for key in keys for s in subsets[name]]
            result[name] = _independent(np.concatenate(parts)) @ change
    return result


def treatment_coded(spec: Any) -> FloatArray | None:
    """A matrix (p, p) that takes the coefficients of X to those of treatment coding.

    Factors that X holds without a column per level get a column for each but the first. None where
    X is not that, linearly combined within its terms: with custom contrasts of fewer columns.
    """
    widths = numeric_widths(spec)
    own = [c for term in spec.structure for c in _columns_of_term(spec, term, widths)[0]]
    usual = [c for term in spec.structure for c in _columns_of_term(spec, term, widths, True)[0]]
    if len(own) != len(usual):
        return None
    _, weights = in_coordinates([*usual, *own])
    left, right = weights[:, : len(own)], weights[:, len(own) :]
    change, _, rank, _ = np.linalg.lstsq(left, right, rcond=None)
    exact = np.abs(left @ change - right).max(initial=0.0) < 1e-9
    return np.asarray(change) if exact and rank == len(own) else None


def _columns_of_term(
    spec: Any, term: Any, widths: dict[str, int], usual: bool = False
) -> tuple[list[Column], bool]:
    """Columns of a term of the spec, and whether they are known to be those of its factors.

    ``usual``: in treatment coding, first level as reference, whatever that of X.
    """
    columns = [c for scoped in term.scoped_terms for c in columns_of(spec, scoped, widths, usual)]
    if len(columns) == len(term.columns):
        return columns, True
    # A product of transforms of several columns.
    return [Column({}, frozenset({(str(c), 0)})) for c in term.columns], False


def factors_of(spec: Any, term: Any) -> tuple[frozenset[str], tuple[str, ...]]:
    """The numeric and the categorical factors of a term, the latter sorted."""
    kinds: dict[str, bool] = {}
    for scoped in term.scoped_terms:
        for factor in scoped.factors:
            kinds[str(factor_of(factor))] = is_categorical(spec, factor)
    for factor in term.term.factors:  # one that no column holds has gone into the others' coding
        kinds.setdefault(str(factor), factor in spec.factor_contrasts)
    numeric = frozenset(name for name, is_factor in kinds.items() if not is_factor)
    return numeric, tuple(sorted(name for name, is_factor in kinds.items() if is_factor))


def _subsets(factors: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Every subset, the smallest first."""
    return [c for size in range(len(factors) + 1) for c in combinations(factors, size)]


def _treatment_coded(columns: list[Column]) -> tuple[list[Column], FloatArray]:
    """Columns in treatment coding with an intercept, and their coefficients by those of X.

    Returns
    -------
    tuple
        The columns, c of them, and a matrix (c, p) that takes the coefficients of X to theirs.
    """
    cells, change = in_coordinates(columns)
    sizes = {factor: codes.size for column in columns for factor, codes in column.codes.items()}
    reference = [
        Column({factor: np.eye(sizes[factor])[level] for factor, level in sorted(cell)}, numeric)
        for numeric, cell in cells
    ]
    return reference, change


def in_coordinates(columns: list[Column]) -> tuple[list[_Cell], FloatArray]:
    """Columns as functions on cells, in products of indicators of all levels but the first.

    Codes c of the levels of a factor are c_0 times the constant plus (c_l - c_0) times the
    indicator of each other level l.

    Returns
    -------
    tuple
        The products, numeric columns and levels of factors, and their weights, a column for each.
    """
    places: dict[_Cell, int] = {}
    entries: list[tuple[int, int, float]] = []
    for position, column in enumerate(columns):
        parts: list[tuple[frozenset[tuple[str, int]], float]] = [(frozenset(), 1.0)]
        for factor, codes in column.codes.items():
            steps = codes - codes[0]
            levels = [(frozenset[tuple[str, int]](), float(codes[0]))]
            levels += [(frozenset({(factor, int(i))}), steps[i]) for i in np.flatnonzero(steps)]
            parts = [(a | b, u * v) for a, u in parts for b, v in levels if u * v != 0.0]
        for cell, weight in parts:
            place = places.setdefault((column.numeric, cell), len(places))
            entries.append((place, position, weight))
    weights = np.zeros((len(places), len(columns)))
    for row, position, weight in entries:
        weights[row, position] += weight
    return list(places), weights


def factor_of(scoped_factor: Any) -> Any:
    """The factor of the formula; formulaic wraps it with its kind when it has evaluated it."""
    return getattr(scoped_factor.factor, "factor", scoped_factor.factor)


def is_categorical(spec: Any, scoped_factor: Any) -> bool:
    return factor_of(scoped_factor) in spec.factor_contrasts


def numeric_widths(spec: Any) -> dict[str, int]:
    """Columns that each numeric factor has where it stands alone; 1 where it never does."""
    return {
        str(term.term): len(term.columns) for term in spec.structure if len(term.term.factors) == 1
    }


def columns_of(spec: Any, scoped: Any, widths: dict[str, int], usual: bool = False) -> list[Column]:
    """Columns of one scoped term, the first factor's varying fastest as formulaic orders them.

    ``usual``: in treatment coding, first level as reference, whatever that of X.
    """
    columns = [Column({}, frozenset())]
    for scoped_factor in scoped.factors:
        factor = str(factor_of(scoped_factor))
        if is_categorical(spec, scoped_factor):
            state = spec.factor_contrasts[factor_of(scoped_factor)]
            matrix = state.get_coding_matrix(reduced_rank=scoped_factor.reduced)
            codes = np.asarray(getattr(matrix, "to_numpy", lambda m=matrix: m.toarray())())
            if usual:
                codes = np.eye(len(codes))[:, int(scoped_factor.reduced) :]
            columns = [
                Column({**column.codes, factor: codes[:, j]}, column.numeric)
                for j in range(codes.shape[1])
                for column in columns
            ]
        else:
            columns = [
                Column(column.codes, column.numeric | {(factor, j)})
                for j in range(widths.get(factor, 1))
                for column in columns
            ]
    return columns


def _projected(
    columns: list[Column], numeric: frozenset[tuple[str, int]], subset: tuple[str, ...]
) -> FloatArray:
    """The function on the cells of a subset of factors: averaged over others, about its means."""
    sizes = {f: c.codes[f].size for c in columns for f in c.codes if f in subset}
    rows = np.zeros((prod(sizes[f] for f in subset), len(columns)))
    for position, column in enumerate(columns):
        if column.numeric != numeric or not set(subset) <= set(column.codes):
            continue  # what does not depend on a factor is nothing about its mean
        weight = prod(
            (float(codes.mean()) for f, codes in column.codes.items() if f not in subset),
            start=1.0,
        )
        vector = np.full(1, weight)
        for factor in subset:
            codes = column.codes[factor]
            vector = np.kron(vector, codes - codes.mean())
        rows[:, position] = vector
    return rows


def _independent(rows: FloatArray) -> FloatArray:
    """Rows that span the same space; the identity's own rows when they do."""
    _, sizes, right = np.linalg.svd(rows, full_matrices=False)
    basis = right[: int((sizes > 1e-10 * sizes[0]).sum())]
    used = np.flatnonzero(np.abs(basis).max(axis=0) > 1e-10)
    if used.size == basis.shape[0]:
        return np.asarray(np.eye(rows.shape[1])[used])
    return np.asarray(basis)
