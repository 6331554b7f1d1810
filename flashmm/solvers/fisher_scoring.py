"""Fisher scoring: the expected information turns the score into a step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flashmm.arrays.namespaces import (
    Array,
    BoolArray,
    FloatArray,
    flatnonzero,
    namespace,
    put,
    take,
)
from flashmm.solvers.base import Objective, State, newton_where, positive_observed
from flashmm.solvers.stopping import scoring_step, standardised_score, verdicts, within

__all__ = ["FisherScoring"]

# Standardised scores below which an indefinite observed information may give steps.
_NEAR = 0.1


@dataclass(frozen=True)
class FisherScoring:
    """Fisher scoring (Jennrich & Sampson 1976), FLASHMM's method.

    Parameters
    ----------
    epsilon
        A feature has converged when its score, divided by its standard error, is below epsilon
        in every component and in every combination of them (`flashmm.solvers.base.within`);
        its estimate is then about epsilon standard errors from the maximum.
    newton_within
        Once every component of that score is below this, steps use the observed information
        (made positive definite where it is not): scoring converges linearly, Newton's method
        quadratically. 0 keeps to scoring.
    """

    epsilon: float = 1e-5
    newton_within: float = 0.1

    def init(self, objective: Objective, theta0: FloatArray) -> State:
        """Evaluate the starting values."""
        return State(theta0, objective.evaluate(theta0), 0.0 * theta0)

    def step(self, objective: Objective, state: State) -> State:
        """Propose E^-1 score, or the best step within the space."""
        xp, step = namespace(state.theta), scoring_step(objective, state)
        proposed = replace(state, step=step, scoring=step)
        size = xp.max(xp.abs(standardised_score(objective, proposed)), axis=1)
        state, taken = newton_where(objective, proposed, size < self.newton_within)
        inside = ~objective.space.on_boundary(state.theta)
        return _flat_steps(
            objective, state, (size < min(self.newton_within, _NEAR)) & inside & ~taken
        )

    def terminate(self, objective: Objective, state: State) -> Array:
        """Converged when the standardised score is below epsilon."""
        return verdicts(objective, state, within(objective, state, self.epsilon))


def _flat_steps(objective: Objective, state: State, chosen: BoolArray) -> State:
    """Steps for chosen features (B,) by the observed information, made positive definite.

    Where the likelihood is flat or not concave scoring creeps: its steps are as short as the
    expected curvature, which may be many times the observed.
    """
    rows = flatnonzero(chosen)
    if rows.shape[0] == 0:
        return state
    xp, at = namespace(state.theta), state.evaluation.take(rows)
    step = objective.space.step(take(state.theta, rows), at.score, positive_observed(at))
    result = xp.asarray(state.step, copy=True)
    put(result, rows, step)
    return replace(state, step=result)
