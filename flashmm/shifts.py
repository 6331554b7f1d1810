"""Shifted sums, for features whose mean dwarfs their spread.

The raw sum of squares of such a feature holds no digits of its variation. Subtracting X a
first, with a close to its least-squares fit, keeps them; the algebra below moves sums from one
a to another exactly, so shifted statistics still add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.design import Design
    from flashmm.sources import Source
    from flashmm.summary_stats import SummaryStats

    FloatArray = NDArray[np.float64]

__all__ = ["Shift", "add_shifts", "block_sums", "shifted_sums"]

# A feature whose variation about X is below this share of its sum of squares is summed
# again after subtracting X a: raw sums would cancel.
_CANCELLATION = 1e-6


@dataclass(frozen=True)
class Shift:
    """Sums of y - X a for the features whose variation drowns in the raw sums.

    Parameters
    ----------
    features
        Positions of the f features concerned.
    a
        Coefficients that were subtracted, shape (p, f).
    XY, ZY, yy
        The sums for y - X a, shapes (p, f), (q, f), (f,).
    """

    features: NDArray[np.intp]
    a: FloatArray
    XY: FloatArray
    ZY: FloatArray
    yy: FloatArray


def block_sums(
    values: Any, X: FloatArray, Z: sp.csr_array, transposed_Z: sp.csr_array
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """X'Y', Z'Y' and the sums of squares of one block of features (f, n)."""
    if sp.issparse(values):
        ZY = sp.csr_array(values @ Z)
        squares = values.multiply(values).sum(axis=1)
        return (values @ X).T, ZY.toarray().T, np.asarray(squares).ravel()
    return (values @ X).T, np.asarray(transposed_Z @ values.T), (values * values).sum(axis=1)


def shifted_sums(
    stats: SummaryStats, source: Source, design: Design, transposed_Z: sp.csr_array
) -> Shift | None:
    """Sum again, after subtracting X a, the features whose raw sums cancel.

    a is the least-squares fit, found in two rounds: the first is only as exact as the raw
    sums, the second works on what the first left over.
    """
    X = design.X
    inverse = np.linalg.pinv(stats.XX, hermitian=True)
    a = inverse @ stats.XY
    rss = stats.yy - (stats.XY * a).sum(axis=0)
    features = np.flatnonzero((rss < _CANCELLATION * stats.yy) & (stats.yy > 0))
    if features.size == 0:
        return None
    p, q = X.shape[1], design.Z.shape[1]
    shape = features.size
    shift = Shift(
        features, a[:, features], np.empty((p, shape)), np.empty((q, shape)), np.empty(shape)
    )
    position = 0
    for block in source.dense_blocks(features):
        here = slice(position, position + block.values.shape[0])
        position = here.stop
        left = block.values - (X @ shift.a[:, here]).T
        correction = inverse @ (left @ X).T
        left -= (X @ correction).T
        shift.a[:, here] += correction
        shift.XY[:, here], shift.ZY[:, here], shift.yy[here] = block_sums(
            left, X, design.Z, transposed_Z
        )
    return shift


def _move(stats: SummaryStats, features: NDArray[np.intp], a: FloatArray) -> Shift:
    """The sums of y - X a for some features, from whatever shift the statistics carry."""
    XY, ZY, yy, own = stats.centred()
    delta = a - own[:, features]
    change = stats.XX @ delta
    return Shift(
        features,
        a,
        XY[:, features] - change,
        ZY[:, features] - stats.ZX @ delta,
        yy[features] - 2.0 * (delta * XY[:, features]).sum(axis=0) + (delta * change).sum(axis=0),
    )


def add_shifts(left: SummaryStats, right: SummaryStats) -> Shift | None:
    """Shifted sums of the union of two sets of samples, with the a of the left where it has one."""
    shifted = [part.shift for part in (left, right) if part.shift is not None]
    if not shifted:
        return None
    features = np.unique(np.concatenate([shift.features for shift in shifted]))
    a = np.zeros((left.p, left.m))
    for shift in reversed(shifted):
        a[:, shift.features] = shift.a
    mine, theirs = _move(left, features, a[:, features]), _move(right, features, a[:, features])
    return Shift(
        features,
        a[:, features],
        mine.XY + theirs.XY,
        mine.ZY + theirs.ZY,
        mine.yy + theirs.yy,
    )
