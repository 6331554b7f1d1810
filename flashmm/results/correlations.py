"""Correlations of the random effects, with labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import InputError, check_option
from flashmm.inference.correlations import (
    Correlated,
    Tied,
    correlation,
    delta_limits,
    profile_limits,
)
from flashmm.inference.statistics import check_alpha
from flashmm.inference.tails import norm_isf
from flashmm.results.fitted import FittedModel

__all__ = ["profiled", "random_correlations"]


def random_correlations(
    fitted: FittedModel, positions: IntArray, alpha: float = 0.05, *, method: str = "delta"
) -> xr.Dataset:
    """Correlations with limits; see `MultiLMMResults.random_correlations`."""
    check_option("method", method, ("delta", "profile"))
    check_alpha(alpha)
    structure = fitted.stats.structure
    pairs = _pairs(structure)
    if method == "profile" and any(block.shape[0] > 2 for block in structure.blocks()):
        raise InputError(
            "Profiles of correlations are known for terms with two effects; this model has a term "
            'with more. Use method="delta".'
        )
    theta = fitted.values("theta", positions)
    # Correlations have no units, and squares of theta no room.
    relative = theta / fitted.projection.scale[positions, None]
    covariance = np.zeros(0)
    if pairs:
        covariance = fitted.on_request.theta_covariance(positions, relative=True)
    shape = positions.size, len(pairs)
    estimate, se, limits = (np.full((*shape, *more), np.nan) for more in ((), (), (2,)))
    for column, (_, at) in enumerate(pairs):
        found = correlation(relative, covariance, at)
        estimate[:, column], se[:, column] = found.estimate, found.se
        if method == "delta":
            limits[:, column] = delta_limits(found, alpha)
        else:
            with np.errstate(invalid="ignore", divide="ignore"):
                error = found.se / (1.0 - found.estimate**2)
            limits[:, column] = profiled(fitted, positions, error, at, alpha)
    dims = ("feature", "param")
    return xr.Dataset(
        {
            "estimate": (dims, estimate),
            "se": (dims, se),
            "lower": (dims, limits[..., 0]),
            "upper": (dims, limits[..., 1]),
        },
        coords={
            "feature": fitted.features[positions],
            "param": pd.Index([name for name, _ in pairs], dtype=object),
        },
        attrs={"method": method, "alpha": float(alpha)},
    )


def _pairs(structure: CovarianceStructure) -> list[tuple[str, Correlated]]:
    """The covariances by name, with the variances beside them."""
    variances = {(p.term, p.row): i for i, p in enumerate(structure.parameters) if p.is_variance}
    return [
        (p.name, Correlated(i, variances[p.term, p.row], variances[p.term, p.column]))
        for i, p in enumerate(structure.parameters)
        if not p.is_variance and structure.terms[p.term].curve is None
    ]


def profiled(
    fitted: FittedModel, positions: IntArray, se: FloatArray, at: Tied, alpha: float
) -> FloatArray:
    """Profile limits (B, 2) of a function of theta; NaN without a regular fit.

    They are of the likelihood that was fitted; ``se`` (B,) is the standard error of the function's
    z.
    """
    limits = np.full((positions.size, 2), np.nan)
    known = np.flatnonzero(fitted.on_request.known[positions] & fitted.converged[positions])
    chosen = positions[known]
    projection, likelihood = fitted.projection, fitted.likelihood
    turn = getattr(projection, "turn", None)

    def evaluate(rows: IntArray, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        features = chosen[rows]
        # Engines take features in ascending order.
        order = np.argsort(features, kind="stable")
        back = np.argsort(order, kind="stable")
        features, theta = features[order], theta[order]
        inside = theta if turn is None else theta @ turn.T.T
        unit = projection.units(features)
        found = likelihood.evaluate(inside / unit, features)
        score = found.score / unit
        score = score if turn is None else score @ turn.T
        information = projection.natural_information(found.expected, features)
        return found.loglik[back], score[back], information[back]

    structure = fitted.stats.structure
    kept = structure.is_variance & (fitted.options.parameter_space == "psd")
    goal = float(norm_isf(alpha / 2.0))
    size = max(1, min(known.size, likelihood.batch_size(fitted.options.memory) // 2))
    theta = fitted.values("theta", positions)
    for first in range(0, known.size, size):
        here = known[first : first + size]
        chosen = positions[here]
        limits[here] = profile_limits(evaluate, theta[here], se[here], at, kept, goal)
    return limits
