"""Sums by group where levels of random effects have known covariances: who is related to whom."""

from __future__ import annotations

from dataclasses import replace

from flashmm.stats.algebra import with_structure, without_levels
from flashmm.stats.known_levels import in_roots
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["by_family"]

# Share of a column's sum of squares in one group that rounding leaves where there is nothing.
_NOTHING = 1e-20


def by_family(stats: SummaryStats) -> SummaryStats:
    """Statistics by group over independent effects, each group with those that reach it.

    Levels with a known covariance have effects that are sums of independent ones, b = L u. The
    levels of a family, related to no others, share no u with those of another family. Where no
    term has such a covariance these are the statistics as they are.
    """
    turned, roots = in_roots(stats, by_group=True)
    if roots is None:
        return stats
    size = turned.ZZ.diagonal()

    def reached(part: SummaryStats) -> SummaryStats:
        nothing = part.ZZ.diagonal() <= _NOTHING * size
        return with_structure(part, without_levels(part.structure, nothing))

    found: SummaryStats = replace(turned, groups=turned.of_groups(reached))
    return found
