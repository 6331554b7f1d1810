"""When a feature is done: its score in units of its own standard error, in every direction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flashmm.arrays.namespaces import Array, BoolArray, FloatArray, namespace
from flashmm.solvers.damping import last_digit
from flashmm.solvers.running_features import Objective, State
from flashmm.solvers.verdict_texts import Status

__all__ = ["scoring_step", "standardised_score", "verdicts", "within"]


def scoring_step(objective: Objective, state: State) -> FloatArray:
    """The best step within the space by the expected information, shape (B, k); E^-1 s inside."""
    if state.scoring is not None:
        return state.scoring
    at = state.evaluation
    return objective.space.step(state.theta, at.score, at.expected)


def standardised_score(objective: Objective, state: State) -> FloatArray:
    """Score in standard-error units, s_i / sqrt(E_ii), shape (B, k).

    In a constrained space the part of the score that the boundary holds in balance does not
    count: what counts is E d, with d the `scoring_step`. NaN where rounding at the edge of the
    likelihood's domain makes E_ii negative.
    """
    expected = state.evaluation.expected
    xp, step = namespace(expected), scoring_step(objective, state)
    left = xp.matmul(expected, step[:, :, None])[:, :, 0]
    with np.errstate(invalid="ignore"):
        return left / xp.sqrt(xp.linalg.diagonal(expected))


def within(objective: Objective, state: State, epsilon: float) -> BoolArray:
    """Which features are within epsilon standard errors of their maximum, shape (B,).

    By every component of the `standardised_score` s and by every linear combination of them: the
    largest of (l's) / sqrt(l'El) is sqrt(d'Ed), with d the `scoring_step`. Parameters that are
    almost collinear, at the edge of the likelihood's domain, make it much the larger of the two.
    Half of d'Ed is what the step promises to gain; less than the likelihood's rounding is nothing.
    """
    xp, at, step = namespace(state.theta), state.evaluation, scoring_step(objective, state)
    score = standardised_score(objective, replace(state, scoring=step))
    square = xp.sum(xp.matmul(at.expected, step[:, :, None])[:, :, 0] * step, axis=1)
    components = xp.max(xp.abs(score), axis=1) < epsilon
    return components & (square < epsilon**2 + 2.0 * (at.rounding + last_digit(at)))


def verdicts(objective: Objective, state: State, converged: BoolArray) -> Array:
    """`Status.CONVERGED`, or `Status.BOUNDARY` at the edge of the space, where converged."""
    xp = namespace(state.theta)
    boundary = objective.space.on_boundary(state.theta)
    codes = int(Status.CONVERGED) + (Status.BOUNDARY - Status.CONVERGED) * xp.astype(
        boundary, xp.int8
    )
    return xp.where(converged, codes, int(Status.RUNNING))
