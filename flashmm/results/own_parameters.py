"""Own parameters of structures that are not linear in them: ar1, exp, cs with sds.

Standard deviations and correlations, for ``exp`` the range in its place, exp(-distance / range).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.curves import Decay, distances
from flashmm.designs.design import CovarianceStructure, RandomTerm
from flashmm.inference.tails import norm_isf
from flashmm.results.fitted import FittedModel

__all__ = ["OwnParameter", "own_estimates", "shown_own", "unit_notes"]


@dataclass(frozen=True)
class OwnParameter:
    """Estimates of one own parameter.

    Parameters
    ----------
    name
        ``"g"``, ``"g[rho]"``, ``"g[range]"`` or ``"g[f[a]]"``.
    kind
        ``"sd"``, ``"correlation"`` or ``"range"``.
    term
        The name of its term.
    values
        Estimate, standard error and limits, shape (B, 4).
    unit
        That of a range, ``"days"``, or the steps that a correlation falls in; empty where times
        are numbers.
    """

    name: str
    kind: str
    term: str
    values: FloatArray
    unit: str = ""


def own_estimates(fitted: FittedModel, positions: IntArray, alpha: float) -> Iterator[OwnParameter]:
    """Own parameters of the terms that are not linear in them, with limits by the delta method."""
    structure = fitted.stats.structure
    curved = structure.curved
    if curved is None:
        return
    values, spread = fitted.on_request.own_parameters(positions)
    half = float(norm_isf(alpha / 2.0))
    parts = list(curved.parts())[: len(structure.terms)]
    for term, (curve, _, own) in zip(structure.terms, parts, strict=True):
        if curve is None:
            continue
        names = structure.own_names[own]
        error = np.sqrt(np.maximum(np.diagonal(spread, axis1=1, axis2=2)[:, own], 0.0))
        error = np.where(error > 0, error, np.nan)  # at a bound
        at = values[:, own]
        sds = at[:, :-1]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            if isinstance(curve, Decay):
                sds = np.sqrt(np.where(sds >= 0, sds, np.nan))
                error[:, :-1] /= 2.0 * sds
            error[:, :-1][~(sds > 0)] = np.nan
            for i in range(sds.shape[1]):  # effects
                sd, se = sds[:, i], error[:, i]
                part = half * se / sd
                limits = [sd * np.exp(-part), sd * np.exp(part)]
                yield OwnParameter(names[i], "sd", term.name, np.stack([sd, se, *limits], axis=1))
            rho, se = at[:, -1], error[:, -1]
            if term.covariance == "exp":
                yield _range(term, rho, se, half)
                continue
            lowest = curve.bounds[0][-1]
            z = 0.5 * np.log((rho - lowest) / (1.0 - rho))
            z_se = se * 0.5 * (1.0 - lowest) / ((rho - lowest) * (1.0 - rho))
            ends = [np.exp(2.0 * (z + side * half * z_se)) for side in (-1.0, 1.0)]
            limits = [np.where(np.isinf(e), 1.0, (lowest + e) / (1.0 + e)) for e in ends]
        found = np.stack([rho, se, *limits], axis=1)
        yield OwnParameter(names[-1], "correlation", term.name, found, term.unit)


def _range(term: RandomTerm, rho: FloatArray, se: FloatArray, half: float) -> OwnParameter:
    """The range of exponential decay from the correlation of the closest: -d / log(rho)."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        step = float(distances(term.positions)[0][1])
        reach = np.where(rho > 0, -step / np.log(rho), np.where(rho == 0, 0.0, np.nan))
        reach = np.where(rho >= 1.0, np.inf, reach)
        error = se * step / (rho * np.log(rho) ** 2)
        part = half * error / reach
        limits = [reach * np.exp(-part), reach * np.exp(part)]
    values = np.stack([reach, error, *limits], axis=1)
    return OwnParameter(f"{term.name}[range]", "range", term.name, values, term.unit)


def unit_notes(structure: CovarianceStructure) -> list[str]:
    """Sentences on the units of random terms along dates and the like."""
    return [
        f"The range of {term.name} is in {term.unit}."
        if term.covariance == "exp"
        else f"The correlation of {term.name} falls in {term.unit}."
        for term in structure.terms
        if term.unit
    ]


def shown_own(
    structure: CovarianceStructure, names: list[str], theta: FloatArray
) -> tuple[list[str], FloatArray]:
    """Names and values (B, k) of theta with own parameters in the place of curves.

    Variances, correlations and ranges.
    """
    curved = structure.curved
    if curved is None:
        return names, theta
    shown: list[str] = []
    columns: list[FloatArray] = []
    parts = list(curved.parts())
    for term, (curve, linear, _) in zip([*structure.terms, None], parts, strict=True):
        if curve is None or term is None:
            shown += names[linear]
            columns += list(theta[:, linear].T)
            continue
        own = curve.own(theta[:, linear])
        count = own.shape[1] - 1
        shown += names[linear][:count]
        columns += list((own[:, :-1] if isinstance(curve, Decay) else own[:, :-1] ** 2).T)
        rho = own[:, -1]
        if term.covariance == "exp":
            found = _range(term, rho, np.full(rho.shape, np.nan), 0.0)
            shown.append(found.name)
            columns.append(found.values[:, 0])
        else:
            shown.append(f"{term.name}[rho]")
            columns.append(rho)
    return shown, np.stack(columns, axis=1)
