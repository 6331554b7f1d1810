"""The likelihood of features with rows of their own, by eliminating blocks of each.

Where an elimination is not to be trusted (sigma2 next to zero, parts of V indefinite) the dense
stack takes over, feature by feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.base import (
    SINGULAR,
    Evaluation,
    Forms,
    OfProjection,
    RandomEffects,
    StandardErrorKind,
    assembled,
    small_residual,
    standard_errors,
)
from flashmm.likelihood.own_rows import elimination as el
from flashmm.likelihood.own_rows import forms as fo
from flashmm.likelihood.own_rows.layout import OwnLayout
from flashmm.likelihood.own_rows.stacked import StackedLikelihood
from flashmm.likelihood.own_rows.stacked_designs import StackedProjection, told_apart

__all__ = [
    "OwnRowsLikelihood",
    "OwnRowsRows",
    "applied_T",
    "at_zero_ratios",
    "left_over",
    "well_posed",
    "within_samples",
]

# Arrays of a pass over features: small enough that few features wait in memory, large enough that
# the calls cost little beside the work.
_CACHE_BYTES = 2**24
# Pieces of all features are kept up to this size, else gathered anew at every evaluation.
_KEPT_BYTES = 2**29
_RANK_TOLERANCE = 1e-10
_Solved = tuple[IntArray, el.Eliminated, el.Effects, el.Border]
# Blocks of one effect keep their digits longer than other fast likelihoods: here, with variances a
# thousand times as large, within 1e-10 of the stack's information (measured: 8e-11).
_LEAST_RESIDUAL = 1e-3


@dataclass(frozen=True)
class OwnRowsLikelihood(OfProjection):
    """REML or ML log-likelihood of features with rows of their own; an `Estimator` by `of`."""

    projection: StackedProjection
    method: Literal["REML", "ML"]
    layout: OwnLayout
    engine: str = "own rows"
    small_products: bool = True

    @property
    def _width(self) -> int:
        return self.layout.q2 + self.projection.p + 1

    @property
    def _bytes(self) -> int:
        """Of one feature's pieces."""
        layout, w = self.layout, self._width
        return 8 * (layout.L * layout.s * (w + layout.s) + w * w)

    def batch_size(self, memory: int) -> int:
        """How many features fit into ``memory`` bytes: their pieces, and few at a time."""
        k = self.n_params
        per_feature = 2 * self._bytes + 8 * (4 * k * k + 40)
        return max(1, memory // per_feature)

    @property
    def _least_residual(self) -> float:
        """The residual variance, in internal units, from which on features go to the stack."""
        least = small_residual(self.projection.structure.q)
        return min(least, _LEAST_RESIDUAL) if self.layout.s == 1 else least

    @property
    def _step(self) -> int:
        """Features of one pass."""
        each = (4 + 2 * len(self.layout.fine_params)) * self._bytes
        return max(4, _CACHE_BYTES // each)

    def pieces(self, features: IntArray) -> el.Pieces:
        """Designs and data of some features."""
        if self._bytes * self.m > _KEPT_BYTES:
            return self._gathered(features)
        kept = self.projection.kept_pieces
        if not kept:
            kept.append(self._gathered(np.arange(self.m)))
        first, count = int(features[0]) if features.size else 0, features.size
        if count and features[-1] - first == count - 1 and (np.diff(features) == 1).all():
            return kept[0].take(slice(first, first + count))  # nothing is copied
        return kept[0].take(features)

    def _gathered(self, features: IntArray) -> el.Pieces:
        """Gather pieces, few features at a time."""
        layout, w = self.layout, self._width
        B, L, s = features.size, layout.L, layout.s
        found = el.Pieces(
            np.empty((B, s, s, L)),
            np.empty((B, w, s, L)),
            np.zeros((B, w, w)),
            self.projection.designs.n[features],
        )
        for here in self._passes(B):
            self._gather(features[here], found.take(here))
        return found

    def _gather(self, features: IntArray, into: el.Pieces) -> None:
        """Put the pieces of features in their place."""
        p, layout = self.projection, self.layout
        q2, w = layout.q2, self._width - 1
        stack = p.designs
        entries = np.zeros((features.size, stack.sums.rows.size + 1))
        np.divide(stack.sums.ZZ[stack.index[features]], stack.entry_scale, out=entries[:, :-1])
        entries[:, :-1] /= stack.root_weight[features, None] ** 2
        XWZ = stack.whitened_ZX(features, p.whitening[features])
        yRZ = p.ZY[features] - np.matmul(p.WXY[features][:, None], XWZ)[:, 0]
        yRZ /= np.sqrt(p.scale[features])[:, None]
        # Blocks of Z'Z are symmetric.
        into.d[:] = entries[:, layout.blocks.transpose(1, 2, 0)]
        U, fine = into.U, layout.fine.T  # (s, L)
        U[:, :q2] = entries[:, layout.coupling.transpose(2, 1, 0)]
        U[:, q2:w] = XWZ[:, :, fine]
        U[:, w] = yRZ[:, fine]
        FF, border = into.FF, layout.border
        FF[:, :q2, :q2] = entries[:, layout.corner]
        FF[:, q2:w, :q2] = XWZ[:, :, border]
        FF[:, :q2, q2:w] = np.swapaxes(XWZ[:, :, border], 1, 2)
        FF[:, :q2, w] = FF[:, w, :q2] = yRZ[:, border]
        index = np.arange(q2, w)
        FF[:, index, index] = 1.0
        FF[:, w, w] = into.n - p.p

    def _passes(self, count: int) -> Iterator[slice]:
        step = self._step
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    # ---- likelihood ------------------------------------------------------------------------

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and information at theta (B, k) for chosen features."""
        result = Evaluation.empty(features.size, self.n_params)
        handed = np.zeros(features.size, dtype=bool)
        for here in self._passes(features.size):
            handed[here] = self._evaluate(theta[here], features[here], result, here.start)
        if handed.any():
            where = np.flatnonzero(handed)
            result.put(
                where, self.stack(features[where]).evaluate(theta[where], np.arange(where.size))
            )
        return result

    def stack(self, features: IntArray) -> StackedLikelihood:
        """The dense likelihood of some features."""
        return StackedLikelihood(self.projection.take(features), self.method)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def _evaluate(
        self, theta: FloatArray, features: IntArray, result: Evaluation, start: int
    ) -> BoolArray:
        """Put the evaluations of a pass into the result; features to hand to the stack."""
        p, ml = self.projection, self.method == "ML"
        given = theta[:, -1]
        usable = given > self._least_residual
        pieces = self.pieces(features)
        if not usable.all():
            theta = np.where(usable[:, None], theta, self._origin())
        layout = self.layout
        blocks, effects = el.eliminate(layout, pieces, theta)
        found = fo.products(layout, effects)
        trusted, outside = self._trusted(blocks)
        border = el.solve_border(layout, blocks, p.p)
        df = pieces.n - (0.0 if ml else float(p.p))
        log_det = blocks.log_det + border.log_det + (0.0 if ml else border.log_det_X)
        Q = border.Q_whole if ml else border.Q
        coupled = fo.coupling(blocks.S, border.Q, layout.q2) if layout.q2 else None
        evaluation = assembled(
            fo.quadratic_forms(layout, blocks, border, found, coupled),
            fo.traces(layout, blocks, Q, found, log_det, df, None if ml else coupled),
            theta[:, -1],
            n=pieces.n,
            df=df,
            rss=None,
            df_trace=0,
        )
        inside = usable & trusted & border.regular & np.isfinite(evaluation.loglik)
        where = np.flatnonzero(inside)
        result.put(start + where, evaluation.take(where))
        # Without a residual variance V is singular where samples outnumber the effects.
        nothing = (given <= 0) & (pieces.n > p.structure.q + p.p)
        return ~inside & ~(usable & outside) & ~nothing

    def _origin(self) -> FloatArray:
        origin = np.zeros(self.n_params)
        origin[-1] = 1.0
        return origin

    def _trusted(self, blocks: el.Eliminated) -> tuple[BoolArray, BoolArray]:
        """Where V is certainly positive definite, and where theta is certainly outside; (B,)."""
        p, q2 = self.projection.p, self.layout.q2
        sigma2 = blocks.sigma2
        highest = np.maximum(blocks.highest, sigma2)
        good = (blocks.lowest > SINGULAR * highest) & (blocks.negative == 0)
        outside = blocks.negative > p + q2
        if self.method == "ML":
            outside = blocks.negative > q2
        if q2:
            rows = np.flatnonzero(good & ~self._border_is_psd(blocks.theta))
            if rows.size:
                positive, count = el.positive_border(self.layout, blocks.take(rows))
                good[rows] = positive
                outside[rows] = count > (0 if self.method == "ML" else p)
        return good, outside

    def _border_is_psd(self, theta: FloatArray) -> BoolArray:
        """Whether D of the border is clearly positive semi-definite, shape (B,)."""
        own = {i for i, _ in self.layout.border_params}
        result = np.ones(theta.shape[0], dtype=bool)
        for block in self.projection.structure.blocks():
            if block[0, 0] not in own:
                continue
            if block.size == 1:
                result &= theta[:, block[0, 0]] >= 0
            else:
                result &= np.linalg.eigvalsh(theta[:, block])[:, 0] >= 0
        return result

    # ---- what theta implies ------------------------------------------------------------------

    def _solved(self, theta: FloatArray, features: IntArray) -> Iterator[_Solved]:
        """Blocks, effects and border of the features to be trusted with that, by passes.

        Those of the others are None: the stack has to tell.
        """
        limit = self._least_residual
        for here in self._passes(features.size):
            usable = theta[here, -1] > limit
            where = here.start + np.flatnonzero(usable)
            if where.size == 0:
                continue
            with np.errstate(all="ignore"):
                layout = self.layout
                blocks, effects = el.eliminate(layout, self.pieces(features[where]), theta[where])
                good = np.flatnonzero(self._trusted(blocks)[0])
                if good.size < where.size:
                    where, blocks = where[good], blocks.take(good)
                    if where.size == 0:
                        continue
                    effects = el.Effects(effects.t[good], effects.R[good])
                yield where, blocks, effects, el.solve_border(layout, blocks, self.projection.p)

    def fixed_effects(self, theta: FloatArray, features: IntArray) -> tuple[FloatArray, FloatArray]:
        """`beta` and `covariance`, of one elimination."""
        p, q2 = self.projection, self.layout.q2
        beta, left = np.empty((features.size, p.p)), np.ones(features.size, dtype=bool)
        covariance = np.empty((features.size, p.p, p.p))
        for where, blocks, _, border in self._solved(theta, features):
            here, w = features[where], blocks.S.shape[1] - 1
            W = p.whitening[here]
            moved = np.matmul(border.Q[:, q2:], blocks.S[:, :w, w:])
            change = np.matmul(W, moved)[:, :, 0]
            beta[where] = p.beta_ols[here] + np.sqrt(p.scale[here])[:, None] * change
            C = np.matmul(np.matmul(W, border.N), np.swapaxes(W, 1, 2))
            covariance[where] = 0.5 * (C + np.swapaxes(C, 1, 2)) * p.scale[here][:, None, None]
            left[where] = False
        if left.any():
            rest = np.flatnonzero(left)
            stack, everything = self.stack(features[rest]), np.arange(rest.size)
            beta[rest] = stack.beta(theta[rest], everything)
            covariance[rest] = stack.covariance(theta[rest], everything)
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
        p, layout = self.projection, self.layout
        q, q2 = p.structure.q, layout.q2
        blup, left = np.empty((features.size, q)), np.ones(features.size, dtype=bool)
        errors = None if se is None else np.empty((features.size, q))
        for where, blocks, effects, border in self._solved(theta, features):
            here, w, at = features[where], blocks.S.shape[1] - 1, theta[where]
            unit = np.sqrt(p.scale[here])[:, None] / p.designs.units[here]
            phi = np.matmul(border.Q, blocks.S[:, :w, w:])
            psi = np.concatenate([-phi, np.ones((where.size, 1, 1))], axis=1)
            r = np.empty((where.size, q))
            r[:, layout.fine.T] = el.combined(np.swapaxes(psi, 1, 2), effects.R)[:, 0]
            r[:, layout.border] = np.matmul(blocks.S[:, :q2], psi)[:, :, 0]
            blup[where] = p.structure.multiply(at, r) * unit
            if errors is not None:
                Q = border.Q if se == "prediction" else border.Q_whole
                errors[where] = standard_errors(left_over(layout, q, blocks, effects, Q)) * unit
            left[where] = False
        if left.any():
            rest = np.flatnonzero(left)
            part = self.stack(features[rest]).random_effects(theta[rest], np.arange(rest.size), se)
            blup[rest] = part.blup
            if errors is not None and part.se is not None:
                errors[rest] = part.se
        return RandomEffects(blup, errors)

    def of(self, features: IntArray) -> OwnRowsRows:
        """The likelihoods of some features, one for each row of theta."""
        return OwnRowsRows(self, features)

    def H(self, features: IntArray) -> FloatArray:
        """Z'X (X'X)^-1 of some features, shape (B, q, p)."""
        p = self.projection
        W = p.whitening[features]
        return np.swapaxes(np.matmul(W, p.designs.whitened_ZX(features, W)), 1, 2)

    @cached_property
    def perfect_fit(self) -> BoolArray:
        """Features that X and Z together explain exactly, shape (m,)."""
        p = self.projection
        rss, rank = within_samples(self)
        return np.asarray((rss <= p.rounding) & (p.designs.n > rank))


def left_over(
    layout: OwnLayout, q: int, blocks: el.Eliminated, effects: el.Effects, Q: FloatArray
) -> FloatArray:
    """Diagonal of D - D T D for the T of Q, shape (B, q)."""
    w = blocks.S.shape[1] - 1
    result = np.empty((Q.shape[0], q))
    R = np.ascontiguousarray(effects.R[:, :w])
    DT = effects.t - np.einsum("bwal,bwcl->bacl", el.combined(Q, R), R)
    lost = np.einsum("bkal,bka->bal", el.times(blocks.D1[..., None], DT), blocks.D1)
    result[:, layout.fine.T] = np.einsum("bss->bs", blocks.D1)[:, :, None] - lost
    if layout.q2:
        D2 = el.covariance_of_border(layout, blocks.theta)
        _, T22 = fo.coupling(blocks.S, Q, layout.q2)
        lost = np.matmul(np.matmul(D2, T22), D2)
        result[:, layout.border] = np.einsum("bss->bs", D2 - lost)
    return result


def applied_T(
    layout: OwnLayout,
    blocks: el.Eliminated,
    effects: el.Effects,
    border: el.Border,
    v: FloatArray,
) -> FloatArray:
    """T v with T = Z'PZ for the rows of v (B, c, q), same shape."""
    w, q2 = blocks.S.shape[1] - 1, layout.q2
    R = np.ascontiguousarray(effects.R[:, :w])
    inside = v[:, :, layout.fine.T]  # (B, c, s, L)
    load = el.inner(R, inside)
    turned = -np.matmul(border.Q, load)
    part = np.empty(v.shape)
    if q2:
        Phi, T22 = fo.coupling(blocks.S, border.Q, q2)
        outer = np.swapaxes(v[:, :, layout.border], 1, 2)
        turned += np.matmul(Phi, outer)
        found = np.matmul(np.swapaxes(Phi, 1, 2), load) + np.matmul(T22, outer)
        part[:, :, layout.border] = np.swapaxes(found, 1, 2)
    first = el.times(effects.t, inside) + el.combined(np.swapaxes(turned, 1, 2), R)
    part[:, :, layout.fine.T] = first
    return part


def within_samples(likelihood: OwnRowsLikelihood) -> tuple[FloatArray, FloatArray]:
    """Residual sums of squares of y on [X, Z], in units of ``scale``, and ranks of [X, Z], (m,)."""
    rss, rank = np.empty(likelihood.m), np.empty(likelihood.m)
    for here in likelihood._passes(likelihood.m):
        pieces = likelihood.pieces(np.arange(here.start, here.stop))
        values, along = pieces.d[:, 0], pieces.U
        if likelihood.layout.s > 1:
            spectra, vectors = np.linalg.eigh(np.moveaxis(pieces.d, 3, 1))
            values = np.moveaxis(spectra, 1, 2)  # (B, s, L)
            along = el.times(np.moveaxis(np.swapaxes(vectors, 2, 3), 1, 3), along)
        held = values > _RANK_TOLERANCE * np.maximum(values.max(axis=(1, 2), keepdims=True), 1.0)
        inverse = np.divide(1.0, values, out=np.zeros_like(values), where=held)
        A = pieces.FF - el.inner(along, along * inverse[:, None])
        rss[here], rank[here] = el.left_by_border(A, _RANK_TOLERANCE)
        rank[here] += held.sum(axis=(1, 2))
    return rss, rank


@dataclass(frozen=True)
class _Origin:
    """Some features where V is the identity, and P is off X alone."""

    pieces: el.Pieces
    blocks: el.Eliminated
    border: el.Border
    found: fo.Products
    traces: Forms

    @classmethod
    def of(cls, likelihood: OwnRowsLikelihood, features: IntArray) -> _Origin:
        pieces = likelihood.pieces(features)
        theta = np.tile(likelihood._origin(), (features.size, 1))
        layout = likelihood.layout
        blocks, effects = el.eliminate(layout, pieces, theta)
        found = fo.products(layout, effects)
        border = el.solve_border(layout, blocks, likelihood.projection.p)
        df = pieces.n - likelihood.projection.p
        traces = fo.traces(layout, blocks, border.Q, found, np.zeros(features.size), df)
        return cls(pieces, blocks, border, found, traces)


def at_zero_ratios(likelihood: OwnRowsLikelihood) -> tuple[FloatArray, FloatArray, FloatArray]:
    """tr(R V_i), tr(R V_i R V_i) and y'R V_i R y of the parameters of D; R is off X.

    Each has shape (m, k).
    """
    k = likelihood.n_params - 1
    first, second, forms = (np.empty((likelihood.m, k)) for _ in range(3))
    for here in likelihood._passes(likelihood.m):
        at = _Origin.of(likelihood, np.arange(here.start, here.stop))
        first[here] = at.traces.first[:, :k]
        second[here] = np.einsum("bii->bi", at.traces.second)[:, :k]
        forms[here] = fo.quadratic_forms(likelihood.layout, at.blocks, at.border, at.found).first[
            :, :k
        ]
    return first, second, forms


def _one_variance_posed(
    likelihood: OwnRowsLikelihood, features: IntArray, known_residual: bool
) -> BoolArray:
    """`well_posed` of a single variance of blocks of one effect: Z'RZ is diag(d) - U U'."""
    p, pieces = likelihood.projection, likelihood.pieces(features)
    d, U = pieces.d[:, 0, 0], pieces.U[:, : likelihood.projection.p]
    lost, inside = np.einsum("bpl,bpl->bl", U[:, :, 0], U[:, :, 0]), el.inner(U, U)
    first, second = np.zeros((features.size, 2)), np.zeros((features.size, 2, 2))
    first[:, 0] = (d - lost).sum(axis=1)
    second[:, 0, 0] = (d * (d - 2.0 * lost)).sum(axis=1) + (inside * inside).sum(axis=(1, 2))
    totals = d.sum(axis=1)[:, None]
    return told_apart(
        p.structure, first, second, totals, pieces.n - p.p, known_residual=known_residual
    )


def well_posed(likelihood: OwnRowsLikelihood, *, known_residual: bool = False) -> BoolArray:
    """Features whose components have something left beside X and can be told apart, (m,)."""
    p, layout = likelihood.projection, likelihood.layout
    structure, result = p.structure, np.ones(likelihood.m, dtype=bool)
    alone = len(structure.parameters) == 1 and layout.s == 1 and layout.q2 == 0
    for here in likelihood._passes(likelihood.m):
        features = np.arange(here.start, here.stop)
        if alone:
            result[here] = _one_variance_posed(likelihood, features, known_residual)
            continue
        at = _Origin.of(likelihood, features)
        pieces, forms = at.pieces, at.traces
        totals = np.zeros((features.size, len(structure.parameters)))
        corner = np.einsum("bss->bs", pieces.FF)[:, : layout.q2]
        for i, pairs in layout.fine_params:
            if structure.parameters[i].is_variance:
                totals[:, i] = sum(pieces.d[:, a, a].sum(axis=1) for a, _ in pairs)
        for i, ones in layout.border_params:
            if structure.parameters[i].is_variance:
                totals[:, i] = corner[:, ones[0][0]].sum(axis=1)
        df = pieces.n - p.p
        result[here] = told_apart(
            structure, forms.first, forms.second, totals, df, known_residual=known_residual
        )
    return result


@dataclass(frozen=True)
class OwnRowsRows:
    """The likelihoods of certain features, one for each row of theta."""

    likelihood: OwnRowsLikelihood
    features: IntArray
    # What was eliminated last, and at which theta: tests ask for several products at one.
    _last: list[tuple[FloatArray, list[_Solved]]] = field(default_factory=list)

    def _solved(self, theta: FloatArray) -> Iterable[_Solved]:
        """As `OwnRowsLikelihood._solved`; kept for the next call where that takes little room."""
        owner = self.likelihood
        if owner._bytes * self.features.size > _KEPT_BYTES:
            return owner._solved(theta, self.features)
        if not (self._last and np.array_equal(self._last[0][0], theta)):
            self._last[:] = [(theta.copy(), list(owner._solved(theta, self.features)))]
        return self._last[0][1]

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v with T = Z'PZ at theta for the rows of vectors (B, c, q), same shape."""
        owner = self.likelihood
        result, left = np.empty_like(vectors), np.ones(self.features.size, dtype=bool)
        for where, blocks, effects, border in self._solved(theta):
            result[where] = applied_T(owner.layout, blocks, effects, border, vectors[where])
            left[where] = False
        if left.any():
            rest = np.flatnonzero(left)
            dense = owner.stack(self.features[rest]).of(np.arange(rest.size))
            result[rest] = dense.apply_T(theta[rest], vectors[rest])
        return result

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        owner = self.likelihood
        result = np.zeros(self.features.size, dtype=bool)
        for where, *_ in self._solved(theta):
            result[where] = True
        rest = np.flatnonzero(~result)
        if rest.size:
            dense = owner.stack(self.features[rest]).of(np.arange(rest.size))
            result[rest] = dense.is_definite(theta[rest])
        return result

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """Smallest over largest eigenvalue of V (ML) or the error contrasts' covariance."""
        dense = self.likelihood.stack(self.features).of(np.arange(self.features.size))
        return dense.distance_to_edge(theta)
