"""Formulas, a table of samples, Y and what goes beside it -> statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from flashmm.arrays.numeric import dimensions
from flashmm.designs.design import Design
from flashmm.designs.per_sample import per_sample
from flashmm.exceptions import InputError, MissingSamplesWarning, check_names, check_option, warn
from flashmm.formulas.build import DesignBuild, build_design
from flashmm.formulas.coding import OneLevelError, said_before
from flashmm.formulas.own_covariates import covariates_of_columns, refuse_in_factor, with_ones
from flashmm.sources import Source
from flashmm.sources.beside import Beside
from flashmm.sources.scans import missing_samples, normalised
from flashmm.stats.grouping import groups_in_use
from flashmm.stats.known_levels import known_structure, over_structure
from flashmm.stats.own_designs import OwnColumns
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.own_rows_sums import OwnTables, sum_by_pattern, sum_own_rows
from flashmm.stats.rank import of_full_rank
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["RANKS", "Handling", "Summed", "is_own", "sum_formulas"]

# What to do about columns of X that depend on others.
RANKS = ("raise", "drop")


@dataclass(frozen=True)
class Handling:
    """What is done to Y on the way, as the constructors of `MultiLMM` take it."""

    missing: Any = "raise"
    features: Any = None
    min_count: float | None = None
    min_fraction: float | None = None
    size_factors: Any = None
    target_sum: float | None = None
    weights: Any = None
    covariates: Mapping[str, Any] | None = None
    n_jobs: int | None = None
    progress: bool | None = None
    context: Mapping[str, Any] | None = field(default=None, repr=False)
    rank: Any = "raise"
    sums_by: Any = None
    covariances: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Summed:
    """Statistics, the design that they are of, and how many samples were left out."""

    stats: SummaryStats | PatternedStats
    design: Design
    n_dropped: int


@dataclass(frozen=True)
class _Beside:
    """Weights and covariates of the samples in use: (n,), or tables beside Y."""

    weights: Any
    covariates: tuple[Beside, ...]

    def restricted(self, keep: Any) -> _Beside:
        weights = self.weights
        if isinstance(weights, Beside):
            weights = weights.restricted(keep)
        elif weights is not None:
            weights = weights[keep]
        return _Beside(weights, tuple(table.restricted(keep) for table in self.covariates))


def sum_formulas(
    fixed: Any,
    random: Any,
    data: Any,
    source_for: Callable[[Any, int], Source],
    table_for: Callable[[Any, str, Source, Any], Beside],
    handling: Handling,
) -> Summed:
    """Build the design, drop what is missing, and sum.

    Parameters
    ----------
    fixed, random, data
        As in `MultiLMM.from_formula`.
    source_for
        Makes the source of Y from the index of the data and the number of samples.
    table_for
        Makes a table beside Y from its values, its name, the source and that index.
    handling
        Everything else.
    """
    missing, context = handling.missing, handling.context
    check_option("missing", missing, ("raise", "drop", "feature"))
    check_option("rank", handling.rank, RANKS)
    names = tuple(check_names("feature_covariates", handling.covariates, "values"))
    labels = getattr(data, "index", None)
    if names:
        data = with_ones(data, names)
    build = _built(fixed, random, data, handling)
    source = source_for(labels, len(build.dropped))
    if handling.features is not None:
        source = source.taking(handling.features)
    beside = _tables(data, source, labels, table_for, handling)
    factors = handling.size_factors
    if handling.target_sum is not None and not _is_total(factors):
        raise InputError("`target_sum` goes with size_factors='total'.")
    if factors is not None and not _is_total(factors):
        source = replace(source, size_factors=per_sample(factors, data, "size_factors"))
    dropped = build.dropped
    if missing == "drop":
        dropped = dropped | missing_samples(source)
    if missing != "raise" and dropped.all():
        raise InputError(
            f"All {dropped.size} samples have a missing value: nothing is left to fit."
        )
    grouping = groups_in_use(handling.sums_by, data, ~dropped)
    if dropped.any():
        source, beside = source.restricted(~dropped), beside.restricted(~dropped)
        data = pd.DataFrame(data).loc[~dropped]
        with said_before():
            build = _built(fixed, random, data, replace(handling, missing="raise"))
        warn(
            f"{int(dropped.sum())} of {dropped.size} samples have a missing value and were "
            "dropped for all features.",
            MissingSamplesWarning,
        )
    if _is_total(factors):
        if missing == "feature":
            raise InputError(
                "size_factors='total' needs samples without missing values. Pass the factors "
                "as an array."
            )
        source = normalised(source, handling.target_sum)
    design = build.design
    wanted = known_structure(design.structure, handling.covariances)
    options: dict[str, Any] = {
        "min_count": handling.min_count,
        "min_fraction": handling.min_fraction,
        "progress": handling.progress,
    }
    if names or isinstance(beside.weights, Beside):
        own = OwnColumns.none(len(design.coef_names))
        if names:
            of = covariates_of_columns(fixed, random, data, design, names, context)
            own = OwnColumns(names, of)
        tables = OwnTables(beside.weights, beside.covariates, own)
        options |= {"missing": missing == "feature", "grouping": grouping}
        stats: Any = sum_own_rows(source, design, tables, **options)
    else:
        sum_up: Any = sum_by_pattern if missing == "feature" else SummaryStats.from_design
        options |= {"workers": handling.n_jobs, "grouping": grouping, "weights": beside.weights}
        stats = sum_up(source, design, **options)
    return Summed(_ranked(over_structure(stats, wanted), handling), design, int(dropped.sum()))


def _ranked(stats: Any, handling: Handling) -> Any:
    return of_full_rank(stats) if handling.rank == "drop" else stats


def _built(fixed: Any, random: Any, data: Any, handling: Handling) -> DesignBuild:
    """The design of all samples but those with missing values in the data."""
    in_data: Any = "raise" if handling.missing == "raise" else "drop"
    context = handling.context
    known = tuple(check_names("covariances", handling.covariances, "covariance"))
    try:
        return build_design(fixed, random, data, context=context, missing=in_data, known=known)
    except OneLevelError as error:
        refuse_in_factor(error.factor, tuple(handling.covariates or {}))
        raise


def _tables(
    data: Any,
    source: Source,
    labels: Any,
    table_for: Callable[[Any, str, Source, Any], Beside],
    handling: Handling,
) -> _Beside:
    weights = handling.weights
    if is_own(weights, source):
        weights = table_for(weights, "weights", source, labels)
    else:
        weights = per_sample(weights, data, "weights")
    covariates = (handling.covariates or {}).items()
    return _Beside(weights, tuple(table_for(v, name, source, labels) for name, v in covariates))


def is_own(weights: Any, source: Source) -> bool:
    """Whether weights are those of each observation, (m, n), not one column of all samples'."""
    if weights is None or isinstance(weights, str):
        return False
    table = dimensions(weights) in (2, None)
    one_column = getattr(weights, "shape", None) == (source.n, 1) and min(source.n, source.m) > 1
    return bool(table and not one_column)


def _is_total(size_factors: Any) -> bool:
    return isinstance(size_factors, str) and size_factors == "total"
