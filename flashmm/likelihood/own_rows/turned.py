"""Statistics of features with rows of their own in other coordinates of the random effects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import IntArray
from flashmm.likelihood.centring import Turn
from flashmm.stats.own_designs import DesignSums
from flashmm.stats.own_rows import PatternedStats

__all__ = ["in_coordinates"]


def in_coordinates(stats: PatternedStats, turn: Turn) -> PatternedStats:
    """The statistics with Z A in the place of Z; what is kept by group is left out."""
    sums, A = stats.sums, turn.A
    shift = sums.shift
    if shift is not None:
        shift = replace(shift, ZY=A.T @ shift.ZY)
    ZZ = sp.csr_array(A.T @ sums.ZZ @ A)
    sums = replace(sums, ZX=A.T @ sums.ZX, ZY=A.T @ sums.ZY, ZZ=ZZ, shift=shift, groups=None)
    return replace(stats, sums=sums, designs=_designs(stats.designs, A), group_designs=())


def _designs(designs: DesignSums, A: sp.csr_array) -> DesignSums:
    """The sums of all designs (P); A'Z'WZ A of each is a linear function of Z'WZ's entries."""
    ZX = np.matmul(A.T.toarray(), designs.ZX)
    off = np.flatnonzero(designs.rows != designs.columns)
    source = np.concatenate([np.arange(designs.rows.size), off])
    left = sp.csr_array(A[np.concatenate([designs.rows, designs.columns[off]])])
    right = sp.csr_array(A[np.concatenate([designs.columns, designs.rows[off]])])
    entry, i, j = _pairs(np.diff(left.indptr), np.diff(right.indptr))
    i, j = left.indptr[entry] + i, right.indptr[entry] + j
    rows, columns = left.indices[i].astype(np.intp), right.indices[j].astype(np.intp)
    value = left.data[i] * right.data[j]
    upper = np.flatnonzero(rows <= columns)
    made, place = np.unique(rows[upper] * designs.q + columns[upper], return_inverse=True)
    shape = made.size, designs.rows.size
    map_ = sp.csr_array((value[upper], (place, source[entry[upper]])), shape=shape)
    rows, columns = np.divmod(made, designs.q)
    ZZ = np.ascontiguousarray((map_ @ designs.ZZ.T).T)
    return replace(designs, ZX=ZX, ZZ=ZZ, rows=rows, columns=columns)


def _pairs(left: IntArray, right: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """All pairs of one of ``left`` and one of ``right`` things, entry by entry."""
    count = left * right
    entry = np.repeat(np.arange(count.size), count)
    within = np.arange(entry.size) - np.repeat(np.cumsum(count) - count, count)
    first, second = np.divmod(within, right[entry])
    return entry, first, second
