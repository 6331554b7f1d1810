"""One variance component: eigenvectors shared by all features make every matrix diagonal.

With a single G_i = I, M = sigma2 I + theta K'K is diagonal in the basis of
`flashmm.likelihood.projection` (K'K = diag of the eigenvalues of Z'RZ), and so is Z'Z's
counterpart in its own basis. All features advance together as (B, r) arrays; nothing of size
r x r is formed per feature. (The idea behind FaST-LMM, Lippert et al. 2011, applied to
summary statistics.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from flashmm.likelihood.base import (
    SINGULAR,
    Evaluation,
    RandomEffects,
    StandardErrorKind,
    rounding_errors,
)
from flashmm.likelihood.general import standard_errors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.likelihood.projection import Projection

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]
    BoolArray = NDArray[np.bool_]

__all__ = ["SpectralLikelihood"]


@dataclass(frozen=True)
class SpectralLikelihood:
    """REML or ML log-likelihood of (theta, sigma2) for a model with one component."""

    projection: Projection
    method: Literal["REML", "ML"]
    engine: str = "spectral"

    @property
    def m(self) -> int:
        """Number of features."""
        return self.projection.m

    @property
    def n_params(self) -> int:
        """Two: the component's variance and the residual's."""
        return 2

    @cached_property
    def eigenvalues(self) -> FloatArray:
        """Eigenvalues of the scaled Z'RZ, shape (r,)."""
        return np.ascontiguousarray(np.diagonal(self.projection.A[0]))

    @cached_property
    def eigenvalues_full(self) -> FloatArray:
        """Eigenvalues of the scaled Z'Z, shape (r_full,)."""
        return np.ascontiguousarray(np.diagonal(self.projection.A_full[0]))

    @cached_property
    def _squares(self) -> FloatArray:
        return self.projection.u**2

    @cached_property
    def _loadings(self) -> FloatArray:
        """K'H, shape (r, p)."""
        return self.projection.K.T @ self.projection.H

    @cached_property
    def _along(self) -> FloatArray:
        """U'H: H = Z'X (X'X)^-1 along the eigenvectors U of Z'RZ, shape (r, p)."""
        return self._loadings / np.sqrt(self.eigenvalues)[:, None]

    @cached_property
    def _across(self) -> FloatArray:
        """H outside their span: what X absorbs of the random effects, shape (q, p)."""
        p = self.projection
        if p.r == p.structure.q:
            return np.zeros_like(p.H)
        return np.asarray(p.H - (p.K / np.sqrt(self.eigenvalues)) @ self._along)

    @property
    def perfect_fit(self) -> BoolArray:
        """Features that X and Z together explain exactly, shape (m,)."""
        return self.projection.perfect_fit

    def batch_size(self, memory: int) -> int:
        """How many features fit into ``memory`` bytes: a few vectors of length r each."""
        p = self.projection
        return max(1, memory // (8 * (8 * max(p.r, p.r_full, 1) + 4 * p.p + 32)))

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and information at theta (B, 2) for chosen features."""
        p = self.projection
        outside, df = p.n - p.p - p.r, p.n - p.p
        eigenvalues, df_trace = self.eigenvalues, outside
        if self.method == "ML":
            eigenvalues, df_trace, df = self.eigenvalues_full, p.n - p.r_full, p.n
        sigma2 = theta[:, 1]
        feasible = _relative_definiteness(eigenvalues, theta, df_trace > 0) > SINGULAR
        if self.method == "ML":
            feasible &= _relative_definiteness(self.eigenvalues, theta, False) > SINGULAR

        result = Evaluation.empty(theta.shape[0], 2)
        ok = np.flatnonzero(feasible)
        if ok.size == 0:
            return result
        theta, sigma2, chosen = theta[ok], sigma2[ok], features[ok]
        d = theta[:, :1] * self.eigenvalues + theta[:, 1:]
        weights = 1.0 / d
        quadratic = self._squares[chosen] * weights
        value = quadratic.sum(axis=1)
        quadratic *= weights
        first = quadratic @ _powers(self.eigenvalues, 1)
        quadratic *= weights
        second = quadratic @ _powers(self.eigenvalues, 2)
        if self.method == "ML":
            d = theta[:, :1] * eigenvalues + theta[:, 1:]
            weights = 1.0 / d
        log_det = np.log(d).sum(axis=1)
        trace_first = weights @ _powers(eigenvalues, 1)
        weights *= weights
        trace_second = weights @ _powers(eigenvalues, 2)
        if outside > 0:
            rss = p.rss[chosen]
            value += rss / sigma2
            first[:, 1] += rss / sigma2**2
            second[:, 2] += rss / sigma2**3
        if df_trace > 0:
            log_det += df_trace * np.log(sigma2)
            trace_first[:, 1] += df_trace / sigma2
            trace_second[:, 2] += df_trace / sigma2**2
        result.put(
            ok,
            Evaluation(
                -0.5 * (df * np.log(2.0 * np.pi) + log_det + value),
                0.5 * (first - trace_first),
                0.5 * _symmetric(trace_second),
                0.5 * _symmetric(second),
                rounding_errors(p.n, sigma2),
            ),
        )
        return result

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        p = self.projection
        w = p.u[features] / (theta[:, :1] * self.eigenvalues + theta[:, 1:])
        correction = theta[:, :1] * (w @ self._loadings)
        beta: FloatArray = p.beta_ols[:, features].T - p.unit[features, None] * correction
        return beta

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c): one matrix product for all.

        Along the eigenvectors D - D T D is theta sigma2 / d, so no large terms cancel.
        """
        p = self.projection
        along, across = (self._along @ L.T) ** 2, ((self._across @ L.T) ** 2).sum(axis=0)
        weights = theta[:, :1] * theta[:, 1:] / (theta[:, :1] * self.eigenvalues + theta[:, 1:])
        variance = theta[:, 1:] * ((p.XX_inverse @ L.T) * L.T).sum(axis=0)
        variance += theta[:, :1] * across + weights @ along
        return np.asarray(variance * p.scale[features, None])

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p); indefinite where V is."""
        p, along = self.projection, self._along
        weights = theta[:, :1] * theta[:, 1:] / (theta[:, :1] * self.eigenvalues + theta[:, 1:])
        C = theta[:, 1, None, None] * p.XX_inverse
        C = C + theta[:, 0, None, None] * (self._across.T @ self._across)
        C += np.matmul(along.T * weights[:, None, :], along)
        C = 0.5 * (C + np.swapaxes(C, 1, 2)) * p.scale[features, None, None]
        return np.asarray(C)

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p = self.projection
        unit = p.unit[features, None] / p.column_scale
        w = p.u[features] / (theta[:, :1] * self.eigenvalues + theta[:, 1:])
        blup = theta[:, :1] * (w @ p.K.T) * unit
        if se is None:
            return RandomEffects(blup, None)
        K, values = p.K, self.eigenvalues
        if se == "conditional":
            K, values = p.K_full, self.eigenvalues_full
        weights = theta[:, :1] ** 2 / (theta[:, :1] * values + theta[:, 1:])
        return RandomEffects(blup, standard_errors(theta[:, :1] - weights @ (K * K).T) * unit)

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        p = self.projection
        return np.asarray(_relative_definiteness(self.eigenvalues_full, theta, p.n > p.r_full) > 0)

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """Smallest over largest eigenvalue of V (ML) or the error contrasts' covariance."""
        p = self.projection
        if self.method == "ML":
            return _relative_definiteness(self.eigenvalues_full, theta, p.n > p.r_full)
        return _relative_definiteness(self.eigenvalues, theta, p.n - p.p > p.r)


def _relative_definiteness(
    eigenvalues: FloatArray, theta: FloatArray, with_residual: bool
) -> FloatArray:
    """Smallest over largest diagonal element of M, and of sigma2 where it stands alone.

    The eigenvalues ascend, so the ends of M's diagonal are attained at their ends.
    """
    ends = theta[:, :1] * eigenvalues[[0, -1]] + theta[:, 1:]
    if with_residual:
        ends = np.concatenate([ends, theta[:, 1:]], axis=1)
    return np.asarray(ends.min(axis=1) / np.abs(ends).max(axis=1))


def _powers(eigenvalues: FloatArray, order: int) -> FloatArray:
    """Columns lambda^order, ..., lambda, 1, shape (r, order + 1)."""
    return np.vander(eigenvalues, order + 1)


def _symmetric(entries: FloatArray) -> FloatArray:
    """(B, 3) entries 00, 01, 11 as (B, 2, 2) matrices."""
    return entries[:, [0, 1, 1, 2]].reshape(-1, 2, 2)
