"""Projected statistics of features with rows of their own: groups of them, pattern by pattern.

Features with a pattern that many share are projected as others are; those with rare patterns go
together, as a stack of designs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import InputError
from flashmm.likelihood.centring import Turn, advice, centring
from flashmm.likelihood.design_checks import check_sample_size
from flashmm.likelihood.own_rows.group_pieces import StackedGroups
from flashmm.likelihood.own_rows.layout import OwnLayout, find_layout
from flashmm.likelihood.own_rows.own_rows import OwnRowsLikelihood, well_posed
from flashmm.likelihood.own_rows.stacked_designs import (
    DesignStack,
    StackedProjection,
    weight_units,
)
from flashmm.likelihood.own_rows.turned import in_coordinates
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
from flashmm.likelihood.units import InUnits
from flashmm.stats.groups import sizes_by_group
from flashmm.stats.known_levels import RootMap, in_roots
from flashmm.stats.own_rows import PatternedStats

__all__ = ["Group", "PatternedProjection", "project_patterns"]

# A pattern with fewer features costs less in the stack than by itself.
_MANY = 8
_EPS = float(np.finfo(np.float64).eps)


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
