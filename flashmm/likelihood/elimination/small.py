"""Tiny s x s matrices, one per level and feature, held as planes: one array per entry.

A symmetric matrix is the list of its upper triangle's entries, row by row; any other matrix a
list of rows. For s of 1 to 6 elementwise arithmetic on planes beats a call per matrix by far,
and needs nothing of an array library but arithmetic. Planes broadcast.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from flashmm.arrays.types import FloatArray

Plane: TypeAlias = FloatArray
Symmetric: TypeAlias = list[Plane]
Matrix: TypeAlias = list[list[Plane]]

__all__ = [
    "diagonal",
    "factorise",
    "full",
    "inverse_of_factors",
    "inverse_of_lower",
    "matvec",
    "pairs",
    "position",
    "product",
    "sandwich",
    "symmetric",
    "transpose",
]


def pairs(s: int) -> list[tuple[int, int]]:
    """The s (s + 1) / 2 entries of an upper triangle, row by row."""
    return [(a, b) for a in range(s) for b in range(a, s)]


def position(s: int, a: int, b: int) -> int:
    """Where entry (a, b) of a symmetric matrix is in its list."""
    a, b = min(a, b), max(a, b)
    return a * s - a * (a - 1) // 2 + (b - a)


def full(packed: Symmetric, s: int) -> Matrix:
    """All s x s entries of a symmetric matrix; nothing is copied."""
    return [[packed[position(s, a, b)] for b in range(s)] for a in range(s)]


def symmetric(matrix: Matrix) -> Symmetric:
    """The upper triangle of a matrix that is symmetric but for rounding."""
    return [matrix[a][b] for a, b in pairs(len(matrix))]


def diagonal(packed: Symmetric, s: int) -> list[Plane]:
    """The diagonal of a symmetric matrix."""
    return [packed[position(s, a, a)] for a in range(s)]


def transpose(matrix: Matrix) -> Matrix:
    """M'."""
    return [list(row) for row in zip(*matrix, strict=True)]


def _sum_of_products(left: list[Plane], right: list[Plane]) -> Plane:
    total = left[0] * right[0]
    for x, y in zip(left[1:], right[1:], strict=True):
        total = total + x * y
    return total


def product(left: Matrix, right: Matrix) -> Matrix:
    """L R."""
    columns = transpose(right)
    return [[_sum_of_products(row, column) for column in columns] for row in left]


def matvec(matrix: Matrix, vector: list[Plane]) -> list[Plane]:
    """M v."""
    return [_sum_of_products(row, vector) for row in matrix]


def sandwich(left: Matrix, packed: Symmetric) -> Symmetric:
    """L S L' for symmetric S, upper triangle only."""
    half = product(left, full(packed, len(left[0])))
    return [_sum_of_products(half[a], left[b]) for a, b in pairs(len(left))]


def factorise(packed: Symmetric, s: int) -> tuple[Matrix, list[Plane]]:
    """S = L diag(d) L' with L unit lower triangular (its entries below the diagonal), and d.

    S is positive definite exactly if every d is positive. Not finite where a pivot is zero.
    """
    work = [list(row) for row in full(packed, s)]
    lower: Matrix = [[] for _ in range(s)]
    pivots = []
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for k in range(s):
            pivots.append(work[k][k])
            for i in range(k + 1, s):
                ratio = work[k][i] / work[k][k]
                lower[i].append(ratio)
                for j in range(i, s):
                    work[i][j] = work[i][j] - ratio * work[k][j]
    return lower, pivots


def inverse_of_lower(lower: Matrix) -> Matrix:
    """Entries below the diagonal of L^-1, L unit lower triangular."""
    inverse: Matrix = []
    for i, row in enumerate(lower):
        entries = []
        for j in range(i):
            total = -row[j]
            for k in range(j + 1, i):
                total = total - row[k] * inverse[k][j]
            entries.append(total)
        inverse.append(entries)
    return inverse


def inverse_of_factors(lower: Matrix, pivots: list[Plane]) -> Symmetric:
    """S^-1 = L^-T diag(1/d) L^-1 from the factors of S."""
    s = len(pivots)
    inverse = inverse_of_lower(lower)
    reciprocal = [1.0 / pivot for pivot in pivots]
    result = []
    for a, b in pairs(s):
        # sum over k >= b of L^-1[k, a] L^-1[k, b] / d[k]
        total = reciprocal[b] if a == b else reciprocal[b] * inverse[b][a]
        for k in range(b + 1, s):
            total = total + reciprocal[k] * inverse[k][a] * inverse[k][b]
        result.append(total)
    return result
