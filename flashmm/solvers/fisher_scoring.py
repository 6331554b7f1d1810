"""Fisher scoring: the expected information turns the score into a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from flashmm.solvers.base import Objective, State, information_times_step, verdicts

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
    """

    epsilon: float = 1e-5

    def init(self, objective: Objective, theta0: NDArray[np.float64]) -> State:
        """Evaluate the starting values."""
        return State(theta0, objective.evaluate(theta0), np.zeros_like(theta0))

    def step(self, objective: Objective, state: State) -> State:
        """Propose E^-1 score, or the best step within the space."""
        evaluation = state.evaluation
        step = objective.space.step(state.theta, evaluation.score, evaluation.expected)
        return replace(state, step=step)

    def terminate(self, objective: Objective, state: State) -> NDArray[np.int8]:
        """Converged when the standardised score is below epsilon."""
        left = information_times_step(state.evaluation.expected, state.step)
        return verdicts(objective, state, np.abs(left).max(axis=1) < self.epsilon)
