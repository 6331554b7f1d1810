"""The solver protocol and the loop around it.

A solver proposes steps and says when a feature is done. The loop owns the rest: the iteration
limit, damping so that no step leaves the space and the likelihood never falls, and dropping
finished features from the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import array_api_compat
import numpy as np

from flashmm.arrays.namespaces import (
    Array,
    BoolArray,
    FloatArray,
    IntArray,
    flatnonzero,
    namespace,
    put,
    take,
)
from flashmm.likelihood.base import Evaluation, Likelihood
from flashmm.solvers.blocks import symmetric_eigen
from flashmm.solvers.damping import damped
from flashmm.solvers.running_features import Objective, State
from flashmm.solvers.space import ParameterSpace
from flashmm.solvers.verdict_texts import Status

__all__ = [
    "Objective",
    "Solution",
    "Solver",
    "State",
    "maximise",
    "newton_where",
    "positive_observed",
]


class Solver(Protocol):
    """What a solver provides; see `flashmm.solvers.fisher_scoring` for an example."""

    def init(self, objective: Objective, theta0: FloatArray) -> State:
        """Evaluate the starting values theta0 (B, k)."""
        ...

    def step(self, objective: Objective, state: State) -> State:
        """Propose a full step for every running feature."""
        ...

    def terminate(self, objective: Objective, state: State) -> Array:
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
    n_iter: Array
    status: Array

    @classmethod
    def empty(cls, m: int, k: int) -> Solution:
        """Of features that were not searched, in numpy arrays."""
        return cls(
            np.full((m, k), np.nan),
            Evaluation.empty(m, k),
            np.zeros(m, dtype=np.int64),
            np.full(m, Status.RUNNING, dtype=np.int8),
        )

    def take(self, index: IntArray) -> Solution:
        """The same for some of the features."""
        return Solution(
            self.theta[index], self.evaluation.take(index), self.n_iter[index], self.status[index]
        )

    def put(self, index: IntArray, other: Solution) -> None:
        """Overwrite the features at ``index``."""
        self.theta[index], self.n_iter[index] = other.theta, other.n_iter
        self.status[index] = other.status
        self.evaluation.put(index, other.evaluation)


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
    xp, device = namespace(theta0), array_api_compat.device(theta0)
    count = theta0.shape[0]
    running = xp.arange(count, device=device)
    objective = Objective(likelihood, space, features)
    state = solver.init(objective, theta0)
    final: Solution | None = None
    for iteration in range(max_iter + 1):
        # Next to the edge of the domain information overflows; no step that is not finite is taken.
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            state = solver.step(objective, state)
            codes = solver.terminate(objective, state)
            ends = codes != int(Status.RUNNING)
            moved, stalled = damped(objective, _polished(objective, state, codes), ends)
        unknown = stalled | ~ends  # of those that end, which are not evaluated as such
        codes[(codes == int(Status.RUNNING)) & stalled] = int(Status.STALLED)
        if iteration == max_iter:
            codes[codes == int(Status.RUNNING)] = int(Status.ITERATION_LIMIT)
        done = codes != int(Status.RUNNING)
        objective.completed(moved.theta, moved.evaluation, done & unknown)
        if final is None and bool(xp.all(done)):  # all at once, as of one feature
            steps = xp.full_like(running, iteration)
            return Solution(moved.theta, moved.evaluation, steps, xp.astype(codes, xp.int8))
        if bool(xp.any(done)):
            if final is None:
                final = Solution(
                    xp.asarray(moved.theta, copy=True),
                    moved.evaluation.take(running),
                    xp.zeros(count, dtype=xp.int64, device=device),
                    xp.full(count, int(Status.RUNNING), dtype=xp.int8, device=device),
                )
            ended = running[done]
            put(final.theta, ended, moved.theta[done])
            final.evaluation.put(ended, moved.evaluation.take(done))
            put(final.n_iter, ended, xp.full_like(ended, iteration))
            put(final.status, ended, codes[done])
        if bool(xp.all(done)):
            break
        state, running, objective = moved.take(~done), running[~done], objective.take(~done)
    assert final is not None  # every feature ends, at the latest by the limit
    return final


def _polished(objective: Objective, state: State, codes: Array) -> State:
    """Give converged features a last Newton step in place of the solver's.

    Within epsilon standard errors of the maximum the observed information is almost exact, so
    one step squares the error that is left. Where it is not positive definite the solver's
    own step stays.
    """
    return newton_where(objective, state, codes <= int(Status.INDEFINITE), 1e-6)[0]


def newton_where(
    objective: Objective, state: State, chosen: BoolArray, lowest: float = 0.05
) -> tuple[State, BoolArray]:
    """Put Newton steps in place of those proposed, for chosen features (B,) near a maximum.

    Returns the state and which features got one, (B,).

    Near one, the observed information has eigenvalues above ``lowest``, relative to the expected
    one or its diagonal, in the directions that the boundary of the space leaves.
    """
    rows, taken = flatnonzero(chosen), chosen & False
    if rows.shape[0] == 0:
        return state, taken
    xp, at = namespace(state.theta), state.evaluation.take(rows)
    step, ok = objective.space.newton(take(state.theta, rows), at, lowest)
    result = xp.asarray(state.step, copy=True)
    put(result, rows[ok], step[ok])
    put(taken, rows, ok)
    return replace(state, step=result), taken


def positive_observed(evaluation: Evaluation) -> FloatArray:
    """The observed information, made positive definite, shape (B, k, k).

    Its eigenvalues, relative to the diagonal of the expected information, are replaced by their
    absolute values, so that every step climbs (Nocedal & Wright 2006, section 3.4).
    """
    xp = namespace(evaluation.expected)
    with np.errstate(invalid="ignore"):  # at the edge of the domain rounding may spoil it
        length = xp.sqrt(xp.linalg.diagonal(evaluation.expected))
    scale = length[:, :, None] * length[:, None, :]
    values, vectors = symmetric_eigen(evaluation.observed / scale)
    values = xp.clip(xp.abs(values), min=1e-13)
    definite = xp.matmul(vectors * values[:, None, :], xp.matrix_transpose(vectors))
    return definite * scale
