"""Statistics and a plan -> the Dataset of the results: likelihood, start, solver, labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashmm.exceptions import InputError
from flashmm.likelihood import PatternedProjection, on_device
from flashmm.results.assemble import assemble_dataset
from flashmm.solvers.batches import maximise_in_batches
from flashmm.solvers.restart import second_starts
from flashmm.solvers.space import make_space
from flashmm.solvers.start import starting_values

if TYPE_CHECKING:
    import xarray as xr

    from flashmm.likelihood import AnyEstimator, AnyProjection
    from flashmm.results.fitted import FitOptions
    from flashmm.solvers.base import Solver
    from flashmm.stats.own_rows import PatternedStats
    from flashmm.stats.summary_stats import SummaryStats

__all__ = ["FitPlan", "fit_features"]


@dataclass(frozen=True)
class FitPlan:
    """How to fit.

    Parameters
    ----------
    options
        What the results keep; the name of the engine that was chosen among it.
    solver
        The solver.
    fallback
        What goes on with features that it leaves unfinished; None for nothing.
    threads
        Threads that fit batches of features.
    device
        Device of PyTorch that computes the likelihood; None for numpy.
    second_search
        Whether features that come from the default start to variances of zero or below are
        searched again.
    """

    options: FitOptions
    solver: Solver
    fallback: Solver | None = None
    threads: int = 1
    device: Any = None
    second_search: bool = True


def fit_features(
    stats: SummaryStats | PatternedStats,
    projection: AnyProjection,
    likelihood: AnyEstimator,
    plan: FitPlan,
    theta0: Any = None,
) -> xr.Dataset:
    """Fit all features of some statistics, without warnings.

    Parameters
    ----------
    stats, projection, likelihood
        Statistics, projected off X, and their likelihood.
    plan
        How to fit.
    theta0
        Starting values, as in `MultiLMM.fit`.
    """
    options, structure = plan.options, stats.structure
    space = make_space(
        options.parameter_space,
        structure.blocks(),
        len(structure.param_names),
        (*structure.block_levels(), stats.n),
    )
    threads: int | None = plan.threads
    if plan.device is not None:
        if isinstance(projection, PatternedProjection):
            raise InputError("`device` needs features that have the same samples.")
        likelihood = on_device(projection, options.method, options.engine, plan.device)
        threads = None  # PyTorch has its own, and large batches suit it
    start = starting_values(likelihood, projection, space, theta0, stats.feature_names)
    again = second_starts(start, structure.is_variance) if plan.second_search else None
    solution = maximise_in_batches(
        likelihood,
        space,
        plan.solver,
        start.theta,
        projection.varies & ~likelihood.perfect_fit,
        max_iter=options.max_iter,
        memory=options.memory,
        n_jobs=threads,
        fallback=plan.fallback,
        again_from=again,
    )
    return assemble_dataset(stats, projection, likelihood, solution, options, n_jobs=threads)
