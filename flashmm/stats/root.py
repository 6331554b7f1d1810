"""A triangular root of X'X, for designs whose X'X holds too few digits.

X'X has the square of X's condition number: where columns nearly depend on each other (raw powers
of a year, a covariate that hardly varies) it may keep a few digits only, or none. The R of X's QR
decomposition, R'R = X'X, has the condition number of X itself (Golub & Van Loan 2013, section
5.3), and adds up as X'X does: the R of two stacked roots is that of all samples.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.stats.fields import Sums

__all__ = [
    "combine_roots",
    "near_collinear",
    "restrict_root",
    "root_of_parts",
    "root_of_rows",
    "scaled_gram",
]

# A smallest eigenvalue of the scaled X'X below this share of the largest is known to fewer than
# nine digits.
_NEAR = 1e-7


def scaled_gram(XX: FloatArray) -> tuple[FloatArray, FloatArray]:
    """X'X for columns of unit length, and their lengths; zero columns keep theirs."""
    length = np.sqrt(np.maximum(np.diag(XX), 0.0))  # rounding of differences may go below
    unit = np.where(length == 0, 1.0, length)
    return XX / np.outer(unit, unit), length


def near_collinear(XX: FloatArray) -> bool:
    """Whether some columns of X, those of zeros apart, nearly depend on each other."""
    scaled, length = scaled_gram(XX)
    there = np.flatnonzero(length > 0)
    if there.size < 2:
        return False
    values = np.linalg.eigvalsh(scaled[np.ix_(there, there)])
    return bool(values[0] < _NEAR * values[-1])


def root_of_rows(parts: Iterable[FloatArray], p: int) -> FloatArray:
    """The root of X'X from the rows of X, some at a time, shape (p, p)."""
    root = np.zeros((p, p))
    for rows in parts:
        root = _triangle(np.vstack([root, rows]))
    return root


def restrict_root(root: FloatArray | None, columns: FloatArray | IntArray) -> FloatArray | None:
    """The root of some columns of X (their positions), or of X B for a matrix B (p, b)."""
    if root is None:
        return None
    chosen = root @ columns if columns.ndim == 2 else root[:, columns]
    return _triangle(chosen)


def combine_roots(left: Sums, right: Sums, XX: FloatArray, sign: float) -> FloatArray | None:
    """The root for the samples of two statistics together.

    Parameters
    ----------
    left, right
        Statistics of the two sets of samples.
    XX
        X'X of the result.
    sign
        1, or -1 where the samples of ``right`` are taken out: a root cannot be taken apart.

    Returns
    -------
    ndarray or None
        None where X'X does without, and where a part has lost its own.
    """
    if sign < 0 or not near_collinear(XX):
        return None
    return root_of_parts((left, right))


def root_of_parts(parts: Iterable[Sums]) -> FloatArray | None:
    """The root for the samples of several statistics together; None if one has lost its own."""
    roots = [_root_of(part) for part in parts]
    known = [root for root in roots if root is not None]
    return _triangle(np.vstack(known)) if len(known) == len(roots) else None


def _root_of(stats: Sums) -> FloatArray | None:
    if stats.XX_root is not None:
        return stats.XX_root
    if near_collinear(stats.XX):
        return None
    scaled, length = scaled_gram(stats.XX)
    scaled[length == 0, length == 0] = 1.0
    return np.asarray(np.linalg.cholesky(scaled).T * length)


def _triangle(rows: FloatArray) -> FloatArray:
    """R of the QR decomposition, with rows of zeros where there are fewer rows than columns."""
    R: FloatArray = np.asarray(np.linalg.qr(rows, mode="r"))
    return np.vstack([R, np.zeros((rows.shape[1] - R.shape[0], rows.shape[1]))])
