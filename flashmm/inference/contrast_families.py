"""Contrasts of means by the name of their family, as weights.

The families and their names are those of R's emmeans (Lenth); each has a plain name too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from math import gcd, lcm
from typing import Any

import numpy as np

from flashmm.arrays.labels import by_name
from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError, check_option, nearest

__all__ = ["CONTRASTS", "contrast_weights", "interaction_weights"]

Made = tuple[list[str], FloatArray]

CONTRASTS = (
    *("pairwise", "revpairwise", "trt.vs.ctrl", "trt.vs.ctrlk", "consec", "mean_chg"),
    *("poly", "eff", "del.eff", "identity"),
)
# Other names of the same: emmeans' own, and plain words.
_ALSO = {
    "tukey": "pairwise",
    "all pairs": "pairwise",
    "reverse pairwise": "revpairwise",
    "dunnett": "trt.vs.ctrl",
    "trt.vs.ctrl1": "trt.vs.ctrl",
    "treatment vs control": "trt.vs.ctrl",
    "against control": "trt.vs.ctrl",
    "against last": "trt.vs.ctrlk",
    "consecutive": "consec",
    "mean change": "mean_chg",
    "polynomial": "poly",
    "effect": "eff",
    "effects": "eff",
    "effect against others": "del.eff",
}
_DEGREES = ("linear", "quadratic", "cubic", "quartic")
# emmeans shows polynomial contrasts up to this degree.
_MAX_DEGREE = 6


def contrast_weights(contrast: Any, levels: Sequence[str], reference: Any = None) -> Made:
    """Contrasts of the means of some levels.

    Parameters
    ----------
    contrast
        A family:

        * ``"pairwise"`` (all pairs), ``"revpairwise"`` (the later minus the earlier);
        * ``"trt.vs.ctrl"`` (against control), ``"trt.vs.ctrlk"`` (the last level is the control);
        * ``"consec"`` (each level minus the one before), ``"mean_chg"`` (the mean of the later
          levels minus that of the earlier ones, at each step);
        * ``"poly"`` (orthogonal polynomials in the rank of the level, up to degree 6);
        * ``"eff"`` (each level minus the mean of all), ``"del.eff"`` (minus that of the others);
        * ``"identity"`` (the means themselves);

        or the user's own: a dict of label to weights, a table of levels x contrasts, or a function
        of the levels that gives either. Weights that carry labels are matched by them.
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
    >>> contrast_weights("polynomial", ["low", "mid", "high"])[1]
    array([[-1.,  0.,  1.],
           [ 1., -2.,  1.]])
    """
    L = len(levels)
    if callable(contrast):
        contrast = contrast(list(levels))
    if not isinstance(contrast, str):
        return _own(contrast, levels)
    family = _ALSO.get(contrast, contrast)
    if family not in CONTRASTS:
        check_option("contrast", contrast, (*CONTRASTS, *_ALSO))
    if reference is not None and family != "trt.vs.ctrl":
        raise InputError(
            f"`reference` is the control of contrast='trt.vs.ctrl'; {contrast!r} has none."
        )
    if family == "identity":
        return list(levels), np.eye(L)
    if L < 2:
        raise InputError(f"There is one mean ({levels[0]}); a contrast needs two.")
    if family in ("trt.vs.ctrl", "trt.vs.ctrlk"):
        return _against(levels, _control(levels, reference) if family == "trt.vs.ctrl" else L - 1)
    return _FAMILIES[family](list(levels))


def interaction_weights(
    interaction: Any, levels: Mapping[str, Sequence[str]], reference: Any = None
) -> Made:
    """Interaction contrasts: products of contrasts of each factor, as emmeans' ``interaction=``.

    Parameters
    ----------
    interaction
        One family for all factors, a sequence with one for each, or a dict by factor.
    levels
        Levels of each factor, in order; the last one's vary fastest among the means.
    reference
        The controls of ``"trt.vs.ctrl"``: one level for all such factors, or a dict by factor.

    Returns
    -------
    labels, weights
        Labels such as ``"A - B : linear"``; weights of shape (n_contrasts, n_means).

    Raises
    ------
    InputError
        If there is not one family for each factor.

    Examples
    --------
    >>> labels, weights = interaction_weights(
    ...     ["pairwise", "poly"], {"trt": ["A", "B"], "dose": ["1", "2"]})
    >>> labels, weights
    (['A - B : linear'], array([[-1.,  1.,  1., -1.]]))
    """
    chosen = _by_factor("interaction", interaction, levels)
    controls = _by_factor("reference", reference, levels, every=False)
    labels: list[str] = [""]
    weights: FloatArray = np.ones((1, 1))
    for name, own in levels.items():
        family = chosen[name]
        control = controls.get(name)
        takes = isinstance(family, str) and _ALSO.get(family, family) == "trt.vs.ctrl"
        if not isinstance(reference, Mapping) and not takes:
            control = None
        more, factor = contrast_weights(family, list(own), control)
        labels = [f"{a} : {b}" if a else b for a in labels for b in more]
        weights = np.asarray(np.kron(weights, factor))
    return labels, weights


def _by_factor(
    what: str, given: Any, levels: Mapping[str, Any], *, every: bool = True
) -> dict[str, Any]:
    """What belongs to each factor."""
    names = list(levels)
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                raise InputError(
                    f"`{what}` names {name!r}, which is none of the factors. "
                    f"{nearest(str(name), names)}"
                )
        absent = [name for name in names if name not in given]
        if every and absent:
            raise InputError(f"`{what}` lacks a family for {absent[0]!r}.")
        return dict(given)
    if every and isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != len(names):
            raise InputError(
                f"`{what}` has {len(given)} families, but there are {len(names)} factors: "
                f"{', '.join(names)}."
            )
        return dict(zip(names, given, strict=True))
    return dict.fromkeys(names, given)


# ---- the families ----------------------------------------------------------------------------


def _control(levels: Sequence[str], reference: Any) -> int:
    if reference is None:
        return 0
    if str(reference) not in levels:
        raise InputError(f"Unknown reference={reference!r}. {nearest(str(reference), levels)}")
    return list(levels).index(str(reference))


def _pairs(levels: Sequence[str], pairs: Sequence[tuple[int, int]]) -> Made:
    """Differences of two levels, the first minus the second."""
    weights = np.zeros((len(pairs), len(levels)))
    for position, (plus, minus) in enumerate(pairs):
        weights[position, plus], weights[position, minus] = 1.0, -1.0
    return [f"{levels[plus]} - {levels[minus]}" for plus, minus in pairs], weights


def _against(levels: Sequence[str], control: int) -> Made:
    return _pairs(levels, [(i, control) for i in range(len(levels)) if i != control])


def _pairwise(levels: list[str]) -> Made:
    return _pairs(levels, list(combinations(range(len(levels)), 2)))


def _revpairwise(levels: list[str]) -> Made:
    L = len(levels)
    return _pairs(levels, [(later, first) for later in range(L) for first in range(later)])


def _consecutive(levels: list[str]) -> Made:
    return _pairs(levels, [(i + 1, i) for i in range(len(levels) - 1)])


def _mean_change(levels: list[str]) -> Made:
    L = len(levels)
    weights = np.zeros((L - 1, L))
    for i in range(1, L):
        weights[i - 1, :i], weights[i - 1, i:] = -1.0 / i, 1.0 / (L - i)
    return [f"{levels[i]}|{levels[i + 1]}" for i in range(L - 1)], weights


def _effects(levels: list[str]) -> Made:
    L = len(levels)
    return [f"{level} effect" for level in levels], np.eye(L) - 1.0 / L


def _effects_of_others(levels: list[str]) -> Made:
    L = len(levels)
    weights = (np.eye(L) - 1.0 / L) * (L / (L - 1.0))
    return [f"{level} effect" for level in levels], weights


def _polynomials(levels: list[str]) -> Made:
    """Orthogonal polynomials in 1, ..., L with the smallest whole numbers for weights."""
    L = len(levels)
    highest = min(_MAX_DEGREE, L - 1)
    found: list[list[Fraction]] = [[Fraction(1)] * L]
    rows, labels = [], []
    for degree in range(1, highest + 1):
        # x times the one before, made orthogonal to all before it: Gram and Schmidt, exactly.
        row = [Fraction(i + 1) * value for i, value in enumerate(found[-1])]
        for other in found:
            share = Fraction(
                sum(a * b for a, b in zip(row, other, strict=True)), sum(a * a for a in other)
            )
            row = [a - share * b for a, b in zip(row, other, strict=True)]
        found.append(row)
        whole = [int(value * lcm(*(v.denominator for v in row))) for value in row]
        common = gcd(*whole)
        rows.append([value // common for value in whole])
        labels.append(_DEGREES[degree - 1] if degree <= len(_DEGREES) else f"degree {degree}")
    return labels, np.array(rows, dtype=float)


_FAMILIES: dict[str, Callable[[list[str]], Made]] = {
    "pairwise": _pairwise,
    "revpairwise": _revpairwise,
    "consec": _consecutive,
    "mean_chg": _mean_change,
    "poly": _polynomials,
    "eff": _effects,
    "del.eff": _effects_of_others,
}


# ---- the user's own --------------------------------------------------------------------------


def _own(contrast: Any, levels: Sequence[str]) -> Made:
    """The user's own weights: a dict by label, or a table of levels x contrasts."""
    if hasattr(contrast, "dims") and hasattr(contrast, "to_pandas"):
        contrast = contrast.to_pandas()
    if hasattr(contrast, "columns") and hasattr(contrast, "index"):
        contrast = {str(name): contrast[name] for name in contrast.columns}
    if not isinstance(contrast, Mapping):
        raise InputError(
            f"Unknown contrast={contrast!r}: give a family ({', '.join(CONTRASTS)}), a dict of "
            "label to weights, or a table of levels x contrasts."
        )
    L = len(levels)
    rows = {str(label): _weights(values, levels, label) for label, values in contrast.items()}
    for label, row in rows.items():
        if row.shape != (L,):
            raise InputError(
                f"Contrast {label!r} has {row.size} weights, but there are {L} means: "
                f"{', '.join(levels)}."
            )
        if not np.isfinite(row).all() or not row.any():
            raise InputError(f"Contrast {label!r} has weights that are all zero, or not finite.")
    if not rows:
        raise InputError("`contrast` is an empty dict: no contrast was given.")
    return list(rows), np.array(list(rows.values())).reshape(-1, L)


def _weights(values: Any, levels: Sequence[str], label: object) -> FloatArray:
    """Weights of the levels: in their order, or by name, those left out being 0."""
    named = by_name(values)
    if named is None:
        try:
            return np.asarray(values, dtype=float)
        except (TypeError, ValueError):
            raise InputError(f"The weights of contrast {label!r} are not numbers.") from None
    row = np.zeros(len(levels))
    for name, value in named.items():
        if str(name) not in levels:
            raise InputError(
                f"Contrast {label!r} names {str(name)!r}, which is none of the means. "
                f"{nearest(str(name), list(levels))}"
            )
        row[list(levels).index(str(name))] = value
    return row
