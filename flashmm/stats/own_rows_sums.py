"""Sums of features each of which lacks some samples: one pass for Y, one for what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from flashmm.designs.design import Design
from flashmm.exceptions import InputError
from flashmm.sources import Source
from flashmm.sources.scans import missing_values
from flashmm.stats.block_sums import BlockSums, design_columns
from flashmm.stats.own_rows import PatternedStats, joined_shift
from flashmm.stats.shifts import cancelling, least_squares
from flashmm.stats.streaming import passing, suitable_block_bytes
from flashmm.stats.summary_stats import SummaryStats
from flashmm.stats.summing import first_sums, second_sums, statistics_of
from flashmm.stats.sums import Shift

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]

__all__ = ["sum_by_pattern"]


def sum_by_pattern(
    source: Source,
    design: Design,
    *,
    weights: FloatArray | None = None,
    min_count: float | None = None,
    min_fraction: float | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> SummaryStats | PatternedStats:
    """Statistics of features over the samples in which they are not NaN.

    Parameters
    ----------
    source, design, weights, min_count, min_fraction, workers, progress
        As in `SummaryStats.from_design`.

    Returns
    -------
    SummaryStats or PatternedStats
        Ordinary statistics when nothing is missing.

    Raises
    ------
    InputError
        If the source can be read only once.
    """
    if source.reader.one_pass:
        raise InputError(
            "missing='feature' reads Y more than once, but these blocks can be had only once. Pass "
            "Y as an array or a file."
        )
    selecting = min_count is not None or min_fraction is not None
    source = replace(source, counting=selecting, allow_missing=True, offset=design.offset)
    block_bytes = suitable_block_bytes(source, design)
    columns = design_columns(design.X, design.Z)
    total = first_sums(
        source, columns, weights, block_bytes=block_bytes, workers=workers, progress=progress
    )
    sums = statistics_of(SummaryStats, total.sums, columns, design, source.feature_names, weights)
    if selecting:
        kept = passing(total.totals, total.detected, source.n, min_count, min_fraction)
        sums, source = sums.at(kept), source.at(kept)
    observed = ~missing_values(source, block_bytes)
    if observed.all():
        return SummaryStats.from_design(
            replace(source, allow_missing=False, counting=False), design, weights=weights
        )
    packed, pattern = np.unique(np.packbits(observed, axis=1), axis=0, return_inverse=True)
    n = source.n
    X, Z = np.asarray(design.X[:n]), sp.csr_array(design.Z[:n])
    if weights is not None:
        root = np.sqrt(weights)[:, None]
        X, Z = X * root, sp.csr_array(Z * root)
    stats = PatternedStats(
        sums,
        X,
        Z,
        np.zeros(n) if weights is None else np.log(weights),
        np.unpackbits(packed, axis=1, count=n).astype(bool),
        pattern.reshape(-1),
    )

    again = partial(second_sums, source, columns, weights, block_bytes, workers)
    shift = _shift(stats, again)
    return stats if shift is None else replace(stats, sums=replace(sums, shift=shift))


def _shift(
    stats: PatternedStats, again: Callable[[FloatArray, IntArray], BlockSums]
) -> Shift | None:
    """Sum again, after subtracting X a, the features whose raw sums cancel; as `shifted_sums`."""
    parts: dict[int, Any] = {}
    sums = stats.sums
    for k in range(stats.n_patterns):
        members = stats.members(k)
        features, a = cancelling(stats.XX_of(k), sums.XY[:, members], sums.yy[members])
        if features.size:
            one = sums.at(members)
            parts[k] = Shift(
                features, a, one.XY[:, features], one.ZY[:, features], one.yy[features]
            )
    first = joined_shift(stats, parts)
    if first is None:
        return None
    features, a = first.features, first.a
    about = again(a, features)
    for k in parts:
        here = np.flatnonzero(stats.pattern[features] == k)
        a[:, here] += least_squares(stats.XX_of(k), about.XY[:, here])
    about = again(a, features)
    return Shift(features, a, about.XY, about.ZY, about.yy)
