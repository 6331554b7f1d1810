"""Fisher scoring: the expected information turns the score into a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from flashmm.solvers.base import (
    Objective,
    State,
    definite_observed,
    scaled_by_information,
    standardised_score,
    verdicts,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["FisherScoring"]


@dataclass(frozen=True)
class FisherScoring:
    """Fisher scoring (Jennrich & Sampson 1976), FLASHMM's method.

    Parameters
    ----------
    epsilon
        A feature has converged when every component of its score, divided by its standard
        error sqrt(E_ii), is below epsilon; its estimate is then about epsilon standard errors
        from the maximum.
    newton_within
        Once every component of that score is below this, steps use the observed information
        where it is positive definite: scoring converges linearly, Newton's method
        quadratically. 0 keeps to scoring.
    """

    epsilon: float = 1e-5
    newton_within: float = 0.1

    def init(self, objective: Objective, theta0: FloatArray) -> State:
        """Evaluate the starting values."""
        return State(theta0, objective.evaluate(theta0), np.zeros_like(theta0))

    def step(self, objective: Objective, state: State) -> State:
        """Propose E^-1 score, or the best step within the space."""
        evaluation = state.evaluation
        step = objective.space.step(state.theta, evaluation.score, evaluation.expected)
        score = scaled_by_information(evaluation.expected, step)
        close = np.flatnonzero(np.abs(score).max(axis=1) < self.newton_within)
        near, observed = definite_observed(objective, state, close)
        if near.size:
            step[near] = objective.space.step(state.theta[near], evaluation.score[near], observed)
        return replace(state, step=step, standardised=score)

    def terminate(self, objective: Objective, state: State) -> NDArray[np.int8]:
        """Converged when the standardised score is below epsilon."""
        score = standardised_score(objective, state)
        return verdicts(objective, state, np.abs(score).max(axis=1) < self.epsilon)
