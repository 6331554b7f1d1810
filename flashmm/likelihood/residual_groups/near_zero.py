"""Residual variances by group of which one is next to zero: the likelihood that keeps its digits.

`flashmm.likelihood.residual_groups.groups` divides by residual variances, and what cancels is lost
where one is tiny. Here nothing is divided by them. A root of each group's sums stands for its
samples: a group of n_h samples has as many rows [Z, X, y] as [Z_h, X_h] has rank, the rest of its
samples have no more than a sum of squares. With Q an orthonormal basis of what X leaves of the rows
(X'X = I),

    M = Q'VQ,   P = Q M^-1 Q',   log|V| + log|X'V^-1X| = log|M|,   beta = X'(y - VPy) = B'y

(Patterson & Thompson 1971), which holds where V is singular too: a residual variance may be zero,
where the samples of its group vary with the random effects, and below zero, as any variance in the
unconstrained space. ML takes V^-1 for P in the traces.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.base import (
    SINGULAR,
    ContrastMoments,
    Evaluation,
    RandomEffects,
    StandardErrorKind,
    rounding_errors,
    standard_errors,
)
from flashmm.likelihood.general import factored, inverse_of
from flashmm.likelihood.moments import apply_G
from flashmm.likelihood.projection import Projection
from flashmm.likelihood.residual_groups.groups import ResidualGroups
from flashmm.likelihood.residual_groups.level_traces import Ratios

__all__ = ["MOST_ROWS", "RANK", "GroupsNearZero", "GroupsOfAnySize"]

# Eigenvalues of a group's sums, scaled to unit diagonal, that are rounding.
RANK = 1e-11
# Rows of all groups, and the residual variance, in internal units, below which this is called in.
_SMALL = ((256, 1e-3), (600, 1e-4))
MOST_ROWS = _SMALL[-1][0]
# Rows up to which features whose V is nearly singular, or indefinite, are handed on: each
# evaluation takes products of matrices of that size, and searches of the unconstrained space that
# have no maximum take hundreds.
_FEW_ROWS = 128
# Variances of contrasts that are zero, as a share of what equal residual variances give.
_NO_VARIANCE = 1e-10
# Bytes of the matrices of the features that are evaluated at once.
_CACHE = 2**25
# The least eigenvalue of V, in its units, below which it is called in too.
_NEARLY_SINGULAR = 1e-4
# And below which the likelihood is lost where it is not: rounding over its square is left.
_LOST = 1e-6


@dataclass(frozen=True)
class GroupsNearZero:
    """The likelihood from roots of the groups' sums, for any residual variances.

    Parameters
    ----------
    projection
        Of all samples; its parameters are those of D and the H residual variances.
    method
        ``"REML"`` or ``"ML"``.
    group
        The group of each row, shape (N,).
    Z, X
        The rows, shapes (N, q) and (N, p).
    y
        Of the features, residuals of least squares, scaled, shape (m, N).
    rest
        Samples of each group beyond its rows, shape (H,).
    rss
        The features' sums of squares of those, shape (m, H).
    """

    projection: Projection
    method: str
    group: IntArray
    Z: FloatArray
    X: FloatArray
    y: FloatArray
    rest: FloatArray
    rss: FloatArray

    @classmethod
    def make(cls, sums: ResidualGroups, features: IntArray | None = None) -> GroupsNearZero:
        """From sums by group, of all features or of some."""
        q, groups, rows, y = sums.projection.structure.q, [], [], []
        of = slice(None) if features is None else features
        rest, rss = np.array(sums.n), np.array(sums.yy[of])
        for h, n in enumerate(sums.n):
            length = np.sqrt(np.maximum(np.diagonal(sums.S[h]), 0.0))
            inverse = 1.0 / np.where(length > 0, length, np.inf)
            values, vectors = np.linalg.eigh(sums.S[h] * inverse[:, None] * inverse)
            held = np.flatnonzero(values > RANK * max(values[-1], 0.0))[-int(n) :]
            root = vectors[:, held] * np.sqrt(values[held])
            along = sums.s[of, h] @ (inverse[:, None] * vectors[:, held] / np.sqrt(values[held]))
            rows.append((root * length[:, None]).T)
            y.append(along)
            groups += [h] * held.size
            rest[h] -= held.size
            rss[:, h] = np.maximum(rss[:, h] - (along**2).sum(axis=1), 0.0) * (rest[h] > 0)
        A = np.concatenate(rows)
        group = np.array(groups, dtype=np.intp)
        Z, X = A[:, :q], A[:, q:]
        return cls(sums.projection, sums.method, group, Z, X, np.hstack(y), rest, rss)

    @property
    def H(self) -> int:
        """Number of residual variances."""
        return int(self.rest.size)

    @property
    def k(self) -> int:
        """Number of parameters of D."""
        return len(self.projection.structure.parameters)

    @cached_property
    def of_V(self) -> FloatArray:
        """Derivatives of V by the parameters, shape (k + H, N, N)."""
        structure = self.projection.structure
        of_D = [apply_G(structure, i, self.Z) @ self.Z.T for i in range(self.k)]
        return np.array([*of_D, *(np.diag(1.0 * (self.group == h)) for h in range(self.H))])

    @cached_property
    def Q(self) -> FloatArray:
        """An orthonormal basis of what X leaves of the rows, shape (N, N - p)."""
        return np.asarray(np.linalg.qr(self.X, mode="complete")[0][:, self.X.shape[1] :])

    @cached_property
    def of_M(self) -> FloatArray:
        """Derivatives of M by the parameters, shape (k + H, N - p, N - p)."""
        return np.asarray(self.Q.T @ self.of_V @ self.Q)

    @cached_property
    def size(self) -> int:
        """How many features are evaluated at once."""
        return max(1, _CACHE // (8 * (3 * (self.k + self.H) + 6) * self.group.size**2))

    def _positive(self, theta: FloatArray) -> BoolArray:
        """Where the samples beyond the rows have a variance, shape (B,)."""
        return np.asarray((theta[:, self.k :][:, self.rest > 0] > 0).all(axis=1))

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and informations at theta (B, k + H) for chosen features."""
        result = Evaluation.empty(features.size, self.k + self.H)
        rows = np.flatnonzero(np.isfinite(theta).all(axis=1) & self._positive(theta))
        for start in range(0, rows.size, self.size):
            here = rows[start : start + self.size]
            with np.errstate(all="ignore"):
                inside, L = factored(_combined(theta[here], self.of_M))
                here, L = here[inside], L[inside]
                of_trace = L
                if self.method == "ML":
                    definite, of_trace = factored(_combined(theta[here], self.of_V))
                    here, L, of_trace = here[definite], L[definite], of_trace[definite]
                if here.size == 0:
                    continue
                found = self._evaluated(theta[here], features[here], L, of_trace)
            good = np.isfinite(found.loglik)
            result.put(here[good], found.take(np.flatnonzero(good)))
        return result

    def _evaluated(
        self, theta: FloatArray, features: IntArray, L: FloatArray, of_trace: FloatArray
    ) -> Evaluation:
        """The same inside the domain, by Cholesky factors of M and of what the traces are of."""
        k, B, p = self.k, theta.shape[0], self.projection
        W, u = inverse_of(L), self.y[features] @ self.Q
        w = np.matmul(W, u[:, :, None])[:, :, 0]
        turned = np.matmul(self.of_M, w[:, None, :, None])[..., 0]  # A_i w, (B, k + H, N - p)
        yPy = (w * u).sum(axis=1)
        first = np.matmul(turned, w[:, :, None])[:, :, 0]
        second = np.matmul(np.matmul(turned, W), np.swapaxes(turned, 1, 2))
        A, df = self.of_M, p.n - p.p
        if self.method == "ML":
            W, A, df, L = inverse_of(of_trace), self.of_V, p.n, of_trace
        log_det = 2.0 * np.log(np.diagonal(L, axis1=1, axis2=2)).sum(axis=1)
        WA = np.matmul(W[:, None], A)
        trace = np.trace(WA, axis1=2, axis2=3)
        flat, across = (
            WA.reshape(B, k + self.H, A.shape[1] ** 2),
            np.swapaxes(WA, 2, 3).reshape(B, k + self.H, A.shape[1] ** 2),
        )
        expected = np.matmul(flat, np.swapaxes(across, 1, 2))
        smallest = np.diagonal(L, axis1=1, axis2=2).min(axis=1, initial=np.inf) ** 2
        for h in np.flatnonzero(self.rest > 0):
            sigma2, rss, i = theta[:, k + h], self.rss[features, h], k + h
            log_det += self.rest[h] * np.log(sigma2)
            yPy += rss / sigma2
            first[:, i] += rss / sigma2**2
            trace[:, i] += self.rest[h] / sigma2
            second[:, i, i] += rss / sigma2**3
            expected[:, i, i] += self.rest[h] / sigma2**2
            smallest = np.minimum(smallest, sigma2)
        return Evaluation(
            -0.5 * (df * math.log(2.0 * math.pi) + log_det + yPy),
            0.5 * (first - trace),
            0.5 * expected,
            0.5 * second,
            rounding_errors(p.n, smallest),
        )

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """How near the edge of the likelihood's domain theta lies, shape (B,)."""
        of = self.of_M if self.method == "REML" else self.of_V
        return self._relative(theta, of)

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        return np.asarray(self._relative(theta, self.of_V) > SINGULAR)

    def _relative(self, theta: FloatArray, matrices: FloatArray) -> FloatArray:
        """Smallest over largest eigenvalue of a sum, and of the variances of the rest, (B,)."""
        result = np.full(theta.shape[0], -1.0)
        rows = np.flatnonzero(np.isfinite(theta).all(axis=1))
        for start in range(0, rows.size, self.size):
            here = rows[start : start + self.size]
            values = np.linalg.eigvalsh(_combined(theta[here], matrices))
            values = np.hstack([values, theta[here, self.k :][:, self.rest > 0]])
            result[here] = values.min(axis=1) / np.abs(values).max(axis=1)
        return result

    # ---- what theta implies ------------------------------------------------------------------

    def _P(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """V and P, each (B, N, N)."""
        W = inverse_of(factored(_combined(theta, self.of_M))[1])
        return _combined(theta, self.of_V), self.Q @ W @ self.Q.T

    def _weights(self, V: FloatArray, P: FloatArray) -> FloatArray:
        """B = X - PVX, with b = B'y and cov(b) = X'VB, shape (B, N, p)."""
        return np.asarray(self.X - np.matmul(P, np.matmul(V, self.X)))

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        p = self.projection
        B = self._weights(*self._P(theta))
        b = np.matmul(np.swapaxes(B, 1, 2), self.y[features][:, :, None])[:, :, 0]
        units = np.sqrt(p.scale[features])[:, None]
        return np.asarray(p.beta_ols.T[features] + units * (b @ p.whitening.T))

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p)."""
        p = self.projection
        V, P = self._P(theta)
        C = p.whitening @ (self.X.T @ V @ self._weights(V, P)) @ p.whitening.T
        return np.asarray(0.5 * (C + np.swapaxes(C, 1, 2)) * p.scale[features, None, None])

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c); below zero where there is none."""
        C, p = self.covariance(theta, features), self.projection
        equal = ((L @ p.whitening) ** 2).sum(axis=1) * p.scale[features, None]
        return _defined((np.matmul(L, C) * L).sum(axis=2), equal)

    def fixed_effects(self, theta: FloatArray, features: IntArray) -> tuple[FloatArray, FloatArray]:
        """Coefficients and their variances at theta, each (B, p)."""
        one = np.eye(self.projection.p)
        return self.beta(theta, features), self.contrast_variance(theta, features, one)

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p, structure = self.projection, self.projection.structure
        V, P = self._P(theta)
        unit = np.sqrt(p.scale[features])[:, None] / p.column_scale
        r = np.matmul(P, self.y[features][:, :, None])[:, :, 0] @ self.Z
        blup = structure.multiply(theta, r) * unit
        if se is None:
            return RandomEffects(blup, None)
        if se == "conditional":
            P = np.asarray(np.linalg.pinv(V, hermitian=True))
        D = self._D(theta)
        DZ = np.matmul(D, self.Z.T)
        variance = np.diagonal(D - DZ @ P @ np.swapaxes(DZ, 1, 2), axis1=1, axis2=2)
        return RandomEffects(blup, standard_errors(variance) * unit)

    def _D(self, theta: FloatArray) -> FloatArray:
        """D, shape (B, q, q)."""
        structure, q = self.projection.structure, self.projection.structure.q
        D = np.zeros((theta.shape[0], q, q))
        for i in range(self.k):
            D += theta[:, i, None, None] * apply_G(structure, i, np.eye(q))
        return D

    def times_N(self, theta: FloatArray, rows: FloatArray, *, given: bool) -> FloatArray:
        """(D - D Z'PZ D) w for the rows w (c, q), with V^-1 for P ``given`` beta; (B, c, q)."""
        V, P = self._P(theta)
        P = np.asarray(np.linalg.pinv(V, hermitian=True)) if given else P
        wD = np.matmul(rows, self._D(theta))
        T = self.Z.T @ P @ self.Z
        return np.asarray(wD - np.matmul(np.matmul(wD, T), self._D(theta)))

    def prediction_errors(
        self, theta: FloatArray, X: FloatArray, Z: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Variances of x'(beta_hat - beta) + z'(b_hat - b), (B, c), and derivatives, (B, c, k + H).

        Of whitened rows X (c, p) and rows Z (c, q). With l = B x + P Z D z, l'y predicts, and the
        best predictor's own change by theta changes nothing.
        """
        structure, (V, P), zD = (
            self.projection.structure,
            self._P(theta),
            np.matmul(Z, self._D(theta)),
        )
        weights = np.matmul(X, np.swapaxes(self._weights(V, P), 1, 2))
        weights = weights + np.matmul(zD @ self.Z.T, P)  # (B, c, N)
        left = Z - weights @ self.Z
        variance = (np.matmul(weights, V) * weights).sum(axis=2)
        variance += (zD * (Z - 2.0 * weights @ self.Z)).sum(axis=2)
        of_D = [(apply_G(structure, i, left) * left).sum(axis=2) for i in range(self.k)]
        of_groups = [(weights[..., self.group == h] ** 2).sum(axis=2) for h in range(self.H)]
        return variance, np.stack([*of_D, *of_groups], axis=2)

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v with T = Z'PZ at theta for the rows of vectors (B, c, q), same shape."""
        _, P = self._P(theta)
        return np.asarray(np.matmul(np.matmul(vectors, self.Z.T), P) @ self.Z)

    def contrast_moments(
        self, theta: FloatArray, L: FloatArray, *, adjustment: bool
    ) -> ContrastMoments:
        """How the variances of hypotheses L (g, r, p) depend on theta (B, k + H)."""
        V, P = self._P(theta)
        BL = np.matmul(
            self._weights(V, P)[:, None], np.swapaxes(L @ self.projection.whitening, 1, 2)
        )
        LB = np.swapaxes(BL, 2, 3)  # (B, g, r, N)
        variance = np.matmul(np.matmul(LB, V[:, None]), BL)
        each = np.arange(variance.shape[-1])
        equal = ((L @ self.projection.whitening) ** 2).sum(axis=2)
        variance[..., each, each] = _defined(variance[..., each, each], equal)
        turned = np.matmul(LB[:, :, None], self.of_V)  # (B, g, k + H, r, N)
        gradient = np.matmul(turned, BL[:, :, None])
        if not adjustment:
            return ContrastMoments(variance, gradient, None)
        half = np.matmul(turned, P[:, None, None])
        both = np.matmul(half[:, :, :, None], np.swapaxes(turned, 3, 4)[:, :, None])
        return ContrastMoments(variance, gradient, both)


def _defined(variance: FloatArray, equal: FloatArray) -> FloatArray:
    """Variances, below zero where they are zero but for rounding.

    A sample without variance fixes a contrast, whatever the others are: no error, and no test. In
    comparison with the variances ``equal`` under equal residuals and no random effects.
    """
    return np.where(np.abs(variance) > _NO_VARIANCE * equal, variance, -equal)


def _combined(theta: FloatArray, matrices: FloatArray) -> FloatArray:
    """sum_i theta_i A_i for theta (B, k) and matrices (k, N, N), shape (B, N, N)."""
    k, N, _ = matrices.shape
    return np.asarray((theta @ matrices.reshape(k, N * N)).reshape(theta.shape[0], N, N))


Rows = IntArray | slice
_Part = Callable[[Any, Rows], tuple[FloatArray, ...]]


@dataclass(frozen=True)
class GroupsOfAnySize(ResidualGroups):
    """`ResidualGroups` that hands features with a residual variance next to zero on.

    Where the roots have too many rows for that, nothing is handed on.
    """

    @cached_property
    def near_zero(self) -> GroupsNearZero:
        """The likelihood that they are handed on to."""
        return GroupsNearZero.make(self)

    @cached_property
    def small(self) -> float:
        """The residual variance, in internal units, below which it is called in."""
        rows = float(np.minimum(self.n, self.S.shape[1]).sum())
        return next((share for most, share in _SMALL if rows <= most), -np.inf)

    @cached_property
    def _goes_beyond(self) -> bool:
        """Whether features with a nearly singular or an indefinite V are handed on."""
        return float(np.minimum(self.n, self.S.shape[1]).sum()) <= _FEW_ROWS

    @property
    def least(self) -> float:
        """The least eigenvalue of V, in its units, for which nothing is handed on."""
        return _NEARLY_SINGULAR if self._goes_beyond else SINGULAR

    def handed_on(self, theta: FloatArray) -> BoolArray:
        """Which rows of theta (B, k + H) are handed on, (B,)."""
        near = np.asarray((theta[:, -self.H :] < self.small).any(axis=1))
        rows = np.flatnonzero(~near & ((theta < 0.0).any(axis=1) | self._correlated))
        if self._goes_beyond and rows.size:
            near[rows] = super().distance_to_edge(theta[rows]) <= self.least
        return near

    @cached_property
    def _correlated(self) -> bool:
        """Whether V may be indefinite without a negative variance."""
        return not self.projection.structure.is_variance.all()

    def _parted(self, theta: FloatArray, part: _Part) -> tuple[FloatArray, ...]:
        """Arrays (B, ...) of which each of the two likelihoods makes rows, by ``part``."""
        handed = self.handed_on(theta)
        ours, near = np.flatnonzero(~handed), np.flatnonzero(handed)
        if near.size == 0:
            return part(super(), slice(None))
        found = part(self.near_zero, near)
        if ours.size == 0:
            return found
        others = part(super(), ours)
        result = tuple(np.empty((theta.shape[0], *each.shape[1:]), each.dtype) for each in found)
        for whole, one, other in zip(result, found, others, strict=True):
            whole[near], whole[ours] = one, other
        return result

    def _in_parts(self, theta: FloatArray, features: IntArray, ratios: Ratios | None) -> Evaluation:
        """The evaluation, approximate with ``ratios`` where nothing is handed on."""
        if self.small < 0.0:
            return super()._in_parts(theta, features, ratios)
        near = np.asarray((theta[:, -self.H :] < self.small).any(axis=1))
        ours = np.flatnonzero(~near)
        result = Evaluation.empty(features.size, self.n_params)
        if ours.size:
            found = super()._in_parts(theta[ours], features[ours], ratios)
            if ours.size == near.size:
                result = found
            else:
                result.put(ours, found)
            near[ours] = ~np.isfinite(found.loglik) & self._goes_beyond
        rows = np.flatnonzero(near)
        if rows.size:
            result.put(rows, self.near_zero.evaluate(theta[rows], features[rows]))
        return result

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        return self._parted(theta, lambda of, i: (of.beta(theta[i], features[i]),))[0]

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p)."""
        return self._parted(theta, lambda of, i: (of.covariance(theta[i], features[i]),))[0]

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c); below zero where there is none."""
        part = self._parted(theta, lambda of, i: (of.contrast_variance(theta[i], features[i], L),))
        return part[0]

    def fixed_effects(self, theta: FloatArray, features: IntArray) -> tuple[FloatArray, FloatArray]:
        """Coefficients and their variances at theta, each (B, p)."""
        beta, variance = self._parted(theta, lambda of, i: of.fixed_effects(theta[i], features[i]))
        return beta, variance

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""

        def part(of: Any, i: Rows) -> tuple[FloatArray, ...]:
            found = of.random_effects(theta[i], features[i], se)
            return (found.blup,) if found.se is None else (found.blup, found.se)

        found = self._parted(theta, part)
        return RandomEffects(found[0], None if se is None else found[1])

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v with T = Z'PZ at theta for the rows of vectors (B, c, q), same shape."""
        return self._parted(theta, lambda of, i: (of.apply_T(theta[i], vectors[i]),))[0]

    def contrast_moments(
        self, theta: FloatArray, L: FloatArray, *, adjustment: bool
    ) -> ContrastMoments:
        """How the variances of hypotheses L (g, r, p) depend on theta (B, k + H)."""

        def part(of: Any, i: Rows) -> tuple[FloatArray, ...]:
            found = of.contrast_moments(theta[i], L, adjustment=adjustment)
            both = (found.variance, found.gradient)
            return both if found.adjustment is None else (*both, found.adjustment)

        found = self._parted(theta, part)
        return ContrastMoments(found[0], found[1], found[2] if adjustment else None)

    def lost_in_rounding(self, theta: FloatArray, expected: FloatArray) -> BoolArray:
        """Whose scores of residual variances, or likelihoods, may be rounding alone, shape (B,)."""
        lost = super().lost_in_rounding(theta, expected) & ~self.handed_on(theta)
        rows = np.flatnonzero(~lost & ((theta < 0.0).any(axis=1) | self._correlated))
        if not self._goes_beyond and rows.size:
            lost[rows] = super().distance_to_edge(theta[rows]) < _LOST
        return lost

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        return np.asarray(self._parted(theta, lambda of, i: (of.is_definite(theta[i]),))[0])

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """How near the edge of the likelihood's domain theta lies, shape (B,)."""
        return self._parted(theta, lambda of, i: (of.distance_to_edge(theta[i]),))[0]
