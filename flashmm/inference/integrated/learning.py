"""The prior that the features of a fit share, learned from all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import special

from flashmm.arrays.blas import one_blas_thread
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.inference.integrated.grid import RatioGrid, covering_grid
from flashmm.inference.integrated.integration import (
    AnyPart,
    Integration,
    integrate,
    moderated_variance,
    within_variance,
)
from flashmm.inference.integrated.posterior import log_evidence, share_of_prior
from flashmm.inference.integrated.prior import ADDED_FEATURES, learn_weights
from flashmm.inference.integrated.scaling import learn_slope, moved_likelihood
from flashmm.inference.moderation import VariancePrior, variance_prior
from flashmm.progress import Progress, counted

__all__ = ["grid_of", "learn"]

# The largest ratios looked at are so many times the largest estimate, and between these multiples
# of the ratio that doubles the variance of a typical random effect's estimate.
_LEAST_REACH, _MOST_REACH = 2.0, 200.0
_LEAST_HIGHEST, _MOST_HIGHEST = 30.0, 1e6
# The largest where no feature tells one.
_UNKNOWN = 1e4
# Chance that one feature's estimate is so much smaller than its ratio that the grid ends below it.
_MISSED = 0.005


def grid_of(parts: Sequence[AnyPart], sigma2: VariancePrior | None) -> RatioGrid:
    """A grid that covers the ratios of all features.

    It ends some way beyond the largest of the features' estimates u'A_iu / (tr(A_i^2) sigma2),
    which are too large where there are several components; see `_reach`.
    """
    structure = parts[0].structure
    k = len(structure.parameters)
    m = sum(int(part.known.sum()) for part in parts)
    units, highest = np.full(k, np.inf), np.zeros(k)
    for part in parts:
        pooled, df = part.within()
        if sigma2 is not None:
            share = share_of_prior(sigma2.df[part.members], df)
            pooled = share * sigma2.variance[part.members] + (1.0 - share) * pooled
        found = part.ratios(pooled / part.scale)
        largest = _reach(found.degrees, m) * found.largest
        largest = np.where(np.isnan(largest), _UNKNOWN * found.typical, largest)
        ends = _LEAST_HIGHEST * found.typical, _MOST_HIGHEST * found.typical
        top = np.clip(largest, *ends) * found.unit
        units = np.minimum(units, np.atleast_2d(found.typical * found.unit).min(axis=0))
        highest = np.maximum(highest, np.atleast_2d(top).max(axis=0))
    return covering_grid(structure, units, highest)


def _reach(degrees: FloatArray, m: int) -> FloatArray:
    """How many times the largest estimate a grid reaches.

    An estimate is about chi2_v / v times its ratio. With one feature on v = 2 degrees of freedom it
    is half of it or less in four of ten cases: a grid that ended at twice the estimate would rule
    out what is likely, and the tests would be liberal. The largest of many estimates is far up
    already, and its reach falls to two at 200 features.
    """
    v = np.maximum(np.nan_to_num(degrees, nan=1.0), 1.0)
    missed = _MISSED ** (max(m, 1) ** (-1.0 / 3.0))
    return np.asarray(np.clip(v / special.chdtri(v, 1.0 - missed), _LEAST_REACH, _MOST_REACH))


def learn(
    parts: Sequence[AnyPart],
    m: int,
    memory: int,
    *,
    covariate: FloatArray | None = None,
    robust: bool = False,
    grid: RatioGrid | None = None,
    added: float = ADDED_FEATURES,
    progress: Progress = None,
) -> Integration:
    """Learn the prior from all features.

    Parameters
    ----------
    parts
        The designs with their features.
    m
        Number of features.
    memory
        Bytes to work in.
    covariate, robust
        As in `flashmm.inference.moderation.variance_prior`.
    grid
        Ratios; those that cover the features by default.
    added
        Features that the grid's base weights count as.
    progress
        Told of the features whose likelihoods are known; learning from them takes as long again.

    Raises
    ------
    InputError
        If the model has too many parameters for a grid.
    """
    variance, df = within_variance(parts, m)
    # Without residual degrees of freedom, or with one feature, sigma2 is not moderated.
    sigma2 = VariancePrior(np.ones(m), np.zeros(m), 0.0)
    if (np.isfinite(variance) & (df > 0)).sum() > 1:
        sigma2 = variance_prior(variance, df, covariate=covariate, robust=robust)
    grid = grid_of(parts, sigma2) if grid is None else grid
    start = integrate(parts, m, memory, grid, grid.base, sigma2)
    every = _every(start)
    total = sum(len(range(0, int(part.known.sum()), every)) for part in start.parts)
    counting = counted(progress, total, unit="feature", desc="prior of the ratios")
    with one_blas_thread(), counting as done:
        chunks = []
        for here, values in _likelihoods(start, every):
            chunks.append((here, values))
            done(here.size)
        likelihood = [values for _, values in chunks]
        order = np.concatenate([features for features, _ in chunks] or [np.zeros(0, np.intp)])
        del chunks
        variance = moderated_variance(parts, sigma2)[order]
        following = learn_slope(grid, likelihood, variance, added)
        if following.slope != 0.0:
            ends = np.cumsum([len(values) for values in likelihood])
            steps = np.split(following.steps(variance), ends[:-1])
            for chunk, here in enumerate(steps):  # in place: there may be no room for two
                likelihood[chunk] = moved_likelihood(grid, likelihood[chunk], here)
        weights = learn_weights(likelihood, grid.base, added=added)
    return replace(start, weights=weights, following=following)


def _every(start: Integration) -> int:
    """Likelihoods of every k-th feature fit into the memory: k."""
    most = max(1, start.memory // 2 // (8 * start.shared[0].grid.size))
    return max(1, -(-int(start.known.sum()) // most))


def _likelihoods(start: Integration, every: int) -> Iterator[tuple[IntArray, FloatArray]]:
    """Every k-th feature, in chunks, with the likelihoods of the grid points."""
    designs: tuple[Any, ...] = start.shared
    for part, design in zip(start.parts, designs, strict=True):
        local = np.flatnonzero(part.known)[::every]
        chunk = start.chunk(design, 1)
        for begin in range(0, local.size, chunk):
            here = local[begin : begin + chunk]
            everywhere = part.members[here]
            data = design.features(here)
            log = log_evidence(
                design.quadratic_forms(data),
                design.log_dets(data),
                design.degrees(data),
                start.sigma2.df[everywhere],
                start.sigma2.variance[everywhere] / part.scale[here],
            )
            finite = np.isfinite(log).all(axis=1)
            yield everywhere[finite], np.exp(log[finite])
