"""Shifted sums, for features whose mean dwarfs their spread.

The raw sum of squares of such a feature holds no digits of its variation. Subtracting X a
first, with a close to its least-squares fit, keeps them. The algebra below moves sums from one
a to another, so shifted statistics still add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.sources import Block
from flashmm.stats.block_sums import BlockSums, DesignColumns, block_sums
from flashmm.stats.fields import AnySums, Shift, Sums

__all__ = [
    "cancelling",
    "combine_shifts",
    "least_squares",
    "restrict_shift",
    "shifted_sums",
    "sums_about",
]

# A feature whose variation about X is below this share of its sum of squares is summed
# again after subtracting X a: raw sums would cancel.
CANCELLATION = 1e-6


@dataclass(frozen=True)
class _Gram:
    """X'X in its eigenbasis, after scaling the columns of X to unit length.

    Directions in which X is (almost) constant zero have eigenvalue zero. A quadratic form taken
    here does not cancel, however far a vector reaches into such a direction.
    """

    length: FloatArray  # (p,)
    values: FloatArray  # (p,)
    vectors: FloatArray  # (p, p)

    @classmethod
    def of(cls, XX: FloatArray) -> _Gram:
        length = np.sqrt(np.diag(XX))
        length = np.where(length > 0, length, 1.0)
        values, vectors = np.linalg.eigh(XX / np.outer(length, length))
        tolerance = 1e-13 * values.size * max(float(values[-1]), 0.0) if values.size else 0.0
        return cls(length, np.where(values > tolerance, values, 0.0), vectors)

    def times(self, d: FloatArray) -> tuple[FloatArray, FloatArray]:
        """X'X d and d'X'X d for the columns of d (p, f)."""
        coordinates = self.vectors.T @ (d * self.length[:, None])
        weighted = self.values[:, None] * coordinates
        return (self.vectors @ weighted) * self.length[:, None], (weighted * coordinates).sum(
            axis=0
        )

    def solve(self, XY: FloatArray) -> FloatArray:
        """A least-squares solution of X'X a = XY, the shortest one in units of X's columns."""
        inverse = np.divide(1.0, self.values, out=np.zeros_like(self.values), where=self.values > 0)
        coordinates = self.vectors.T @ (XY / self.length[:, None])
        return (self.vectors @ (inverse[:, None] * coordinates)) / self.length[:, None]


def shifted_sums(stats: AnySums, again: Callable[[FloatArray, IntArray], BlockSums]) -> AnySums:
    """Sum again, after subtracting X a, the features whose raw sums cancel.

    a is the least-squares fit, found in two rounds: the first is only as exact as the raw
    sums, the second works on what the first left over.

    Parameters
    ----------
    stats
        Raw sums.
    again
        Gives the sums of y - X a over all samples, from a (p, f) and the positions of its
        features (f,), ascending: `sums_about` with one more look at the data.

    Returns
    -------
    Sums
        The statistics with their shift, and that of each group.
    """
    features, a = cancelling(stats.XX, stats.XY, stats.yy)
    if features.size == 0:
        return stats
    a = a + least_squares(stats.XX, again(a, features).XY)
    sums = again(a, features)
    groups = stats.groups
    if groups is not None:
        pairs = zip(groups.parts, sums.parts, strict=True)
        parts = (replace(part, shift=_shift(features, a, own)) for part, own in pairs)
        groups = replace(groups, parts=tuple(parts))
    return replace(stats, shift=_shift(features, a, sums), groups=groups)


def _shift(features: IntArray, a: FloatArray, sums: BlockSums) -> Shift:
    return Shift(features, a, sums.XY, sums.ZY, sums.yy)


def cancelling(XX: FloatArray, XY: FloatArray, yy: FloatArray) -> tuple[IntArray, FloatArray]:
    """Features whose raw sums cancel, (f,), and their least-squares coefficients, (p, f)."""
    with np.errstate(over="ignore", invalid="ignore"):
        a = least_squares(XX, XY)
        rss = yy - (XY * a).sum(axis=0)
    features = np.flatnonzero((rss < CANCELLATION * yy) & (yy > 0))
    return features, a[:, features]


def least_squares(XX: FloatArray, XY: FloatArray) -> FloatArray:
    """A solution of X'X a = X'y that leaves out directions in which X is constant zero, (p, f)."""
    return _Gram.of(XX).solve(XY)


def sums_about(
    a: FloatArray,
    features: IntArray,
    blocks: Iterable[Block],
    columns: DesignColumns,
    weights: FloatArray | None = None,
) -> BlockSums:
    """Sums of y - X a over all samples.

    Parameters
    ----------
    a
        Coefficients of the features concerned, shape (p, f).
    features
        Their positions, ascending, shape (f,).
    blocks
        Blocks of these features.
    columns
        X and Z.
    weights
        Precision of each sample, shape (n,); None for ones.
    """
    total = BlockSums.zeros(columns, features.size)
    for block in blocks:
        slots = np.searchsorted(features, _positions(block.features))
        values: Any = block.values
        dense = values.toarray() if sp.issparse(values) else values
        left = dense - (columns.X[block.samples] @ a[:, slots]).T
        if block.missing is not None:
            left[block.missing] = 0.0
        total.add(slots, block_sums(replace(block, values=left), columns, weights))
    return total


def _positions(features: slice | IntArray) -> IntArray:
    if isinstance(features, slice):
        return np.arange(features.start, features.stop)
    return features


def _move(stats: Sums, features: IntArray, a: FloatArray) -> Shift:
    """The sums of y - X a for some features, from whatever shift the statistics carry."""
    XY, ZY, yy, own = stats.centred()
    delta = a - own[:, features]
    change, square = _Gram.of(stats.XX).times(delta)
    return Shift(
        features,
        a,
        XY[:, features] - change,
        ZY[:, features] - stats.ZX @ delta,
        yy[features] - 2.0 * (delta * XY[:, features]).sum(axis=0) + square,
    )


def restrict_shift(stats: Sums, kept: IntArray) -> Shift | None:
    """Shifted sums about a fit by some of the columns of X alone.

    Parameters
    ----------
    stats
        Statistics with all columns of X.
    kept
        Positions of the columns to keep.

    Returns
    -------
    Shift or None
        For the features that still need it: fewer columns leave more variation.
    """
    if stats.shift is None:
        return None
    features = stats.shift.features
    XY, _, _, own = stats.centred()
    score = XY[:, features] + stats.XX @ own[:, features]
    a = np.zeros_like(score)
    a[kept] = _Gram.of(stats.XX[np.ix_(kept, kept)]).solve(score[kept])
    moved = _move(stats, features, a)
    needed = np.flatnonzero(moved.yy < CANCELLATION * stats.yy[features])
    if needed.size == 0:
        return None
    return Shift(
        features[needed],
        a[np.ix_(kept, needed)],
        moved.XY[np.ix_(kept, needed)],
        moved.ZY[:, needed],
        moved.yy[needed],
    )


def combine_shifts(left: Sums, right: Sums, total: Sums, sign: float) -> Shift | None:
    """Shifted sums of two sets of samples put together, or of one taken out of the other.

    Parameters
    ----------
    left, right
        Statistics of the two sets, some of whose features are shifted.
    total
        Their raw sums, left + sign * right, without a shift.
    sign
        1 or -1.

    Returns
    -------
    Shift or None
        About the least-squares fit to all samples of ``total``, for the features that still need
        it: a small set of samples may fit X exactly where the union does not.
    """
    shifted = [part.shift for part in (left, right) if part.shift is not None]
    if not shifted:
        return None
    features = np.unique(np.concatenate([shift.features for shift in shifted]))
    score = np.zeros((total.p, features.size))
    for part, factor in ((left, 1.0), (right, sign)):
        XY, _, _, own = part.centred()
        score += factor * (XY[:, features] + part.XX @ own[:, features])
    a = _Gram.of(total.XX).solve(score)
    mine, theirs = _move(left, features, a), _move(right, features, a)
    pooled = Shift(
        features,
        a,
        mine.XY + sign * theirs.XY,
        mine.ZY + sign * theirs.ZY,
        np.maximum(mine.yy + sign * theirs.yy, 0.0),
    )
    needed = pooled.yy < CANCELLATION * total.yy[features]
    if not needed.any():
        return None
    kept = features[needed]
    return Shift(
        kept, pooled.a[:, needed], pooled.XY[:, needed], pooled.ZY[:, needed], pooled.yy[needed]
    )
