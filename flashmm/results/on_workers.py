"""Features fitted in partitions by the workers of a dask cluster."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from flashmm.arrays.blas import one_blas_thread
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError
from flashmm.likelihood import make_likelihood, project_any
from flashmm.results.fitted import attributes
from flashmm.results.fitting import FitPlan, fit_features
from flashmm.solvers.start import starting_rows
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["fit_on_workers"]

# Partitions depend on the statistics alone, so that the answer does not on the workers: about so
# many where there are features enough, and none with more bytes of statistics than dask likes to
# see in a task.
_PARTITIONS = 32
_LEAST = 64
_MOST_BYTES = 2**23


def fit_on_workers(
    client: Any,
    stats: SummaryStats | PatternedStats,
    plan: FitPlan,
    theta0: Any = None,
    residual: FloatArray | None = None,
) -> xr.Dataset:
    """Fit all features, some on each worker; see `flashmm.results.fitting.fit_features`.

    Every task carries the statistics of its features, so that it can be done again elsewhere when
    its worker is lost.

    Parameters
    ----------
    client
        A ``distributed.Client``.
    stats, plan, theta0, residual
        As in `fit_features`.
    """
    if not (hasattr(client, "submit") and hasattr(client, "nthreads")):
        raise InputError(
            "`client` must be a distributed.Client (pip install 'multilmm[dask]'), not "
            f"{type(client).__name__}."
        )
    if isinstance(stats, SummaryStats):
        stats = stats.ungrouped()
    rows = None
    if theta0 is not None:
        params = stats.structure.param_names
        rows = starting_rows(theta0, stats.m, params, stats.feature_names)
    pieces = list(_fitted(client, stats, plan, rows, residual))
    ds = xr.concat(
        pieces,
        "feature",
        data_vars="all",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="override",
    )
    ds.attrs = attributes(stats, plan.options)
    return ds


def _fitted(
    client: Any,
    stats: SummaryStats | PatternedStats,
    plan: FitPlan,
    rows: FloatArray | None,
    residual: FloatArray | None,
) -> Iterator[xr.Dataset]:
    """The fits of the partitions, in order; a few more are under way than there are threads."""
    waiting: deque[Any] = deque()
    try:
        own_rows = isinstance(stats, PatternedStats)
        design = None if own_rows else _submitted(client, _itself, stats.at(np.arange(0)))
        for features in _partitions(stats):
            if len(waiting) >= max(_PARTITIONS, 2 * sum(client.nthreads().values())):
                yield waiting.popleft().result()
            start = None if rows is None else rows[features]
            own = _own(stats, features)
            known = None if residual is None else residual[features]
            waiting.append(_submitted(client, _fit, design, own, plan, start, known))
        while waiting:
            yield waiting.popleft().result()
    finally:
        if waiting:
            client.cancel(list(waiting))


def _submitted(client: Any, function: Any, *arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        return client.submit(function, *arguments, pure=False)


def _partitions(stats: SummaryStats | PatternedStats) -> list[IntArray]:
    numbers = stats.p + stats.q
    if isinstance(stats, PatternedStats):  # a feature's design goes with it
        numbers += stats.p * numbers + stats.designs.rows.size
    largest = max(1, _MOST_BYTES // (8 * numbers))
    count = max(-(-stats.m // largest), min(_PARTITIONS, -(-stats.m // _LEAST)), 1)
    return np.array_split(np.arange(stats.m), count)


def _own(
    stats: SummaryStats | PatternedStats, features: IntArray
) -> dict[str, Any] | PatternedStats:
    """What of the statistics belongs to some features: all where designs are their own."""
    part = stats.at(features)
    if isinstance(part, PatternedStats):
        return part
    return {name: getattr(part, name) for name in ("XY", "ZY", "yy", "feature_names", "shift")}


# ---- on the workers ----------------------------------------------------------------------


def _itself(design: SummaryStats) -> SummaryStats:
    return design


def _fit(
    design: SummaryStats | None,
    own: dict[str, Any] | PatternedStats,
    plan: FitPlan,
    theta0: FloatArray | None,
    residual: FloatArray | None,
) -> xr.Dataset:
    if isinstance(own, PatternedStats):
        stats: SummaryStats | PatternedStats = own
    else:
        assert design is not None
        stats = replace(design, **own)
    with one_blas_thread():
        projection = project_any(stats, known_residual=plan.options.known_residual)
        likelihood = make_likelihood(projection, plan.options.method, plan.options.engine)
        return fit_features(stats, projection, likelihood, plan, theta0, residual).dataset
