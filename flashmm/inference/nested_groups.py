"""Whether groups of samples are unions of others, seen from their sums alone."""

from __future__ import annotations

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.stats.fields import GroupSums

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
    F, C = (_all_sums(groups, names) for groups in (fine, coarse))
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


def _all_sums(groups: GroupSums, names: list[str]) -> FloatArray:
    """Sums of each group (k, s) over the coefficients of some names."""
    rows = []
    for part in groups.parts:
        known = [str(name) for name in part.coef_names]
        here = np.array([known.index(name) for name in names], dtype=np.intp)
        XX = part.XX[np.ix_(here, here)]
        rows.append(np.concatenate([[part.n], XX.ravel(), part.XY[here].ravel(), part.yy]))
    return np.array(rows, dtype=np.float64)
