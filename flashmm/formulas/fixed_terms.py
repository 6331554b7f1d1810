"""Terms of a fixed formula and the hypotheses that test them, whatever the coding of factors.

A column of X is a product of columns of its factors. For the coefficients that share numeric
columns, the linear predictor is a function on the cells of the categorical factors. The type III
hypothesis of a term says that its part of that function vanishes: the function averaged, with
equal weights, over the levels of the factors outside the term, and, along each factor that is
coded in the term with one column less than it has levels, taken about its mean. In a complete
design these are the hypotheses of SAS type III tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["type3_hypotheses"]

_INTERCEPT = "1"


@dataclass(frozen=True)
class _Column:
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
    widths = _numeric_widths(spec)
    columns: list[_Column] = []
    patterns: dict[str, list[dict[str, bool]]] = {}
    members: dict[str, list[int]] = {}
    for term in spec.structure:
        name = str(term.term)
        patterns[name], start = [], len(columns)
        for scoped in term.scoped_terms:
            columns += _columns(spec, scoped, widths)
            patterns[name].append(
                {str(_factor(f)): bool(f.reduced) for f in scoped.factors if _categorical(spec, f)}
            )
        if len(columns) - start != len(term.columns):  # a product of transforms of several columns
            del columns[start:]
            columns += [_Column({}, frozenset({(str(c), 0)})) for c in term.columns]
            patterns[name] = [{}]
        members[name] = list(range(start, len(columns)))
    result = {}
    for name, positions in members.items():
        if name != _INTERCEPT and positions:
            result[name] = _independent(_hypothesis(columns, positions, patterns[name]))
    return result


def _factor(scoped_factor: Any) -> Any:
    """The factor of the formula; formulaic wraps it with its kind when it has evaluated it."""
    return getattr(scoped_factor.factor, "factor", scoped_factor.factor)


def _categorical(spec: Any, scoped_factor: Any) -> bool:
    return _factor(scoped_factor) in spec.factor_contrasts


def _numeric_widths(spec: Any) -> dict[str, int]:
    """Columns that each numeric factor has where it stands alone; 1 where it never does."""
    return {
        str(term.term): len(term.columns) for term in spec.structure if len(term.term.factors) == 1
    }


def _columns(spec: Any, scoped: Any, widths: dict[str, int]) -> list[_Column]:
    """Columns of one scoped term, the first factor's varying fastest as formulaic orders them."""
    columns = [_Column({}, frozenset())]
    for scoped_factor in scoped.factors:
        factor = str(_factor(scoped_factor))
        if _categorical(spec, scoped_factor):
            state = spec.factor_contrasts[_factor(scoped_factor)]
            matrix = state.get_coding_matrix(reduced_rank=scoped_factor.reduced)
            codes = np.asarray(getattr(matrix, "to_numpy", lambda m=matrix: m.toarray())())
            columns = [
                _Column({**column.codes, factor: codes[:, j]}, column.numeric)
                for j in range(codes.shape[1])
                for column in columns
            ]
        else:
            columns = [
                _Column(column.codes, column.numeric | {(factor, j)})
                for j in range(widths.get(factor, 1))
                for column in columns
            ]
    return columns


def _hypothesis(
    columns: list[_Column], positions: list[int], patterns: list[dict[str, bool]]
) -> FloatArray:
    """Contrasts whose vanishing says that a term has no part in the linear predictor."""
    parts = []
    for numeric in dict.fromkeys(columns[i].numeric for i in positions):
        for pattern in patterns:
            parts.append(_projected(columns, numeric, pattern))
    return np.concatenate(parts)


def _projected(
    columns: list[_Column], numeric: frozenset[tuple[str, int]], pattern: dict[str, bool]
) -> FloatArray:
    """The function on the cells of a pattern's factors: averaged over others, about its means."""
    sizes = {f: c.codes[f].size for c in columns for f in c.codes if f in pattern}
    rows = np.zeros((prod(sizes[f] for f in pattern), len(columns)))
    for position, column in enumerate(columns):
        if column.numeric != numeric:
            continue
        weight = prod(
            (float(codes.mean()) for f, codes in column.codes.items() if f not in pattern),
            start=1.0,
        )
        vector = np.full(1, weight)
        for factor, reduced in pattern.items():
            codes = column.codes.get(factor, np.ones(sizes[factor]))
            vector = np.kron(vector, codes - codes.mean() if reduced else codes)
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
