"""Block part plus dense border: for slopes, for very many levels, for large crossed factors.

V = V_B + Z_z D_z Z_z', where V_B = sigma2 I + Z_B D_B Z_B' falls into the blocks of one grouping
factor (`flashmm.likelihood.layout`). With M_l = sigma2 I + Z_l'Z_l D, an s x s matrix per level,

    W'V_B^-1 W = (W'W - sum_l B_l'G_l B_l) / sigma2,   G_l = D M_l^-1

so eliminating the blocks leaves a w x w matrix S per feature. The outer products in the sum are
the same for all features; only the weights differ. Eliminating the border from S in turn gives
N with P = V_B^-1 - V_B^-1 W N W'V_B^-1, and every trace follows from N and such sums. The
residual's row comes free, since sum_i theta_i V_i = V and P V P = P.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from flashmm.arrays import cholesky
from flashmm.likelihood import small
from flashmm.likelihood.base import (
    SINGULAR,
    SMALL_RESIDUAL,
    Evaluation,
    RandomEffects,
    StandardErrorKind,
    rounding_errors,
    standard_errors,
)
from flashmm.likelihood.general import GeneralLikelihood
from flashmm.likelihood.layout import Layout, find_layout
from flashmm.likelihood.projection import DENSE_LIMIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.likelihood.projection import Projection

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]
    BoolArray = NDArray[np.bool_]

__all__ = ["BlockedLikelihood"]

_CACHE_BYTES = 2**25
# As SMALL_RESIDUAL, for blocks of several effects, whose determinants cancel sooner.
_SMALL_WITH_SLOPES = 1e-3


@dataclass(frozen=True)
class _Blocks:
    """After eliminating the blocks, per feature.

    D (s, s, B, 1); inverse_M, U = M^-1 Z'Z (s, s, B, L); log_det of V_B (B,); S (B, w, w);
    distance to the edge (B,).
    """

    D: FloatArray
    inverse_M: FloatArray
    U: FloatArray
    G: FloatArray
    log_det: FloatArray
    S: FloatArray
    distance: FloatArray


@dataclass(frozen=True)
class _Border:
    """After eliminating the border, per feature.

    N (B, w, w); K = [I; -J] (I - Q T0), so that Z_z'P = K'W'V_B^-1, shape (B, w, q_z);
    T = Z_z'PZ_z (B, q_z, q_z), V^-1 for P without X; log |X'V_B^-1X| and of the border's own
    factor (B,); distance to the edge (B,).
    """

    N: FloatArray
    K: FloatArray
    T: FloatArray
    log_det: FloatArray
    distance: FloatArray


@dataclass(frozen=True)
class BlockedLikelihood:
    """REML or ML log-likelihood by eliminating one grouping factor's blocks, then a border.

    Where V_B itself is not positive definite the general likelihood takes over, as long as
    Z is small enough for it; else such theta count as outside the domain.
    """

    projection: Projection
    method: Literal["REML", "ML"]
    engine: str = "blocked"

    @cached_property
    def layout(self) -> Layout:
        """Blocks and border."""
        layout = find_layout(self.projection)
        assert layout is not None
        return layout

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
        """Features that X and Z together explain exactly, shape (m,).

        What is left of y'Py once the random effects are free.
        """
        p, structure = self.projection, self.projection.structure
        exact = np.zeros(p.m, dtype=bool)
        features = np.flatnonzero(p.varies)
        free = np.where(structure.is_variance, 1e10, 0.0)
        free[-1] = 1.0
        size = self.batch_size(2**28)
        for start in range(0, features.size, size):
            batch = features[start : start + size]
            theta = np.tile(free, (batch.size, 1))
            blocks = self._blocks(theta)
            border = self._border(blocks, theta, with_x=True)
            left = self._solve(blocks, border, theta, batch)[-1]
            exact[batch] = left <= 1e-9 * min(p.n - p.p, 1.0)
        return exact

    def batch_size(self, memory: int) -> int:
        """How many features fit into ``memory`` bytes: (s, s, L) and (w, w) arrays.

        Passes over small matrices are bound by memory traffic, so batches stay near the size
        of a cache whatever the budget.
        """
        layout = self.layout
        per_level = (14 + 3 * self.n_params) * layout.s**2 * layout.L
        per_feature = 8 * (per_level + (16 + 2 * self.n_params) * layout.w**2)
        return max(1, min(memory, _CACHE_BYTES) // per_feature)

    # ---- elimination -----------------------------------------------------------------------

    def _blocks(self, theta: FloatArray) -> _Blocks:
        layout, n = self.layout, self.projection.n
        s, sigma2 = layout.s, theta[:, -1]
        D = np.zeros((s, s, theta.shape[0], 1))
        for i, basis in layout.block_parameters:
            D += basis[:, :, None, None] * theta[:, i, None]
        M = small.product(layout.ZZ, D)
        for a in range(s):
            M[a, a] += sigma2[:, None]
        log_det, distance = small.log_determinant(M, SINGULAR)
        bad = ~np.isfinite(log_det)
        if bad.any():
            M[:, :, bad] = np.eye(s)[:, :, None]
        inverse_M = small.inverse(M)
        G = small.symmetric(small.product(D, inverse_M))
        U = small.symmetric(small.product(inverse_M, layout.ZZ))
        with np.errstate(invalid="ignore", divide="ignore"):
            total = log_det.sum(axis=1) + (n - s * layout.L) * np.log(sigma2)
            S = (layout.WW - layout.sums(G)) / sigma2[:, None, None]
        nearest = np.minimum(distance.min(axis=1), sigma2)
        return _Blocks(D, inverse_M, U, G, total, S, nearest)

    def _border(
        self, blocks: _Blocks, theta: FloatArray, with_x: bool, *, whole: bool = False
    ) -> _Border:
        """Eliminate X (or not) and the other random effects from S.

        What X (or the border itself) absorbs of the border does not touch P and is left out,
        unless ``whole``: the fixed effects' covariance does depend on it.
        """
        layout, S = self.layout, blocks.S
        count, q_z, w = S.shape[0], layout.q_z, layout.w
        z, x = slice(0, q_z), slice(q_z, w)
        N, K = np.zeros((count, w, w)), np.zeros((count, w, q_z))
        log_det, distance = np.zeros(count), np.full(count, np.inf)
        T, J = S[:, z, z], np.zeros((count, w - q_z, q_z))
        if with_x:
            L, ok = cholesky(S[:, x, x])
            L[~ok] = np.eye(w - q_z)
            inverse_L = np.linalg.inv(L)
            C = np.matmul(np.swapaxes(inverse_L, 1, 2), inverse_L)
            log_det = 2.0 * np.log(np.diagonal(L, axis1=1, axis2=2)).sum(axis=1)
            J = np.matmul(C, S[:, x, z])
            T = T - np.matmul(S[:, z, x], J)
            N[:, x, x] = C
            distance = np.where(ok, distance, -1.0)
        if q_z:
            D = self._border_covariance(theta)
            up, down, ok = _root(T, layout.range_without_x if with_x else layout.range_of_border)
            inner = np.matmul(np.matmul(np.swapaxes(up, 1, 2), D), up)
            F = inner + np.eye(inner.shape[-1])
            factor, inside = cholesky(F)
            pivots = np.diagonal(factor, axis1=1, axis2=2)
            with np.errstate(invalid="ignore"):
                log_det = log_det + 2.0 * np.log(pivots).sum(axis=1)
                near = pivots.min(axis=1) ** 2 / np.maximum(pivots.max(axis=1) ** 2, 1.0)
                inside &= near > SINGULAR
            distance = np.where(ok & inside, np.minimum(distance, near), -1.0)
            F[~inside] = np.eye(inner.shape[-1])
            # Written with F^-1, nothing cancels when D T is large or small.
            F_inverse = np.linalg.inv(F)
            upF = np.matmul(up, F_inverse)
            T = np.matmul(upF, np.swapaxes(up, 1, 2))
            K[:, z] = np.swapaxes(np.matmul(upF, down), 1, 2)
            K[:, x] = -np.matmul(J, K[:, z])
            if whole:
                DL = np.matmul(D, up)
                Q = D - np.matmul(np.matmul(DL, F_inverse), np.swapaxes(DL, 1, 2))
            else:
                Q = np.matmul(np.swapaxes(down, 1, 2), np.matmul(F_inverse, inner))
                Q = np.matmul(Q, down)
            Q = 0.5 * (Q + np.swapaxes(Q, 1, 2))
            JQ = np.matmul(J, Q)
            N[:, z, z] = Q
            N[:, x, z] = -JQ
            N[:, z, x] = -np.swapaxes(JQ, 1, 2)
            N[:, x, x] += np.matmul(JQ, np.swapaxes(J, 1, 2))
        return _Border(N, K, T, log_det, distance)

    def _border_covariance(self, theta: FloatArray) -> FloatArray:
        """D of the border's random effects, shape (B, q_z, q_z)."""
        q_z = self.layout.q_z
        D = np.zeros((theta.shape[0], q_z, q_z))
        for i, ones in self.layout.border_parameters:
            for rows, columns in ones:
                D[:, rows, columns] += theta[:, i, None]
        return D

    def _responses(self, features: IntArray) -> tuple[FloatArray, FloatArray]:
        """Z_l'Ry (s, B, L) and W'Ry (B, w); X'Ry is zero."""
        layout, p = self.layout, self.projection
        ZRy = p.ZRy[features]
        Wy = np.zeros((features.size, layout.w))
        Wy[:, : layout.q_z] = ZRy[:, layout.border]
        return np.ascontiguousarray(np.moveaxis(ZRy[:, layout.columns], 2, 0)), Wy

    # ---- likelihood ------------------------------------------------------------------------

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and information at theta (B, k) for chosen features."""
        p = self.projection
        result = Evaluation.empty(theta.shape[0], self.n_params)
        blocks = self._blocks(theta)
        is_known = blocks.distance > SINGULAR
        if p.structure.q <= DENSE_LIMIT:
            is_known &= theta[:, -1] > (
                SMALL_RESIDUAL if self.layout.s == 1 else _SMALL_WITH_SLOPES
            )
            unknown = np.flatnonzero(~is_known)
            if unknown.size:
                result.put(unknown, self.general.evaluate(theta[unknown], features[unknown]))
        known = np.flatnonzero(is_known)
        if known.size == 0:
            return result
        blocks, theta, features = _take_blocks(blocks, known), theta[known], features[known]
        border = self._border(blocks, theta, with_x=True)
        trace_border = border
        df, log_det = p.n - p.p, blocks.log_det + border.log_det - self._log_det_scaled_XX
        distance = border.distance
        if self.method == "ML":
            trace_border = self._border(blocks, theta, with_x=False)
            df, log_det = p.n, blocks.log_det + trace_border.log_det
            distance = np.minimum(distance, trace_border.distance)
        value, first, average = self._quadratic(blocks, border, theta, features)
        trace, expected = self._traces(blocks, trace_border, theta, df)
        loglik = -0.5 * (df * np.log(2.0 * np.pi) + log_det + value)
        inside = distance > SINGULAR
        rounding = rounding_errors(p.n, theta[:, -1])
        evaluation = Evaluation(loglik, 0.5 * (first - trace), expected, average, rounding)
        result.put(known[inside], evaluation.take(inside))
        return result

    @cached_property
    def _log_det_scaled_XX(self) -> float:
        layout = self.layout
        return float(np.linalg.slogdet(layout.WW[layout.q_z :, layout.q_z :])[1])

    def _solve(
        self, blocks: _Blocks, border: _Border, theta: FloatArray, features: IntArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Z_l'Py (s, B, L), Z_z'Py (B, q_z), the border's coefficients (B, w), and y'Py (B,)."""
        layout, p = self.layout, self.projection
        y, Wy = self._responses(features)
        sigma2 = theta[:, -1]
        Gy = small.matvec(blocks.G, y)
        s_y = (Wy - layout.gather(Gy)) / sigma2[:, None]
        yVy = (p.n - p.p - small.inner(y, Gy)) / sigma2
        g = np.matmul(border.N, s_y[:, :, None])[:, :, 0]
        r_blocks = small.matvec(blocks.inverse_M, y - layout.scatter(g))
        r_border = np.matmul(np.swapaxes(border.K, 1, 2), s_y[:, :, None])[:, :, 0]
        return r_blocks, r_border, g, yVy - (g * s_y).sum(axis=1)

    def _quadratic(
        self, blocks: _Blocks, border: _Border, theta: FloatArray, features: IntArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """y'Py, y'P V_i P y and half y'P V_i P V_j P y, the residual last."""
        layout, k = self.layout, self.n_params
        count, q_z = theta.shape[0], layout.q_z
        r_blocks, r_border, _, value = self._solve(blocks, border, theta, features)
        first, second = np.zeros((count, k)), np.zeros((count, k, k))
        left: dict[int, tuple[FloatArray, FloatArray]] = {}
        right: dict[int, tuple[FloatArray, FloatArray]] = {}
        for i, basis in layout.block_parameters:
            left[i] = (np.tensordot(basis, r_blocks, 1), np.zeros((count, q_z)))
        for i, ones in layout.border_parameters:
            x = np.zeros((count, q_z))
            for rows, columns in ones:
                x[:, rows] += r_border[:, columns]
            left[i] = (np.zeros_like(r_blocks), x)
        for i, (x_blocks, x_border) in left.items():
            first[:, i] = small.inner(x_blocks, r_blocks) + (x_border * r_border).sum(axis=1)
            turned = small.matvec(small.transpose(blocks.inverse_M), x_blocks)
            a = layout.gather(turned)
            a += np.matmul(blocks.S[:, :, :q_z], x_border[:, :, None])[:, :, 0]
            Na = np.matmul(border.N, a[:, :, None])[:, :, 0]
            padded = -Na
            padded[:, :q_z] += x_border
            in_blocks = small.matvec(blocks.U, x_blocks)
            in_blocks += small.matvec(blocks.inverse_M, layout.scatter(padded))
            in_border = np.matmul(np.swapaxes(border.K, 1, 2), a[:, :, None])[:, :, 0]
            right[i] = (in_blocks, in_border)
        for i in left:
            for j in left:
                if j <= i:
                    second[:, i, j] = 0.5 * (
                        small.inner(left[i][0], right[j][0])
                        + (left[i][1] * right[j][1]).sum(axis=1)
                    )
                    second[:, j, i] = second[:, i, j]
        _residual_row(theta, value, first, second)
        return value, first, second

    def _traces(
        self, blocks: _Blocks, border: _Border, theta: FloatArray, df: int
    ) -> tuple[FloatArray, FloatArray]:
        """tr(P V_i) and half tr(P V_i P V_j), the residual last; V^-1 for P without X."""
        layout, k = self.layout, self.n_params
        count = theta.shape[0]
        first, second = np.zeros((count, k)), np.zeros((count, k, k))
        N, T, U, K = border.N, border.T, blocks.U, border.K
        transposed = small.transpose(blocks.inverse_M)
        X = small.product(small.product(blocks.inverse_M, layout.sandwich(N)), transposed)
        NS: dict[int, FloatArray] = {}
        for a, (i, basis) in enumerate(layout.block_parameters):
            TU = np.tensordot(basis, U, 1)
            first[:, i] = np.tensordot(basis, (U - X).sum(axis=-1), 2)
            S_i = layout.sums(small.product(transposed, np.tensordot(basis, blocks.inverse_M, 1)))
            NS[i] = np.matmul(N, S_i)
            Y = np.matmul(np.matmul(np.swapaxes(K, 1, 2), S_i), K)
            for j, ones in layout.border_parameters:
                for rows, columns in ones:
                    second[:, i, j] += 0.5 * Y[:, rows, columns].sum(axis=1)
                second[:, j, i] = second[:, i, j]
            for j, other in layout.block_parameters[: a + 1]:
                mixed = np.tensordot(other, U - 2.0 * X, 1)
                value = small.inner(small.transpose(TU), mixed)
                value += (NS[i] * np.swapaxes(NS[j], 1, 2)).sum(axis=(1, 2))
                second[:, i, j] = second[:, j, i] = 0.5 * value
        for a, (i, mine) in enumerate(layout.border_parameters):
            for rows, columns in mine:
                first[:, i] += T[:, rows, columns].sum(axis=1)
            for j, theirs in layout.border_parameters[: a + 1]:
                value = np.zeros(count)
                for rows, columns in mine:
                    for others, last in theirs:
                        left, right = T[:, columns[:, None], others], T[:, last[:, None], rows]
                        value += (left * np.swapaxes(right, 1, 2)).sum(axis=(1, 2))
                second[:, i, j] = second[:, j, i] = 0.5 * value
        _residual_row(theta, np.full(count, float(df)), first, second)
        return first, second

    # ---- estimates -------------------------------------------------------------------------

    def _fixed_border(
        self, theta: FloatArray, *, whole: bool
    ) -> tuple[_Blocks, _Border, BoolArray]:
        """Blocks and border at theta, and where they could not be had."""
        blocks = self._blocks(theta)
        bad = ~(blocks.distance > SINGULAR)
        if bad.any():
            safe = theta.copy()
            safe[bad] = 0.0
            safe[bad, -1] = 1.0
            theta, blocks = safe, self._blocks(safe)
        border = self._border(blocks, theta, with_x=True, whole=whole)
        return blocks, border, np.asarray(bad)

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        p, layout = self.projection, self.layout
        blocks, border, bad = self._fixed_border(theta, whole=True)
        _, _, g, _ = self._solve(blocks, border, theta, features)
        beta = p.beta_ols[:, features].T + p.unit[features, None] * (
            g[:, layout.q_z :] @ layout.x_transform.T
        )
        if bad.any():
            beta[bad] = self.general.beta(theta[bad], features[bad])
        return np.asarray(beta)

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p); indefinite where V is."""
        p, layout = self.projection, self.layout
        _, border, bad = self._fixed_border(theta, whole=True)
        C = np.matmul(
            np.matmul(layout.x_transform, border.N[:, layout.q_z :, layout.q_z :]),
            layout.x_transform.T,
        )
        C = C * p.scale[features, None, None]
        if bad.any():
            C[bad] = self.general.covariance(theta[bad], features[bad])
        return np.asarray(C)

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        C = self.covariance(theta, features)
        return np.asarray((np.matmul(C, L.T) * L.T).sum(axis=1))

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p, layout = self.projection, self.layout
        unit = p.unit[features, None] / p.column_scale
        blocks, border, bad = self._fixed_border(theta, whole=False)
        r_blocks, r_border, _, _ = self._solve(blocks, border, theta, features)
        r = np.empty((theta.shape[0], p.structure.q))
        r[:, layout.columns] = np.moveaxis(r_blocks, 0, 2)
        r[:, layout.border] = r_border
        blup = p.structure.multiply(theta, r) * unit
        errors = None
        if se is not None:
            if se == "conditional":
                border = self._border(blocks, theta, with_x=False)
            errors = standard_errors(self._variances(blocks, border, theta)) * unit
        if bad.any():
            exact = self.general.random_effects(theta[bad], features[bad], se)
            blup[bad] = exact.blup
            if errors is not None and exact.se is not None:
                errors[bad] = exact.se
        return RandomEffects(blup, errors)

    def _variances(self, blocks: _Blocks, border: _Border, theta: FloatArray) -> FloatArray:
        """Diagonal of D - D T D, shape (B, q)."""
        layout = self.layout
        transposed = small.transpose(blocks.inverse_M)
        X = small.product(small.product(blocks.inverse_M, layout.sandwich(border.N)), transposed)
        D = blocks.D
        inside = D - small.product(small.product(D, blocks.U - X), D)
        variance = np.empty((theta.shape[0], self.projection.structure.q))
        variance[:, layout.columns] = np.stack([inside[a, a] for a in range(layout.s)], axis=2)
        D_z = self._border_covariance(theta)
        D_z = D_z - np.matmul(np.matmul(D_z, border.T), D_z)
        variance[:, layout.border] = np.diagonal(D_z, axis1=1, axis2=2)
        return variance

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        return np.asarray(self._distance(theta, with_x=False) > 0)

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """About the smallest over largest eigenvalue of V (ML) or of the error contrasts'."""
        return self._distance(theta, with_x=self.method == "REML")

    def _distance(self, theta: FloatArray, *, with_x: bool) -> FloatArray:
        blocks = self._blocks(theta)
        distance = blocks.distance.copy()
        known = np.flatnonzero(distance > SINGULAR)
        border = self._border(_take_blocks(blocks, known), theta[known], with_x=with_x)
        distance[known] = np.minimum(distance[known], border.distance)
        return distance


def _root(T: FloatArray, basis: FloatArray | None) -> tuple[FloatArray, FloatArray, BoolArray]:
    """L with L L' = T on the range that ``basis`` spans, its left inverse, and which T have one."""
    if basis is not None:
        T = np.matmul(np.matmul(basis.T, T), basis)
    L, ok = cholesky(0.5 * (T + np.swapaxes(T, 1, 2)))
    L[~ok] = np.eye(T.shape[-1])
    inverse = np.asarray(np.linalg.inv(L), dtype=np.float64)
    if basis is None:
        return L, inverse, ok
    return np.matmul(basis, L), np.matmul(inverse, basis.T), ok


def _take_blocks(blocks: _Blocks, index: IntArray) -> _Blocks:
    return _Blocks(
        blocks.D[:, :, index],
        blocks.inverse_M[:, :, index],
        blocks.U[:, :, index],
        blocks.G[:, :, index],
        blocks.log_det[index],
        blocks.S[index],
        blocks.distance[index],
    )


def _residual_row(
    theta: FloatArray, total: FloatArray, first: FloatArray, second: FloatArray
) -> None:
    """Fill in the residual's entries from sum_i theta_i V_i = V and P V P = P, in place."""
    sigma2 = theta[:, -1]
    first[:, -1] = (total - (theta[:, :-1] * first[:, :-1]).sum(axis=1)) / sigma2
    for i in range(theta.shape[1]):
        known = (theta[:, :-1] * second[:, i, :-1]).sum(axis=1)
        second[:, i, -1] = (0.5 * first[:, i] - known) / sigma2
        second[:, -1, i] = second[:, i, -1]
