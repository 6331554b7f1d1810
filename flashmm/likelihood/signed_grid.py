"""The profile likelihood on rays of variance ratios of either sign, to the edge of the domain.

In the unconstrained space a variance may be negative and a covariance larger than its variances
allow, as long as V (under REML: the covariance of the error contrasts) is positive definite. A ray
theta = sigma2 (rho d, 1) with any negative eigenvalue ends at a finite rho. As on the rays of
`flashmm.likelihood.profile_grid`, one eigendecomposition serves all features.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.likelihood.profile_grid import ProfileGrid, eigenvectors_of, neighbouring_rays, on_rays
from flashmm.likelihood.projection import Projection

__all__ = ["FEW_SAMPLES", "Fineness", "signed_grid"]

_RADII = 20
# Random effects beyond which there is no grid, and a rank of Z'RZ where a basis is not made.
_MOST_EFFECTS = 300
_DENSE = 3000
# Shares of the largest parameter that the others have, either way, the finest lattice first. A
# parameter is counted in units of the ratio at which it alone reaches the edge of the domain.
_SHARES = (
    (1.0, 1 / 4, 1 / 16, 1 / 64),
    (1.0, 1 / 4, 1 / 16),
    (1.0, 1 / 8),
    (1.0,),
)
# Error contrasts up to which every feature is looked at on a lattice.
FEW_SAMPLES = 60
# Work of eigendecompositions, rays x rank cubed, and rays that a lattice may take.
_WORK = {"coarse": 5e6, "fine": 4e7}
_RAYS = {"coarse": 40, "fine": 600}
# A ratio further out than so many times the edge of each parameter by itself is infinite.
_FAR, _FARTHEST = 1e3, 1e4
_NONE = 1e-9

Fineness = Literal["coarse", "fine"]


def signed_grid(
    projection: Projection,
    method: Literal["REML", "ML"],
    grid: ProfileGrid,
    fineness: Fineness,
) -> ProfileGrid | None:
    """Rays of all parameters of D at once, of either sign; None for large designs.

    Where a lattice would cost too much there are rays of each variance by itself below zero.

    Parameters
    ----------
    projection
        Projected statistics, in numpy arrays.
    method
        ``"REML"`` or ``"ML"``.
    grid
        The grid of the design, whose rays hold those of each variance by itself.
    fineness
        ``"coarse"`` for a look at every feature, ``"fine"`` for one at few.
    """
    structure, r = projection.structure, projection.r
    if r == 0 or structure.q > _MOST_EFFECTS or projection.ZZ.shape[0] > _DENSE:
        return None
    k = len(structure.parameters)
    chosen = _affordable(k, r, fineness) if fineness == "fine" or grid.df <= FEW_SAMPLES else None
    if chosen is None:
        return _below_zero(grid, np.flatnonzero(structure.is_variance[:-1]))
    of_det = projection.A_full if method == "ML" else projection.A
    size = np.abs(eigenvectors_of(of_det)[0]).max(axis=1)
    if not (size > 0).all():
        return None
    directions, beside = _signed_lattice(k, chosen)
    directions = directions / size
    spectra, rotation, plain = eigenvectors_of(np.tensordot(directions, projection.A, axes=1))
    traces = spectra
    if method == "ML":
        traces = eigenvectors_of(np.tensordot(directions, of_det, axes=1))[0]
    radii = _radii(traces.min(axis=1))
    return on_rays(beside, directions, spectra, traces, rotation, plain, radii, grid.df)


def _below_zero(grid: ProfileGrid, variances: IntArray) -> ProfileGrid | None:
    """Rays of each variance by itself below zero, made of those above zero."""
    among = grid.directions[:, variances] == 1.0
    alone = among & (np.count_nonzero(grid.directions, axis=1) == 1)[:, None]
    rays = alone.argmax(axis=0)
    size = grid.of_trace[rays].max(axis=1)[:, None]
    if not (size > 0).all():
        return None
    of_trace = -grid.of_trace[rays] / size
    return on_rays(
        np.empty((0, 2), dtype=np.intp),
        -grid.directions[rays] / size,
        -grid.spectra[rays] / size,
        of_trace,
        grid.rotation[rays],
        [grid.plain[i] for i in rays],
        _radii(of_trace.min(axis=1)),
        grid.df,
    )


def _affordable(k: int, r: int, fineness: Fineness) -> int | None:
    """Which shares, the finest that may be had; None for none."""
    for chosen, shares in enumerate(_SHARES):
        sides = 2 * len(shares) + 1
        rays = sides**k - (sides - 2) ** k
        if rays <= _RAYS[fineness] and rays * r**3 <= _WORK[fineness]:
            return chosen
    return None


def _radii(lowest: FloatArray) -> FloatArray:
    """Points of rays by their lowest eigenvalue (d,): most of them next to an edge, (d, radii)."""
    ends = lowest < -_NONE
    edge = 1.0 / np.where(ends, -lowest, 1.0)
    bounded = edge[:, None] * (1.0 - np.geomspace(0.97, 1e-6, _RADII))
    # Where the edge is far the points have the distances of a ray without one.
    farthest = np.where(ends, np.minimum(0.9 * edge, _FARTHEST), _FARTHEST)
    unbounded = 0.1 * (farthest[:, None] / 0.1) ** np.linspace(0.0, 1.0, _RADII)
    return np.where((ends & (edge < _FAR))[:, None], bounded, unbounded)


@lru_cache(maxsize=8)
def _signed_lattice(k: int, chosen: int) -> tuple[FloatArray, IntArray]:
    """Rays (d, k), and pairs of those a step apart (pairs, 2)."""
    shares = _SHARES[chosen]
    values = np.array([*(-s for s in shares), 0.0, *reversed(shares)])
    last = values.size - 1
    steps = np.array(
        [c for c in product(range(last + 1), repeat=k) if 0 in c or last in c], dtype=np.intp
    )
    directions, beside = values[steps], neighbouring_rays(steps)
    directions.flags.writeable = beside.flags.writeable = False
    return directions, beside
