"""A search for other maxima that ends where it comes close to one that is known."""

from __future__ import annotations

from dataclasses import dataclass

from flashmm.arrays.namespaces import Array, FloatArray, namespace, take
from flashmm.solvers.base import Objective, Solver, State
from flashmm.solvers.verdict_texts import Status

__all__ = ["UntilKnown"]

# So many standard errors from a maximum, and no higher than so much above it, a search is on its
# way there.
_CLOSE = 0.05
_ABOVE = 1e-3


@dataclass(frozen=True)
class UntilKnown:
    """A solver that gives features up next to their known maximum: `Status.ITERATION_LIMIT`.

    Parameters
    ----------
    solver
        The solver.
    theta, loglik
        The known maxima of all features, shapes (m, k) and (m,); NaN for none.
    """

    solver: Solver
    theta: FloatArray
    loglik: FloatArray

    def init(self, objective: Objective, theta0: FloatArray) -> State:
        """The solver's."""
        return self.solver.init(objective, theta0)

    def step(self, objective: Objective, state: State) -> State:
        """The solver's."""
        return self.solver.step(objective, state)

    def terminate(self, objective: Objective, state: State) -> Array:
        """The solver's, and given up next to what is known."""
        xp, codes = namespace(state.theta), self.solver.terminate(objective, state)
        apart = state.theta - take(self.theta, objective.features)
        information = state.evaluation.expected
        square = xp.sum(xp.matmul(information, apart[:, :, None])[:, :, 0] * apart, axis=1)
        known = (square < _CLOSE**2) & (
            state.evaluation.loglik < take(self.loglik, objective.features) + _ABOVE
        )
        given_up = (codes == int(Status.RUNNING)) & known
        return xp.where(given_up, int(Status.ITERATION_LIMIT), codes)
