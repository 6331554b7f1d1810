"""Contrasts over all columns of X, and which of them the samples determine.

Where columns of X were left out because they depend on others (``rank="drop"``), contrasts may name
any column, and one outside the row space of X has no answer: it is NaN, and said to be so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flashmm.arrays.types import BoolArray, FloatArray
from flashmm.exceptions import InputError, listing
from flashmm.inference.contrasts import Contrasts, parse_contrasts
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

__all__ = [
    "NOT_ESTIMABLE",
    "EstimableContrasts",
    "EstimableRows",
    "Hypothesis",
    "estimable_contrasts",
    "estimable_rows",
    "only_estimable",
]

NOT_ESTIMABLE = "not estimable"


@dataclass(frozen=True)
class EstimableContrasts:
    """Contrasts over the coefficients of a fit.

    Parameters
    ----------
    contrasts
        Their weights, shape (c, p); of no use where they are not estimable.
    estimable
        Which of them the samples determine, shape (c,).
    """

    contrasts: Contrasts
    estimable: BoolArray


@dataclass(frozen=True)
class EstimableRows:
    """Rows over the coefficients of a fit, shape (c, p), and which are estimable, shape (c,)."""

    rows: FloatArray
    estimable: BoolArray


@dataclass(frozen=True)
class Hypothesis:
    """L beta = values: independent contrasts (r, p), values (r,), and whether it is estimable."""

    L: FloatArray
    values: FloatArray
    estimable: bool = True


def estimable_contrasts(stats: SummaryStats | PatternedStats, contrast: Any) -> EstimableContrasts:
    """Read contrasts in any form that `flashmm.inference.contrasts.parse_contrasts` takes.

    Vectors and matrices have one number per coefficient of the fit, or per column of X.
    """
    aliased = stats.aliased
    if aliased is None:
        parsed = parse_contrasts(contrast, stats.coef_names)
        return EstimableContrasts(parsed, np.ones(len(parsed.labels), dtype=bool))
    if contrast is None or _width(contrast) == stats.p:
        parsed = parse_contrasts(contrast, stats.coef_names)
        whole = aliased.completed(parsed.matrix)
    else:
        parsed = parse_contrasts(contrast, aliased.names)
        whole = parsed.matrix
    split = estimable_rows(stats, whole)
    return EstimableContrasts(Contrasts(split.rows, parsed.values, parsed.labels), split.estimable)


def estimable_rows(stats: SummaryStats | PatternedStats, rows: FloatArray) -> EstimableRows:
    """Rows over all columns of X (c, p + d), over the coefficients of the fit."""
    aliased = stats.aliased
    if aliased is None:
        return EstimableRows(rows, np.ones(rows.shape[0], dtype=bool))
    estimable = aliased.estimable(rows)
    kept = rows[:, aliased.kept].copy()
    kept[~estimable] = np.eye(1, kept.shape[1])  # any row that can be computed with
    return EstimableRows(kept, estimable)


def only_estimable(stats: SummaryStats | PatternedStats, contrast: Any, what: str) -> Contrasts:
    """Contrasts, all of them estimable; an error names those that are not."""
    found = estimable_contrasts(stats, contrast)
    if not found.estimable.all():
        labels = [
            label
            for label, known in zip(found.contrasts.labels, found.estimable, strict=True)
            if not known
        ]
        raise InputError(
            f"{what} needs a contrast that the samples determine; {listing(labels)} "
            f"{'is' if len(labels) == 1 else 'are'} {NOT_ESTIMABLE}: columns of `fixed` depend on "
            "each other."
        )
    return found.contrasts


def _width(contrast: Any) -> int:
    """Numbers per contrast of a vector or matrix without labels; -1 for anything else."""
    if isinstance(contrast, (str, dict, pd.Series, pd.DataFrame)):
        return -1
    values = contrast.matrix if isinstance(contrast, Contrasts) else contrast
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return -1
    return int(array.shape[-1]) if array.ndim in (1, 2) else -1
