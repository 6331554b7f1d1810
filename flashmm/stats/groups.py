"""Groups of kept sums, by name: which of them a user means, and coarser ones of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sized
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from flashmm.arrays.labels import as_pandas, by_name
from flashmm.arrays.types import BoolArray, IntArray
from flashmm.designs.design import RESIDUAL, CovarianceStructure
from flashmm.exceptions import InputError, listing
from flashmm.stats.algebra import column_positions, merged_groups
from flashmm.stats.fields import GroupSums, Sums
from flashmm.stats.group_names import known_groups
from flashmm.stats.grouping import labels_of
from flashmm.stats.own_rows import PatternedStats, with_coarser_groups

__all__ = [
    "absent_residuals",
    "coarser_of",
    "finer_groups",
    "grouped_by",
    "shared_columns",
    "sizes_by_group",
    "with_residual_groups",
    "without_residual_groups",
]


# Statistics of any kind.
Stats = TypeVar("Stats", bound=Any)


def grouped_by(stats: Stats, by: Any, what: str, option: str) -> Stats:
    """The statistics with the sums by the groups that a user asks for.

    Parameters
    ----------
    stats
        Statistics with sums by group.
    by
        None or the name of these groups; of groups by several factors (``"batch:cask"``) one of
        those, or some; a grouping factor of the random effects, or a mapping or Series from their
        names to those of coarser ones, that each of them lies within.
    what, option
        What needs the groups, and the option that names them, for messages.
    """
    groups = known_groups(stats, what)
    _refuse_labels_of_samples(stats, groups, by, option)
    if isinstance(by, list | tuple) and by and all(isinstance(name, str) for name in by):
        by = ":".join(by)
    if isinstance(by, int | np.integer) and not isinstance(by, bool) and str(by) == groups.name:
        return stats  # a column that is called by a number
    if by is None or (isinstance(by, str) and by == groups.name):
        return stats
    if isinstance(by, str):
        codes, labels = _of_factor(stats, groups, by, option)
        name = by
    else:
        codes, labels, name = _of_mapping(groups, by, option)

    def merge(sums: Sums) -> GroupSums:
        return merged_groups(sums, codes, name, labels)

    own: Any = stats
    if isinstance(stats, PatternedStats):
        own = with_coarser_groups(stats, codes, merge)
        coarser: Stats = own
        return coarser
    return replace(stats, groups=merge(own))


def _refuse_labels_of_samples(stats: Any, groups: GroupSums, by: Any, option: str) -> None:
    """Raise where ``by`` holds a label of each sample, which statistics have none of."""
    if isinstance(by, str) or not isinstance(by, Sized) or isinstance(by, Mapping):
        return
    by_sample = len(by) == stats.n and len(by) > max(groups.k, len(groups.name.split(":")))
    if by_sample:
        raise InputError(
            f"`{option}` holds a value for each of {stats.n} samples, but samples are known when "
            f"the model is built: pass them as sums_by=, and {option}= their name. Sums are kept "
            f"by {groups.name!r}."
        )


def _of_factor(stats: Any, groups: GroupSums, by: str, option: str) -> tuple[IntArray, list[str]]:
    """Coarser groups by the levels of a grouping factor, one in each group."""
    parts = _of_parts(groups, by)
    if parts is not None:
        return parts
    terms = [t for t, term in enumerate(stats.structure.terms) if by in (term.group, term.name)]
    advice = (
        f"Sums are kept by {groups.name!r}: {option} may be that, a factor that it lies within, or "
        "a mapping from its groups to coarser ones. For others build the model with sums_by="
        f"{by!r}."
    )
    if not terms:
        raise InputError(f"{option}={by!r} is not what the sums are kept by. {advice}")
    of = [part.structure.terms[terms[0]].levels for part in groups.parts]
    if any(len(levels) != 1 for levels in of):
        raise InputError(
            f"Some groups of {groups.name!r} have several levels of {by!r}, or none. {advice}"
        )
    labels = [level for level in stats.structure.terms[terms[0]].levels if (level,) in of]
    return np.array([labels.index(levels[0]) for levels in of], dtype=np.intp), labels


def _of_parts(groups: GroupSums, by: str) -> tuple[IntArray, list[str]] | None:
    """Coarser groups by some of the factors that a name like ``"batch:cask"`` joins, in any order.

    None where it does not join them, or where colons within labels leave open which is which.
    """
    factors, asked = groups.name.split(":"), by.split(":")
    split = [label.split(":") for label in groups.labels]
    if len(factors) < 2 or len(set(factors)) < len(factors) or not set(asked) <= set(factors):
        return None
    if any(len(label) != len(factors) for label in split):
        return None
    where = [factors.index(name) for name in asked]
    found = [":".join(label[i] for i in where) for label in split]
    labels = list(dict.fromkeys(found))
    return np.array([labels.index(label) for label in found], dtype=np.intp), labels


def _of_mapping(groups: GroupSums, by: Any, option: str) -> tuple[IntArray, list[str], str]:
    by = as_pandas(by)
    mapping = by_name(by)
    if mapping is None:
        raise InputError(
            f"`{option}` must be the name of a factor, or a dict or Series from the groups of "
            f"{groups.name!r} to coarser ones, not {type(by).__name__}."
        )
    known = _by_label(mapping, groups)
    absent = [label for label in groups.labels if label not in known or pd.isna(known[label])]
    if absent:
        raise InputError(f"`{option}` says nothing of the groups {listing(absent)}.")
    found = [str(known[label]) for label in groups.labels]
    labels = list(dict.fromkeys(found))
    name = getattr(by, "name", None)
    codes = np.array([labels.index(label) for label in found], dtype=np.intp)
    return codes, labels, name if isinstance(name, str) else "group"


def _by_label(mapping: Mapping[Any, Any], groups: GroupSums) -> dict[str, Any]:
    """A mapping from groups by their labels; numbers may be written 1 or 1.0."""
    values = {str(key): value for key, value in mapping.items()}
    return {
        label: values[text]
        for text, label in labels_of(values, groups.labels, numbers=True).items()
    }


def coarser_of(stats: Any, by: Any) -> str:
    """As text which groups of the sums lie in which of those that a mapping makes, for new samples.

    Empty where ``by`` is a name, which is then that of a column.
    """
    groups, mapping = known_groups(stats), None if isinstance(by, str) else by_name(as_pandas(by))
    if mapping is None:
        return ""
    known = _by_label(mapping, groups)
    within = {label: str(known[label]) for label in groups.labels}
    return json.dumps({"by": groups.name, "groups": within}, ensure_ascii=False)


def finer_groups(text: str) -> tuple[str, dict[str, str]]:
    """What `coarser_of` wrote: the name of the finer groups, and the coarser one of each.

    Raises
    ------
    InputError
        If the text is something else.
    """
    try:
        found = json.loads(text)
        by, within = found["by"], found["groups"]
        good = isinstance(by, str) and all(isinstance(value, str) for value in within.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        good = False
    if not good:
        raise InputError(f"The groups of its residual variances cannot be read: {text[:80]!r}.")
    return by, dict(within)


def without_residual_groups(stats: Stats) -> Stats:
    """The statistics with one residual variance; their sums by group stay."""
    if len(stats.structure.residuals) == 1:
        return stats
    return _with_structure(
        stats, replace(stats.structure, residuals=(RESIDUAL,), residual_sizes=())
    )


def _with_structure(stats: Stats, structure: CovarianceStructure) -> Stats:
    """The statistics with a structure that differs in its residual variances alone."""
    if isinstance(stats, PatternedStats):
        return replace(stats, sums=replace(stats.sums, structure=structure))
    return replace(stats, structure=structure)


def with_residual_groups(stats: Stats, by: Any) -> Stats:
    """The statistics with a residual variance for each group that a user asks for.

    Raises
    ------
    InputError
        If there are no sums by such groups, only one group, or one with a single sample.
    """
    if isinstance(by, str) and stats.groups is not None and stats.groups.k == 1:
        by = stats.groups.name if by == stats.groups.name else by
    if stats.groups is None:
        raise InputError(
            f"residual_by={by!r} needs sums by these groups, which these statistics do not have. "
            f"Build the model with sums_by={by!r}, a column of `data`, several of them joined by "
            "':', or the group of each sample."
        )
    stats = grouped_by(stats, by, "A residual variance by group", "residual_by")
    groups = known_groups(stats)
    if groups.k < 2:
        raise InputError(
            f"residual_by={groups.name!r} has one group, {groups.labels[0]!r}: leave it out."
        )
    if stats.p + stats.q == 0:
        raise InputError("Residual variances by group need a fixed or a random effect: `~ 1`.")
    small = [label for label, part in zip(groups.labels, groups.parts, strict=True) if part.n < 2]
    if small:
        raise InputError(
            f"Groups of {groups.name!r} with one sample, {listing(small)}, have no residual "
            "variance of their own. Join them with others: residual_by={'group': 'coarser', ...}."
        )
    structure: CovarianceStructure = replace(
        stats.structure,
        residuals=tuple(f"{RESIDUAL}[{label}]" for label in groups.labels),
        residual_sizes=tuple(part.n for part in groups.parts),
    )
    return _with_structure(stats, structure)


def sizes_by_group(stats: Any) -> IntArray | None:
    """Samples that features have in each group with a residual variance of its own, (m, H).

    None where one residual variance is that of all, or features share their samples.
    """
    if len(stats.structure.residuals) == 1 or not isinstance(stats, PatternedStats):
        return None
    sizes = np.stack([own.n[stats.pattern] for own in stats.group_designs], axis=1)
    return np.asarray(sizes.astype(np.intp))


def absent_residuals(stats: Any) -> BoolArray | None:
    """Which residual variances of groups features have no samples of, (m, H); None for none."""
    if len(stats.structure.residuals) == 1:
        return None
    sizes = sizes_by_group(stats)
    if sizes is None:
        sizes = np.tile([part.n for part in known_groups(stats).parts], (stats.m, 1))
    return None if (sizes > 0).all() else sizes == 0


def shared_columns(stats: Sums) -> tuple[str, ...]:
    """Names of the levels of random effects that several groups have samples of."""
    groups = known_groups(stats)
    structure: CovarianceStructure = stats.structure
    count = np.zeros(structure.q, dtype=np.intp)
    for part in groups.parts:
        count[column_positions(structure, part.structure)] += 1
    names = structure.column_names
    return tuple(names[i] for i in np.flatnonzero(count > 1))
