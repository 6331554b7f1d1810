"""Adding and subtracting summary statistics: aligned by label, then summed.

Statistics of different samples may list their coefficients and features in different orders and
know different levels of a grouping factor; a level that one of them lacks has zero sums there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from flashmm.arrays.types import BoolArray, IntArray
from flashmm.designs.aliasing import Aliasing
from flashmm.designs.design import CovarianceStructure, RandomTerm
from flashmm.exceptions import InputError, listing, nearest
from flashmm.stats.fields import AnySums, GroupSums, Sums
from flashmm.stats.root import combine_roots, near_collinear, restrict_root, root_of_parts
from flashmm.stats.shifts import combine_shifts

__all__ = [
    "Features",
    "added",
    "column_positions",
    "merged_groups",
    "refuse_others",
    "subtracted",
    "with_structure",
    "without_groups",
    "without_levels",
]

Features = Literal["equal", "intersect"]

# Entries of known covariances that differ by less, relative to the largest, are the same.
_SAME_COVARIANCE = 1e-9
# What is left of a sum over the samples of a level, relative to what it was, once all of its
# samples have been taken out: rounding.
_ROUNDING = 1e-12


def added(left: AnySums, right: AnySums, features: Features = "equal") -> AnySums:
    """Statistics of the union of two disjoint sets of samples, labelled as ``left`` is."""
    refuse_others(left, right)
    _refuse_other_groups(left, right)
    left, right = _with_same_features(left, right, features)
    right = _with_coefficients_of(right, left)
    _refuse_other_aliasing(left.aliased, right.aliased)
    structure = _united(left.structure, right.structure)
    total = _combined(with_structure(left, structure), with_structure(right, structure), 1.0)
    return replace(total, groups=_united_groups(left.groups, right.groups, structure))


def refuse_others(one: object, other: object) -> None:
    """Raise where statistics are joined with something else."""
    if type(other) is not type(one):
        raise InputError(
            f"{type(one).__name__} can be joined with statistics of their kind, not with "
            f"{type(other).__name__}."
        )


def subtracted(whole: AnySums, part: AnySums) -> AnySums:
    """Statistics of the samples of ``whole`` that are not in ``part``.

    Levels that have no samples left are gone.
    """
    refuse_others(whole, part)
    _refuse_other_groups(whole, part)
    if part.n >= whole.n:
        raise InputError(
            f"Cannot take {part.n} samples out of {whole.n}: nothing would be left of them."
        )
    unknown = [str(name) for name in whole.feature_names if name not in set(part.feature_names)]
    if unknown:
        raise InputError(
            f"The statistics to take out lack features: {listing(unknown)}. Use take() first."
        )
    part = _with_coefficients_of(_with_features(part, whole.feature_names), whole)
    if _united(whole.structure, part.structure) != whole.structure:
        known = set(whole.structure.column_names)
        extra = [name for name in part.structure.column_names if name not in known]
        raise InputError(f"The statistics to take out have other levels: {listing(extra)}.")
    left = _combined(whole, with_structure(part, whole.structure), -1.0)
    rounding = left.ZZ.diagonal() <= _ROUNDING * whole.ZZ.diagonal()
    left = with_structure(
        left, without_levels(left.structure, rounding & (whole.ZZ.diagonal() > 0))
    )
    groups = _remaining_groups(whole.groups, part.groups, whole.structure)
    return replace(left, groups=groups)


def _combined(left: AnySums, right: AnySums, sign: float) -> AnySums:
    """Left + sign * right, for statistics that agree in every label."""
    XX = left.XX + sign * right.XX
    total = replace(
        left,
        n=left.n + int(sign) * right.n,
        XX=XX,
        XX_root=combine_roots(left, right, XX, sign),
        XY=left.XY + sign * right.XY,
        ZX=left.ZX + sign * right.ZX,
        ZY=left.ZY + sign * right.ZY,
        ZZ=sp.csr_array(left.ZZ + sign * right.ZZ),
        yy=np.maximum(left.yy + sign * right.yy, 0.0) if sign < 0 else left.yy + right.yy,
        log_weights=left.log_weights + sign * right.log_weights,
        shift=None,
        groups=None,
    )
    return replace(total, shift=combine_shifts(left, right, total, sign))


def _refuse_other_aliasing(left: Aliasing | None, right: Aliasing | None) -> None:
    same = left is right or (left is not None and right is not None and left.same_as(right))
    if not same:
        dropped = [a.dropped_names if a is not None else () for a in (left, right)]
        raise InputError(
            "The two statistics left out different columns of X that depend on others: "
            f"{listing(dropped[0])} and {listing(dropped[1])}. Join the statistics of the whole X "
            'first, and give the sum to MultiLMM.from_summary_stats(..., rank="drop").'
        )


# ---- groups ------------------------------------------------------------------------------


def _refuse_other_groups(left: Sums, right: Sums) -> None:
    names = [None if part.groups is None else part.groups.name for part in (left, right)]
    if names[0] != names[1]:
        shown = ["no groups" if name is None else f"the groups of {name!r}" for name in names]
        raise InputError(
            f"One of the two SummaryStats keeps the sums of {shown[0]}, the other of {shown[1]}. "
            "Build both with the same `sums_by`, or let go of them: stats.ungrouped()."
        )


def _united_groups(
    left: GroupSums | None, right: GroupSums | None, structure: CovarianceStructure
) -> GroupSums | None:
    """The groups of both; those of equal name are one."""
    if left is None or right is None:
        return None
    found: dict[str, Sums] = dict(zip(left.labels, left.parts, strict=True))
    for label, part in zip(right.labels, right.parts, strict=True):
        found[label] = _total([found[label], part], structure) if label in found else part
    return GroupSums(left.name, tuple(found), tuple(found.values()))


def _remaining_groups(
    whole: GroupSums | None, gone: GroupSums | None, structure: CovarianceStructure
) -> GroupSums | None:
    """The groups once others, perhaps parts of them, have been taken out."""
    if whole is None or gone is None:
        return None
    found: dict[str, Sums] = dict(zip(whole.labels, whole.parts, strict=True))
    for label, part in zip(gone.labels, gone.parts, strict=True):
        if label not in found or part.n > found[label].n:
            raise InputError(f"The statistics to take out have more of the group {label!r}.")
        if part.n == found[label].n:
            del found[label]
            continue
        own = found[label]
        left = _combined(with_structure(own, structure), with_structure(part, structure), -1.0)
        before = with_structure(own, structure).ZZ.diagonal()
        none = left.ZZ.diagonal() <= _ROUNDING * before
        found[label] = with_structure(left, without_levels(structure, none))
    return GroupSums(whole.name, tuple(found), tuple(found.values()))


def without_groups(stats: AnySums, gone: IntArray) -> AnySums:
    """The statistics of all samples but those of the groups at some positions.

    They are those that the other samples alone would give: levels of random effects that only
    these groups have are gone, and roots of X'X are made of the roots of the other groups.
    """
    groups = stats.groups
    assert groups is not None
    left = [i for i in range(groups.k) if i not in set(gone.tolist())]
    if not left:
        raise InputError(f"Without {listing([groups.labels[i] for i in gone])} nothing is left.")
    whole = replace(stats, groups=None)
    rest = [groups.parts[i] for i in left]
    structure = whole.structure
    taken = _total([groups.parts[i] for i in gone], structure)
    lost = _columns_of([taken], structure) & ~_columns_of(rest, structure)
    result = _combined(whole, cast("AnySums", with_structure(taken, structure)), -1.0)
    ZZ, before = result.ZZ.tocoo(), np.sqrt(whole.ZZ.diagonal())
    kept = np.abs(ZZ.data) > _ROUNDING * before[ZZ.row] * before[ZZ.col]
    exact = sp.csr_array((ZZ.data[kept], (ZZ.row[kept], ZZ.col[kept])), shape=ZZ.shape)
    result = replace(result, ZZ=exact, XX_root=_root_without(result.XX, rest))
    result = with_structure(result, without_levels(structure, lost))
    return replace(result, groups=GroupSums(groups.name, *_chosen(groups, left)))


def merged_groups(stats: Sums, codes: IntArray, name: str, labels: Sequence[str]) -> GroupSums:
    """Coarser groups: ``codes`` (k,) says which of the new ones each group belongs to."""
    assert stats.groups is not None
    of = [np.flatnonzero(codes == code) for code in range(len(labels))]
    parts = (_total([stats.groups.parts[i] for i in here], stats.structure) for here in of)
    return GroupSums(name, tuple(labels), tuple(parts))


def _chosen(
    groups: GroupSums, positions: Sequence[int]
) -> tuple[tuple[str, ...], tuple[Sums, ...]]:
    return tuple(groups.labels[i] for i in positions), tuple(groups.parts[i] for i in positions)


def _columns_of(parts: Sequence[Sums], structure: CovarianceStructure) -> BoolArray:
    """Which columns of Z are of levels that some of the parts have, shape (q,)."""
    known: dict[str, set[str]] = {term.name: set() for term in structure.terms}
    for part in parts:
        for term in part.structure.terms:
            known[term.name].update(term.levels)
    present = [
        np.repeat([level in known[term.name] for level in term.levels], len(term.effects))
        for term in structure.terms
    ]
    return np.concatenate([np.zeros(0, dtype=bool), *present]).astype(bool)


def _total(parts: Sequence[Sums], structure: CovarianceStructure) -> Sums:
    """The sums of some groups of the same statistics together, over the levels that they have."""
    own = without_levels(structure, ~_columns_of(parts, structure))
    aligned = [with_structure(part, own) for part in parts]
    return reduce(lambda left, right: _combined(left, right, 1.0), aligned)


def _root_without(XX: Any, rest: Sequence[Sums]) -> Any:
    """The root of X'X from those of the groups that are left, where X'X needs one."""
    return root_of_parts(rest) if near_collinear(XX) else None


# ---- features and coefficients -----------------------------------------------------------


def _with_same_features(
    left: AnySums, right: AnySums, features: Features
) -> tuple[AnySums, AnySums]:
    if features not in ("equal", "intersect"):
        raise InputError(
            f"Unknown features={features!r}. {nearest(str(features), ['equal', 'intersect'])}"
        )
    mine, theirs = left.feature_names, right.feature_names
    if np.array_equal(mine, theirs):
        return left, right
    on_left, on_right = set(mine), set(theirs)
    if features == "equal" and on_left != on_right:
        _raise_different(
            "features", list(mine), list(theirs), "Join them with add(other, features='intersect')."
        )
    common = [name for name in mine if name in on_right]
    if not common:
        raise InputError("The two SummaryStats have no feature in common.")
    return (
        left if len(common) == left.m else _with_features(left, common),
        _with_features(right, common),
    )


def _with_features(stats: AnySums, names: Sequence[Any] | NDArray[Any]) -> AnySums:
    """The statistics of the features with some names, all of them known."""
    order = {name: position for position, name in enumerate(stats.feature_names)}
    return stats.at(np.array([order[name] for name in names], dtype=np.intp))


def _with_coefficients_of(stats: AnySums, other: AnySums) -> AnySums:
    """The statistics with their coefficients in another's order."""
    mine, theirs = stats.coef_names, other.coef_names
    if mine == theirs:
        return stats
    if set(mine) != set(theirs):
        _raise_different(
            "coefficients",
            list(theirs),
            list(mine),
            "Build both with the same formula, and name in it the levels of a factor that not "
            "every part has: C(batch, levels=['a', 'b']).",
        )
    order = pd.Index(mine).get_indexer(pd.Index(theirs))
    shift = stats.shift
    if shift is not None:
        shift = replace(shift, a=shift.a[order], XY=shift.XY[order])
    return replace(
        stats,
        XX=stats.XX[np.ix_(order, order)],
        XX_root=restrict_root(stats.XX_root, order),
        XY=stats.XY[order],
        ZX=stats.ZX[:, order],
        coef_names=theirs,
        shift=shift,
        aliased=None if stats.aliased is None else stats.aliased.ordered(theirs),
        groups=stats.of_groups(lambda part: _with_coefficients_of(part, other)),
    )


def _raise_different(what: str, mine: list[object], theirs: list[object], advice: str) -> None:
    missing = [name for name in mine if name not in set(theirs)]
    extra = [name for name in theirs if name not in set(mine)]
    raise InputError(
        f"The two SummaryStats have different {what}: only on the left: "
        f"{listing(missing) or 'none'}; only on the right: {listing(extra) or 'none'}. {advice}"
    )


# ---- levels ------------------------------------------------------------------------------


def _united(left: CovarianceStructure, right: CovarianceStructure) -> CovarianceStructure:
    """The terms of ``left``, each with the levels of ``right`` that it lacks at its end."""
    if left == right:
        return left
    theirs = {term.name: term for term in right.terms}
    shapes = [
        {
            term.name: (
                *(term.group, term.effects, term.covariance, term.positions, term.unit),
                term.root is not None,
            )
            for term in structure.terms
        }
        for structure in (left, right)
    ]
    if shapes[0] != shapes[1]:
        if left.param_names == right.param_names and left.has_roots != right.has_roots:
            raise InputError(
                "One of the two SummaryStats has a known covariance between levels, the other has "
                "none. Build both with the same `covariances`, or add them before they get it: "
                "MultiLMM.from_summary_stats(total, covariances=...)."
            )
        if left.param_names == right.param_names:
            odd = [name for name, shape in shapes[0].items() if shapes[1].get(name) != shape]
            raise InputError(
                f"The random terms {listing(odd)} of the two SummaryStats have the same parameters "
                "and other effects, times or units. Build both with the same levels of the column, "
                "such as an ordered categorical, and the same unit."
            )
        raise InputError(
            "The two SummaryStats have different variance components: "
            f"{listing(left.param_names)} and {listing(right.param_names)}."
        )
    return CovarianceStructure(tuple(_united_term(term, theirs[term.name]) for term in left.terms))


def _united_term(mine: RandomTerm, theirs: RandomTerm) -> RandomTerm:
    if mine.root is not None:
        return _united_root(mine, theirs)
    if mine.levels == theirs.levels:
        return mine
    if _only_counted(mine) and _only_counted(theirs):
        raise InputError(
            f"The two SummaryStats have {len(mine.levels)} and {len(theirs.levels)} columns in "
            f"{mine.name!r}, without labels that say which belong together. Pass Z as a DataFrame "
            "with named columns."
        )
    known = set(mine.levels)
    new = tuple(level for level in theirs.levels if level not in known)
    return replace(mine, levels=mine.levels + new)


def _united_root(mine: RandomTerm, theirs: RandomTerm) -> RandomTerm:
    """The one of two terms with a known covariance that has all levels of both."""
    if mine == theirs:
        return mine
    large, small = sorted((mine, theirs), key=lambda term: -len(term.levels))
    place = pd.Index(large.levels).get_indexer(pd.Index(small.levels))
    if large.levels == mine.levels or set(mine.levels) == set(large.levels):
        large, small = mine, theirs
        place = pd.Index(large.levels).get_indexer(pd.Index(small.levels))
    assert large.root is not None
    assert small.root is not None
    same = (place >= 0).all()
    if same:
        K, own = large.root.rows(place).covariance(), small.root.covariance()
        same = np.abs(K - own).max() <= _SAME_COVARIANCE * np.abs(own).max()
    if not same:
        raise InputError(
            f"The two SummaryStats have different known covariances of {mine.name!r}. Build both "
            "with the same matrix, which has all levels."
        )
    return large


def _only_counted(term: RandomTerm) -> bool:
    """Whether the columns came without labels, from an array."""
    counted = tuple(str(i + 1) for i in range(len(term.levels)))
    return re.fullmatch(r"Z\d+", term.name) is not None and term.levels == counted


def without_levels(structure: CovarianceStructure, gone: BoolArray) -> CovarianceStructure:
    """The structure without the levels all of whose columns are ``gone``.

    Levels of a known covariance stay: they are predicted without data too.
    """
    terms = []
    for term, start in zip(structure.terms, structure.offsets, strict=False):
        if term.root is not None:
            terms.append(term)
            continue
        s = len(term.effects)
        columns = gone[start : start + term.n_columns].reshape(-1, s)
        empty = np.asarray(columns.all(axis=1))
        levels = tuple(level for i, level in enumerate(term.levels) if not empty[i])
        terms.append(replace(term, levels=levels))
    return CovarianceStructure(tuple(terms))


def with_structure(stats: AnySums, structure: CovarianceStructure) -> AnySums:
    """The statistics over the columns of another structure with the same terms.

    Columns that it adds are zero; those that it lacks are dropped.
    """
    if stats.structure == structure:
        return stats
    source = column_positions(stats.structure, structure)
    here = np.flatnonzero(source >= 0)
    moved = sp.csr_array(
        (np.ones(here.size), (here, source[here])), shape=(structure.q, stats.structure.q)
    )
    shift = stats.shift
    if shift is not None:
        shift = replace(shift, ZY=moved @ shift.ZY)
    return replace(
        stats,
        ZX=moved @ stats.ZX,
        ZY=moved @ stats.ZY,
        ZZ=sp.csr_array(moved @ stats.ZZ @ moved.T),
        structure=structure,
        shift=shift,
    )


def column_positions(structure: CovarianceStructure, other: CovarianceStructure) -> IntArray:
    """Position of the columns of another structure in the first, -1 for one that it lacks."""
    columns = _columns(structure)
    return np.array([columns.get(key, -1) for key in _columns(other)], dtype=np.intp)


def _columns(structure: CovarianceStructure) -> dict[tuple[str, str, str], int]:
    """Position of each column of Z by its term, level and effect."""
    labels = structure.column_labels()
    keys = zip(labels["term"], labels["group_level"], labels["effect"], strict=True)
    return {key: position for position, key in enumerate(keys)}
