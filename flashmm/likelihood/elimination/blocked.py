"""Blocks eliminated from V, then a dense border: for slopes, many levels, nested and crossed.

One grouping factor's terms make V_F = sigma2 I + Z_F D_F Z_F' fall into small blocks; the terms of
a factor in which it is nested fall into blocks again once it is gone. What is left, other
random effects and X, is a dense border of width w. The sums over blocks are outer products
that all features share, weighted by each; see `flashmm.likelihood.elimination.eliminate`,
`flashmm.likelihood.elimination.traces` and docs/engines.md. The residual's row comes free, since
sum_i theta_i V_i = V and P V P = P.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flashmm.arrays.namespaces import BoolArray, FloatArray, IntArray, namespace, put, take
from flashmm.designs.curves import CurvedParameters
from flashmm.likelihood.base import (
    SINGULAR,
    Evaluation,
    Forms,
    RandomEffects,
    StandardErrorKind,
    assembled,
    evaluate_in_parts,
    small_residual,
    standard_errors,
)
from flashmm.likelihood.elimination.alike import (
    Alike,
    alike_blocks,
    eliminate_alike,
    projected,
    sums,
)
from flashmm.likelihood.elimination.directions import (
    OwnDirections,
    in_directions,
    own_directions,
)
from flashmm.likelihood.elimination.eliminate import Border, Eliminated, eliminate, eliminate_border
from flashmm.likelihood.elimination.exact import perfect_fits
from flashmm.likelihood.elimination.indefinite import (
    covariance_is_definite,
    eliminate_border_indefinite,
    eliminate_indefinite,
)
from flashmm.likelihood.elimination.layout import Layout
from flashmm.likelihood.elimination.traces import (
    Directions,
    Solved,
    apply,
    derivative_times,
    inner_products,
    linear_score,
    prior_less_known,
    solve,
    traces,
)
from flashmm.likelihood.general import GeneralLikelihood
from flashmm.likelihood.one_design import OneDesign
from flashmm.likelihood.projection import DENSE_LIMIT

__all__ = ["BlockedLikelihood"]

# A batch beyond this size only waits for memory; a small one for Python.
_CACHE_BYTES = 2**24
# Of products of stacks, which wait for Python longer.
_STACK_BYTES = 2**25
_FEW = 16
# Eliminations with an indefinite D lose digits where they are closer to singular than this.
_CLOSE = 1e-3
# Random effects up to which the general likelihood is cheap enough to take over there.
_CHEAP = 500


@dataclass(frozen=True)
class BlockedLikelihood(OneDesign):
    """REML or ML log-likelihood by eliminating the blocks of a layout, then its border.

    Where V_F or V_1 is not positive definite although V may be, the general likelihood takes over,
    as long as Z is small enough for it; else ``indefinite`` parts are eliminated, with care. It
    also takes over where eliminations lose digits.
    """

    engine: str
    layout: Layout
    indefinite: bool = False

    @cached_property
    def beyond(self) -> GeneralLikelihood | BlockedLikelihood:
        """For theta where a part of V is indefinite."""
        if self._is_small:
            return GeneralLikelihood(self.projection, self.method)
        return replace(self, indefinite=True)

    def _blocks(self, theta: FloatArray) -> Eliminated:
        n = self.projection.n
        if self.indefinite:
            return eliminate_indefinite(self.layout, theta, n)
        return eliminate(self.layout, theta, n)

    def _border(self, blocks: Eliminated, *, with_x: bool, whole: bool = False) -> Border:
        if self.indefinite:
            return eliminate_border_indefinite(self.layout, blocks, with_x=with_x)
        return eliminate_border(self.layout, blocks, with_x=with_x, whole=whole)

    @cached_property
    def alike(self) -> Alike | None:
        """The finest blocks by their kind, where stacks of matrices beat planes."""
        return None if self.indefinite else alike_blocks(self.layout)

    @cached_property
    def perfect_fit(self) -> BoolArray:
        """Features that X and Z together explain exactly, shape (m,)."""
        return perfect_fits(self.layout, self.projection)

    def batch_size(self, memory: int) -> int:
        """How many features fit into ``memory`` bytes: planes, couplings and (w, w) arrays.

        Passes over small matrices are bound by memory traffic, so batches stay near the size
        of a cache whatever the budget.
        """
        layout, k, alike = self.layout, self.n_params, self.alike
        planes = (5 + k) * layout.fine.s * layout.fine.size
        most = _CACHE_BYTES if alike is None else _STACK_BYTES
        if alike is not None:
            largest = max(each.rows.stop - each.rows.start for each in alike.shelves)
            planes = 6 * layout.fine.size + k * largest + (10 + 4 * k) * alike.U * alike.s**2
        pattern = 2.5 * int(layout.base.shape[0]) + (3 + 1.2 * k) * layout.q_c * layout.w
        per_feature = int(8 * (planes + pattern + (9 + 1.2 * k) * layout.w**2))
        return max(1, min(memory // per_feature, max(_FEW, most // per_feature)))

    # ---- likelihood ------------------------------------------------------------------------

    # Next to sigma2 = 0 this overflows, as in `assembled`.
    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and information at theta (B, k) for chosen features."""
        xp = namespace(theta)
        if self.alike is not None:
            evaluation, known, distance = self._by_kind(self.alike, theta, features)[:3]
        else:
            evaluation, known, distance = self._by_planes(theta, features)
        inside = known & (distance > SINGULAR)
        if bool(xp.all(inside)):
            return evaluation
        result = evaluation.take(inside).spread(inside)
        if not self.indefinite and not bool(xp.all(known)):
            result.put(
                ~known, evaluate_in_parts(self.beyond, theta[~known], take(features, ~known))
            )
        return result

    def _by_planes(
        self, theta: FloatArray, features: IntArray
    ) -> tuple[Evaluation, BoolArray, FloatArray]:
        """An evaluation, where no digits are lost and the border's distance to the edge, (B,)."""
        blocks = self._blocks(theta)
        border, trace_border, log_det, distance = self._borders(blocks)
        known = (blocks.distance > SINGULAR) & ~self._is_lossy(theta, blocks.distance, distance)
        solved = self._solve(blocks, border, features)
        evaluation = assembled(
            self._quadratic(blocks, border, solved),
            self._traces(blocks, trace_border, log_det, self.df),
            blocks.theta[:, -1],
            n=self.projection.n,
            df=self.df,
            rss=None,
            df_trace=0,
        )
        return evaluation, known, distance

    def _by_kind(
        self,
        alike: Alike,
        theta: FloatArray,
        features: IntArray,
        along: OwnDirections | None = None,
        own: FloatArray | None = None,
    ) -> tuple[Evaluation, BoolArray, FloatArray, FloatArray]:
        """The same by kinds of blocks, and the score by theta (B, k) of the finest blocks.

        With ``along``, derivatives are by own parameters in place of theta; sum_i own_i V_i = V.
        """
        p, layout = self.projection, self.layout
        at = eliminate_alike(layout, alike, theta, p.n)
        border, traced, log_det, distance = self._borders(at.blocks)
        known = at.blocks.distance > SINGULAR
        known &= ~self._is_lossy(theta, at.blocks.distance, distance)
        py = projected(layout, alike, at, border, take(p.ZRy, features), float(p.n - p.p))
        if along is None or own is None:
            D, own = np.swapaxes(alike.bases, 0, 1)[None], at.blocks.theta
            positions = [*layout.fine.parameters, *(i.position for i in layout.border_parameters)]
        else:
            D, positions = along.of_kinds(alike), [*along.fine.tolist(), *along.border]
        found, order = sums(layout, alike, at, border, traced, py, D), np.argsort(positions)
        forms = _with_residual(
            own, py.value, py.value, found.forms[:, order], found.forms2[:, order][:, :, order]
        )
        total = 0.0 * log_det + float(self.df)
        spread = _with_residual(
            own, log_det, total, found.traces[:, order], found.traces2[:, order][:, :, order]
        )
        evaluation = assembled(
            forms, spread, at.blocks.theta[:, -1], n=p.n, df=self.df, rss=None, df_trace=0
        )
        score = np.zeros((theta.shape[0], theta.shape[1]))
        score[:, list(layout.fine.parameters)] = found.score
        return evaluation, known, distance, score

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def evaluate_along(
        self, curved: CurvedParameters, u: FloatArray, features: IntArray
    ) -> tuple[Evaluation, BoolArray] | None:
        """The likelihood by own parameters u (B, k), and where it is to be had this way, (B,).

        Derivatives are taken in the directions of u alone, of which there are few. None where a
        structure's effects are in no finest block.
        """
        layout, theta = self.layout, curved.theta(u)
        along = own_directions(layout, curved, u)
        if self.indefinite or along is None:
            return None
        # sum_i d_i u_i V_i = V with d the power of u_i that variances grow with.
        own = curved.degrees * u
        if self.alike is not None:
            evaluation, known, distance, score = self._by_kind(
                self.alike, theta, features, along, own
            )
            known = known & (distance > SINGULAR)
        else:
            evaluation, known, score = self._planes_along(theta, features, along, own)
        bend = curved.bend(u, score)
        evaluation = replace(evaluation, average=evaluation.average - 0.5 * bend)
        return evaluation, known

    def _planes_along(
        self, theta: FloatArray, features: IntArray, along: OwnDirections, own: FloatArray
    ) -> tuple[Evaluation, BoolArray, FloatArray]:
        """As `_by_kind`, by planes."""
        layout = self.layout
        directed = in_directions(layout, along)
        blocks = self._blocks(theta)
        border, trace_border, log_det, distance = self._borders(blocks)
        known = (blocks.distance > SINGULAR) & (distance > SINGULAR)
        known &= ~self._is_lossy(theta, blocks.distance, distance)
        solved = self._solve(blocks, border, features)
        blocks = replace(blocks, theta=own)
        left = derivative_times(directed, solved.r, own.shape[1] - 1)
        right = apply(layout, blocks, border, left)
        first = inner_products(left, solved.r)[:, :, 0]
        forms = _with_residual(own, solved.value, solved.value, first, inner_products(left, right))
        found = traces(directed, blocks, trace_border)
        total = 0.0 * log_det + float(self.df)
        spread = _with_residual(own, log_det, total, found.first, found.second)
        evaluation = assembled(
            forms, spread, own[:, -1], n=self.projection.n, df=self.df, rss=None, df_trace=0
        )
        score = linear_score(layout, blocks, trace_border, solved.r, theta.shape[1])
        return evaluation, known, score

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def at_one(self, theta: FloatArray, features: IntArray) -> tuple[float, FloatArray] | None:
        """Log determinant and y'Py (B,) at one theta (1, k) for all features.

        With these the log-likelihood is -1/2 (df log 2 pi + log determinant + y'Py), df = n - p or
        n. None where eliminations lose digits.
        """
        alike, p = self.alike, self.projection
        at = None if alike is None else eliminate_alike(self.layout, alike, theta, p.n)
        blocks = self._blocks(theta) if at is None else at.blocks
        border, _, log_det, distance = self._borders(blocks)
        lowest = min(float(blocks.distance[0]), float(distance[0]))
        if self.indefinite or not lowest > SINGULAR:
            return None
        if bool(self._is_lossy(theta, blocks.distance, distance)[0]):
            return None
        if alike is None or at is None:
            return float(log_det[0]), np.asarray(self._solve(blocks, border, features).value)
        py = projected(self.layout, alike, at, border, take(p.ZRy, features), float(p.n - p.p))
        return float(log_det[0]), py.value

    def _borders(self, blocks: Eliminated) -> tuple[Border, Border, FloatArray, FloatArray]:
        """The border with X, that of traces, log determinants and distances from the edge (B,)."""
        xp = namespace(blocks.theta)
        border = traced = self._border(blocks, with_x=True)
        log_det, distance = -self._log_det_scaled_XX, border.distance
        if self.method == "ML":
            traced = self._border(blocks, with_x=False)
            log_det, distance = 0.0, xp.minimum(distance, traced.distance)
        return border, traced, log_det + blocks.log_det + traced.log_det, distance

    @property
    def _is_small(self) -> bool:
        """Whether Z is small enough for the general likelihood."""
        return self.projection.structure.q <= DENSE_LIMIT

    def _is_lossy(
        self, theta: FloatArray, blocks_distance: FloatArray, border_distance: FloatArray
    ) -> BoolArray:
        """Where eliminations lose digits that the general likelihood has, shape (B,).

        Blocks divide by the residual variance; with a D that is not positive semi-definite what
        is eliminated first may be closer to singular than V, and what comes last must undo it.
        """
        xp, structure = namespace(theta), self.projection.structure
        if self.indefinite or not self._is_small:
            return theta[:, -1] < -xp.inf
        lossy = theta[:, -1] <= small_residual(structure.q)
        close = xp.minimum(blocks_distance, border_distance) < _CLOSE
        close = close & (border_distance > 0)
        if structure.q <= _CHEAP and bool(xp.any(close)):
            lossy = lossy | (close & ~covariance_is_definite(structure.blocks(), theta))
        return lossy

    @cached_property
    def _log_det_scaled_XX(self) -> float:
        layout = self.layout
        return float(np.linalg.slogdet(layout.WW[layout.q_z :, layout.q_z :])[1])

    def _solve(self, blocks: Eliminated, border: Border, features: IntArray) -> Solved:
        p, layout = self.projection, self.layout
        packed = layout.to_directions.times(take(p.ZRy, features).T)
        y = Directions.of(layout, packed[:, None, :])
        return solve(layout, blocks, border, y, float(p.n - p.p))

    def _quadratic(self, blocks: Eliminated, border: Border, solved: Solved) -> Forms:
        """The forms y'Py, y'P V_i P y and y'P V_i P V_j P y, the residual last."""
        layout = self.layout
        left = derivative_times(layout, solved.r, self.n_params - 1)
        right = apply(layout, blocks, border, left)
        first = inner_products(left, solved.r)[:, :, 0]
        second = inner_products(left, right)
        return _with_residual(blocks.theta, solved.value, solved.value, first, second)

    def _traces(self, blocks: Eliminated, border: Border, log_det: FloatArray, df: int) -> Forms:
        """The log determinant, tr(P V_i) and tr(P V_i P V_j), the residual last."""
        found = traces(self.layout, blocks, border)
        total = 0.0 * log_det + float(df)
        return _with_residual(blocks.theta, log_det, total, found.first, found.second)

    # ---- estimates -------------------------------------------------------------------------

    def _eliminated(
        self, theta: FloatArray, *, with_x: bool = True, whole: bool = False
    ) -> tuple[Eliminated, Border, BoolArray]:
        """Blocks and border at theta, and where they could not be had."""
        xp = namespace(theta)
        blocks = self._blocks(theta)
        border = self._border(blocks, with_x=with_x, whole=whole)
        if self.indefinite:  # there is no other likelihood to turn to
            return blocks, border, blocks.distance > xp.inf
        lossy = self._is_lossy(theta, blocks.distance, border.distance)
        return blocks, border, ~(blocks.distance > SINGULAR) | lossy

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        p, layout, xp = self.projection, self.layout, namespace(theta)
        blocks, border, bad = self._eliminated(theta, whole=True)
        g = self._solve(blocks, border, features).g[:, layout.q_z :]
        scaled = take(p.unit, features)[:, None] * xp.matmul(g, layout.x_transform.T)
        beta = take(p.beta_ols.T, features) + scaled
        if bool(xp.any(bad)):
            put(beta, bad, self.beyond.beta(theta[bad], take(features, bad)))
        return beta

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p); indefinite where V is."""
        p, layout, xp = self.projection, self.layout, namespace(theta)
        _, border, bad = self._eliminated(theta, whole=True)
        inner = border.N[:, layout.q_z :, layout.q_z :]
        C = xp.matmul(xp.matmul(layout.x_transform, inner), layout.x_transform.T)
        C = C * take(p.scale, features)[:, None, None]
        if bool(xp.any(bad)):
            put(C, bad, self.beyond.covariance(theta[bad], take(features, bad)))
        return C

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        p, layout, xp = self.projection, self.layout, namespace(theta)
        _, border, bad = self._eliminated(theta, whole=True)
        inner, rows = border.N[:, layout.q_z :, layout.q_z :], xp.matmul(L, layout.x_transform)
        variance = xp.sum(xp.matmul(rows, inner) * rows, axis=2)
        variance = variance * take(p.scale, features)[:, None]
        if bool(xp.any(bad)):
            exact = self.beyond.contrast_variance(theta[bad], take(features, bad), L)
            put(variance, bad, exact)
        return variance

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """Z'PZ v at theta (B, k) for the rows of vectors (B, c, q), same shape."""
        layout, xp = self.layout, namespace(theta)
        count, c, q = vectors.shape
        blocks, border, bad = self._eliminated(theta)
        columns = xp.reshape(xp.permute_dims(vectors, (2, 1, 0)), (q, c * count))
        packed = layout.from_directions.transposed_times(columns)
        x = Directions.of(layout, xp.reshape(packed, (packed.shape[0], c, count)))
        turned = apply(layout, blocks, border, x).packed()
        columns = layout.from_directions.times(xp.reshape(turned, (turned.shape[0], c * count)))
        result = xp.permute_dims(xp.reshape(columns, (q, c, count)), (2, 1, 0))
        if bool(xp.any(bad)):
            put(result, bad, self.beyond.apply_T(theta[bad], vectors[bad]))
        return result

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p, layout, xp = self.projection, self.layout, namespace(theta)
        unit = take(p.unit, features)[:, None] / p.column_scale
        blocks, border, bad = self._eliminated(theta)
        r = self._solve(blocks, border, features).r.packed()[:, 0, :]
        blup = p.structure.multiply(theta, layout.from_directions.times(r).T) * unit
        errors = None
        if se is not None:
            if se == "conditional":
                border = self._border(blocks, with_x=False)
            errors = standard_errors(prior_less_known(layout, blocks, border)) * unit
        if bool(xp.any(bad)):
            exact = self.beyond.random_effects(theta[bad], take(features, bad), se)
            put(blup, bad, exact.blup)
            if errors is not None:
                put(errors, bad, exact.se)
        return RandomEffects(blup, errors)

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        distance, unknown = self._distance(theta, with_x=False)
        definite = distance > 0
        if bool(namespace(theta).any(unknown)):
            put(definite, unknown, self.beyond.is_definite(theta[unknown]))
        return definite

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """About the smallest over largest eigenvalue of V (ML) or of the error contrasts'."""
        distance, unknown = self._distance(theta, with_x=self.method == "REML")
        if bool(namespace(theta).any(unknown)):
            put(distance, unknown, self.beyond.distance_to_edge(theta[unknown]))
        return distance

    def _distance(self, theta: FloatArray, *, with_x: bool) -> tuple[FloatArray, BoolArray]:
        """The distance as blocks see it, and where only another likelihood can tell."""
        xp = namespace(theta)
        blocks, border, bad = self._eliminated(theta, with_x=with_x)
        return xp.where(bad, -1.0, xp.minimum(blocks.distance, border.distance)), bad


def _with_residual(
    theta: FloatArray, value: FloatArray, total: FloatArray, first: FloatArray, second: FloatArray
) -> Forms:
    """Add the residual's entries to those of D's parameters, (B, k - 1) and (B, k - 1, k - 1).

    sum_i theta_i V_i = V and P V P = P: ``total`` is sum_i theta_i first_i.
    """
    xp, sigma2, own = namespace(theta), theta[:, -1], theta[:, :-1]
    last = (total - xp.sum(own * first, axis=1)) / sigma2
    row = (first - xp.matmul(second, own[:, :, None])[:, :, 0]) / sigma2[:, None]
    corner = (last - xp.sum(own * row, axis=1)) / sigma2
    upper = xp.concat([second, row[:, :, None]], axis=2)
    lower = xp.concat([row, corner[:, None]], axis=1)
    return Forms(
        value,
        xp.concat([first, last[:, None]], axis=1),
        xp.concat([upper, lower[:, None, :]], axis=1),
    )
