"""One line on tests that cannot be trusted: too few levels, boundary fits, an indefinite V."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.inference.degrees_of_freedom import DEFAULT_DF, INTEGRATED, KNAPP_HARTUNG
from flashmm.inference.integrated.grid import is_covered
from flashmm.results.fitted import FittedModel
from flashmm.solvers.verdict_texts import Status
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["FEW_LEVELS", "doubt"]

# Below so many levels of a grouping factor Satterthwaite's tests reject too often far in the tail
# (docs/calibration.md).
FEW_LEVELS = 20
# A contrast is carried by the levels if a random effect as large as the error of a level's mean
# adds this share to its variance.
_CARRIED = 0.25


def doubt(fitted: FittedModel, df: str = DEFAULT_DF, L: FloatArray | None = None) -> str:
    """Why tests of contrasts L (c, p), all coefficients by default, cannot be trusted.

    One line with what to use instead; empty where nothing is amiss.
    """
    if df in (INTEGRATED, KNAPP_HARTUNG):
        return ""
    status = fitted.array("status")
    found = []
    terms = fitted.stats.structure.terms
    fewest = min(terms, key=lambda term: len(term.levels), default=None)
    if fewest and len(fewest.levels) < FEW_LEVELS and _is_carried(fitted, L):
        boundary = int((status == Status.BOUNDARY).sum())
        amiss = "reject too little" if df == "kenward-roger" else "reject too often in the tail"
        at = f" ({boundary} of {status.size} features are at the boundary)" * (boundary > 0)
        advice = "use df='integrated', which learns from all features how much levels differ"
        if fitted.options.known_residual:
            advice = "use df='knapp-hartung'"
        elif fitted.options.residual_by:
            advice = "use df='kenward-roger', or read them as a ranking"
        elif not is_covered(fitted.stats.structure):
            advice = "read them as a ranking"
        found.append(
            f"{fewest.group!r} has {len(fewest.levels)} levels: with fewer than {FEW_LEVELS}, "
            f"tests with df={df!r} of effects between them {amiss}{at}; {advice}"
        )
    indefinite = int((status == Status.INDEFINITE).sum())
    if indefinite:
        found.append(
            f"{indefinite} features have an indefinite V: do not rely on their tests; "
            "parameter_space='psd' has none"
        )
    return ". ".join(found) + "." * bool(found)


def _is_carried(fitted: FittedModel, L: FloatArray | None) -> bool:
    """Whether the variance of any contrast rests on the random effects."""
    if not isinstance(fitted.stats, SummaryStats):
        return True
    projection: Any = fitted.projection
    L = np.eye(fitted.stats.p) if L is None else L
    w = np.asarray(projection.H @ L.T)
    fixed = ((L @ projection.XX_inverse) * L).sum(axis=1)
    return bool(((w * w).sum(axis=0) > _CARRIED * fixed).any())
