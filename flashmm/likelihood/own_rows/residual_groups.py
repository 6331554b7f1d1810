"""Residual variances by group of features with rows of their own, by eliminating blocks of each.

The model is that of `flashmm.likelihood.residual_groups`. A group of which a feature has no samples
says nothing: its parameter has a score of zero and an information of one, so that searches leave it
where it is, and it meets no other parameter. Where an elimination is not to be trusted, all columns
of Z are in the border.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

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
from flashmm.likelihood.moments import times_D
from flashmm.likelihood.own_rows import elimination as el
from flashmm.likelihood.own_rows import forms as fo
from flashmm.likelihood.own_rows.group_algebra import GroupsAt
from flashmm.likelihood.own_rows.group_moments import group_moments
from flashmm.likelihood.own_rows.group_pieces import GroupPieces, StackedGroups
from flashmm.likelihood.own_rows.layout import OwnLayout, dense_layout
from flashmm.likelihood.own_rows.own_rows import applied_T, left_over
from flashmm.likelihood.own_rows.stacked_designs import StackedProjection
from flashmm.likelihood.residual_groups.groups import lost_digits
from flashmm.likelihood.residual_groups.levels import ENOUGH, LEAST

__all__ = ["OwnResidualGroups"]

# Arrays of a pass over features, and pieces of all features that are kept.
_CACHE_BYTES = 2**23
_KEPT_BYTES = 2**29
_RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class OwnResidualGroups:
    """REML or ML log-likelihood with a residual variance per group; an `Estimator` by `of`.

    Parameters
    ----------
    projection
        Of the samples of each feature.
    groups
        Their sums by group.
    method
        ``"REML"`` or ``"ML"``.
    layout
        The blocks that are eliminated.
    """

    projection: StackedProjection
    groups: StackedGroups
    method: Literal["REML", "ML"]
    layout: OwnLayout
    engine: str = "groups"
    small_products: bool = True
    _kept: list[GroupPieces] = field(default_factory=list)

    @property
    def m(self) -> int:
        """Number of features."""
        return int(self.projection.m)

    @property
    def n_groups(self) -> int:
        """Number of residual variances."""
        return self.groups.H

    @property
    def k(self) -> int:
        """Number of parameters of D."""
        return len(self.projection.structure.parameters)

    @property
    def n_params(self) -> int:
        """Number of variance parameters, residual variances included."""
        return self.k + self.n_groups

    @cached_property
    def n(self) -> FloatArray:
        """Samples of each group, shape (m, H)."""
        return self.groups.sizes(self.projection.designs.index)

    @property
    def _bytes(self) -> int:
        """Of one feature's pieces."""
        layout, w = self.layout, self.layout.q2 + self.projection.p + 1
        return 8 * self.n_groups * (layout.L * layout.s * (w + layout.s) + w * w)

    @property
    def _step(self) -> int:
        """Features of one pass."""
        return max(4, _CACHE_BYTES // (4 * self._bytes))

    def batch_size(self, memory: int) -> int:
        """How many features fit into ``memory`` bytes: their pieces, and few at a time."""
        k = self.n_params
        return max(1, memory // (2 * self._bytes + 8 * (4 * k * k + 40)))

    def _passes(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self._step):
            yield slice(start, min(start + self._step, count))

    def pieces(self, features: IntArray) -> GroupPieces:
        """Designs and data of some features."""
        if self._bytes * self.m > _KEPT_BYTES:
            return self._gathered(features)
        if not self._kept:
            self._kept.append(self._gathered(np.arange(self.m)))
        first, count = int(features[0]) if features.size else 0, features.size
        if count and features[-1] - first == count - 1 and (np.diff(features) == 1).all():
            return self._kept[0].take(slice(first, first + count))  # nothing is copied
        return self._kept[0].take(features)

    def _gathered(self, features: IntArray) -> GroupPieces:
        passes = self._passes(features.size)
        return self.groups.gather(self.projection, self.layout, features, passes)

    @cached_property
    def _dense(self) -> OwnResidualGroups:
        """The same with all columns of Z in the border."""
        layout = dense_layout(self.projection.designs.sums, self.projection.structure)
        return replace(self, layout=layout, _kept=[])

    @property
    def _is_dense(self) -> bool:
        return self.layout.L == 0

    def _at(self, theta: FloatArray, features: IntArray) -> GroupsAt:
        return GroupsAt.of(self.layout, self.pieces(features), theta, self.projection.p)

    def _lowest(self, at: GroupsAt, theta: FloatArray) -> FloatArray:
        """Smallest eigenvalue of V in its units, where the elimination tells; else -1, (B,)."""
        sigma2 = theta[:, -self.n_groups :]
        lowest = np.minimum(at.blocks.lowest, sigma2.min(axis=1) / sigma2.max(axis=1))
        q2 = self.layout.q2
        if q2:
            S = at.blocks.S[:, :q2, :q2]
            finite = np.asarray(np.isfinite(S).all(axis=(1, 2)) & np.isfinite(theta).all(axis=1))
            D2 = el.covariance_of_border(self.layout, at.blocks.theta)
            S, D2 = (np.where(finite[:, None, None], part, 0.0) for part in (S, D2))
            values, vectors = np.linalg.eigh(S)
            root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
            inner = np.matmul(np.swapaxes(root, 1, 2), np.matmul(D2, root))
            inner[:, np.arange(q2), np.arange(q2)] += 1.0
            usable = np.asarray(np.isfinite(inner).all(axis=(1, 2)))
            inner = np.where(usable[:, None, None], inner, -np.eye(q2))
            lowest = np.minimum(lowest, np.linalg.eigvalsh(inner)[:, 0])
            lowest = np.where(finite & usable, lowest, -1.0)
        return np.where(np.isnan(lowest), -1.0, lowest)

    def _in_doubt(self, at: GroupsAt) -> BoolArray:
        """Where V may be definite though V_1 is not: the border's part may lift it, (B,)."""
        negative, q2 = at.blocks.negative, self.layout.q2
        if q2 == 0 or not negative.any():
            return np.zeros(negative.size, dtype=bool)
        D2 = el.covariance_of_border(self.layout, at.blocks.theta)
        lifting = (np.linalg.eigvalsh(D2) > 0).sum(axis=1)
        return np.asarray((negative > 0) & (negative <= lifting))

    # ---- likelihood ------------------------------------------------------------------------

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and informations at theta (B, k + H) for chosen features."""
        result = Evaluation.empty(features.size, self.n_params)
        inside = np.isfinite(theta).all(axis=1) & (theta[:, -self.n_groups :] > 0).all(axis=1)
        rows, again = np.flatnonzero(inside), []
        for some in self._passes(rows.size):
            here = rows[some]
            with np.errstate(all="ignore"):
                at = self._at(theta[here], features[here])
                good = self._lowest(at, theta[here]) > SINGULAR
                good &= at.border.regular
                if good.any():
                    found = self._evaluated(theta[here], at)
                    good &= np.isfinite(found.loglik)
                    result.put(here[good], found.take(np.flatnonzero(good)))
            again.append(here[~good & self._in_doubt(at)])
        left = np.concatenate(again) if again else rows
        if left.size:
            result.put(left, self._dense.evaluate(theta[left], features[left]))
        return result

    def _evaluated(self, theta: FloatArray, at: GroupsAt) -> Evaluation:
        layout, reml, k, H = self.layout, self.method == "REML", self.k, self.n_groups
        B, c, n, p = theta.shape[0], at.c, at.pieces.n, self.projection.p
        border, blocks = at.border, at.blocks
        Q = border.Q if reml else border.Q_whole
        found = fo.products(layout, at.effects)
        coupled = fo.coupling(blocks.S, border.Q, layout.q2) if layout.q2 else None
        total = n.sum(axis=1)
        df = total - (float(p) if reml else 0.0)
        forms = fo.quadratic_forms(layout, blocks, border, found, coupled)
        traces = fo.traces(layout, blocks, Q, found, 0.0 * total, df, coupled if reml else None)
        score, E, A = np.empty((B, k + H)), np.empty((B, k + H, k + H)), np.empty((B, k + H, k + H))
        score[:, :k] = forms.first[:, :k] - traces.first[:, :k]
        E[:, :k, :k], A[:, :k, :k] = traces.second[:, :k, :k], forms.second[:, :k, :k]
        Yx, Jx = at.along(at.psi[:, :, None])
        ee = np.matmul(Jx[:, :, 0], at.psi[:, :, None])[:, :, 0]
        own = at.traces(Q, k)
        score[:, k:] = c**2 * (ee + own.alone) - c * n
        c2 = c[:, :, None] ** 2 * c[:, None, :] ** 2
        E[:, k:, k:] = c2 * own.pairs
        A[:, k:, k:] = -c2 * at.between(Yx, Jx)
        each = np.arange(k, k + H)
        E[:, each, each] += c**2 * n - 2.0 * c**3 * own.alone
        A[:, each, each] += c**3 * ee
        E[:, :k, k:] = own.mixed * (c**2)[:, None]
        A[:, :k, k:] = self._average(at, Yx, Jx) * (c**2)[:, None]
        for matrix in (E, A):
            matrix[:, k:, :k] = np.swapaxes(matrix[:, :k, k:], 1, 2)
            rows, groups = np.nonzero(n == 0)
            matrix[rows, k + groups, k + groups] = 2.0
        log_det = at.log_det(reml=reml)
        loglik = -0.5 * (df * math.log(2.0 * math.pi) + log_det + forms.value)
        smallest = np.where(n > 0, theta[:, k:], np.inf).min(axis=1)
        rounding = rounding_errors(total, smallest)
        return Evaluation(loglik, 0.5 * score, 0.5 * E, 0.5 * A, rounding)

    def _average(self, at: GroupsAt, Yx: FloatArray, Jx: FloatArray) -> FloatArray:
        """Y'P V_i P I_h P y / c_h^2, shape (B, k, H)."""
        layout = self.layout
        inside, outer = at.into_Z(Yx, Jx)
        B, H = at.c.shape
        result = np.zeros((B, self.k, H))
        r1, r2 = at.effects_of_y()
        for i, pairs in layout.fine_params:
            Gr = el.joined(pairs, r1[:, None]).reshape(B, -1, 1)
            result[:, i] = np.matmul(inside.reshape(B, H, -1), Gr)[:, :, 0]
        for i, ones in layout.border_params:
            Gr = np.zeros_like(r2)
            for rows, columns in ones:  # a row may have several partners
                np.add.at(Gr.T, rows, r2[:, columns].T)
            result[:, i] = np.matmul(outer[:, :, 0], Gr[:, :, None])[:, :, 0]
        return result

    # ---- what theta implies ------------------------------------------------------------------

    def _solved(
        self, theta: FloatArray, features: IntArray
    ) -> Iterator[tuple[IntArray, OwnResidualGroups, GroupsAt]]:
        """Where V is solved, by passes: which of the features, by whose layout, and how."""
        left = []
        for here in self._passes(features.size):
            rows = np.arange(here.start, here.stop)
            with np.errstate(all="ignore"):
                at = self._at(theta[here], features[here])
                good = at.border.regular & (at.blocks.negative == 0)
            if self._is_dense or good.all():
                yield rows, self, at
                continue
            left.append(rows[~good])
            if good.any():
                rows = rows[good]
                yield rows, self, self._at(theta[rows], features[rows])
        rest = np.concatenate(left) if left else np.arange(0)
        if rest.size:
            for where, owner, at in self._dense._solved(theta[rest], features[rest]):
                yield rest[where], owner, at

    def fixed_effects(self, theta: FloatArray, features: IntArray) -> tuple[FloatArray, FloatArray]:
        """`beta` and `covariance`, of one elimination."""
        p = self.projection
        beta = np.empty((features.size, p.p))
        covariance = np.empty((features.size, p.p, p.p))
        for where, owner, at in self._solved(theta, features):
            here, q2, w = features[where], owner.layout.q2, at.psi.shape[1] - 1
            W, scale = p.whitening[here], p.scale[here]
            moved = np.matmul(at.border.Q[:, q2:], at.blocks.S[:, :w, w:])
            beta[where] = p.beta_ols[here]
            beta[where] += np.sqrt(scale)[:, None] * np.matmul(W, moved)[:, :, 0]
            C = np.matmul(np.matmul(W, at.border.N), np.swapaxes(W, 1, 2))
            covariance[where] = 0.5 * (C + np.swapaxes(C, 1, 2)) * scale[:, None, None]
        return beta, covariance

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        return self.fixed_effects(theta, features)[0]

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p)."""
        return self.fixed_effects(theta, features)[1]

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        C = self.covariance(theta, features)
        return np.asarray((np.matmul(L, C) * L).sum(axis=2))

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p = self.projection
        blup = np.empty((features.size, p.structure.q))
        errors = None if se is None else np.empty_like(blup)
        for where, owner, at in self._solved(theta, features):
            here, layout = features[where], owner.layout
            unit = np.sqrt(p.scale[here])[:, None] / p.designs.units[here]
            r = np.empty((where.size, p.structure.q))
            r1, r2 = at.effects_of_y()
            r[:, layout.fine.T], r[:, layout.border] = r1, r2
            blup[where] = p.structure.multiply(theta[where], r) * unit
            if errors is not None:
                Q = at.border.Q if se == "prediction" else at.border.Q_whole
                variance = left_over(layout, p.structure.q, at.blocks, at.effects, Q)
                errors[where] = standard_errors(variance) * unit
        return RandomEffects(blup, errors)

    def of(self, features: IntArray) -> GroupRows:
        """The likelihoods of some features, one for each row of theta."""
        return GroupRows(self, features)

    def H(self, features: IntArray) -> FloatArray:
        """Z'X (X'X)^-1 of some features, shape (B, q, p)."""
        p = self.projection
        W = p.whitening[features]
        return np.swapaxes(np.matmul(W, p.designs.whitened_ZX(features, W)), 1, 2)

    @cached_property
    def perfect_fit(self) -> BoolArray:
        """Features of which a group's samples are explained exactly by X and Z, shape (m,)."""
        p, layout = self.projection, self.layout
        result = np.zeros(self.m, dtype=bool)
        for here in self._passes(self.m):
            pieces = self.pieces(np.arange(here.start, here.stop))
            for h in range(self.n_groups):
                d, U, n = pieces.d[:, h], pieces.U[:, h], pieces.n[:, h]
                A, rank = pieces.FF[:, h].copy(), np.zeros(n.size)
                if layout.L:
                    spectra, vectors = np.linalg.eigh(np.moveaxis(d, 3, 1))
                    values = np.moveaxis(spectra, 1, 2)
                    U = el.times(np.moveaxis(np.swapaxes(vectors, 2, 3), 1, 3), U)
                    most = np.maximum(values.max(axis=(1, 2), keepdims=True), 1.0)
                    held = values > _RANK_TOLERANCE * most
                    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=held)
                    A -= el.inner(U, U * inverse[:, None])
                    rank = held.sum(axis=(1, 2)).astype(np.float64)
                rss, more = el.left_by_border(A, _RANK_TOLERANCE)
                result[here] |= (n > rank + more) & (rss <= p.rounding[here])
        return result

    @cached_property
    def first_start(self) -> FloatArray | None:
        """As `ResidualGroups.first_start`, which see; None but for one variance of single effects.

        NaN for features whose start is zero variances and equal residuals.
        """
        layout = self.layout
        if self.k != 1 or layout.s != 1 or layout.q2:
            return None
        result = np.empty((self.m, 1 + self.n_groups))
        for here in self._passes(self.m):
            pieces = self.pieces(np.arange(here.start, here.stop))
            d, z = pieces.d[:, :, 0, 0], pieces.U[:, :, -1, 0]
            result[here] = moments(d, z, pieces.FF[:, :, -1, -1], pieces.n)
        return result

    def lost_in_rounding(
        self, theta: FloatArray, expected: FloatArray, features: IntArray
    ) -> BoolArray:
        """As `ResidualGroups.lost_in_rounding`, for theta (B, k + H) of some features."""
        n = self.n[features]
        return lost_digits(
            theta[:, self.k :], expected[:, self.k :, self.k :], n.sum(axis=1), n > 0
        )


def moments(d: FloatArray, z: FloatArray, yy: FloatArray, n: FloatArray) -> FloatArray:
    """Starts by the analysis of variance, as `DiagonalSums.moments`; (B, 1 + H).

    ``d`` and ``z`` are Z'I_h Z and Z'I_h y, shape (B, H, L); ``yy`` and ``n`` have shape (B, H).
    """
    inverse = np.divide(1.0, d, out=np.zeros_like(d), where=d > 0)
    df = n - np.count_nonzero(d, axis=2)
    scarce = (df < ENOUGH * n) | (n == 0)
    within = yy - (z * z * inverse).sum(axis=2)
    squares, count = np.where(scarce, yy, within), np.where(scarce, n, df)
    sigma2 = np.maximum(squares / np.maximum(count, 1.0), LEAST)
    sigma2[n == 0] = 1.0
    total = d.sum(axis=1)
    weights = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    means = z.sum(axis=1)
    between = (means * means * weights).sum(axis=1)
    between -= (sigma2 * (d * weights[:, None]).sum(axis=2)).sum(axis=1)
    return np.column_stack([np.maximum(between / total.sum(axis=1), 0.0), sigma2])


@dataclass(frozen=True)
class GroupRows:
    """The likelihoods of certain features, one for each row of theta."""

    likelihood: OwnResidualGroups
    features: IntArray

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v with T = Z'PZ at theta for the rows of vectors (B, c, q), same shape."""
        result = np.empty_like(vectors)
        for where, owner, at in self.likelihood._solved(theta, self.features):
            result[where] = applied_T(
                owner.layout, at.blocks, at.effects, at.border, vectors[where]
            )
        return result

    def effect_errors(self, theta: FloatArray, rows: FloatArray, *, given: bool) -> FloatArray:
        """Variances of w'(b - b_hat) for the rows w (B, c, q), in internal units, shape (B, c).

        ``given``: given y and beta.
        """
        structure = self.likelihood.projection.structure
        variance = np.empty(rows.shape[:2])
        for where, owner, at in self.likelihood._solved(theta, self.features):
            w = rows[where]
            Dw = times_D(structure, theta[where], w)
            border = replace(at.border, Q=at.border.Q_whole) if given else at.border
            TDw = applied_T(owner.layout, at.blocks, at.effects, border, Dw)
            variance[where] = (Dw * (w - TDw)).sum(axis=2)
        return np.where(variance < -1e-12, np.nan, np.maximum(variance, 0.0))

    def contrast_moments(
        self, theta: FloatArray, L: FloatArray, *, adjustment: bool
    ) -> ContrastMoments:
        """How the variances of hypotheses L (g, r, p) depend on theta (B, k + H)."""
        owner = self.likelihood
        B, (g, r, _), k = theta.shape[0], L.shape, owner.n_params
        variance, gradient = np.empty((B, g, r, r)), np.empty((B, g, k, r, r))
        second = np.empty((B, g, k, k, r, r)) if adjustment else None
        for where, one, at in owner._solved(theta, self.features):
            W = owner.projection.whitening[self.features[where]]
            LW, q = np.matmul(L[None], W[:, None]), one.projection.structure.q
            found = group_moments(at, LW, one.k, q, adjustment=adjustment)
            variance[where], gradient[where] = found.variance, found.gradient
            if second is not None:
                second[where] = found.adjustment
        return ContrastMoments(variance, gradient, second)

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        return self.distance_to_edge(theta) > 0

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """How near the edge of the likelihood's domain theta lies, shape (B,)."""
        owner = self.likelihood
        result = np.full(theta.shape[0], -1.0)
        inside = np.isfinite(theta).all(axis=1) & (theta[:, -owner.n_groups :] > 0).all(axis=1)
        rows = np.flatnonzero(inside)
        doubt = np.zeros(theta.shape[0], dtype=bool)
        for some in owner._passes(rows.size):
            here = rows[some]
            with np.errstate(all="ignore"):
                at = owner._at(theta[here], self.features[here])
                result[here], doubt[here] = owner._lowest(at, theta[here]), owner._in_doubt(at)
        rest = np.flatnonzero(doubt)
        if rest.size:
            dense = owner._dense.of(self.features[rest])
            result[rest] = dense.distance_to_edge(theta[rest])
        return result
