"""Shifted sums of features with rows of their own, whose least-squares fits differ by design."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.sources.readers import BLOCK_BYTES
from flashmm.stats.block_sums import BlockSums
from flashmm.stats.fields import Shift
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.shifts import CANCELLATION

__all__ = ["shifted_by_pattern"]


def shifted_by_pattern(
    stats: PatternedStats, again: Callable[[FloatArray, IntArray], BlockSums]
) -> PatternedStats:
    """Sum again, after subtracting X a, the features whose raw sums cancel; as `shifted_sums`."""
    sums, found = stats.sums, []
    step = max(1, BLOCK_BYTES // (8 * (stats.p + 1) ** 2))
    for start in range(0, stats.m, step):
        here = np.arange(start, min(start + step, stats.m))
        with np.errstate(over="ignore", invalid="ignore"):
            a = _solutions(stats.designs.XX[stats.pattern[here]], sums.XY[:, here])
            rss = sums.yy[here] - (sums.XY[:, here] * a).sum(axis=0)
        cancels = (rss < CANCELLATION * sums.yy[here]) & (sums.yy[here] > 0)
        found.append((here[cancels], a[:, cancels]))
    features = np.concatenate([part[0] for part in found]) if found else np.empty(0, dtype=np.intp)
    if features.size == 0:
        return stats
    a = np.concatenate([part[1] for part in found], axis=1)
    XX = stats.designs.XX[stats.pattern[features]]
    a = a + _solutions(XX, again(a, features).XY)
    about = again(a, features)
    groups = sums.groups
    if groups is not None:
        made = (
            replace(part, shift=Shift(features, a, own.XY, own.ZY, own.yy))
            for part, own in zip(groups.parts, about.parts, strict=True)
        )
        groups = replace(groups, parts=tuple(made))
    shift = Shift(features, a, about.XY, about.ZY, about.yy)
    return replace(stats, sums=replace(sums, shift=shift, groups=groups))


def _solutions(XX: FloatArray, XY: FloatArray) -> FloatArray:
    """Solutions of X'X a = X'y for matrices (F, p, p) and columns (p, F), shape (p, F).

    They leave out directions in which X is constant zero.
    """
    finite = np.isfinite(XY).all(axis=0)
    right = np.where(finite, XY, 0.0).T
    length = np.sqrt(np.diagonal(XX, axis1=1, axis2=2))
    length = np.where(length > 0, length, 1.0)
    values, vectors = np.linalg.eigh(XX / (length[:, :, None] * length[:, None, :]))
    lowest = 1e-13 * values.shape[1] * np.maximum(values[:, -1:], 0.0)
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=values > lowest)
    along = np.matmul((right / length)[:, None, :], vectors)[:, 0] * inverse
    solution = np.matmul(vectors, along[:, :, None])[:, :, 0] / length
    return np.asarray(np.where(finite, solution.T, np.nan))
