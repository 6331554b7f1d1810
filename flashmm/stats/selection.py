"""Fewer fixed effects, random effects or features: the statistics of smaller models.

Nothing needs the data again: the sums of a smaller design are a part of those of a larger one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from flashmm.arrays.labels import feature_positions
from flashmm.arrays.types import IntArray
from flashmm.designs.design import CovarianceStructure, RandomTerm
from flashmm.exceptions import InputError, listing, nearest
from flashmm.stats.fields import AnySums, Sums
from flashmm.stats.root import near_collinear, restrict_root
from flashmm.stats.shifts import restrict_shift

__all__ = ["kept", "random_positions", "without"]


def kept(stats: AnySums, fixed: Any, random: Any, features: Any) -> AnySums:
    """The statistics with only what is named; None keeps all of its kind."""
    if fixed is not None:
        stats = _with_fixed(stats, np.sort(_fixed_positions(stats, fixed)))
    if random is not None:
        stats = _with_random(stats, random_positions(stats.structure, random))
    if features is not None:
        stats = stats.at(feature_positions(stats.feature_names, features))
    return stats


def without(stats: AnySums, fixed: Any, random: Any, features: Any) -> AnySums:
    """The statistics without what is named; None drops nothing of its kind."""
    if fixed is not None:
        gone = _fixed_positions(stats, fixed)
        stats = _with_fixed(stats, np.setdiff1d(np.arange(stats.p), gone))
    if random is not None:
        gone_effects = random_positions(stats.structure, random)
        every = {(t, e) for t, term in enumerate(stats.structure.terms) for e in _effects(term)}
        stats = _with_random(stats, every - gone_effects)
    if features is not None:
        gone = feature_positions(stats.feature_names, features)
        stats = stats.at(np.setdiff1d(np.arange(stats.m), gone))
    return stats


# ---- fixed effects -----------------------------------------------------------------------


def _fixed_positions(stats: Sums, names: Any) -> IntArray:
    asked = _as_list(names)
    positions = pd.Index(stats.coef_names).get_indexer(pd.Index(asked, dtype=object))
    if (positions < 0).any():
        unknown = [name for name, at in zip(asked, positions, strict=True) if at < 0]
        raise InputError(
            f"Unknown coefficient: {listing(unknown)}. "
            f"{nearest(str(unknown[0]), list(stats.coef_names))}"
        )
    return np.unique(positions)


def _with_fixed(stats: AnySums, positions: IntArray) -> AnySums:
    XX = stats.XX[np.ix_(positions, positions)]
    names = tuple(stats.coef_names[i] for i in positions)
    return replace(
        stats,
        XX=XX,
        XX_root=restrict_root(stats.XX_root, positions) if near_collinear(XX) else None,
        XY=stats.XY[positions],
        ZX=stats.ZX[:, positions],
        coef_names=names,
        shift=restrict_shift(stats, positions),
        groups=stats.of_groups(lambda part: _with_fixed(part, positions)),
        aliased=None if stats.aliased is None else stats.aliased.keeping(names),
    )


# ---- random effects ----------------------------------------------------------------------


def _effects(term: RandomTerm) -> range:
    """Effects of a term that can go alone: none of a term that belongs together can."""
    return range(1 if term.is_whole else len(term.effects))


def random_positions(structure: CovarianceStructure, names: Any) -> set[tuple[int, int]]:
    """(term, effect) of terms and variances by name; an identity term has the one effect 0."""
    known: dict[str, set[tuple[int, int]]] = {}
    for position, term in enumerate(structure.terms):
        known[term.name] = {(position, effect) for effect in _effects(term)}
    for parameter in structure.parameters:
        if parameter.is_variance:
            whole = structure.terms[parameter.term].is_whole
            effect = 0 if whole else max(parameter.row, 0)
            known.setdefault(parameter.name, {(parameter.term, effect)})
    asked = _as_list(names)
    unknown = [name for name in asked if not (isinstance(name, str) and name in known)]
    if unknown:
        raise InputError(
            f"Unknown random effect: {listing(unknown)}. {nearest(str(unknown[0]), list(known))} "
            "Name a term or a variance."
        )
    return set().union(*(known[name] for name in asked))


def _with_random(stats: AnySums, wanted: set[tuple[int, int]]) -> AnySums:
    structure = stats.structure
    terms, columns = [], []
    for position, term in enumerate(structure.terms):
        effects = [e for e in _effects(term) if (position, e) in wanted]
        if not effects:
            continue
        start, stop = structure.offsets[position : position + 2]
        of_term = np.arange(start, stop).reshape(len(term.levels), len(term.effects))
        if term.is_whole:
            terms.append(term)
        else:
            of_term = of_term[:, effects]
            terms.append(replace(term, effects=tuple(term.effects[e] for e in effects)))
        columns.append(of_term.ravel())
    here = np.concatenate([np.empty(0, dtype=np.intp), *columns])
    shift = stats.shift
    if shift is not None:
        shift = replace(shift, ZY=shift.ZY[here])
    return replace(
        stats,
        ZX=stats.ZX[here],
        ZY=stats.ZY[here],
        ZZ=stats.ZZ[here][:, here],
        structure=CovarianceStructure(tuple(terms)),
        shift=shift,
        groups=stats.of_groups(lambda part: _with_random(part, wanted)),
    )


def _as_list(names: Any) -> list[Any]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        return [names]
    return list(names)
