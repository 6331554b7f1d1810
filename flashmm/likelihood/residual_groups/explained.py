"""Groups whose samples the effects explain exactly, so that a residual variance has no maximum.

As sigma2_h goes to zero log |V| falls without bound where the random effects alone do not give the
samples of group h all their variance. y'Py stays bounded if these and X explain the samples: for
any y where [Z_h, X_h] has rank n_h (under ML; REML has no contrasts of the group left then), else
for the y that they happen to explain. The variances of terms may be zero as well, so some of the
terms' columns will do.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.likelihood.residual_groups.groups import ResidualGroups
from flashmm.likelihood.residual_groups.near_zero import MOST_ROWS, RANK, GroupsNearZero

__all__ = ["explained_by_effects", "explained_is_cheap"]

# Terms of which any may be without variance.
_MOST_TERMS = 4


def explained_is_cheap(sums: ResidualGroups) -> bool:
    """Whether the groups' roots have few enough rows to look at them."""
    return float(np.minimum(sums.n, sums.S.shape[1]).sum()) <= MOST_ROWS


def explained_by_effects(sums: ResidualGroups, features: IntArray) -> tuple[BoolArray, BoolArray]:
    """Groups that X and random effects explain.

    Parameters
    ----------
    sums
        The sums by group.
    features
        Positions of the features that are looked at, shape (B,).

    Returns
    -------
    tuple of ndarray
        Groups explained whatever the data, shape (H,), and those of each feature, (B, H).
    """
    rows, projection = GroupsNearZero.make(sums, features), sums.projection
    always, found = np.zeros(sums.H, dtype=bool), np.zeros((features.size, sums.H), dtype=bool)
    some_terms = _columns_of_some_terms(projection.structure)
    for h in range(sums.H):
        here = rows.group == h
        n, X, y = here.sum() + rows.rest[h], rows.X[here], rows.y[:, here]
        for columns in some_terms:
            Z = rows.Z[np.ix_(here, columns)]
            basis = _basis(np.hstack([Z, X]))
            if basis.shape[1] >= n:
                always[h] |= _basis(Z).shape[1] < n
                continue
            left = ((y - y @ basis @ basis.T) ** 2).sum(axis=1) + rows.rss[:, h]
            found[:, h] |= left <= projection.rounding[features]
    return always & (sums.method == "ML"), found & projection.varies[features, None]


def _columns_of_some_terms(structure: CovarianceStructure) -> list[IntArray]:
    """Positions of the columns of Z of all terms, of none, and of some."""
    of_terms = [
        np.arange(first, first + term.n_columns)
        for first, term in zip(structure.offsets, structure.terms, strict=False)
    ]
    sizes = range(len(of_terms)) if len(of_terms) <= _MOST_TERMS else range(1)
    chosen = [of_terms, *(some for size in sizes for some in combinations(of_terms, size))]
    return [np.concatenate([np.empty(0, dtype=np.intp), *some]) for some in chosen]


def _basis(columns: FloatArray) -> FloatArray:
    """An orthonormal basis of the span of columns (N, c), shape (N, rank)."""
    if columns.shape[1] == 0:
        return np.empty((columns.shape[0], 0))
    length = np.sqrt((columns**2).sum(axis=0))
    scaled = columns / np.where(length > 0, length, 1.0)
    U, values, _ = np.linalg.svd(scaled, full_matrices=False)
    return np.asarray(U[:, values > math.sqrt(RANK) * values.max(initial=0.0)])
