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

import numpy as np

from flashmm.arrays.namespaces import Array, BoolArray, FloatArray, IntArray, namespace, take
from flashmm.likelihood.base import (
    SINGULAR,
    Evaluation,
    Forms,
    RandomEffects,
    StandardErrorKind,
    log_of_product,
    standard_errors,
)
from flashmm.likelihood.moments import ContrastMoments
from flashmm.likelihood.one_design import OneDesign

__all__ = ["SpectralLikelihood"]


@dataclass(frozen=True)
class SpectralLikelihood(OneDesign):
    """REML or ML log-likelihood of (theta, sigma2) for a model with one component."""

    engine: str = "spectral"

    @cached_property
    def spectrum(self) -> Spectrum:
        """Eigenvalues of the scaled Z'RZ, shape (r,)."""
        return Spectrum.of(self.projection.A[0, :, :])

    @cached_property
    def spectrum_full(self) -> Spectrum:
        """Eigenvalues of the scaled Z'Z, shape (r_full,)."""
        return Spectrum.of(self.projection.A_full[0, :, :])

    @cached_property
    def _loadings(self) -> FloatArray:
        """K'H, shape (r, p)."""
        return self.projection.K.T @ self.projection.H

    @cached_property
    def _root(self) -> FloatArray:
        return namespace(self.projection.K).sqrt(self.spectrum.values)

    @cached_property
    def _along(self) -> FloatArray:
        """U'H: H = Z'X (X'X)^-1 along the eigenvectors U of Z'RZ, shape (r, p)."""
        return self._loadings / self._root[:, None]

    @cached_property
    def _across(self) -> FloatArray:
        """H outside their span: what X absorbs of the random effects, shape (q, p)."""
        p = self.projection
        if p.r == p.structure.q:
            return namespace(p.H).zeros_like(p.H)
        return p.H - (p.K / self._root) @ self._along

    def batch_size(self, memory: int) -> int:
        """How many features fit into ``memory`` bytes: a few vectors of length r each."""
        p = self.projection
        rank = max(p.r, p.r_full if self.method == "ML" else 0, 1)
        return max(1, memory // (8 * (8 * rank + 4 * p.p + 32)))

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and information at theta (B, 2) for chosen features."""
        p, ml = self.projection, self.method == "ML"
        spectrum = self.spectrum_full if ml else self.spectrum
        inside = spectrum.distance_to_edge(theta, self.df_trace > 0) > SINGULAR
        if ml:
            inside = inside & (self.spectrum.distance_to_edge(theta, False) > SINGULAR)
        if not bool(namespace(theta).all(inside)):
            theta, features = theta[inside], features[inside]
        d = self.spectrum.diagonal(theta)
        inverse = 1.0 / d
        quadratic = _quadratic_forms(self.spectrum, take(p.u, features), inverse)
        if ml:
            d = spectrum.diagonal(theta)
            inverse = 1.0 / d
        traces = _traces(spectrum, d, inverse)
        return self.on_span(quadratic, traces, theta[:, 1], features).spread(inside)

    def _weighted(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """M^-1 u, shape (B, r)."""
        return take(self.projection.u, features) / self.spectrum.diagonal(theta)

    def _shrunk(self, theta: FloatArray) -> FloatArray:
        """Theta sigma2 / d: D - D T D along the eigenvectors, shape (B, r)."""
        return theta[:, :1] * theta[:, 1:] / self.spectrum.diagonal(theta)

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        p = self.projection
        correction = theta[:, :1] * (self._weighted(theta, features) @ self._loadings)
        return take(p.beta_ols.T, features) - take(p.unit, features)[:, None] * correction

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c): one matrix product for all.

        Along the eigenvectors D - D T D is theta sigma2 / d, so no large terms cancel.
        """
        p, xp = self.projection, namespace(theta)
        along, across = (self._along @ L.T) ** 2, xp.sum((self._across @ L.T) ** 2, axis=0)
        variance = theta[:, 1:] * xp.sum((p.XX_inverse @ L.T) * L.T, axis=0)
        variance += theta[:, :1] * across + self._shrunk(theta) @ along
        return variance * take(p.scale, features)[:, None]

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p); indefinite where V is."""
        p, xp, along = self.projection, namespace(theta), self._along
        C = theta[:, 1, None, None] * p.XX_inverse
        C += theta[:, 0, None, None] * (self._across.T @ self._across)
        C += xp.matmul(along.T * self._shrunk(theta)[:, None, :], along)
        return 0.5 * (C + xp.matrix_transpose(C)) * take(p.scale, features)[:, None, None]

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p = self.projection
        unit = take(p.unit, features)[:, None] / p.column_scale
        blup = theta[:, :1] * (self._weighted(theta, features) @ p.K.T) * unit
        if se is None:
            return RandomEffects(blup, None)
        K, spectrum = p.K, self.spectrum
        if se == "conditional":
            K, spectrum = p.K_full, self.spectrum_full
        weights = theta[:, :1] ** 2 / spectrum.diagonal(theta)
        return RandomEffects(blup, standard_errors(theta[:, :1] - weights @ (K * K).T) * unit)

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v = K M^-1 K'v for the rows of vectors (B, c, q), same shape."""
        p, xp = self.projection, namespace(theta)
        u = xp.matmul(vectors, p.K) / self.spectrum.diagonal(theta)[:, None, :]
        return xp.matmul(u, p.K.T)

    def contrast_moments(
        self, theta: FloatArray, L: FloatArray, *, adjustment: bool
    ) -> ContrastMoments:
        """How the variances of hypotheses L (g, r, p) depend on theta (B, 2).

        Along the eigenvectors v is H l sigma2 / d and T is lambda / d: all is weighted sums of
        products that the features share.
        """
        xp = namespace(theta)
        g, r, p = L.shape
        flat = xp.reshape(L, (g * r, p)).T
        along = xp.reshape(self._along @ flat, (-1, g, r))
        across = xp.reshape(self._across @ flat, (-1, g, r))
        pairs = xp.reshape(along[:, :, :, None] * along[:, :, None, :], (-1, g * r * r))
        outside = xp.sum(across[:, :, :, None] * across[:, :, None, :], axis=0)
        fixed = xp.matmul(
            xp.matmul(L, self.projection.XX_inverse[None, :, :]), xp.matrix_transpose(L)
        )
        main, sigma2, values = theta[:, :1], theta[:, 1:], self.spectrum.values
        d = self.spectrum.diagonal(theta)

        def weighted(weights: FloatArray) -> FloatArray:
            return xp.reshape(weights @ pairs, (-1, g, r, r))

        gradient = xp.stack(
            [
                weighted((sigma2 / d) ** 2) + outside,
                weighted(main**2 * values / d**2) + fixed,
            ],
            axis=2,
        )
        variance = weighted(main * sigma2 / d)
        variance = variance + main[:, :, None, None] * outside + sigma2[:, :, None, None] * fixed
        if not adjustment:
            return ContrastMoments(variance, gradient, None)
        first = weighted(sigma2**2 * values / d**3)
        mixed = -weighted(main * sigma2 * values / d**3)
        last = weighted(main**2 * values / d**3)
        rows = [xp.stack([first, mixed], axis=2), xp.stack([mixed, last], axis=2)]
        return ContrastMoments(variance, gradient, xp.stack(rows, axis=2))

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        return self.spectrum_full.distance_to_edge(theta, self._with_residual(ml=True)) > 0

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """Smallest over largest eigenvalue of V (ML) or the error contrasts' covariance."""
        ml = self.method == "ML"
        spectrum = self.spectrum_full if ml else self.spectrum
        return spectrum.distance_to_edge(theta, self._with_residual(ml=ml))

    def _with_residual(self, *, ml: bool) -> bool:
        p = self.projection
        return p.n > p.r_full if ml else p.n - p.p > p.r


@dataclass(frozen=True)
class Spectrum:
    """Ascending eigenvalues lambda (r,), and columns lambda^2, lambda, 1 (r, 3)."""

    values: FloatArray
    powers: FloatArray

    @classmethod
    def of(cls, diagonal: Array) -> Spectrum:
        """Eigenvalues of a diagonal matrix (r, r)."""
        xp = namespace(diagonal)
        values = xp.linalg.diagonal(diagonal) + 0.0  # a contiguous copy
        return cls(values, xp.stack([values * values, values, xp.ones_like(values)], axis=1))

    def diagonal(self, theta: FloatArray) -> FloatArray:
        """M's diagonal, sigma2 + theta lambda, shape (B, r)."""
        return theta[:, :1] * self.values + theta[:, 1:]

    def distance_to_edge(self, theta: FloatArray, with_residual: bool) -> FloatArray:
        """Smallest over largest element of M's diagonal, and of sigma2 where it stands alone.

        The eigenvalues ascend, so the ends of the diagonal are attained at their ends.
        """
        xp = namespace(theta)
        ends = [theta[:, 0] * self.values[i] + theta[:, 1] for i in (0, -1)]
        edge = xp.stack([*ends, theta[:, 1]] if with_residual else ends, axis=1)
        with np.errstate(invalid="ignore"):  # nowhere to be far from where all of theta is zero
            return xp.min(edge, axis=1) / xp.max(xp.abs(edge), axis=1)


def _quadratic_forms(spectrum: Spectrum, u: FloatArray, inverse: FloatArray) -> Forms:
    """u'M^-1u and its derivatives, of y'Py on the span of Z."""
    xp = namespace(u)
    terms = u * inverse
    value = xp.vecdot(terms, u)
    terms *= terms
    first = terms @ spectrum.powers[:, 1:]
    terms *= inverse
    return Forms(value, first, _symmetric(terms @ spectrum.powers))


def _traces(spectrum: Spectrum, d: FloatArray, inverse: FloatArray) -> Forms:
    """Log |M| and the traces of M^-1 A_i and of M^-1 A_i M^-1 A_j."""
    first = inverse @ spectrum.powers[:, 1:]
    second = _symmetric((inverse * inverse) @ spectrum.powers)
    return Forms(log_of_product(d), first, second)


def _symmetric(entries: FloatArray) -> FloatArray:
    """(B, 3) entries 00, 01, 11 as (B, 2, 2) matrices."""
    xp = namespace(entries)
    columns = [entries[:, i] for i in (0, 1, 1, 2)]
    return xp.reshape(xp.stack(columns, axis=1), (entries.shape[0], 2, 2))
