"""The profile likelihood on a coarse grid of variance ratios that all features share.

Along a ray, theta = sigma2 (rho d, 1), the covariance of the error contrasts is
sigma2 (I + rho sum_i d_i K'G_iK): one eigendecomposition a ray, and a feature's likelihood at
all its points, sigma2 maximised out, follows from one rotation and a few sums of squares. Coarse
as it is, it shows where a feature's likelihood has other maxima than the one that was found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Literal

    from flashmm.arrays.types import BoolArray, FloatArray, IntArray
    from flashmm.designs.design import CovarianceStructure
    from flashmm.likelihood.projection import Projection

__all__ = ["RatioGrid", "ratio_grid"]

# Random effects up to which the grid has all its rays, and up to which it has some: each costs an
# eigendecomposition for all features and a rotation for each.
_ALL_RAYS = 150
_SOME_RAYS = 300
_RADII = 20
# Shares of the largest variance that the others have on the rays, by the number of variances.
_SHARES = {1: (1.0,), 2: (1.0, 1 / 8, 1 / 64, 0.0), 3: (1.0, 1 / 16, 0.0), 4: (1.0, 0.0)}
_CORRELATION = 0.9


@dataclass(frozen=True)
class RatioGrid:
    """Points of the grid and what the likelihood needs to know of its rays.

    Parameters
    ----------
    theta
        The points with sigma2 = 1, shape (g, k); no random effects last.
    beside
        Pairs of neighbouring rays, shape (pairs, 2).
    rotation
        Eigenvectors of each ray, shape (rays, r, r).
    weight
        1 / (1 + rho lambda) of each ray's points, shape (rays, r, radii).
    log_det
        log |V| / sigma2 or that of the error contrasts at each point, shape (g,).
    df
        n - p under REML, n under ML.
    """

    theta: FloatArray
    beside: IntArray
    rotation: FloatArray
    weight: FloatArray
    log_det: FloatArray
    df: int

    def profile(self, u: FloatArray, rss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Log-likelihoods (g, B) and the sigma2 (g, B) that maximise them.

        Parameters
        ----------
        u, rss
            Of the features, as in `Projection`, shapes (B, r) and (B,).
        """
        count, (rays, _, radii) = u.shape[0], self.weight.shape
        sigma2 = np.empty((rays * radii + 1, count))
        for i in range(rays):
            turned = self.rotation[i].T @ u.T
            np.matmul(self.weight[i].T, turned * turned, out=sigma2[i * radii : (i + 1) * radii])
        sigma2[-1] = (u * u).sum(axis=1)
        sigma2 += rss
        sigma2 /= self.df
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log(sigma2)
        values += math.log(2.0 * math.pi) + 1.0 + (self.log_det / self.df)[:, None]
        values *= -0.5 * self.df
        values[~(sigma2 > 0)] = -np.inf
        return values, sigma2

    def summits(self, values: FloatArray) -> BoolArray:
        """Points that no neighbour is above, shape (g, B), of log-likelihoods (g, B)."""
        rays, _, radii = self.weight.shape
        by_ray = values[:-1].reshape(rays, radii, -1)
        top = np.isfinite(values)
        on_rays = top[:-1].reshape(by_ray.shape)  # a view
        on_rays[:, 1:] &= by_ray[:, 1:] >= by_ray[:, :-1]
        on_rays[:, :-1] &= by_ray[:, :-1] >= by_ray[:, 1:]
        on_rays[:, 0] &= by_ray[:, 0] >= values[-1]
        top[-1] &= values[-1] >= by_ray[:, 0].max(axis=0)
        for i, j in self.beside:
            for one, other in ((i, j), (j, i)):
                on_rays[one] &= by_ray[one] >= by_ray[other]
                on_rays[one, 1:] &= by_ray[one, 1:] >= by_ray[other, :-1]
                on_rays[one, :-1] &= by_ray[one, :-1] >= by_ray[other, 1:]
        return top

    @cached_property
    def neighbours(self) -> IntArray:
        """Positions of the points next to each, itself in the place of those that lack, (g, c)."""
        rays, _, radii = self.weight.shape
        lists: list[list[int]] = []
        for ray in range(rays):
            near = [int(sum(pair)) - ray for pair in self.beside if ray in pair]
            for radius in range(radii):
                here = ray * radii + radius
                around = range(max(radius - 1, 0), min(radius + 2, radii))
                found = [other * radii + each for other in (ray, *near) for each in around]
                lists.append(found + [rays * radii] * (radius == 0))
                lists[-1].remove(here)
        lists.append([ray * radii for ray in range(rays)])
        widest = max(map(len, lists))
        return np.array([each + [i] * (widest - len(each)) for i, each in enumerate(lists)])


def ratio_grid(projection: Projection, method: Literal["REML", "ML"]) -> RatioGrid | None:
    """The grid of a design; None where it would cost more than it is worth.

    Parameters
    ----------
    projection
        Projected statistics, in numpy arrays.
    method
        ``"REML"`` or ``"ML"``.

    Notes
    -----
    Whether there is a grid depends on the design alone, so that a feature's answer does not
    depend on the features beside it.
    """
    structure, q = projection.structure, projection.structure.q
    if len(structure.parameters) > 1 and q > _SOME_RAYS:
        return None
    if projection.ZZ.shape[0] > 3000 or projection.r == 0:
        return None
    directions, steps = _directions(structure, every=q <= _ALL_RAYS)
    values, rotation = np.linalg.eigh(np.tensordot(directions, projection.A, axes=1))
    spectra = np.maximum(values, 0.0)
    df = projection.n - projection.p
    of_trace = spectra
    if method == "ML":
        df = projection.n
        full = np.tensordot(directions, projection.A_full, axes=1)
        of_trace = np.maximum(np.linalg.eigvalsh(full), 0.0)
    largest = spectra.max()
    typical = np.median(spectra[0][spectra[0] > 1e-3 * spectra[0].max()])
    radii = np.geomspace(0.1 / largest, 1e4 / max(typical, 1.0), _RADII)
    scaled = spectra[:, :, None] * radii
    theta = np.ones((len(directions) * _RADII + 1, len(structure.parameters) + 1))
    theta[:-1, :-1] = (directions[:, None, :] * radii[:, None]).reshape(-1, directions.shape[1])
    theta[-1, :-1] = 0.0
    log_det = np.log1p(of_trace[:, :, None] * radii).sum(axis=1).reshape(-1)
    return RatioGrid(
        theta,
        _beside(steps),
        rotation,
        1.0 / (1.0 + scaled),
        np.append(log_det, 0.0),
        df,
    )


def _directions(structure: CovarianceStructure, *, every: bool) -> tuple[FloatArray, IntArray]:
    """Rays (d, k) and their places on a lattice (d, c): those a step apart are neighbours."""
    variances = [i for i, p in enumerate(structure.parameters) if p.is_variance]
    count = len(variances)
    if every and count in _SHARES:
        shares = _SHARES[count]
        chosen = [c for c in product(range(len(shares)), repeat=count) if 0 in c]
    else:
        shares = (1.0, 0.0)
        sets = [{i} for i in range(count)] + [set(range(count))] * (count > 1)
        if every:
            sets += [set(pair) for pair in combinations(range(count), 2)] * (count > 2)
        chosen = [tuple(0 if i in s else 1 for i in range(count)) for s in sets]
    rays, steps = [], []
    for levels in chosen:
        ray = np.zeros(len(structure.parameters))
        ray[variances] = [shares[level] for level in levels]
        rays.append(ray)
        steps.append((*levels, 0))
    place = {p: i for i, p in enumerate(variances)}
    for i, p in enumerate(structure.parameters) if every else ():
        if not p.is_variance:
            ends = [j for j in variances if structure.parameters[j].term == p.term]
            pair = [j for j in ends if structure.parameters[j].row in (p.row, p.column)]
            for sign in (-1, 1):
                ray = np.zeros(len(structure.parameters))
                ray[pair] = 1.0
                ray[i] = sign * _CORRELATION
                places = [place[j] for j in pair]
                levels = tuple(0 if at in places else len(shares) - 1 for at in range(count))
                rays.append(ray)
                steps.append((*levels, sign))
    return np.array(rays), np.array(steps, dtype=np.intp)


def _beside(steps: IntArray) -> IntArray:
    """Pairs of rays that are a step apart, shape (pairs, 2)."""
    distance = np.abs(steps[:, None, :] - steps[None, :, :])
    close = (distance.max(axis=2) <= 1) & (distance.sum(axis=2) <= 2)
    return np.argwhere(np.triu(close, 1))
