"""Newton's method on the face of the boundary that theta lies on, for own parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray
from flashmm.likelihood.base import Evaluation
from flashmm.solvers.base import Objective, State, positive_observed
from flashmm.solvers.boxed import Boxed
from flashmm.solvers.newton_raphson import NewtonRaphson
from flashmm.solvers.stopping import scoring_step

__all__ = ["FaceNewton"]


@dataclass(frozen=True)
class FaceNewton(NewtonRaphson):
    """Newton-Raphson, apart for what a boundary holds and what moves on its face.

    A standard deviation that is held at zero has an observed information of its own with the
    others, and changes of sign in it would turn their steps. In a `Boxed` space alone.

    Parameters
    ----------
    epsilon
        Tolerance on the standardised score, as for `FisherScoring`.
    """

    def step(self, objective: Objective, state: State) -> State:
        """Propose the step by the observed information, its eigenvalues made positive."""
        space = objective.space
        assert isinstance(space, Boxed)
        held = space.held(state.theta, state.evaluation.score)
        free = _apart(state.evaluation, held)
        score: FloatArray = np.where(held, 0.0, state.evaluation.score)
        step = space.step(state.theta, score, positive_observed(free))
        return replace(state, step=step, scoring=scoring_step(objective, state))


def _apart(at: Evaluation, held: BoolArray) -> Evaluation:
    """The evaluation with the held parameters, (B, k), apart from the others and each other."""
    either = held[:, :, None] | held[:, None, :]
    if not either.any():
        return at
    alone = np.where(np.eye(held.shape[1], dtype=bool), at.expected, 0.0)
    return replace(
        at,
        expected=np.where(either, alone, at.expected),
        average=np.where(either, alone, at.average),
    )
