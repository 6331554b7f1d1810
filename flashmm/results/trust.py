"""One line on tests that cannot be trusted: too few levels, boundary fits, an indefinite V."""

from __future__ import annotations

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.designs.design import INTERCEPT
from flashmm.inference.degrees_of_freedom import DEFAULT_DF, INTEGRATED, KNAPP_HARTUNG
from flashmm.inference.integrated.grid import is_covered
from flashmm.inference.integrated.scaling import FEWEST_FOLLOWED
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


def doubt(
    fitted: FittedModel,
    df: str = DEFAULT_DF,
    L: FloatArray | None = None,
    position: int | None = None,
) -> str:
    """Why tests of contrasts L (c, p), all coefficients by default, cannot be trusted.

    One line with what to use instead; empty where nothing is amiss. ``position``: of one feature.
    """
    if df in (INTEGRATED, KNAPP_HARTUNG):
        return ""
    status = fitted.array("status")
    status = status if position is None else status[[position]]
    found = []
    carrying = [
        term
        for term, carries in zip(fitted.stats.structure.terms, _carrying(fitted, L), strict=True)
        if carries
    ]
    fewest = min(carrying, key=lambda term: len(term.levels), default=None)
    if fewest and len(fewest.levels) < FEW_LEVELS:
        boundary = int((status == Status.BOUNDARY).sum())
        at = f" ({boundary} of {status.size} features are at the boundary)" * (boundary > 0)
        at = " (this feature is at the boundary)" if at and position is not None else at
        found.append(
            f"{fewest.group!r} has {len(fewest.levels)} levels: with fewer than {FEW_LEVELS}, "
            f"tests with df={df!r} of effects between them {_amiss(fitted, df)}{at}; "
            f"{_advice(fitted, df)}"
        )
    indefinite = int((status == Status.INDEFINITE).sum())
    if indefinite:
        which = f"{indefinite} features have" if position is None else "This feature has"
        tests = "their tests" if position is None else "its tests"
        found.append(
            f"{which} an indefinite V: do not rely on {tests}; parameter_space='psd' has none"
        )
    return ". ".join(found) + "." * bool(found)


def _amiss(fitted: FittedModel, df: str) -> str:
    """What is wrong with such tests where levels are few: see docs/calibration.md."""
    if df == "kenward-roger":
        return "reject too little"
    if df == "satterthwaite" and fitted.options.parameter_space == "unconstrained":
        return "hold their level in balanced designs only"
    return "reject too often in the tail"


def _advice(fitted: FittedModel, df: str) -> str:
    """What to use instead."""
    if fitted.options.known_residual:
        return "use df='knapp-hartung'"
    if fitted.options.residual_by:
        return "use df='kenward-roger', or read them as a ranking"
    m = (fitted if fitted.whole is None else fitted.whole).stats.m
    if m == 1:  # no other features to learn from
        if df == "kenward-roger" or fitted.stats.structure.curved is not None:
            return "bootstrap_test is the alternative"
        other = "df='kenward-roger', which rejects too little, or bootstrap_test"
        if fitted.options.parameter_space == "unconstrained":
            return f"in others use parameter_space='psd' with {other}"
        return f"use parameter_space='unconstrained' if the design is balanced, otherwise {other}"
    if not is_covered(fitted.stats.structure):
        return "read them as a ranking"
    learned = "use df='integrated', which learns from all features how much levels differ"
    if m < FEWEST_FOLLOWED:
        learned += f" ({m} are few: with prior= of a larger fit, if there is one)"
    return learned


def _carrying(fitted: FittedModel, L: FloatArray | None) -> list[bool]:
    """Whether the variance of any contrast rests on the effects of each random term.

    Contrasts L (c, p); all coefficients but the intercept by default. Of features with rows of
    their own the commonest design is looked at.
    """
    stats = fitted.stats
    if not isinstance(stats, SummaryStats):
        stats = stats.of_pattern(int(np.bincount(stats.pattern).argmax()))
    if L is None:
        L = np.eye(stats.p)[[name != INTERCEPT for name in stats.coef_names]]
    inverse = np.linalg.pinv(stats.XX, hermitian=True)
    fixed = ((L @ inverse) * L).sum(axis=1)
    loads = np.asarray(stats.ZX @ (inverse @ L.T))  # of the random effects on the estimates
    length = np.asarray(stats.ZZ.diagonal())[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(length > 0, loads * loads / length, 0.0)
    ends = np.cumsum([term.n_columns for term in stats.structure.terms])[:-1]
    parts = np.split(shares, ends) if stats.structure.terms else []
    return [bool((part.sum(axis=0) > _CARRIED * fixed).any()) for part in parts]
