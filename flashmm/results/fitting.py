"""Statistics and a plan -> the Dataset of the results: likelihood, start, solver, labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.exceptions import InputError
from flashmm.likelihood import (
    AnyEstimator,
    AnyProjection,
    PatternedProjection,
    make_likelihood,
    on_device,
)
from flashmm.likelihood.known_residual import KnownResidual, hold_residual, known_residual_of
from flashmm.likelihood.own_parameters import OwnParameters
from flashmm.likelihood.profile_grid import fine_grid, profile_grid
from flashmm.likelihood.signed_grid import signed_grid
from flashmm.progress import Progress
from flashmm.results.assemble import assemble, without_maximum
from flashmm.results.deferred import Deferred
from flashmm.results.explained_groups import SMALL_GROUP
from flashmm.results.fitted import FitOptions
from flashmm.results.fitting_curves import CurvedSearch, in_theta, own_space, prefer_positive
from flashmm.solvers.base import Solution, Solver, maximise
from flashmm.solvers.batches import maximise_in_batches, over_batches
from flashmm.solvers.gains import GAIN, improves, indefinite, spoilt
from flashmm.solvers.held_residual import HeldLandscape
from flashmm.solvers.joining import UntilKnown
from flashmm.solvers.other_maxima import NO_RESIDUAL, Landscape
from flashmm.solvers.restart import second_starts
from flashmm.solvers.space import ParameterSpace, make_space
from flashmm.solvers.start import Starts, is_one_vector, starting_rows, starting_values
from flashmm.solvers.verdict_texts import Status
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["FitPlan", "fit_features"]

# Shares of the residual variance that are added to variances of the psd estimate, one after the
# other, where a search from there ends at the edge of the domain too.
_LIFTS = (0.0, 0.1, 0.5, 2.0)
# Log-likelihoods that differ by more than this do so by more than rounding.
_ROUNDING = 1e-4
# Residual variances of quiet groups in starts, where groups are small; the last as a share.
_QUIET = (1e-2, 1e-3, 1e-3)
# Groups of so many times more samples than effects are not explained by them.
_EXPLAINED = 3
# Steps from a summit of a grid to the maximum beside it; most take ten.
_SHORT = 20
# Up to so many features and random effects the general engine is the fastest.
_FEW = 50
_SMALL = 60


@dataclass(frozen=True)
class FitPlan:
    """How to fit.

    Parameters
    ----------
    options
        What the results keep; the name of the engine that was chosen among it.
    solver
        The solver.
    fallback
        What goes on with features that it leaves unfinished; None for nothing.
    threads
        Threads that fit batches of features.
    device
        Device of PyTorch that computes the likelihood; None for numpy.
    second_search
        Whether features that come from the default start to variances of zero or below are
        searched again.
    progress
        Told of every batch of features.
    """

    options: FitOptions
    solver: Solver
    fallback: Solver | None = None
    threads: int = 1
    device: Any = None
    second_search: bool = True
    progress: Progress = False


def fit_features(
    stats: SummaryStats | PatternedStats,
    projection: AnyProjection,
    likelihood: AnyEstimator,
    plan: FitPlan,
    theta0: Any = None,
    residual: FloatArray | None = None,
) -> Deferred:
    """Fit all features of some statistics, without warnings.

    Parameters
    ----------
    stats, projection, likelihood
        Statistics, projected off X, and their likelihood.
    plan
        How to fit.
    theta0
        Starting values, as in `MultiLMM.fit`.
    residual
        Known residual variances in the units of Y, shape (m,); None to estimate them.
    """
    options, structure = plan.options, stats.structure
    if structure.curved is not None:
        return _fit_curved(stats, projection, likelihood, plan, theta0, residual)
    space = make_space(
        options.parameter_space,
        structure.blocks(),
        len(structure.param_names),
        (*structure.block_levels(), (structure.residual_sizes or (stats.n,))[-1]),
    )
    threads: int | None = plan.threads
    if plan.device is not None:
        if isinstance(projection, PatternedProjection):
            raise InputError(
                "`device` needs features that have the same samples, weights and covariates; here "
                "they differ by feature. Leave `device` out: the processor fits them, in batches."
            )
        likelihood = on_device(projection, options.method, options.engine, plan.device)
        threads = None  # PyTorch has its own, and large batches suit it
    usable = projection.varies
    if residual is not None:
        likelihood = cast("AnyEstimator", hold_residual(likelihood, projection, residual))
        usable = usable | (projection.zero_variance & ~projection.non_finite)
    start = starting_values(likelihood, projection, space, theta0, stats.feature_names)
    several = len(structure.residuals)
    _hold(start.theta, likelihood)
    search = _Search(likelihood, projection, plan, threads)
    if plan.second_search:
        again_from = second_starts(start, structure.is_variance)
        again_from[:, -several:] = again_from[:, -1:]
        _hold(again_from, likelihood)
        landscape = (
            None if residual is not None or several > 1 else _landscape(projection, options, start)
        )
        search = replace(search, again_from=again_from, landscape=landscape)
        variances = np.flatnonzero(structure.is_variance[:-1])
        if isinstance(likelihood, KnownResidual) and variances.size and plan.device is None:
            search = replace(search, held=HeldLandscape(likelihood, ~start.given, variances))
    usable = usable & ~likelihood.perfect_fit
    solution = search.run(space, start.theta, usable, plan.progress)
    if plan.second_search and several > 1:
        _restart_in_small_groups(search, space, solution, np.flatnonzero(usable & ~start.given))
    if plan.second_search:
        lost = _lost(search, solution)
        if space.name == "psd":
            _restart_at_summits(search, space, solution, lost)
        else:
            psd = make_space("psd", structure.blocks(), start.theta.shape[1])
            _restart_inside(search, psd, space, start, solution, lost)
    return assemble(stats, projection, likelihood, solution, options, n_jobs=threads)


def _fit_curved(
    stats: SummaryStats | PatternedStats,
    projection: AnyProjection,
    likelihood: AnyEstimator,
    plan: FitPlan,
    theta0: Any,
    residual: FloatArray | None,
) -> Deferred:
    """The same where structures are not linear in their parameters."""
    structure, options, curved = stats.structure, plan.options, stats.structure.curved
    assert curved is not None
    usable = projection.varies
    if residual is not None:
        likelihood = cast("AnyEstimator", hold_residual(likelihood, projection, residual))
        usable = usable | (projection.zero_variance & ~projection.non_finite)
    own = OwnParameters(likelihood, curved)
    given = None
    if theta0 is not None:
        names, params = stats.feature_names, structure.param_names
        rows = projection.to_internal(starting_rows(theta0, stats.m, params, names))
        given = curved.own(rows)
        exists = own_space(structure).contains(given)
        if is_one_vector(theta0) and stats.m and not exists.any():
            raise InputError(
                "`theta0` is no covariance of such a structure. Give the theta of another fit of "
                "it, or leave it out."
            )
        given[~exists] = np.nan
    search = CurvedSearch(
        own,
        own_space(structure),
        structure,
        plan.solver,
        np.asarray(projection.n - (projection.p if options.method == "REML" else 0), dtype=float),
        options.max_iter,
        options.memory,
        plan.threads,
        options.epsilon,
    )
    solution = search.run(usable & ~likelihood.perfect_fit, given, plan.progress)
    prefer_positive(own, solution)
    found = in_theta(own, solution)
    return assemble(stats, projection, likelihood, found, options, n_jobs=plan.threads)


@dataclass(frozen=True)
class _Search:
    """How maxima of a likelihood are searched for; names as in `maximise_in_batches`."""

    likelihood: AnyEstimator
    projection: AnyProjection
    plan: FitPlan
    threads: int | None
    again_from: FloatArray | None = None
    landscape: Landscape | None = None
    held: HeldLandscape | None = None

    def run(
        self,
        space: ParameterSpace,
        theta: FloatArray,
        usable: BoolArray,
        progress: Progress = False,
    ) -> Solution:
        """Maximise the usable features (m,) in a space, from theta (m, k)."""
        return maximise_in_batches(
            self.likelihood,
            space,
            self.plan.solver,
            theta,
            usable,
            max_iter=self.plan.options.max_iter,
            memory=self.plan.options.memory,
            n_jobs=self.threads,
            fallback=self.plan.fallback,
            again_from=self.again_from,
            landscape=self.landscape or self.held,
            progress=progress,
        )

    def shortly(self) -> _Search:
        """The same, for starts beside a maximum: one that is far after so many steps is lost."""
        options = replace(self.plan.options, max_iter=min(self.plan.options.max_iter, _SHORT))
        return replace(self, plan=replace(self.plan, options=options))

    def ends(self, space: ParameterSpace, starts: FloatArray, features: IntArray) -> list[Solution]:
        """Where the solver alone ends from each of some starts (s, B, k), all at once.

        Starts that are not finite end as they are, `Status.RUNNING`.
        """
        rows = starts.reshape(-1, starts.shape[2])
        total = Solution.empty(*rows.shape)
        options = self.plan.options

        def fit(batch: IntArray) -> None:
            total.put(
                batch,
                maximise(
                    self.likelihood,
                    space,
                    self.plan.solver,
                    rows[batch],
                    features[batch % features.size],
                    max_iter=options.max_iter,
                ),
            )

        finite = np.flatnonzero(np.isfinite(rows).all(axis=1))
        over_batches(fit, self.likelihood, finite, memory=options.memory, n_jobs=self.threads)
        each = np.arange(rows.shape[0]).reshape(starts.shape[:2])
        return [total.take(these) for these in each]


def _lost(search: _Search, solution: Solution) -> IntArray:
    """Features that ran to the edge of the domain; in small designs all that are unfinished."""
    landscape = search.landscape
    if landscape is not None and landscape.few:
        return np.flatnonzero(
            (solution.status == Status.ITERATION_LIMIT) | (solution.status == Status.STALLED)
        )
    return without_maximum(search.likelihood, solution)


def _restart_inside(
    search: _Search,
    psd: ParameterSpace,
    space: ParameterSpace,
    start: Starts,
    solution: Solution,
    lost: IntArray,
) -> None:
    """Fit features that ran to the edge of the domain again, from their psd estimate; in place.

    The likelihood is unbounded there, but may have a proper maximum elsewhere, which is what
    `converged` means. It is looked for from where D is positive semi-definite, and, as that may be
    at variances of zero, from somewhat larger variances.
    """
    if lost.size == 0:
        return
    search = _of_few(search, lost.size)
    usable = np.zeros(solution.status.size, dtype=bool)
    usable[lost] = True
    zero = np.zeros_like(start.theta)
    zero[:, -len(search.projection.structure.residuals) :] = 1.0
    _hold(zero, search.likelihood)
    landscape = search.landscape
    if landscape is not None:
        landscape = replace(landscape, chosen=np.ones_like(usable))
    stepwise = replace(search, plan=replace(search.plan, fallback=None), landscape=landscape)
    inner = stepwise.run(psd, zero, usable)
    _restart_at_summits(stepwise, psd, inner, np.intersect1d(lost, _lost(stepwise, inner)))
    solution.n_iter[lost] += inner.n_iter[lost]
    stepwise = replace(stepwise, again_from=None, landscape=None)
    # A maximum below a psd estimate inside the domain is none: a search from there climbs past it.
    inside = (inner.status <= Status.BOUNDARY) & (inner.theta[:, -1] > NO_RESIDUAL)
    least = np.where(inside, inner.evaluation.loglik, -np.inf)
    least -= GAIN + np.clip(np.nan_to_num(inner.evaluation.rounding), 0.0, _ROUNDING)
    variances = search.projection.structure.is_variance
    signed = None if landscape is None else landscape.fine_signed
    for number, lifts in enumerate((_LIFTS[:1], _LIFTS[1:])):
        if number == 1 and landscape is not None and signed is not None:
            starts = landscape.signed_summits(lost)
            _try_all(stepwise.shortly(), space, solution, lost, starts, least[lost])
            usable[lost[solution.status[lost] <= Status.INDEFINITE]] = False
        usable &= np.isfinite(inner.theta).all(axis=1)
        features = np.flatnonzero(usable)
        if features.size == 0:
            continue
        lifted = np.array(lifts)[:, None, None] * inner.theta[features, -1:] * variances
        starts = inner.theta[features] + lifted
        several = len(search.projection.structure.residuals)
        starts[:, :, -several:] = inner.theta[features, -several:]
        for again in reversed(stepwise.ends(space, starts, features)):  # the first counts
            solution.n_iter[features] += again.n_iter
            high = again.evaluation.loglik >= least[features]
            good = np.flatnonzero(_sound(search.likelihood, again) & high)
            _put(solution, features[good], again, good)
            usable[features[good]] = False


def _restart_in_small_groups(
    search: _Search, space: ParameterSpace, solution: Solution, features: IntArray
) -> None:
    """Fit features again from starts that differ in the residual variances, where groups are small.

    There a likelihood may have several maxima: the effects may explain a group's samples nearly,
    whose variance is then small beside theirs. Each group that is not far larger is quiet in three
    starts: without random effects and beside large ones, all others with the residual variance of y
    on X, and at the end of the search, with variances of the effects as large as its own. The
    highest end stays; in place.
    """
    structure, likelihood = search.projection.structure, search.likelihood
    several = len(structure.residuals)
    sizes = getattr(search.projection, "sizes", None)
    if sizes is None:
        sizes = np.array([structure.residual_sizes])
    small = ((sizes > 0) & (sizes < SMALL_GROUP)).any(axis=1)  # of a group without samples: no
    lost = (solution.status == Status.ITERATION_LIMIT) & (space.name == "psd")
    features = features[(np.broadcast_to(small, search.projection.m) | lost)[features]]
    if features.size == 0:
        return
    sound = np.zeros(solution.status.size, dtype=bool)
    sound[features] = _sound(likelihood, solution.take(features))
    end, variances = solution.theta[features], structure.is_variance[:-several]
    known = np.where(sound[:, None], solution.theta, np.nan)
    solver = UntilKnown(search.plan.solver, known, solution.evaluation.loglik.copy())
    plain = replace(search, plan=replace(search.plan, solver=solver, fallback=None)).shortly()
    most = max(SMALL_GROUP, _EXPLAINED * (search.projection.p + structure.q))
    quiet = [h for h, size in enumerate(structure.residual_sizes) if size < most]
    starts = np.zeros((3, len(quiet), *end.shape))
    starts[:2, :, :, -several:], starts[1, :, :, :-several], starts[2] = 1.0, variances, end
    for i, h in enumerate(quiet):
        own = np.maximum(end[:, h - several, None], 0.0)
        starts[:2, i, :, h - several] = np.array(_QUIET[:2])[:, None]
        starts[2, i, :, :-several] = np.where(variances, own, 0.0)
        starts[2, i, :, h - several] = _QUIET[2] * own[:, 0]
    for again in plain.ends(space, starts.reshape(-1, *end.shape), features):
        solution.n_iter[features] += again.n_iter
        before = solution.take(features)
        found = np.flatnonzero(_takes_over(likelihood, before, again, features))
        _put(solution, features[found], again, found)


def _restart_at_summits(
    search: _Search, space: ParameterSpace, solution: Solution, lost: IntArray
) -> None:
    """Fit features that ran to the edge of the domain again, from maxima of the grid; in place.

    The highest of the proper maxima that are found stays.
    """
    several = len(search.projection.structure.residuals) > 1
    if lost.size == 0 or several or known_residual_of(search.likelihood) is not None:
        return  # the grid is one of ratios, for any residual variance
    landscape = search.landscape or _landscape(search.projection, search.plan.options, None)
    if landscape is not None:
        _try_all(search, space, solution, lost, landscape.summits(lost))


def _try_all(
    search: _Search,
    space: ParameterSpace,
    solution: Solution,
    lost: IntArray,
    starts: FloatArray,
    least: FloatArray | float = -np.inf,
) -> None:
    """Put the highest of the maxima that starts (s, B, k) lead to in the place of features (B,).

    Features that have a maximum keep it if none is higher; one below ``least`` (B,) is none.
    """
    plain = replace(
        search, plan=replace(search.plan, fallback=None), again_from=None, landscape=None
    )
    good = solution.status[lost] <= Status.INDEFINITE
    best = np.where(good, solution.evaluation.loglik[lost] + GAIN, least)
    for again in plain.ends(space, starts, lost):
        solution.n_iter[lost] += again.n_iter
        height = again.evaluation.loglik
        found = np.flatnonzero(_sound(search.likelihood, again) & (height > best))
        best[found] = height[found]
        _put(solution, lost[found], again, found)


def _sound(likelihood: AnyEstimator, end: Solution) -> BoolArray:
    """Which ends (B,) are maxima beyond rounding."""
    result = np.asarray(end.status <= Status.BOUNDARY)
    rows = np.flatnonzero(result)
    result[rows] = ~spoilt(likelihood, end.theta[rows], end.evaluation.take(rows))
    return result


def _takes_over(
    likelihood: AnyEstimator, before: Solution, again: Solution, features: IntArray
) -> BoolArray:
    """Which ends (B,) count in the place of those before: higher, or the first that are maxima."""
    first = _sound(likelihood, before)
    better = _sound(likelihood, again) & (~first | improves(likelihood, before, again))
    rows = np.flatnonzero(better & first)
    worse = indefinite(likelihood, features[rows], again.theta[rows])
    worse &= ~indefinite(likelihood, features[rows], before.theta[rows])
    better[rows[worse]] = False
    return np.asarray(better)


def _of_few(search: _Search, count: int) -> _Search:
    """The search with the engine that makes the fewest calls, where these are most of the work."""
    projection, plan = search.projection, search.plan
    few = count <= _FEW and projection.structure.q <= _SMALL and plan.device is None
    several = len(projection.structure.residuals) > 1
    if not few or several or isinstance(projection, PatternedProjection):
        return search
    likelihood: Any = make_likelihood(projection, plan.options.method, "general")
    residual = known_residual_of(search.likelihood)
    if residual is not None:
        likelihood = KnownResidual(likelihood, residual)
    return replace(search, likelihood=likelihood)


def _put(solution: Solution, features: IntArray, other: Solution, rows: IntArray) -> None:
    """Put rows of another solution in the place of features; steps stay."""
    solution.theta[features], solution.status[features] = other.theta[rows], other.status[rows]
    solution.evaluation.put(features, other.evaluation.take(rows))


def _hold(theta: FloatArray, likelihood: AnyEstimator) -> None:
    """Put known residual variances into theta (m, k), in place; NaN stays."""
    residual = known_residual_of(likelihood)
    if residual is not None:
        theta[:, -1] = np.where(np.isnan(theta[:, -1]), np.nan, residual)


def _landscape(
    projection: AnyProjection, options: FitOptions, start: Starts | None
) -> Landscape | None:
    """Where other maxima may be seen; None where designs differ by feature or are too large."""
    if isinstance(projection, PatternedProjection) or (start and start.given.all()):
        return None
    host = projection.in_numpy
    grid = profile_grid(host, options.method)
    if grid is None:
        return None  # before `u` and `rss`, which need the eigenbasis
    variances = np.flatnonzero(projection.structure.is_variance[:-1])
    chosen = np.ones(host.m, dtype=bool) if start is None else ~start.given
    fine = fine_grid(host, options.method)
    signed = partial(signed_grid, host, options.method, grid)
    return Landscape(
        grid,
        host.u,
        host.rss,
        chosen,
        variances,
        fine,
        make_space("psd", host.structure.blocks(), host.structure.is_variance.size),
        partial(signed, "coarse"),
        partial(signed, "fine"),
    )
