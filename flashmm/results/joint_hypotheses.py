"""What a joint test is of: contrasts, terms of the formula, or several hypotheses with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flashmm.exceptions import InputError, listing
from flashmm.inference.contrasts import independent_rows, parse_contrasts
from flashmm.inference.names import coefficients_of, resolve_names
from flashmm.results.estimability import Hypothesis, estimable_contrasts
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["joint_hypotheses", "refuse_terms"]

Stats = SummaryStats | PatternedStats


def joint_hypotheses(stats: Stats, contrast: Any) -> dict[str, Hypothesis]:
    """Hypotheses by label: one, or where a dict has several contrasts under a name, one of each.

    A term of the formula stands for all of its coefficients.
    """
    several = isinstance(contrast, Mapping) and any(
        _is_joint(stats, value) for value in contrast.values()
    )
    if several:
        return {str(name): _one(stats, value)[1] for name, value in contrast.items()}
    label, hypothesis = _one(stats, contrast)
    return {label: hypothesis}


def _one(stats: Stats, contrast: Any) -> tuple[str, Hypothesis]:
    read = estimable_contrasts(stats, _with_terms(stats, contrast))
    contrasts = read.contrasts
    label = contrasts.labels[0] if len(contrasts.labels) == 1 else "joint"
    if isinstance(contrast, str) and _of_term(stats, contrast):
        label = contrast
    # That all coefficients are zero says that X beta is, whatever columns were left out.
    known = contrast is None or bool(read.estimable.all())
    if contrast is None and stats.aliased is not None:
        contrasts = parse_contrasts(None, stats.coef_names)
    return label, Hypothesis(*independent_rows(contrasts), known)


def _names(stats: Stats) -> Sequence[str]:
    """Names of all columns of X, those left out because of its rank included."""
    return stats.coef_names if stats.aliased is None else stats.aliased.names


def _of_term(stats: Stats, text: str) -> list[str]:
    """Coefficients of a term of the formula; none for what is a coefficient or no term."""
    names = _names(stats)
    for read in (resolve_names, coefficients_of):
        try:
            found = list(read(text.strip(), names))
        except InputError:
            continue
        return [] if read is resolve_names else [str(name) for name in found]
    return []


def _with_terms(stats: Stats, contrast: Any) -> Any:
    """A contrast with terms replaced by their coefficients."""
    if isinstance(contrast, str):
        return _of_term(stats, contrast) or contrast
    if isinstance(contrast, (list, tuple)) and any(isinstance(item, str) for item in contrast):
        parts = [
            (_of_term(stats, item) or [item]) if isinstance(item, str) else [item]
            for item in contrast
        ]
        return [item for part in parts for item in part]
    return contrast


def _is_joint(stats: Stats, value: Any) -> bool:
    """Whether what stands under a name is several contrasts."""
    if isinstance(value, str):
        return bool(_of_term(stats, value))
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, str) or np.ndim(item) > 0 for item in value)
    return np.ndim(value) == 2 or isinstance(value, Mapping)


def refuse_terms(stats: Stats, contrast: Any) -> None:
    """Raise where single contrasts are asked for by a term that has several coefficients."""
    asked = [contrast] if isinstance(contrast, str) else contrast
    if not isinstance(asked, (list, tuple)):
        if isinstance(contrast, Mapping):
            named = [name for name, value in contrast.items() if _is_joint(stats, value)]
            if named:
                raise InputError(
                    f"contrast {named[0]!r} is several contrasts. f_test tests them together: "
                    "f_test({name: [contrasts], ...}); t_test takes one for each name."
                )
        return
    for item in asked:
        found = _of_term(stats, item) if isinstance(item, str) else []
        if len(found) > 1:
            raise InputError(
                f"{item!r} is a term with the coefficients {listing(found)}. f_test({item!r}) "
                f"tests them together; t_test([{', '.join(map(repr, found[:2]))}]) one by one."
            )
