"""A residual variance for each group of samples: sums by group, weighted by their precisions.

V = Z D Z' + sum_h sigma2_h I_h, with I_h the samples of group h. With A = [Z, X] and
S_h = A'I_h A the sums of a group, A'R^-1A is C = sum_h S_h / sigma2_h, and

    V^-1 = R^-1 - R^-1 Z F Z'R^-1,          F = D (I + C_zz D)^-1
    P    = R^-1 - R^-1 A N A'R^-1,          N = F + g K^-1 g',  g = [-F C_zx; I],  K = X'V^-1X

so that with M = I - C N, e = y - A b, b = N A'R^-1 y and t_h = A'I_h e every trace and every form
follows from matrices of size q + p (F alone stands for N under ML's traces):

    A'P A           = M C,       A'P I_h P A = M S_h M' / sigma2_h^2
    tr(P I_h)       = n_h / sigma2_h - tr(N S_h) / sigma2_h^2
    tr(P I_h P I_g) = tr(N S_h N S_g) / (sigma2_h sigma2_g)^2
                      + [h = g] (n_h / sigma2_h^2 - 2 tr(N S_h) / sigma2_h^3)

The model is that of Pinheiro & Bates (2000, section 5.2). The parameters are those of D and then
the sigma2_h, in which V is linear, so that Satterthwaite's and Kenward and Roger's formulas hold as
they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.exceptions import InputError
from flashmm.likelihood.base import (
    SINGULAR,
    ContrastMoments,
    Evaluation,
    RandomEffects,
    StandardErrorKind,
    standard_errors,
)
from flashmm.likelihood.projection import Projection
from flashmm.likelihood.residual_groups.block_evaluation import evaluated_by_block
from flashmm.likelihood.residual_groups.block_moments import moments_by_block
from flashmm.likelihood.residual_groups.block_sums import BlockSums
from flashmm.likelihood.residual_groups.blocks import BlockAt
from flashmm.likelihood.residual_groups.level_evaluation import evaluated
from flashmm.likelihood.residual_groups.level_traces import Ratios, typical_ratios
from flashmm.likelihood.residual_groups.levels import DiagonalAt, DiagonalSums
from flashmm.stats.fields import GroupSums

__all__ = ["ResidualGroups", "lost_digits"]

# Bytes of the arrays of features that are evaluated at once.
_CACHE = 2**21
_BLOCK_CACHE = 2**23
# The most bytes that the groups' dense sums may take.
_MOST_BYTES = 2**33
# Rounding of a score, in standard errors, from which it says nothing of a maximum.
_LOST = 1e-4


@dataclass(frozen=True)
class ResidualGroups:
    """REML or ML log-likelihood of theta with a residual variance per group, an `Estimator`.

    Parameters
    ----------
    projection
        Of all samples; its parameters are those of D and the H residual variances.
    method
        ``"REML"`` or ``"ML"``.
    n
        Samples of each group, shape (H,).
    S
        A'I_h A in internal units, X whitened, shape (H, a, a).
    s
        A'I_h y of the residuals of least squares, scaled, shape (m, H, a).
    yy
        Their sums of squares, shape (m, H).
    """

    projection: Projection
    method: str
    n: FloatArray
    S: FloatArray
    s: FloatArray
    yy: FloatArray
    engine: str = "groups"

    @classmethod
    def make(cls, projection: Projection, groups: GroupSums, method: str) -> ResidualGroups:
        """The likelihood of projected statistics and their sums by group."""
        p, q = projection.p, projection.structure.q
        names = {name: i for i, name in enumerate(projection.structure.column_names)}
        H, m, a = groups.k, projection.m, p + q
        if 8 * H * a * a > _MOST_BYTES:
            raise InputError(
                f"The sums of {H} groups over {q} random effects take "
                f"{8 * H * a * a / 2**30:.1f} GiB, more than the {_MOST_BYTES / 2**30:.0f} GiB "
                "that residual_by takes. Leave out the factor with the most levels."
            )
        S, s, yy = np.zeros((H, a, a)), np.empty((m, H, a)), np.empty((m, H))
        W, unit = projection.whitening, np.sqrt(projection.scale)
        for h, part in enumerate(groups.parts):
            here = np.array([names[name] for name in part.structure.column_names], dtype=np.intp)
            size = projection.column_scale[here]
            ZZ = part.ZZ.toarray() / size[:, None] / size
            S[h][np.ix_(here, here)] = ZZ
            S[h][here, q:] = part.ZX @ W / size[:, None]
            S[h][q:, here] = S[h][here, q:].T
            S[h][q:, q:] = W.T @ part.XX @ W
            XY, ZY, sums, at = part.centred()
            change = np.nan_to_num(projection.beta_ols - at)
            left_X, left_Z = XY - part.XX @ change, ZY - part.ZX @ change
            left_Z /= size[:, None]
            left_Z /= unit
            if np.array_equal(here, np.arange(q)):
                s[:, h, :q] = left_Z.T
            else:
                s[:, h, :q] = 0.0
                s[:, h, here] = left_Z.T
            s[:, h, q:] = (W.T @ left_X / unit).T
            yy[:, h] = (sums - ((XY + left_X) * change).sum(axis=0)) / projection.scale
        lost = ~projection.varies
        s[lost], yy[lost] = 0.0, 1.0
        n = np.array([part.n for part in groups.parts], dtype=np.float64)
        return cls(projection, method, n, S, s, yy)

    @property
    def least(self) -> float:
        """The least eigenvalue of V, in its units, for which the likelihood is had here."""
        return SINGULAR

    @property
    def m(self) -> int:
        """Number of features."""
        return int(self.projection.m)

    @property
    def H(self) -> int:
        """Number of residual variances."""
        return int(self.n.size)

    @property
    def n_params(self) -> int:
        """Number of variance parameters, residual variances included."""
        return len(self.projection.structure.parameters) + self.H

    @cached_property
    def perfect_fit(self) -> BoolArray:
        """Features of which a group's samples are explained exactly by X and Z, shape (m,)."""
        p = self.projection
        if self.diagonal is not None:
            rss = self.diagonal.least_squares(self.s, self.yy)
            return np.asarray((rss.min(axis=1) <= p.rounding) & p.varies)
        rss = self.blocks.least_squares(self.s, self.yy).min(axis=1)
        return np.asarray((rss <= p.rounding) & p.varies)

    def batch_size(self, memory: int) -> int:
        """How many features may be evaluated at once within ``memory`` bytes."""
        a = int(self.S.shape[1])
        if self.diagonal is not None:
            return max(1, memory // (8 * (6 * self.H * a + self.diagonal.numbers())))
        return max(1, memory // (8 * (6 * self.H * a + self.blocks.numbers)))

    @cached_property
    def diagonal(self) -> DiagonalSums | None:
        """The sums where a single variance's Z'Z is diagonal in every group; else None."""
        q = self.projection.structure.q
        ZZ = self.S[:, :q, :q]
        d = np.diagonal(ZZ, axis1=1, axis2=2)
        alone = len(self.projection.structure.parameters) == 1
        if not alone or np.count_nonzero(ZZ) != np.count_nonzero(d):
            return None
        d, U, X = (np.array(part) for part in (d, self.S[:, :q, q:], self.S[:, q:, q:]))
        return DiagonalSums.make(d, U, X, self.n)

    @cached_property
    def first_start(self) -> FloatArray | None:
        """Where searches begin, shape (m, k + H); None for zero variances and equal residuals."""
        return None if self.diagonal is None else self.diagonal.moments(self.s, self.yy)

    @cached_property
    def blocks(self) -> BlockSums:
        """The sums by blocks and border."""
        return BlockSums.make(self.S, self.n, self.projection.structure)

    @cached_property
    def dense(self) -> BlockSums:
        """The same with all of Z in the border: where blocks are indefinite though V may not be."""
        if self.blocks.L == 0:
            return self.blocks
        return BlockSums.make(self.S, self.n, self.projection.structure, dense=True)

    def parts(self, theta: FloatArray) -> Iterator[tuple[IntArray, BlockAt]]:
        """What theta (B, k + H) makes of the sums, a few rows at a time, and which they are."""
        size = self._rows_at_once(_BLOCK_CACHE, self.blocks.numbers)
        for start in range(0, theta.shape[0], size):
            rows = np.arange(start, min(start + size, theta.shape[0]))
            at = BlockAt.of(self.blocks, theta[rows])
            if self.blocks.b == 0 or self.blocks.L == 0:
                yield rows, at
                continue
            beyond = ~(at.least > SINGULAR)
            if not beyond.any():
                yield rows, at
                continue
            if not beyond.all():
                yield rows[~beyond], BlockAt.of(self.blocks, theta[rows[~beyond]])
            # No border makes more directions positive than it has positive variances of its own.
            hopeless = beyond & (at.negative > (np.linalg.eigvalsh(at.D_b) > 0).sum(axis=1))
            if hopeless.any():
                yield rows[hopeless], BlockAt.of(self.blocks, theta[rows[hopeless]])
            rest = rows[beyond & ~hopeless]
            if rest.size == 0:
                continue
            step = self._rows_at_once(_BLOCK_CACHE, self.dense.numbers)
            for first in range(0, rest.size, step):
                some = rest[first : first + step]
                yield some, BlockAt.of(self.dense, theta[some])

    def _rows_at_once(self, cache: int, numbers: int) -> int:
        """Features whose arrays, gone through often, stay within so many bytes."""
        return max(1, int(cache // (8 * (self.H * self.S.shape[1] + numbers))))

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and informations at theta (B, k + H) for chosen features."""
        return self._in_parts(theta, features, None)

    @cached_property
    def ratios(self) -> Ratios | None:
        """What makes an approximate expected information, where a search gains by it."""
        if self.diagonal is None or self.method != "REML":
            return None
        return typical_ratios(self.diagonal)

    @property
    def approximates(self) -> bool:
        """Whether `evaluate_on_the_way` is cheaper than `evaluate`."""
        return self.ratios is not None

    def evaluate_on_the_way(
        self, theta: FloatArray, features: IntArray, last: BoolArray
    ) -> Evaluation:
        """The same with an approximate expected information, but for the rows ``last`` (B,)."""
        if self.ratios is None or last.all():
            return self.evaluate(theta, features)
        if not last.any():
            return self._in_parts(theta, features, self.ratios)
        result = Evaluation.empty(features.size, self.n_params)
        for rows, ratios in ((last, None), (~last, self.ratios)):
            result.put(rows, self._in_parts(theta[rows], features[rows], ratios))
        return result

    def _in_parts(self, theta: FloatArray, features: IntArray, ratios: Ratios | None) -> Evaluation:
        """The evaluation, a few features at a time; approximate with ``ratios``."""
        k = len(self.projection.structure.parameters)
        result = Evaluation.empty(features.size, self.n_params)
        inside = np.isfinite(theta).all(axis=1) & (theta[:, k:] > 0).all(axis=1)
        rows = np.flatnonzero(inside)
        with np.errstate(all="ignore"):
            for here, found, lowest in self._found(theta[rows], features[rows], ratios):
                good = np.flatnonzero((lowest > self.least) & np.isfinite(found.loglik))
                result.put(rows[here[good]], found.take(good))
        return result

    def _found(
        self, theta: FloatArray, features: IntArray, ratios: Ratios | None
    ) -> Iterator[tuple[IntArray, Evaluation, FloatArray]]:
        """Of a few rows at a time: which, the evaluation, and the least eigenvalue of V."""
        reml = self.method == "REML"
        if self.diagonal is None:
            for here, block in self.parts(theta):
                s, yy = self._sums_of(features[here])
                yield here, evaluated_by_block(block, s, yy, reml=reml), block.lowest
            return
        numbers = self.diagonal.numbers(on_the_way=ratios is not None)
        size = self._rows_at_once(_CACHE, numbers)
        for start in range(0, features.size, size):
            here = np.arange(start, min(start + size, features.size))
            at = DiagonalAt.of(self.diagonal, theta[here])
            s, yy = self._sums_of(features[here])
            yield here, evaluated(at, theta[here], s, yy, reml=reml, ratios=ratios), at.lowest

    def _sums_of(self, features: IntArray) -> tuple[FloatArray, FloatArray]:
        """The sums s and yy of some features; of successive ones nothing is copied."""
        if features.size and np.array_equal(features, features[0] + np.arange(features.size)):
            these = slice(int(features[0]), int(features[-1]) + 1)
            return self.s[these], self.yy[these]
        return self.s[features], self.yy[features]

    # ---- what theta implies ------------------------------------------------------------------

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        return self.fixed_effects(theta, features)[0]

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p)."""
        p = self.projection
        inverse = np.empty((features.size, p.p, p.p))
        for here, at, _ in self._estimates(theta, features):
            inverse[here] = at.K_inverse
        C = p.whitening @ inverse @ p.whitening.T
        return np.asarray(0.5 * (C + np.swapaxes(C, 1, 2)) * p.scale[features, None, None])

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        C = self.covariance(theta, features)
        return np.asarray((np.matmul(L, C) * L).sum(axis=2))

    def fixed_effects(self, theta: FloatArray, features: IntArray) -> tuple[FloatArray, FloatArray]:
        """Coefficients and their variances at theta, each (B, p): of what the two share, once."""
        p = self.projection
        beta, variance = np.empty((features.size, p.p)), np.empty((features.size, p.p))
        for here, at, b in self._estimates(theta, features):
            scale = p.scale[features[here], None]
            beta[here] = np.sqrt(scale) * (b @ p.whitening.T)
            half = np.matmul(p.whitening, at.K_inverse)
            variance[here] = scale * (half * p.whitening).sum(axis=2)
        return p.beta_ols.T[features] + beta, variance

    def _estimates(
        self, theta: FloatArray, features: IntArray
    ) -> Iterator[tuple[IntArray, BlockAt | DiagonalAt, FloatArray]]:
        """Of a few rows at a time: which, what theta makes, and coefficients of whitened X."""
        if self.diagonal is None:
            for here, block in self.parts(theta):
                total = np.matmul(block.c[:, None], self.s[features[here]])
                fixed = block.times_N(block.sums.split(total)).r[:, 0, block.sums.b :]
                yield here, block, fixed
            return
        size = self._rows_at_once(_CACHE, self.diagonal.numbers(on_the_way=True))
        for start in range(0, features.size, size):
            here = np.arange(start, min(start + size, features.size))
            at = DiagonalAt.of(self.diagonal, theta[here])
            yield here, at, at.fixed(self._sums_of(features[here])[0])

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p, q = self.projection, self.projection.structure.q
        unit = np.sqrt(p.scale[features])[:, None] / p.column_scale
        blup = np.empty((features.size, q))
        variance = None if se is None else np.empty((features.size, q))
        for here, at in self.parts(theta):
            total = np.matmul(at.c[:, None], self.s[features[here]])
            r = at.less_CN(at.sums.split(total))
            blup[here] = at.sums.joined(at.times_D(r))[:, 0, :q]
            if variance is not None:
                N = at.border.N_ml if se == "conditional" else at.border.N
                variance[here] = at.less_known(N)[:, :q]
        errors = None if variance is None else standard_errors(variance) * unit
        return RandomEffects(blup * unit, errors)

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v with T = Z'PZ at theta for the rows of vectors (B, c, q), same shape."""
        result = np.empty_like(vectors)
        for here, at in self.parts(theta):
            result[here] = at.apply_T(vectors[here])
        return result

    def contrast_moments(
        self, theta: FloatArray, L: FloatArray, *, adjustment: bool
    ) -> ContrastMoments:
        """How the variances of hypotheses L (g, r, p) depend on theta (B, k + H)."""
        (groups, r, _), k = L.shape, self.n_params
        result = ContrastMoments(
            np.empty((theta.shape[0], groups, r, r)),
            np.empty((theta.shape[0], groups, k, r, r)),
            np.empty((theta.shape[0], groups, k, k, r, r)) if adjustment else None,
        )
        structure, rows = self.projection.structure, L @ self.projection.whitening
        for here, at in self.parts(theta):
            found = moments_by_block(at, structure, rows, adjustment=adjustment)
            result.variance[here], result.gradient[here] = found.variance, found.gradient
            if result.adjustment is not None:
                result.adjustment[here] = found.adjustment
        return result

    def lost_in_rounding(self, theta: FloatArray, expected: FloatArray) -> BoolArray:
        """Whose scores of residual variances may be rounding alone, shape (B,).

        What is left of a group's sum of squares carries an error of about n eps in internal units,
        and the score by its variance that times c^2. It drowns where samples tell little of so
        small a variance, as in a group of levels that are seen once in it. ``expected``: the
        information at theta (B, k + H), shape (B, k + H, k + H).
        """
        own = theta[:, -self.H :]
        return lost_digits(own, expected[:, -self.H :, -self.H :], self.projection.n)

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        return self.distance_to_edge(theta) > 0

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """How near the edge of the likelihood's domain theta lies, shape (B,)."""
        k = len(self.projection.structure.parameters)
        result = np.full(theta.shape[0], -1.0)
        rows = np.flatnonzero(np.isfinite(theta).all(axis=1) & (theta[:, k:] > 0).all(axis=1))
        with np.errstate(all="ignore"):
            if self.diagonal is not None:
                result[rows] = DiagonalAt.of(self.diagonal, theta[rows]).lowest
            else:
                for here, at in self.parts(theta[rows]):
                    result[rows[here]] = at.lowest
        return result


def lost_digits(
    sigma2: FloatArray,
    expected: FloatArray,
    n: int | FloatArray,
    there: BoolArray | None = None,
) -> BoolArray:
    """Which scores by residual variances (B, H) drown in the rounding of n samples, shape (B,).

    ``expected``: information on them, shape (B, H, H); ``there``: which have samples, (B, H).
    """
    with np.errstate(all="ignore"):
        unit = np.sqrt(np.diagonal(expected, axis1=1, axis2=2))
        error = 1e-15 * np.reshape(n, (-1, 1)) / sigma2**2
        lost = ~(error <= _LOST * unit)
        return np.asarray((lost if there is None else lost & there).any(axis=1))
