"""Average-information and Newton-Raphson: other information matrices in place of the expected."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flashmm.arrays.namespaces import Array, FloatArray
from flashmm.likelihood.base import Evaluation
from flashmm.solvers.base import Objective, State, positive_observed
from flashmm.solvers.stopping import scoring_step, verdicts, within

__all__ = ["AverageInformation", "NewtonRaphson"]


@dataclass(frozen=True)
class AverageInformation:
    """Average-information REML (Gilmour, Thompson & Cullis 1995).

    Parameters
    ----------
    epsilon
        Tolerance on the standardised score, as for `FisherScoring`.
    """

    epsilon: float = 1e-5

    def init(self, objective: Objective, theta0: FloatArray) -> State:
        """Evaluate the starting values."""
        return State(theta0, objective.evaluate(theta0), 0.0 * theta0)

    def step(self, objective: Objective, state: State) -> State:
        """Propose A^-1 score, or the best step within the space."""
        information = self._information(state.evaluation)
        step = objective.space.step(state.theta, state.evaluation.score, information)
        return replace(state, step=step, scoring=scoring_step(objective, state))

    def terminate(self, objective: Objective, state: State) -> Array:
        """Converged when the standardised score is below epsilon."""
        return verdicts(objective, state, within(objective, state, self.epsilon))

    def _information(self, evaluation: Evaluation) -> FloatArray:
        # A random effect predicted as zero has no average information of its own; a little of
        # the expected keeps the step bounded.
        return evaluation.average + 0.05 * evaluation.expected


@dataclass(frozen=True)
class NewtonRaphson(AverageInformation):
    """Newton-Raphson with the observed information.

    Where that is not positive definite its eigenvalues, relative to the diagonal of the
    expected information, are replaced by their absolute values, so that every step climbs
    (Nocedal & Wright 2006, section 3.4).

    Parameters
    ----------
    epsilon
        Tolerance on the standardised score, as for `FisherScoring`.
    """

    def _information(self, evaluation: Evaluation) -> FloatArray:
        return positive_observed(evaluation)
