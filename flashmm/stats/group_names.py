"""Groups of kept sums by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from flashmm.arrays.types import IntArray
from flashmm.exceptions import InputError, listing, nearest
from flashmm.stats.fields import GroupSums, Sums

__all__ = ["group_positions", "known_groups"]


def known_groups(stats: Any, what: str = "This") -> GroupSums:
    """The sums by group; an error where there are none."""
    if stats.groups is None:
        raise InputError(
            f"{what} needs sums by group, which these statistics do not have. Build the model "
            'with sums_by="Subject", a column of `data` or the group of each sample.'
        )
    groups: GroupSums = stats.groups
    return groups


def group_positions(stats: Sums, names: Any) -> IntArray:
    """Positions of groups by name."""
    groups = known_groups(stats, "`without`")
    listed = not isinstance(names, str) and isinstance(names, Iterable)
    asked = [str(name) for name in (names if listed else [names])]
    unknown = [name for name in asked if name not in groups.labels]
    if unknown or not asked:
        near = nearest(unknown[0], list(groups.labels)) if unknown else ""
        raise InputError(f"Unknown group of {groups.name!r}: {listing(unknown)}. {near}")
    return np.array(sorted({groups.labels.index(name) for name in asked}), dtype=np.intp)
