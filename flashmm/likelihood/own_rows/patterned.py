"""Features with rows of their own: groups of them, each with its own likelihood.

A pattern that many features share is a design like any other, with its fast likelihood. Features
with rare patterns go together: by eliminating blocks of each, or, where there are none, as a stack
of dense matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.likelihood.base import (
    Estimator,
    Evaluation,
    OfProjection,
    RandomEffects,
    StandardErrorKind,
    rows_of,
)
from flashmm.likelihood.moments import ContrastMoments, contrast_moments
from flashmm.likelihood.own_rows.layout import dense_layout
from flashmm.likelihood.own_rows.own_rows import OwnRowsLikelihood
from flashmm.likelihood.own_rows.patterned_projection import PatternedProjection
from flashmm.likelihood.own_rows.residual_groups import OwnResidualGroups
from flashmm.likelihood.own_rows.stacked import StackedLikelihood
from flashmm.likelihood.projection import (
    Projection,
)
from flashmm.likelihood.residual_groups.groups import ResidualGroups
from flashmm.likelihood.residual_groups.present_groups import PresentGroups

__all__ = ["FeatureRows", "PatternedLikelihood"]

AnyPart: TypeAlias = Estimator | OwnRowsLikelihood | OwnResidualGroups | StackedLikelihood


@dataclass(frozen=True)
class PatternedLikelihood(OfProjection):
    """The likelihoods of all features, each by the group it is in; an `Estimator` by `of`.

    Parameters
    ----------
    projection
        The projected statistics.
    method
        ``"REML"`` or ``"ML"``.
    estimators
        The likelihood of each group.
    """

    projection: PatternedProjection
    method: Literal["REML", "ML"]
    estimators: tuple[AnyPart, ...]
    engine: str = "patterned"
    small_products: bool = True

    @property
    def n_params(self) -> int:
        """Number of variance parameters, residual variances included."""
        return len(self.projection.structure.param_names)

    @classmethod
    def of_projection(
        cls,
        projection: PatternedProjection,
        method: Literal["REML", "ML"],
        make: Callable[[Projection], Estimator],
        *,
        dense: bool = False,
    ) -> PatternedLikelihood:
        """The likelihood of groups; ``make`` makes that of one with a common pattern.

        ``dense``: features with rare patterns are a stack, whatever their layout.
        """
        layout = None if dense else projection.layout
        parts: list[AnyPart] = []
        for group in projection.groups:
            if isinstance(group.projection, Projection):
                parts.append(make(group.projection))
            elif group.by_group is not None:
                one = group.projection
                own = layout or dense_layout(one.designs.sums, projection.structure)
                parts.append(OwnResidualGroups(one, group.by_group, method, own))
            elif layout is None:
                parts.append(StackedLikelihood(group.projection, method))
            else:
                parts.append(OwnRowsLikelihood(group.projection, method, layout))
        return cls(projection, method, tuple(parts))

    @cached_property
    def _places(self) -> tuple[IntArray, IntArray]:
        """Group of each feature, -1 for none, and its position there; both (m,)."""
        group, place = np.full(self.m, -1), np.zeros(self.m, dtype=np.intp)
        for number, part in enumerate(self.projection.groups):
            group[part.features] = number
            place[part.features] = np.arange(part.features.size)
        return group, place

    def split(self, features: IntArray) -> Iterator[tuple[IntArray, IntArray, Any]]:
        """Per group: which of ``features`` are in it, their positions there, its likelihood."""
        group, place = self._places
        numbers = group[features]
        for number in np.unique(numbers[numbers >= 0]):
            where = np.flatnonzero(numbers == number)
            yield where, place[features[where]], self.estimators[number]

    @cached_property
    def perfect_fit(self) -> BoolArray:
        """Features that X and Z together explain exactly, shape (m,)."""
        result = np.zeros(self.m, dtype=bool)
        for group, estimator in zip(self.projection.groups, self.estimators, strict=True):
            result[group.features] = estimator.perfect_fit
        return result & self.projection.varies

    def batch_size(self, memory: int) -> int:
        """How many features may be evaluated at once within ``memory`` bytes."""
        return min((part.batch_size(memory) for part in self.estimators), default=1)

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Evaluate ``theta`` (B, k) for the features at the positions ``features`` (B,)."""
        result = Evaluation.empty(features.size, self.n_params)
        for where, local, estimator in self.split(features):
            result.put(where, estimator.evaluate(theta[where], local))
        return result

    def fixed_effects(self, theta: FloatArray, features: IntArray) -> tuple[FloatArray, FloatArray]:
        """`beta` and the variances of the fixed effects at theta, each shape (B, p)."""
        p = self.projection.p
        beta, variance = np.empty((features.size, p)), np.empty((features.size, p))
        for where, local, estimator in self.split(features):
            if isinstance(estimator, ResidualGroups | PresentGroups):
                beta[where], variance[where] = estimator.fixed_effects(theta[where], local)
                continue
            if isinstance(estimator, OwnRowsLikelihood | OwnResidualGroups):
                beta[where], C = estimator.fixed_effects(theta[where], local)
                variance[where] = np.diagonal(C, axis1=1, axis2=2)
                continue
            beta[where] = estimator.beta(theta[where], local)
            variance[where] = estimator.contrast_variance(theta[where], local, np.eye(p))
        return beta, variance

    @cached_property
    def first_start(self) -> FloatArray | None:
        """Where searches begin, (m, k + H), NaN for the default; None for that of all features."""
        found = [getattr(part, "first_start", None) for part in self.estimators]
        if all(start is None for start in found):
            return None
        result = np.full((self.m, self.n_params), np.nan)
        for group, start in zip(self.projection.groups, found, strict=True):
            if start is not None:
                result[group.features] = start
        return result

    def lost_in_rounding(self, theta: FloatArray, expected: FloatArray) -> BoolArray:
        """Whose scores of residual variances may be rounding alone, of all features, shape (m,)."""
        result = np.zeros(self.m, dtype=bool)
        for where, local, estimator in self.split(np.arange(self.m)):
            if isinstance(estimator, OwnResidualGroups):
                result[where] = estimator.lost_in_rounding(theta[where], expected[where], local)
            elif isinstance(estimator, ResidualGroups | PresentGroups):
                result[where] = estimator.lost_in_rounding(theta[where], expected[where])
        return result

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Fixed effects at theta, shape (B, p)."""
        result = np.empty((features.size, self.projection.p))
        for where, local, estimator in self.split(features):
            result[where] = estimator.beta(theta[where], local)
        return result

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        result = np.empty((features.size, L.shape[0]))
        for where, local, estimator in self.split(features):
            result[where] = estimator.contrast_variance(theta[where], local, L)
        return result

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p)."""
        result = np.empty((features.size, self.projection.p, self.projection.p))
        for where, local, estimator in self.split(features):
            result[where] = estimator.covariance(theta[where], local)
        return result

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Predictions of the random effects, with standard errors if asked for."""
        blup = np.empty((features.size, self.projection.structure.q))
        errors = None if se is None else np.empty_like(blup)
        for where, local, estimator in self.split(features):
            part = estimator.random_effects(theta[where], local, se)
            blup[where] = part.blup
            if errors is not None and part.se is not None:
                errors[where] = part.se
        return RandomEffects(blup, errors)

    def of(self, features: IntArray) -> FeatureRows:
        """The likelihoods of some features, one for each row of theta."""
        return FeatureRows(self, features)


@dataclass(frozen=True)
class _DesignRows:
    """Of the designs of some features what formulas for contrasts need."""

    structure: CovarianceStructure
    H: FloatArray
    XX_inverse: FloatArray


@dataclass(frozen=True)
class FeatureRows:
    """The likelihoods of certain features, one for each row of theta."""

    likelihood: PatternedLikelihood
    features: IntArray

    @cached_property
    def projection(self) -> _DesignRows:
        """H (B, q, p) and (X'X)^-1 (B, p, p) of the features."""
        owner = self.likelihood
        p = owner.projection
        H = np.empty((self.features.size, p.structure.q, p.p))
        XX_inverse = np.empty((self.features.size, p.p, p.p))
        for where, local, estimator in owner.split(self.features):
            if isinstance(estimator, (OwnRowsLikelihood, StackedLikelihood, OwnResidualGroups)):
                W = estimator.projection.whitening[local]
                H[where] = estimator.H(local)
                XX_inverse[where] = np.matmul(W, np.swapaxes(W, 1, 2))
            else:
                H[where] = estimator.projection.H
                XX_inverse[where] = estimator.projection.XX_inverse
        return _DesignRows(p.structure, H, XX_inverse)

    @property
    def parts(self) -> list[tuple[IntArray, Any]]:
        """Which of the features go together, and their likelihoods."""
        return self._groups

    @cached_property
    def _groups(self) -> list[tuple[IntArray, Any]]:
        """Which features are in each group, and their likelihoods there."""
        groups = self.likelihood.split(self.features)
        return [(where, rows_of(estimator, local)) for where, local, estimator in groups]

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v with T = Z'PZ at theta for the rows of vectors (B, c, q), same shape."""
        if len(self._groups) == 1 and self._groups[0][0].size == self.features.size:
            return np.asarray(self._groups[0][1].apply_T(theta, vectors))
        result = np.empty_like(vectors)
        for where, one in self._groups:
            result[where] = one.apply_T(theta[where], vectors[where])
        return result

    def contrast_moments(
        self, theta: FloatArray, L: FloatArray, *, adjustment: bool
    ) -> ContrastMoments:
        """How the variances of hypotheses L (g, r, p) depend on theta (B, k)."""
        if self.likelihood.projection.sizes is None:
            return contrast_moments(self, theta, L, adjustment=adjustment)
        (g, r, _), (B, k) = L.shape, theta.shape
        total = ContrastMoments(
            np.empty((B, g, r, r)),
            np.empty((B, g, k, r, r)),
            np.empty((B, g, k, k, r, r)) if adjustment else None,
        )
        for where, one in self._groups:
            part = one.contrast_moments(theta[where], L, adjustment=adjustment)
            total.variance[where], total.gradient[where] = part.variance, part.gradient
            if total.adjustment is not None:
                total.adjustment[where] = part.adjustment
        return total

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        result = np.zeros(self.features.size, dtype=bool)
        for where, local, estimator in self.likelihood.split(self.features):
            result[where] = rows_of(estimator, local).is_definite(theta[where])
        return result

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """Smallest over largest eigenvalue of V, or of the error contrasts' covariance."""
        result = np.empty(self.features.size)
        for where, local, estimator in self.likelihood.split(self.features):
            result[where] = rows_of(estimator, local).distance_to_edge(theta[where])
        return result
