"""Small symmetric matrices of many features, inverted pivot by pivot, all features together.

The sweep operator (Beaton 1964; Goodnight 1979, The American Statistician 33:149): after sweeping
the pivots of a set s of A, its blocks are -A_ss^-1, A_ss^-1 A_sr and the Schur complement
A_rr - A_rs A_ss^-1 A_sr. Features are the last axis: LAPACK takes longer for a call per matrix.
"""

from __future__ import annotations

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray

# Matrices of so many bytes are worked on together, so that they stay in the cache; no fewer
# than these, whatever their size.
_CACHE_BYTES, _FEW = 2**19, 64

__all__ = ["SAFE_PIVOT", "planes", "sweep", "unplaned"]

# A pivot below this share of its diagonal entry has lost digits.
SAFE_PIVOT = 1e-4


def planes(A: FloatArray) -> FloatArray:
    """A copy of matrices (B, c, c) with the features last, shape (c, c, B)."""
    return np.array(np.moveaxis(A, 0, 2), order="C")


def unplaned(A: FloatArray) -> FloatArray:
    """The inverse of `planes`."""
    return np.ascontiguousarray(np.moveaxis(A, 2, 0))


def sweep(
    A: FloatArray, pivots: range, dependent: float | None = None
) -> tuple[FloatArray, BoolArray]:
    """Sweep some pivots of symmetric matrices (c, c, B), in place.

    A pivot below the share ``dependent`` of its diagonal entry is left out, if that is given.

    Returns
    -------
    tuple of array
        The pivots as they were met, shape (len(pivots), B): the product is the determinant of
        their block. And where they are positive and keep their digits, (B,).
    """
    c, B = A.shape[1:]
    met = np.empty((len(pivots), B))
    least = np.maximum([SAFE_PIVOT * A[k, k] for k in pivots], 0.0).reshape(len(pivots), B)
    none = None if dependent is None else dependent / SAFE_PIVOT * least
    step = max(_FEW, _CACHE_BYTES // (8 * max(c, 1) ** 2))
    with np.errstate(all="ignore"):
        for start in range(0, B, step):
            here = slice(start, start + step)
            _sweep(A[:, :, here], pivots, met[:, here], None if none is None else none[:, here])
        return met, np.asarray((met > least).all(axis=0))


def _sweep(A: FloatArray, pivots: range, met: FloatArray, none: FloatArray | None) -> None:
    product = np.empty(A.shape)
    for number, k in enumerate(pivots):
        met[number] = A[k, k]
        column = A[k].copy()
        row = column / met[number]
        if none is not None:
            row[:, met[number] <= none[number]] = 0.0
        np.multiply(column[:, None], row, out=product)
        A -= product
        A[k] = A[:, k] = row
        A[k, k] = -1.0 / met[number]
