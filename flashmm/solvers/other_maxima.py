"""A search for higher maxima where a coarse grid of variance ratios shows several.

A likelihood may have more than one maximum: two components that could stand for each other, a
variance at zero or far above it. The search that starts from zero variances finds the nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.base import Likelihood
from flashmm.likelihood.profile_grid import ProfileGrid
from flashmm.likelihood.signed_grid import FEW_SAMPLES
from flashmm.solvers.base import Solution, Solver
from flashmm.solvers.fallback import maximise_in_stages
from flashmm.solvers.gains import GAIN, improves, indefinite, is_higher, spoilt
from flashmm.solvers.held_residual import HeldLandscape
from flashmm.solvers.restart import may_be_higher_above
from flashmm.solvers.space import ParameterSpace
from flashmm.solvers.verdict_texts import Status

__all__ = ["NO_RESIDUAL", "Landscape", "search_other_maxima"]

# A maximum of the grid may lie this far below the maximum of the likelihood beside it.
_COARSENESS = 1.0
# A point of the grid this far below the maximum that was found may belong to another one.
_FLAT = 0.5
# The maximum of the grid beside the one that was found may lie this far below it, and other points
# of the grid as far below maxima of their own: the grid is coarser where there are more variances.
_MOST_LACKING = 6.0
# Starts that a feature may have.
_STARTS = 2
# Of a grid, where a search runs to an edge; of the signed grid many are summits beside one alone.
_SUMMITS, _SUMMITS_OF_FEW, _SIGNED_SUMMITS = 3, 6, 10
# With few error contrasts maxima are many and close to each other: every start is worth it, and so
# is a finer look at flatter likelihoods.
_FLAT_OF_FEW = 2.0
_STARTS_OF_FEW = 4
# A residual variance below this, of one without random effects, is none.
NO_RESIDUAL = 1e-6
# Random effects and variances up to which each variance by itself makes a start.
_SMALL = 60
_MOST_AT_A_TIME = 4


@dataclass(frozen=True)
class Landscape:
    """A grid and the features that are looked at on it.

    Parameters
    ----------
    grid
        The grid.
    u, rss
        Of all features, as in `flashmm.likelihood.projection.Projection`, shapes (m, r) and (m,).
    chosen
        Features whose start was not given to the fit, shape (m,).
    variances
        Positions in theta of the random effects' variances.
    make_fine
        Makes a finer grid for features that the grid leaves in doubt; None for large designs.
    psd
        The psd space.
    make_signed, make_fine_signed
        Make grids of ratios of either sign, for the unconstrained space: one that every feature is
        looked at on, and one for few.
    """

    grid: ProfileGrid
    u: FloatArray
    rss: FloatArray
    chosen: BoolArray
    variances: IntArray
    make_fine: Callable[[], ProfileGrid] | None = None
    psd: ParameterSpace | None = None
    make_signed: Callable[[], ProfileGrid | None] = lambda: None
    make_fine_signed: Callable[[], ProfileGrid | None] = lambda: None

    @property
    def replaces_second_start(self) -> bool:
        """Whether what starts from large variances find is seen on the grid."""
        plain = self.variances.size == self.grid.theta.shape[1] - 1
        return self.make_fine is not None and plain and self.grid.df > FEW_SAMPLES

    @property
    def few(self) -> bool:
        """Whether error contrasts are so few, and the design so small, that more is looked at."""
        return self.make_fine is not None and self.grid.df <= FEW_SAMPLES

    @cached_property
    def fine(self) -> ProfileGrid:
        """The finer grid."""
        assert self.make_fine is not None
        return self.make_fine()

    def starts(
        self, theta: FloatArray, loglik: FloatArray, features: IntArray
    ) -> tuple[IntArray, FloatArray]:
        """Where else to start.

        Parameters
        ----------
        theta, loglik
            Maxima that were found, shapes (B, k) and (B,).
        features
            Positions of the features, shape (B,).

        Returns
        -------
        tuple of ndarray
            Rows of ``theta`` and starts (s, k), the best of a feature first.
        """
        values, sigma2 = self.grid.profile(self.u[features], self.rss[features])
        doubtful = np.flatnonzero(self._in_doubt(theta, loglik, values))
        grid, theta, loglik = self.grid, theta[doubtful], loglik[doubtful]
        if doubtful.size == 0:
            return doubtful, theta
        if self.make_fine is not None:
            grid, features = self.fine, features[doubtful]
            values, sigma2 = grid.profile(self.u[features], self.rss[features])
        else:
            values, sigma2 = values[:, doubtful], sigma2[:, doubtful]
        every = np.arange(doubtful.size)
        own = _climbed(grid, theta, values)
        level = loglik if self.make_fine is None else loglik - _lacking(loglik, values, own)
        top = (values > level - _COARSENESS) & grid.summits(values)
        # The maximum of the grid above the one that was found is that one, unless it is higher or
        # another variance is zero there.
        top[own, every] &= (values[own, every] > loglik + GAIN) | _traded(theta, grid.theta[own])
        most = _STARTS_OF_FEW if self.few else _STARTS
        _, which, point = _highest(top, values, most)
        if self.few:
            best, high = _best_of_parts(grid, values, level)
            point = np.concatenate([point, best[high]])
            which = np.concatenate([which, np.nonzero(high)[1]])
            point, which = np.unique(np.column_stack([point, which]), axis=0).T
        return doubtful[which], grid.theta[point] * sigma2[point, which][:, None]

    def _in_doubt(self, theta: FloatArray, loglik: FloatArray, values: FloatArray) -> BoolArray:
        """Whose maximum (B, k) of ``loglik`` (B,) is not all that the grid's values (g, B) show.

        There is another maximum of the grid, or, where a finer grid may tell more, a high point
        that is not next to the grid's maximum above the one that was found.
        """
        grid, every = self.grid, np.arange(theta.shape[0])
        # A lone maximum of the grid is the one that was found, unless it is higher.
        doubt: BoolArray = values.max(axis=0) > loglik + GAIN
        top = grid.summits(values)
        if self.make_fine is None:
            return np.asarray(doubt | (((values > loglik - _COARSENESS) & top).sum(axis=0) > 1))
        own = _climbed(grid, theta, values)
        level = loglik - _lacking(loglik, values, own)
        doubt |= ((values > level - _COARSENESS) & top).sum(axis=0) > 1
        high = values > level - (_FLAT_OF_FEW if self.few else _FLAT)
        near = grid.neighbours[own]
        beside = high[own, every] + (high[near.T, every] & (own != near.T)).sum(axis=0)
        return np.asarray(doubt | (high.sum(axis=0) > beside) | _traded(theta, grid.theta[own]))

    def summits(self, features: IntArray) -> FloatArray:
        """Where proper maxima may lie beside an edge at which the likelihood has no bound.

        Maxima of the grid, the highest first, no variances, then each of a few by itself: at no
        variances there may be a maximum that is narrower than the grid's steps.

        Returns
        -------
        ndarray
            Starts, shape (s, B, k), NaN beyond the last of a feature.
        """
        grid = self.fine if self.few else self.grid
        values, sigma2 = grid.profile(self.u[features], self.rss[features])
        most = _SUMMITS_OF_FEW if self.few else _SUMMITS
        none = grid.theta[-1] * sigma2[-1][:, None]
        starts = np.concatenate(
            [_starting(grid, grid.summits(values), values, sigma2, most), none[None]]
        )
        if self.few:
            best = _best_of_parts(grid, values, np.full(features.size, -np.inf))[0]
            parts = grid.theta[best] * np.take_along_axis(sigma2, best, axis=0)[:, :, None]
            starts = np.concatenate([starts, parts])
        if self.variances.size > _MOST_AT_A_TIME:
            return starts
        alone = np.zeros((self.variances.size, features.size, grid.theta.shape[1]))
        alone[np.arange(self.variances.size), :, self.variances] = 1.0
        alone[:, :, -1] = 1.0
        return np.concatenate([starts, alone])

    @cached_property
    def signed(self) -> ProfileGrid | None:
        """The grid of ratios of either sign."""
        return self.make_signed()

    @cached_property
    def fine_signed(self) -> ProfileGrid | None:
        """The finer grid of ratios of either sign."""
        return self.make_fine_signed()

    def below_zero(
        self, theta: FloatArray, loglik: FloatArray, features: IntArray
    ) -> tuple[IntArray, FloatArray]:
        """Starts where D is not positive semi-definite, as `starts`."""
        none = np.empty(0, dtype=np.intp), np.empty((0, theta.shape[1]))
        grid = self.signed
        if grid is None or theta.shape[0] == 0:
            return none
        rows = np.arange(theta.shape[0])
        top, values, sigma2 = self._inner_summits(grid, theta, loglik, features)
        if self.few and self.fine_signed is not None:
            rows = np.flatnonzero(top.any(axis=0))
            if rows.size == 0:
                return none
            grid, theta, loglik = self.fine_signed, theta[rows], loglik[rows]
            top, values, sigma2 = self._inner_summits(grid, theta, loglik, features[rows])
        most = _STARTS_OF_FEW if self.few else _STARTS
        _, which, point = _highest(top, values, most)
        return rows[which], grid.theta[point] * sigma2[point, which][:, None]

    def _inner_summits(
        self, grid: ProfileGrid, theta: FloatArray, loglik: FloatArray, features: IntArray
    ) -> tuple[BoolArray, FloatArray, FloatArray]:
        """Maxima of a signed grid but those of ``theta``; values and sigma2, each (g, B)."""
        values, sigma2 = grid.profile(self.u[features], self.rss[features])
        top: BoolArray = np.asarray(grid.summits(values) & (values > loglik - _COARSENESS))
        top &= (~grid.outermost & (grid.theta[:, :-1] < 0).any(axis=1))[:, None]
        some = np.flatnonzero(top.any(axis=0))
        if some.size:
            own = _climbed(grid, theta[some], values[:, some])
            top[own, some] &= values[own, some] > loglik[some] + GAIN
        return top, values, sigma2

    def signed_summits(self, features: IntArray) -> FloatArray:
        """Where proper maxima may lie in the unconstrained space; (s, B, k), as `summits`."""
        grid = self.fine_signed
        assert grid is not None
        values, sigma2 = grid.profile(self.u[features], self.rss[features])
        top = grid.summits(values) & ~grid.outermost[:, None]
        return _starting(grid, top, values, sigma2, _SIGNED_SUMMITS)

    def one_at_a_time(self, theta: FloatArray) -> tuple[IntArray, FloatArray]:
        """More starts where variances are negative, which the grid does not have, as `starts`.

        Each variance by itself is large, for features that have a negative one.
        """
        k, variances = theta.shape[1], self.variances
        if not 2 <= variances.size <= _MOST_AT_A_TIME or self.u.shape[1] > _SMALL:
            return np.empty(0, dtype=np.intp), np.empty((0, k))
        negative = np.flatnonzero((theta[:, variances] < 0).any(axis=1))
        start = np.zeros((variances.size, k))
        start[np.arange(variances.size), variances] = 1.0
        start[:, -1] = 0.5
        return np.repeat(negative, variances.size), np.tile(start, (negative.size, 1))


def _highest(top: BoolArray, values: FloatArray, most: int) -> tuple[IntArray, IntArray, IntArray]:
    """Of the points ``top`` (g, B) the ``most`` highest of each feature: rank, feature, point."""
    order = np.argsort(np.where(top, -values, np.inf), axis=0)[:most]
    rank, which = np.nonzero(np.take_along_axis(top, order, axis=0))
    return rank, which, order[rank, which]


def _starting(
    grid: ProfileGrid, top: BoolArray, values: FloatArray, sigma2: FloatArray, most: int
) -> FloatArray:
    """Theta at the ``most`` highest of points ``top`` (g, B), else NaN, shape (s, B, k)."""
    rank, which, point = _highest(top, values, most)
    starts = np.full((rank.max(initial=-1) + 1, values.shape[1], grid.theta.shape[1]), np.nan)
    starts[rank, which] = grid.theta[point] * sigma2[point, which][:, None]
    return starts


def _best_of_parts(
    grid: ProfileGrid, values: FloatArray, loglik: FloatArray
) -> tuple[IntArray, BoolArray]:
    """The best points of parts of the grid, and which are high enough to start from, (parts, B).

    Two maxima may share one summit of the grid; what tells them apart is most often a variance
    that is zero at one of them, the sign of a covariance, or the size of the ratios.
    """
    ratios = grid.theta[:, :-1]
    largest = ratios.max(axis=1)
    decade = np.floor(np.log10(np.maximum(largest, 1e-300)))
    used = (ratios != 0).any(axis=0)
    parts = [
        *(ratios[:, used] == 0).T,
        *(ratios[:, used] >= 0.2 * largest[:, None]).T,
        *(ratios[:, used] < 0).T,
        *(decade == each for each in np.arange(-1.0, 4.0)),
    ]
    best = np.array(
        [i[np.argmax(values[i], axis=0)] for i in map(np.flatnonzero, parts) if i.size],
        dtype=np.intp,
    )
    height = np.take_along_axis(values, best, axis=0)
    return best, np.asarray(np.isfinite(height) & (height > loglik - _FLAT))


def _lacking(loglik: FloatArray, values: FloatArray, own: IntArray) -> FloatArray:
    """How far the grid's maxima ``own`` (B,) lie below those that were found beside them, (B,)."""
    lacking = loglik - values[own, np.arange(own.size)]
    return np.asarray(np.clip(lacking, 0.0, _MOST_LACKING))


def _traded(theta: FloatArray, point: FloatArray) -> BoolArray:
    """Where theta (B, k) has a zero that a point of the grid (B, k) has not, and the reverse."""
    none, other = theta == 0.0, point == 0.0
    return np.asarray((none & ~other).any(axis=1) & (other & ~none).any(axis=1))


def _climbed(grid: ProfileGrid, theta: FloatArray, values: FloatArray) -> IntArray:
    """The maximum of the grid above each theta: upwards from the nearest point, (B,)."""
    ratios, floor = grid.theta[:, :-1], np.abs(grid.theta[:, :-1][grid.theta[:, :-1] != 0]).min()
    at = _signed_log(ratios / floor)
    ratio = theta[:, :-1] / np.maximum(theta[:, -1:], 1e-6)
    here = _signed_log(np.clip(ratio, ratios.min(), ratios.max()) / floor)
    distance = (at**2).sum(axis=1) - 2.0 * here @ at.T  # (B, g), but for what all have
    return grid.climb(np.argmin(distance, axis=1), values)


def _signed_log(x: FloatArray) -> FloatArray:
    """log(1 + |x|) with the sign of x."""
    return np.asarray(np.copysign(np.log1p(np.abs(x)), x))


def search_other_maxima(
    likelihood: Likelihood,
    space: ParameterSpace,
    stages: tuple[Solver, ...],
    solution: Solution,
    features: IntArray,
    landscape: Landscape | HeldLandscape,
    second: FloatArray | None = None,
    *,
    max_iter: int,
) -> Solution:
    """The solution with higher maxima in place of lower ones, as far as the grid shows them.

    Parameters
    ----------
    likelihood, space, stages, features, max_iter
        As for `maximise_in_stages`, whose ``solution`` it is.
    landscape
        The grid.
    second
        Second starts as in `flashmm.solvers.restart.searched_again`, shape (B, k).

    Returns
    -------
    Solution
        Changed in place: steps of all searches count.
    """
    status = np.asarray(solution.status)
    looked = np.flatnonzero((status <= Status.BOUNDARY) & landscape.chosen[features])
    if looked.size == 0:
        return solution
    theta, loglik = solution.theta[looked], solution.evaluation.loglik[looked]
    found = [landscape.starts(theta, loglik, features[looked])]
    if space.name != "psd":
        found += [
            landscape.one_at_a_time(theta),
            landscape.below_zero(theta, loglik, features[looked]),
        ]
    if second is not None:
        again = np.flatnonzero(may_be_higher_above(solution.take(looked), second[looked]))
        found += [(again, second[looked[again]])]
    rows = np.concatenate([each for each, _ in found])
    start = np.concatenate([each for _, each in found])
    if rows.size == 0:
        return solution
    rows, all_stages = looked[rows], stages
    if space.name != "psd":  # a search that is not finished is on its way to the domain's edge
        stages = stages[:1]
    ends = maximise_in_stages(likelihood, space, stages, start, features[rows], max_iter=max_iter)
    np.add.at(solution.n_iter, rows, ends.n_iter)
    higher = improves(likelihood, solution.take(rows), ends)
    beyond = np.asarray(ends.status > Status.BOUNDARY)
    if space.name != "psd":
        ahead = np.flatnonzero(higher)
        beyond[ahead] = indefinite(likelihood, features[rows[ahead]], ends.theta[ahead])
        higher &= ~beyond
    better = np.flatnonzero(higher)
    # The highest of a feature comes last, and is what stays.
    better = better[np.argsort(ends.evaluation.loglik[better], kind="stable")]
    where = rows[better]
    last = where.size - 1 - np.unique(where[::-1], return_index=True)[1]
    better, where = better[last], where[last]
    solution.theta[where], solution.status[where] = ends.theta[better], ends.status[better]
    solution.evaluation.put(where, ends.evaluation.take(better))
    if space.name != "psd" and landscape.psd is not None:
        inside = (start[:, landscape.variances] >= 0).all(axis=1) & beyond
        _leave_lower(
            likelihood,
            (space, landscape.psd),
            all_stages,
            solution,
            features,
            (rows[inside], start[inside], ends.theta[inside]),
            max_iter=max_iter,
        )
    return solution


def _leave_lower(
    likelihood: Likelihood,
    spaces: tuple[ParameterSpace, ParameterSpace],
    stages: tuple[Solver, ...],
    solution: Solution,
    features: IntArray,
    climbing: tuple[IntArray, FloatArray, FloatArray],
    *,
    max_iter: int,
) -> None:
    """Put ways beyond V's domain in the place of maxima below those of the psd space; in place.

    Parameters
    ----------
    likelihood, stages, solution, features, max_iter
        As in `search_other_maxima`.
    spaces
        The unconstrained space and the psd space.
    climbing
        Rows of the solution (c,), starts in the psd space from which the way led to the edge of the
        likelihood's domain or to V indefinite, and where they came to, each (c, k).
    """
    rows, start, theta = climbing
    exists = spaces[1].contains(start)
    rows, start, theta = rows[exists], start[exists], theta[exists]
    if rows.size == 0:
        return
    inner = maximise_in_stages(
        likelihood, spaces[1], stages[:1], start, features[rows], max_iter=max_iter
    )
    np.add.at(solution.n_iter, rows, inner.n_iter)
    # Without a residual variance V may be singular: at the edge itself there is no maximum.
    good = (inner.status <= Status.BOUNDARY) & (inner.theta[:, -1] > NO_RESIDUAL)
    good &= ~spoilt(likelihood, inner.theta, inner.evaluation)
    lower = np.flatnonzero(is_higher(solution.take(rows), inner) & good)
    lower = lower[np.unique(rows[lower], return_index=True)[1]]
    if lower.size == 0:
        return
    edge = maximise_in_stages(
        likelihood, spaces[0], stages, theta[lower], features[rows[lower]], max_iter=max_iter
    )
    rows = rows[lower]
    solution.n_iter[rows] += edge.n_iter
    beyond = (edge.status > Status.BOUNDARY) | is_higher(solution.take(rows), edge)
    rows, edge = rows[beyond], edge.take(np.flatnonzero(beyond))
    solution.theta[rows], solution.status[rows] = edge.theta, edge.status
    solution.evaluation.put(rows, edge.evaluation)
