"""Averages over a reference grid and contrasts of them: weights, as numbers.

The rows of a marginal mean average the grid's rows of X, so every mean and contrast is linear in
beta (Searle, Speed & Milliken 1980; Lenth's emmeans).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from flashmm.arrays.labels import by_name
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError, check_option, nearest

__all__ = ["CONTRASTS", "averaging_weights", "contrast_weights"]

CONTRASTS = ("pairwise", "revpairwise", "trt.vs.ctrl", "consec", "eff")


def averaging_weights(target: IntArray, weight: FloatArray, n_targets: int) -> FloatArray:
    """Weights of the grid's points in each marginal mean; rows sum to one.

    Parameters
    ----------
    target
        The mean that each point of the grid belongs to, shape (n_points,).
    weight
        Weight of each point, not negative, shape (n_points,).
    n_targets
        Number of means.

    Returns
    -------
    ndarray (n_targets, n_points)
        NaN where all weights of a mean are zero.
    """
    weights = np.zeros((n_targets, target.size))
    weights[target, np.arange(target.size)] = weight
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def contrast_weights(
    contrast: Any, levels: Sequence[str], reference: str | None = None
) -> tuple[list[str], FloatArray]:
    """Contrasts of the means of some levels.

    Parameters
    ----------
    contrast
        ``"pairwise"``, ``"revpairwise"``, ``"trt.vs.ctrl"``, ``"consec"`` (each level minus the
        one before), ``"eff"`` (each level minus the mean of all), or a dict of label to weights.
    levels
        Labels of the L levels, in order.
    reference
        The control of ``"trt.vs.ctrl"``; the first level by default.

    Returns
    -------
    labels
        One per contrast.
    weights
        Shape (n_contrasts, L).

    Raises
    ------
    InputError
        If the contrast or its reference is unknown, or there is nothing to contrast.

    Examples
    --------
    >>> contrast_weights("trt.vs.ctrl", ["A", "B", "C"])[0]
    ['B - A', 'C - A']
    """
    L = len(levels)
    if isinstance(contrast, Mapping):
        rows = {str(label): _weights(values, levels, label) for label, values in contrast.items()}
        for label, row in rows.items():
            if row.shape != (L,):
                raise InputError(
                    f"Contrast {label!r} has {row.size} weights, but there are {L} means: "
                    f"{', '.join(levels)}."
                )
        return list(rows), np.array(list(rows.values())).reshape(-1, L)
    check_option("contrast", contrast, CONTRASTS)
    if L < 2:
        raise InputError(f"There is one mean ({levels[0]}); a contrast needs two.")
    if contrast == "eff":
        return [f"{level} effect" for level in levels], np.eye(L) - 1.0 / L
    if contrast == "trt.vs.ctrl":
        if reference is not None and reference not in levels:
            raise InputError(f"Unknown reference={reference!r}. {nearest(reference, levels)}")
        control = 0 if reference is None else list(levels).index(reference)
        pairs = [(i, control) for i in range(L) if i != control]
    elif contrast == "consec":
        pairs = [(i + 1, i) for i in range(L - 1)]
    else:
        pairs = list(combinations(range(L), 2))
        if contrast == "revpairwise":
            pairs = [(later, first) for first, later in pairs]
    weights = np.zeros((len(pairs), L))
    for position, (plus, minus) in enumerate(pairs):
        weights[position, plus], weights[position, minus] = 1.0, -1.0
    return [f"{levels[plus]} - {levels[minus]}" for plus, minus in pairs], weights


def _weights(values: Any, levels: Sequence[str], label: object) -> FloatArray:
    """Weights of the levels: in their order, or by name, those left out being 0."""
    named = by_name(values)
    if named is None:
        return np.asarray(values, dtype=float)
    row = np.zeros(len(levels))
    for name, value in named.items():
        if str(name) not in levels:
            raise InputError(
                f"Contrast {label!r} names {str(name)!r}, which is none of the means. "
                f"{nearest(str(name), list(levels))}"
            )
        row[list(levels).index(str(name))] = value
    return row
