"""Marginal means over a reference grid, and their contrasts, for every feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flashmm.arrays.types import IntArray
from flashmm.exceptions import InputError
from flashmm.results.contrast_results import TTestResults
from flashmm.results.fitted import FittedModel
from flashmm.results.reference_grid import contrast_tests, names_of, reference_grid

__all__ = ["marginal_means"]


def marginal_means(
    fitted: FittedModel,
    positions: IntArray,
    specs: str | Sequence[str],
    *,
    by: str | Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
    contrast: Any = None,
    interaction: Any = None,
    reference: Any = None,
    weights: str = "equal",
    context: Mapping[str, Any] | None = None,
    **options: Any,
) -> TTestResults:
    """Estimated marginal means, or their contrasts; see `MultiLMMResults.marginal_means`."""
    recipe = fitted.known_recipe()
    kept = names_of(specs, "specs")
    grid = reference_grid(recipe, kept, names_of(by, "by"), at, weights)
    if not kept:
        raise InputError("`specs` is empty; name the columns whose levels get a mean.")
    # The offset is the last column, whose coefficient is one: its mean, as in emmeans, or its value
    # at what `at` says of its columns.
    offset = np.full(len(grid.table), recipe.offset_mean)
    if grid.sets_offset:
        offset = fitted.offset_rows(grid.table, context)
    rows = np.column_stack([fitted.fixed_rows(grid.table, context), offset])
    return contrast_tests(
        fitted,
        positions,
        grid,
        rows,
        grid.labels(kept),
        contrast=contrast,
        interaction=interaction,
        reference=reference,
        options=options,
    )
