"""Features with rows of their own: groups of them, each with its own likelihood.

A pattern that many features share is a design like any other, with its fast likelihood. Features
with rare patterns go together: by eliminating blocks of each, or, where there are none, as a stack
of dense matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import InputError
from flashmm.likelihood.base import (
    Estimator,
    Evaluation,
    OfProjection,
    RandomEffects,
    StandardErrorKind,
    rows_of,
)
from flashmm.likelihood.centring import Turn, advice, centring
from flashmm.likelihood.design_checks import check_sample_size
from flashmm.likelihood.moments import ContrastMoments, contrast_moments
from flashmm.likelihood.own_rows.group_pieces import StackedGroups
from flashmm.likelihood.own_rows.layout import OwnLayout, dense_layout, find_layout
from flashmm.likelihood.own_rows.own_rows import OwnRowsLikelihood, well_posed
from flashmm.likelihood.own_rows.residual_groups import OwnResidualGroups
from flashmm.likelihood.own_rows.stacked import StackedLikelihood
from flashmm.likelihood.own_rows.stacked_designs import (
    DesignStack,
    StackedProjection,
    weight_units,
)
from flashmm.likelihood.own_rows.turned import in_coordinates
from flashmm.likelihood.present_groups import PresentGroups
from flashmm.likelihood.projection import (
    ROUNDING,
    UNDERFLOW,
    Projection,
    have_room,
    parameter_scale,
    project,
    project_groups,
    scale_of_columns,
)
from flashmm.likelihood.residual_groups import ResidualGroups
from flashmm.likelihood.units import InUnits
from flashmm.stats.groups import sizes_by_group
from flashmm.stats.known_levels import RootMap, in_roots
from flashmm.stats.own_rows import PatternedStats

__all__ = ["FeatureRows", "PatternedLikelihood", "PatternedProjection", "project_patterns"]

# A pattern with fewer features costs less in the stack than by itself.
_MANY = 8
_EPS = float(np.finfo(np.float64).eps)

AnyPart: TypeAlias = Estimator | OwnRowsLikelihood | OwnResidualGroups | StackedLikelihood


@dataclass(frozen=True)
class Group:
    """Some features, at ascending positions, and their projected statistics."""

    features: IntArray
    projection: Projection | StackedProjection
    # Sums by group of features with rare patterns, where groups have residual variances.
    by_group: StackedGroups | None = None


@dataclass(frozen=True)
class PatternedProjection(InUnits):
    """The projected statistics of all features; names as in `Projection`.

    Parameters
    ----------
    p
        Number of fixed effects.
    structure
        Random terms.
    column_scale
        Units of the effects, shape (q,).
    param_scale
        Units of theta of each feature, but for ``scale``, shape (m, k + 1).
    root_weight
        Root of the unit of each feature's weights, by which its Z is divided too, shape (m,).
    layout
        The blocks that are eliminated of features with rare patterns; None: they are a stack.
    groups
        The groups; features that cannot be estimated are in none.
    scale, rounding, n, log_det_XX, log_weights
        Shape (m,).
    beta_ols
        Shape (p, m).
    zero_variance, non_finite, not_estimable
        Shape (m,).
    turn, roots
        As in `Projection`.
    sizes
        Samples of each group with a residual variance, shape (m, H); None for one variance.
    """

    p: int
    structure: CovarianceStructure
    column_scale: FloatArray
    param_scale: FloatArray
    root_weight: FloatArray
    layout: OwnLayout | None
    groups: tuple[Group, ...]
    scale: FloatArray
    rounding: FloatArray
    n: FloatArray
    log_det_XX: FloatArray
    log_weights: FloatArray
    beta_ols: FloatArray
    zero_variance: BoolArray
    non_finite: BoolArray
    not_estimable: BoolArray
    turn: Turn | None = None
    roots: RootMap | None = None
    sizes: IntArray | None = None

    @property
    def m(self) -> int:
        """Number of features."""
        return int(self.scale.size)

    @cached_property
    def absent(self) -> BoolArray | None:
        """Which of theta are residual variances of groups without samples, (m, k + H)."""
        if self.sizes is None or (self.sizes > 0).all():
            return None
        of_D = np.zeros((self.m, len(self.structure.parameters)), dtype=bool)
        return np.hstack([of_D, self.sizes == 0])

    @property
    def varies(self) -> BoolArray:
        """Features that can be fitted, shape (m,)."""
        return ~(self.zero_variance | self.non_finite | self.not_estimable)

    def prediction_units(self, features: IntArray) -> tuple[FloatArray, FloatArray]:
        """What rows of Z are divided by and weights of theta multiplied, for some features.

        Shapes (B, 1, q) and (B, 1, k + 1).
        """
        columns = self.root_weight[features, None] * self.column_scale
        return columns[:, None], self.param_scale[features][:, None]


def project_patterns(stats: PatternedStats, *, known_residual: bool = False) -> PatternedProjection:
    """Project the statistics of all features off X; ``known_residual`` as in `project`.

    Raises
    ------
    InputError
        If not even all samples together could carry the model.
    """
    check_sample_size(stats.n, stats.p)
    several = len(stats.structure.residuals) > 1
    stats, roots = in_roots(stats, by_group=several)
    structure, m, p = stats.structure, stats.m, stats.p
    turn = None if several else centring(stats.sums.ZZ, structure)
    if turn is not None:
        stats = in_coordinates(stats, turn)
    column_scale = scale_of_columns(stats.sums.ZZ.diagonal(), structure)
    root_weight = np.sqrt(weight_units(stats))
    units, k = parameter_scale(structure, column_scale), len(structure.parameters)
    units = np.concatenate([units, np.ones(len(structure.residuals) - 1)])
    param_scale = np.tile(units, (m, 1))
    param_scale[:, :k] /= root_weight[stats.pattern, None] ** 2
    sizes, alone = sizes_by_group(stats), np.zeros(m, dtype=bool)
    if sizes is not None:
        alone = (sizes == 1).any(axis=1)  # no residual variance of its own
    total = PatternedProjection(
        p,
        structure,
        column_scale,
        param_scale,
        root_weight[stats.pattern],
        find_layout(stats.designs, structure),
        (),
        np.ones(m),
        np.ones(m),
        stats.nobs.astype(np.float64),
        np.zeros(m),
        np.zeros(m),
        np.full((p, m), np.nan),
        np.zeros(m, dtype=bool),
        np.zeros(m, dtype=bool),
        alone,
        turn,
        roots,
        sizes,
    )
    counts = np.bincount(stats.pattern, minlength=stats.n_patterns)
    groups = []
    for pattern in np.flatnonzero(counts >= _MANY):
        features = stats.members(int(pattern))
        if alone[features].any():
            continue
        try:
            own_scale = column_scale * root_weight[pattern]
            one = stats.of_pattern(int(pattern))
            projection = (
                project_groups(one, own_scale)
                if several
                else project(one, own_scale, known_residual=known_residual)
            )
        except InputError:
            total.not_estimable[features] = True
            continue
        groups.append(Group(features, projection))
    rare = np.flatnonzero((counts[stats.pattern] < _MANY) & ~alone)
    if rare.size:
        group = _stack(stats, rare, total, known_residual)
        if group.features.size:
            groups.append(group)
    for group in groups:
        _fill(total, group)
    near = advice(stats.sums.ZZ, structure) if total.not_estimable.all() and m else ""
    if near:
        raise InputError(f"No feature can be estimated. {near}")
    if total.not_estimable.all() and m and not stats.own.names:
        # Says what is wrong where nothing can be estimated at all.
        project(stats.sums, known_residual=known_residual)
    return replace(total, groups=tuple(groups))


def _fill(total: PatternedProjection, group: Group) -> None:
    """Put what a group knows of its features among that of all."""
    here, part = group.features, group.projection
    for name in ("scale", "rounding", "log_det_XX", "log_weights"):
        getattr(total, name)[here] = getattr(part, name)
    if isinstance(part, Projection):
        total.beta_ols[:, here] = part.beta_ols
        total.zero_variance[here], total.non_finite[here] = part.zero_variance, part.non_finite
    else:
        total.beta_ols[:, here] = part.beta_ols.T


def _stack(
    stats: PatternedStats, features: IntArray, total: PatternedProjection, known_residual: bool
) -> Group:
    """The features whose designs can carry the model.

    Verdicts of the others are put into ``total``.
    """
    p = stats.p
    designs = DesignStack.of(stats, features, total.column_scale)
    XX = designs.XX
    length = np.sqrt(np.diagonal(XX, axis1=1, axis2=2))
    unit = np.where(length > 0, length, 1.0)
    values, vectors = np.linalg.eigh(XX / (unit[:, :, None] * unit[:, None, :]))
    lowest, highest = values.min(axis=1, initial=np.inf), values.max(axis=1, initial=0.0)
    good = (lowest > p * 1e-13 * highest) & (designs.n > p)
    total.not_estimable[features[~good]] = True
    features, unit, values, vectors = features[good], unit[good], values[good], vectors[good]
    lowest, highest = lowest[good], highest[good]
    designs = designs.take(np.flatnonzero(good))

    XY, ZY, yy, a = (part[..., features] for part in stats.sums.centred())
    finite = np.isfinite(XY).all(axis=0) & np.isfinite(ZY).all(axis=0) & np.isfinite(yy)
    total.non_finite[features[~finite]] = True
    XY, ZY, yy = (np.where(finite, part, 0.0) for part in (XY, ZY, yy))
    W = vectors / np.sqrt(values)[:, None, :] / unit[:, :, None]
    WXY = np.matmul(XY.T[:, None, :], W)[:, 0]
    yRy = yy - (WXY**2).sum(axis=1)
    amplification = highest / lowest if p else np.ones(features.size)
    floor = np.maximum(ROUNDING, _EPS * amplification) * yy
    floor += (0.1 * ROUNDING) ** 2 * np.where(finite, stats.sums.yy[features], 0.0)
    constant = finite & ((yRy <= floor) | (yRy < UNDERFLOW * designs.n))
    total.zero_variance[features[constant]] = True
    df = designs.n - p
    beyond = finite & ~constant & ~have_room(yRy / df, total.param_scale[features])
    total.non_finite[features[beyond]] = True
    finite &= ~beyond
    scale = np.where(constant | ~finite, 1.0, yRy / df)
    beta_ols = np.matmul(W, WXY[:, :, None])[:, :, 0] + a.T
    beta_ols[~finite] = np.nan
    log_det = np.log(values).sum(axis=1) + 2.0 * np.log(unit).sum(axis=1)
    stacked = StackedProjection(
        designs=designs,
        whitening=W,
        log_det_XX=log_det,
        log_weights=stats.designs.log_weights[designs.index],
        scale=scale,
        rounding=np.maximum(ROUNDING * df, 2.0 * _EPS * amplification * yy / scale),
        WXY=WXY,
        ZY=(ZY / total.column_scale[:, None]).T / designs.root_weight[:, None],
        beta_ols=beta_ols,
    )
    posed = _well_posed(stacked, total.layout, known_residual)
    if not posed.all():
        total.not_estimable[features[~posed]] = True
        features, stacked = features[posed], stacked.take(np.flatnonzero(posed))
    by_group = None if total.sizes is None else StackedGroups.of(stats, features)
    return Group(features, stacked, by_group)


def _well_posed(
    stacked: StackedProjection, layout: OwnLayout | None, known_residual: bool
) -> BoolArray:
    """Features whose variance components can be told apart, shape (F,)."""
    if layout is not None:
        owned = OwnRowsLikelihood(stacked, "REML", layout)
        return well_posed(owned, known_residual=known_residual)
    posed = np.ones(stacked.m, dtype=bool)
    for start in range(0, stacked.m, stacked.chunk):
        here = slice(start, min(start + stacked.chunk, stacked.m))
        posed[here] = stacked.well_posed(here, known_residual=known_residual)
    return posed


@dataclass(frozen=True)
class PatternedLikelihood(OfProjection):
    """The likelihoods of all features, each by the group it is in; an `Estimator` by `of`.

    Parameters
    ----------
    projection
        The projected statistics.
    method
        ``"REML"`` or ``"ML"``.
    estimators
        The likelihood of each group.
    """

    projection: PatternedProjection
    method: Literal["REML", "ML"]
    estimators: tuple[AnyPart, ...]
    engine: str = "patterned"
    small_products: bool = True

    @property
    def n_params(self) -> int:
        """Number of variance parameters, residual variances included."""
        return len(self.projection.structure.param_names)

    @classmethod
    def of_projection(
        cls,
        projection: PatternedProjection,
        method: Literal["REML", "ML"],
        make: Callable[[Projection], Estimator],
        *,
        dense: bool = False,
    ) -> PatternedLikelihood:
        """The likelihood of groups; ``make`` makes that of one with a common pattern.

        ``dense``: features with rare patterns are a stack, whatever their layout.
        """
        layout = None if dense else projection.layout
        parts: list[AnyPart] = []
        for group in projection.groups:
            if isinstance(group.projection, Projection):
                parts.append(make(group.projection))
            elif group.by_group is not None:
                one = group.projection
                own = layout or dense_layout(one.designs.sums, projection.structure)
                parts.append(OwnResidualGroups(one, group.by_group, method, own))
            elif layout is None:
                parts.append(StackedLikelihood(group.projection, method))
            else:
                parts.append(OwnRowsLikelihood(group.projection, method, layout))
        return cls(projection, method, tuple(parts))

    @cached_property
    def _places(self) -> tuple[IntArray, IntArray]:
        """Group of each feature, -1 for none, and its position there; both (m,)."""
        group, place = np.full(self.m, -1), np.zeros(self.m, dtype=np.intp)
        for number, part in enumerate(self.projection.groups):
            group[part.features] = number
            place[part.features] = np.arange(part.features.size)
        return group, place

    def split(self, features: IntArray) -> Iterator[tuple[IntArray, IntArray, Any]]:
        """Per group: which of ``features`` are in it, their positions there, its likelihood."""
        group, place = self._places
        numbers = group[features]
        for number in np.unique(numbers[numbers >= 0]):
            where = np.flatnonzero(numbers == number)
            yield where, place[features[where]], self.estimators[number]

    @cached_property
    def perfect_fit(self) -> BoolArray:
        """Features that X and Z together explain exactly, shape (m,)."""
        result = np.zeros(self.m, dtype=bool)
        for group, estimator in zip(self.projection.groups, self.estimators, strict=True):
            result[group.features] = estimator.perfect_fit
        return result & self.projection.varies

    def batch_size(self, memory: int) -> int:
        """How many features may be evaluated at once within ``memory`` bytes."""
        return min((part.batch_size(memory) for part in self.estimators), default=1)

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Evaluate ``theta`` (B, k) for the features at the positions ``features`` (B,)."""
        result = Evaluation.empty(features.size, self.n_params)
        for where, local, estimator in self.split(features):
            result.put(where, estimator.evaluate(theta[where], local))
        return result

    def fixed_effects(self, theta: FloatArray, features: IntArray) -> tuple[FloatArray, FloatArray]:
        """`beta` and the variances of the fixed effects at theta, each shape (B, p)."""
        p = self.projection.p
        beta, variance = np.empty((features.size, p)), np.empty((features.size, p))
        for where, local, estimator in self.split(features):
            if isinstance(estimator, ResidualGroups | PresentGroups):
                beta[where], variance[where] = estimator.fixed_effects(theta[where], local)
                continue
            if isinstance(estimator, OwnRowsLikelihood | OwnResidualGroups):
                beta[where], C = estimator.fixed_effects(theta[where], local)
                variance[where] = np.diagonal(C, axis1=1, axis2=2)
                continue
            beta[where] = estimator.beta(theta[where], local)
            variance[where] = estimator.contrast_variance(theta[where], local, np.eye(p))
        return beta, variance

    @cached_property
    def first_start(self) -> FloatArray | None:
        """Where searches begin, (m, k + H), NaN for the default; None for that of all features."""
        found = [getattr(part, "first_start", None) for part in self.estimators]
        if all(start is None for start in found):
            return None
        result = np.full((self.m, self.n_params), np.nan)
        for group, start in zip(self.projection.groups, found, strict=True):
            if start is not None:
                result[group.features] = start
        return result

    def lost_in_rounding(self, theta: FloatArray, expected: FloatArray) -> BoolArray:
        """Whose scores of residual variances may be rounding alone, of all features, shape (m,)."""
        result = np.zeros(self.m, dtype=bool)
        for where, local, estimator in self.split(np.arange(self.m)):
            if isinstance(estimator, OwnResidualGroups):
                result[where] = estimator.lost_in_rounding(theta[where], expected[where], local)
            elif isinstance(estimator, ResidualGroups | PresentGroups):
                result[where] = estimator.lost_in_rounding(theta[where], expected[where])
        return result

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Fixed effects at theta, shape (B, p)."""
        result = np.empty((features.size, self.projection.p))
        for where, local, estimator in self.split(features):
            result[where] = estimator.beta(theta[where], local)
        return result

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        result = np.empty((features.size, L.shape[0]))
        for where, local, estimator in self.split(features):
            result[where] = estimator.contrast_variance(theta[where], local, L)
        return result

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p)."""
        result = np.empty((features.size, self.projection.p, self.projection.p))
        for where, local, estimator in self.split(features):
            result[where] = estimator.covariance(theta[where], local)
        return result

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Predictions of the random effects, with standard errors if asked for."""
        blup = np.empty((features.size, self.projection.structure.q))
        errors = None if se is None else np.empty_like(blup)
        for where, local, estimator in self.split(features):
            part = estimator.random_effects(theta[where], local, se)
            blup[where] = part.blup
            if errors is not None and part.se is not None:
                errors[where] = part.se
        return RandomEffects(blup, errors)

    def of(self, features: IntArray) -> FeatureRows:
        """The likelihoods of some features, one for each row of theta."""
        return FeatureRows(self, features)


@dataclass(frozen=True)
class _DesignRows:
    """Of the designs of some features what formulas for contrasts need."""

    structure: CovarianceStructure
    H: FloatArray
    XX_inverse: FloatArray


@dataclass(frozen=True)
class FeatureRows:
    """The likelihoods of certain features, one for each row of theta."""

    likelihood: PatternedLikelihood
    features: IntArray

    @cached_property
    def projection(self) -> _DesignRows:
        """H (B, q, p) and (X'X)^-1 (B, p, p) of the features."""
        owner = self.likelihood
        p = owner.projection
        H = np.empty((self.features.size, p.structure.q, p.p))
        XX_inverse = np.empty((self.features.size, p.p, p.p))
        for where, local, estimator in owner.split(self.features):
            if isinstance(estimator, (OwnRowsLikelihood, StackedLikelihood, OwnResidualGroups)):
                W = estimator.projection.whitening[local]
                own = isinstance(estimator, OwnResidualGroups)
                H[where] = estimator.H_of(local) if own else estimator.H(local)
                XX_inverse[where] = np.matmul(W, np.swapaxes(W, 1, 2))
            else:
                H[where] = estimator.projection.H
                XX_inverse[where] = estimator.projection.XX_inverse
        return _DesignRows(p.structure, H, XX_inverse)

    @cached_property
    def _groups(self) -> list[tuple[IntArray, Any]]:
        """Which features are in each group, and their likelihoods there."""
        groups = self.likelihood.split(self.features)
        return [(where, rows_of(estimator, local)) for where, local, estimator in groups]

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v with T = Z'PZ at theta for the rows of vectors (B, c, q), same shape."""
        if len(self._groups) == 1 and self._groups[0][0].size == self.features.size:
            return np.asarray(self._groups[0][1].apply_T(theta, vectors))
        result = np.empty_like(vectors)
        for where, one in self._groups:
            result[where] = one.apply_T(theta[where], vectors[where])
        return result

    def contrast_moments(
        self, theta: FloatArray, L: FloatArray, *, adjustment: bool
    ) -> ContrastMoments:
        """How the variances of hypotheses L (g, r, p) depend on theta (B, k)."""
        if self.likelihood.projection.sizes is None:
            return contrast_moments(self, theta, L, adjustment=adjustment)
        (g, r, _), (B, k) = L.shape, theta.shape
        total = ContrastMoments(
            np.empty((B, g, r, r)),
            np.empty((B, g, k, r, r)),
            np.empty((B, g, k, k, r, r)) if adjustment else None,
        )
        for where, one in self._groups:
            part = one.contrast_moments(theta[where], L, adjustment=adjustment)
            total.variance[where], total.gradient[where] = part.variance, part.gradient
            if total.adjustment is not None:
                total.adjustment[where] = part.adjustment
        return total

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        result = np.zeros(self.features.size, dtype=bool)
        for where, local, estimator in self.likelihood.split(self.features):
            result[where] = rows_of(estimator, local).is_definite(theta[where])
        return result

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """Smallest over largest eigenvalue of V, or of the error contrasts' covariance."""
        result = np.empty(self.features.size)
        for where, local, estimator in self.likelihood.split(self.features):
            result[where] = rows_of(estimator, local).distance_to_edge(theta[where])
        return result
