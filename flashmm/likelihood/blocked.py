"""Blocks eliminated from V, then a dense border: for slopes, many levels, nested and crossed.

One grouping factor's terms make V_F = sigma2 I + Z_F D_F Z_F' fall into small blocks; the terms of
a factor in which it is nested fall into blocks again once it is gone. What is left, other
random effects and X, is a dense border of width w. The sums over blocks are outer products
that all features share, weighted by each; see `flashmm.likelihood.elimination`,
`flashmm.likelihood.traces` and docs/engines.md. The residual's row comes free, since
sum_i theta_i V_i = V and P V P = P.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from flashmm.likelihood.base import (
    SINGULAR,
    SMALL_RESIDUAL,
    Evaluation,
    RandomEffects,
    StandardErrorKind,
    rounding_errors,
)
from flashmm.likelihood.elimination import (
    Border,
    Eliminated,
    eliminate,
    eliminate_border,
)
from flashmm.likelihood.exact import perfect_fits
from flashmm.likelihood.general import GeneralLikelihood, standard_errors
from flashmm.likelihood.projection import DENSE_LIMIT
from flashmm.likelihood.traces import (
    Directions,
    Solved,
    apply,
    derivative_times,
    inner_products,
    prior_less_known,
    solve,
    traces,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.likelihood.layout import Layout
    from flashmm.likelihood.projection import Projection

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]
    BoolArray = NDArray[np.bool_]

__all__ = ["BlockedLikelihood"]

_CACHE_BYTES = 2**25


@dataclass(frozen=True)
class BlockedLikelihood:
    """REML or ML log-likelihood by eliminating the blocks of a layout, then its border.

    Where V_F or V_1 is not positive definite although V is, the general likelihood takes over,
    as long as Z is small enough for it; else such theta count as outside the domain.
    """

    projection: Projection
    method: Literal["REML", "ML"]
    engine: str
    layout: Layout

    @cached_property
    def general(self) -> GeneralLikelihood:
        """The yardstick, for what blocks cannot do."""
        return GeneralLikelihood(self.projection, self.method)

    @property
    def m(self) -> int:
        """Number of features."""
        return self.projection.m

    @property
    def n_params(self) -> int:
        """Number of variance parameters, the residual included."""
        return len(self.projection.structure.parameters) + 1

    @cached_property
    def perfect_fit(self) -> BoolArray:
        """Features that X and Z together explain exactly, shape (m,)."""
        return perfect_fits(self.layout, self.projection)

    def batch_size(self, memory: int) -> int:
        """How many features fit into ``memory`` bytes: planes, couplings and (w, w) arrays.

        Passes over small matrices are bound by memory traffic, so batches stay near the size
        of a cache whatever the budget.
        """
        layout, k = self.layout, self.n_params
        planes = (14 + 3 * k) * layout.fine.s * layout.fine.size
        pattern = 6 * int(layout.base.shape[0]) + (6 + 3 * k) * layout.q_c * layout.w
        per_feature = 8 * (planes + pattern + (16 + 2 * k) * layout.w**2)
        return max(1, min(memory, _CACHE_BYTES) // per_feature)

    # ---- likelihood ------------------------------------------------------------------------

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and information at theta (B, k) for chosen features."""
        p = self.projection
        result = Evaluation.empty(theta.shape[0], self.n_params)
        blocks = eliminate(self.layout, theta, p.n)
        known = blocks.distance > SINGULAR
        if p.structure.q <= DENSE_LIMIT:
            known = known & (theta[:, -1] > SMALL_RESIDUAL)
            if not known.all():
                result.put(~known, self.general.evaluate(theta[~known], features[~known]))
        if not known.any():
            return result
        border = trace_border = eliminate_border(self.layout, blocks, with_x=True)
        df, log_det, distance = p.n - p.p, -self._log_det_scaled_XX, border.distance
        if self.method == "ML":
            trace_border = eliminate_border(self.layout, blocks, with_x=False)
            df, log_det = p.n, 0.0
            distance = np.minimum(distance, trace_border.distance)
        log_det = log_det + blocks.log_det + trace_border.log_det
        solved = self._solve(blocks, border, features)
        first, average = self._quadratic(blocks, border, solved)
        trace = traces(self.layout, blocks, trace_border)
        whole, expected = _with_residual(blocks.theta, float(df), trace.first, trace.second)
        loglik = -0.5 * (df * np.log(2.0 * np.pi) + log_det + solved.value)
        inside = known & (distance > SINGULAR)
        evaluation = Evaluation(
            loglik,
            0.5 * (first - whole),
            expected,
            average,
            rounding_errors(p.n, blocks.theta[:, -1]),
        )
        result.put(inside, evaluation.take(inside))
        return result

    @cached_property
    def _log_det_scaled_XX(self) -> float:
        layout = self.layout
        return float(np.linalg.slogdet(layout.WW[layout.q_z :, layout.q_z :])[1])

    def _solve(self, blocks: Eliminated, border: Border, features: IntArray) -> Solved:
        p, layout = self.projection, self.layout
        packed = layout.to_directions.times(p.ZRy[features].T)
        y = Directions.of(layout, packed[:, None, :])
        return solve(layout, blocks, border, y, float(p.n - p.p))

    def _quadratic(
        self, blocks: Eliminated, border: Border, solved: Solved
    ) -> tuple[FloatArray, FloatArray]:
        """The forms y'P V_i P y and half y'P V_i P V_j P y, the residual last."""
        layout = self.layout
        left = derivative_times(layout, solved.r, self.n_params - 1)
        right = apply(layout, blocks, border, left)
        first = inner_products(left, solved.r)[:, :, 0]
        return _with_residual(blocks.theta, solved.value, first, inner_products(left, right))

    # ---- estimates -------------------------------------------------------------------------

    def _eliminated(
        self, theta: FloatArray, *, with_x: bool = True, whole: bool = False
    ) -> tuple[Eliminated, Border, BoolArray]:
        """Blocks and border at theta, and where they could not be had."""
        blocks = eliminate(self.layout, theta, self.projection.n)
        border = eliminate_border(self.layout, blocks, with_x=with_x, whole=whole)
        return blocks, border, np.asarray(~(blocks.distance > SINGULAR))

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        p, layout = self.projection, self.layout
        blocks, border, bad = self._eliminated(theta, whole=True)
        g = self._solve(blocks, border, features).g
        beta = p.beta_ols[:, features].T + p.unit[features, None] * (
            g[:, layout.q_z :] @ layout.x_transform.T
        )
        if bad.any():
            beta[bad] = self.general.beta(theta[bad], features[bad])
        return np.asarray(beta)

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p); indefinite where V is."""
        p, layout = self.projection, self.layout
        _, border, bad = self._eliminated(theta, whole=True)
        inner = border.N[:, layout.q_z :, layout.q_z :]
        C = np.matmul(np.matmul(layout.x_transform, inner), layout.x_transform.T)
        C = C * p.scale[features, None, None]
        if bad.any():
            C[bad] = self.general.covariance(theta[bad], features[bad])
        return np.asarray(C)

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        p, layout = self.projection, self.layout
        _, border, bad = self._eliminated(theta, whole=True)
        inner, rows = border.N[:, layout.q_z :, layout.q_z :], L @ layout.x_transform
        variance = (np.matmul(rows, inner) * rows).sum(axis=2) * p.scale[features, None]
        if bad.any():
            variance[bad] = self.general.contrast_variance(theta[bad], features[bad], L)
        return np.asarray(variance)

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """Z'PZ v at theta (B, k) for vectors (B, c, q), shape (B, c, q)."""
        layout = self.layout
        count, c, q = vectors.shape
        blocks, border, bad = self._eliminated(theta)
        packed = layout.from_directions.transposed_times(
            np.moveaxis(vectors, 2, 0).swapaxes(1, 2).reshape(q, c * count)
        )
        x = Directions.of(layout, packed.reshape(-1, c, count))
        turned = apply(layout, blocks, border, x).packed()
        result = layout.from_directions.times(turned.reshape(-1, c * count))
        result = np.moveaxis(result.reshape(q, c, count), 2, 0).swapaxes(1, 2)
        if bad.any():
            result[bad] = self.general.apply_T(theta[bad], vectors[bad])
        return np.asarray(result)

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p, layout = self.projection, self.layout
        unit = p.unit[features, None] / p.column_scale
        blocks, border, bad = self._eliminated(theta)
        r = self._solve(blocks, border, features).r.packed()[:, 0, :]
        blup = p.structure.multiply(theta, layout.from_directions.times(r).T) * unit
        errors = None
        if se is not None:
            if se == "conditional":
                border = eliminate_border(layout, blocks, with_x=False)
            errors = standard_errors(prior_less_known(layout, blocks, border)) * unit
        if bad.any():
            exact = self.general.random_effects(theta[bad], features[bad], se)
            blup[bad] = exact.blup
            if errors is not None and exact.se is not None:
                errors[bad] = exact.se
        return RandomEffects(blup, errors)

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        distance, unknown = self._distance(theta, with_x=False)
        definite = distance > 0
        if unknown.any():
            definite[unknown] = self.general.is_definite(theta[unknown])
        return definite

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """About the smallest over largest eigenvalue of V (ML) or of the error contrasts'."""
        distance, unknown = self._distance(theta, with_x=self.method == "REML")
        if unknown.any():
            distance[unknown] = self.general.distance_to_edge(theta[unknown])
        return distance

    def _distance(self, theta: FloatArray, *, with_x: bool) -> tuple[FloatArray, BoolArray]:
        """The distance as blocks see it, and where only the general likelihood can tell."""
        blocks, border, bad = self._eliminated(theta, with_x=with_x)
        distance = np.where(bad, -1.0, np.minimum(blocks.distance, border.distance))
        return distance, bad & (self.projection.structure.q <= DENSE_LIMIT)


def _with_residual(
    theta: FloatArray, total: FloatArray | float, first: FloatArray, twice: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """First forms and half the second ones, the residual's last, from those of D's parameters.

    sum_i theta_i V_i = V and P V P = P: ``total`` is sum_i theta_i first_i.
    """
    sigma2, own = theta[:, -1], theta[:, :-1]
    last = (total - (own * first).sum(axis=1)) / sigma2
    first = np.concatenate([first, last[:, None]], axis=1)
    row = (first[:, :-1] - np.matmul(twice, own[:, :, None])[:, :, 0]) / sigma2[:, None]
    corner = (last - (own * row).sum(axis=1)) / sigma2
    upper = np.concatenate([twice, row[:, :, None]], axis=2)
    lower = np.concatenate([row, corner[:, None]], axis=1)
    return first, 0.5 * np.concatenate([upper, lower[:, None, :]], axis=1)
