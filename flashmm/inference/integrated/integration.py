"""Integrated inference for all features of a fit: by design, and in chunks that fit the memory.

Features that miss different samples have designs of their own; the grid, in the units of Z and Y,
and the prior are those of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from flashmm.arrays.blas import one_blas_thread
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.inference.integrated.grid import RatioGrid
from flashmm.inference.integrated.mixtures import (
    JointTests,
    MixtureTests,
    joint_tests,
    mixture_covariance,
    mixture_limits,
    mixture_tests,
)
from flashmm.inference.integrated.own_rows import OwnDesigns, OwnPart
from flashmm.inference.integrated.posterior import (
    Posterior,
    posterior,
    share_of_prior,
)
from flashmm.inference.integrated.scaling import (
    NOT_FOLLOWING,
    Following,
    moved_weights,
)
from flashmm.inference.integrated.shared import (
    RatioEstimates,
    SharedDesign,
    share_design,
)
from flashmm.inference.integrated.variances import VarianceSummary, share_summary, variance_summary
from flashmm.inference.moderation import VariancePrior
from flashmm.inference.statistics import Alternative
from flashmm.likelihood.projection import Projection
from flashmm.solvers.batches import usable_cores

__all__ = [
    "Integration",
    "Part",
    "integrate",
    "moderated_variance",
    "within_variance",
]

# Features whose largest ratios are looked at together.
_ROWS = 2048
# Bytes of one chunk of features: arrays that a core's cache holds are fastest.
_CHUNK = 2**24
# Arrays of a chunk's size that are alive at once, about.
_ALIVE = 8


@dataclass(frozen=True)
class Part:
    """Features of one design: its projection, and where they are among all features."""

    projection: Projection
    members: IntArray

    @property
    def known(self) -> BoolArray:
        """Features that can be tested, shape (members,)."""
        p = self.projection
        return p.varies & ~p.perfect_fit & np.isfinite(p.rss)

    @property
    def structure(self) -> CovarianceStructure:
        """Random terms."""
        return self.projection.structure

    @property
    def scale(self) -> FloatArray:
        """Units of the squares of each feature, shape (members,)."""
        return self.projection.scale

    def within(self) -> tuple[FloatArray, FloatArray]:
        """Residual variances of y on [X, Z] in the units of Y and their df, shapes (members,)."""
        p = self.projection
        left = p.n - p.p - p.r
        if left <= 0:
            nothing = np.full(self.members.size, np.nan)
            return nothing, nothing
        with np.errstate(invalid="ignore", over="ignore"):
            variance = p.rss * p.scale / left
        known = self.known
        return np.where(known, variance, np.nan), np.where(known, float(left), np.nan)

    def ratios(self, pooled: FloatArray) -> RatioEstimates:
        """Typical ratios and the largest that the features estimate; shapes (k,)."""
        p = self.projection
        trace = np.trace(p.A, axis1=1, axis2=2)
        square = (p.A * p.A).sum(axis=(1, 2))
        typical = np.abs(trace) / square
        degrees, unit = trace * trace / square, p.param_scale[:-1]
        known = np.isfinite(pooled)
        if not known.any():
            return RatioEstimates(typical, np.nan * typical, degrees, unit)
        largest = np.zeros(typical.size)
        u = p.u[known] / np.sqrt(pooled[known])[:, None]
        for start in range(0, len(u), _ROWS):
            rows = u[start : start + _ROWS]
            forms = [((rows @ A) * rows).sum(axis=1).max() for A in p.A]
            largest = np.maximum(largest, np.array(forms) / square)
        return RatioEstimates(typical, largest, degrees, unit)

    def on(self, grid: RatioGrid, memory: int) -> SharedDesign:
        """The design with a grid of ratios."""
        return share_design(self.projection, grid, memory)


AnyPart: TypeAlias = Part | OwnPart
AnyDesign: TypeAlias = SharedDesign | OwnDesigns


@dataclass(frozen=True)
class Integration:
    """The posterior of all m features, ready to be asked.

    Parameters
    ----------
    parts
        The designs with their features.
    shared
        The designs with the grid.
    weights
        Prior of the grid points, shape (G,).
    sigma2
        Prior of the residual variances, in the units of Y; shapes (m,).
    known
        Features that can be tested, shape (m,).
    memory
        Bytes to work in.
    following
        How ratios follow the residual variance.
    """

    parts: tuple[AnyPart, ...]
    shared: tuple[AnyDesign, ...]
    weights: FloatArray
    sigma2: VariancePrior
    known: BoolArray
    memory: int
    following: Following = NOT_FOLLOWING

    @cached_property
    def _moved(self) -> tuple[FloatArray, IntArray]:
        """Weights (S, G) of the grid points, and which of these are those of each feature, (m,)."""
        steps = self.following.steps(moderated_variance(self.parts, self.sigma2))
        return moved_weights(self.shared[0].grid, self.weights, steps)

    def priors(self, features: IntArray) -> FloatArray:
        """Prior weights of the grid points of B features, shape (B, G), or (G,) of all."""
        if self.following.slope == 0.0:
            return self.weights
        rows, which = self._moved
        return np.asarray(rows[which[features]])

    # ---- questions ---------------------------------------------------------------------------

    def contrasts(
        self, positions: IntArray, L: FloatArray, values: FloatArray, alternative: Alternative
    ) -> MixtureTests:
        """Tests that L beta (c, p) equals values (c,); NaN for features without a fit."""
        found = np.full((4, positions.size, L.shape[0]), np.nan)

        def test(design: Any, here: IntArray, data: Any, post: Posterior) -> None:
            part = mixture_tests(
                design.estimates(functions, data),
                design.covariance(functions, data),
                post,
                values[columns],
                alternative,
            )
            for k, name in enumerate(("estimate", "se", "df", "p")):
                found[k][here, columns] = getattr(part, name)

        for k, design, columns in self._pieces(positions, L.shape[0]):
            functions = design.functions(L[columns])
            self._visit(k, positions, test, functions.X.shape[0])
        return MixtureTests(*found)

    def covariance(self, positions: IntArray, L: FloatArray) -> FloatArray:
        """Covariances of L beta (r, p) under the posterior, shape (B, r, r)."""
        r = L.shape[0]
        found = np.full((positions.size, r, r), np.nan)

        def fill(design: Any, here: IntArray, data: Any, post: Posterior) -> None:
            found[here] = mixture_covariance(
                design.estimates(functions, data), design.covariance(functions, data), post
            )

        for k, design, _ in self._pieces(positions, 1):
            functions = design.functions(L, joint=True)
            self._visit(k, positions, fill, r)
        return found

    def limits(self, positions: IntArray, L: FloatArray, alpha: float | FloatArray) -> FloatArray:
        """Confidence limits of L beta, shape (B, c, 2); alpha a number or (B, c)."""
        return self.prediction_limits(positions, L, None, None, alpha)

    def prediction_limits(
        self,
        positions: IntArray,
        X: FloatArray,
        Z: FloatArray | None,
        added: FloatArray | None,
        alpha: float | FloatArray,
    ) -> FloatArray:
        """Limits of X beta + Z b and what ``added`` adds, shape (B, c, 2)."""
        found = np.full((positions.size, X.shape[0], 2), np.nan)

        def limit(design: Any, here: IntArray, data: Any, post: Posterior) -> None:
            level = alpha[here, columns] if isinstance(alpha, np.ndarray) else alpha
            found[here, columns] = mixture_limits(
                design.estimates(functions, data), design.covariance(functions, data), post, level
            )

        for k, design, columns in self._pieces(positions, X.shape[0]):
            functions = design.functions(X[columns], _rows(Z, columns), _rows(added, columns))
            self._visit(k, positions, limit, functions.X.shape[0])
        return found

    def predictions(
        self,
        positions: IntArray,
        X: FloatArray,
        Z: FloatArray | None,
        added: FloatArray | None,
    ) -> MixtureTests:
        """Predictions X beta + Z b with standard errors and df; their p-values are of zero."""
        found = np.full((4, positions.size, X.shape[0]), np.nan)

        def predict(design: Any, here: IntArray, data: Any, post: Posterior) -> None:
            part = mixture_tests(
                design.estimates(functions, data),
                design.covariance(functions, data),
                post,
                np.zeros(functions.X.shape[0]),
            )
            for k, name in enumerate(("estimate", "se", "df", "p")):
                found[k][here, columns] = getattr(part, name)

        for k, design, columns in self._pieces(positions, X.shape[0]):
            functions = design.functions(X[columns], _rows(Z, columns), _rows(added, columns))
            self._visit(k, positions, predict, functions.X.shape[0])
        return MixtureTests(*found)

    def joint(self, positions: IntArray, L: FloatArray, values: FloatArray) -> JointTests:
        """F tests that the rows of L (r, p), linearly independent, all equal values (r,)."""
        found = np.full((3, positions.size), np.nan)

        def test(design: Any, here: IntArray, data: Any, post: Posterior) -> None:
            part = joint_tests(
                design.estimates(functions, data), design.covariance(functions, data), post, values
            )
            for k, name in enumerate(("F", "df", "p")):
                found[k][here] = getattr(part, name)

        for k, design, _ in self._pieces(positions, 1):
            functions = design.functions(L, joint=True)
            self._visit(k, positions, test, L.shape[0])
        return JointTests(*found)

    def variances(self, positions: IntArray, alpha: float) -> VarianceSummary:
        """Theta, the residual last, under the posterior."""
        ratios = self.shared[0].grid.ratios
        return self._summary(positions, np.hstack([ratios, np.ones((len(ratios), 1))]), alpha)

    def shares(self, positions: IntArray, shares: FloatArray, alpha: float) -> VarianceSummary:
        """Functions of the ratios (G, c) under the posterior."""
        return self._summary(positions, shares, alpha, of_ratios=True)

    def _summary(
        self, positions: IntArray, values: FloatArray, alpha: float, *, of_ratios: bool = False
    ) -> VarianceSummary:
        c = values.shape[1]
        mean, limits = np.full((positions.size, c), np.nan), np.full((positions.size, c, 2), np.nan)
        summarise = share_summary if of_ratios else variance_summary

        def fill(_: Any, here: IntArray, __: Any, post: Posterior) -> None:
            found = summarise(values, post, alpha)
            mean[here], limits[here] = found.mean, found.limits

        for k, _, _ in self._pieces(positions, 1):
            self._visit(k, positions, fill, 1)
        return VarianceSummary(mean, limits)

    # ---- a chunk at a time -------------------------------------------------------------------

    def _pieces(self, positions: IntArray, c: int) -> Iterator[tuple[int, Any, slice]]:
        """Designs of some features, and the functions that are worked on at once.

        BLAS has one thread meanwhile.
        """
        wanted = np.zeros(self.known.size, dtype=bool)
        wanted[positions] = True
        with one_blas_thread():
            for k, design in enumerate(self.shared):
                if not wanted[self.parts[k].members].any():
                    continue
                each = 8 * 3 * design.rank * design.grid.size  # of their loadings
                size = max(1, min(c, self.memory // 4 // max(each, 1)))
                for start in range(0, c, size):
                    yield k, design, slice(start, min(start + size, c))

    def _visit(
        self,
        k: int,
        positions: IntArray,
        call: Callable[[Any, IntArray, Any, Posterior], None],
        width: int,
    ) -> None:
        """Call with chunks of the known features of a design: where they are asked for, their data.

        ``width`` arrays of the size of the posterior are worked on for each feature.
        """
        part = self.parts[k]
        design: Any = self.shared[k]
        place = np.full(self.known.size, -1, dtype=np.intp)
        place[part.members] = np.arange(part.members.size)
        here = np.flatnonzero(self.known[positions] & (place[positions] >= 0))
        size = self.chunk(design, width)

        def work(start: int) -> None:
            chosen = here[start : start + size]
            everywhere = positions[chosen]
            local = place[everywhere]
            data: Any = design.features(local)
            scale = part.scale[local]
            found = posterior(
                design.quadratic_forms(data),
                design.log_dets(data),
                design.degrees(data),
                self.sigma2.df[everywhere],
                self.sigma2.variance[everywhere] / scale,
                self.priors(everywhere),
            )
            natural = Posterior(found.weights, found.variance * scale[:, None], found.df)
            call(design, chosen, data, natural)

        _on_cores(work, range(0, here.size, size))

    def chunk(self, design: AnyDesign, width: int) -> int:
        """Features that are worked on at once, ``width`` functions of each."""
        budget = min(self.memory // (2 * usable_cores()), _CHUNK)
        row = 8 * (_ALIVE * design.grid.size * max(width, 1) + design.data_size)
        return max(1, budget // row)


def _rows(values: FloatArray | None, chosen: slice) -> FloatArray | None:
    return None if values is None else values[chosen]


def _on_cores(work: Callable[[int], None], tasks: Sequence[int]) -> None:
    """Do tasks on the usable cores."""
    cores = min(usable_cores(), len(tasks))
    if cores <= 1:
        for task in tasks:
            work(task)
        return
    with ThreadPoolExecutor(cores, "flashmm") as pool:
        list(pool.map(work, tasks))


def integrate(
    parts: Sequence[AnyPart],
    m: int,
    memory: int,
    grid: RatioGrid,
    weights: FloatArray,
    sigma2: VariancePrior,
    following: Following = NOT_FOLLOWING,
) -> Integration:
    """The posterior under a prior: weights (G,) of a grid, and of the residual variances.

    ``following`` says how ratios follow these.
    """
    known = np.zeros(m, dtype=bool)
    for part in parts:
        known[part.members[part.known]] = True
    shared = tuple(part.on(grid, memory) for part in parts)
    return Integration(tuple(parts), shared, weights, sigma2, known, memory, following)


def within_variance(parts: Sequence[AnyPart], m: int) -> tuple[FloatArray, FloatArray]:
    """Residual variances of y on [X, Z] in the units of Y and their df n - p - r, both (m,).

    NaN for features that cannot be tested, and where nothing is left.
    """
    variance, df = np.full(m, np.nan), np.full(m, np.nan)
    for part in parts:
        variance[part.members], df[part.members] = part.within()
    return variance, df


def moderated_variance(parts: Sequence[AnyPart], sigma2: VariancePrior) -> FloatArray:
    """Residual variances on [X, Z], moderated, in the units of Y; NaN where unknown, shape (m,)."""
    variance, df = within_variance(parts, sigma2.df.size)
    share = share_of_prior(sigma2.df, df)
    return share * sigma2.variance + (1.0 - share) * variance
