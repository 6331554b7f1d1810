"""The search where structures are not linear in their parameters: several starts, the best end.

The likelihood of a correlation may have several maxima, and where the variance of a structure is
zero its correlation is anything. So the search goes from the best maxima of a grid, correlations
by variance ratios, the scale of all variances at its best for each, which a log-likelihood and its
score tell (L(c theta) = L(theta) - (n - p) log(c) / 2 - y'Py (1/c - 1) / 2, with y'Py from
2 theta'score = y'Py - (n - p)). At the end, a zero variance has to be one for every correlation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.curves import Decay, Heterogeneous
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import InputError, listing
from flashmm.likelihood.base import Evaluation
from flashmm.likelihood.known_residual import known_residual_of
from flashmm.likelihood.own_parameters import OwnParameters
from flashmm.progress import Progress, counted
from flashmm.solvers.base import Solution, Solver
from flashmm.solvers.batches import over_batches
from flashmm.solvers.boxed import Boxed
from flashmm.solvers.face_newton import FaceNewton
from flashmm.solvers.fallback import maximise_in_stages
from flashmm.solvers.fisher_scoring import FisherScoring
from flashmm.solvers.gains import spoilt
from flashmm.solvers.newton_raphson import NewtonRaphson
from flashmm.solvers.space import PSD
from flashmm.solvers.verdict_texts import Status

__all__ = ["CurvedSearch", "check_curved", "in_theta", "own_space", "prefer_positive"]

# Variances of the starts over the residual variance.
_RATIOS = (0.05, 0.3, 2.0, 20.0, 200.0)
# Points of the grid from which the search goes, at most.
_FROM = 9
# Correlations at which a variance of zero is looked at, and the variance from which it grows.
_DIRECTIONS = 35
_SMALL = 1e-3
_GAIN = 1e-9
# Steps of scoring after which Newton's take its place. Where the observed information is twice the
# expected, scoring goes to and fro; next to a standard deviation of zero it has none.
_SCORING = 12
# Standard deviations of effects, in internal units, and correlations that are zero.
_ZERO = 1e-7


def check_curved(
    structure: CovarianceStructure, parameter_space: str, solver: Any, device: Any
) -> None:
    """Raise for options of a fit that structures with own parameters do not have."""
    terms = [term.name for term in structure.terms if term.curve is not None]
    shown = listing(terms)
    if parameter_space != "psd":
        raise InputError(
            f"The structure of {shown} has a variance and a correlation, which are those of a "
            "covariance matrix: pass parameter_space='psd'. Negative variances, as in the "
            "unconstrained space, have no correlation."
        )
    if device is not None:
        raise InputError(f"`device` does not serve the structure of {shown}. Leave it out.")
    if solver not in ("fisher_scoring", "newton_raphson", "average_information"):
        raise InputError(
            f"solver={solver!r} does not serve the structure of {shown}, which is not linear in "
            "its parameters. Use 'fisher_scoring' or 'newton_raphson'."
        )


def own_space(structure: CovarianceStructure) -> Boxed:
    """Where the own parameters of a structure may lie."""
    curved = structure.curved
    assert curved is not None
    lower, upper = curved.bounds
    return Boxed(PSD(tuple(structure.own_blocks()[:-1]), curved.k), lower, upper)


@dataclass(frozen=True)
class CurvedSearch:
    """How the maxima over own parameters are searched for.

    Parameters
    ----------
    likelihood
        Of the own parameters.
    space
        Where they may lie.
    structure
        The random terms.
    solver
        The solver; Newton-Raphson goes on with features that it leaves unfinished.
    df
        Contrasts that the likelihood counts, n - p or n: a number, or one of each feature (m,).
    max_iter, memory, threads, epsilon
        As in `MultiLMM.fit`.
    """

    likelihood: OwnParameters
    space: Boxed
    structure: CovarianceStructure
    solver: Solver
    df: FloatArray
    max_iter: int
    memory: int
    threads: int | None
    epsilon: float

    def run(
        self, usable: BoolArray, given: FloatArray | None = None, progress: Progress = False
    ) -> Solution:
        """The best end of each usable feature (m,), in own parameters.

        ``given``: starts (m, k), NaN for features without one.
        """
        total = Solution.empty(self.likelihood.m, self.likelihood.n_params)

        def fit(batch: IntArray) -> None:
            starts = self._starts(batch)
            if given is not None:
                chosen = np.isfinite(given[batch]).all(axis=1)
                starts[0, chosen], starts[1:, chosen] = given[batch][chosen], np.nan
            total.put(batch, self._best(batch, starts))

        features = np.flatnonzero(usable)
        if features.size:  # makes what features share, before threads need it
            one = features[:1]
            self.likelihood.evaluate(self._grid(one)[0][0], one)
        with counted(progress, features.size, unit="feature", desc="fit") as done:
            over_batches(
                fit,
                self.likelihood,
                features,
                memory=self.memory // _FROM,
                n_jobs=self.threads,
                done=done,
            )
        return total

    def _grid(self, features: IntArray) -> tuple[FloatArray, int]:
        """Points (g, B, k) of a grid, the residual variance 1, and how many shapes are in order.

        The ratios of each shape of the curves come one after the other.
        """
        curved, residual = self.likelihood.curved, known_residual_of(self.likelihood.inner)
        shapes = [None if curve is None else curve.starts() for curve in curved.curves]
        count = max(shape[0].shape[0] for shape in shapes if shape is not None)
        points = np.zeros((count * len(_RATIOS), features.size, curved.k))
        powers = curved.degrees
        for i in range(count):
            for j, ratio in enumerate(_RATIOS):
                u = points[i * len(_RATIOS) + j]
                for number, (curve, linear, own) in enumerate(curved.parts()):
                    if curve is not None:
                        shape = shapes[number]
                        assert shape is not None
                        u[:, own] = shape[0][i % shape[0].shape[0]] * ratio ** powers[own]
                    elif linear.stop <= sum(curved.sizes):
                        u[:, own] = np.where(self.structure.is_variance[linear], ratio, 0.0)
                    else:
                        u[:, own] = 1.0
                if residual is not None:
                    u[:, -1] = residual[features]
        return points, min(shape[1] for shape in shapes if shape is not None)

    def _starts(self, features: IntArray) -> FloatArray:
        """The highest points of the grid, their scale at its best, (s, B, k); NaN for no more.

        Of shapes in order only local maxima count, the ratio at its best for each.
        """
        points, ordered = self._grid(features)
        height = np.stack([self._height(points[g], features) for g in range(points.shape[0])])
        ratios, each = len(_RATIOS), np.arange(features.size)
        height = np.where(np.isfinite(height), height, -np.inf)
        ridge = height.reshape(-1, ratios, features.size)
        ratio, top = ridge.argmax(axis=1), ridge.max(axis=1)
        edge = np.full((1, features.size), -np.inf)
        around = np.concatenate([edge, top[:ordered], edge])
        summit = np.ones(top.shape, dtype=bool)
        summit[:ordered] = (top[:ordered] >= around[:-2]) & (top[:ordered] >= around[2:])
        order = np.argsort(-np.where(summit, top, -np.inf), axis=0, kind="stable")[:_FROM]
        starts: FloatArray = points[order * ratios + ratio[order, each], each]
        starts[~summit[order, each]] = np.nan
        return starts

    def _height(self, u: FloatArray, features: IntArray) -> FloatArray:
        """Log-likelihoods (B,) of points (B, k) of the grid, their scale put at its best, in place.

        What a point shares between the features is computed once, where the engine can.
        """
        df = self.df[features] if self.df.ndim else np.broadcast_to(self.df, features.shape)
        weight = self.likelihood.curved.degrees
        estimated = known_residual_of(self.likelihood.inner) is None
        shared = getattr(self.likelihood.inner, "at_one", None) if estimated else None
        if shared is not None and (one := shared(self.likelihood.curved.theta(u[:1]), features)):
            log_det, total = one
            height = -0.5 * (df * np.log(2.0 * np.pi) + log_det + total)
        else:
            found = self.likelihood.evaluate(u, features)
            height = found.loglik
            if not estimated:
                return height
            total = 2.0 * (u * found.score * weight).sum(axis=1) + df
        c = np.clip(total / df, 1e-3, 1e3)
        u *= c[:, None] ** weight
        return np.asarray(height - 0.5 * (df * np.log(c) + total * (1.0 / c - 1.0)))

    def _maximised(self, starts: FloatArray, features: IntArray) -> Solution:
        newton, first = FaceNewton(self.epsilon), None
        stages: tuple[Solver, ...] = (self.solver, newton)
        if isinstance(self.solver, NewtonRaphson):
            stages = (newton,)
        elif isinstance(self.solver, FisherScoring):
            first = _SCORING
        return maximise_in_stages(
            self.likelihood,
            self.space,
            stages,
            starts,
            features,
            max_iter=self.max_iter,
            first=first,
        )

    def _best(self, features: IntArray, starts: FloatArray) -> Solution:
        """The highest of the ends from some starts (s, B, k), which climb as one batch."""
        number, row = np.nonzero(np.isfinite(starts).all(axis=2))
        ends = self._maximised(starts[number, row], features[row])
        best = ends.take(np.flatnonzero(number == 0))
        for i in range(1, starts.shape[0]):
            mine = np.flatnonzero(number == i)
            if mine.size:
                _improve(self.likelihood, best, ends.take(mine), row[mine])
        for _ in range(2):
            rows, again = self._off_zero(best, features)
            if rows.size == 0:
                break
            _improve(self.likelihood, best, self._maximised(again, features[rows]), rows)
        self._settle(best, features)
        # A last step may have come to the boundary.
        inside = np.flatnonzero(best.status == Status.CONVERGED)
        best.status[inside[self.space.on_boundary(best.theta[inside])]] = Status.BOUNDARY
        return best

    def _settle(self, best: Solution, features: IntArray) -> None:
        """Make standard deviations and correlations of decay next to zero zero, in place.

        The likelihood depends on the squares of the former, on broken powers of the latter:
        towards zero steps grow ever shorter.
        """
        settled = best.theta.copy()
        for curve, _, own in self.likelihood.curved.parts():
            part = settled[:, own]
            if isinstance(curve, Heterogeneous):
                part[:, curve.is_cone] *= part[:, curve.is_cone] > _ZERO
            elif curve is not None and curve.lowest == 0.0:
                part[:, -1] *= part[:, -1] > _ZERO
        with np.errstate(invalid="ignore"):
            rows = np.flatnonzero(
                (settled != best.theta).any(axis=1) & (best.status <= Status.BOUNDARY)
            )
        if rows.size == 0:
            return
        at = self.likelihood.evaluate(settled[rows], features[rows])
        kept = at.loglik >= best.evaluation.loglik[rows] - _GAIN
        best.theta[rows[kept]] = settled[rows[kept]]
        best.status[rows[kept]] = Status.BOUNDARY
        best.evaluation.put(rows[kept], at.take(np.flatnonzero(kept)))

    def _off_zero(self, at: Solution, features: IntArray) -> tuple[IntArray, FloatArray]:
        """Where a variance of zero would grow with some correlation: rows, and starts there."""
        curved, u = self.likelihood.curved, at.theta
        zeros = [
            np.zeros(features.size, dtype=bool)
            if curve is None
            else (u[:, own][:, curve.is_cone] <= 0).all(axis=1)
            for curve, _, own in curved.parts()
        ]
        rows = np.flatnonzero(np.any(zeros, axis=0) & np.isfinite(at.evaluation.loglik))
        if rows.size == 0:
            return rows, u[rows]
        score = self.likelihood.inner.evaluate(curved.theta(u[rows]), features[rows]).score
        starts, rising = u[rows].copy(), np.zeros(rows.size, dtype=bool)
        for zero, (curve, linear, own) in zip(zeros, curved.parts(), strict=True):
            if curve is None or not zero[rows].any():
                continue
            directions = curve.directions(_DIRECTIONS)
            slope = score[:, linear] @ curve.theta(directions).T
            up = zero[rows] & (slope.max(axis=1) > 1e-6)
            new = directions[slope.argmax(axis=1)] * _SMALL ** curved.degrees[own]
            starts[:, own] = np.where(up[:, None], new, starts[:, own])
            rising |= up
        return rows[rising], starts[rising]


def _improve(likelihood: OwnParameters, best: Solution, other: Solution, rows: IntArray) -> None:
    """Put another end in the place of some rows where it is higher; steps of all count."""
    finished = other.status <= Status.BOUNDARY
    before = best.status[rows] <= Status.BOUNDARY
    with np.errstate(invalid="ignore"):
        gain = other.evaluation.loglik - best.evaluation.loglik[rows]
        better = np.where(finished == before, gain > _GAIN, finished & (gain > -1e-6))
    better |= np.isfinite(other.evaluation.loglik) & ~np.isfinite(best.evaluation.loglik[rows])
    best.n_iter[rows] += other.n_iter
    chosen = np.flatnonzero(better)
    first, second = best.take(rows[chosen]), other.take(chosen)
    worse = before[chosen] & spoilt(likelihood, second.theta, second.evaluation)
    chosen = chosen[~worse | spoilt(likelihood, first.theta, first.evaluation)]
    best.theta[rows[chosen]] = other.theta[chosen]
    best.status[rows[chosen]] = other.status[chosen]
    best.evaluation.put(rows[chosen], other.evaluation.take(chosen))


def prefer_positive(likelihood: OwnParameters, solution: Solution) -> None:
    """Give correlations the sign plus where the likelihood knows none, in place.

    Where all lags within levels are even multiples of the smallest between any two times, such as
    times 0 and 2 of some levels and 1 and 3 of others, rho and -rho are the same model.
    """
    for curve, _, own in likelihood.curved.parts():
        if not isinstance(curve, Decay) or curve.lowest == 0.0:
            continue
        rho = own.stop - 1
        with np.errstate(invalid="ignore"):
            rows = np.flatnonzero(
                (solution.theta[:, rho] < 0) & (solution.status <= Status.BOUNDARY)
            )
        size = likelihood.batch_size(2**28)
        for start in range(0, rows.size, size):
            here = rows[start : start + size]
            turned = solution.theta[here]
            turned[:, rho] *= -1.0
            at = likelihood.evaluate(turned, here)
            same = np.flatnonzero(np.abs(at.loglik - solution.evaluation.loglik[here]) <= _GAIN)
            solution.theta[here[same]] = turned[same]
            solution.evaluation.put(here[same], at.take(same))


def in_theta(likelihood: OwnParameters, solution: Solution) -> Solution:
    """A solution in own parameters as one in theta."""
    theta = np.full((solution.theta.shape[0], sum(likelihood.curved.sizes)), np.nan)
    theta = np.concatenate([theta, solution.theta[:, -likelihood.curved.residuals :]], axis=1)
    evaluation = Evaluation.empty(*theta.shape)
    known = np.flatnonzero(np.isfinite(solution.theta).all(axis=1))
    theta[known] = likelihood.curved.theta(solution.theta[known])
    size = likelihood.batch_size(2**28)
    for start in range(0, known.size, size):
        here = known[start : start + size]
        evaluation.put(here, likelihood.inner.evaluate(theta[here], here))
    return Solution(theta, evaluation, solution.n_iter, solution.status)
