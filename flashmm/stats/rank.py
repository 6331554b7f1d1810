"""The rank of X from its statistics, and models without the columns that depend on others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.aliasing import Aliasing, dependencies
from flashmm.exceptions import InputError, RankWarning, listing, warn
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.root import scaled_gram
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["Dependence", "dependence", "of_full_rank"]

AnyStats = TypeVar("AnyStats", SummaryStats, PatternedStats, SummaryStats | PatternedStats)

# X'X tells a dependent column from a nearly dependent one down to its rounding; a root of it, whose
# singular values are not squared, much further.
_RANK_OF_ROOT = 1e-11
_RANK_OF_XX = 3e-6


@dataclass(frozen=True)
class Dependence:
    """Independent columns of X, and all columns in terms of them, in units of length one.

    Parameters
    ----------
    kept
        Positions of the independent columns, shape (rank,).
    weights
        Every column as a combination of these, shape (rank, p).
    length
        Lengths of the columns, shape (p,).
    """

    kept: IntArray
    weights: FloatArray
    length: FloatArray

    @property
    def p(self) -> int:
        """Number of columns."""
        return int(self.length.size)

    @property
    def dropped(self) -> IntArray:
        """Positions of the dependent columns."""
        return np.setdiff1d(np.arange(self.p), self.kept)

    def combinations(self) -> Iterator[tuple[int, IntArray]]:
        """Each dependent column, and the columns that it is a combination of."""
        for j in self.dropped:
            yield int(j), self.kept[np.abs(self.weights[:, j]) > 1e-6]

    def aliasing(self, names: tuple[str, ...], before: Aliasing | None = None) -> Aliasing:
        """The same in the units of X, beside what was left out before."""
        length = np.where(self.length > 0, self.length, 1.0)
        every = self.weights * length / length[self.kept, None]
        if before is None:
            return Aliasing(names, self.kept, self.dropped, every[:, self.dropped])
        gone = np.concatenate([before.kept[self.dropped], before.dropped])
        weights = np.hstack([every[:, self.dropped], every @ before.weights])
        order = np.argsort(gone)
        return Aliasing(before.names, before.kept[self.kept], gone[order], weights[:, order])


def dependence(XX: FloatArray, root: FloatArray | None) -> Dependence:
    """Which columns of X depend on others, by X'X (p, p), or its root R'R = X'X if there is one."""
    scaled, length = scaled_gram(XX)
    p = length.size
    if p == 0:
        return Dependence(np.arange(0), np.zeros((0, 0)), length)
    if root is not None:
        columns = root / np.where(length > 0, length, 1.0)
        singular = np.linalg.svd(columns, compute_uv=False)
        rank, tolerance = int((singular > _RANK_OF_ROOT * singular[0]).sum()), _RANK_OF_ROOT
    else:
        values, vectors = np.linalg.eigh(scaled)
        rank, tolerance = int((values > p * 1e-13 * values[-1]).sum()), _RANK_OF_XX
        columns = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    if rank == p:
        return Dependence(np.arange(p), np.eye(p), length)
    return Dependence(*dependencies(columns, rank, tolerance), length)


def _shared_dependence(stats: SummaryStats | PatternedStats) -> Dependence:
    """Which columns of X depend on others; those that a feature's own covariates enter do not."""
    if not isinstance(stats, PatternedStats):
        return dependence(stats.XX, stats.XX_root)
    XX, root, p = stats.sums.XX, stats.sums.XX_root, stats.p
    shared = np.array([i for i, own in enumerate(stats.own.of) if not own], dtype=np.intp)
    found = dependence(XX[np.ix_(shared, shared)], None if root is None else root[:, shared])
    own = np.setdiff1d(np.arange(p), shared)
    kept = np.sort(np.concatenate([shared[found.kept], own]))
    weights = np.zeros((kept.size, p))
    weights[np.ix_(np.searchsorted(kept, shared[found.kept]), shared)] = found.weights
    weights[np.searchsorted(kept, own), own] = 1.0
    length = np.ones(p)
    length[shared] = found.length
    return Dependence(kept, weights, length)


def of_full_rank(stats: AnyStats) -> AnyStats:
    """The statistics without columns of X that depend on earlier ones; they keep a note of them.

    Raises
    ------
    InputError
        If no column is left.

    Warns
    -----
    RankWarning
        Once, naming the columns that were left out.
    """
    found = _shared_dependence(stats)
    if found.kept.size == found.p:
        return stats
    if found.kept.size == 0:
        raise InputError("Every column of `fixed` is zero in every sample.")
    names = tuple(stats.coef_names)
    left = stats.keep(fixed=[names[i] for i in found.kept])
    aliased = found.aliasing(names, stats.aliased)
    warn(
        f'`fixed` has rank {found.kept.size} but {found.p} columns; left out, as rank="drop" '
        f"asks: {listing([names[i] for i in found.dropped], 10)}. Contrasts, marginal means and "
        "predictions that these samples do not determine are NaN.",
        RankWarning,
    )
    return left.noting(aliased)
