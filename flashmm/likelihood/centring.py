"""Other coordinates for correlated random effects that are almost collinear.

Effects b of a level with z'b in the predictor may be written A^-1 b with z'A: another covariance
matrix, A^-1 D A^-1', of which theta is a linear function, and the same model. Intercepts and slopes
of calendar years are almost collinear, since all years are far from year zero; with years about
their mean in place of years they are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import listing

__all__ = ["Turn", "advice", "centring"]

# Effects whose smallest eigenvalue of the correlation matrix is below this are turned: a variable
# whose mean is more than about 30 times its spread.
_COLLINEAR = 1e-3
# What is left of an effect beside those before it may not be rounding.
_ROUNDING = 1e-11
# An effect of which less than this is left is one of those before it: a constant slope.
_CONSTANT = 1e-14


@dataclass(frozen=True)
class Turn:
    """A change of coordinates of the random effects.

    Parameters
    ----------
    A
        b = A c for the new effects c, block-diagonal, shape (q, q).
    T
        Theta of c as a linear function of theta of b, shape (k + 1, k + 1).
    T_inverse
        Its inverse.
    """

    A: sp.csr_array
    T: FloatArray
    T_inverse: FloatArray

    def keeps(self, positions: IntArray) -> bool:
        """Whether parameters at some positions are zero in one basis where they are in the other.

        For a single position: whether it is the same parameter in both.
        """
        others = np.setdiff1d(np.arange(self.T.shape[0]), positions)
        return not np.any(self.T[np.ix_(positions, others)])


def centring(ZZ: sp.csr_array, structure: CovarianceStructure) -> Turn | None:
    """Coordinates in which no effects of a term are almost collinear; None if none are.

    Each effect is taken about its regression on the effects before it, over all samples: a slope's
    variable about its mean where there is an intercept.

    Parameters
    ----------
    ZZ
        Z'Z, sparse, shape (q, q).
    structure
        Random terms.
    """
    k = len(structure.param_names)
    roots, T, T_inverse = [], np.eye(k), np.eye(k)
    turned = False
    blocks = iter(structure.blocks())
    for number, term in enumerate(structure.terms):
        s, start = len(term.effects), structure.offsets[number]
        full = term.covariance == "full" and s > 1
        single = {"identity": 1, "cs": 2, "diagonal": s}.get(term.covariance, 1)
        own = [next(blocks) for _ in range(single)]
        root = np.eye(s)
        if full:
            root = _orthogonal(_gram(ZZ, start, len(term.levels), s))
            if np.any(root != np.eye(s)):
                turned = True
                inverse = np.asarray(np.linalg.inv(root), dtype=np.float64)
                _fill(T, own[0], inverse)
                _fill(T_inverse, own[0], root)
        roots.append((len(term.levels), root))
    if not turned:
        return None
    A = [sp.kron(sp.eye_array(levels), sp.csr_array(root)) for levels, root in roots]
    return Turn(sp.csr_array(sp.block_diag(A)), T, T_inverse)


def advice(ZZ: sp.csr_array, structure: CovarianceStructure) -> str:
    """Which effects are almost combinations of those before them, and to centre; "" for none.

    Parameters
    ----------
    ZZ
        Z'Z, sparse, shape (q, q), in any units of the effects.
    structure
        Random terms.
    """
    found = []
    for number, term in enumerate(structure.terms):
        s = len(term.effects)
        if term.covariance != "full" or s == 1:
            continue
        left = _gram(ZZ, structure.offsets[number], len(term.levels), s)
        whole = np.diagonal(left).copy()
        for j in range(s):
            if _CONSTANT * whole[j] < left[j, j] < _COLLINEAR * whole[j]:
                found.append(f"{term.effects[j]} of {term.group}")
            if left[j, j] > _CONSTANT * whole[j]:
                left = left - np.outer(left[:, j], left[j]) / left[j, j]
    if not found:
        return ""
    return (
        f"Almost a combination of the effects before: {listing(found)}. A variable far from zero "
        "beside its spread, such as a calendar year, makes intercept, slope and powers so: centre "
        "it (subtract its mean) before it goes into the formulas."
    )


def _gram(ZZ: sp.csr_array, start: int, levels: int, s: int) -> FloatArray:
    """Sum over the levels of the s x s blocks of Z'Z."""
    first, last = ZZ.indptr[start], ZZ.indptr[start + levels * s]
    row = np.repeat(np.arange(levels * s), np.diff(ZZ.indptr[start : start + levels * s + 1]))
    column = ZZ.indices[first:last] - start
    same = (column >= 0) & (column < levels * s) & (row // s == column // s)
    place = row[same] % s * s + column[same] % s
    sums = np.bincount(place, ZZ.data[first:last][same], s * s)
    return np.asarray(sums, dtype=np.float64).reshape(s, s)


def _orthogonal(G: FloatArray) -> FloatArray:
    """Unit upper triangular A with A'G A diagonal where G is nearly singular, else the identity."""
    s = G.shape[0]
    length = np.sqrt(np.diagonal(G))
    if not (length > 0).all():
        return np.eye(s)
    if np.linalg.eigvalsh(G / np.outer(length, length))[0] > _COLLINEAR:
        return np.eye(s)
    A, left = np.eye(s), G.copy()
    for j in range(1, s):
        for i in range(j):
            if left[i, i] <= _ROUNDING * G[i, i]:
                return np.eye(s)  # collinear to rounding: checks elsewhere say so
            share = left[i, j] / left[i, i]
            A[:, j] -= share * A[:, i]
            left[:, j] -= share * left[:, i]
            left[j, :] -= share * left[i, :]
        if left[j, j] <= _ROUNDING * G[j, j]:
            return np.eye(s)
    return A


def _fill(T: FloatArray, block: IntArray, M: FloatArray) -> None:
    """The linear map D -> M D M' of a block's entries, put into T."""
    s = block.shape[0]
    for a in range(s):
        for b in range(a, s):
            D = np.zeros((s, s))
            D[a, b] = D[b, a] = 1.0
            image = M @ D @ M.T
            for i in range(s):
                for j in range(i, s):
                    T[block[i, j], block[a, b]] = image[i, j]
