"""The solver protocol and the loop around it.

A solver proposes steps and says when a feature is done. The loop owns the rest: the iteration
limit, damping so that no step leaves the space and the likelihood never falls, and dropping
finished features from the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from flashmm.likelihood.base import Evaluation, Likelihood
from flashmm.solvers.status import Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.solvers.space import ParameterSpace

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]
    BoolArray = NDArray[np.bool_]

__all__ = [
    "Objective",
    "Solution",
    "Solver",
    "State",
    "definite_observed",
    "maximise",
    "scaled_by_information",
    "standardised_score",
    "verdicts",
]

_SUFFICIENT_INCREASE = 1e-4
_HALVINGS = 60


@dataclass(frozen=True)
class Objective:
    """The likelihood of the features still running, and the space their theta lives in.

    Parameters
    ----------
    likelihood
        Likelihood of all features.
    space
        Parameter space.
    features
        Positions of the B running features.
    """

    likelihood: Likelihood
    space: ParameterSpace
    features: IntArray

    def evaluate(self, theta: FloatArray) -> Evaluation:
        """Evaluate theta (B, k) for the running features."""
        return self.likelihood.evaluate(theta, self.features)

    def take(self, index: IntArray | BoolArray) -> Objective:
        """The same for some of the running features."""
        return replace(self, features=self.features[index])


@dataclass(frozen=True)
class State:
    """Where the running features are.

    Parameters
    ----------
    theta
        Current parameters, shape (B, k).
    evaluation
        Likelihood and derivatives at theta.
    step
        Proposed step, shape (B, k); set by the solver.
    standardised
        `standardised_score`, shape (B, k), for a solver that has it at hand.
    """

    theta: FloatArray
    evaluation: Evaluation
    step: FloatArray
    standardised: FloatArray | None = None

    def take(self, index: IntArray | BoolArray) -> State:
        """The state of some of the running features."""
        kept = None if self.standardised is None else self.standardised[index]
        return State(self.theta[index], self.evaluation.take(index), self.step[index], kept)


class Solver(Protocol):
    """What a solver provides; see `flashmm.solvers.fisher_scoring` for an example."""

    def init(self, objective: Objective, theta0: FloatArray) -> State:
        """Evaluate the starting values theta0 (B, k)."""
        ...

    def step(self, objective: Objective, state: State) -> State:
        """Propose a full step for every running feature."""
        ...

    def terminate(self, objective: Objective, state: State) -> NDArray[np.int8]:
        """Status codes (B,): `Status.RUNNING` or the verdict of a finished feature."""
        ...


@dataclass(frozen=True)
class Solution:
    """Where every feature ended.

    Parameters
    ----------
    theta
        Shape (m, k).
    evaluation
        Likelihood and derivatives at theta.
    n_iter
        Steps taken, shape (m,).
    status
        Verdicts, shape (m,).
    """

    theta: FloatArray
    evaluation: Evaluation
    n_iter: NDArray[np.int64]
    status: NDArray[np.int8]


def standardised_score(objective: Objective, state: State) -> FloatArray:
    """Score in standard-error units, s_i / sqrt(E_ii), shape (B, k).

    In a constrained space the part of the score that the boundary holds in balance does not
    count: what counts is E d, with d the best step within the space (d = E^-1 s inside).
    """
    if state.standardised is not None:
        return state.standardised
    E = state.evaluation.expected
    step = objective.space.step(state.theta, state.evaluation.score, E)
    return scaled_by_information(E, step)


def scaled_by_information(expected: FloatArray, step: FloatArray) -> FloatArray:
    """E d in standard-error units, (E d)_i / sqrt(E_ii), shape (B, k).

    NaN where rounding at the edge of the likelihood's domain makes E_ii negative.
    """
    left = np.matmul(expected, step[:, :, None])[:, :, 0]
    with np.errstate(invalid="ignore"):
        return np.asarray(left / np.sqrt(np.diagonal(expected, axis1=-2, axis2=-1)))


def definite_observed(
    objective: Objective, state: State, features: IntArray, lowest: float = 0.05
) -> tuple[IntArray, FloatArray]:
    """Which of ``features`` have a positive definite observed information, and those matrices.

    Eigenvalues are those of O scaled by the diagonal of E and must exceed ``lowest``. Of
    parameters that the boundary holds only the expected information counts.
    """
    evaluation = state.evaluation
    expected, average = evaluation.expected[features], evaluation.average[features]
    observed = 2.0 * average - expected
    held = objective.space.held(state.theta[features], evaluation.score[features])
    either = held[:, :, None] | held[:, None, :]
    diagonal = np.eye(held.shape[1], dtype=bool)
    observed = np.where(either, np.where(diagonal, expected, 0.0), observed)
    length = np.sqrt(np.diagonal(expected, axis1=-2, axis2=-1))
    values = np.linalg.eigvalsh(observed / (length[:, :, None] * length[:, None, :]))
    definite = values[:, 0] > lowest
    return features[definite], observed[definite]


def verdicts(objective: Objective, state: State, converged: BoolArray) -> NDArray[np.int8]:
    """`Status.CONVERGED`, or `Status.BOUNDARY` at the edge of the space, where converged."""
    codes = np.where(objective.space.on_boundary(state.theta), Status.BOUNDARY, Status.CONVERGED)
    return np.where(converged, codes, Status.RUNNING).astype(np.int8)


def maximise(
    likelihood: Likelihood,
    space: ParameterSpace,
    solver: Solver,
    theta0: FloatArray,
    features: IntArray,
    *,
    max_iter: int,
) -> Solution:
    """Maximise the likelihood of some features together, each to its own end.

    Parameters
    ----------
    likelihood, space, solver
        What to maximise, where, and how.
    theta0
        Starting values inside the space, shape (B, k).
    features
        Positions of the features in the likelihood, shape (B,).
    max_iter
        Limit on the number of steps of each feature.

    Returns
    -------
    Solution
        In the order of ``features``.
    """
    count = theta0.shape[0]
    objective = Objective(likelihood, space, features)
    state = solver.init(objective, theta0)
    final = Solution(
        theta0.copy(),
        state.evaluation.take(np.arange(count)),
        np.zeros(count, dtype=np.int64),
        np.full(count, Status.RUNNING, dtype=np.int8),
    )
    running = np.arange(count)
    for iteration in range(max_iter + 1):
        state = solver.step(objective, state)
        codes = np.asarray(solver.terminate(objective, state), dtype=np.int8)
        moved, stalled = _damped(objective, _polished(objective, state, codes))
        codes[(codes == Status.RUNNING) & stalled] = Status.STALLED
        if iteration == max_iter:
            codes[codes == Status.RUNNING] = Status.ITERATION_LIMIT
        done = codes != Status.RUNNING
        if done.any():
            ended = running[done]
            final.theta[ended] = moved.theta[done]
            final.evaluation.put(ended, moved.evaluation.take(done))
            final.n_iter[ended] = iteration
            final.status[ended] = codes[done]
        if done.all():
            break
        state, running, objective = moved.take(~done), running[~done], objective.take(~done)
    return final


def _polished(objective: Objective, state: State, codes: NDArray[np.int8]) -> State:
    """Give converged features a last Newton step in place of the solver's.

    Within epsilon standard errors of the maximum the observed information is almost exact, so
    one step squares the error that is left. Where it is not positive definite the solver's
    own step stays.
    """
    converged = np.flatnonzero(codes <= Status.INDEFINITE)
    chosen, observed = definite_observed(objective, state, converged, 1e-6)
    if chosen.size == 0:
        return state
    step = state.step.copy()
    score = state.evaluation.score[chosen]
    step[chosen] = objective.space.step(state.theta[chosen], score, observed)
    return replace(state, step=step)


def _damped(objective: Objective, state: State) -> tuple[State, BoolArray]:
    """Take the proposed steps, halved until the likelihood exists and does not fall.

    Returns the new state and which features found no such step and stayed where they were.
    """
    before, step = state.evaluation, state.step
    slope = np.maximum((before.score * step).sum(axis=1), 0.0)
    # Rounding of the log-likelihood: a smaller fall is not a fall.
    rounding = before.rounding + 1e-12 * (1.0 + np.abs(before.loglik))
    alpha = np.ones(step.shape[0])
    space = objective.space
    theta = space.tidied(state.theta + step)
    evaluation = objective.evaluate(theta)

    def refused(after: Evaluation, index: IntArray) -> BoolArray:
        enough = _SUFFICIENT_INCREASE * alpha[index] * slope[index]
        gain = after.loglik - before.loglik[index]
        allowed = np.isfinite(after.score).all(axis=1) & space.contains(theta[index])
        # Near the maximum the gain drowns in rounding; the slope along the step does not
        # (the approximate Wolfe condition of Hager & Zhang 2005).
        flatter = np.abs((after.score * step[index]).sum(axis=1)) <= 0.5 * slope[index]
        close = flatter & (gain >= -rounding[index] - after.rounding)
        return np.asarray(~(allowed & ((gain >= enough) | close)))

    pending = np.flatnonzero(refused(evaluation, np.arange(alpha.size)))
    for _ in range(_HALVINGS):
        if pending.size == 0:
            break
        alpha[pending] *= 0.5
        theta[pending] = space.tidied(state.theta[pending] + alpha[pending, None] * step[pending])
        again = objective.take(pending).evaluate(theta[pending])
        evaluation.put(pending, again)
        pending = pending[refused(again, pending)]
    stalled = np.zeros(alpha.size, dtype=bool)
    stalled[pending] = True
    theta[pending] = state.theta[pending]
    evaluation.put(pending, before.take(pending))
    return State(theta, evaluation, np.zeros_like(theta)), stalled
