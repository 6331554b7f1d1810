"""Fits of other statistics with the options of an earlier fit: what a bootstrap repeats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.inference.draws import FeatureStreams, Sampler
from flashmm.inference.group_draws import GroupSampler
from flashmm.inference.own_draws import OwnSampler
from flashmm.likelihood import AnyProjection, make_likelihood, project_any
from flashmm.progress import Progress, counted
from flashmm.results.fitted import FitOptions
from flashmm.results.fitting import FitPlan, fit_features
from flashmm.solvers import SOLVERS
from flashmm.solvers.batches import usable_cores
from flashmm.solvers.fallback import fallback_of
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Progress", "ReplicateFits", "refit", "replicate_fits"]


@dataclass(frozen=True)
class ReplicateFits:
    """Fits of one batch of replicates.

    Parameters
    ----------
    rows
        Which features (F of them) were drawn.
    columns
        Which of their replicates (c of them).
    stats
        The F x c drawn statistics, the replicates of a feature side by side.
    ds, projection
        Their fits.
    """

    rows: IntArray
    columns: slice
    stats: SummaryStats | PatternedStats
    ds: xr.Dataset
    projection: AnyProjection


def refit(
    stats: SummaryStats | PatternedStats,
    options: FitOptions,
    theta0: Any = None,
    *,
    one_step: bool = False,
    residual: FloatArray | None = None,
    progress: Progress = False,
) -> tuple[xr.Dataset, AnyProjection]:
    """Fit statistics the way others were fitted, without warnings.

    Parameters
    ----------
    stats
        The statistics.
    options
        Those of the earlier fit. A solver that was given as an object is replaced by Fisher
        scoring: its settings are not kept.
    theta0
        Starting values, as in `MultiLMM.fit`.
    one_step
        Whether to take a single step from there, to a maximum or not.
    residual
        Known residual variances, shape (m,), by default the last of ``theta0``. They count only
        where those of the earlier fit were known: else they are estimated.
    progress
        Told of every batch of features.

    Returns
    -------
    tuple
        The Dataset of the results and the projected statistics.
    """
    projection = project_any(stats, known_residual=options.known_residual)
    if not options.known_residual:
        residual = None
    elif residual is None:
        residual = np.asarray(theta0, dtype=np.float64)[:, -1]
    likelihood = make_likelihood(projection, options.method, options.engine)
    name = options.solver if options.solver in SOLVERS else "fisher_scoring"
    solver = SOLVERS[name](epsilon=options.epsilon)
    fallback = fallback_of(name, options.parameter_space, options.epsilon)
    plan = FitPlan(options, solver, fallback, threads=usable_cores(), progress=progress)
    if one_step:
        once = replace(options, max_iter=1)
        plan = replace(plan, options=once, fallback=None, second_search=False)
    found = fit_features(stats, projection, likelihood, plan, theta0, residual)
    return found.dataset, projection


def replicate_fits(
    sampler: Sampler | OwnSampler | GroupSampler,
    theta: FloatArray,
    beta: FloatArray,
    n: int,
    streams: FeatureStreams,
    options: FitOptions,
    progress: Progress = None,
) -> Iterator[ReplicateFits]:
    """Draw and fit ``n`` replicates of each feature, in batches to the memory budget.

    Parameters
    ----------
    sampler
        Of the design, or of the F features' own.
    theta, beta
        Parameters, shapes (F, k) and (F, p); features with NaN are left out.
    n
        Replicates of each.
    streams
        Random numbers of the F features.
    options
        How to fit.
    progress
        Told of every batch.
    """
    rows = np.flatnonzero(np.isfinite(theta).all(axis=1) & np.isfinite(beta).all(axis=1))
    size = sampler.batch_size(options.memory)
    at_once, stride = max(1, size // n), min(size, n)
    batches = [
        (rows[start : start + at_once], slice(first, min(first + stride, n)))
        for start in range(0, rows.size, at_once)
        for first in range(0, n, stride)
    ]
    with counted(progress, rows.size * n, unit="fit", desc="replicates") as done:
        for here, columns in batches:
            count = columns.stop - columns.start
            drawn = sampler.at(here).draw(theta[here], beta[here], count, streams.take(here))
            ds, projection = refit(drawn, options, np.repeat(theta[here], count, axis=0))
            yield ReplicateFits(here, columns, drawn, ds, projection)
            done(here.size * count)
