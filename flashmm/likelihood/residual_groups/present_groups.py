"""Residual variances by group where some groups have no samples: those are no parameters.

Features that share their samples may all lack those of a group, as proteins that one assay does not
see. Theta keeps the place of that group's variance: its score is zero, its information one, and it
meets no other parameter, so that searches leave it where it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.base import (
    ContrastMoments,
    Evaluation,
    RandomEffects,
    StandardErrorKind,
)
from flashmm.likelihood.projection import GroupedProjection
from flashmm.likelihood.residual_groups.groups import ResidualGroups

__all__ = ["PresentGroups", "residual_groups_of"]


def residual_groups_of(
    projection: GroupedProjection, method: str
) -> ResidualGroups | PresentGroups:
    """The likelihood of statistics whose groups have residual variances of their own."""
    groups, absent = projection.groups, projection.absent
    assert groups is not None
    if absent is None:
        return ResidualGroups.make(projection, groups, method)
    here = [(n, part) for n, part in zip(groups.labels, groups.parts, strict=True) if part.n]
    some = replace(groups, labels=tuple(n for n, _ in here), parts=tuple(part for _, part in here))
    inner = ResidualGroups.make(projection, some, method)
    return PresentGroups(projection, inner, np.flatnonzero(~absent), absent.size)


@dataclass(frozen=True)
class PresentGroups:
    """A `ResidualGroups` of the groups with samples, an `Estimator` of theta with all.

    Parameters
    ----------
    projection
        Of all samples.
    inner
        The likelihood of the groups that have some.
    kept
        Positions of its parameters among all, shape (k + H,) of its H groups.
    n_params
        Number of all.
    """

    projection: GroupedProjection
    inner: ResidualGroups
    kept: IntArray
    n_params: int
    engine: str = "groups"

    @property
    def m(self) -> int:
        """Number of features."""
        return self.inner.m

    @property
    def perfect_fit(self) -> BoolArray:
        """Features of which a group's samples are explained exactly by X and Z, shape (m,)."""
        return self.inner.perfect_fit

    @property
    def first_start(self) -> FloatArray | None:
        """As `ResidualGroups.first_start`."""
        found = self.inner.first_start
        return None if found is None else self._with_others(found, 1.0)

    def _with_others(self, values: FloatArray, other: float) -> FloatArray:
        """Values of the kept parameters (B, k) among all."""
        result = np.full((values.shape[0], self.n_params), other)
        result[:, self.kept] = values
        return result

    def batch_size(self, memory: int) -> int:
        """How many features may be evaluated at once within ``memory`` bytes."""
        return self.inner.batch_size(memory)

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and informations at theta (B, k + H) for chosen features."""
        found = self.inner.evaluate(theta[:, self.kept], features)
        score = self._with_others(found.score, 0.0)
        # Where the likelihood does not exist nothing is known of these either.
        score[~np.isfinite(found.loglik)] = np.nan
        one = np.where(np.isfinite(found.loglik), 1.0, np.nan)
        expected, average = (self._block(part, one) for part in (found.expected, found.average))
        return Evaluation(found.loglik, score, expected, average, found.rounding)

    def _block(self, matrices: FloatArray, one: FloatArray) -> FloatArray:
        """Matrices (B, k, k) among all parameters, beside a diagonal of ``one`` (B,)."""
        result = np.zeros((matrices.shape[0], self.n_params, self.n_params))
        result[:, self.kept[:, None], self.kept] = matrices
        others = np.setdiff1d(np.arange(self.n_params), self.kept)
        result[:, others, others] = one[:, None]
        return result

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        return self.inner.beta(theta[:, self.kept], features)

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p)."""
        return self.inner.covariance(theta[:, self.kept], features)

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        return self.inner.contrast_variance(theta[:, self.kept], features, L)

    def fixed_effects(self, theta: FloatArray, features: IntArray) -> tuple[FloatArray, FloatArray]:
        """Coefficients and their variances at theta, each (B, p)."""
        return self.inner.fixed_effects(theta[:, self.kept], features)

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        return self.inner.random_effects(theta[:, self.kept], features, se)

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v with T = Z'PZ at theta for the rows of vectors (B, c, q), same shape."""
        return self.inner.apply_T(theta[:, self.kept], vectors)

    def contrast_moments(
        self, theta: FloatArray, L: FloatArray, *, adjustment: bool
    ) -> ContrastMoments:
        """How the variances of hypotheses L (g, r, p) depend on theta (B, k + H)."""
        found = self.inner.contrast_moments(theta[:, self.kept], L, adjustment=adjustment)
        B, g, _, r, _ = found.gradient.shape
        gradient, second = np.zeros((B, g, self.n_params, r, r)), None
        gradient[:, :, self.kept] = found.gradient
        if found.adjustment is not None:
            second = np.zeros((B, g, self.n_params, self.n_params, r, r))
            second[:, :, self.kept[:, None], self.kept] = found.adjustment
        return ContrastMoments(found.variance, gradient, second)

    def lost_in_rounding(self, theta: FloatArray, expected: FloatArray) -> BoolArray:
        """As `ResidualGroups.lost_in_rounding`."""
        inside = expected[:, self.kept[:, None], self.kept]
        return self.inner.lost_in_rounding(theta[:, self.kept], inside)

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        return self.inner.is_definite(theta[:, self.kept])

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """How near the edge of the likelihood's domain theta lies, shape (B,)."""
        return self.inner.distance_to_edge(theta[:, self.kept])
