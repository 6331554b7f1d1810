"""Whether groups of samples are unions of others, seen from their sums alone."""

from __future__ import annotations

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.stats.fields import AnySums, GroupSums

__all__ = ["are_unions"]

# Sums of the same samples differ by rounding.
_ROUNDING = 1e-9
# How far from 0 and 1 a share may be that rounding has made of them.
_WHOLE = 1e-2


def are_unions(coarse: GroupSums, fine: GroupSums) -> bool:
    """Whether every coarse group is a union of fine ones.

    The sums of a union are the sums of its parts, so that coarse = A fine for all sums at once
    (samples, X'X, X'Y, y'y) with a matrix A of zeros and ones, which least squares finds. False
    also where there are too few sums to tell.
    """
    if fine.k < coarse.k:
        return False
    names = [name for name in coarse.parts[0].coef_names if name in fine.parts[0].coef_names]
    levels = sorted(_levels(fine) & _levels(coarse))
    F, C = (_all_sums(groups, names, levels) for groups in (fine, coarse))
    size = np.abs(F).max(axis=0)
    there = np.isfinite(F).all(axis=0) & np.isfinite(C).all(axis=0) & (size > 0)
    F, C = F[:, there] / size[there], C[:, there] / size[there]
    shares, _, rank, _ = np.linalg.lstsq(F.T, C.T, rcond=1e-12)  # (fine, coarse)
    whole = np.round(shares)
    if rank < fine.k or np.abs(shares - whole).max() > _WHOLE:
        return False
    if (whole < 0).any() or (whole.sum(axis=1) != 1).any():
        return False
    return bool((np.abs(whole.T @ F - C) <= _ROUNDING * (whole.T @ np.abs(F) + 1.0)).all())


def _keys(part: AnySums) -> list[tuple[str, str, str]]:
    """Columns of Z that are of ordinary effects, by group, level and effect; else empty names."""
    keys: list[tuple[str, str, str]] = []
    for term in part.structure.terms:
        own = term.covariance == "cs" or term.root is not None
        group = "" if own else term.group
        keys += [
            (group, str(level), str(effect)) for level in term.levels for effect in term.effects
        ]
    return keys


def _levels(groups: GroupSums) -> set[tuple[str, str, str]]:
    """Those of all groups."""
    return {key for part in groups.parts for key in _keys(part) if key[0]}


def _all_sums(
    groups: GroupSums, names: list[str], levels: list[tuple[str, str, str]]
) -> FloatArray:
    """Sums of each group (k, s) over the coefficients of some names and some columns of Z."""
    rows = []
    for part in groups.parts:
        known = [str(name) for name in part.coef_names]
        here = np.array([known.index(name) for name in names], dtype=np.intp)
        XX = part.XX[np.ix_(here, here)]
        at = {key: i for i, key in enumerate(_keys(part))}
        there = np.array([at.get(key, -1) for key in levels], dtype=np.intp)
        of_levels = [
            np.where((there < 0)[:, None], 0.0, np.asarray(sums)[there]).ravel()
            for sums in (part.ZZ.diagonal()[:, None], part.ZX[:, here], part.ZY)
        ]
        rows.append(
            np.concatenate([[part.n], XX.ravel(), part.XY[here].ravel(), part.yy, *of_levels])
        )
    return np.array(rows, dtype=np.float64)
