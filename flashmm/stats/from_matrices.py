"""Matrices, or sums made before -> statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flashmm.designs.design import Design
from flashmm.designs.from_arrays import as_structure, design_and_source, weights_of
from flashmm.exceptions import InputError, check_option, listing, nearest
from flashmm.sources import Transform
from flashmm.sources.beside import beside
from flashmm.stats.from_formulas import RANKS, is_own
from flashmm.stats.grouping import grouping_of
from flashmm.stats.known_levels import known_structure, over_structure
from flashmm.stats.own_designs import OwnColumns
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.own_rows_sums import OwnTables, sum_by_pattern, sum_own_rows
from flashmm.stats.rank import of_full_rank
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["relabelled", "sum_matrices"]


def sum_matrices(
    Y: Any,
    X: ArrayLike,
    Z: Any,
    *,
    components: Any,
    transform: Transform,
    feature_names: Sequence[object] | None,
    coef_names: Sequence[str] | None,
    weights: Any,
    feature_covariates: Mapping[str, Any],
    missing: str,
    rank: str,
    sums_by: Any,
    covariances: Mapping[str, Any] | None,
) -> SummaryStats | PatternedStats:
    """Statistics of features x samples, X (n, p) and Z (n, q); see `MultiLMM.from_arrays`."""
    if missing not in ("raise", "feature"):
        options = ["raise", "feature"]
        raise InputError(f"Unknown missing={missing!r}. {nearest(str(missing), options)}")
    check_option("rank", rank, RANKS)
    precision: Any
    design, source, samples = design_and_source(
        Y, X, Z, components, coef_names, transform, feature_names
    )
    own = is_own(weights, source)
    structure = known_structure(design.structure, covariances)
    grouping = None
    if sums_by is not None:
        grouping = grouping_of(sums_by, None, np.ones(design.n, dtype=bool), samples)
    precision = None if own else weights_of(weights, design, samples)
    if own or feature_covariates:
        if own:
            precision = beside(weights, "weights", source, samples)
        tables = OwnTables(
            precision,
            tuple(
                beside(values, name, source, samples) for name, values in feature_covariates.items()
            ),
            OwnColumns.none(len(design.coef_names)),
        )
        design, tables = _with_own_columns(design, tables, tuple(feature_covariates))
        own_sums = sum_own_rows(
            source, design, tables, missing=missing == "feature", grouping=grouping
        )
        return _ranked(over_structure(own_sums, structure), rank)
    sum_up: Any = sum_by_pattern if missing == "feature" else SummaryStats.from_design
    stats = sum_up(source, design, weights=precision, grouping=grouping)
    return _ranked(over_structure(stats, structure), rank)


def relabelled(
    stats: SummaryStats | PatternedStats | Mapping[str, Any],
    *,
    components: Any,
    feature_names: Sequence[object] | None,
    coef_names: Sequence[str] | None,
    rank: str,
    covariances: Mapping[str, Any] | None,
) -> SummaryStats | PatternedStats:
    """Statistics under other names and components; see `MultiLMM.from_summary_stats`."""
    check_option("rank", rank, RANKS)
    if isinstance(stats, PatternedStats) and components is feature_names is coef_names is None:
        known = known_structure(stats.structure, covariances)
        return _ranked(over_structure(stats, known), rank)
    if isinstance(stats, Mapping):
        stats = _stats_from_mapping(stats)
    if not isinstance(stats, SummaryStats):
        raise InputError(
            "`stats` must be a SummaryStats or a mapping with n, XX, XY, ZX, ZY, ZZ and yy; "
            f"it is {type(stats).__name__}."
        )
    structure = stats.structure if components is None else as_structure(components, stats.q)
    if coef_names is not None and stats.aliased is not None:
        stats = stats.noting(stats.aliased.renamed(coef_names))
    if components is not None and stats.groups is not None:
        raise InputError(
            "`components` cannot change where sums are kept by group: build the statistics "
            "with them, or pass stats.ungrouped()."
        )
    labels: dict[str, Any] = {
        "feature_names": stats.feature_names if feature_names is None else feature_names,
        "coef_names": stats.coef_names if coef_names is None else coef_names,
        "numbered": stats.numbered and feature_names is None,
    }
    groups = stats.of_groups(lambda part: replace(part, **labels))
    named = replace(stats, structure=structure, groups=groups, **labels)
    known = known_structure(named.structure, covariances)
    return _ranked(over_structure(named, known), rank)


def _ranked(stats: SummaryStats | PatternedStats, rank: str) -> SummaryStats | PatternedStats:
    return of_full_rank(stats) if rank == "drop" else stats


def _with_own_columns(
    design: Design, tables: OwnTables, names: tuple[str, ...]
) -> tuple[Design, OwnTables]:
    """A design with a further column for each covariate of the features' own."""
    X = np.hstack([np.asarray(design.X[: design.n]), np.ones((design.n, len(names)))])
    of = tables.own.of + tuple((i,) for i in range(len(names)))
    repeated = set(names) & set(design.coef_names)
    if repeated:
        raise InputError(f"X and `feature_covariates` both have {listing(sorted(repeated))}.")
    design = replace(design, X=X, coef_names=(*design.coef_names, *names))
    return design, replace(tables, own=OwnColumns(names, of))


def _stats_from_mapping(values: Mapping[str, Any]) -> SummaryStats:
    names = dict(values)
    if "Ynorm" in names:
        names["yy"] = names.pop("Ynorm")
    required = ("n", "XX", "XY", "ZX", "ZY", "ZZ", "yy")
    absent = [name for name in required if name not in names]
    if absent:
        raise InputError(f"`stats` lacks {listing(absent)}; it needs {listing(required, 7)}.")
    known = set(SummaryStats.__dataclass_fields__)
    return SummaryStats(**{name: value for name, value in names.items() if name in known})
