"""The profile likelihood on a coarse grid of variance ratios that all features share.

Along a ray, theta = sigma2 (rho d, 1), the covariance of the error contrasts is
sigma2 (I + rho sum_i d_i K'G_iK): one eigendecomposition a ray, and a feature's likelihood at
all its points, sigma2 maximised out, follows from one rotation and a few sums of squares. Coarse
as it is, it shows where a feature's likelihood has other maxima than the one that was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import combinations, product
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from flashmm.arrays.eigen import divide_and_conquer
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.likelihood.projection import Projection

__all__ = [
    "ProfileGrid",
    "eigenvectors_of",
    "fine_grid",
    "neighbouring_rays",
    "on_rays",
    "profile_grid",
]

Shared = TypeVar("Shared", bound=NDArray[Any])

# Random effects up to which the grid has all its rays, and up to which it has some: each costs an
# eigendecomposition for all features and a rotation for each.
_ALL_RAYS = 150
_SOME_RAYS = 300
# Rank of Z'RZ up to which there is a finer grid.
_FINE = 60
_RADII = 20
# Features up to which all rays, and all neighbours of a point, are looked at together.
_FEW = 8
# Shares of the largest variance that the others have on the rays, by the number of variances.
_SHARES = {1: (1.0,), 2: (1.0, 1 / 8, 1 / 64, 0.0), 3: (1.0, 1 / 16, 0.0), 4: (1.0, 0.0)}
_FINE_SHARES = {
    2: (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256, 0.0),
    3: (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256, 0.0),
    4: (1.0, 1 / 16, 0.0),
}
_FINE_SHARES_CORRELATED = {**_FINE_SHARES, 3: (1.0, 1 / 8, 1 / 64, 0.0)}
# Rays of a fine grid that covariances may add to.
_MOST_RAYS = 140
# Of pairs of effects; on a fine grid so many, either way.
_CORRELATIONS = (0.9,)
_FINE_CORRELATIONS = (0.8, 0.995)


@dataclass(frozen=True)
class ProfileGrid:
    """Points of the grid and what the likelihood needs to know of its rays.

    Parameters
    ----------
    theta
        The points with sigma2 = 1, shape (g, k); no random effects last.
    beside
        Pairs of neighbouring rays, shape (pairs, 2).
    directions
        Of each ray, shape (rays, k - 1).
    spectra
        Eigenvalues of each ray's matrix of the error contrasts, shape (rays, r).
    of_trace
        Those that log |V| is made of: the same under REML, of the samples under ML.
    rotation
        Eigenvectors of each ray, shape (rays, r, r).
    plain
        Whether the rotation of a ray is none.
    weight
        1 / (1 + rho lambda) of each ray's points, shape (rays, r, radii).
    log_det
        log |V| / sigma2 or that of the error contrasts at each point, shape (g,).
    df
        n - p under REML, n under ML.
    """

    theta: FloatArray
    beside: IntArray
    directions: FloatArray
    spectra: FloatArray
    of_trace: FloatArray
    rotation: FloatArray
    plain: list[bool]
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
        if count <= _FEW:
            turned = np.matmul(self.rotation.transpose(0, 2, 1), u.T)
            by_ray = sigma2[:-1].reshape(rays, radii, count)  # a view
            np.matmul(self.weight.transpose(0, 2, 1), turned * turned, out=by_ray)
        for i in range(rays if count > _FEW else 0):
            turned = u.T if self.plain[i] else self.rotation[i].T @ u.T
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
        if values.shape[1] <= _FEW:
            around = values[self.neighbours].max(axis=1)
            return np.asarray(np.isfinite(values) & (values >= around))
        rays, _, radii = self.weight.shape
        by_ray = values[:-1].reshape(rays, radii, -1)
        top = np.isfinite(values)
        on_rays = top[:-1].reshape(by_ray.shape)  # a view
        on_rays[:, 1:] &= by_ray[:, 1:] >= by_ray[:, :-1]
        on_rays[:, :-1] &= by_ray[:, :-1] >= by_ray[:, 1:]
        on_rays[:, 0] &= by_ray[:, 0] >= values[-1]
        top[-1] &= values[-1] >= by_ray[:, 0].max(axis=0)
        point, feature = np.nonzero(top[:-1])
        for column in self._beside.T:
            lower = values[column[point], feature] > values[point, feature]
            top[point[lower], feature[lower]] = False
            point, feature = point[~lower], feature[~lower]
        return top

    def climb(self, place: IntArray, values: FloatArray) -> IntArray:
        """The summits above points (B,), by log-likelihoods (g, B), one neighbour at a time."""
        rays, _, radii = self.weight.shape
        origin, starts = rays * radii, np.arange(rays) * radii
        place, left = place.copy(), np.arange(place.size)
        while left.size:
            here = place[left]
            inner = here < origin
            around = np.column_stack([here, self._beside[np.where(inner, here, 0)]])
            highest = np.argmax(values[around, left[:, None]], axis=1)
            there = around[np.arange(left.size), highest]
            if not inner.all():
                lone = np.flatnonzero(~inner)
                best = starts[np.argmax(values[starts][:, left[lone]], axis=0)]
                higher = values[best, left[lone]] > values[-1, left[lone]]
                there[lone] = np.where(higher, best, origin)
            place[left] = there
            left = left[there != here]
        return place

    @cached_property
    def outermost(self) -> BoolArray:
        """Points farthest out on their ray, shape (g,): beyond them it rises or falls further."""
        rays, _, radii = self.weight.shape
        return np.asarray(np.arange(rays * radii + 1) % radii == radii - 1)

    @cached_property
    def _beside(self) -> IntArray:
        """Neighbours of all points but the last, themselves where there is none, (g - 1, c)."""
        rays, _, radii = self.weight.shape
        return _beside_points(tuple(map(tuple, self.beside.tolist())), rays, radii)

    @cached_property
    def neighbours(self) -> IntArray:
        """Positions of the points next to each, each once, itself besides, shape (g, c)."""
        rays, _, radii = self.weight.shape
        return _neighbours(tuple(map(tuple, self.beside.tolist())), rays, radii)


@lru_cache(maxsize=8)
def _beside_points(pairs: tuple[tuple[int, int], ...], rays: int, radii: int) -> IntArray:
    """Points of a grid next to each, but the last; the same for all designs with such terms."""
    here = np.arange(rays * radii)
    ray, radius = np.divmod(here, radii)
    beside = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    near = np.column_stack([ray, _by_ray(beside, rays)[ray]]) * radii
    found = [
        np.where(
            ((radius + step >= 0) & (radius + step < radii))[:, None], near + at, here[:, None]
        )
        for step in (-1, 0, 1)
        for at in [(radius + step)[:, None]]
    ]
    centre = np.where(radius == 0, here.size, here)
    return _fixed(np.hstack([*found, centre[:, None]]))


@lru_cache(maxsize=8)
def _neighbours(pairs: tuple[tuple[int, int], ...], rays: int, radii: int) -> IntArray:
    """Of each point of a grid, the last with those that begin rays."""
    here = np.arange(rays * radii)
    table = _beside_points(pairs, rays, radii)
    last = np.full((1, max(table.shape[1], rays)), here.size)
    last[0, :rays] = np.arange(rays) * radii
    table = np.hstack([table, np.tile(here[:, None], last.shape[1] - table.shape[1])])
    table = np.sort(np.vstack([table, last]), axis=1)
    again = np.zeros(table.shape, dtype=bool)
    again[:, 1:] = table[:, 1:] == table[:, :-1]
    return _fixed(np.where(again, np.arange(here.size + 1)[:, None], table))


def _fixed(array: Shared) -> Shared:
    """An array that is shared, and so not to be changed."""
    array.flags.writeable = False
    return array


def _by_ray(beside: IntArray, rays: int) -> IntArray:
    """Rays beside each ray, itself in the place of those that lack, shape (rays, c)."""
    near = [
        np.concatenate([beside[beside[:, 0] == i, 1], beside[beside[:, 1] == i, 0]])
        for i in range(rays)
    ]
    widest = max(map(len, near))
    return np.array(
        [[*each, *[i] * (widest - len(each))] for i, each in enumerate(near)], dtype=np.intp
    )


def fine_grid(
    projection: Projection, method: Literal["REML", "ML"]
) -> Callable[[], ProfileGrid] | None:
    """What makes a grid of more rays, for features that the first leaves in doubt.

    None for designs of one variance, which the first grid has, and for large ones.
    """
    structure = projection.structure
    count = sum(p.is_variance for p in structure.parameters)
    if structure.q > _ALL_RAYS or count not in _FINE_SHARES or not 0 < projection.r <= _FINE:
        return None
    every = len(structure.parameters) == count
    shares = (_FINE_SHARES if every else _FINE_SHARES_CORRELATED)[count]
    return partial(_grid, projection, method, *_directions(structure, shares, fine=True))


def profile_grid(projection: Projection, method: Literal["REML", "ML"]) -> ProfileGrid | None:
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
    count = sum(p.is_variance for p in structure.parameters)
    shares = _SHARES.get(count) if q <= _ALL_RAYS else None
    if shares is None:
        found = _few_directions(structure, pairs=q <= _ALL_RAYS)
    else:
        found = _directions(structure, shares, fine=False)
    return _grid(projection, method, *found)


def _grid(
    projection: Projection, method: Literal["REML", "ML"], directions: FloatArray, beside: IntArray
) -> ProfileGrid:
    """The grid on some rays."""
    A = np.tensordot(directions, projection.A, axes=1)
    spectra, rotation, plain = _eigen(A)
    df = projection.n - projection.p
    of_trace = spectra
    if method == "ML":
        df = projection.n
        of_trace = _eigen(np.tensordot(directions, projection.A_full, axes=1))[0]
    largest = spectra.max()
    typical = np.median(spectra[0][spectra[0] > 1e-3 * spectra[0].max()])
    steps = np.geomspace(0.1 / largest, 1e4 / max(typical, 1.0), _RADII)
    radii = np.broadcast_to(steps, (len(directions), _RADII))
    return on_rays(beside, directions, spectra, of_trace, rotation, plain, radii, df)


def on_rays(
    beside: IntArray,
    directions: FloatArray,
    spectra: FloatArray,
    of_trace: FloatArray,
    rotation: FloatArray,
    plain: list[bool],
    radii: FloatArray,
    df: int,
) -> ProfileGrid:
    """The grid at some radii (rays, radii) of each ray; the rest as in `ProfileGrid`."""
    (rays, count), k = radii.shape, directions.shape[1]
    theta = np.ones((rays * count + 1, k + 1))
    theta[:-1, :-1] = (directions[:, None, :] * radii[:, :, None]).reshape(-1, k)
    theta[-1, :-1] = 0.0
    log_det = np.log1p(of_trace[:, :, None] * radii[:, None, :]).sum(axis=1).reshape(-1)
    return ProfileGrid(
        theta,
        beside,
        directions,
        spectra,
        of_trace,
        rotation,
        plain,
        1.0 / (1.0 + spectra[:, :, None] * radii[:, None, :]),
        np.append(log_det, 0.0),
        df,
    )


def _eigen(A: FloatArray) -> tuple[FloatArray, FloatArray, list[bool]]:
    """As `eigenvectors_of`, with no eigenvalue negative."""
    values, vectors, plain = eigenvectors_of(A)
    return np.maximum(values, 0.0), vectors, plain


def eigenvectors_of(A: FloatArray) -> tuple[FloatArray, FloatArray, list[bool]]:
    """Eigenvalues (d, r) and eigenvectors of matrices (d, r, r).

    And whether a matrix is diagonal, so that they are the unit vectors.
    """
    values = np.diagonal(A, axis1=1, axis2=2).copy()
    vectors = np.empty(A.shape)
    size = np.abs(values).sum(axis=1)
    # In the basis of Z'RZ all variances alike make a diagonal matrix.
    plain = (np.abs(A).sum(axis=(1, 2)) - size <= 1e-7 * size).tolist()
    for i, diagonal in enumerate(plain):
        if diagonal:
            vectors[i] = np.eye(A.shape[1])
        else:
            values[i], vectors[i] = divide_and_conquer(A[i])
    return values, vectors, plain


def _few_directions(structure: CovarianceStructure, *, pairs: bool) -> tuple[FloatArray, IntArray]:
    """Rays of each variance by itself, of all, and perhaps of two, as `_directions`."""
    variances = [i for i, p in enumerate(structure.parameters) if p.is_variance]
    count = len(variances)
    sets = [{i} for i in range(count)] + [set(range(count))] * (count > 1)
    if pairs:
        sets += [set(pair) for pair in combinations(range(count), 2)] * (count > 2)
    steps = np.array([[0 if i in s else 1 for i in range(count)] for s in sets], dtype=np.intp)
    rays = np.zeros((len(sets), len(structure.parameters)))
    rays[:, variances] = 1.0 - steps
    return rays, neighbouring_rays(steps)


def _directions(
    structure: CovarianceStructure, shares: tuple[float, ...], *, fine: bool
) -> tuple[FloatArray, IntArray]:
    """Rays (d, k) and pairs of neighbours (pairs, 2): those a step apart on a lattice.

    One variance is the largest, the others have all shares of it; one pair of effects at a time
    may be correlated: where both are as large as any, alone, or on a fine grid all that there are.
    """
    return _lattice(tuple((p.term, p.row, p.column) for p in structure.parameters), shares, fine)


@lru_cache(maxsize=8)
def _lattice(
    parameters: tuple[tuple[int, int, int], ...], shares: tuple[float, ...], fine: bool
) -> tuple[FloatArray, IntArray]:
    """The same of parameters by their term, row and column: those of all designs alike."""
    variances = [i for i, (_, row, column) in enumerate(parameters) if row == column]
    covariances = [i for i, (_, row, column) in enumerate(parameters) if row != column]
    lattice = np.array(
        [c for c in product(range(len(shares)), repeat=len(variances)) if 0 in c], dtype=np.intp
    )
    plain = np.zeros((len(lattice), len(parameters)))
    plain[:, variances] = np.array(shares)[lattice]
    unsigned = np.zeros((len(lattice), len(covariances)), dtype=np.intp)
    pairs = [_pair(parameters, i) for i in covariances]
    alone = (plain > 0).sum(axis=1) == 2
    turned = [np.flatnonzero((plain[:, pair] > 0).all(axis=1)) for pair in pairs]
    signed = [
        (sign, math.copysign(value, sign))
        for each, value in enumerate(_FINE_CORRELATIONS if fine else _CORRELATIONS, 1)
        for sign in (-each, each)
    ]
    if not fine or len(lattice) + len(signed) * sum(map(len, turned)) > _MOST_RAYS:
        turned = [np.flatnonzero(alone & (plain[:, pair] == 1.0).all(axis=1)) for pair in pairs]
    rays, steps = [plain], [np.hstack([lattice, unsigned])]
    for number, (i, pair, these) in enumerate(zip(covariances, pairs, turned, strict=True)):
        for step, correlation in signed:
            rays.append(plain[these])
            rays[-1][:, i] = correlation * np.sqrt(plain[these][:, pair].prod(axis=1))
            steps.append(steps[0][these])
            steps[-1][:, len(variances) + number] = step
    return _fixed(np.concatenate(rays)), _fixed(neighbouring_rays(np.concatenate(steps)))


def _pair(parameters: tuple[tuple[int, int, int], ...], covariance: int) -> list[int]:
    """Positions of the two variances that a covariance belongs to."""
    term, *effects = parameters[covariance]
    return [
        j
        for j, (of, row, column) in enumerate(parameters)
        if row == column and of == term and row in effects
    ]


def neighbouring_rays(steps: IntArray) -> IntArray:
    """Pairs of rays that are a step apart, shape (pairs, 2)."""
    distance = np.abs(steps[:, None, :] - steps[None, :, :])
    close = (distance.max(axis=2) <= 1) & (distance.sum(axis=2) <= 2)
    return np.argwhere(np.triu(close, 1))
