"""A root L of a known covariance K = L L' between the levels of a random term, and finding one.

Effects b ~ N(0, theta K) are b = L u with independent u (Harville 1977, section 2), so that a term
with a known covariance is one with independent effects whose columns are Z L.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from flashmm.arrays.types import FloatArray, IntArray

__all__ = [
    "KnownRoot",
    "NotSemiDefiniteError",
    "inverse_root",
    "kept_form",
    "matrix_root",
    "narrowed",
]

# Eigenvalues this far below zero, relative to the largest, are rounding of what K was made of.
_NEGATIVE = 1e-6
# Roots with a larger share of non-zeros are kept dense.
_SPARSE = 0.1
_EPS = float(np.finfo(np.float64).eps)


class NotSemiDefiniteError(ValueError):
    """A matrix has a negative eigenvalue, the argument."""

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue."""
        return float(self.args[0])


@dataclass(frozen=True, eq=False, repr=False)
class KnownRoot:
    """The root L of the covariance K = L L' between the levels of a term.

    Parameters
    ----------
    L
        Shape (levels, r), dense or sparse.
    """

    L: FloatArray | sp.csr_array

    def __eq__(self, other: object) -> bool:
        """Whether two roots are the same numbers."""
        if not isinstance(other, KnownRoot):
            return NotImplemented
        if self is other or self.L is other.L:
            return True
        if self.L.shape != other.L.shape:
            return False
        if isinstance(self.L, np.ndarray) and isinstance(other.L, np.ndarray):
            return bool(np.array_equal(self.L, other.L))
        return bool(abs(sp.csr_array(self.L) - sp.csr_array(other.L)).sum() == 0)

    def __hash__(self) -> int:
        return hash(self.L.shape)

    def __repr__(self) -> str:
        return f"<root of a known covariance, {self.L.shape[0]} x {self.L.shape[1]}>"

    @property
    def rank(self) -> int:
        """Number of columns of L."""
        return int(self.L.shape[1])

    @cached_property
    def diagonal(self) -> FloatArray:
        """Diagonal of K, shape (levels,)."""
        if isinstance(self.L, np.ndarray):
            return np.asarray((self.L * self.L).sum(axis=1))
        return np.asarray(self.L.multiply(self.L).sum(axis=1)).ravel()

    @property
    def mean_diagonal(self) -> float:
        """Mean of the diagonal of K: variance of an average level over theta."""
        return float(self.diagonal.mean()) if self.L.shape[0] else 0.0

    def rows(self, positions: Any) -> KnownRoot:
        """The root for some of the levels, by position or mask."""
        return KnownRoot(self.L[positions])

    def covariance(self) -> FloatArray:
        """K itself, shape (levels, levels)."""
        K: Any = self.L @ self.L.T
        return np.asarray(K.toarray() if sp.issparse(K) else K)


def matrix_root(K: FloatArray | sp.csr_array) -> FloatArray | sp.csr_array:
    """A root of a symmetric positive semi-definite matrix, lower triangular where it is definite.

    Parameters
    ----------
    K
        Shape (q, q); a sparse one falls into the components that it links.

    Raises
    ------
    NotSemiDefiniteError
        If an eigenvalue is negative by more than rounding.
    """
    if not sp.issparse(K):
        return _dense_root(np.asarray(K, dtype=np.float64))
    return _by_components(sp.csr_array(K), _dense_root)


def inverse_root(P: FloatArray | sp.csr_array) -> FloatArray | sp.csr_array:
    """A root of the inverse of a positive definite matrix P.

    With P = C C' it is C^-1', upper triangular. What P links by no path stays apart.

    Raises
    ------
    NotSemiDefiniteError
        If P is not positive definite.
    """
    if not sp.issparse(P):
        return _dense_inverse_root(np.asarray(P, dtype=np.float64))
    return _by_components(sp.csr_array(P), _dense_inverse_root)


def _dense_root(K: FloatArray) -> FloatArray:
    if K.shape[0] == 0:
        return K
    length = np.sqrt(np.maximum(np.diagonal(K), 0.0))
    if (length > 0).all():
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = K / length[:, None] / length
        root, info = scipy.linalg.lapack.dpotrf(scaled, lower=True, clean=True, overwrite_a=True)
        if info == 0 and np.diagonal(root).min() > 1e-6:
            return np.asarray(root * length[:, None])
    values, vectors = scipy.linalg.eigh(K)
    largest = max(float(values[-1]), 0.0)
    if values[0] < -_NEGATIVE * largest or largest == 0.0 > values[0]:
        raise NotSemiDefiniteError(float(values[0]))
    kept = values > K.shape[0] * _EPS * largest
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def _dense_inverse_root(P: FloatArray) -> FloatArray:
    if P.shape[0] == 0:
        return P
    values = np.diagonal(P)
    if (values <= 0).any():
        raise NotSemiDefiniteError(float(np.linalg.eigvalsh(P)[0]))
    length = np.sqrt(values)
    C, info = scipy.linalg.lapack.dpotrf(P / length[:, None] / length, lower=True, clean=True)
    if info == 0 and np.diagonal(C).min() > 1e-7:
        inverse, info = scipy.linalg.lapack.dtrtri(C, lower=True)
        if info == 0:
            return np.asarray(inverse.T / length[:, None])
    raise NotSemiDefiniteError(float(np.linalg.eigvalsh(P)[0]))


def _by_components(K: sp.csr_array, root_of: Any) -> FloatArray | sp.csr_array:
    """The root of each component of a sparse matrix, side by side."""
    q = K.shape[0]
    count, label = connected_components(K, directed=False)
    if count == 1:
        return np.asarray(root_of(K.toarray()))
    order = np.argsort(label, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(label, minlength=count))])
    single = np.flatnonzero(np.diff(bounds) == 1)
    alone = order[bounds[single]]
    diagonal = K.diagonal()
    inverse = root_of is _dense_inverse_root
    own = diagonal[alone]
    if own.size and (own.min() < 0 or (inverse and own.min() <= 0)):
        raise NotSemiDefiniteError(float(own.min()))
    own = np.sqrt(1.0 / own) if inverse else np.sqrt(own)
    rows, columns, values = [alone], [np.arange(alone.size)], [own]
    width = alone.size
    for i in np.flatnonzero(np.diff(bounds) > 1):
        here = order[bounds[i] : bounds[i + 1]]
        root = root_of(K[here, :][:, here].toarray())
        row, column = np.nonzero(root)
        rows.append(here[row])
        columns.append(width + column)
        values.append(root[row, column])
        width += root.shape[1]
    entries = (np.concatenate(rows), np.concatenate(columns))
    L = sp.csr_array((np.concatenate(values), entries), shape=(q, width))
    # Columns in the order of the levels that they begin at keep Z L as narrow as Z.
    first = np.full(width, q)
    coo = L.tocoo()
    np.minimum.at(first, coo.col, coo.row)
    L = sp.csr_array(L[:, np.argsort(first, kind="stable")])
    return kept_form(L)


def kept_form(L: sp.csr_array) -> FloatArray | sp.csr_array:
    """A root as it is kept: dense unless most of it is zero."""
    return np.asarray(L.toarray()) if L.nnz > _SPARSE * L.shape[0] * L.shape[1] else L


def narrowed(L: FloatArray | sp.csr_array, seen: IntArray) -> FloatArray | sp.csr_array:
    """A root of the same K in which the rows of some levels need as few columns as may be.

    Another root is L Q with Q orthogonal: with L[seen]' = Q R the rows ``seen`` are R', which has
    as many columns as there are such levels. More columns than levels are given up too.
    """
    levels, r = L.shape
    if not isinstance(L, np.ndarray):
        if r <= levels:
            return L
        L = L.toarray()
    used = int(np.count_nonzero((L[seen] != 0).any(axis=0)))
    if r > levels:
        order = np.concatenate([seen, np.setdiff1d(np.arange(levels), seen)])
        R: FloatArray = np.asarray(np.linalg.qr(L[order].T, mode="r"))
        result = np.empty((levels, R.shape[0]))
        result[order] = R.T
        return result
    if used <= seen.size or seen.size == levels:
        return L
    Q, R = scipy.linalg.qr(L[seen].T)
    turned = L @ Q
    turned[seen] = R.T
    turned[seen, min(seen.size, r) :] = 0.0
    return np.asarray(turned)
