"""Sums by group of samples where features have rows of their own.

The sums over Y stand beside those of all samples, as for other statistics; what differs by design,
X'WX, Z'WX and Z'WZ over the samples of a group, is a `DesignSums` for each group, over the columns
of Z that the group has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from flashmm.arrays.types import IntArray
from flashmm.exceptions import InputError
from flashmm.stats import grouping as limits
from flashmm.stats.algebra import column_positions
from flashmm.stats.fields import GroupSums, Shift, Sums
from flashmm.stats.grouping import Grouping
from flashmm.stats.own_designs import DesignSums
from flashmm.stats.summary_stats import SummaryStats

__all__ = [
    "check_designs_room",
    "designs_over",
    "groups_of_pattern",
    "joined_designs",
    "joined_shifts",
    "merged_designs",
    "without_shifts",
]


def groups_of_pattern(
    groups: GroupSums | None, designs: Sequence[DesignSums], pattern: int
) -> GroupSums | None:
    """The sums by group of features with one pattern, with the cross-products of its design."""
    if groups is None:
        return None
    parts = (
        replace(
            part,
            n=int(own.n[pattern]),
            XX=own.XX[pattern],
            XX_root=None,
            ZX=own.ZX[pattern],
            ZZ=own.sparse_ZZ(pattern),
            log_weights=float(own.log_weights[pattern]),
        )
        for part, own in zip(groups.parts, designs, strict=True)
    )
    return replace(groups, parts=tuple(parts))


def without_shifts(sums: SummaryStats) -> SummaryStats:
    """The sums, and those by group, as they are without a shift."""
    return replace(sums, shift=None, groups=sums.of_groups(lambda part: replace(part, shift=None)))


def joined_shift(
    members: Mapping[int, IntArray], parts: Mapping[int, Shift | None]
) -> Shift | None:
    """The shifted sums of all features from those of each pattern's, whose members are given."""
    known = {k: part for k, part in parts.items() if part is not None}
    if not known:
        return None
    features = np.concatenate([members[k][part.features] for k, part in known.items()])
    order = np.argsort(features)
    names = ("a", "XY", "ZY", "yy")
    joined = (
        np.concatenate([getattr(part, name) for part in known.values()], axis=-1)[..., order]
        for name in names
    )
    return Shift(features[order], *joined)


def joined_shifts(
    sums: SummaryStats, members: Mapping[int, IntArray], parts: Mapping[int, SummaryStats]
) -> SummaryStats:
    """Sums with the shifts, by group too, that statistics of some patterns have."""
    shift = joined_shift(members, {k: part.shift for k, part in parts.items()})
    groups = sums.groups
    if groups is not None:
        made = []
        for label, own in zip(groups.labels, groups.parts, strict=True):
            found: dict[int, Shift | None] = {}
            for k, part in parts.items():
                assert part.groups is not None
                if label in part.groups.labels:
                    there = part.groups.parts[part.groups.labels.index(label)]
                    found[k] = _over_columns(there, own)
            made.append(replace(own, shift=joined_shift(members, found)))
        groups = replace(groups, parts=tuple(made))
    return replace(sums, shift=shift, groups=groups)


def _over_columns(part: Sums, own: Sums) -> Shift | None:
    """The shift of a part over the columns of Z of another with the same terms."""
    if part.shift is None or part.structure == own.structure:
        return part.shift
    source = column_positions(part.structure, own.structure)
    ZY = np.where(source[:, None] >= 0, part.shift.ZY[np.maximum(source, 0)], 0.0)
    return replace(part.shift, ZY=ZY)


def designs_over(
    groups: GroupSums, designs: Sequence[DesignSums], coefs: IntArray, wanted: GroupSums
) -> tuple[DesignSums, ...]:
    """Designs by group over other coefficients, by position, and the columns of ``wanted``.

    Groups that ``groups`` lacks have no samples.
    """
    known = {label: i for i, label in enumerate(groups.labels)}
    result = []
    for label, part in zip(wanted.labels, wanted.parts, strict=True):
        if label not in known:
            empty = np.arange(0)
            count = designs[0].count
            q = part.structure.q
            result.append(DesignSums.zeros(count, coefs.size, q, (empty, empty)))
            continue
        i = known[label]
        source = column_positions(groups.parts[i].structure, part.structure)
        result.append(designs[i].placed(coefs, source))
    return tuple(result)


def joined_designs(
    mine: Sequence[DesignSums], theirs: Sequence[DesignSums], pairs: IntArray, sign: float
) -> tuple[DesignSums, ...]:
    """Mine + sign * theirs group by group, of the pairs of designs (P, 2)."""
    return tuple(
        one.at(pairs[:, 0]).plus(two.at(pairs[:, 1]), sign)
        for one, two in zip(mine, theirs, strict=True)
    )


def merged_designs(
    before: GroupSums, designs: Sequence[DesignSums], codes: IntArray, after: GroupSums
) -> tuple[DesignSums, ...]:
    """Designs of coarser groups: ``codes`` says which of them each of the groups belongs to."""
    coefs = np.arange(designs[0].p)
    result = []
    for code, part in enumerate(after.parts):
        placed = [
            designs[i].placed(coefs, column_positions(before.parts[i].structure, part.structure))
            for i in np.flatnonzero(codes == code).tolist()
        ]
        result.append(reduce(lambda one, two: one.plus(two, 1.0), placed))
    return tuple(result)


def check_designs_room(
    grouping: Grouping, columns: Sequence[IntArray], pairs: int, p: int, count: int
) -> None:
    """Raise where the cross-products of ``count`` designs by group take more than is allowed.

    ``pairs``: entries of Z'WZ that all samples together have.
    """
    entries = sum(own.size for own in columns)
    size = 8 * count * (grouping.k * (p * p + 2 * p) + pairs + entries * p)
    budget = limits.GROUP_BYTES
    if size > budget:
        raise InputError(
            f"The sums of {grouping.k} groups of {grouping.name!r} for {count} sets of samples, "
            f"weights or covariates of features' own take {size / 2**30:.2f} GiB, more than the "
            f"{budget / 2**30:.2f} GiB allowed. Take coarser groups or fewer features at a time, "
            "or allow more: flashmm.stats.grouping.GROUP_BYTES."
        )
