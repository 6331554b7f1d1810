"""The general likelihood for features each with a design of its own: one stack of matrices.

The formulas are those of `flashmm.likelihood.general`, but X'X, Z'X, Z'Z and n differ by feature.
With K K' = Z'RZ, r = K w, w = M^-1 u and T = K M^-1 K', everything that a parameter of D needs is a
sum over entries of T and r: no product of matrices for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from flashmm.arrays.namespaces import cholesky, solved
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.likelihood.base import (
    Evaluation,
    Forms,
    OfProjection,
    RandomEffects,
    StandardErrorKind,
    assembled,
    standard_errors,
)
from flashmm.likelihood.design_checks import pairs_of
from flashmm.likelihood.general import factored, inverse_of
from flashmm.likelihood.own_rows.stacked_designs import Root, StackedProjection, entry_sums

__all__ = ["StackRows", "StackedLikelihood"]


@dataclass(frozen=True)
class _Rows:
    """Designs and data of the features of one evaluation, all from one chunk."""

    structure: CovarianceStructure
    ZXW: FloatArray
    root: Root
    n: FloatArray

    def M(self, theta: FloatArray) -> FloatArray:
        """sigma2 I + K'DK, with ones beyond the rank."""
        K, held = self.root.K, self.root.held
        M: FloatArray = np.matmul(np.swapaxes(K, 1, 2), times_D(self.structure, theta, K))
        index = np.arange(held.shape[1])
        M[:, index, index] += theta[:, -1:] * held + (1.0 - held)
        return M

    def inverse(self, theta: FloatArray) -> FloatArray:
        """M^-1, shape (B, r, r)."""
        M = self.M(theta)
        return np.asarray(solved(M, np.broadcast_to(np.eye(M.shape[1]), M.shape)))

    def T_times(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v for the rows of vectors (B, c, q)."""
        u = np.swapaxes(np.matmul(vectors, self.root.K), 1, 2)
        w = solved(self.M(theta), u)
        return np.asarray(np.matmul(np.swapaxes(w, 1, 2), np.swapaxes(self.root.K, 1, 2)))


def times_D(structure: CovarianceStructure, theta: FloatArray, V: FloatArray) -> FloatArray:
    """D V for matrices V (B, q, c), same shape."""
    result = np.zeros_like(V)
    for i, parameter in enumerate(structure.parameters):
        weight = theta[:, i, None, None]
        for rows, columns in structure.slices(parameter):
            result[:, rows] += weight * V[:, columns]
            if not parameter.is_variance:
                result[:, columns] += weight * V[:, rows]
    return result


@dataclass(frozen=True)
class StackedLikelihood(OfProjection):
    """REML or ML log-likelihood of features with designs of their own; an `Estimator` by `of`."""

    projection: StackedProjection
    method: Literal["REML", "ML"]
    engine: str = "stacked"

    @cached_property
    def perfect_fit(self) -> BoolArray:
        """Features that X and Z together explain exactly, shape (m,)."""
        p = self.projection
        result = np.zeros(self.m, dtype=bool)
        for here, rows in self.chunks(np.arange(self.m)):
            u = p.coordinates(here, rows.ZXW, rows.root)
            df = rows.n - p.p
            result[here] = (df - (u * u).sum(axis=1) <= p.rounding[here]) & (df > rows.root.rank)
        return result

    def batch_size(self, memory: int) -> int:
        """How many features fit into ``memory`` bytes."""
        q = self.projection.structure.q
        r = min(q, self.projection.most)
        return max(1, memory // (8 * (6 * q * r + 4 * r * r + 2 * q * q + 32)))

    def chunks(self, features: IntArray, *, full: bool = False) -> Iterator[tuple[IntArray, _Rows]]:
        """Which of ``features``, ascending, belong together, and their designs."""
        p = self.projection
        for where, number, local in p.chunks(features):
            ZXW, root = p.roots(number, full=full)
            here = features[where]
            yield (
                np.arange(features.size)[where],
                _Rows(p.structure, ZXW[local], root.take(local), p.designs.n[here]),
            )

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and information at theta (B, k) for chosen features."""
        result = Evaluation.empty(features.size, self.n_params)
        pieces = list(self.chunks(features))
        full = list(self.chunks(features, full=True)) if self.method == "ML" else pieces
        for (where, rows), (_, whole) in zip(pieces, full, strict=True):
            result.put(where, self._evaluate(theta[where], features[where], rows, whole))
        return result

    def _evaluate(
        self, theta: FloatArray, features: IntArray, rows: _Rows, whole: _Rows
    ) -> Evaluation:
        p, ml = self.projection, self.method == "ML"
        outside = rows.n - p.p - rows.root.rank
        df, df_trace = rows.n - p.p, outside
        inside, factor = factored(rows.M(theta))
        trace_factor = factor
        if ml:
            df, df_trace = rows.n, rows.n - whole.root.rank
            inside_full, trace_factor = factored(whole.M(theta))
            inside &= inside_full
        inside &= (theta[:, -1] > 0) | ((df_trace <= 0) & (outside <= 0))
        if not inside.all():
            index = np.flatnonzero(inside)
            theta, features, df, df_trace = (
                theta[index],
                features[index],
                df[index],
                df_trace[index],
            )
            factor, trace_factor, outside = factor[index], trace_factor[index], outside[index]
            rows = replace(rows, ZXW=rows.ZXW[index], root=rows.root.take(index), n=rows.n[index])
            whole = replace(
                whole, ZXW=whole.ZXW[index], root=whole.root.take(index), n=whole.n[index]
            )
        u = p.coordinates(features, rows.ZXW, rows.root)
        W = inverse_of(factor)
        quadratic = _quadratic_forms(p.structure, rows.root, W, u)
        whole_W = inverse_of(trace_factor) if ml else W
        trace = _traces(p.structure, whole.root, trace_factor, whole_W)
        sigma2 = theta[:, -1]
        rss = np.where(outside > 0, rows.n - p.p - (u * u).sum(axis=1), 0.0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            _add_residual(quadratic, np.where(rss != 0, rss / sigma2, 0.0), sigma2)
            counted = df_trace > 0
            trace.value[counted] += df_trace[counted] * np.log(sigma2[counted])
            trace.first[:, -1] += np.where(counted, df_trace / sigma2, 0.0)
            trace.second[:, -1, -1] += np.where(counted, df_trace / sigma2**2, 0.0)
        found = assembled(quadratic, trace, sigma2, n=rows.n, df=df, rss=None, df_trace=0)
        return found.spread(inside)

    # ---- what theta implies ------------------------------------------------------------------

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        p = self.projection
        result = p.beta_ols[features].copy()
        for where, rows in self.chunks(features):
            here = features[where]
            r = self._residual(theta[where], here, rows)
            Dr = p.structure.multiply(theta[where], r)
            moved = np.matmul(Dr[:, None, :], rows.ZXW)
            change = np.matmul(moved, np.swapaxes(p.whitening[here], 1, 2))[:, 0]
            result[where] -= np.sqrt(p.scale[here])[:, None] * change
        return result

    def _residual(self, theta: FloatArray, features: IntArray, rows: _Rows) -> FloatArray:
        """R = Z'Py, shape (B, q)."""
        u = self.projection.coordinates(features, rows.ZXW, rows.root)
        w = solved(rows.M(theta), u[:, :, None])
        return np.asarray(np.matmul(rows.root.K, w)[:, :, 0])

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p)."""
        p = self.projection
        result = np.empty((features.size, p.p, p.p))
        for where, rows in self.chunks(features):
            here, at = features[where], theta[where]
            DG = times_D(p.structure, at, rows.ZXW)
            TDG = np.swapaxes(rows.T_times(at, np.swapaxes(DG, 1, 2)), 1, 2)
            inner = np.matmul(np.swapaxes(DG, 1, 2), rows.ZXW - TDG)
            index = np.arange(p.p)
            inner[:, index, index] += at[:, -1:]
            W = p.whitening[here]
            C = np.matmul(np.matmul(W, inner), np.swapaxes(W, 1, 2))
            result[where] = 0.5 * (C + np.swapaxes(C, 1, 2)) * p.scale[here][:, None, None]
        return result

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        C = self.covariance(theta, features)
        return np.asarray((np.matmul(L, C) * L).sum(axis=2))

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p = self.projection
        q = p.structure.q
        blup = np.empty((features.size, q))
        errors = None if se is None else np.empty((features.size, q))
        for where, rows in self.chunks(features):
            here, at = features[where], theta[where]
            unit = np.sqrt(p.scale[here])[:, None] / p.designs.units[here]
            blup[where] = p.structure.multiply(at, self._residual(at, here, rows)) * unit
        if errors is not None:
            for where, rows in self.chunks(features, full=se == "conditional"):
                at = theta[where]
                DK = times_D(p.structure, at, rows.root.K)
                variance = np.zeros((at.shape[0], q))
                for i, parameter in enumerate(p.structure.parameters):
                    if parameter.is_variance:
                        for own, _ in p.structure.slices(parameter):
                            variance[:, own] += at[:, i, None]
                variance -= (np.matmul(DK, rows.inverse(at)) * DK).sum(axis=2)
                here = features[where]
                unit = np.sqrt(p.scale[here])[:, None] / p.designs.units[here]
                errors[where] = standard_errors(variance) * unit
        return RandomEffects(blup, errors)

    def of(self, features: IntArray) -> StackRows:
        """The likelihoods of some features, one for each row of theta."""
        return StackRows(self, features)

    def H(self, features: IntArray) -> FloatArray:
        """Z'X (X'X)^-1 of some features, shape (B, q, p)."""
        result = np.empty((features.size, self.projection.structure.q, self.projection.p))
        for where, rows in self.chunks(features):
            W = self.projection.whitening[features[where]]
            result[where] = np.matmul(rows.ZXW, np.swapaxes(W, 1, 2))
        return result


@dataclass(frozen=True)
class StackRows:
    """The likelihoods of certain features of a stack, one for each row of theta."""

    likelihood: StackedLikelihood
    features: IntArray

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v with T = Z'PZ at theta for the rows of vectors (B, c, q), same shape."""
        result = np.empty_like(vectors)
        for where, rows in self.likelihood.chunks(self.features):
            result[where] = rows.T_times(theta[where], vectors[where])
        return result

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        result = np.zeros(self.features.size, dtype=bool)
        for where, rows in self.likelihood.chunks(self.features, full=True):
            _, definite = cholesky(rows.M(theta[where]))
            alone = rows.n > rows.root.rank
            result[where] = definite & ((theta[where, -1] > 0) | ~alone)
        return result

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """Smallest over largest eigenvalue of V (ML) or the error contrasts' covariance."""
        owner, result = self.likelihood, np.empty(self.features.size)
        ml = owner.method == "ML"
        for where, rows in owner.chunks(self.features, full=ml):
            sigma2, held = theta[where, -1], rows.root.held > 0
            left = rows.n - rows.root.rank - (0 if ml else owner.projection.p)
            M = rows.M(theta[where])
            index = np.arange(held.shape[1])
            # Beyond the rank stands what is neither the largest nor the smallest.
            diagonal = np.where(held, M[:, index, index], 0.0).sum(axis=1)
            mean = diagonal / np.maximum(held.sum(axis=1), 1)
            M[:, index, index] = np.where(held, M[:, index, index], mean[:, None])
            values = np.linalg.eigvalsh(M)
            alone = np.where(left > 0, sigma2, values[:, -1])[:, None]
            values = np.concatenate([values, alone], axis=1)
            result[where] = values.min(axis=1) / np.abs(values).max(axis=1)
        return result


def _quadratic_forms(
    structure: CovarianceStructure, root: Root, W: FloatArray, u: FloatArray
) -> Forms:
    """U'Wu and its derivatives on the span of Z, the residual last."""
    w = np.matmul(W, u[:, :, None])[:, :, 0]
    r = np.matmul(root.K, w[:, :, None])[:, :, 0]
    turned = np.zeros((w.shape[0], len(structure.parameters), r.shape[1]))
    for i, parameter in enumerate(structure.parameters):
        for rows, columns in structure.slices(parameter):
            turned[:, i, rows] += r[:, columns]
            if not parameter.is_variance:
                turned[:, i, columns] += r[:, rows]
    V = np.concatenate([np.matmul(turned, root.K), w[:, None, :]], axis=1)
    first = np.matmul(V, w[:, :, None])[:, :, 0]
    second = np.matmul(np.matmul(V, W), np.swapaxes(V, 1, 2))
    return Forms((w * u).sum(axis=1), first, second)


def _traces(structure: CovarianceStructure, root: Root, L: FloatArray, W: FloatArray) -> Forms:
    """Log |M|, tr(W A_i) and tr(W A_i W A_j), the residual (A = I) last."""
    k = len(structure.parameters)
    KW = np.matmul(root.K, W)
    forms = entry_sums(structure, np.matmul(KW, np.swapaxes(root.K, 1, 2)))
    for i, parameter in enumerate(structure.parameters):
        for a, b in pairs_of(structure, parameter):
            forms.second[:, i, k] += (KW[:, a] * KW[:, b]).sum(axis=(1, 2))
        forms.second[:, k, i] = forms.second[:, i, k]
    beyond = (1.0 - root.held).sum(axis=1)
    forms.first[:, k] = np.diagonal(W, axis1=1, axis2=2).sum(axis=1) - beyond
    forms.second[:, k, k] = (W * W).sum(axis=(1, 2)) - beyond
    log_det = 2.0 * np.log(np.diagonal(L, axis1=1, axis2=2)).sum(axis=1)
    return Forms(log_det, forms.first, forms.second)


def _add_residual(quadratic: Forms, part: FloatArray, sigma2: FloatArray) -> None:
    """Add rss / sigma2 and its derivatives; ``part`` is zero where there is none."""
    there = part != 0
    quadratic.value[:] += part
    quadratic.first[:, -1] += np.where(there, part / sigma2, 0.0)
    quadratic.second[:, -1, -1] += np.where(there, part / sigma2**2, 0.0)
